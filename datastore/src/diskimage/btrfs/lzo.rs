//! LZO as btrfs uses it: a total length, then pieces of one sector each, with their lengths
//! (btrfs-dev-docs; the stream itself: kernel, Documentation/staging/lzo.rst).

use super::index;
use crate::diskimage::fault::{Res, View};

/// Whether `out` was filled.
pub(super) fn expand(data: &[u8], sector: usize, out: &mut [u8]) -> Res<bool> {
    let view = View::new(data, "btrfs LZO extent");
    let total = index(view.le32(0)?).min(data.len());
    let (mut at, mut done) = (4, 0);
    while at < total && done < out.len() {
        // The length of a piece does not cross the border of a sector.
        if sector - at % sector < 4 {
            at = at.next_multiple_of(sector);
        }
        let length = index(view.le32(at)?);
        let piece = view.take(at + 4, length)?;
        let room = sector.min(out.len() - done);
        let Some(n) = lzo1x(piece, &mut out[done..done + room]) else {
            return Ok(false);
        };
        done += n;
        if n < room {
            break;
        }
        at += 4 + length;
    }
    Ok(done > 0)
}

/// Expands one LZO1X stream; the bytes written, or nothing if it is no such stream or does not fit.
fn lzo1x(from: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut stream = Stream { from, at: 0, out, done: 0 };
    // What the last instruction copied as it is: 0, 1 to 3, or more (4).
    let mut state = 0;
    let first = stream.byte()?;
    if first > 17 {
        let n = usize::from(first) - 17;
        stream.literals(n)?;
        state = n.min(4);
    } else {
        stream.at = 0;
    }
    loop {
        let t = usize::from(stream.byte()?);
        let (distance, length, after) = match t {
            64.. => {
                let high = usize::from(stream.byte()?);
                let length = if t >= 128 { 5 + (t >> 5 & 3) } else { 3 + (t >> 5 & 1) };
                ((high << 3) + (t >> 2 & 7) + 1, length, t & 3)
            }
            32.. => {
                let length = stream.length(t & 31, 31)? + 2;
                let word = stream.word()?;
                ((word >> 2) + 1, length, word & 3)
            }
            16.. => {
                let length = stream.length(t & 7, 7)? + 2;
                let word = stream.word()?;
                let distance = 16_384 + ((t & 8) << 11) + (word >> 2);
                if distance == 16_384 {
                    // The end, which has nothing to copy.
                    return (length == 3 && stream.at == from.len()).then_some(stream.done);
                }
                (distance, length, word & 3)
            }
            _ if state == 0 => {
                let n = stream.length(t, 15)? + 3;
                stream.literals(n)?;
                state = 4;
                continue;
            }
            _ => {
                let high = usize::from(stream.byte()?);
                let near = (high << 2) + (t >> 2);
                if state == 4 { (near + 2049, 3, t & 3) } else { (near + 1, 2, t & 3) }
            }
        };
        stream.back(distance, length)?;
        stream.literals(after)?;
        state = after;
    }
}

struct Stream<'a> {
    from: &'a [u8],
    at: usize,
    out: &'a mut [u8],
    done: usize,
}

impl Stream<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.from.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn word(&mut self) -> Option<usize> {
        let low = usize::from(self.byte()?);
        Some(low | usize::from(self.byte()?) << 8)
    }

    /// A length that goes on in further bytes where the first bits are all 0: 255 for each zero byte.
    fn length(&mut self, bits: usize, full: usize) -> Option<usize> {
        if bits != 0 {
            return Some(bits);
        }
        let mut length = full;
        loop {
            match self.byte()? {
                0 => length += 255,
                n => return Some(length + usize::from(n)),
            }
        }
    }

    fn literals(&mut self, n: usize) -> Option<()> {
        let to = self.out.get_mut(self.done..self.done.checked_add(n)?)?;
        to.copy_from_slice(self.from.get(self.at..self.at + n)?);
        self.at += n;
        self.done += n;
        Some(())
    }

    /// Copies what was written before; it may overlap with what is written now.
    fn back(&mut self, distance: usize, length: usize) -> Option<()> {
        let start = self.done.checked_sub(distance)?;
        if self.done + length > self.out.len() {
            return None;
        }
        for n in 0..length {
            self.out[self.done + n] = self.out[start + n];
        }
        self.done += length;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_of_every_kind_expand() {
        let mut out = [0; 64];
        // Five literals, a match of 4 at distance 5 with one literal after it, the end.
        let stream = [17 + 5, b'a', b'b', b'c', b'd', b'e', 0b0111_0001, 0, b'X', 17, 0, 0];
        assert_eq!(lzo1x(&stream, &mut out), Some(10));
        assert_eq!(&out[..10], b"abcdeabcdX");
        // Overlap: one literal repeated.
        let stream = [17 + 4, b'a', b'b', b'c', b'd', 32, 10, 0, 0, 17, 0, 0];
        assert_eq!(lzo1x(&stream, &mut out), Some(4 + 43));
        assert_eq!(&out[..47], [&b"abc"[..], &[b'd'; 44]].concat());
    }

    #[test]
    fn streams_that_reach_outside_are_refused() {
        let mut out = [0; 8];
        for bad in [
            &b""[..],
            &[17 + 5, b'a'],
            &[17 + 4, b'a', b'b', b'c', b'd', 0b0111_1100, 1, 17, 0, 0],
            &[17 + 4, b'a', b'b', b'c', b'd', 32, 0, 0, 0, 0],
            &[17, 0, 0, 0],
            &[200, b'a'],
        ] {
            assert_eq!(lzo1x(bad, &mut out), None, "{bad:?}");
        }
    }
}
