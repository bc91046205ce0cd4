//! What clients send once they are in: RFC 6143, section 7.5, and SetDesktopSize of the extended desktop size.
//!
//! Everything is an attacker's. A message is taken when it is whole, and none is longer than the buffer; a text for the
//! clipboard may be, and is passed by without being stored then. What has no known length ends the connection, because
//! nothing after it can be understood.

use super::pixel::{self, BadFormat, PixelFormat};

/// Most bytes that wait to be understood: the longest other message, of screens, and a little.
pub const MAX_BUFFERED: usize = 8192;
/// Longest text for the clipboard that is kept; longer ones are nobody's typing.
pub const MAX_CUT_TEXT: usize = 64 * 1024;
/// Longest text that is passed by.
const MAX_SKIPPED: u32 = 16 * 1024 * 1024;
/// Most encodings in a list; clients know some thirty.
const MAX_ENCODINGS: u16 = 1024;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// Pixels are to be like that from now on.
    SetPixelFormat(PixelFormat),
    /// What the client understands, best first.
    SetEncodings(Vec<i32>),
    /// It wants to see this.
    UpdateRequest {
        /// Only what changed.
        incremental: bool,
        /// Where, in pixels.
        region: Region,
    },
    /// A key.
    Key {
        /// Pressed, else released.
        down: bool,
        /// Which, as X11 numbers them.
        keysym: u32,
    },
    /// The mouse.
    Pointer {
        /// The lowest bit is the left button.
        buttons: u8,
        /// Pixels from the left.
        x: u16,
        /// Pixels from the top.
        y: u16,
    },
    /// A text for the clipboard; `None` for one that is too long.
    CutText(Option<Vec<u8>>),
    /// The screen should have this size.
    SetDesktopSize {
        /// Pixels.
        width: u16,
        /// Pixels.
        height: u16,
    },
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// From the left.
    pub x: u16,
    /// From the top.
    pub y: u16,
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Why a client cannot be understood any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// Of a type that was not agreed upon.
    #[error("message of unknown type {0}")]
    Unknown(u8),
    /// Longer than makes sense.
    #[error("message of type {kind} is too long: {length}")]
    TooLong {
        /// Its type.
        kind: u8,
        /// What it says.
        length: u32,
    },
    /// A pixel format that cannot be served.
    #[error(transparent)]
    Format(#[from] BadFormat),
}

const SET_PIXEL_FORMAT: u8 = 0;
const SET_ENCODINGS: u8 = 2;
const UPDATE_REQUEST: u8 = 3;
const KEY_EVENT: u8 = 4;
const POINTER_EVENT: u8 = 5;
const CUT_TEXT: u8 = 6;
const SET_DESKTOP_SIZE: u8 = 251;

/// Bytes to messages.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    done: usize,
    cut: Option<Cut>,
}

/// A text that is on its way.
#[derive(Debug)]
struct Cut {
    left: usize,
    kept: Option<Vec<u8>>,
}

impl Messages {
    /// How many more bytes may be pushed.
    #[must_use]
    pub fn room(&self) -> usize {
        MAX_BUFFERED.saturating_sub(self.bytes.len() - self.done)
    }

    /// Adds what was read, at most [`Messages::room`].
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.done);
        self.done = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message, if it is whole.
    ///
    /// # Errors
    /// Nothing more can be understood.
    pub fn next_message(&mut self) -> Result<Option<ClientMessage>, BadMessage> {
        if self.cut.is_none() {
            let Some((message, used)) = parse(&self.bytes[self.done..])? else {
                return Ok(None);
            };
            self.done += used;
            match message {
                Begun::Message(message) => return Ok(Some(message)),
                Begun::CutText(length) => {
                    let kept = (length <= MAX_CUT_TEXT).then(Vec::new);
                    self.cut = Some(Cut { left: length, kept });
                }
            }
        }
        let Some(cut) = &mut self.cut else { return Ok(None) };
        let here = &self.bytes[self.done..];
        let here = &here[..here.len().min(cut.left)];
        if let Some(kept) = &mut cut.kept {
            kept.extend_from_slice(here);
        }
        self.done += here.len();
        cut.left -= here.len();
        if cut.left > 0 {
            return Ok(None);
        }
        let kept = self.cut.take().and_then(|cut| cut.kept);
        Ok(Some(ClientMessage::CutText(kept)))
    }
}

enum Begun {
    Message(ClientMessage),
    /// So many bytes of text follow.
    CutText(usize),
}

/// The first message of `bytes` and how many bytes it took.
fn parse(bytes: &[u8]) -> Result<Option<(Begun, usize)>, BadMessage> {
    let Some(&kind) = bytes.first() else { return Ok(None) };
    let (message, used) = match kind {
        SET_PIXEL_FORMAT => {
            let Some(&[_, _, _, _, ref format @ ..]) = bytes.first_chunk::<{ 4 + pixel::LENGTH }>()
            else {
                return Ok(None);
            };
            (ClientMessage::SetPixelFormat(PixelFormat::parse(format)?), 4 + pixel::LENGTH)
        }
        SET_ENCODINGS => {
            let Some((&[_, _, high, low], rest)) = bytes.split_first_chunk() else {
                return Ok(None);
            };
            let count = u16::from_be_bytes([high, low]);
            if count > MAX_ENCODINGS {
                return Err(BadMessage::TooLong { kind, length: count.into() });
            }
            let length = 4 * usize::from(count);
            let Some(list) = rest.get(..length) else { return Ok(None) };
            let number = |four: &[u8]| four.try_into().map_or(0, i32::from_be_bytes);
            (ClientMessage::SetEncodings(list.chunks(4).map(number).collect()), 4 + length)
        }
        UPDATE_REQUEST => {
            let Some(&[_, incremental, x0, x1, y0, y1, w0, w1, h0, h1]) = bytes.first_chunk()
            else {
                return Ok(None);
            };
            let [x, y] = [[x0, x1], [y0, y1]].map(u16::from_be_bytes);
            let [width, height] = [[w0, w1], [h0, h1]].map(u16::from_be_bytes);
            let region = Region { x, y, width, height };
            (ClientMessage::UpdateRequest { incremental: incremental != 0, region }, 10)
        }
        KEY_EVENT => {
            let Some(&[_, down, _, _, a, b, c, d]) = bytes.first_chunk() else {
                return Ok(None);
            };
            let keysym = u32::from_be_bytes([a, b, c, d]);
            (ClientMessage::Key { down: down != 0, keysym }, 8)
        }
        POINTER_EVENT => {
            let Some(&[_, buttons, x0, x1, y0, y1]) = bytes.first_chunk() else {
                return Ok(None);
            };
            let [x, y] = [[x0, x1], [y0, y1]].map(u16::from_be_bytes);
            (ClientMessage::Pointer { buttons, x, y }, 6)
        }
        CUT_TEXT => {
            let Some(&[_, _, _, _, a, b, c, d]) = bytes.first_chunk() else {
                return Ok(None);
            };
            // The extended clipboard's lengths are negative; we do not offer it.
            let length = u32::from_be_bytes([a, b, c, d]);
            if length > MAX_SKIPPED {
                return Err(BadMessage::TooLong { kind, length });
            }
            return Ok(Some((Begun::CutText(length as usize), 8)));
        }
        SET_DESKTOP_SIZE => {
            let Some(&[_, _, w0, w1, h0, h1, screens, _]) = bytes.first_chunk() else {
                return Ok(None);
            };
            // The layout of screens is the client's affair; we have one.
            let used = 8 + 16 * usize::from(screens);
            if bytes.len() < used {
                return Ok(None);
            }
            let [width, height] = [[w0, w1], [h0, h1]].map(u16::from_be_bytes);
            (ClientMessage::SetDesktopSize { width, height }, used)
        }
        _ => return Err(BadMessage::Unknown(kind)),
    };
    Ok(Some((Begun::Message(message), used)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(mut rest: &[u8], piece: usize) -> Result<Vec<ClientMessage>, BadMessage> {
        let (mut messages, mut found) = (Messages::default(), Vec::new());
        while !rest.is_empty() {
            let now = piece.min(rest.len()).min(messages.room());
            assert!(now > 0, "stuck with {} bytes", rest.len());
            messages.push(&rest[..now]);
            rest = &rest[now..];
            while let Some(message) = messages.next_message()? {
                found.push(message);
            }
        }
        Ok(found)
    }

    fn session() -> (Vec<u8>, Vec<ClientMessage>) {
        let mut bytes = vec![0, 9, 9, 9];
        bytes.extend(PixelFormat::NATIVE.wire());
        bytes.extend([2, 0, 0, 2, 0, 0, 0, 16, 0xff, 0xff, 0xff, 0x11]);
        bytes.extend([3, 1, 0, 1, 0, 2, 1, 0, 2, 0]);
        bytes.extend([4, 1, 0, 0, 0, 0, 0xff, 0x0d]);
        bytes.extend([5, 3, 0, 7, 1, 0]);
        bytes.extend([6, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']);
        bytes.extend([6, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([251, 0, 4, 0, 3, 0, 1, 0]);
        bytes.extend([7; 16]);
        let messages = vec![
            ClientMessage::SetPixelFormat(PixelFormat::NATIVE),
            ClientMessage::SetEncodings(vec![16, -239]),
            ClientMessage::UpdateRequest {
                incremental: true,
                region: Region { x: 1, y: 2, width: 256, height: 512 },
            },
            ClientMessage::Key { down: true, keysym: 0xff0d },
            ClientMessage::Pointer { buttons: 3, x: 7, y: 256 },
            ClientMessage::CutText(Some(b"hi".to_vec())),
            ClientMessage::CutText(Some(Vec::new())),
            ClientMessage::SetDesktopSize { width: 1024, height: 768 },
        ];
        (bytes, messages)
    }

    #[test]
    fn a_session_is_understood_in_pieces_of_any_size() {
        let (bytes, messages) = session();
        for piece in [1, 2, 3, 7, 100, bytes.len()] {
            assert_eq!(all(&bytes, piece).as_ref(), Ok(&messages), "{piece}");
        }
    }

    #[test]
    fn long_texts_are_passed_by_without_being_kept() {
        let long = MAX_CUT_TEXT + 1;
        let mut bytes = vec![6, 0, 0, 0];
        bytes.extend((long as u32).to_be_bytes());
        bytes.extend(vec![b'a'; long]);
        bytes.extend([4, 0, 0, 0, 0, 0, 0, b'a']);
        let wanted =
            vec![ClientMessage::CutText(None), ClientMessage::Key { down: false, keysym: 97 }];
        assert_eq!(all(&bytes, 4096), Ok(wanted));
    }

    #[test]
    fn nonsense_is_refused_before_its_length_is_believed() {
        for (bytes, error) in [
            (&[1][..], BadMessage::Unknown(1)),
            (&[255], BadMessage::Unknown(255)),
            (&[2, 0, 4, 1], BadMessage::TooLong { kind: 2, length: 1025 }),
            (&[6, 0, 0, 0, 1, 0, 0, 1], BadMessage::TooLong { kind: 6, length: 0x0100_0001 }),
            (
                &[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xfc],
                BadMessage::TooLong { kind: 6, length: 0xffff_fffc },
            ),
        ] {
            assert_eq!(all(bytes, 100), Err(error));
        }
    }

    #[test]
    fn the_longest_messages_fit() {
        let encodings = [&[2, 0, 4, 0][..], &[0; 4096]].concat();
        assert_eq!(all(&encodings, 1000), Ok(vec![ClientMessage::SetEncodings(vec![0; 1024])]));
        let screens = [&[251, 0, 0, 1, 0, 1, 255, 0][..], &[0; 16 * 255]].concat();
        let wanted = ClientMessage::SetDesktopSize { width: 1, height: 1 };
        assert_eq!(all(&screens, 1000), Ok(vec![wanted]));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..Default::default() })]

        #[test]
        fn noise_is_understood_the_same_in_any_pieces(bytes in noise(), piece in 1_usize..64) {
            prop_assert_eq!(all(&bytes, piece), all(&bytes, usize::MAX));
        }
    }

    /// Messages, whole and cut, with bytes changed.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let (session, _) = session();
        let changes = prop::collection::vec((0..session.len(), any::<u8>()), 0..4);
        (Just(session), changes, any::<prop::sample::Index>()).prop_map(
            |(mut bytes, changes, end)| {
                for (at, byte) in changes {
                    bytes[at] = byte;
                }
                bytes.truncate(end.index(bytes.len()) + 1);
                bytes
            },
        )
    }
}
