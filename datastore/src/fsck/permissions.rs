//! Owners and modes of the store's own directories and documents: layers hold set-user-ID files of strangers, so
//! nobody but the owner of the store may get near them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;

use rustix::fs::{FileType, Gid, Mode, OFlags, Stat, Uid};

use super::Finding;
use crate::digest::Digest;
use crate::disk;
use crate::error::Result;
use crate::name::FileName;
use crate::prune::PARTIAL;
use crate::record::image_file_digest;
use crate::store::Store;

/// Any bit for others, and the bits that make a file more than a file.
const FORBIDDEN: u32 = 0o7077;
const DIRECTORY: u32 = 0o700;
const DOCUMENT: u32 = 0o600;

impl Store {
    pub(super) fn survey_permissions(&self, found: &mut BTreeSet<Finding>) -> Result<()> {
        let mut look = |dir: &File, name: &str, path: String| {
            match disk::stat(dir, name) {
                // Gone since the directory was read.
                Ok(None) => Ok(()),
                Ok(Some(stat)) => {
                    found.extend(wrong(&stat).map(|(got, expected)| Finding::Permissions {
                        path,
                        got,
                        expected,
                    }));
                    Ok(())
                }
                Err(e) => Err(self.io("inspect", &path, e)),
            }
        };
        for name in [".", "format.json", "lock", "blobs", PARTIAL, super::quarantine::NAME] {
            look(&self.dir, name, name.into())?;
        }
        look(&self.blobs, ".", "blobs/sha256".into())?;
        look(&self.staging, ".", "staging".into())?;
        for (dir, folder) in
            [(&self.refs, "refs"), (&self.images, "images"), (&self.layers, "layers")]
        {
            look(dir, ".", folder.into())?;
        }
        // Strays are found as strays.
        for name in self.list_names(&self.refs, "refs")? {
            if FileName::decode(&name).is_some() {
                look(&self.refs, &name, format!("refs/{name}"))?;
            }
        }
        for name in self.list_names(&self.images, "images")? {
            if image_file_digest(&name).is_some() {
                look(&self.images, &name, format!("images/{name}"))?;
            }
        }
        for name in self.list_names(&self.blobs, "blobs/sha256")? {
            if Digest::from_hex(&name).is_some() {
                look(&self.blobs, &name, format!("blobs/sha256/{name}"))?;
            }
        }
        for name in self.list_names(&self.layers, "layers")? {
            if Digest::from_hex(&name).is_some() {
                look(&self.layers, &name, format!("layers/{name}"))?;
                if let Ok(layer) = disk::open_dir(&self.layers, &name) {
                    look(&layer, "layer.json", format!("layers/{name}/layer.json"))?;
                }
            }
        }
        Ok(())
    }

    /// Gives a path of a finding its owner and mode.
    pub(super) fn set_permissions(&self, path: &str) -> io::Result<()> {
        let how = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&self.dir, path, flags, Mode::empty(), how)?;
        let stat = rustix::fs::fstat(&file)?;
        let (uid, gid) = owner();
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(right(&stat)))?;
        Ok(rustix::fs::fsync(&file)?)
    }
}

/// Who runs this: whoever made the store.
fn owner() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

fn right(stat: &Stat) -> u32 {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => DIRECTORY,
        _ => DOCUMENT,
    }
}

fn wrong(stat: &Stat) -> Option<(String, String)> {
    let right = right(stat);
    let (uid, _) = owner();
    let mode = stat.st_mode & 0o7777;
    let good = stat.st_uid == uid && mode & FORBIDDEN == 0 && mode & right == right;
    let text = |uid: u32, mode: u32| format!("owner {uid} and mode {mode:04o}");
    (!good).then(|| (text(stat.st_uid, mode), text(uid, right)))
}
