//! Output of a guest for a terminal that shows it.
//!
//! What a guest prints is the tenant's. Escape sequences can read and write the clipboard, rename windows, print,
//! and have the terminal answer as if somebody typed; what is answered after the viewer has left is typed into
//! the admin's shell (field of CVE-2021-25743, CVE-2003-0063). So what may pass is a list:
//!
//! | | [`Policy::Lines`], a log | [`Policy::Screen`], a console |
//! |---|---|---|
//! | text, line ends, tabs, colours | yes | yes |
//! | cursor, erasing, scrolling, character sets, modes, full reset | no | yes |
//! | questions with fixed answers: cursor position, kind of terminal | no | yes |
//! | titles, clipboard, hyperlinks, colours of the palette (OSC) | no | no |
//! | device control, sixels, requests of settings, private strings (DCS, APC, PM, SOS) | no | no |
//! | window operations, printing, checksums of the screen, answerback | no | no |
//!
//! ECMA-48 is the grammar: control sequences end with a byte from `@` on, strings with ST or BEL. C1 controls are taken
//! out as bytes and as characters of UTF-8.

/// What may pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Policy {
    /// Text and colours.
    #[default]
    Lines,
    /// All that draws on the screen.
    Screen,
}

/// Puts a terminal back that a guest's programs left in modes of theirs: main screen, cursor, colours, margins, mouse,
/// paste, keypad, character set.
pub const RESET: &[u8] = b"\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1l\x1b>\x1b[?25h\x1b[r\x1b(B\x0f\x1b[0m\x1b[4l\x1b[>4;0m";

/// Takes a stream in pieces; sequences may be cut anywhere.
#[derive(Debug, Default)]
pub struct Sanitizer {
    policy: Policy,
    state: State,
    /// Bytes of UTF-8 that the last lead byte promised.
    expected: u8,
    /// A sequence that may turn out to be allowed, without its introducer.
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

/// Longest sequence that is believed to be harmless.
const MAX_PENDING: usize = 64;

impl Sanitizer {
    /// Lets pass what the policy says.
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

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
            State::Text => self.text(byte, shown),
            State::C2 => match byte {
                0x80..=0x9f => State::Text,
                0xa0..=0xbf => {
                    shown.extend([0xc2, byte]);
                    State::Text
                }
                _ => self.text(byte, shown),
            },
            State::Escape => match byte {
                b'[' => {
                    self.pending.clear();
                    State::Csi
                }
                b']' | b'P' | b'X' | b'^' | b'_' => State::String,
                0x1b => State::Escape,
                0x20..=0x2f => {
                    self.pending.clear();
                    self.pending.push(byte);
                    State::Intermediate
                }
                // Save and restore the cursor, lines up and down, tab stops, keypads, single shifts, full reset.
                b'7' | b'8' | b'D' | b'E' | b'H' | b'M' | b'N' | b'O' | b'=' | b'>' | b'c' => {
                    self.pass(&[0x1b, byte], shown)
                }
                _ => State::Text,
            },
            State::Intermediate => match byte {
                0x1b => State::Escape,
                0x20..=0x2f => {
                    self.keep(byte);
                    State::Intermediate
                }
                // Character sets: ASCII, British, line drawing; and the alignment pattern.
                b'0' | b'A' | b'B' if matches!(self.pending[..], [b'(' | b')' | b'*' | b'+']) => {
                    self.pass(&[0x1b, self.pending[0], byte], shown)
                }
                b'8' if self.pending == b"#" => self.pass(b"\x1b#8", shown),
                _ => State::Text,
            },
            State::Csi => match byte {
                0x1b => State::Escape,
                0x40..=0x7e => {
                    if self.draws(byte) {
                        shown.extend_from_slice(b"\x1b[");
                        shown.append(&mut self.pending);
                        shown.push(byte);
                    }
                    State::Text
                }
                _ => {
                    self.keep(byte);
                    State::Csi
                }
            },
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

    /// One more byte of a sequence; one that is too long is none that passes.
    fn keep(&mut self, byte: u8) {
        if self.pending.len() <= MAX_PENDING {
            self.pending.push(byte);
        }
    }

    /// A sequence that a screen may have.
    fn pass(&self, sequence: &[u8], shown: &mut Vec<u8>) -> State {
        if self.policy == Policy::Screen {
            shown.extend_from_slice(sequence);
        }
        State::Text
    }

    fn text(&mut self, byte: u8, shown: &mut Vec<u8>) -> State {
        let expected = std::mem::take(&mut self.expected);
        match byte {
            0x1b => return State::Escape,
            0xc2 => return State::C2,
            b'\n' | b'\r' | b'\t' => shown.push(byte),
            // Bell, backspace, vertical tab, form feed, shifts between character sets.
            0x07 | 0x08 | 0x0b | 0x0c | 0x0e | 0x0f if self.policy == Policy::Screen => {
                shown.push(byte);
            }
            0..=0x1f | 0x7f => {}
            0x20..=0x7e => shown.push(byte),
            // Promised by a lead byte, or else a C1 control to terminals that do not speak UTF-8.
            0x80..=0xbf => {
                if expected > 0 {
                    self.expected = expected - 1;
                    shown.push(byte);
                }
            }
            0xc0..=0xff => {
                self.expected = match byte {
                    0xe0..=0xef => 2,
                    0xf0..=0xf7 => 3,
                    _ => 1,
                };
                shown.push(byte);
            }
        }
        State::Text
    }

    /// Whether the control sequence in `pending` that `last` ends does no more than the policy allows.
    fn draws(&self, last: u8) -> bool {
        let sequence = &self.pending[..];
        if sequence.len() > MAX_PENDING {
            return false;
        }
        let numbers = |bytes: &[u8]| bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b';' | b':'));
        if last == b'm' && numbers(sequence) {
            return true;
        }
        if self.policy == Policy::Lines {
            return false;
        }
        match sequence {
            // Where is the cursor, are you well, what are you: each with one fixed form of answer.
            b"5" | b"6" if last == b'n' => true,
            b"" | b"0" if last == b'c' => true,
            b">" | b">0" if last == b'c' => true,
            // Modes, selective erasing; how much of the keyboard is told apart.
            [b'?', rest @ ..] => {
                numbers(rest) && matches!(last, b'h' | b'l' | b'J' | b'K' | b'r' | b's')
            }
            [b'>', rest @ ..] => numbers(rest) && last == b'm',
            // Shape of the cursor, soft reset.
            [rest @ .., b' '] => numbers(rest) && last == b'q',
            b"!" => last == b'p',
            _ => numbers(sequence) && b"@ABCDEFGHIJKLMPSTXZ`abdefghlrsu".contains(&last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(bytes: &[u8]) -> Vec<u8> {
        cleaned(Policy::Lines, bytes)
    }

    fn cleaned(policy: Policy, bytes: &[u8]) -> Vec<u8> {
        let whole = Sanitizer::new(policy).clean(bytes);
        let mut pieces = Sanitizer::new(policy);
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

    #[test]
    fn a_screen_may_be_drawn_on() {
        let screen = [
            "text\r\n\t\u{8}\u{7}\u{e}lqk\u{f}",
            "\u{1b}[2J\u{1b}[1;1H\u{1b}[?1049h\u{1b}[?25l\u{1b}[3;20r\u{1b}M",
            "\u{1b}[1;31mred\u{1b}[0m\u{1b}[38;2;1;2;3mx",
            "\u{1b}(0x\u{1b}(B\u{1b})0\u{1b}7\u{1b}8\u{1b}=\u{1b}>\u{1b}c\u{1b}#8",
            "\u{1b}[6n\u{1b}[c\u{1b}[>c\u{1b}[5 q\u{1b}[!p\u{1b}[>4;1m",
            "日本 grün £ 🦀",
        ];
        for text in screen {
            assert_eq!(cleaned(Policy::Screen, text.as_bytes()), text.as_bytes(), "{text:?}");
        }
    }

    #[test]
    fn what_reaches_past_the_screen_is_taken_out() {
        for (bytes, want) in [
            // Clipboard, title, palette, hyperlink, notification.
            (&b"a\x1b]52;c;aGk=\x07b"[..], &b"ab"[..]),
            (b"a\x1b]0;title\x1b\\b", b"ab"),
            (b"a\x1b]10;?\x07b", b"ab"),
            (b"a\x1b]8;;http://x\x1b\\b", b"ab"),
            // Report of the title, of the window, resize, print, checksum of the screen, answerback.
            (b"a\x1b[21tb", b"ab"),
            (b"a\x1b[8;1;1tb", b"ab"),
            (b"a\x1b[5ib", b"ab"),
            (b"a\x1b[1;1;1;1;1;1*yb", b"ab"),
            (b"a\x05b", b"ab"),
            // Requests of settings, sixels, macros, private strings.
            (b"a\x1bP$qm\x1b\\b", b"ab"),
            (b"a\x1bP+q544e\x1b\\b", b"ab"),
            (b"a\x1bPq#0;2;0;0;0~~\x1b\\b", b"ab"),
            (b"a\x1b_Gi=1;AAAA\x1b\\b\x1b^x\x1b\\c\x1bXx\x1b\\d", b"abcd"),
            // Leaving UTF-8, and C1 controls as bytes and as characters.
            (b"a\x1b%@b", b"ab"),
            (b"a\x9b21tb", b"a21tb"),
            ("a\u{9d}52;c;x\u{7}b".as_bytes(), b"a52;c;x\x07b"),
            // Questions whose answers could be long.
            (b"a\x1b[?6nb\x1b[>0qc\x1b[x", b"abc"),
            (b"\x1b]0;never ends", b""),
        ] {
            assert_eq!(cleaned(Policy::Screen, bytes), want, "{}", bytes.escape_ascii());
        }
        let long = [b"a\x1b[".as_slice(), &b"1;".repeat(1000), b"mb"].concat();
        assert_eq!(cleaned(Policy::Screen, &long), b"ab");
    }
}
