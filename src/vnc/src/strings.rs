//! Takes control strings out of what a guest prints, before anything interprets it.
//!
//! ECMA-48 knows strings of any length: OSC (window titles, clipboards: OSC 52, palettes, links), DCS (sixel
//! pictures, DECRQSS), SOS, PM and APC. A console needs none of them; each is a way to command whoever looks (to set
//! his clipboard, to have him answer as if he typed) or to fill memory, since an emulator has to keep a string until it
//! ends, and a hostile one never ends. So they end here, in a machine of four states and no memory.
//!
//! What must hold: this machine and the emulator's parser ([`alacritty_terminal::vte`]) agree about where strings
//! begin. Only `ESC` begins one, and no byte of UTF-8's longer forms is an `ESC`, so following escapes is enough. A
//! string begun by an eight-bit C1 control is none for that parser, which reads UTF-8. A test compares the two.

/// Follows a stream in pieces; strings may be cut anywhere.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Strings {
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After an escape that was not passed on yet.
    Escape,
    /// An escape with intermediate bytes, as in `ESC ( B`: what follows is no string.
    Intermediate,
    /// In a string.
    String(Kind),
    /// At an escape in a string: perhaps of ST, perhaps of the next sequence; either way the string is over.
    StringEscape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Ends with BEL as well, by xterm's custom.
    Osc,
    /// DCS, SOS, PM, APC.
    Other,
}

const ESC: u8 = 0x1b;
const CAN: u8 = 0x18;
const SUB: u8 = 0x1a;
const BEL: u8 = 0x07;

impl Strings {
    /// Appends to `out` what is no control string.
    pub fn filter(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.state == State::Text {
                // Most bytes are text.
                let plain = rest.iter().position(|&byte| byte == ESC).unwrap_or(rest.len());
                out.extend_from_slice(&rest[..plain]);
                rest = &rest[plain..];
            }
            let Some((&byte, after)) = rest.split_first() else { return };
            self.state = self.step(byte, out);
            rest = after;
        }
    }

    /// Forgets a sequence that is cut for good.
    pub fn cut(&mut self) {
        self.state = State::Text;
    }

    fn step(&self, byte: u8, out: &mut Vec<u8>) -> State {
        match (self.state, byte) {
            (State::Text, ESC) => State::Escape,
            (State::Text, _) => {
                out.push(byte);
                State::Text
            }
            (State::Escape | State::StringEscape, b']') => State::String(Kind::Osc),
            (State::Escape | State::StringEscape, b'P' | b'X' | b'^' | b'_') => {
                State::String(Kind::Other)
            }
            // An escape begins anew, and controls act at once, in the midst of a sequence.
            (State::Escape | State::StringEscape, ESC) => State::Escape,
            (State::Escape | State::StringEscape, CAN | SUB) => {
                out.push(byte);
                State::Text
            }
            (State::Escape | State::StringEscape, 0x00..=0x1f) => {
                out.push(byte);
                self.state
            }
            (State::Escape | State::StringEscape, 0x7f..) => self.state,
            (State::StringEscape, b'\\') => State::Text,
            (State::Escape | State::StringEscape, 0x20..=0x2f) => {
                out.extend_from_slice(&[ESC, byte]);
                State::Intermediate
            }
            (State::Escape | State::StringEscape, _) => {
                out.extend_from_slice(&[ESC, byte]);
                State::Text
            }
            (State::Intermediate, ESC) => State::Escape,
            (State::Intermediate, 0x30..=0x7e | CAN | SUB) => {
                out.push(byte);
                State::Text
            }
            (State::Intermediate, _) => {
                out.push(byte);
                State::Intermediate
            }
            (State::String(_), ESC) => State::StringEscape,
            (State::String(_), CAN | SUB) | (State::String(Kind::Osc), BEL) => State::Text,
            (State::String(_), _) => self.state,
        }
    }
}

#[cfg(test)]
mod tests {
    use alacritty_terminal::vte::{Params, Parser, Perform};
    use proptest::prelude::*;

    use super::*;

    fn filtered(bytes: &[u8]) -> Vec<u8> {
        let (mut strings, mut out) = (Strings::default(), Vec::new());
        strings.filter(bytes, &mut out);
        out
    }

    #[test]
    fn strings_are_taken_out_and_nothing_else() {
        for (given, left) in [
            (&b"a\x1b]0;title\x07b"[..], &b"ab"[..]),
            (b"a\x1b]52;c;aGk=\x1b\\b", b"ab"),
            (b"a\x1bPq#0;2;0;0;0#0~~@@vv\x1b\\b", b"ab"),
            (b"a\x1b_apc\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\b", b"ab"),
            // The bell ends no DCS; cancelling does.
            (b"a\x1bP\x07still\x18b", b"ab"),
            // The next sequence ends a string, too.
            (b"a\x1b]0;t\x1b[31mb", b"a\x1b[31mb"),
            (b"a\x1b]0;t\x1b]0;u\x07b", b"ab"),
            // No strings.
            (b"\x1b(]text\x1b[]text\x1b7\x1b8\x1bc", b"\x1b(]text\x1b[]text\x1b7\x1b8\x1bc"),
            (b"\x1b\x1b[1m", b"\x1b[1m"),
            (b"\x1b\n]0;t\x07b", b"\nb"),
            (b"\x1b\x18]0;t", b"\x18]0;t"),
            ("a\u{9d}0;t\u{9c}ü".as_bytes(), "a\u{9d}0;t\u{9c}ü".as_bytes()),
        ] {
            assert_eq!(filtered(given), left, "{:?}", String::from_utf8_lossy(given));
        }
    }

    #[test]
    fn an_endless_string_takes_no_memory() {
        let (mut strings, mut out) = (Strings::default(), Vec::new());
        strings.filter(b"\x1b]52;c;", &mut out);
        for _ in 0..1000 {
            strings.filter(&[b'A'; 4096], &mut out);
        }
        assert_eq!(out.capacity(), 0);
    }

    /// What the emulator's parser would do, less strings.
    #[derive(Default)]
    struct Record {
        seen: String,
        strings: usize,
    }

    impl Perform for Record {
        fn print(&mut self, c: char) {
            self.seen.push(c);
        }
        fn execute(&mut self, byte: u8) {
            self.seen += &format!("<{byte:02x}>");
        }
        fn csi_dispatch(&mut self, params: &Params, inter: &[u8], _ignore: bool, action: char) {
            let params: Vec<_> = params.iter().map(<[u16]>::to_vec).collect();
            self.seen += &format!("<csi {params:?} {inter:?} {action}>");
        }
        fn esc_dispatch(&mut self, inter: &[u8], _ignore: bool, byte: u8) {
            // The second half of ST does nothing.
            if byte != b'\\' || !inter.is_empty() {
                self.seen += &format!("<esc {inter:?} {byte:02x}>");
            }
        }
        fn hook(&mut self, _: &Params, _: &[u8], _ignore: bool, _: char) {
            self.strings += 1;
        }
        fn osc_dispatch(&mut self, _: &[&[u8]], _bell: bool) {
            self.strings += 1;
        }
    }

    fn parsed(bytes: &[u8]) -> Record {
        let mut record = Record::default();
        Parser::new().advance(&mut record, bytes);
        record
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

        #[test]
        fn the_emulators_parser_never_sees_a_string(bytes in noise()) {
            let left = parsed(&filtered(&bytes));
            prop_assert_eq!(left.strings, 0);
        }

        #[test]
        fn pieces_make_no_difference(bytes in noise(), cut in 0_usize..64) {
            let (mut strings, mut out) = (Strings::default(), Vec::new());
            let cut = cut.min(bytes.len());
            strings.filter(&bytes[..cut], &mut out);
            strings.filter(&bytes[cut..], &mut out);
            prop_assert_eq!(out, filtered(&bytes));
        }

        #[test]
        fn what_is_no_string_is_left_as_it_was(mut bytes in noise()) {
            bytes.retain(|byte| !b"]PX^_".contains(byte));
            // Ends what is begun: an escape is held back until it is known what it begins.
            bytes.extend_from_slice(b"\x18.");
            prop_assert_eq!(parsed(&filtered(&bytes)).seen, parsed(&bytes).seen);
        }
    }

    /// Bytes of which escapes are made are likely.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let telling =
            prop::sample::select(&b"\x1b\x1b\x1b]P[X^_\\(0;?m\x07\x18\x1a\n\x7f\x9d\xc2"[..]);
        prop::collection::vec(prop_oneof![3 => telling, 1 => any::<u8>()], 0..64)
    }
}
