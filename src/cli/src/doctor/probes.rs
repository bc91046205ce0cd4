//! Facts that need more than reading a file: parsing mounts, asking a filesystem, connecting.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::mount::{FsOpenFlags, fsconfig_set_string, fsopen};

use super::facts::{CgroupFacts, LxcfsFacts, ModuleFacts, Probed, SocketFacts, Space, text};

/// Control groups from /proc/self/mountinfo (proc(5)).
pub fn cgroups(mountinfo: &str) -> CgroupFacts {
    let mut facts = CgroupFacts::default();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let place = left.split(' ').nth(4).unwrap_or_default();
        let mut right = right.split(' ');
        let kind = right.next().unwrap_or_default();
        let options = right.nth(1).unwrap_or_default();
        match kind {
            "cgroup2" if place == "/sys/fs/cgroup" => {
                let list = text("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
                facts.v2 = Some(list.split_whitespace().map(str::to_owned).collect());
                facts.swap |= swap_file_below(place, "memory.swap.max");
            }
            "cgroup2" => facts.tracking = true,
            "cgroup" => {
                let known = options.split(',').filter(|o| !o.contains('=') && *o != "rw");
                let names: BTreeSet<String> = known.map(str::to_owned).collect();
                if names.contains("memory") {
                    let file = Path::new(place).join("memory.memsw.limit_in_bytes");
                    facts.swap |= file.exists();
                }
                facts.v1.extend(names);
            }
            _ => {}
        }
    }
    facts
}

/// The root group has no limits: look one level below.
fn swap_file_below(root: &str, file: &str) -> bool {
    let dirs = std::fs::read_dir(root).into_iter().flatten().flatten();
    dirs.take(256).any(|dir| dir.path().join(file).exists())
}

/// Configures an overlay that is never mounted.
pub fn lowerdir_plus() -> Probed {
    let fs = match fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(fs) => fs,
        Err(rustix::io::Errno::NODEV | rustix::io::Errno::NOSYS) => return Probed::Missing,
        Err(_) => return Probed::NotTried,
    };
    match fsconfig_set_string(&fs, c"lowerdir+", c"/") {
        Ok(()) => Probed::Works,
        Err(rustix::io::Errno::INVAL) => Probed::Missing,
        Err(_) => Probed::NotTried,
    }
}

/// The filesystem of the nearest existing directory above `path`.
pub fn space(path: &Path) -> Option<Space> {
    let existing = path.ancestors().find(|dir| dir.is_dir())?;
    let stat = rustix::fs::statfs(existing).ok()?;
    let block = u64::try_from(stat.f_bsize).ok()?;
    Some(Space {
        path: existing.to_owned(),
        filesystem: filesystem_name(u64::try_from(stat.f_type).unwrap_or(0)),
        available: stat.f_bavail.saturating_mul(block),
    })
}

/// A FUSE server that hangs never answers, so a thread asks.
pub fn lxcfs(dir: &Path) -> LxcfsFacts {
    const PATIENCE: Duration = Duration::from_secs(2);
    let (sender, receiver) = channel();
    let dir = dir.to_owned();
    // Nobody listens any more is fine; the thread ends with the process.
    let begun = thread::Builder::new().spawn(move || drop(sender.send(ask_lxcfs(&dir))));
    match begun.map(|_| receiver.recv_timeout(PATIENCE)) {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => LxcfsFacts::Hangs,
        Err(e) => LxcfsFacts::Dead(e.to_string()),
    }
}

fn ask_lxcfs(dir: &Path) -> LxcfsFacts {
    const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;
    match rustix::fs::statfs(dir) {
        Ok(stat) if stat.f_type == FUSE_SUPER_MAGIC => {}
        Ok(_) | Err(rustix::io::Errno::NOENT) => return LxcfsFacts::Missing,
        Err(e) => return LxcfsFacts::Dead(e.to_string()),
    }
    match std::fs::read(dir.join("proc/uptime")) {
        Ok(_) => LxcfsFacts::Answers,
        Err(e) => LxcfsFacts::Dead(e.to_string()),
    }
}

/// What the kernel says of its security modules, and whether guests are known to it.
pub fn module(sys: &Path) -> ModuleFacts {
    let selinux = sys.join("fs/selinux");
    if selinux.join("enforce").exists() {
        // The file takes contexts that the policy knows, and no others.
        let context = "system_u:system_r:container_t:s0:c1,c2";
        let file = std::fs::OpenOptions::new().write(true).open(selinux.join("context"));
        let known = file.and_then(|mut file| file.write_all(context.as_bytes()));
        return ModuleFacts::Selinux(known.is_ok());
    }
    let enabled = std::fs::read(sys.join("module/apparmor/parameters/enabled"));
    if !enabled.is_ok_and(|text| text.starts_with(b"Y")) {
        return ModuleFacts::None;
    }
    // Only root may read it.
    let list = std::fs::read_to_string(sys.join("kernel/security/apparmor/profiles")).ok();
    ModuleFacts::AppArmor(
        list.map(|list| list.lines().any(|line| line.starts_with("ocivisor-guest ("))),
    )
}

/// Name of a filesystem by its number (statfs(2)).
fn filesystem_name(magic: u64) -> String {
    match magic {
        0xef53 => "ext4".into(),
        0x5846_5342 => "xfs".into(),
        0x9123_683e => "btrfs".into(),
        0x0102_1994 => "tmpfs".into(),
        0x2fc1_2fc1 => "zfs".into(),
        0x6969 => "nfs".into(),
        0x794c_7630 => "overlay".into(),
        other => format!("{other:#x}"),
    }
}

/// Connects and hangs up.
pub fn socket(path: &Path) -> SocketFacts {
    match UnixStream::connect(path) {
        Ok(_) => SocketFacts::Accepts,
        Err(e) => match e.kind() {
            io::ErrorKind::NotFound => SocketFacts::Missing,
            io::ErrorKind::ConnectionRefused => SocketFacts::Dead,
            io::ErrorKind::PermissionDenied => SocketFacts::Denied,
            _ => SocketFacts::Odd(e.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_hierarchies_are_told_apart() {
        let facts = cgroups(
            "30 23 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755\n\
             31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             32 30 0:28 / /nowhere/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
             33 30 0:29 / /nowhere/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             34 30 0:30 / /nowhere/memory rw - cgroup cgroup rw,memory\n",
        );
        assert_eq!(facts.v2, None);
        assert!(facts.tracking);
        assert!(facts.v1.contains("cpu") && facts.v1.contains("memory"));
        assert!(!facts.v1.iter().any(|name| name.contains('=')));
    }

    #[test]
    fn sockets_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(socket(&path), SocketFacts::Missing);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(socket(&path), SocketFacts::Accepts);
        drop(listener);
        assert_eq!(socket(&path), SocketFacts::Dead);
    }
}
