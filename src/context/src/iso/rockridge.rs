//! System use fields of Rock Ridge: names and types of files. SUSP 1.12, RRIP 1.12.
//!
//! A field is its two-letter signature, its length, a version, and data. `CE` says where in the image more of them
//! are.

use ocivisor_core::error::Result;

use super::{bad, le32};

/// Most areas that one record continues in.
const MAX_AREAS: usize = 16;
/// Most bytes of such an area.
const MAX_AREA: u32 = 2048;
/// Longest name: `NAME_MAX` of Linux.
const MAX_NAME: usize = 255;

/// Types of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Other,
}

/// What the fields of a record say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) name: Option<String>,
    pub(super) kind: Option<Kind>,
}

/// Whether the first record of the root announces such fields (`SP`, SUSP 5.3): how many bytes of each record's area
/// are to be skipped.
pub(super) fn announced(area: &[u8]) -> Option<usize> {
    // CD-XA puts 14 bytes in front of the very first one.
    [area, area.get(14..).unwrap_or_default()]
        .into_iter()
        .find(|area| area.starts_with(b"SP\x07\x01\xbe\xef"))
        .and_then(|area| area.get(6).copied().map(usize::from))
}

/// Reads the fields of a record; `read` gives bytes of the image by block, offset in it and length.
pub(super) fn fields(
    area: &[u8],
    read: impl Fn(u32, u32, u32) -> Result<Vec<u8>>,
) -> Result<Fields> {
    let mut found = Fields::default();
    let mut name: Vec<u8> = Vec::new();
    let mut more = Some(area.to_vec());
    for _ in 0..MAX_AREAS {
        let Some(area) = more.take() else { break };
        let mut rest = area.as_slice();
        let mut next = None;
        while let [a, b, length, _version, ..] = *rest {
            let length = usize::from(length);
            if length < 4 || length > rest.len() {
                break;
            }
            let (field, after) = rest.split_at(length);
            rest = after;
            match &[a, b] {
                b"NM" => {
                    // Flags 2 and 4: the directory itself and the one above.
                    let [flags, part @ ..] = &field[4..] else { continue };
                    if flags & 6 == 0 {
                        name.extend_from_slice(part);
                    }
                }
                b"PX" => found.kind = le32(field, 4).map(kind),
                b"SL" => found.kind = Some(Kind::Other),
                b"CE" => {
                    let number = |at| le32(field, at).ok_or_else(|| bad("a field is cut"));
                    let (block, at, length) = (number(4)?, number(12)?, number(20)?);
                    if length > MAX_AREA {
                        return Err(bad("a continuation is too large"));
                    }
                    // One per area, SUSP 5.1: of several the last one counts.
                    next = Some((block, at, length));
                }
                b"ST" => break,
                _ => {}
            }
        }
        more = next.map(|(block, at, length)| read(block, at, length)).transpose()?;
        if name.len() > MAX_NAME {
            return Err(bad("a name is too long"));
        }
    }
    if !name.is_empty() {
        let text = String::from_utf8(name).map_err(|_| bad("a name is not UTF-8"))?;
        found.name = Some(text);
    }
    Ok(found)
}

/// From `st_mode`, inode(7).
fn kind(mode: u32) -> Kind {
    match mode & 0o170_000 {
        0o100_000 => Kind::File,
        0o040_000 => Kind::Directory,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn an_area_goes_on_in_one_other() {
        let number = |n: u32| [n.to_le_bytes(), n.to_be_bytes()].concat();
        let onward = |block| [b"CE\x1c\x01".to_vec(), number(block), number(0), number(9)].concat();
        let area = (1..=70).flat_map(onward).collect::<Vec<u8>>();
        let (reads, last) = (Cell::new(0), Cell::new(0));
        let found = fields(&area, |block, _, length| {
            reads.set(reads.get() + 1);
            last.set(block);
            assert_eq!(length, 9);
            Ok(b"NM\x09\x01\0name".to_vec())
        });
        assert_eq!(found.unwrap().name.as_deref(), Some("name"));
        assert_eq!((reads.get(), last.get()), (1, 70));
    }
}
