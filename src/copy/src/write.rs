//! Writing tar entries.

use std::io::{self, Write};

use tar::{EntryType, Header};

/// Size of headers, and what contents are padded to.
pub const BLOCK: usize = 512;

/// What a header says.
#[derive(Debug, Clone)]
pub struct Attributes {
    pub kind: EntryType,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Bytes of content that follow.
    pub size: u64,
}

/// Appends to a stream.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// A header, with a pax header before it for what has no room there. `more` are further pax records.
    pub fn header(
        &mut self,
        path: &[u8],
        link: &[u8],
        attributes: &Attributes,
        more: &[(&str, String)],
    ) -> io::Result<()> {
        let mut records = Vec::new();
        for (key, value) in more {
            record(&mut records, key, value.as_bytes());
        }
        let mut header = Header::new_ustar();
        for (key, bytes) in [("path", path), ("linkpath", link)] {
            let field = {
                let Some(fields) = header.as_ustar_mut() else { continue };
                if key == "path" { &mut fields.name } else { &mut fields.linkname }
            };
            let room = bytes.len().min(field.len());
            field[..room].copy_from_slice(&bytes[..room]);
            if room < bytes.len() {
                record(&mut records, key, bytes);
            }
        }
        if !records.is_empty() {
            let mut extension = Header::new_ustar();
            if let Some(fields) = extension.as_ustar_mut() {
                fields.name[..3].copy_from_slice(b"pax");
            }
            extension.set_entry_type(EntryType::XHeader);
            extension.set_size(records.len() as u64);
            extension.set_mode(0o644);
            extension.set_cksum();
            self.out.write_all(extension.as_bytes())?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        header.set_entry_type(attributes.kind);
        header.set_mode(attributes.mode & 0o7777);
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        header.set_mtime(u64::try_from(attributes.mtime).unwrap_or(0));
        header.set_size(attributes.size);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    /// Content.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// What is missing to a whole block after `length` bytes.
    pub fn pad(&mut self, length: u64) -> io::Result<()> {
        let over = (length % BLOCK as u64) as usize;
        if over > 0 { self.out.write_all(&[0; BLOCK][over..]) } else { Ok(()) }
    }

    /// The end of the archive.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }
}

/// A pax record: its own length, which counts itself, a blank, key, `=`, value, newline.
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() > length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        for (value, want) in [(0, 8), (1, 9), (2, 11), (90, 99), (91, 101)] {
            let mut out = Vec::new();
            record(&mut out, "path", &vec![b'x'; value]);
            let said = String::from_utf8(out.clone()).unwrap();
            assert_eq!((out.len(), said.split(' ').next().unwrap()), (want, &*want.to_string()));
        }
    }
}
