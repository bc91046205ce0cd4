//! Which paths of the host a caller may name.
//!
//! The daemon is root, so a path named by a caller who is not would be a way to read, lock and mount
//! what he may not. Those who only operate (the platforms' users) are held to the directories that
//! the configuration lists, symbolic links resolved.
//!
//! What remains: between this check and the opening, the owner of a directory below can exchange
//! it for a link. What is opened must then still be a disk image or an archive by content, and disks
//! are opened without following a link in their last part.

use std::fs;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::normal_path;
use ocivisor_rpc::{Extensions, Peer, Role};

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

    /// Checks a path that a caller names.
    ///
    /// # Errors
    /// `Permission`: he may not. `Invalid`: not absolute.
    pub fn check(&self, caller: &Extensions, path: &Path) -> Result<()> {
        let admin = caller.get::<Peer>().is_some_and(|peer| peer.role == Some(Role::Admin));
        if admin { Ok(()) } else { self.check_operator(path) }
    }

    fn check_operator(&self, path: &Path) -> Result<()> {
        let shown = path.display();
        let normal = normal_path(path).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("path {shown} is not absolute and plain"))
        })?;
        // The last part may not exist yet; its directory does.
        let parent = normal.parent().and_then(|dir| fs::canonicalize(dir).ok());
        let name = normal.file_name();
        let real = parent.zip(name).map(|(parent, name)| parent.join(name));
        let below = |dir: &PathBuf| {
            let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.clone());
            real.as_ref().is_some_and(|real| real.starts_with(&dir) && *real != dir)
        };
        if self.dirs.iter().any(below) {
            return Ok(());
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
        let check = |path: PathBuf| policy.check_operator(&path).map_err(|e| e.kind);
        assert_eq!(check(ours.join("42/disk.0")), Ok(()));
        assert_eq!(check(ours.join(".//42//disk.0")), Ok(()));
        let denied = Err(ErrorKind::Permission);
        assert_eq!(check(other.join("disk.0")), denied);
        assert_eq!(check(ours.join("link/disk.0")), denied);
        assert_eq!(check(ours.join("none/disk.0")), denied);
        assert_eq!(check(ours.clone()), denied);
        assert_eq!(check("/etc/shadow".into()), denied);
        assert_eq!(check(ours.join("../other/x")), Err(ErrorKind::Invalid));
    }
}
