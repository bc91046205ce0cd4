//! Frames of an attached console, both ways; their form is that of [`ocivisor_frame`].
//!
//! ```text
//! 0 data     bytes: to the viewer what the guest printed, to the shim what was typed
//! 1 resize   columns u16, rows u16: to the shim only; heard from the writer only
//! 2 detach   empty: from either side, the last frame
//! 3 exit     `code N`, `signal N` or `unknown`: the guest ended; a detach follows
//! 4 gap      u32: so many bytes were left out because the viewer was too slow; newer ones follow
//! ```

pub use ocivisor_frame::{BadFrame, HEADER};
use ocivisor_frame::{RawFrame, put, put_stream, read_size, size};

use crate::exit::Exit;
use crate::message::Size;

/// Longest payload, bytes.
pub const MAX_PAYLOAD: usize = 4096;

const DATA: u8 = 0;
const RESIZE: u8 = 1;
const DETACH: u8 = 2;
const EXIT: u8 = 3;
const GAP: u8 = 4;

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

impl<'a> Frame<'a> {
    /// Appends the frame; data beyond [`MAX_PAYLOAD`] becomes more frames.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Data(bytes) => put_stream(out, DATA, bytes, MAX_PAYLOAD),
            Self::Resize(window) => put(out, RESIZE, size(window.cols, window.rows)),
            Self::Detach => put(out, DETACH, []),
            Self::Exit(exit) => put_stream(out, EXIT, exit.to_string().as_bytes(), MAX_PAYLOAD),
            Self::Gap(bytes) => put(out, GAP, bytes.to_be_bytes()),
        }
    }

    /// The first frame of `bytes` and how many bytes it took; `None` if it is not complete yet.
    ///
    /// # Errors
    /// No frame can begin so; nothing after it can be understood.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, BadFrame> {
        let kinds = [DATA, RESIZE, DETACH, EXIT, GAP];
        let Some(raw) = RawFrame::split(bytes, &kinds, MAX_PAYLOAD)? else {
            return Ok(None);
        };
        let frame = match (raw.kind, raw.payload) {
            (DATA, data) => Self::Data(data),
            (RESIZE, payload) => {
                let (cols, rows) = read_size(payload)?;
                Self::Resize(Size { cols, rows })
            }
            (DETACH, []) => Self::Detach,
            (EXIT, text) => {
                let text = std::str::from_utf8(text).map_err(|_| BadFrame)?;
                Self::Exit(Exit::parse(text).ok_or(BadFrame)?)
            }
            (GAP, &[a, b, c, d]) => Self::Gap(u32::from_be_bytes([a, b, c, d])),
            _ => return Err(BadFrame),
        };
        Ok(Some((frame, raw.used())))
    }
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
