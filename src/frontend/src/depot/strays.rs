//! What a build runs on when its driver was killed.
//!
//! buildah and its helpers die with the driver, but the program of a `RUN` is in a session and a PID namespace of its own and
//! nobody's child. It has a mount namespace, too, whose root lies in the build's directory: by that it is found.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Most bytes of one `mountinfo` that are looked at.
const MAX: u64 = 4 << 20;
/// How long one that was killed may take to be gone, with the files that it had open.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends every process that has mounts of that directory, in a mount namespace that is not ours, and waits for its end.
/// What our user may not look at is not ours to end.
pub(super) fn end(dir: &Path) -> io::Result<()> {
    let Some(place) = Place::of(dir, &read("/proc/self/mountinfo".as_ref())?) else {
        return Ok(());
    };
    let own = fs::read_link("/proc/self/ns/mnt")?;
    let mut ending = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let pid = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
        let Some(pid) = pid else { continue };
        // Held before it is looked at: its number may be another's a moment later.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // It may have ended meanwhile, or be somebody else's.
        let elsewhere = fs::read_link(entry.path().join("ns/mnt")).is_ok_and(|ns| ns != own);
        if elsewhere && read(&entry.path().join("mountinfo")).is_ok_and(|text| place.is_in(&text)) {
            match pidfd_send_signal(&process, Signal::KILL) {
                Ok(()) => ending.push(process),
                // Gone, or of a program that became another user.
                Err(Errno::SRCH | Errno::PERM) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    let deadline = Instant::now() + PATIENCE;
    for process in ending {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()));
        let left = left.map_err(|_| io::ErrorKind::InvalidInput)?;
        // A descriptor of a process is readable from its end on, pidfd_open(2). One that does not end in time
        // is in nobody's way but of the removal, which then says so.
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left))?;
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// A directory as every mount namespace calls it: a file system, and the path from its root.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    device: Vec<u8>,
    path: PathBuf,
}

/// Device, root and mount point of a line (proc_pid_mountinfo(5)).
fn fields(line: &[u8]) -> Option<(&[u8], PathBuf, PathBuf)> {
    let mut fields = line.split(|c| *c == b' ').skip(2);
    let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
    Some((device, plain(root), plain(point)))
}

/// Blanks, newlines and backslashes are written as `\` and three octal digits.
fn plain(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let code = |digits: &[u8]| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok();
        match (first, after.get(..3).and_then(code)) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &after[3..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&out))
}

impl Place {
    /// By the mounts of a namespace in which the directory has that path, which has no links.
    fn of(dir: &Path, mountinfo: &[u8]) -> Option<Self> {
        let mounts = mountinfo.split(|c| *c == b'\n').filter_map(fields);
        let around = mounts.filter(|(_, _, point)| dir.starts_with(point));
        // The innermost; of several at one point the last.
        let (device, root, point) =
            around.max_by_key(|(_, _, point)| point.components().count())?;
        let path = root.join(dir.strip_prefix(point).ok()?);
        Some(Self { device: device.to_vec(), path })
    }

    fn is_in(&self, mountinfo: &[u8]) -> bool {
        let mounts = mountinfo.split(|c| *c == b'\n').filter_map(fields);
        mounts
            .into_iter()
            .any(|(device, root, _)| device == self.device && root.starts_with(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    #[test]
    fn places_are_those_of_the_file_system() {
        let text = b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 8:2 / /var/lib rw - ext4 /dev/b rw\n\
            3 1 8:3 /sub /var/lib/one\\040two rw - ext4 /dev/c rw\n";
        let place = |path: &str| {
            let place = Place::of(Path::new(path), text).unwrap();
            (String::from_utf8(place.device).unwrap(), place.path.display().to_string())
        };
        assert_eq!(place("/etc/x"), ("8:1".into(), "/etc/x".into()));
        assert_eq!(place("/var/lib/one/x"), ("8:2".into(), "/one/x".into()));
        assert_eq!(place("/var/lib/one two/x"), ("8:3".into(), "/sub/x".into()));
        let in_it = |path: &str, line: &[u8]| Place::of(Path::new(path), text).unwrap().is_in(line);
        assert!(in_it("/var/lib/one/x", b"9 8 8:2 /one/x/y / rw - ext4 /dev/b rw\n"));
        assert!(!in_it("/var/lib/one/x", b"9 8 8:2 /one/xy / rw - ext4 /dev/b rw\n"));
        assert!(!in_it("/var/lib/one/x", b"9 8 8:1 /one/x/y / rw - ext4 /dev/a rw\n"));
        assert!(!in_it("/var/lib/one/x", b"\n8\n"));
    }

    struct Ends(Child);

    impl Drop for Ends {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A process with a mount of the directory in a namespace of its own.
    #[expect(clippy::disallowed_methods, reason = "what a build leaves, in a test")]
    fn stray(dir: &Path) -> Ends {
        let script = "mount --bind \"$0\" \"$0\" && echo ready && exec sleep 600";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(dir);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
        Ends(child)
    }

    #[test]
    fn what_a_build_left_running_ends_and_nothing_else() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let at = |name: &str| top.join(name);
        for dir in [".work-1/root", ".work-11/root"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        let (mut ours, mut other) = (stray(&at(".work-1/root")), stray(&at(".work-11/root")));
        end(&at(".work-1")).unwrap();
        assert!(ours.0.try_wait().unwrap().is_some(), "it runs on");
        assert_eq!(other.0.try_wait().unwrap(), None);
    }
}
