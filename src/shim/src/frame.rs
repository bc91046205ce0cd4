//! Frames of an attached console, both ways: type (u8), length of the payload (u16), payload.
//! Numbers are in network byte order.
//!
//! ```text
//! 0 data     bytes: to the viewer what the guest printed, to the shim what was typed
//! 1 resize   columns u16, rows u16: to the shim only; heard from the writer only
//! 2 detach   empty: from either side, the last frame
//! 3 exit     `code N`, `signal N` or `unknown`: the guest ended; a detach follows
//! 4 gap      u32: so many bytes were left out because the viewer was too slow; newer ones follow
//! ```

use crate::exit::Exit;
use crate::message::Size;

/// Longest payload, bytes.
pub const MAX_PAYLOAD: usize = 4096;
/// Bytes before the payload.
pub const HEADER: usize = 3;

/// A frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// What was printed or typed; at most [`MAX_PAYLOAD`] bytes.
    Data(&'a [u8]),
    /// The writer's terminal has this size.
    Resize(Size),
    /// Nothing follows.
    Detach,
    /// The guest ended.
    Exit(Exit),
    /// So many bytes are missing here.
    Gap(u32),
}

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFrame;

impl std::fmt::Display for BadFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("malformed console frame")
    }
}

impl std::error::Error for BadFrame {}

impl<'a> Frame<'a> {
    /// Appends the frame; data beyond [`MAX_PAYLOAD`] becomes more frames.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Data(bytes) => {
                for chunk in bytes.chunks(MAX_PAYLOAD) {
                    put(out, 0, chunk);
                }
            }
            Self::Resize(size) => {
                let ([a, b], [c, d]) = (size.cols.to_be_bytes(), size.rows.to_be_bytes());
                put(out, 1, &[a, b, c, d]);
            }
            Self::Detach => put(out, 2, &[]),
            Self::Exit(exit) => put(out, 3, exit.to_string().as_bytes()),
            Self::Gap(bytes) => put(out, 4, &bytes.to_be_bytes()),
        }
    }

    /// The first frame of `bytes` and how many bytes it took; `None` if it is not complete yet.
    ///
    /// # Errors
    /// No frame can begin so; nothing after it can be understood.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, BadFrame> {
        let Some((&[kind, high, low], rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_PAYLOAD || kind > 4 {
            return Err(BadFrame);
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = match (kind, payload) {
            (0, data) => Self::Data(data),
            (1, &[a, b, c, d]) => Self::Resize(Size {
                cols: u16::from_be_bytes([a, b]),
                rows: u16::from_be_bytes([c, d]),
            }),
            (2, []) => Self::Detach,
            (3, text) => {
                let text = std::str::from_utf8(text).map_err(|_| BadFrame)?;
                Self::Exit(Exit::parse(text).ok_or(BadFrame)?)
            }
            (4, &[a, b, c, d]) => Self::Gap(u32::from_be_bytes([a, b, c, d])),
            _ => return Err(BadFrame),
        };
        Ok(Some((frame, HEADER + length)))
    }
}

fn put(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    // Payloads are chunks of at most MAX_PAYLOAD, so the length always fits.
    let [high, low] = (payload.len() as u16).to_be_bytes();
    out.extend_from_slice(&[kind, high, low]);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_one_after_the_other() {
        let frames = [
            Frame::Data(b"hello"),
            Frame::Resize(Size { cols: 80, rows: 24 }),
            Frame::Gap(70_000),
            Frame::Exit(Exit::Signal(9)),
            Frame::Detach,
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.encode(&mut bytes);
        }
        let mut rest = &bytes[..];
        for frame in frames {
            let (got, used) = Frame::decode(rest).unwrap().unwrap();
            assert_eq!(got, frame);
            for short in 0..used {
                assert_eq!(Frame::decode(&rest[..short]), Ok(None));
            }
            rest = &rest[used..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn long_data_is_split() {
        let mut bytes = Vec::new();
        Frame::Data(&[7; MAX_PAYLOAD + 1]).encode(&mut bytes);
        assert_eq!(bytes.len(), MAX_PAYLOAD + 1 + 2 * HEADER);
    }

    #[test]
    fn garbage_is_refused_before_its_length_is_believed() {
        for bad in [
            &[5, 0, 0][..],
            &[0, 255, 255],
            &[1, 0, 1, 0],
            &[2, 0, 1, 0],
            &[3, 0, 1, b'x'],
            &[3, 0, 1, 0xff],
        ] {
            assert_eq!(Frame::decode(bad), Err(BadFrame), "{bad:?}");
        }
    }
}
