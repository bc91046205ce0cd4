//! What runs between a session in a guest and its client.
//!
//! The client begins with the token and a newline. Then frames, both ways:
//!
//! ```text
//! 0 data     bytes: to the client standard output (or the terminal), from it standard input
//! 1 error    bytes: to the client only, standard error, also of the session itself
//! 2 end      empty: from the client only, standard input ends
//! 3 resize   columns u16, rows u16: from the client only
//! 4 exit     code u8: to the client only, the last frame
//! ```

use crate::{BadFrame, RawFrame, put, put_stream, read_size, size};

/// Longest payload, bytes.
pub const MAX_PAYLOAD: usize = 16 * 1024;

const DATA: u8 = 0;
const ERROR: u8 = 1;
const END: u8 = 2;
const RESIZE: u8 = 3;
const EXIT: u8 = 4;

/// What a client sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromClient<'a> {
    /// Standard input.
    Data(&'a [u8]),
    /// Standard input ends.
    End,
    /// Size of the client's terminal.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
}

impl<'a> FromClient<'a> {
    /// Appends the frame; more data than [`MAX_PAYLOAD`] becomes more frames.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Data(bytes) => put_stream(out, DATA, bytes, MAX_PAYLOAD),
            Self::End => put(out, END, []),
            Self::Resize { columns, rows } => put(out, RESIZE, size(columns, rows)),
        }
    }

    /// The first frame of `bytes` and how many bytes it took; `None` if it is not complete yet.
    ///
    /// # Errors
    /// No frame can begin so; nothing after it can be understood.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, BadFrame> {
        let split = RawFrame::split(bytes, &[DATA, END, RESIZE], MAX_PAYLOAD)?;
        let Some(frame) = split else { return Ok(None) };
        let said = match (frame.kind, frame.payload) {
            (DATA, data) => Self::Data(data),
            (END, []) => Self::End,
            (RESIZE, payload) => {
                let (columns, rows) = read_size(payload)?;
                Self::Resize { columns, rows }
            }
            _ => return Err(BadFrame),
        };
        Ok(Some((said, frame.used())))
    }
}

/// What a session sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FromSession<'a> {
    /// Standard output, or what the terminal shows.
    Output(&'a [u8]),
    /// Standard error.
    Error(&'a [u8]),
    /// The program ended with this code; nothing follows.
    Exit(u8),
}

impl<'a> FromSession<'a> {
    /// Appends the frame; more output than [`MAX_PAYLOAD`] becomes more frames.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Output(bytes) => put_stream(out, DATA, bytes, MAX_PAYLOAD),
            Self::Error(bytes) => put_stream(out, ERROR, bytes, MAX_PAYLOAD),
            Self::Exit(code) => put(out, EXIT, [code]),
        }
    }

    /// The first frame of `bytes` and how many bytes it took; `None` if it is not complete yet.
    ///
    /// # Errors
    /// No frame can begin so; nothing after it can be understood.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, BadFrame> {
        let split = RawFrame::split(bytes, &[DATA, ERROR, EXIT], MAX_PAYLOAD)?;
        let Some(frame) = split else { return Ok(None) };
        let said = match (frame.kind, frame.payload) {
            (DATA, bytes) => Self::Output(bytes),
            (ERROR, bytes) => Self::Error(bytes),
            (EXIT, &[code]) => Self::Exit(code),
            _ => return Err(BadFrame),
        };
        Ok(Some((said, frame.used())))
    }
}

/// What a program said, up to a bound for each stream, for who wants it at once instead of as it comes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Standard output: its first bytes.
    pub output: Vec<u8>,
    /// Standard error, also of the session itself: its first bytes.
    pub error: Vec<u8>,
    /// Bytes of both that were left out.
    pub left_out: u64,
    /// The exit code, once it ended.
    pub code: Option<u8>,
    most: usize,
}

impl Collected {
    /// Nothing yet; at most `most` bytes of each stream will be kept.
    #[must_use]
    pub fn up_to(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// Takes what the session said.
    pub fn hear(&mut self, said: &FromSession<'_>) {
        let (kept, bytes) = match *said {
            FromSession::Exit(code) => {
                self.code = Some(code);
                return;
            }
            FromSession::Output(bytes) => (&mut self.output, bytes),
            FromSession::Error(bytes) => (&mut self.error, bytes),
        };
        let room = bytes.len().min(self.most.saturating_sub(kept.len()));
        kept.extend_from_slice(&bytes[..room]);
        self.left_out += (bytes.len() - room) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_clients_are_these_bytes_and_read_back() {
        let frames = [
            FromClient::Data(b"hi"),
            FromClient::Resize { columns: 80, rows: 24 },
            FromClient::End,
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.encode(&mut bytes);
        }
        assert_eq!(bytes, [0, 0, 2, b'h', b'i', 3, 0, 4, 0, 80, 0, 24, 2, 0, 0]);
        let mut rest = &bytes[..];
        for want in frames {
            let (got, used) = FromClient::decode(rest).unwrap().unwrap();
            assert_eq!(got, want);
            for short in 0..used {
                assert_eq!(FromClient::decode(&rest[..short]), Ok(None));
            }
            rest = &rest[used..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn frames_of_sessions_are_these_bytes_and_read_back() {
        let frames = [FromSession::Output(b"hi"), FromSession::Error(b"!"), FromSession::Exit(7)];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.encode(&mut bytes);
        }
        assert_eq!(bytes, [0, 0, 2, b'h', b'i', 1, 0, 1, b'!', 4, 0, 1, 7]);
        let mut rest = &bytes[..];
        for want in frames {
            let (got, used) = FromSession::decode(rest).unwrap().unwrap();
            assert_eq!(got, want);
            for short in 0..used {
                assert_eq!(FromSession::decode(&rest[..short]), Ok(None));
            }
            rest = &rest[used..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn each_side_refuses_what_only_it_says() {
        for bad in
            [&[1, 0, 0][..], &[4, 0, 1], &[9, 0, 0], &[0, 255, 255], &[2, 0, 1, 0], &[3, 0, 0]]
        {
            assert_eq!(FromClient::decode(bad), Err(BadFrame), "{bad:?}");
        }
        for bad in [&[2, 0, 0][..], &[9, 0, 0], &[0, 255, 255], &[4, 0, 0], &[4, 0, 2, 0, 0]] {
            assert_eq!(FromSession::decode(bad), Err(BadFrame), "{bad:?}");
        }
    }

    #[test]
    fn what_is_collected_has_a_bound() {
        let mut all = Collected::up_to(4);
        for said in [
            FromSession::Output(b"abc"),
            FromSession::Error(b"12"),
            FromSession::Output(b"def"),
            FromSession::Output(b"g"),
            FromSession::Exit(3),
        ] {
            all.hear(&said);
        }
        assert_eq!((&all.output[..], &all.error[..]), (&b"abcd"[..], &b"12"[..]));
        assert_eq!((all.left_out, all.code), (3, Some(3)));
    }

    #[test]
    fn long_output_is_split() {
        let mut out = Vec::new();
        FromSession::Error(&[7; MAX_PAYLOAD + 1]).encode(&mut out);
        FromSession::Exit(3).encode(&mut out);
        assert_eq!(out.len(), MAX_PAYLOAD + 1 + 3 * crate::HEADER + 1);
        assert_eq!(&out[out.len() - 4..], [4, 0, 1, 3]);
    }
}
