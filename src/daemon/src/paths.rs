//! Which paths of the host a caller may name.
//!
//! The daemon is root, so a path named by a caller who is not would be a way to read, lock and mount
//! what he may not. Those who only operate (the platforms' users) are held to the directories that
//! the configuration lists, symbolic links resolved.
//!
//! A path is resolved once, here; what is then used is the resolved one, and disks are opened by it
//! without following any link, so that exchanging a directory for a link afterwards, even before a
//! later boot, leads nowhere. What remains: image sources are opened without following a link in
//! their last part alone.

use std::fs;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::normal_path;
use ocivisor_host::fs::io_error;

use crate::caller::Caller;

/// The directories open to those who only operate.
#[derive(Debug, Clone)]
pub struct PathPolicy {
    dirs: Vec<PathBuf>,
}

impl PathPolicy {
    /// These.
    pub fn new(dirs: &[PathBuf]) -> Self {
        Self { dirs: dirs.to_vec() }
    }

    /// The path that a caller names, resolved. Waits for the file system: not for async threads.
    ///
    /// # Errors
    /// `Permission`: he may not name it. `Invalid`: not absolute. `NotFound`: no such directory.
    pub fn resolve(&self, caller: Caller, path: &Path) -> Result<PathBuf> {
        let shown = path.display();
        let normal = normal_path(path).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("path {shown} is not absolute and plain"))
        })?;
        let name = normal
            .file_name()
            .ok_or_else(|| Error::new(ErrorKind::Invalid, format!("path {shown} names no file")))?;
        // The last part may not exist yet; its directory does.
        let parent = normal.parent().unwrap_or(Path::new("/"));
        let parent =
            fs::canonicalize(parent).map_err(|e| io_error("find the directory of", path, &e))?;
        let real = parent.join(name);
        let below = |dir: &PathBuf| {
            let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.clone());
            real.starts_with(&dir) && real != dir
        };
        if caller.is_admin() || self.dirs.iter().any(below) {
            return Ok(real);
        }
        let what = format!("path {shown} is not below a directory open to operators");
        let hint = "see access.operate_dirs in ocivisor.toml, or ask an admin";
        Err(Error::new(ErrorKind::Permission, what).hint(hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_held_to_their_directories_links_resolved() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (dir.path().join("ours"), dir.path().join("other"));
        fs::create_dir_all(ours.join("42")).unwrap();
        fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&other, ours.join("link")).unwrap();
        let policy = PathPolicy::new(std::slice::from_ref(&ours));
        let check = |path: PathBuf| policy.resolve(Caller::Operator(1), &path).map_err(|e| e.kind);
        let real = fs::canonicalize(&ours).unwrap().join("42/disk.0");
        assert_eq!(check(ours.join("42/disk.0")), Ok(real.clone()));
        assert_eq!(check(ours.join(".//42//disk.0")), Ok(real));
        let denied = Err(ErrorKind::Permission);
        assert_eq!(check(other.join("disk.0")), denied);
        assert_eq!(check(ours.join("link/disk.0")), denied);
        assert_eq!(check(ours.join("none/disk.0")), Err(ErrorKind::NotFound));
        assert_eq!(check(ours.clone()), denied);
        assert_eq!(check("/etc/shadow".into()), denied);
        assert_eq!(check(ours.join("../other/x")), Err(ErrorKind::Invalid));
        let any = policy.resolve(Caller::Admin(0), &ours.join("link/disk.0")).unwrap();
        assert_eq!(any, fs::canonicalize(&other).unwrap().join("disk.0"));
    }
}
