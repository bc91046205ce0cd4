//! The guest's control groups, which the daemon made with their limits before.
//!
//! libcontainer and runc join the controllers' hierarchies on a v1 or hybrid host, but libcontainer
//! neither `name=systemd` nor the unified one. A guest that is left behind there would see the
//! host's whole tree from its control group namespace, and escape the daemon's bookkeeping. So the
//! creator joins those itself, before it starts the OCI runtime. It does not join the others: on
//! failure libcontainer kills everything in the groups that it manages, the messenger included.

pub mod devices;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};

/// Most groups of a guest that are looked through.
const MAX_GROUPS: usize = 4096;

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where.
    pub mount: PathBuf,
    /// Which kind.
    pub kind: Kind,
}

/// Kinds of hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// cgroup v2.
    Unified,
    /// cgroup v1 with controllers.
    Controllers,
    /// cgroup v1 without: `name=systemd`.
    Named,
}

/// The guest's groups in all hierarchies.
#[derive(Debug)]
pub struct Groups(Vec<(PathBuf, Kind)>);

impl Groups {
    /// Finds the groups of that path, absolute within each hierarchy.
    ///
    /// # Errors
    /// `Host`: none is there, or the mounts cannot be read. `Invalid`: no such path can be.
    pub fn find(path: &Path) -> Result<Self> {
        let normal = path.is_absolute()
            && path.components().count() > 1
            && path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if !normal {
            let what = format!("control group path {} is not absolute and normal", path.display());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|e| Error::new(ErrorKind::Host, format!("read mounts: {e}")))?;
        let below = path.strip_prefix("/").unwrap_or(path);
        let found = hierarchies(&mounts).into_iter().map(|h| (h.mount.join(below), h.kind));
        let found: Vec<_> = found.filter(|(dir, _)| dir.is_dir()).collect();
        if found.is_empty() {
            let what = format!("the guest has no control group {}", path.display());
            return Err(Error::new(ErrorKind::Host, what).hint("the daemon makes it beforehand"));
        }
        Ok(Self(found))
    }

    /// Whether only cgroup v2 is in use.
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.0.iter().all(|(_, kind)| *kind == Kind::Unified)
    }

    /// The group in the unified hierarchy.
    #[must_use]
    pub fn unified(&self) -> Option<&Path> {
        self.0.iter().find(|(_, kind)| *kind == Kind::Unified).map(|(dir, _)| dir.as_path())
    }

    /// All processes in them, in one hierarchy: each process is in all. None if it cannot be said.
    #[must_use]
    pub fn processes(&self) -> Option<Vec<i32>> {
        // The guest may make groups in the unified one only.
        let flat = self.0.iter().find(|(_, kind)| *kind != Kind::Unified);
        let (dir, _) = flat.or(self.0.first())?;
        let (mut found, mut dirs, mut seen) = (Vec::new(), vec![dir.clone()], 0);
        while let Some(dir) = dirs.pop() {
            seen += 1;
            if seen > MAX_GROUPS {
                return None;
            }
            match fs::read_to_string(dir.join("cgroup.procs")) {
                Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                // A threaded one, whose processes are told of above (cgroups(7)), or one that is gone.
                Err(e)
                    if matches!(
                        e.raw_os_error(),
                        Some(libc::EOPNOTSUPP | libc::ENODEV | libc::ENOENT)
                    ) => {}
                Err(_) => return None,
            }
            let below = fs::read_dir(&dir).into_iter().flatten().filter_map(io::Result::ok);
            let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            dirs.extend(below.map(|entry| entry.path()));
        }
        Some(found)
    }

    /// Moves this process into the groups that OCI runtimes leave out; see the module.
    ///
    /// # Errors
    /// `Host`: the kernel refuses.
    pub fn join_unmanaged(&self) -> Result<()> {
        let unified = self.is_unified();
        let unmanaged = self.0.iter().filter(|(_, kind)| match kind {
            Kind::Unified => !unified,
            Kind::Named => true,
            Kind::Controllers => false,
        });
        unmanaged.map(|(dir, _)| dir.join("cgroup.procs")).try_for_each(|procs| join(&procs))
    }

    /// Moves this process into all groups. In the unified hierarchy a guest's own init may have
    /// made groups below and none may be in the middle then (EBUSY): so into `beside`'s, which is
    /// the init's own group, if it is below.
    ///
    /// That one is the guest's to freeze, to kill, to make threaded and to starve by limits of its
    /// own. It gains nothing by it: what is there of the host is the one short-lived process that
    /// calls this, which holds nothing that others wait for and which its session kills when it takes
    /// too long (SIGKILL ends frozen and throttled processes of cgroup v2), and its child, which
    /// becomes the guest's program. A group that no process may enter, as below a threaded one, makes
    /// the guest's own sessions fail.
    ///
    /// # Errors
    /// `Host`: the kernel refuses.
    pub fn join_all(&self, beside: &Path) -> Result<()> {
        for (dir, kind) in &self.0 {
            let joined = write_pid(&dir.join("cgroup.procs"));
            let busy = |e: &io::Error| e.raw_os_error() == Some(libc::EBUSY);
            match joined {
                Err(e) if *kind == Kind::Unified && busy(&e) && beside.starts_with(dir) => {
                    join(&beside.join("cgroup.procs"))?;
                }
                Err(e) => return Err(refused(dir, &e)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Gives the group in the unified hierarchy to the guest's root, so that its init can order its
    /// services below. The files of limits stay the host's: cgroups(7), "Cgroup delegation".
    ///
    /// # Errors
    /// `Host`: the kernel refuses.
    pub fn delegate(&self, root: u32) -> Result<()> {
        let Some(dir) = self.unified() else { return Ok(()) };
        let files = ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
        for file in files {
            let path = dir.join(file);
            let (uid, gid) = (Uid::from_raw(root), Gid::from_raw(root));
            chownat(CWD, &path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| refused(&path, &e.into()))?;
        }
        Ok(())
    }
}

/// Moves this process into the group whose `cgroup.procs` this is.
///
/// # Errors
/// `Host`: the kernel refuses.
pub fn join(procs: &Path) -> Result<()> {
    write_pid(procs).map_err(|e| refused(procs, &e))
}

fn write_pid(procs: &Path) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).open(procs)?;
    file.write_all(std::process::id().to_string().as_bytes())
}

fn refused(path: &Path, error: &io::Error) -> Error {
    let kind = match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM | libc::ENOSPC) => ErrorKind::Exhausted,
        _ => ErrorKind::Host,
    };
    Error::new(kind, format!("control group {}: {error}", path.display()))
}

/// Where a process is in the unified hierarchy, from its /proc/PID/cgroup, below `mount`.
#[must_use]
pub fn unified_path(proc_cgroup: &str) -> Option<&str> {
    proc_cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

/// The first mount of the unified hierarchy.
///
/// # Errors
/// `Host`: the mounts cannot be read.
pub fn unified_mount() -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| Error::new(ErrorKind::Host, format!("read mounts: {e}")))?;
    let unified = hierarchies(&mounts).into_iter().find(|h| h.kind == Kind::Unified);
    Ok(unified.map(|h| h.mount))
}

/// Hierarchies in a mountinfo, each once: proc_pid_mountinfo(5). Mounts of a part of a hierarchy (as
/// containers on this host have) are left out.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<(String, Hierarchy)> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let mount: Vec<&str> = mount.split(' ').collect();
        let (Some(&root), Some(&at)) = (mount.get(3), mount.get(4)) else { continue };
        let mut filesystem = filesystem.split(' ');
        let kind = filesystem.next();
        let options = filesystem.nth(1).unwrap_or_default();
        let named = options.split(',').any(|option| option.starts_with("name="));
        let kind = match kind {
            Some("cgroup2") => Kind::Unified,
            Some("cgroup") if named => Kind::Named,
            Some("cgroup") => Kind::Controllers,
            _ => continue,
        };
        let identity = if kind == Kind::Unified { String::new() } else { options.to_owned() };
        if root == "/" && !found.iter().any(|(known, h)| *known == identity && h.kind == kind) {
            found.push((identity, Hierarchy { mount: at.into(), kind }));
        }
    }
    found.into_iter().map(|(_, hierarchy)| hierarchy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_a_hybrid_host() {
        let mountinfo = "\
            1 2 0:1 / / rw - ext4 /dev/vda rw\n\
            3 2 0:2 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
            4 2 0:3 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            5 2 0:4 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            6 2 0:4 /a /x/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
            7 2 0:4 / /y rw - cgroup2 cgroup2 rw\n\
            broken\n";
        let at = |mount: &str, kind| Hierarchy { mount: mount.into(), kind };
        assert_eq!(
            hierarchies(mountinfo),
            [
                at("/sys/fs/cgroup/cpu,cpuacct", Kind::Controllers),
                at("/sys/fs/cgroup/systemd", Kind::Named),
                at("/sys/fs/cgroup/unified", Kind::Unified),
            ]
        );
    }

    #[test]
    fn group_paths_are_checked_before_use() {
        for bad in ["", "/", "a/b", "/a/../b", "/a/.."] {
            assert_eq!(Groups::find(Path::new(bad)).unwrap_err().kind, ErrorKind::Invalid, "{bad}");
        }
        let missing = Groups::find(Path::new("/ocivisor-no-such/x")).unwrap_err();
        assert_eq!(missing.kind, ErrorKind::Host);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "plays control groups")]
    fn processes_are_those_of_the_group_and_below() {
        let dir = tempfile::tempdir().unwrap();
        let group = |at: &str, procs: &str| {
            fs::create_dir_all(dir.path().join(at)).unwrap();
            fs::write(dir.path().join(at).join("cgroup.procs"), procs).unwrap();
        };
        group("v2", "1\n0\n");
        group("v2/a/b", "3\n4\n");
        group("v1", "7\n");
        let all = |names: &[(&str, Kind)]| {
            let groups = names.iter().map(|(name, kind)| (dir.path().join(name), *kind)).collect();
            Groups(groups).processes()
        };
        assert_eq!(all(&[("v2", Kind::Unified)]), Some(vec![1, 0, 3, 4]));
        assert_eq!(all(&[("v2", Kind::Unified), ("v1", Kind::Named)]), Some(vec![7]));
        assert_eq!(all(&[]), None);
    }

    #[test]
    fn own_group_is_read_from_proc() {
        assert_eq!(unified_path("4:cpu:/a\n0::/b/c\n"), Some("/b/c"));
        assert_eq!(unified_path("4:cpu:/a\n"), None);
    }
}
