//! Keys of a client to bytes for the guest, as xterm sends them: the guest's environment says `TERM=xterm`.
//!
//! Clients send keysyms: X11's numbers for what is on a key, with Shift and AltGr already applied (RFC 6143, section
//! 7.5.4). So letters of any layout, dead keys and input methods arrive as characters; what is left for us are Control,
//! Alt and the keys that are none. Keys that look at the scrollback or paste never reach the guest.
//!
//! Each client has a keyboard of its own: a Control key held in one window must not change what another types. A client
//! that loses the focus may never say that a key was released; it does when the key is pressed the next time.

use xkeysym::{Keysym, key};

use crate::terminal::{Modes, View};

/// A client's keyboard.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keyboard {
    held: Held,
}

/// Keys that change others, one bit each: left and right are told apart, since either may be let go first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held(u8);

impl Held {
    const SHIFT: u8 = 0b0000_0011;
    const CONTROL: u8 = 0b0000_1100;
    const ALT: u8 = 0b1111_0000;

    fn bit(keysym: u32) -> Option<u8> {
        let number = match keysym {
            key::Shift_L => 0,
            key::Shift_R => 1,
            key::Control_L => 2,
            key::Control_R => 3,
            key::Alt_L => 4,
            key::Alt_R => 5,
            key::Meta_L => 6,
            key::Meta_R => 7,
            _ => return None,
        };
        Some(1 << number)
    }

    fn any(self, which: u8) -> bool {
        self.0 & which != 0
    }

    /// The number by which xterm tells them ("PC-Style Function Keys" in its ctlseqs); `None` for none.
    fn parameter(self) -> Option<u8> {
        let bit = |which, value| if self.any(which) { value } else { 0 };
        let sum = bit(Self::SHIFT, 1) + bit(Self::ALT, 2) + bit(Self::CONTROL, 4);
        (sum > 0).then_some(1 + sum)
    }
}

/// What a key or a button means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meant {
    /// The guest is to read this.
    Typed(Vec<u8>),
    /// Something else is to be looked at.
    Look(View),
    /// The text that the client copied last is to be typed.
    Paste,
    /// Nothing.
    Nothing,
}

impl Meant {
    fn typed(bytes: impl Into<Vec<u8>>) -> Self {
        Self::Typed(bytes.into())
    }
}

impl Keyboard {
    /// A key was pressed (also by repeating it).
    pub fn press(&mut self, keysym: u32, modes: Modes) -> Meant {
        if let Some(bit) = Held::bit(keysym) {
            self.held.0 |= bit;
            return Meant::Nothing;
        }
        if let Some(meant) = self.ours(keysym, modes) {
            return meant;
        }
        let name = Name::of(keysym);
        if let Some(name) = name {
            return Meant::typed(self.named(name, modes));
        }
        match Keysym::from(keysym).key_char() {
            Some(character) if !character.is_control() => Meant::typed(self.character(character)),
            Some(_) | None => Meant::Nothing,
        }
    }

    /// A key was released.
    pub fn release(&mut self, keysym: u32) {
        self.held.0 &= !Held::bit(keysym).unwrap_or(0);
    }

    /// Keys for whoever looks.
    fn ours(&self, keysym: u32, modes: Modes) -> Option<Meant> {
        let shift = self.held.any(Held::SHIFT);
        let (control, alt) = (self.held.any(Held::CONTROL), self.held.any(Held::ALT));
        let paste = match keysym {
            key::Insert | key::KP_Insert => shift && !control && !alt,
            key::v | key::V => shift && control && !alt,
            _ => false,
        };
        if paste {
            return Some(Meant::Paste);
        }
        if !shift || control || alt || modes.alternate_screen() {
            return None;
        }
        Some(Meant::Look(match keysym {
            key::Page_Up | key::KP_Page_Up => View::PageUp,
            key::Page_Down | key::KP_Page_Down => View::PageDown,
            key::Home | key::KP_Home => View::Top,
            key::End | key::KP_End => View::Bottom,
            key::Up | key::KP_Up => View::Lines(1),
            key::Down | key::KP_Down => View::Lines(-1),
            _ => return None,
        }))
    }

    fn named(&self, name: Name, modes: Modes) -> Vec<u8> {
        let (shift, control) = (self.held.any(Held::SHIFT), self.held.any(Held::CONTROL));
        match (name, self.held.parameter()) {
            (Name::Return, _) if modes.line_feed() => self.with_alt(b"\r\n"),
            (Name::Return, _) => self.with_alt(b"\r"),
            (Name::Escape, _) => self.with_alt(b"\x1b"),
            (Name::Tab, _) if shift => b"\x1b[Z".to_vec(),
            (Name::Tab, _) => self.with_alt(b"\t"),
            (Name::BackTab, _) => b"\x1b[Z".to_vec(),
            (Name::BackSpace, _) if control => self.with_alt(b"\x08"),
            (Name::BackSpace, _) => self.with_alt(b"\x7f"),
            (Name::Cursor(letter), None) if modes.application_cursor() => {
                vec![0x1b, b'O', letter]
            }
            (Name::Cursor(letter), None) => vec![0x1b, b'[', letter],
            (Name::Function(letter), None) => vec![0x1b, b'O', letter],
            (Name::Cursor(letter) | Name::Function(letter), Some(held)) => {
                format!("\x1b[1;{held}{}", char::from(letter)).into_bytes()
            }
            (Name::Numbered(number), None) => format!("\x1b[{number}~").into_bytes(),
            (Name::Numbered(number), Some(held)) => format!("\x1b[{number};{held}~").into_bytes(),
        }
    }

    fn character(&self, character: char) -> Vec<u8> {
        let alt = self.held.any(Held::ALT);
        let mut bytes = [0; 4];
        let plain = character.encode_utf8(&mut bytes).as_bytes();
        if !self.held.any(Held::CONTROL) {
            return self.with_alt(plain);
        }
        match controlled(character) {
            // AltGr of some keyboards is Control and Alt: `@` and `{` are typed with it.
            Some(_) if alt && !character.is_ascii_alphabetic() && character != ' ' => {
                plain.to_vec()
            }
            Some(control) => self.with_alt(&[control]),
            None if alt => plain.to_vec(),
            None => self.with_alt(plain),
        }
    }

    fn with_alt(&self, bytes: &[u8]) -> Vec<u8> {
        let escape: &[u8] = if self.held.any(Held::ALT) { b"\x1b" } else { b"" };
        [escape, bytes].concat()
    }
}

/// The control character of a key, as VT220 and xterm have it.
fn controlled(character: char) -> Option<u8> {
    let byte = u8::try_from(character).ok()?;
    Some(match byte {
        b'@'..=b'_' | b'a'..=b'z' => byte & 0x1f,
        b' ' | b'2' | b'`' => 0,
        b'3'..=b'7' => byte - b'3' + 0x1b,
        b'/' => 0x1f,
        b'8' | b'?' => 0x7f,
        _ => return None,
    })
}

/// A key that is no character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Return,
    Escape,
    Tab,
    BackTab,
    BackSpace,
    /// With the last letter of its sequence.
    Cursor(u8),
    /// F1 to F4.
    Function(u8),
    /// With its number in VT220's sequences.
    Numbered(u8),
}

impl Name {
    fn of(keysym: u32) -> Option<Self> {
        Some(match keysym {
            key::Return | key::KP_Enter | key::Linefeed => Self::Return,
            key::Escape => Self::Escape,
            key::Tab | key::KP_Tab => Self::Tab,
            key::ISO_Left_Tab => Self::BackTab,
            key::BackSpace => Self::BackSpace,
            key::Up | key::KP_Up => Self::Cursor(b'A'),
            key::Down | key::KP_Down => Self::Cursor(b'B'),
            key::Right | key::KP_Right => Self::Cursor(b'C'),
            key::Left | key::KP_Left => Self::Cursor(b'D'),
            key::Begin | key::KP_Begin => Self::Cursor(b'E'),
            key::End | key::KP_End => Self::Cursor(b'F'),
            key::Home | key::KP_Home => Self::Cursor(b'H'),
            key::Insert | key::KP_Insert => Self::Numbered(2),
            key::Delete | key::KP_Delete => Self::Numbered(3),
            key::Page_Up | key::KP_Page_Up => Self::Numbered(5),
            key::Page_Down | key::KP_Page_Down => Self::Numbered(6),
            key::F1 | key::KP_F1 => Self::Function(b'P'),
            key::F2 | key::KP_F2 => Self::Function(b'Q'),
            key::F3 | key::KP_F3 => Self::Function(b'R'),
            key::F4 | key::KP_F4 => Self::Function(b'S'),
            key::F5..=key::F20 => {
                // The numbers have holes, VT220's keyboard had gaps there.
                let numbers = [15, 17, 18, 19, 20, 21, 23, 24, 25, 26, 28, 29, 31, 32, 33, 34];
                let at = (keysym - key::F5) as usize;
                Self::Numbered(*numbers.get(at)?)
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::terminal::Terminal;

    fn modes(set: &str) -> Modes {
        let mut terminal = Terminal::new(crate::terminal::FIRST_SIZE);
        terminal.print(set.as_bytes());
        terminal.modes()
    }

    /// What is typed while these keys are held.
    fn pressed(held: &[u32], keysym: u32, modes: Modes) -> Meant {
        let mut keyboard = Keyboard::default();
        for modifier in held {
            assert_eq!(keyboard.press(*modifier, modes), Meant::Nothing);
        }
        keyboard.press(keysym, modes)
    }

    const SHIFT: u32 = key::Shift_L;
    const CONTROL: u32 = key::Control_R;
    const ALT: u32 = key::Alt_L;

    #[test]
    fn keys_are_those_of_xterm() {
        for (held, keysym, typed) in [
            (&[][..], key::a, &b"a"[..]),
            (&[SHIFT], key::A, b"A"),
            (&[CONTROL], key::c, b"\x03"),
            (&[CONTROL, SHIFT], key::C, b"\x03"),
            (&[CONTROL], key::space, b"\0"),
            (&[CONTROL], key::bracketleft, b"\x1b"),
            (&[CONTROL], key::_6, b"\x1e"),
            (&[CONTROL], key::slash, b"\x1f"),
            (&[CONTROL], key::question, b"\x7f"),
            (&[CONTROL], key::period, b"."),
            (&[ALT], key::x, b"\x1bx"),
            (&[key::Meta_R], key::x, b"\x1bx"),
            (&[CONTROL, ALT], key::c, b"\x1b\x03"),
            (&[], key::Return, b"\r"),
            (&[ALT], key::KP_Enter, b"\x1b\r"),
            (&[], key::BackSpace, b"\x7f"),
            (&[CONTROL], key::BackSpace, b"\x08"),
            (&[ALT], key::BackSpace, b"\x1b\x7f"),
            (&[], key::Tab, b"\t"),
            (&[SHIFT], key::Tab, b"\x1b[Z"),
            (&[SHIFT], key::ISO_Left_Tab, b"\x1b[Z"),
            (&[], key::Escape, b"\x1b"),
            (&[], key::Up, b"\x1b[A"),
            (&[CONTROL], key::Right, b"\x1b[1;5C"),
            (&[SHIFT, ALT], key::Left, b"\x1b[1;4D"),
            (&[], key::Home, b"\x1b[H"),
            (&[], key::KP_End, b"\x1b[F"),
            (&[], key::Delete, b"\x1b[3~"),
            (&[CONTROL], key::Page_Up, b"\x1b[5;5~"),
            (&[], key::Insert, b"\x1b[2~"),
            (&[], key::F1, b"\x1bOP"),
            (&[SHIFT], key::F4, b"\x1b[1;2S"),
            (&[], key::F5, b"\x1b[15~"),
            (&[], key::F10, b"\x1b[21~"),
            (&[], key::F12, b"\x1b[24~"),
            (&[CONTROL], key::F20, b"\x1b[34;5~"),
            (&[], key::KP_7, b"7"),
            (&[], key::KP_Add, b"+"),
            (&[], key::KP_Decimal, b"."),
            // Characters of other scripts, by their old numbers and by their new ones.
            (&[], key::adiaeresis, "ä".as_bytes()),
            (&[], key::Cyrillic_ya, "я".as_bytes()),
            (&[], key::Greek_OMEGA, "Ω".as_bytes()),
            (&[], key::EuroSign, "€".as_bytes()),
            (&[], 0x0100_20ac, "€".as_bytes()),
            (&[], 0x0101_f600, "😀".as_bytes()),
            (&[ALT], key::adiaeresis, "\u{1b}ä".as_bytes()),
            // AltGr.
            (&[CONTROL, ALT], key::at, b"@"),
            (&[CONTROL, ALT], key::braceleft, b"{"),
            (&[CONTROL, ALT], key::EuroSign, "€".as_bytes()),
        ] {
            let meant = pressed(held, keysym, Modes::NONE);
            assert_eq!(meant, Meant::typed(typed), "{held:?} {keysym:#x}");
        }
    }

    #[test]
    fn modes_of_the_guest_change_keys() {
        for (set, held, keysym, typed) in [
            ("\x1b[?1h", &[][..], key::Up, &b"\x1bOA"[..]),
            ("\x1b[?1h", &[], key::Home, b"\x1bOH"),
            ("\x1b[?1h", &[CONTROL], key::Up, b"\x1b[1;5A"),
            ("\x1b[20h", &[], key::Return, b"\r\n"),
            ("\x1b=", &[], key::KP_5, b"5"),
            ("\x1b[?1049h", &[SHIFT], key::Page_Up, b"\x1b[5;2~"),
        ] {
            assert_eq!(
                pressed(held, keysym, modes(set)),
                Meant::typed(typed),
                "{set:?} {keysym:#x}"
            );
        }
    }

    #[test]
    fn some_keys_are_for_whoever_looks() {
        for (held, keysym, meant) in [
            (&[SHIFT][..], key::Page_Up, Meant::Look(View::PageUp)),
            (&[SHIFT], key::KP_Page_Down, Meant::Look(View::PageDown)),
            (&[SHIFT], key::Home, Meant::Look(View::Top)),
            (&[SHIFT], key::Insert, Meant::Paste),
            (&[SHIFT, CONTROL], key::V, Meant::Paste),
            (&[CONTROL], key::v, Meant::typed(b"\x16")),
        ] {
            assert_eq!(pressed(held, keysym, Modes::NONE), meant, "{held:?} {keysym:#x}");
        }
    }

    #[test]
    fn held_keys_end_when_released_and_left_is_not_right() {
        let mut keyboard = Keyboard::default();
        for held in [key::Control_L, key::Control_R] {
            keyboard.press(held, Modes::NONE);
        }
        keyboard.release(key::Control_L);
        assert_eq!(keyboard.press(key::d, Modes::NONE), Meant::typed(b"\x04"));
        keyboard.release(key::Control_R);
        assert_eq!(keyboard.press(key::d, Modes::NONE), Meant::typed(b"d"));
        keyboard.release(key::d);
    }

    #[test]
    fn keys_without_meaning_type_nothing() {
        for keysym in
            [key::Super_L, key::Caps_Lock, key::ISO_Level3_Shift, key::Print, 0, 0xffff_ffff]
        {
            assert_eq!(pressed(&[], keysym, Modes::NONE), Meant::Nothing, "{keysym:#x}");
        }
        // Unicode's numbers of control characters, and of none.
        for keysym in [0x0100_001b, 0x0100_009d, 0x0100_d800, 0x0111_0000] {
            assert_eq!(pressed(&[], keysym, Modes::NONE), Meant::Nothing, "{keysym:#x}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_key_types_little(
            held in prop::collection::vec(key::Shift_L..key::Super_R, 0..4),
            keysym in prop_oneof![any::<u32>(), 0_u32..0x2000, 0xfd00_u32..0x1_0000],
        ) {
            if let Meant::Typed(bytes) = pressed_any(&held, keysym) {
                prop_assert!(!bytes.is_empty() && bytes.len() <= 8);
                prop_assert!(std::str::from_utf8(&bytes).is_ok());
            }
        }
    }

    fn pressed_any(held: &[u32], keysym: u32) -> Meant {
        let mut keyboard = Keyboard::default();
        for modifier in held {
            keyboard.press(*modifier, Modes::NONE);
        }
        keyboard.press(keysym, Modes::NONE)
    }
}
