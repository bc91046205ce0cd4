//! Output of a guest for a terminal that shows it: colours stay, everything else that commands a
//! terminal is taken out.
//!
//! What a guest prints is the tenant's. Escape sequences can rename windows, move the cursor over
//! text that was there, ask the terminal to answer as if typed. A console has to pass them, a log
//! has not. ECMA-48 is the grammar: CSI sequences end with a letter, strings with ST or BEL.

/// Takes a stream in pieces; sequences may be cut anywhere.
#[derive(Debug, Default)]
pub struct Sanitizer {
    state: State,
    /// A CSI sequence that may turn out to be a colour.
    pending: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After the first byte of a C1 control in UTF-8.
    C2,
    Escape,
    Csi,
    /// OSC, DCS, SOS, PM, APC: until ST or BEL.
    String,
    /// An escape inside of a string: perhaps ST.
    StringEscape,
    /// An escape with intermediate bytes, as in `ESC ( B`.
    Intermediate,
}

/// Longest CSI sequence that is believed to be a colour.
const MAX_PENDING: usize = 64;

impl Sanitizer {
    /// What of `bytes` may be shown.
    pub fn clean(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut shown = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.push(*byte, &mut shown);
        }
        shown
    }

    fn push(&mut self, byte: u8, shown: &mut Vec<u8>) {
        self.state = match self.state {
            State::Text => Self::text(byte, shown),
            State::C2 => match byte {
                0x80..=0x9f => State::Text,
                _ => {
                    shown.push(0xc2);
                    Self::text(byte, shown)
                }
            },
            State::Escape => match byte {
                b'[' => {
                    self.pending.clear();
                    State::Csi
                }
                b']' | b'P' | b'X' | b'^' | b'_' => State::String,
                0x1b => State::Escape,
                0x20..=0x2f => State::Intermediate,
                _ => State::Text,
            },
            State::Intermediate => match byte {
                0x20..=0x2f => State::Intermediate,
                0x1b => State::Escape,
                _ => State::Text,
            },
            State::Csi => return self.csi(byte, shown),
            State::String => match byte {
                0x07 => State::Text,
                0x1b => State::StringEscape,
                _ => State::String,
            },
            State::StringEscape => match byte {
                b'\\' => State::Text,
                0x1b => State::StringEscape,
                _ => State::String,
            },
        };
    }

    fn text(byte: u8, shown: &mut Vec<u8>) -> State {
        match byte {
            0x1b => State::Escape,
            0xc2 => State::C2,
            b'\n' | b'\r' | b'\t' => {
                shown.push(byte);
                State::Text
            }
            0..=0x1f | 0x7f => State::Text,
            _ => {
                shown.push(byte);
                State::Text
            }
        }
    }

    fn csi(&mut self, byte: u8, shown: &mut Vec<u8>) {
        match byte {
            b'm' if self.pending.len() <= MAX_PENDING
                && self.pending.iter().all(|b| matches!(b, b'0'..=b'9' | b';' | b':')) =>
            {
                shown.extend_from_slice(b"\x1b[");
                shown.append(&mut self.pending);
                shown.push(b'm');
                self.state = State::Text;
            }
            0x40..=0x7e => self.state = State::Text,
            0x1b => self.state = State::Escape,
            _ if self.pending.len() <= MAX_PENDING => self.pending.push(byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(bytes: &[u8]) -> Vec<u8> {
        let whole = Sanitizer::default().clean(bytes);
        let mut pieces = Sanitizer::default();
        let cut: Vec<u8> = bytes.chunks(1).flat_map(|b| pieces.clean(b)).collect();
        assert_eq!(whole, cut, "pieces make a difference");
        whole
    }

    #[test]
    fn text_and_colours_stay() {
        for text in
            ["plain\r\n\ttext", "\u{1b}[1;31mred\u{1b}[0m", "\u{1b}[38:5:9mx", "grün £5 °", "日本"]
        {
            assert_eq!(clean(text.as_bytes()), text.as_bytes());
        }
    }

    #[test]
    fn commands_to_the_terminal_go() {
        for (bytes, want) in [
            (&b"a\x1b[2Jb"[..], &b"ab"[..]),
            (b"a\x1b]0;title\x07b", b"ab"),
            (b"a\x1b]52;c;aGk=\x1b\\b", b"ab"),
            (b"a\x1bP$qm\x1b\\b", b"ab"),
            (b"a\x1b(Bb\x1bcd", b"abd"),
            (b"a\x1b[?1049hb", b"ab"),
            (b"a\x08\x07\x00\x7fb", b"ab"),
            ("a\u{9b}31mb".as_bytes(), b"a31mb"),
            (b"a\x1b[6n", b"a"),
            (b"a\x1b[>4;1mb", b"ab"),
            (b"\x1b]0;never ends", b""),
        ] {
            assert_eq!(clean(bytes), want, "{bytes:?}");
        }
    }
}
