//! A tool of the host's, in confinement: what it sees, and how this process becomes it.
//!
//! Its root directory is a small file system of its own, with the host's directories of programs and libraries,
//! read-only, what those read from `/etc`, and the tree it is to read. The files it is to write stay open, for they
//! may have no name, and of those no mount can be made; of `/proc` it has the one directory by which it finds them. There
//! is no `/dev`, no socket of the host's; the rest is as for any worker. Landlock says once more what may be written.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, Scope,
};
use ocivisor_datastore::worker::{Answer, FILES, FIRST_FILE, Job, Request, TREE, Unusable};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use crate::{Step, sys};

/// Where distributions have programs and libraries, below `/`; where two are one, one of them is a link.
const HOST: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu"];

/// What programs and their loader read besides.
const SETTINGS: &[&str] = &["ld.so.cache", "mke2fs.conf"];

/// Where programs are, a language, and that nothing tells of mounts here (e2fsprogs, `ismounted.c`).
const ENVIRONMENT: [&str; 3] =
    ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "EXT2FS_NO_MTAB_OK=1"];

/// Address space: what qemu-img reserves for its threads, and e2fsprogs for maps of the largest disks. Memory that is
/// used is bounded by the control group.
pub const ADDRESS_SPACE: u64 = 8 << 30;

/// A mount of one file or directory alone, with what is mounted below it.
pub fn clone_of(at: impl AsFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(at, path, flags)
}

/// An empty root directory.
pub fn root() -> rustix::io::Result<OwnedFd> {
    let made = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "1m"), ("nr_inodes", "64"), ("mode", "755")] {
        rustix::mount::fsconfig_set_string(made.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_create(made.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(made.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// Puts everything into the working directory, which is to be the root, while `/` is still the host's.
pub fn furnish(root: &OwnedFd, tree: Option<&OwnedFd>) -> io::Result<()> {
    let directory = |name: &str| rustix::fs::mkdirat(CWD, name, Mode::from_raw_mode(0o755));
    for name in HOST {
        let path = format!("/{name}");
        match rustix::fs::readlinkat(CWD, &path, Vec::new()) {
            Ok(target) => rustix::fs::symlinkat(target, CWD, *name)?,
            Err(Errno::INVAL) => {
                directory(name)?;
                of_the_host(&path, name)?;
            }
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    directory("etc")?;
    for name in SETTINGS {
        let path = format!("/etc/{name}");
        if rustix::fs::stat(&path).is_ok() {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            drop(rustix::fs::openat(CWD, &path[1..], flags, Mode::from_raw_mode(0o644))?);
            of_the_host(&path, &path[1..])?;
        }
    }
    directory(&FILES[1..])?;
    of_the_host("/proc/self/fd", &FILES[1..])?;
    if let Some(tree) = tree {
        directory(&TREE[1..])?;
        put(tree, &TREE[1..])?;
    }
    sys::read_only(root.as_fd(), sys::Reach::Alone)
}

fn of_the_host(path: &str, name: &str) -> io::Result<()> {
    let mount = clone_of(CWD, path)?;
    sys::read_only(mount.as_fd(), sys::Reach::AllBelow)?;
    Ok(put(&mount, name)?)
}

fn put(mount: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    rustix::mount::move_mount(mount, "", CWD, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Lets the process read and run what is in its root directory, and write these files, as far as the kernel has
/// Landlock.
pub fn landlock(files: &[File]) -> Result<(), RulesetError> {
    const NEWEST: ABI = ABI::V7;
    let read = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    // What cannot be opened is not allowed either.
    if let Ok(root) = PathFd::new("/") {
        rules = rules.add_rule(PathBeneath::new(root, read))?;
    }
    for file in files {
        rules = rules.add_rule(PathBeneath::new(file, write))?;
    }
    rules.restrict_self().map(drop)
}

/// Becomes the program of the request, with `files` open where it is told, and `said` for its words. Returns only if
/// that cannot be.
pub fn become_tool(request: &Request, mut files: Vec<File>, said: Option<&File>) -> Answer {
    if matches!(request.job(), Job::Tool { tree: true }) {
        // Without the mapping, and seen as a mount.
        drop(files.remove(0));
    }
    match execute(request, &files, said) {
        Ok(never) => match never {},
        Err(error) => Answer::unusable(&error),
    }
}

fn execute(request: &Request, files: &[File], said: Option<&File>) -> Result<Infallible, Unusable> {
    const STEP: &str = "run the tool";
    let strings = |all: &mut dyn Iterator<Item = &str>| {
        all.map(|text| CString::new(text).map_err(io::Error::from)).collect::<Result<Vec<_>, _>>()
    };
    let (program, argv) = what(request);
    let program = CString::new(program.as_os_str().as_bytes()).map_err(io::Error::from);
    let program = program.step(STEP)?;
    let argv = strings(&mut argv.iter().map(String::as_str)).step(STEP)?;
    let environment = strings(&mut ENVIRONMENT.into_iter()).step(STEP)?;

    // Descriptor 2 is /dev/null since this process began.
    let null = sys::out_of_the_way(rustix::stdio::stderr()).step(STEP)?;
    let said = said.map_or(null.as_fd(), AsFd::as_fd);
    let low = [(0, null.as_fd()), (1, null.as_fd()), (2, said)];
    let high = (FIRST_FILE..).zip(files.iter().map(AsFd::as_fd));
    // First all out of the way, for a file may have the number of another.
    let kept = low.into_iter().chain(high).map(|(n, file)| Ok((n, sys::out_of_the_way(file)?)));
    let kept = kept.collect::<io::Result<Vec<_>>>().step(STEP)?;
    for (number, file) in &kept {
        sys::keep_as(file.as_fd(), *number).step(STEP)?;
    }
    nix::unistd::execve(&program, &argv, &environment).step(STEP)
}

/// The program and its argv. Tests have it become something else.
fn what(request: &Request) -> (PathBuf, Vec<String>) {
    #[cfg(feature = "faults")]
    if let Some(instead) = crate::probe::instead(request) {
        return instead;
    }
    (request.program().to_owned(), request.argv().to_vec())
}
