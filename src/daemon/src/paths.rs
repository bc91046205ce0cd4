//! Which paths of the host a caller may name.
//!
//! The daemon is root, so a path named by a caller who is not would be a way to read, lock and mount
//! what he may not. Those who only operate (the platforms' users) are held to the directories that
//! the configuration lists, symbolic links resolved.
//!
//! A path is resolved once, here; what is then used is the resolved one. Disks and image sources are
//! opened by it without following any link (openat2(2), `RESOLVE_NO_SYMLINKS`), so that exchanging a
//! directory for a link afterwards, while an import waits for its turn or before a later boot, leads
//! nowhere. Inside of a source nothing leads out: an OCI layout's files are opened beneath its
//! directory, an archive's by their place in it.
//!
//! What this does not say: whose a file below those directories is. They are open to all operators
//! alike, and the daemon reads there what root can read.

use std::fs;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::{DataDisk, normal_path};
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
    /// `Permission`: he may not name it. `Invalid`: not absolute. `NotFound`: no such directory; nobody
    /// learns that of a directory that he may not name.
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
        match fs::canonicalize(parent).map(|parent| parent.join(name)) {
            Ok(real) if caller.is_admin() || self.is_below(&real) => return Ok(real),
            Err(e) if caller.is_admin() || self.may_know_absence(parent) => {
                return Err(io_error("find the directory of", path, &e));
            }
            Ok(_) | Err(_) => {}
        }
        let what = format!("path {shown} is not below a directory open to operators");
        let hint = "see access.operate_dirs in ocivisor.toml, or ask an admin";
        Err(Error::new(ErrorKind::Permission, what).hint(hint))
    }

    /// The same for a data disk, which may be a link: platforms link to volumes and snapshots. Every link on the way is
    /// held to the same directories, up to a name in /dev: there root alone makes links, and they change with the host.
    ///
    /// # Errors
    /// As [`Self::resolve`]; `Invalid`: too many links.
    pub fn resolve_disk(&self, caller: Caller, path: &Path) -> Result<PathBuf> {
        const MOST: usize = 8;
        let mut real = self.resolve(caller, path)?;
        for _ in 0..MOST {
            if real.starts_with("/dev") {
                return Ok(real);
            }
            match fs::read_link(&real) {
                Ok(to) => {
                    let to = real.parent().unwrap_or(Path::new("/")).join(to);
                    // Where a link leads, a parent may be named by `..`.
                    let shorter = to
                        .parent()
                        .and_then(|dir| Some(fs::canonicalize(dir).ok()?.join(to.file_name()?)));
                    real = self.resolve(caller, &shorter.unwrap_or(to))?;
                }
                // No link, or nothing there, which is said when it is opened.
                Err(_) => return Ok(real),
            }
        }
        let what = format!("path {} leads through more than {MOST} links", path.display());
        Err(Error::new(ErrorKind::Invalid, what))
    }

    /// The files of a data disk, resolved. Places of backing files that are not there are left out: platforms name where
    /// an image came from, whether or not the disk stands on it.
    ///
    /// # Errors
    /// As [`Self::resolve_disk`].
    pub fn resolve_files(&self, caller: Caller, disk: DataDisk) -> Result<DataDisk> {
        let path = self.resolve_disk(caller, &disk.path)?;
        let backing =
            disk.backing.iter().filter_map(|place| match self.resolve_disk(caller, place) {
                Ok(real) if !real.exists() => None,
                Err(e) if e.kind == ErrorKind::NotFound => None,
                other => Some(other),
            });
        let backing = backing.collect::<Result<Vec<_>>>()?;
        Ok(DataDisk { path, backing, ..disk })
    }

    fn is_below(&self, real: &Path) -> bool {
        self.real_dirs().any(|dir| real.starts_with(&dir) && real != dir)
    }

    fn real_dirs(&self) -> impl Iterator<Item = PathBuf> {
        self.dirs.iter().map(|dir| fs::canonicalize(dir).unwrap_or_else(|_| dir.clone()))
    }

    /// Whether a directory that cannot be resolved is simply absent from one of those open to
    /// operators. A link that leads to nothing tells by that what is there, outside.
    fn may_know_absence(&self, dir: &Path) -> bool {
        let mut absent = dir;
        while let Some(above) = absent.parent() {
            if let Ok(real) = fs::canonicalize(above) {
                let is_absent = fs::symlink_metadata(absent)
                    .is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
                return is_absent && self.real_dirs().any(|dir| real.starts_with(dir));
            }
            absent = above;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_disks_are_followed_within_the_directories_and_up_to_dev() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let (ours, other) = (dir.path().join("ours"), dir.path().join("other"));
        fs::create_dir_all(ours.join("disk.1.snap")).unwrap();
        fs::create_dir(&other).unwrap();
        let real = fs::canonicalize(&ours).unwrap();
        let link = |to: &str, name: &str| symlink(to, ours.join(name)).unwrap();
        link("disk.1.snap/0", "disk.1");
        link("../ours/disk.1", "disk.2");
        link("/dev/vg-one/lv-1", "disk.3");
        link("../other/secret", "disk.4");
        link("disk.5", "disk.5");
        let policy = PathPolicy::new(std::slice::from_ref(&ours));
        let resolve =
            |caller, name: &str| policy.resolve_disk(caller, &ours.join(name)).map_err(|e| e.kind);
        let one = Caller::Operator(1);
        assert_eq!(resolve(one, "disk.0"), Ok(real.join("disk.0")));
        assert_eq!(resolve(one, "disk.1"), Ok(real.join("disk.1.snap/0")));
        assert_eq!(resolve(one, "disk.2"), Ok(real.join("disk.1.snap/0")));
        assert_eq!(resolve(one, "disk.3"), Err(ErrorKind::Permission));
        assert_eq!(resolve(one, "disk.4"), Err(ErrorKind::Permission));
        assert_eq!(resolve(one, "disk.5"), Err(ErrorKind::Invalid));
        // A directory of volumes is opened to operators by its name in /dev.
        let policy = PathPolicy::new(&[ours.clone(), "/dev/pts".into()]);
        link("/dev/pts/ptmx", "disk.6");
        let found = policy.resolve_disk(one, &ours.join("disk.6")).unwrap();
        assert_eq!(found, Path::new("/dev/pts/ptmx"));
    }

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
        assert_eq!(check(ours.join("42/none/none/disk.0")), Err(ErrorKind::NotFound));
        // Whether something is there is nobody's business where he has none.
        std::os::unix::fs::symlink(other.join("none"), ours.join("dangling")).unwrap();
        for way in [other.join("none/x"), other.join("x"), "/none/x".into()] {
            assert_eq!(check(way), denied);
        }
        for way in ["dangling/x", "dangling/none/x", "link/none/x", "link/x"] {
            assert_eq!(check(ours.join(way)), denied, "{way}");
        }
        assert_eq!(check(ours.clone()), denied);
        assert_eq!(check("/etc/shadow".into()), denied);
        assert_eq!(check(ours.join("../other/x")), Err(ErrorKind::Invalid));
        let any = policy.resolve(Caller::Admin(0), &ours.join("link/disk.0")).unwrap();
        assert_eq!(any, fs::canonicalize(&other).unwrap().join("disk.0"));
    }
}
