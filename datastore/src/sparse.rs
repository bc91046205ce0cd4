//! Writing a file with holes where its content has zeros.
//!
//! Tar has no holes that all readers know, so a sparse file comes here as what it reads as. Where a whole [`GRAIN`]
//! of it is zeros the file gets a hole again, wherever the zeros came from: it reads the same, and takes no room. To
//! look costs next to nothing beside a digest, for what is no zeros mostly says so in its first bytes.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// Bytes of a hole, which begins at a multiple of it. Large, so that ordinary files, whose zeros are short, stay in
/// one piece on the disk.
const GRAIN: usize = 64 * 1024;

/// Writes a new file from its start to its end.
#[derive(Debug)]
pub(crate) struct Sparse<'a> {
    file: &'a File,
    /// Bytes taken.
    taken: u64,
    /// The last of them, zeros that were not written.
    zeros: u64,
}

impl<'a> Sparse<'a> {
    /// `file` is empty, and nobody else writes to it.
    pub fn new(file: &'a File) -> Self {
        Self { file, taken: 0, zeros: 0 }
    }

    /// Gives the file its size, which a hole at its end would not; returns it.
    pub fn finish(self) -> io::Result<u64> {
        if self.zeros > 0 {
            self.file.set_len(self.taken)?;
        }
        Ok(self.taken)
    }

    /// Bytes up to where the next grain begins.
    fn piece(&self, ahead: usize) -> usize {
        let inside = (self.taken + ahead as u64) % GRAIN as u64;
        GRAIN - usize::try_from(inside).unwrap_or(0)
    }
}

impl Write for Sparse<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut rest = buf;
        while !rest.is_empty() {
            // Up to where zeros begin, or data.
            let (mut n, mut zeros) = (0, None);
            while n < rest.len() {
                let piece = &rest[n..(n + self.piece(n)).min(rest.len())];
                // Parts of a grain, at either end, are as good as the whole: then the hole is a little longer.
                if *zeros.get_or_insert(is_zero(piece)) != is_zero(piece) {
                    break;
                }
                n += piece.len();
            }
            if zeros == Some(true) {
                self.zeros += n as u64;
            } else {
                let mut file = self.file;
                if self.zeros > 0 {
                    let over = i64::try_from(self.zeros).map_err(io::Error::other)?;
                    file.seek(SeekFrom::Current(over))?;
                    self.zeros = 0;
                }
                file.write_all(&rest[..n])?;
            }
            self.taken += n as u64;
            rest = &rest[n..];
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether there is nothing but zeros: the first byte is one, and each is as the one before it.
fn is_zero(bytes: &[u8]) -> bool {
    match bytes {
        [] => true,
        [first, rest @ ..] => *first == 0 && rest == &bytes[..rest.len()],
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;

    /// A file written in such pieces, and the bytes it takes on the disk.
    fn written(content: &[u8], step: usize) -> (Vec<u8>, u64) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let file = File::create(&path).unwrap();
        let mut sparse = Sparse::new(&file);
        content.chunks(step).for_each(|piece| sparse.write_all(piece).unwrap());
        assert_eq!(sparse.finish().unwrap(), content.len() as u64);
        file.sync_all().unwrap();
        (std::fs::read(&path).unwrap(), file.metadata().unwrap().blocks() * 512)
    }

    fn content(parts: &[(u8, usize)]) -> Vec<u8> {
        parts.iter().flat_map(|(byte, n)| std::iter::repeat_n(*byte, *n)).collect()
    }

    #[test]
    fn long_zeros_take_no_room_wherever_they_are() {
        const MIB: usize = 1 << 20;
        for (parts, grains) in [
            (&[(0, 8 * MIB)][..], 0),
            (&[(1, 1), (0, 8 * MIB)], 1),
            (&[(0, 8 * MIB), (1, 1)], 1),
            (&[(0, 4 * MIB), (1, 4096), (0, 4 * MIB + 7)], 1),
            (&[(1, 100_000), (0, 4 * MIB), (2, 100_000)], 5),
        ] {
            let want = content(parts);
            for step in [4096, 100_000, 256 * 1024, want.len()] {
                let (got, blocks) = written(&want, step);
                assert!(got == want, "{parts:?} by {step}");
                assert!(blocks <= grains * GRAIN as u64, "{parts:?} by {step}: {blocks}");
            }
        }
    }

    #[test]
    fn short_zeros_stay_where_they_are() {
        let want = content(&[(1, 5), (0, 60_000), (1, 5)].repeat(20));
        let (got, blocks) = written(&want, want.len());
        assert!(got == want);
        assert_eq!(blocks, want.len().next_multiple_of(4096) as u64);
    }

    #[test]
    fn zeros_are_told_from_everything_else() {
        assert!(is_zero(&[]) && is_zero(&[0]) && is_zero(&[0; 1000]));
        for at in [0, 1, 500, 999] {
            let mut bytes = [0; 1000];
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
        }
        assert!(!is_zero(&[7; 1000]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn what_was_written_is_read(
            parts in proptest::collection::vec(
                (prop_oneof![Just(0), Just(0), any::<u8>()], 0..200_000usize), 0..6),
            step in 1..300_000usize,
        ) {
            let want = content(&parts);
            prop_assert!(written(&want, step).0 == want);
        }
    }
}
