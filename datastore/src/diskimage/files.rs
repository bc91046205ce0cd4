//! The files of a disk: opened as the caller named them, by whoever may open files, and watched until they are read.
//!
//! Who reads them gets descriptors, never names: a reader that was taken over by a disk can read that disk.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::DiskOptions;
use super::fault::{DiskFault, Res};
use crate::error::{Error, Result};
use crate::source::open_regular;
use crate::worker::FILES_MAX;

/// Open files, none of which may change while it is read.
#[derive(Debug)]
pub(crate) struct DiskFiles {
    /// The disk, its backing files, nearest first, and its data file.
    files: Vec<Held>,
    shown: String,
}

impl DiskFiles {
    /// Opens the disk, and the files that the caller named beside it.
    pub fn open(path: &Path, options: &DiskOptions) -> Result<Self> {
        let shown = path.display().to_string();
        let refused = |why| Error::Disk { file: shown.clone(), why };
        let beside = options.backing.iter().chain(&options.data_file);
        let paths: Vec<&Path> = std::iter::once(path).chain(beside.map(PathBuf::as_path)).collect();
        if paths.len() > FILES_MAX {
            let (value, max) = (paths.len() as u64, FILES_MAX as u64);
            return Err(refused(DiskFault::TooLarge { what: "number of files", value, max }));
        }
        let open = |path| Held::new(open_regular(path)?, path).map_err(refused);
        let files = paths.into_iter().map(open).collect::<Result<_>>()?;
        Ok(Self { files, shown })
    }

    /// The open files for a reader, in the order in which it wants them.
    pub fn copies(&self) -> Res<Vec<File>> {
        let copies = self.files.iter().map(|held| held.file.try_clone()).collect::<io::Result<_>>();
        copies.map_err(|source| DiskFault::Read { at: 0, source })
    }

    /// An error if one of them was written to, or its name leads elsewhere by now. What was read is only worth
    /// something if it was one state of the disk.
    pub fn unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(Held::unchanged).map_err(|why| self.refused(why))
    }

    pub fn refused(&self, why: DiskFault) -> Error {
        Error::Disk { file: self.shown.clone(), why }
    }

    /// The path, for messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

/// A file as it was when it was opened.
#[derive(Debug)]
struct Held {
    file: File,
    path: PathBuf,
    before: Identity,
}

/// What must not change while a file is read.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    inode: (u64, u64),
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Identity {
    fn of(meta: &Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Held {
    fn new(file: File, path: &Path) -> Res<Self> {
        let meta = file.metadata().map_err(|source| DiskFault::Read { at: 0, source })?;
        Ok(Self { file, path: path.into(), before: Identity::of(&meta) })
    }

    fn unchanged(&self) -> Res<()> {
        let failed = |source| DiskFault::Read { at: 0, source };
        let held = Identity::of(&self.file.metadata().map_err(failed)?);
        let named = std::fs::symlink_metadata(&self.path);
        let same_name = named.is_ok_and(|m| (m.dev(), m.ino()) == held.inode);
        if held == self.before && same_name { Ok(()) } else { Err(DiskFault::Changed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_to_or_replaced_is_noticed() {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("disk");
        let fresh = || {
            std::fs::copy("/proc/self/exe", &path).unwrap();
            DiskFiles::open(&path, &DiskOptions::default()).unwrap()
        };
        let changed = |files: DiskFiles| {
            matches!(files.unchanged(), Err(Error::Disk { why: DiskFault::Changed, .. }))
        };
        assert!(fresh().unchanged().is_ok());
        let files = fresh();
        File::options().append(true).open(&path).unwrap().set_len(1 << 30).unwrap();
        assert!(changed(files));
        let files = fresh();
        std::fs::copy("/proc/self/exe", top.path().join("new")).unwrap();
        rustix::fs::rename(top.path().join("new"), &path).unwrap();
        assert!(changed(files));
    }

    #[test]
    fn more_files_than_a_reader_takes_are_not_opened() {
        let backing = vec![PathBuf::from("/nonexistent"); FILES_MAX];
        let options = DiskOptions { backing, ..DiskOptions::default() };
        let error = DiskFiles::open(Path::new("/nonexistent/disk"), &options).unwrap_err();
        let want = "disk image /nonexistent/disk refused: number of files 33 is above 32";
        assert_eq!(error.to_string(), want);
    }
}
