//! A root directory of its own for what builds a Dockerfile.
//!
//! buildah opens for a user's Dockerfile what its own user may open. Whether it should have is decided by buildah, and has been
//! decided wrongly more than once: a mount from a stage led through a link to the machine's own files (CVE-2024-1753), so did
//! names of cache mounts (CVE-2024-9675) and races of stages (CVE-2024-11218). So it runs where nothing is that it may not show: its
//! root directory has programs, what they need to reach a registry, and the directory of this one build ([`WORK`]).
//!
//! ```text
//! driver                                      oneadmin
//!   buildah unshare                           makes a user namespace with oneadmin's ids of /etc/subuid
//!     ocivisor one builder                    our own program in it: namespaces of mounts, processes and IPC; the new root
//!       buildah build …                       the first process there, in its own /proc; with it all others end
//! ```
//!
//! Our own program in the middle, for it takes a process within the user namespace that is not buildah's. It gets the
//! order on its standard input and believes nothing of the build's directory: what lies there was perhaps made by a
//! Dockerfile, and is mounted whole, never opened by name. The new root is made before buildah begins.
//!
//! Not taken along, on purpose: homes, so no login of a registry; `/etc/containers/storage.conf`, which names other stores; keys of
//! TLS; sockets of any daemon; other processes (`/proc` shows the build's alone).
//!
//! As root there is no user namespace. That is for tests, and a build is not safe from the machine's root there: it is the same user.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{CWD, MemfdFlags, memfd_create};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change,
    move_mount, open_tree,
};
use rustix::process::{Signal, geteuid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::fault::failed;
use crate::sys::{self, Reach, Way};
use crate::tool::{self, Tool};

/// Where the directory of the build is.
pub(super) const WORK: &str = "/build";
/// Where the build keeps what is not in its stores: directories of its own below [`WORK`].
pub(super) const HOME: &str = "/build/home";
pub(super) const TEMPORARY: &str = "/build/tmp";

/// Programs and their libraries: directories, or links to such ones in `/usr`.
const PROGRAMS: [&str; 7] = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];

/// What a runtime gives to containers, and what makes networks and file systems without root.
const DEVICES: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/fuse",
    "/dev/net/tun",
];

/// Who is who, where registries are, and whose certificates count. Each is copied, wherever a link of that name leads.
const FILES: [&str; 24] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/subuid",
    "/etc/subgid",
    "/etc/nsswitch.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/resolv.conf",
    // Where the name servers are if that one names a resolver on this machine, which containers do not reach.
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/localtime",
    "/etc/ld.so.cache",
    "/etc/containers/registries.conf",
    "/etc/containers/containers.conf",
    "/etc/containers/seccomp.json",
    // Where distributions have the certificates of authorities.
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];

/// Directories of such files: how their names end, and how many directories lie between.
const FOLDERS: [(&str, &str, usize); 5] = [
    ("/etc/containers/registries.conf.d", "conf", 0),
    ("/etc/containers/registries.d", "yaml", 0),
    ("/etc/containers/containers.conf.d", "conf", 0),
    // Of authorities (.crt) and not of ourselves (.cert, .key), containers-certs.d(5).
    ("/etc/containers/certs.d", "crt", 1),
    ("/etc/docker/certs.d", "crt", 1),
];

/// Longest of these files, most of a folder, longest order.
const FILE_MAX: u64 = 4 << 20;
const FOLDER_MAX: usize = 1000;
const ORDER_MAX: u64 = 1 << 20;

/// Variables that the build has from us. The names with this prefix tell buildah that it is in its user namespace.
const CONFIGURED: &str = "_CONTAINERS_";
const VARIABLES: [&str; 10] = [
    "BUILDAH_RUNTIME",
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
    "TZ",
];

/// A program to be run in a root directory of its own.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    /// The directory that it works in, without a link in its path. It finds it as [`WORK`].
    pub work: PathBuf,
    /// Program and arguments, as they are called there.
    pub argv: Vec<String>,
}

impl Order {
    /// Has it carried out by a process of its own, and waits.
    ///
    /// # Errors
    /// As [`Tool::run`].
    pub fn run(&self, builder: &[OsString], buildah: &Path, timeout: Duration) -> Result<()> {
        if builder.is_empty() {
            return Err(Error::new(ErrorKind::Unsupported, "nothing builds Dockerfiles here"));
        }
        // Else it has no ids but its own; buildah knows where they are listed.
        let unshare = [buildah.as_os_str(), OsStr::new("unshare")];
        let unshare = if geteuid().is_root() { &[][..] } else { &unshare[..] };
        let argv: Vec<&OsStr> =
            unshare.iter().copied().chain(builder.iter().map(OsString::as_os_str)).collect();
        let stdin = Some(self.written().map_err(|e| failed("write", "an order".as_ref(), &e))?);
        Tool { argv: &argv, stdin, timeout, most: 0, fine: 0 }.run_with_strays().map(drop)
    }

    fn written(&self) -> io::Result<File> {
        let mut file = File::from(memfd_create("order", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        file.rewind()?;
        Ok(file)
    }

    fn carry_out(&self) -> Result<u8> {
        let Some((program, arguments)) = self.argv.split_first() else {
            return Err(Error::new(ErrorKind::Invalid, "an order without a program"));
        };
        // buildah waits for us, and would go with the driver.
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|e| failed("follow", "the driver".as_ref(), &e.into()))?;
        prepare(&self.work).map_err(own_root)?;
        let (mut taken, steps) = io::pipe().map_err(|e| failed("make", "a pipe".as_ref(), &e))?;
        let path = |path: &Path| {
            CString::new(path.as_os_str().as_bytes())
                .map_err(|e| Error::new(ErrorKind::Invalid, format!("{}: {e}", path.display())))
        };
        let way = Way { proc: path(&self.work.join("proc"))?, root: path(&self.work)?, steps };
        #[expect(clippy::disallowed_methods, reason = "the other end of this crate's tools")]
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(variables()).stdin(Stdio::null());
        sys::be_the_first(&mut command, way);
        let ended = command.status();
        drop(command);
        let status = ended.map_err(|e| {
            let mut steps = Vec::new();
            // What came says how far it went; nothing is as telling as nothing.
            let _ = taken.read_to_end(&mut steps);
            match steps.last() {
                Some(&Way::PROGRAM) => failed("run", program.as_ref(), &e),
                Some(&Way::ROOT) => own_root(failed("go to", &self.work, &e)),
                // user_namespaces(7).
                _ => own_root(failed("mount", "/proc".as_ref(), &e))
                    .hint("build where nothing hides parts of /proc, as containers do"),
            }
        })?;
        let code = status.code().or_else(|| Some(status.signal()? + 128));
        Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
    }
}

fn own_root(error: Error) -> Error {
    error.context("give the build a root of its own")
}

/// Carries out the order on standard input. For a process of one thread that does nothing else; it is not to be used for
/// anything afterwards, for its root directory is another.
///
/// # Errors
/// The program did not run. Its own failure is an exit code.
pub fn builder() -> Result<u8> {
    let mut text = Vec::new();
    let read = io::stdin().lock().take(ORDER_MAX).read_to_end(&mut text);
    read.map_err(|e| failed("read", "an order".as_ref(), &e))?;
    let order: Order = serde_json::from_slice(&text)
        .map_err(|e| Error::new(ErrorKind::Invalid, format!("an order for a build: {e}")))?;
    order.carry_out()
}

fn variables() -> impl Iterator<Item = (OsString, OsString)> {
    let kept = std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|n| n.starts_with(CONFIGURED) || VARIABLES.contains(&n))
    });
    let own = [
        ("PATH", tool::DIRS.join(":")),
        ("HOME", HOME.to_owned()),
        ("TMPDIR", TEMPORARY.to_owned()),
        ("XDG_RUNTIME_DIR", "/run/user".to_owned()),
        ("LC_ALL", "C".to_owned()),
    ];
    kept.chain(own.map(|(name, value)| (name.into(), value.into())))
}

/// Leaves the machine's namespaces and makes the new root over the build's directory. Children are the first in a PID namespace; they
/// mount its `/proc`, while the machine's is in sight, and go there ([`Way`]).
fn prepare(work: &Path) -> Result<()> {
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC;
    unshare(own).map_err(|e| failed("leave the namespaces of", work, &e.into()))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(|e| failed("take", "/".as_ref(), &e.into()))?;
    let parts = Parts::of_the_machine(work)?;
    // On the very directory: there must be one, and what is below is mounted elsewhere.
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", work, "tmpfs", flags, c"size=64m,mode=755")
        .map_err(|e| failed("mount", work, &e.into()))?;
    parts.put(work)
}

/// What there is to be of the machine's, held before the new root covers anything.
#[derive(Default)]
struct Parts {
    files: Vec<(PathBuf, Vec<u8>)>,
    links: Vec<(PathBuf, PathBuf)>,
    mounts: Vec<(PathBuf, Kind, OwnedFd)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

impl Parts {
    fn of_the_machine(work: &Path) -> Result<Self> {
        let mut parts = Self::default();
        for dir in PROGRAMS {
            let dir = Path::new(dir);
            match dir.symlink_metadata() {
                Ok(meta) if meta.is_symlink() => {
                    let target = dir.read_link().map_err(|e| failed("read", dir, &e))?;
                    parts.links.push((dir.to_owned(), target));
                }
                Ok(_) => parts.mount(dir, dir, Kind::Directory, Some(Reach::AllBelow))?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed("inspect", dir, &e)),
            }
        }
        // Its control groups stay what they are: a runtime makes groups of its own.
        parts.mount("/sys".as_ref(), "/sys".as_ref(), Kind::Directory, Some(Reach::Alone))?;
        for device in DEVICES.map(Path::new).into_iter().filter(|device| device.exists()) {
            parts.mount(device, device, Kind::File, None)?;
        }
        parts.mount(work, WORK.as_ref(), Kind::Directory, None)?;
        for file in FILES {
            parts.file(file.into())?;
        }
        for (dir, ending, depth) in FOLDERS {
            parts.folder(dir.as_ref(), ending, depth)?;
        }
        let links = [
            ("/tmp", TEMPORARY),
            ("/var/tmp", TEMPORARY),
            ("/dev/fd", "/proc/self/fd"),
            ("/dev/stdin", "/proc/self/fd/0"),
            ("/dev/stdout", "/proc/self/fd/1"),
            ("/dev/stderr", "/proc/self/fd/2"),
        ];
        parts.links.extend(links.map(|(name, target)| (name.into(), target.into())));
        Ok(parts)
    }

    fn mount(&mut self, from: &Path, to: &Path, kind: Kind, limit: Option<Reach>) -> Result<()> {
        // With what is mounted below: in a user namespace it cannot be taken away.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let tree = open_tree(CWD, from, flags).map_err(|e| failed("take", from, &e.into()))?;
        if let Some(reach) = limit {
            let limited = sys::read_only(tree.as_fd(), reach);
            limited.map_err(|e| failed("protect", from, &e))?;
        }
        self.mounts.push((to.to_owned(), kind, tree));
        Ok(())
    }

    /// Takes a small file, if it is there and may be read.
    fn file(&mut self, path: PathBuf) -> Result<()> {
        use io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|f| f.take(FILE_MAX + 1).read_to_end(&mut bytes)) {
            Ok(n) if n as u64 > FILE_MAX => {
                let text = format!("{} has more than {FILE_MAX} bytes", path.display());
                Err(Error::new(ErrorKind::Host, text))
            }
            Ok(_) => {
                self.files.push((path, bytes));
                Ok(())
            }
            Err(e)
                if [NotFound, PermissionDenied, NotADirectory, IsADirectory]
                    .contains(&e.kind()) =>
            {
                Ok(())
            }
            Err(e) => Err(failed("read", &path, &e)),
        }
    }

    fn folder(&mut self, dir: &Path, ending: &str, depth: usize) -> Result<()> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
        for entry in entries.take(FOLDER_MAX) {
            let path = entry.map_err(|e| failed("read", dir, &e))?.path();
            if depth > 0 {
                self.folder(&path, ending, depth - 1)?;
            } else if path.extension().is_some_and(|found| found == ending) {
                self.file(path)?;
            }
        }
        Ok(())
    }

    /// Puts everything below the new root.
    fn put(self, root: &Path) -> Result<()> {
        let Self { files, links, mounts } = self;
        let make = |path: &Path| {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(path)
                .map_err(|e| failed("make", path, &e))
        };
        let at = |path: &Path| -> Result<PathBuf> {
            let path = root.join(path.strip_prefix("/").unwrap_or(path));
            path.parent().map_or(Ok(()), make)?;
            Ok(path)
        };
        for (path, kind, tree) in mounts {
            let point = at(&path)?;
            match kind {
                Kind::Directory => make(&point)?,
                Kind::File => {
                    File::create_new(&point).map(drop).map_err(|e| failed("make", &path, &e))?;
                }
            }
            move_mount(tree, "", CWD, &point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(|e| failed("mount", &path, &e.into()))?;
        }
        for (path, bytes) in files {
            let written = File::create_new(at(&path)?).and_then(|mut file| file.write_all(&bytes));
            written.map_err(|e| failed("write a copy of", &path, &e))?;
        }
        for (path, target) in links {
            symlink(target, at(&path)?).map_err(|e| failed("make", &path, &e))?;
        }
        for dir in ["/proc", "/run/user"] {
            make(&at(dir.as_ref())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
