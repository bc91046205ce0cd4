//! What runs between a session and its client.
//!
//! The client begins with the token and a newline. Then frames, both ways: type (u8), length of the
//! payload (u16), payload. Numbers are in network byte order.
//!
//! ```text
//! 0 data     bytes: to the client standard output (or the terminal), from it standard input
//! 1 error    bytes: to the client only, standard error, also of the session itself
//! 2 end      empty: from the client only, standard input ends
//! 3 resize   columns u16, rows u16: from the client only
//! 4 exit     code u8: to the client only, the last frame
//! ```

/// Longest payload, bytes.
pub const MAX_PAYLOAD: usize = 16 * 1024;
/// Bytes before the payload.
pub const HEADER: usize = 3;

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

/// Bytes that are no frame of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFrame;

impl<'a> FromClient<'a> {
    /// The first frame of `bytes` and how many bytes it took; `None` if it is not complete yet.
    ///
    /// # Errors
    /// No frame can begin so; nothing after it can be understood.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, BadFrame> {
        let Some((&[kind, high, low], rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > MAX_PAYLOAD || !matches!(kind, 0 | 2 | 3) {
            return Err(BadFrame);
        }
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = match (kind, payload) {
            (0, data) => Self::Data(data),
            (2, []) => Self::End,
            (3, &[a, b, c, d]) => Self::Resize {
                columns: u16::from_be_bytes([a, b]),
                rows: u16::from_be_bytes([c, d]),
            },
            _ => return Err(BadFrame),
        };
        Ok(Some((frame, HEADER + length)))
    }
}

/// Which stream of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output or the terminal.
    Out,
    /// Standard error.
    Error,
}

/// Appends output; more than [`MAX_PAYLOAD`] becomes more frames.
pub fn put_output(out: &mut Vec<u8>, stream: Stream, bytes: &[u8]) {
    let kind = match stream {
        Stream::Out => 0,
        Stream::Error => 1,
    };
    for chunk in bytes.chunks(MAX_PAYLOAD) {
        put(out, kind, chunk);
    }
}

/// Appends the exit code.
pub fn put_exit(out: &mut Vec<u8>, code: u8) {
    put(out, 4, &[code]);
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
    fn frames_of_clients_are_read_one_after_the_other() {
        let mut bytes = vec![0, 0, 2, b'h', b'i', 3, 0, 4, 0, 80, 0, 24, 2, 0, 0];
        for want in
            [FromClient::Data(b"hi"), FromClient::Resize { columns: 80, rows: 24 }, FromClient::End]
        {
            let (got, used) = FromClient::decode(&bytes).unwrap().unwrap();
            assert_eq!(got, want);
            for short in 0..used {
                assert_eq!(FromClient::decode(&bytes[..short]), Ok(None));
            }
            bytes.drain(..used);
        }
        assert!(bytes.is_empty());
    }

    #[test]
    fn garbage_is_refused_before_its_length_is_believed() {
        for bad in
            [&[1, 0, 0][..], &[4, 0, 1], &[9, 0, 0], &[0, 255, 255], &[2, 0, 1, 0], &[3, 0, 0]]
        {
            assert_eq!(FromClient::decode(bad), Err(BadFrame), "{bad:?}");
        }
    }

    #[test]
    fn long_output_is_split() {
        let mut out = Vec::new();
        put_output(&mut out, Stream::Error, &[7; MAX_PAYLOAD + 1]);
        put_exit(&mut out, 3);
        assert_eq!(out.len(), MAX_PAYLOAD + 1 + 3 * HEADER + 1);
        assert_eq!(&out[out.len() - 4..], [4, 0, 1, 3]);
    }
}
