//! The tools at work: mke2fs writes a file system with all files, debugfs what mke2fs gets wrong, qemu-img the other
//! format. They write files that belong to them, so where they are confined a target changes hands for that long.

use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Gid, Uid};

use super::refuse;
use super::size::{self, Needs};
use super::tool::{Arg, Tools};
use crate::cancel::Cancel;
use crate::disk;
use crate::error::{Error, Result};
use crate::sparse::Sparse;
use crate::staging::Staged;
use crate::target::Target;

/// The making of a disk.
pub(super) struct Make<'a> {
    pub tools: Tools<'a>,
    pub staged: &'a Staged,
    pub to: &'a Path,
}

impl Make<'_> {
    /// A new file in staging that tools can write.
    pub fn staged(&self, name: &str) -> Result<File> {
        let make = || {
            let file = disk::create_new(&self.staged.dir, name)?;
            if let Some(owner) = self.tools.owner() {
                own(&file, owner, owner)?;
            }
            Ok(file)
        };
        make().map_err(|e: io::Error| Error::io("make", self.to.display().to_string(), e))
    }

    /// The file for tools to write.
    pub fn lend<'t>(&self, target: &'t Target) -> Result<Lent<'t>> {
        let Some(owner) = self.tools.owner() else { return Ok(Lent::Kept(target)) };
        let meta = target.file().metadata();
        let meta = meta.map_err(|e| Error::io("inspect", self.to.display().to_string(), e))?;
        match own(target.file(), owner, owner) {
            Ok(()) => Ok(Lent::Owned { target, owner: (meta.uid(), meta.gid()) }),
            // A file system without owners, or one of another host that does not trust root of this one.
            Err(_) => Ok(Lent::Other { target, instead: self.staged("disk")? }),
        }
    }

    fn run(&self, program: &str, package: &str, args: &[Arg<'_>], largest: u64) -> Result<()> {
        let run = self.tools.run(program, package, args, largest);
        run.map_err(|why| refuse(self.to, why))
    }

    /// Makes the file system with all files; returns its size.
    pub fn format(
        &self,
        tree: &File,
        needs: Needs,
        raw: &File,
        label: &str,
        size: Option<u64>,
    ) -> Result<u64> {
        let least = needs.least();
        let size = size.unwrap_or_else(|| needs.comfortable()) / size::BLOCK * size::BLOCK;
        if size < least {
            let why =
                format!("the files need a disk of {least} bytes, {size} are wanted; take more");
            return Err(refuse(self.to, why));
        }
        let failed = |e| Error::io("write", self.to.display().to_string(), e);
        raw.set_len(size).map_err(failed)?;
        let root = tree.metadata().map_err(failed)?;
        let (uid, gid) = (root.uid(), root.gid());
        let inodes = needs.inodes(size).to_string();
        let owner = format!("root_owner={uid}:{gid},nodiscard");
        let blocks = (size / size::BLOCK).to_string();
        let how = [
            "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-N", &inodes, "-L",
            label, "-E", &owner, "-d",
        ];
        let what = [Arg::Tree(tree), Arg::File(raw), Arg::Text(&blocks)];
        self.run("mke2fs", "e2fsprogs", &[&how.map(Arg::Text)[..], &what].concat(), size)?;
        // It gives the root directory a mode and time of its own.
        let mode = root.mode();
        let mtime = root.mtime().clamp(i32::MIN.into(), i32::MAX.into());
        for field in [format!("mode 0{mode:o}"), format!("mtime @{mtime}"), "mtime_extra 0".into()]
        {
            let request = format!("set_inode_field / {field}");
            let how = ["-w", "-R", &request].map(Arg::Text);
            self.run("debugfs", "e2fsprogs", &[&how[..], &[Arg::File(raw)]].concat(), size)?;
        }
        Ok(size)
    }

    /// Writes the disk once more, as qcow2.
    pub fn convert(&self, raw: &File, qcow2: &File, size: u64) -> Result<()> {
        // The lock of an image is for machines that run; nobody else has these files.
        let how = ["convert", "-U", "-f", "raw", "-O", "qcow2"].map(Arg::Text);
        let what = [Arg::File(raw), Arg::File(qcow2)];
        // Its tables are a small part of it; none is larger than this.
        let largest = size + size / 8 + (64 << 20);
        self.run("qemu-img", "qemu-utils", &[&how[..], &what].concat(), largest)
    }
}

/// A target, as tools write it.
pub(super) enum Lent<'t> {
    /// As it is.
    Kept(&'t Target),
    /// It belongs to them for a while.
    Owned { target: &'t Target, owner: (u32, u32) },
    /// It cannot: they write another file, whose bytes are copied at the end.
    Other { target: &'t Target, instead: File },
}

impl Lent<'_> {
    /// What they write.
    pub fn file(&self) -> &File {
        match self {
            Self::Kept(target) | Self::Owned { target, .. } => target.file(),
            Self::Other { instead, .. } => instead,
        }
    }

    /// Leaves the target with what was written, and with its owner.
    pub fn give_back(self, cancel: &Cancel, to: &Path) -> Result<()> {
        let done = match self {
            Self::Kept(_) => Ok(()),
            Self::Owned { target, owner: (uid, gid) } => own(target.file(), uid, gid),
            Self::Other { target, mut instead } => {
                let mut out = Sparse::new(target.file());
                instead
                    .rewind()
                    .and_then(|()| io::copy(&mut cancel.watch(instead), &mut out))
                    .and_then(|_| out.finish().map(drop))
            }
        };
        done.map_err(|e| Error::io("write", to.display().to_string(), e))
    }
}

fn own(file: &File, uid: u32, gid: u32) -> io::Result<()> {
    Ok(rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_was_written_elsewhere_gets_into_the_target_with_its_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let target = Target::create(&path).unwrap();
        let instead = tempfile::tempfile().unwrap();
        instead.set_len(20 << 20).unwrap();
        instead.write_all_at(b"data", 10 << 20).unwrap();
        let want = instead.try_clone().unwrap();
        let lent = Lent::Other { target: &target, instead };
        lent.give_back(&Cancel::new(), &path).unwrap();
        target.publish().unwrap();
        let mut all = vec![0; 20 << 20];
        want.read_exact_at(&mut all, 0).unwrap();
        assert!(std::fs::read(&path).unwrap() == all);
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn a_target_belongs_to_a_tool_for_a_while_only() {
        let dir = tempfile::tempdir().unwrap();
        let target = Target::create(&dir.path().join("out")).unwrap();
        let owner = |target: &Target| target.file().metadata().map(|m| (m.uid(), m.gid())).unwrap();
        let before = owner(&target);
        own(target.file(), 77, 77).unwrap();
        let lent = Lent::Owned { target: &target, owner: before };
        assert_eq!(owner(&target), (77, 77));
        lent.give_back(&Cancel::new(), dir.path()).unwrap();
        assert_eq!(owner(&target), before);
    }
}
