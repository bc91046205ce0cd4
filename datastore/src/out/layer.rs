//! An upper directory as a layer's tar, and a merged tree as a plain one.
//!
//! In a layer (image-spec, "Layer Filesystem Changeset") a hidden name is an empty file `.wh.NAME`, a directory
//! that hides all that was below it has `.wh..wh..opq`, here its first child. A guest's own file with such a name
//! cannot be in a layer; it is refused, for leaving it out would delete something.

use std::io::Write;

use serde::{Deserialize, Serialize};

use super::merge::{Entry, Skipped, Tree, View, What};
use super::tar::{Flag, Head, TarWriter};
use crate::error::{Fault, Refusal, escape};
use crate::limits::Limits;

/// How often progress is told, in bytes of the tar.
const STEP: u64 = 4 << 20;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a tree had and its tar has not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Omitted {
    /// Sockets: they are nothing without the process that listens.
    pub sockets: u64,
    /// Device nodes: a guest gets its devices from the host's policy.
    pub devices: u64,
    /// Extended attributes that no image has: ACLs, labels of the host's LSM, overlayfs's own names.
    pub xattrs: u64,
    /// File capabilities that belong to a user namespace inside the guest.
    pub capabilities: u64,
}

impl From<&Skipped> for Omitted {
    fn from(skipped: &Skipped) -> Self {
        let Skipped { sockets, devices, xattrs, capabilities } = *skipped;
        Self { sockets, devices, xattrs, capabilities }
    }
}

/// Counts of what was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub entries: u64,
    pub whiteouts: u64,
    pub bytes: u64,
    pub omitted: Omitted,
}

/// Writes the tree as a tar. An error comes with the path, escaped.
pub(super) fn write<W: Write>(
    tree: &Tree<'_>,
    out: W,
    limits: &Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<(W, Written), (Fault, String)> {
    let mut tar = TarWriter::new(out, limits.into());
    let mut walk = tree.walk();
    let mut written = Written::default();
    let mut told = 0;
    loop {
        let at = |fault, walk: &super::merge::Walk<'_>| (fault, escape(walk.at()));
        let entry = match walk.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(fault) => return Err(at(fault, &walk)),
        };
        put(&mut tar, &entry, tree.view, &mut written).map_err(|fault| at(fault, &walk))?;
        if tar.written() - told >= STEP {
            told = tar.written();
            progress(told);
        }
    }
    written.omitted = walk.skipped().into();
    written.bytes = tar.written();
    progress(written.bytes);
    let out = tar.finish().map_err(|fault| (fault, "end of tar".into()))?;
    Ok((out, written))
}

fn put<W: Write>(
    tar: &mut TarWriter<W>,
    entry: &Entry,
    view: View,
    written: &mut Written,
) -> Result<(), Fault> {
    written.entries += 1;
    let name = entry.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    if view == View::Upper && name.starts_with(WHITEOUT) {
        return Err(Refusal::Upper("a name that begins with .wh. would delete a file").into());
    }
    let mut head = Head {
        path: &entry.path,
        flag: Flag::File,
        link: b"",
        mode: entry.mode,
        uid: entry.uid.into(),
        gid: entry.gid.into(),
        size: 0,
        mtime: entry.mtime,
        xattrs: &entry.xattrs,
    };
    match &entry.what {
        What::Directory { opaque } => {
            let path = if entry.path.is_empty() {
                b"./".to_vec()
            } else {
                [&entry.path[..], b"/"].concat()
            };
            tar.head(&Head { path: &path, flag: Flag::Directory, ..head })?;
            if *opaque {
                written.whiteouts += 1;
                marker(tar, &[&path[..], OPAQUE].concat())?;
            }
            Ok(())
        }
        What::Whiteout => {
            written.whiteouts += 1;
            let parent = &entry.path[..entry.path.len() - name.len()];
            marker(tar, &[parent, WHITEOUT, name].concat())
        }
        What::File { file, stat } => {
            head.size = u64::try_from(stat.st_size).unwrap_or(0);
            tar.file(&head, file, stat)
        }
        What::HardLink(first) => tar.head(&Head { flag: Flag::HardLink, link: first, ..head }),
        What::Symlink(target) => tar.head(&Head { flag: Flag::Symlink, link: target, ..head }),
        What::Fifo => tar.head(&Head { flag: Flag::Fifo, ..head }),
    }
}

fn marker<W: Write>(tar: &mut TarWriter<W>, path: &[u8]) -> Result<(), Fault> {
    tar.head(&Head::plain(path, Flag::File, 0, 0))
}
