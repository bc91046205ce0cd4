//! Frames on a stream: type (u8), length of the payload (u16), payload. Numbers are in network byte
//! order.
//!
//! Consoles (`ocivisor-shim`) and sessions ([`session`]) both speak so, with types and longest
//! payloads of their own. Both ends are programs of ours, but on the way is a socket that others may
//! open: a type is checked and a length bounded before either is believed, and nothing is copied.
//!
//! No dependency: the shim is resident once per guest.

pub mod session;

/// Bytes before the payload.
pub const HEADER: usize = 3;

/// Bytes that are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFrame;

impl std::fmt::Display for BadFrame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("malformed frame")
    }
}

impl std::error::Error for BadFrame {}

/// A frame of which only type and length were looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawFrame<'a> {
    /// Its type.
    pub kind: u8,
    /// Its payload.
    pub payload: &'a [u8],
}

impl<'a> RawFrame<'a> {
    /// The first frame of `bytes`; `None` if it is not complete yet. `kinds` are the types there
    /// are, `most` the longest payload in bytes.
    ///
    /// # Errors
    /// No frame can begin so; nothing after it can be understood.
    pub fn split(bytes: &'a [u8], kinds: &[u8], most: usize) -> Result<Option<Self>, BadFrame> {
        let Some((&[kind, high, low], rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > most || !kinds.contains(&kind) {
            return Err(BadFrame);
        }
        Ok(rest.get(..length).map(|payload| Self { kind, payload }))
    }

    /// How many bytes the frame took.
    #[must_use]
    pub fn used(&self) -> usize {
        HEADER + self.payload.len()
    }
}

/// Appends frames of this type with all of `payload`, `most` bytes in each; none if it is empty.
pub fn put_stream(out: &mut Vec<u8>, kind: u8, payload: &[u8], most: usize) {
    for chunk in payload.chunks(most.clamp(1, u16::MAX.into())) {
        // Clamped above, so it fits.
        put_header(out, kind, chunk.len() as u16);
        out.extend_from_slice(chunk);
    }
}

/// Appends one frame with a payload of fixed length.
pub fn put<const N: usize>(out: &mut Vec<u8>, kind: u8, payload: [u8; N]) {
    const { assert!(N <= u16::MAX as usize) };
    put_header(out, kind, N as u16);
    out.extend_from_slice(&payload);
}

/// The payload of a terminal's size: columns, rows.
#[must_use]
pub fn size(columns: u16, rows: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (columns.to_be_bytes(), rows.to_be_bytes());
    [a, b, c, d]
}

/// Columns and rows of such a payload.
///
/// # Errors
/// It has another length.
pub fn read_size(payload: &[u8]) -> Result<(u16, u16), BadFrame> {
    let &[a, b, c, d] = payload else { return Err(BadFrame) };
    Ok((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn put_header(out: &mut Vec<u8>, kind: u8, length: u16) {
    let [high, low] = length.to_be_bytes();
    out.extend_from_slice(&[kind, high, low]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_cut_into_frames_and_read_back() {
        let mut bytes = Vec::new();
        put_stream(&mut bytes, 7, &[1, 2, 3, 4, 5], 2);
        put_stream(&mut bytes, 7, &[], 2);
        put(&mut bytes, 3, [9; 2]);
        assert_eq!(bytes, [7, 0, 2, 1, 2, 7, 0, 2, 3, 4, 7, 0, 1, 5, 3, 0, 2, 9, 9]);
        let mut rest = &bytes[..];
        for (kind, payload) in [(7, &[1, 2][..]), (7, &[3, 4]), (7, &[5]), (3, &[9, 9])] {
            let frame = RawFrame::split(rest, &[3, 7], 2).unwrap().unwrap();
            assert_eq!(frame, RawFrame { kind, payload });
            for short in 0..frame.used() {
                assert_eq!(RawFrame::split(&rest[..short], &[3, 7], 2), Ok(None));
            }
            rest = &rest[frame.used()..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn garbage_is_refused_before_its_length_is_believed() {
        for bad in [&[8, 0, 0][..], &[7, 0, 3], &[7, 255, 255]] {
            assert_eq!(RawFrame::split(bad, &[3, 7], 2), Err(BadFrame), "{bad:?}");
        }
    }

    #[test]
    fn sizes_round_trip() {
        assert_eq!(read_size(&size(80, 300)), Ok((80, 300)));
        assert_eq!(size(80, 300), [0, 80, 1, 44]);
        assert_eq!(read_size(&[0, 80, 1]), Err(BadFrame));
    }
}
