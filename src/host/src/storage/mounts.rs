//! What is mounted where: /proc/self/mountinfo, unmounting, and who is in the way.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{major, minor};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::fs::io_error;

/// One line of mountinfo, proc(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// `major:minor` of the filesystem.
    pub(super) device: String,
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// What the filesystem is.
    pub(super) kind: String,
}

impl Mount {
    /// Whether another machine or a process answers for its files, so that whoever asks may wait for ever.
    pub(super) fn is_share(&self) -> bool {
        const SHARES: [&str; 12] = [
            "9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "lustre", "nfs", "nfs4", "ocfs2",
            "orangefs", "smb3",
        ];
        SHARES.contains(&self.kind.as_str()) || self.kind.starts_with("fuse")
    }
}

/// All mounts that this process sees, in the order they lie on each other.
pub(super) fn all() -> Result<Vec<Mount>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read(path).map_err(|e| io_error("read", path, &e))?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// Mounts at or below `dir`.
pub(super) fn below(dir: &Path) -> Result<Vec<Mount>> {
    Ok(all()?.into_iter().filter(|m| m.point.starts_with(dir)).collect())
}

/// Those of them that a path is on, as the kernel writes it: several, if they lie over each other. Nothing is asked of them.
pub(super) fn of_path<'a>(mounts: &'a [Mount], path: &Path) -> Vec<&'a Mount> {
    let length = |m: &Mount| m.point.as_os_str().len();
    let mut on: Vec<&Mount> = mounts.iter().filter(|m| path.starts_with(&m.point)).collect();
    let longest = on.iter().map(|m| length(m)).max();
    on.retain(|m| Some(length(m)) == longest);
    on
}

/// Fields are divided by blanks: mount id, parent id, device, root within it, mount point, options, any number of tags,
/// a hyphen, type of the filesystem, more.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let point = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.nth(1)?)));
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.next()?).into_owned();
    Some(Mount { device, point, kind })
}

/// Whether the filesystem of this device is mounted, and cannot be written: the options of the superblock come last.
pub(super) fn is_only_read(device: u64) -> bool {
    let device = format!("{}:{}", major(device), minor(device));
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let of_it = |line: &&[u8]| line.split(|b| *b == b' ').nth(2) == Some(device.as_bytes());
    let mut options = text.split(|b| *b == b'\n').filter(of_it).map(|line| {
        let options = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
        options.split(|b| *b == b',').next() == Some(b"ro")
    });
    options.next().is_some_and(|first| first && options.all(|other| other))
}

/// Blank, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) =
            (first, tail)
        {
            out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

/// Unmounts all at and below `dir`, those on top first, waiting until `deadline` while busy.
pub(super) fn unmount_below(dir: &Path, deadline: Instant) -> Result<()> {
    let mut last: Option<(Mount, Errno)> = None;
    let failed = |e: &io::Error| io_error("unmount", dir, e);
    let done = until(deadline, || {
        while let Some(top) = below(dir).map_err(io::Error::other)?.pop() {
            match unmount(&top.point, UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                // Busy, or another one unmounted it meanwhile: look again.
                Err(e @ (Errno::BUSY | Errno::INVAL | Errno::NOENT)) => {
                    last = Some((top, e));
                    return Ok(false);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    });
    match (done.map_err(|e| failed(&e))?, last) {
        (false, Some((top, Errno::BUSY))) => {
            Err(busy(&top.point.display().to_string(), &top.point, None))
        }
        (false, Some((_, e))) => Err(failed(&e.into())),
        _ => Ok(()),
    }
}

/// Removes a directory that holds at most empty directories. Never more: if something is mounted
/// there after all, a recursive removal would eat a disk.
pub(super) fn remove_mount_points(dir: &Path) -> io::Result<()> {
    let absent_is_fine = |done: io::Result<()>| match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {
            for entry in fs::read_dir(dir)? {
                absent_is_fine(fs::remove_dir(entry?.path()))?;
            }
            absent_is_fine(fs::remove_dir(dir))
        }
        other => absent_is_fine(other),
    }
}

/// `what` cannot be let go because of others; names them. Copies of a mount in other namespaces do
/// not hinder unmounting, but they keep the `device`.
pub(super) fn busy(what: &str, point: &Path, device: Option<&str>) -> Error {
    let users = users(point, device);
    let by = if users.is_empty() { "the kernel".to_owned() } else { users.join(", ") };
    Error::new(ErrorKind::Timeout, format!("{what} is still in use by {by}"))
        .hint("end what uses it and try again")
}

/// Up to three processes with a directory or file open below the mount point, or that have the
/// filesystem `device` mounted in a mount namespace of their own.
fn users(point: &Path, device: Option<&str>) -> Vec<String> {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let proc = entry.path();
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        let inside = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.starts_with(point));
        let uses = if fs::read_link(proc.join("ns/mnt")).ok() == own {
            let fds = fs::read_dir(proc.join("fd")).into_iter().flatten().flatten();
            ["cwd", "root"].iter().any(|l| inside(proc.join(l)))
                || fds.into_iter().any(|fd| inside(fd.path()))
        } else {
            let view = fs::read(proc.join("mountinfo")).unwrap_or_default();
            view.split(|b| *b == b'\n').filter_map(parse).any(|m| Some(m.device.as_str()) == device)
        };
        if uses {
            let comm = fs::read(proc.join("comm")).unwrap_or_default();
            found.push(format!("process {pid} ({})", String::from_utf8_lossy(&comm).trim()));
        }
        if found.len() == 3 {
            break;
        }
    }
    found
}

/// Asks `condition` again and again; false if `deadline` passed before it held.
pub(super) fn until(
    deadline: Instant,
    mut condition: impl FnMut() -> io::Result<bool>,
) -> io::Result<bool> {
    let mut pause = Duration::from_micros(200);
    loop {
        if condition()? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        #[expect(clippy::disallowed_methods, reason = "the kernel tells of none of these changes")]
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_with_escapes() {
        let line =
            br"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime master:1 shared:2 - ext3 /dev/root rw";
        let want = Mount { device: "98:0".into(), point: r"/mnt 2\x".into(), kind: "ext3".into() };
        assert_eq!(parse(line), Some(want));
        assert_eq!(parse(b"36 35 98:0 / / rw - ext4").unwrap().point, Path::new("/"));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0 /"), None);
    }

    #[test]
    fn a_path_is_on_the_mounts_that_lie_deepest() {
        let mount = |device: &str, point: &str, kind: &str| Mount {
            device: device.into(),
            point: point.into(),
            kind: kind.into(),
        };
        let all = [
            mount("8:1", "/", "ext4"),
            mount("0:50", "/srv", "nfs4"),
            mount("0:51", "/srv", "fuse.glusterfs"),
            mount("0:52", "/srv/deep", "tmpfs"),
        ];
        let on = |path: &str| -> Vec<&str> {
            of_path(&all, Path::new(path)).iter().map(|m| m.device.as_str()).collect()
        };
        assert_eq!(on("/srv/disk"), ["0:50", "0:51"]);
        assert_eq!((on("/srv/deep/disk"), on("/srvdisk")), (vec!["0:52"], vec!["8:1"]));
        assert_eq!(on("relative"), Vec::<&str>::new());
        assert_eq!(all.each_ref().map(Mount::is_share), [false, true, true, false]);
    }

    #[test]
    fn waiting_ends_with_the_condition_or_the_deadline() {
        let mut left = 3;
        let far = Instant::now() + Duration::from_secs(60);
        let counted = until(far, || {
            left -= 1;
            Ok(left == 0)
        });
        assert!(counted.unwrap());
        assert!(!until(Instant::now(), || Ok(false)).unwrap());
    }
}
