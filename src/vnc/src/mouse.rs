//! A client's mouse: told to the guest if it asked for that, else it moves through the scrollback and pastes.

use crate::font::{HEIGHT, WIDTH};
use crate::keys::Meant;
use crate::picture::Size;
use crate::terminal::{Modes, View};

/// Lines that a notch of the wheel moves.
const NOTCH: i32 = 3;
/// The last column or row that xterm's first form can tell: a byte less 32, from 1.
const OLD_FORM: u16 = 223;

const MIDDLE: u8 = 1;
const WHEEL_UP: u8 = 3;
const WHEEL_DOWN: u8 = 4;

/// A client's mouse.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mouse {
    buttons: u8,
    column: u16,
    row: u16,
}

impl Mouse {
    /// It is there now, with these buttons held: the lowest bit is the left one, four and five are the wheel.
    pub fn moved(&mut self, buttons: u8, x: u16, y: u16, screen: Size, modes: Modes) -> Meant {
        let column = (x / WIDTH as u16).min(screen.columns.saturating_sub(1));
        let row = (y / HEIGHT as u16).min(screen.rows.saturating_sub(1));
        let before = std::mem::replace(self, Self { buttons, column, row });
        let pressed = |button: u8| buttons & !before.buttons & (1 << button) != 0;
        if modes.mouse() {
            return self.told(before, modes);
        }
        let lines = match () {
            () if pressed(WHEEL_UP) => NOTCH,
            () if pressed(WHEEL_DOWN) => -NOTCH,
            () if pressed(MIDDLE) => return Meant::Paste,
            () => return Meant::Nothing,
        };
        if modes.alternate_scroll() {
            let key: &[u8] = match (modes.application_cursor(), lines > 0) {
                (true, true) => b"\x1bOA",
                (true, false) => b"\x1bOB",
                (false, true) => b"\x1b[A",
                (false, false) => b"\x1b[B",
            };
            return Meant::Typed(key.repeat(NOTCH as usize));
        }
        match modes.alternate_screen() {
            true => Meant::Nothing,
            false => Meant::Look(View::Lines(lines)),
        }
    }

    /// "Mouse Tracking" of xterm's ctlseqs.
    fn told(&self, before: Self, modes: Modes) -> Meant {
        const MOTION: u8 = 32;
        const WHEEL: u8 = 64;
        const NO_BUTTON: u8 = 3;
        let mut out = Vec::new();
        let number = |button: u8| match button {
            WHEEL_UP | WHEEL_DOWN => WHEEL + button - WHEEL_UP,
            other => other,
        };
        for button in 0..=WHEEL_DOWN {
            let bit = 1 << button;
            match (before.buttons & bit != 0, self.buttons & bit != 0) {
                (false, true) => self.tell(number(button), Event::Pressed, modes, &mut out),
                // The wheel is not released.
                (true, false) if button < WHEEL_UP => {
                    self.tell(number(button), Event::Released, modes, &mut out);
                }
                (true, _) | (false, false) => {}
            }
        }
        let moved = (before.column, before.row) != (self.column, self.row);
        let held = (0..WHEEL_UP).find(|button| self.buttons & (1 << button) != 0);
        let wanted = if held.is_some() { modes.mouse_drag() } else { modes.mouse_motion() };
        if out.is_empty() && moved && wanted {
            let button = held.unwrap_or(NO_BUTTON) + MOTION;
            self.tell(button, Event::Pressed, modes, &mut out);
        }
        if out.is_empty() { Meant::Nothing } else { Meant::Typed(out) }
    }

    fn tell(&self, button: u8, event: Event, modes: Modes, out: &mut Vec<u8>) {
        const RELEASED: u8 = 3;
        let (column, row) = (self.column + 1, self.row + 1);
        if modes.mouse_sgr() {
            let end = match event {
                Event::Pressed => 'M',
                Event::Released => 'm',
            };
            out.extend_from_slice(format!("\x1b[<{button};{column};{row}{end}").as_bytes());
        } else if column <= OLD_FORM && row <= OLD_FORM {
            let button = match event {
                Event::Pressed => button,
                Event::Released => RELEASED,
            };
            // Both fit: 223 + 32 is a byte.
            out.extend_from_slice(b"\x1b[M");
            out.extend_from_slice(&[32 + button, 32 + column as u8, 32 + row as u8]);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Pressed,
    Released,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::{FIRST_SIZE, Terminal};

    fn modes(set: &str) -> Modes {
        let mut terminal = Terminal::new(FIRST_SIZE);
        terminal.print(set.as_bytes());
        terminal.modes()
    }

    /// What comes of these states of buttons, column and row, one after the other.
    fn all(set: &str, states: &[(u8, u16, u16)]) -> Vec<Meant> {
        let (mut mouse, modes) = (Mouse::default(), modes(set));
        let mut step = |&(buttons, column, row): &(u8, u16, u16)| {
            mouse.moved(buttons, column * 8 + 3, row * 16 + 9, FIRST_SIZE, modes)
        };
        states.iter().map(&mut step).collect()
    }

    fn typed(set: &str, states: &[(u8, u16, u16)]) -> String {
        let bytes = |meant| match meant {
            Meant::Typed(bytes) => String::from_utf8(bytes).unwrap(),
            Meant::Nothing => "-".into(),
            other => panic!("{other:?}"),
        };
        all(set, states).into_iter().map(bytes).collect::<Vec<_>>().join(" ")
    }

    const CLICK: [(u8, u16, u16); 4] = [(1, 4, 2), (1, 5, 2), (0, 5, 2), (0, 6, 2)];

    #[test]
    fn the_guest_is_told_what_it_asked_for() {
        for (set, wanted) in [
            ("\x1b[?1000h\x1b[?1006h", "\x1b[<0;5;3M - \x1b[<0;6;3m -"),
            ("\x1b[?1002h\x1b[?1006h", "\x1b[<0;5;3M \x1b[<32;6;3M \x1b[<0;6;3m -"),
            ("\x1b[?1003h\x1b[?1006h", "\x1b[<0;5;3M \x1b[<32;6;3M \x1b[<0;6;3m \x1b[<35;7;3M"),
            ("\x1b[?1000h", "\x1b[M %# - \x1b[M#&# -"),
        ] {
            assert_eq!(typed(set, &CLICK), wanted, "{set:?}");
        }
        assert_eq!(
            typed("\x1b[?1000h\x1b[?1006h", &[(8, 0, 0), (0, 0, 0), (16, 0, 0)]),
            "\x1b[<64;1;1M - \x1b[<65;1;1M"
        );
    }

    #[test]
    fn without_a_guest_that_asks_the_wheel_looks_and_the_middle_pastes() {
        let wanted = [
            Meant::Look(View::Lines(3)),
            Meant::Nothing,
            Meant::Look(View::Lines(-3)),
            Meant::Paste,
            Meant::Nothing,
            Meant::Nothing,
        ];
        assert_eq!(
            all("", &[(8, 0, 0), (0, 0, 0), (16, 0, 0), (2, 0, 0), (2, 1, 0), (1, 0, 0)]),
            wanted
        );
        assert_eq!(typed("\x1b[?1049h", &[(8, 0, 0)]), "\x1b[A\x1b[A\x1b[A");
        assert_eq!(typed("\x1b[?1049h\x1b[?1h", &[(16, 0, 0)]), "\x1bOB\x1bOB\x1bOB");
        assert_eq!(typed("\x1b[?1049h\x1b[?1007l", &[(8, 0, 0)]), "-");
    }

    #[test]
    fn places_beyond_the_screen_are_its_edge() {
        let (mut mouse, modes) = (Mouse::default(), modes("\x1b[?1000h\x1b[?1006h"));
        let meant = mouse.moved(1, u16::MAX, u16::MAX, FIRST_SIZE, modes);
        assert_eq!(meant, Meant::Typed(b"\x1b[<0;80;25M".to_vec()));
        let large = Size { columns: 512, rows: 135 };
        let mut mouse = Mouse::default();
        let meant = mouse.moved(1, u16::MAX, 0, large, self::modes("\x1b[?1000h"));
        assert_eq!(meant, Meant::Nothing, "the old form has no number for it");
    }
}
