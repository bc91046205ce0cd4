//! The 512-byte header: ustar of POSIX.1-1988 and GNU's variant of it.

use crate::error::Refusal;

pub(super) const BLOCK: usize = 512;

/// Types of entry that exist for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// A header with a right checksum.
#[derive(Debug)]
pub(super) struct RawHeader([u8; BLOCK]);

impl RawHeader {
    pub fn check(block: [u8; BLOCK]) -> Result<Self, Refusal> {
        // The checksum counts its own field as spaces.
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) })
            .sum();
        if octal(&block[148..156])? != u64::from(sum) {
            return Err(Refusal::Header("wrong checksum"));
        }
        Ok(Self(block))
    }

    pub fn type_flag(&self) -> u8 {
        self.0[156]
    }

    pub fn kind(&self, path: &[u8]) -> Result<Kind, Refusal> {
        Ok(match self.type_flag() {
            // Before POSIX a directory was a file with a slash.
            0 if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(Refusal::Sparse),
            other => return Err(Refusal::EntryType(other)),
        })
    }

    pub fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        // GNU headers ("ustar  \0") keep other things where ustar has the prefix.
        let prefix = if &self.0[257..263] == b"ustar\0" { text(&self.0[345..500]) } else { b"" };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub fn mode(&self) -> Result<u32, Refusal> {
        let mode = unsigned(&self.0[100..108])?;
        // Old archives keep the file type in the upper bits.
        u32::try_from(mode & 0o7777).map_err(|_| Refusal::Header("mode out of range"))
    }

    pub fn uid(&self) -> Result<u64, Refusal> {
        unsigned(&self.0[108..116])
    }

    pub fn gid(&self) -> Result<u64, Refusal> {
        unsigned(&self.0[116..124])
    }

    pub fn size(&self) -> Result<u64, Refusal> {
        unsigned(&self.0[124..136])
    }

    pub fn mtime(&self) -> Result<i64, Refusal> {
        signed(&self.0[136..148])
    }
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn unsigned(field: &[u8]) -> Result<u64, Refusal> {
    u64::try_from(signed(field)?).map_err(|_| Refusal::Header("negative number"))
}

/// Octal text, or GNU's base-256: first bit set, then a big-endian two's complement number.
fn signed(field: &[u8]) -> Result<i64, Refusal> {
    const RANGE: Refusal = Refusal::Header("number out of range");
    if field[0] & 0x80 == 0 {
        return i64::try_from(octal(field)?).map_err(|_| RANGE);
    }
    // Bit 6 is the sign; the marker bit gives way to a copy of it.
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] | 0x80 } else { field[0] & 0x7f };
    let mut value = i128::from(first.cast_signed());
    for byte in &field[1..] {
        value = value << 8 | i128::from(*byte);
    }
    i64::try_from(value).map_err(|_| RANGE)
}

fn octal(field: &[u8]) -> Result<u64, Refusal> {
    const BAD: Refusal = Refusal::Header("number is not octal");
    let rest = field.trim_ascii_start();
    let digits = rest.iter().take_while(|b| (b'0'..=b'7').contains(*b)).count();
    if rest[digits..].iter().any(|b| !matches!(b, 0 | b' ')) {
        return Err(BAD);
    }
    // Twelve digits at most: no overflow.
    Ok(rest[..digits].iter().fold(0, |n, b| n << 3 | u64::from(b - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_both_kinds_are_read() {
        for (field, want) in [
            (&b"0000644\0"[..], 0o644),
            (b"   644 \0", 0o644),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"\x80\0\0\0\0\0\0\x07", 7),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", -1),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", i64::MAX),
        ] {
            assert_eq!(signed(field), Ok(want), "{field:?}");
        }
    }

    #[test]
    fn numbers_that_overflow_or_go_below_zero_are_refused() {
        assert_eq!(
            signed(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"),
            Err(Refusal::Header("number out of range"))
        );
        assert_eq!(
            unsigned(b"\xff\xff\xff\xff\xff\xff\xff\xff"),
            Err(Refusal::Header("negative number"))
        );
        assert_eq!(signed(b"0000648\0"), Err(Refusal::Header("number is not octal")));
        assert_eq!(signed(b"12 34\0\0\0"), Err(Refusal::Header("number is not octal")));
    }
}
