//! What a file is to hold: bytes at hand, or a part of the context disk, which may be large.

use std::cell::OnceCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

/// The bytes of a file to be.
#[derive(Debug, Clone)]
pub enum Content<'a> {
    /// These.
    Bytes(Vec<u8>),
    /// A part of a file of the host's that is open for reading.
    Part {
        /// The file.
        file: &'a File,
        /// Where it begins.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// SHA-256 in hex, once it was asked for: it may be a quarter of a gigabyte.
        digest: OnceCell<String>,
    },
}

impl Content<'_> {
    /// How many bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Part { length, .. } => *length,
        }
    }

    /// SHA-256 in hex.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn digest(&self) -> io::Result<String> {
        if let Self::Part { digest, .. } = self
            && let Some(known) = digest.get()
        {
            return Ok(known.clone());
        }
        let mut sum = Sum::default();
        self.write_to(&mut sum)?;
        let made = sum.hex();
        if let Self::Part { digest, .. } = self {
            // Not set yet: it was just looked at.
            let _ = digest.set(made.clone());
        }
        Ok(made)
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn write_to(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) => to.write_all(bytes),
            Self::Part { file, offset, length, .. } => {
                let (mut at, mut left) = (*offset, *length);
                let mut chunk = vec![0; 64 * 1024];
                while left > 0 {
                    let n = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    file.read_exact_at(&mut chunk[..n], at)?;
                    to.write_all(&chunk[..n])?;
                    at += n as u64;
                    left -= n as u64;
                }
                Ok(())
            }
        }
    }
}

/// SHA-256 of what is written to it.
#[derive(Debug, Default)]
pub struct Sum(Sha256);

impl Sum {
    /// The digest in hex.
    #[must_use]
    pub fn hex(self) -> String {
        hex::encode(self.0.finalize())
    }
}

impl Write for Sum {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
