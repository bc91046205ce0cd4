//! Tar headers as this module writes them: ustar, with a PAX header where that has no room (POSIX.1-2001 pax).
//!
//! The same attributes always give the same bytes: no field holds a time or name of this host.

use super::fs::{Kind, Node, Xattrs};

pub(super) const BLOCK: usize = 512;

/// An entry to be written.
pub(super) struct Head<'a> {
    pub path: &'a [u8],
    /// Target of a link.
    pub link: &'a [u8],
    /// Whether `link` is a file that came before, of which this is another name.
    pub hard: bool,
    pub node: &'a Node,
    pub xattrs: &'a Xattrs,
}

/// Appends all headers of an entry.
pub(super) fn write(head: &Head<'_>, out: &mut Vec<u8>) {
    let mut pax = Vec::new();
    if head.path.len() > 100 {
        record(&mut pax, b"path", head.path);
    }
    if head.link.len() > 100 {
        record(&mut pax, b"linkpath", head.link);
    }
    let (seconds, nanos) = head.node.mtime;
    let fits = (0..1 << 33).contains(&seconds);
    if !fits || nanos != 0 {
        record(&mut pax, b"mtime", time(seconds, nanos).as_bytes());
    }
    for (name, value) in head.xattrs {
        record(&mut pax, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    if !pax.is_empty() {
        let size = pax.len() as u64;
        block(b"x", &Fields { kind: b'x', mode: 0o644, size, ..Fields::default() }, out);
        out.extend_from_slice(&pax);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    let kind = if head.hard { b'1' } else { flag(head.node.kind) };
    let fields = Fields {
        kind,
        link: head.link,
        mode: head.node.mode,
        uid: head.node.uid.into(),
        gid: head.node.gid.into(),
        size: if kind == b'0' { head.node.size } else { 0 },
        mtime: if fits { seconds.cast_unsigned() } else { 0 },
        // Other inodes keep other things where devices have their numbers.
        device: if matches!(kind, b'3' | b'4') { head.node.device } else { (0, 0) },
    };
    block(head.path, &fields, out);
}

/// What follows the last entry.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

fn flag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::Symlink => b'2',
        Kind::Char => b'3',
        Kind::Block => b'4',
        Kind::Directory => b'5',
        // Sockets have no type in a tar and are not written.
        Kind::Fifo | Kind::Socket => b'6',
    }
}

#[derive(Default)]
struct Fields<'a> {
    kind: u8,
    link: &'a [u8],
    mode: u32,
    uid: u64,
    gid: u64,
    size: u64,
    mtime: u64,
    device: (u32, u32),
}

fn block(path: &[u8], fields: &Fields<'_>, out: &mut Vec<u8>) {
    let mut b = [0; BLOCK];
    text(&mut b[..100], path);
    number(&mut b[100..108], fields.mode.into());
    number(&mut b[108..116], fields.uid);
    number(&mut b[116..124], fields.gid);
    number(&mut b[124..136], fields.size);
    number(&mut b[136..148], fields.mtime);
    b[156] = fields.kind;
    text(&mut b[157..257], fields.link);
    b[257..265].copy_from_slice(b"ustar\x0000");
    number(&mut b[329..337], fields.device.0.into());
    number(&mut b[337..345], fields.device.1.into());
    // The checksum counts its own field as spaces.
    b[148..156].fill(b' ');
    let sum: u32 = b.iter().map(|b| u32::from(*b)).sum();
    number(&mut b[148..155], sum.into());
    out.extend_from_slice(&b);
}

/// What is longer stands in the PAX header.
fn text(field: &mut [u8], text: &[u8]) {
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text[..n]);
}

/// Octal digits and a NUL, or GNU's base-256 for what is larger.
fn number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    if digits * 3 < 64 && value >> (digits * 3) != 0 {
        field.fill(0);
        field[0] = 0x80;
        let bytes = value.to_be_bytes();
        let tail = bytes.len().min(field.len() - 1);
        let at = field.len() - tail;
        field[at..].copy_from_slice(&bytes[bytes.len() - tail..]);
        return;
    }
    let mut rest = value;
    for at in (0..digits).rev() {
        field[at] = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    field[digits] = 0;
}

/// Seconds with a fraction; before 1970 both count backwards.
fn time(seconds: i64, nanos: u32) -> String {
    let (sign, seconds, nanos) = match (seconds < 0, nanos) {
        (false, _) => ("", seconds.unsigned_abs(), nanos),
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (true, _) => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos),
    };
    if nanos == 0 {
        return format!("{sign}{seconds}");
    }
    let fraction = format!("{nanos:09}");
    format!("{sign}{seconds}.{}", fraction.trim_end_matches('0'))
}

/// `LENGTH KEY=VALUE\n`, the length counting itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::tarball::{self, Streaming, Tarball, Trailer};

    fn node(kind: Kind) -> Node {
        let (uid, gid) = (1000, 4_000_000);
        let mtime = (1_700_000_000, 120_000_000);
        Node { kind, mode: 0o4755, uid, gid, size: 3, mtime, links: 1, device: (8, 300) }
    }

    /// What our own reader makes of it.
    fn back(head: &Head<'_>) -> (tarball::Entry, Vec<u8>) {
        let mut tar = Vec::new();
        write(head, &mut tar);
        tar.extend([7; BLOCK]);
        tar.extend(END);
        let (limits, mut budget) = (Limits::default(), 10);
        let mut tar = Tarball::new(Streaming(&tar[..]), &limits, &mut budget, Trailer::Required);
        let entry = tar.next().unwrap().unwrap();
        let mut data = vec![0; 10];
        let n = tar.read(&mut data).unwrap();
        data.truncate(n);
        (entry, data)
    }

    #[test]
    fn long_names_times_and_attributes_come_back() {
        let path = [b"a/".repeat(80), b"\xff\n".to_vec()].concat();
        let xattrs = vec![(b"user.a".to_vec(), b"=\n\0".to_vec())];
        let node = node(Kind::File);
        let (entry, data) =
            back(&Head { path: &path, link: b"", hard: false, node: &node, xattrs: &xattrs });
        assert_eq!((entry.path, entry.kind, data), (path, tarball::Kind::File, vec![7; 3]));
        assert_eq!((entry.uid, entry.gid, entry.mode), (1000, 4_000_000, 0o4755));
        assert_eq!((entry.mtime, entry.xattrs), (node.mtime, xattrs));
    }

    #[test]
    fn times_of_all_ages_come_back() {
        for mtime in [(0, 0), (-1, 1), (-2, 750_000_000), (-86_400, 0), (1 << 34, 999_999_999)] {
            let node = Node { mtime, ..node(Kind::File) };
            let (entry, _) =
                back(&Head { path: b"a", link: b"", hard: false, node: &node, xattrs: &vec![] });
            assert_eq!(entry.mtime, mtime);
        }
    }

    #[test]
    fn large_files_have_their_size_in_the_header() {
        let node = Node { size: 9 << 30, ..node(Kind::File) };
        let mut tar = Vec::new();
        write(&Head { path: b"a", link: b"", hard: false, node: &node, xattrs: &vec![] }, &mut tar);
        let header = &tar[tar.len() - BLOCK..];
        assert_eq!(&header[124..136], b"\x80\0\0\0\0\0\0\x02\x40\0\0\0");
    }
}
