//! A client's clipboard on its way to the guest.
//!
//! What a client copies is kept, and typed when somebody asks for it (Shift+Insert, Control+Shift+V, the middle
//! button). It is not typed by itself: several viewers send their clipboard whenever it changes, and what a person
//! copies elsewhere, passwords among it, has no business in a shell. The other way round nothing is sent at all: a guest
//! has no clipboard here (OSC 52 is dropped with all strings).

use crate::terminal::Modes;

/// What is kept of a text that was copied: control characters but tab and newline are left out, so nothing in it can end
/// the brackets or be a command by itself. It is UTF-8 if it can be, else what RFC 6143, section 7.5.6, says, Latin-1.
#[must_use]
pub fn cleaned(copied: &[u8]) -> String {
    let latin = || copied.iter().copied().map(char::from).collect();
    let text = std::str::from_utf8(copied).map_or_else(|_| latin(), str::to_owned);
    let text = text.replace("\r\n", "\r").replace('\n', "\r");
    text.chars().filter(|c| !c.is_control() || ['\r', '\t'].contains(c)).collect()
}

/// What is typed for a [`cleaned`] text.
#[must_use]
pub fn typed(text: &str, modes: Modes) -> Vec<u8> {
    match modes.bracketed_paste() {
        true => format!("\x1b[200~{text}\x1b[201~").into_bytes(),
        false => text.as_bytes().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::{FIRST_SIZE, Terminal};

    #[test]
    fn texts_are_typed_without_what_commands() {
        for (copied, wanted) in [
            (&b"ls -l\n"[..], "ls -l\r"),
            (b"a\r\nb\nc\rd", "a\rb\rc\rd"),
            (b"tab\tstays", "tab\tstays"),
            (b"\x1b[201~\x03\x00\x7f", "[201~"),
            ("gr\u{fc}n \u{9b}31m".as_bytes(), "gr\u{fc}n 31m"),
            (b"gr\xfcn \x9b31m", "gr\u{fc}n 31m"),
        ] {
            assert_eq!(typed(&cleaned(copied), Modes::NONE), wanted.as_bytes(), "{copied:?}");
        }
    }

    #[test]
    fn brackets_stand_around_if_the_guest_asked() {
        let mut terminal = Terminal::new(FIRST_SIZE);
        terminal.print(b"\x1b[?2004h");
        let wanted = b"\x1b[200~rm\r[201~x\x1b[201~";
        assert_eq!(typed(&cleaned(b"rm\n\x1b[201~x"), terminal.modes()), wanted);
    }
}
