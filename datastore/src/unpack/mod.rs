//! From tar entries to a directory in overlayfs form.
//!
//! A layer is unpacked alone, never on top of another, so that it can be shared by its digest. What a lower
//! layer loses is written as overlayfs has it (Documentation/filesystems/overlayfs.rst): a character device 0:0
//! hides a name, `trusted.overlay.opaque=y` on a directory hides all below it.
//!
//! Every byte is the image author's. The rules: paths are made relative and lose `.`; `..` is refused; parents
//! are resolved by the kernel inside the layer's root; the last component is never followed; what exists is
//! removed first, so nothing is written through a hard link; devices are left out; owners above 65535, sparse
//! files and unknown types refuse the layer. A refused layer's remains lie in staging, and its owner deletes it.
//!
//! Differs from unpacking onto a mounted stack: a parent that only a lower layer has is made anew
//! (root, 0755), and a lower layer's symbolic link is not followed. Builders write every parent, so
//! this shows in hand-made layers only; `Report::implied_dirs` counts it.

mod marks;
mod tree;
mod xattr;

use std::fs::File;
use std::io::{BufRead, Write};

use crate::error::{Doing, Fault, Limit, Refusal, escape};
use crate::limits::Limits;
use crate::sparse::Sparse;
use crate::tarball::{Entry, Kind, Streaming, Tarball};
use serde::{Deserialize, Serialize};
use tree::{Attributes, Tree};

pub(crate) use marks::{Direct, Marks, OPAQUE_XATTR, OPAQUE_YES};
pub(crate) use xattr::CAPABILITY;

/// What unpacking did, beside making files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Entries of the tar, those left out included.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// Device nodes left out: a guest gets its devices from the host's policy, not from an image.
    pub devices_skipped: u64,
    /// Extended attributes left out.
    pub xattrs_dropped: u64,
    /// AUFS bookkeeping (`.wh..wh.*`) left out.
    pub aufs_skipped: u64,
    /// Parents made without an entry of their own.
    pub implied_dirs: u64,
}

/// Unpacks all entries into `root`, an empty directory nobody else can reach.
///
/// An error comes with the path of the entry, escaped.
pub(crate) fn unpack<R: BufRead>(
    mut tarball: Tarball<'_, Streaming<R>>,
    root: &File,
    limits: &Limits,
    marks: &mut dyn Marks,
) -> Result<Report, (Fault, String)> {
    let mut report = Report::default();
    let mut at = String::from("start of tar");
    let mut run = || -> Result<(), Fault> {
        let mut tree = Tree::new(root, marks)?;
        while let Some(entry) = tarball.next()? {
            at = escape(&entry.path);
            report.entries += 1;
            place(&mut tree, &entry, &mut tarball, limits, &mut report)?;
        }
        report.implied_dirs = tree.finish()?;
        Ok(())
    };
    match run() {
        Ok(()) => Ok(report),
        Err(fault) => Err((fault, at)),
    }
}

/// What a path in the tar means.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Root,
    Here(Vec<u8>),
    /// `.wh.NAME`: hide this path of lower layers.
    Whiteout(Vec<u8>),
    /// `.wh..wh..opq`: hide all that lower layers have in this directory.
    Opaque(Vec<u8>),
    Aufs,
}

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Makes a path relative and plain: no leading `/`, no `.`, no doubled `/`.
fn normalise(path: &[u8], limits: &Limits) -> Result<Vec<u8>, Refusal> {
    let mut out = Vec::with_capacity(path.len());
    let mut depth = 0;
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(Refusal::ParentTraversal),
            _ if part.contains(&0) => return Err(Refusal::Nul),
            _ if part.len() > limits.name_bytes => {
                return Err(Refusal::limit(Limit::NameBytes, limits.name_bytes));
            }
            _ => {}
        }
        depth += 1;
        if depth > limits.depth {
            return Err(Refusal::limit(Limit::Depth, limits.depth));
        }
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    if out.len() > limits.path_bytes {
        return Err(Refusal::limit(Limit::PathBytes, limits.path_bytes));
    }
    Ok(out)
}

fn locate(raw: &[u8], limits: &Limits) -> Result<Place, Refusal> {
    let path = normalise(raw, limits)?;
    if path.is_empty() {
        return if raw.is_empty() { Err(Refusal::Header("empty path")) } else { Ok(Place::Root) };
    }
    let (parent, name) = split(&path);
    for part in parent.split(|b| *b == b'/') {
        if part.starts_with(AUFS) {
            return Ok(Place::Aufs);
        }
        if part.starts_with(WHITEOUT) {
            return Err(Refusal::Whiteout("used as a directory"));
        }
    }
    if name == OPAQUE {
        // The kernel merges the roots of all layers whatever their attributes say: it would have no effect.
        return if parent.is_empty() {
            Err(Refusal::Whiteout("opaque root of a layer"))
        } else {
            Ok(Place::Opaque(parent.to_vec()))
        };
    }
    if name.starts_with(AUFS) {
        return Ok(Place::Aufs);
    }
    let Some(hidden) = name.strip_prefix(WHITEOUT) else {
        return Ok(Place::Here(path));
    };
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(Refusal::Whiteout("hides no name"));
    }
    Ok(Place::Whiteout(join(parent, hidden)))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    path.iter().rposition(|b| *b == b'/').map_or((b"", path), |at| (&path[..at], &path[at + 1..]))
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn place<R: BufRead>(
    tree: &mut Tree<'_>,
    entry: &Entry,
    tarball: &mut Tarball<'_, Streaming<R>>,
    limits: &Limits,
    report: &mut Report,
) -> Result<(), Fault> {
    let place = locate(&entry.path, limits)?;
    if matches!(place, Place::Whiteout(_) | Place::Opaque(_)) {
        // Links too: AUFS wrote all whiteouts as one inode.
        if !matches!(entry.kind, Kind::File | Kind::HardLink) {
            return Err(Refusal::Whiteout("not a regular file").into());
        }
    }
    match place {
        Place::Aufs => {
            report.aufs_skipped += 1;
            Ok(())
        }
        Place::Whiteout(path) => tree.whiteout(&path),
        Place::Opaque(dir) => tree.opaque(&dir),
        Place::Root if entry.kind == Kind::Directory => {
            let attributes = attributes(entry, report)?;
            report.xattrs_dropped += tree.root(&attributes)?;
            Ok(())
        }
        Place::Root => Err(Refusal::Root.into()),
        Place::Here(path) => content(tree, &path, entry, tarball, limits, report),
    }
}

fn content<R: BufRead>(
    tree: &mut Tree<'_>,
    path: &[u8],
    entry: &Entry,
    tarball: &mut Tarball<'_, Streaming<R>>,
    limits: &Limits,
    report: &mut Report,
) -> Result<(), Fault> {
    match entry.kind {
        Kind::CharDevice | Kind::BlockDevice => {
            report.devices_skipped += 1;
            Ok(())
        }
        Kind::HardLink => {
            let target = normalise(&entry.link, limits).map_err(|why| match why {
                Refusal::ParentTraversal => Refusal::HardLink("target climbs with '..'"),
                other => other,
            })?;
            tree.hard_link(path, &target)
        }
        Kind::Symlink => {
            if entry.link.is_empty() {
                return Err(Refusal::Symlink("empty target").into());
            }
            let attributes = attributes(entry, report)?;
            report.xattrs_dropped += attributes.xattrs.len() as u64;
            tree.symlink(path, &entry.link, &attributes)
        }
        Kind::Fifo => {
            let attributes = attributes(entry, report)?;
            report.xattrs_dropped += attributes.xattrs.len() as u64;
            tree.fifo(path, &attributes)
        }
        Kind::Directory => {
            let attributes = attributes(entry, report)?;
            report.xattrs_dropped += tree.directory(path, &attributes)?;
            Ok(())
        }
        Kind::File => {
            let attributes = attributes(entry, report)?;
            let mut file = tree.create(path)?;
            report.bytes += copy(tarball, &file.file)?;
            report.xattrs_dropped += tree.finish_file(&mut file, &attributes)?;
            Ok(())
        }
    }
}

fn copy<R: BufRead>(tarball: &mut Tarball<'_, Streaming<R>>, file: &File) -> Result<u64, Fault> {
    let mut file = Sparse::new(file);
    loop {
        let chunk = tarball.chunk()?;
        let n = chunk.len();
        if n == 0 {
            return file.finish().doing("write");
        }
        file.write_all(chunk).doing("write")?;
        tarball.consume(n);
    }
}

fn attributes(entry: &Entry, report: &mut Report) -> Result<Attributes, Refusal> {
    let id = |field, id: u64| {
        // A guest has 65,536 ids; 65536 itself is the extent the host keeps for overlay's own files.
        u16::try_from(id).map(u32::from).map_err(|_| Refusal::Id { field, id })
    };
    let mut xattrs = Vec::new();
    for (name, value) in &entry.xattrs {
        match xattr::keep(name, value)? {
            Some(value) => xattrs.push((name.clone(), value)),
            None => report.xattrs_dropped += 1,
        }
    }
    Ok(Attributes {
        uid: id("uid", entry.uid)?,
        gid: id("gid", entry.gid)?,
        mode: entry.mode,
        mtime: entry.mtime,
        xattrs,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn here(path: &str) -> Result<Place, Refusal> {
        locate(path.as_bytes(), &Limits::default())
    }

    #[test]
    fn paths_become_relative_and_plain() {
        for (raw, want) in [("/etc/x", "etc/x"), ("./a//b/", "a/b"), ("a/./b", "a/b"), ("//a", "a")]
        {
            assert_eq!(here(raw), Ok(Place::Here(want.into())), "{raw}");
        }
        for raw in [".", "./", "/", "//", "./."] {
            assert_eq!(here(raw), Ok(Place::Root), "{raw}");
        }
    }

    #[test]
    fn climbing_is_refused_even_where_it_would_stay_inside() {
        for raw in ["..", "../x", "a/..", "a/../b", "/../x", "./.."] {
            assert_eq!(here(raw), Err(Refusal::ParentTraversal), "{raw}");
        }
    }

    #[test]
    fn whiteout_names_are_told_apart() {
        assert_eq!(here("a/.wh.b"), Ok(Place::Whiteout("a/b".into())));
        assert_eq!(here(".wh.b"), Ok(Place::Whiteout("b".into())));
        assert_eq!(here("a/.wh..wh..opq"), Ok(Place::Opaque("a".into())));
        assert_eq!(here(".wh...b"), Ok(Place::Whiteout("..b".into())));
        for raw in [".wh..wh.aufs", ".wh..wh.plnk/1.2", "a/.wh..wh.orph"] {
            assert_eq!(here(raw), Ok(Place::Aufs), "{raw}");
        }
        for raw in [".wh.", "a/.wh.", ".wh..", ".wh...", "a/.wh...", ".wh..wh..opq", ".wh.a/b"] {
            assert!(matches!(here(raw), Err(Refusal::Whiteout(_))), "{raw}");
        }
    }

    #[test]
    fn depth_and_length_are_bounded_and_named() {
        let deep = "d/".repeat(4096 / 2 - 1);
        assert_eq!(here(&deep), Err(Refusal::limit(Limit::Depth, 256u64)));
        assert_eq!(here(&"d/".repeat(256)), Ok(Place::Here("d/".repeat(256)[..511].into())));
        let long = "n".repeat(256);
        assert_eq!(here(&long), Err(Refusal::limit(Limit::NameBytes, 255u64)));
    }

    proptest! {
        #[test]
        fn an_accepted_path_has_no_way_out(raw in proptest::collection::vec(
            prop_oneof![Just(b'/'), Just(b'.'), Just(b'a'), Just(b'w'), Just(b'h'), Just(0), any::<u8>()], 0..60)
        ) {
            let limits = Limits::default();
            match locate(&raw, &limits) {
                Ok(Place::Here(path) | Place::Whiteout(path) | Place::Opaque(path)) => {
                    prop_assert!(!path.is_empty() && !path.contains(&0));
                    for part in path.split(|b| *b == b'/') {
                        prop_assert!(!matches!(part, b"" | b"." | b".."));
                        prop_assert!(part.len() <= 255);
                    }
                    prop_assert_eq!(normalise(&path, &limits).unwrap(), path);
                }
                Ok(Place::Root | Place::Aufs) | Err(_) => {}
            }
        }
    }
}
