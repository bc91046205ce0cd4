//! The way into confinement, between fork(2) and execve(2).
//!
//! ```text
//!   groups of the VM's servers ─► namespaces ─► a root directory of its own ─► limits ─► a user of the VM's own range,
//!   no capability ─► listener of its openings to us ─► the list of system calls ─► exec
//! ```
//!
//! The root directory holds the host's programs and libraries, to be read, and one empty file: QEMU wants the place of an
//! export to be a regular file, libfuse takes a place `/dev/fd/N` for the descriptor N itself (fuse.h,
//! `fuse_session_mount`). The two meet in a file of that name. So the server needs no right to mount.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::FdFlags;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags};
use seccompiler::BpfProgram;

/// Where distributions have programs and libraries, below `/`; where two are one, one of them is a link.
const HOST: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu"];
/// Where the loader looks first.
const LOADER: &str = "/etc/ld.so.cache";

/// Most memory that is its own: caches of tables, threads' stacks, and what QEMU keeps per image.
pub(super) const DATA: u64 = 512 << 20;
/// Of a thread; QEMU makes up to 64.
const STACK: u64 = 1 << 20;
/// The files of the longest chain, and what QEMU has besides.
const DESCRIPTORS: u64 = 256;

/// What is got ready before the fork, so that nothing is allocated after it.
#[derive(Debug)]
pub(super) struct Room {
    /// Links to make in the root directory, and what to make visible there.
    links: Vec<(CString, CString)>,
    dirs: Vec<(CString, CString)>,
    loader: Option<CString>,
    /// The place of the export, without its first slash.
    place: CString,
    procs: Vec<fs::File>,
    user: u32,
    /// Where the listener is sent.
    gate: OwnedFd,
    /// What the program keeps open.
    kept: Vec<OwnedFd>,
    filters: Vec<BpfProgram>,
    asks: BpfProgram,
}

impl Room {
    /// For a program of this user, in the control groups that `procs` belong to, which keeps these descriptors and has
    /// the file `place`.
    pub(super) fn new(
        user: u32,
        procs: Vec<fs::File>,
        gate: OwnedFd,
        kept: Vec<OwnedFd>,
        place: &str,
    ) -> io::Result<Self> {
        let (mut links, mut dirs) = (Vec::new(), Vec::new());
        for name in HOST {
            let path = format!("/{name}");
            let (inner, outer) = (CString::new(*name)?, CString::new(path.as_str())?);
            match fs::read_link(&path) {
                Ok(target) => links.push((CString::new(target.as_os_str().as_bytes())?, inner)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(_) => dirs.push((outer, inner)),
            }
        }
        let loader = fs::exists(LOADER)?.then(|| CString::new(LOADER)).transpose()?;
        let (filters, asks) = super::filter::programs()?;
        let place = CString::new(place.trim_start_matches('/'))?;
        Ok(Self { links, dirs, loader, place, procs, user, gate, kept, filters, asks })
    }

    /// Has `command` go this way when it is spawned. Between its fork and its end nothing may wait for an answer to an
    /// opening: the spawning thread waits for its exec.
    pub(super) fn confine(self, command: &mut Command) {
        // SAFETY: runs in the child of a process with many threads, so only what signal-safety(7) allows: it makes
        // system calls on what was made before, and neither allocates nor locks.
        unsafe { command.pre_exec(move || self.enter()) };
    }

    fn enter(&self) -> io::Result<()> {
        // SAFETY: the call takes numbers only and closes nothing now.
        let closed = unsafe {
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
        };
        if closed != 0 {
            return Err(io::Error::last_os_error());
        }
        for fd in &self.kept {
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        for procs in &self.procs {
            // 0 is whoever writes it.
            rustix::io::write(procs, b"0")?;
        }
        rustix::process::setsid()?;
        let apart = UnshareFlags::NEWNS
            | UnshareFlags::NEWNET
            | UnshareFlags::NEWIPC
            | UnshareFlags::NEWUTS
            | UnshareFlags::NEWCGROUP;
        // SAFETY: the flags do not unshare the descriptor table, which is what makes it unsafe.
        unsafe { rustix::thread::unshare_unsafe(apart) }?;
        self.furnish()?;
        for (resource, most) in [
            (Resource::Core, 0),
            (Resource::Data, DATA),
            (Resource::Stack, STACK),
            (Resource::Nofile, DESCRIPTORS),
            (Resource::Memlock, 0),
        ] {
            setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
        }
        for capability in CapabilitySet::all().iter() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // One that this kernel does not know.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let (uid, gid) = (Uid::from_raw(self.user), Gid::from_raw(self.user));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        rustix::thread::set_capabilities(None, none)?;
        rustix::thread::set_no_new_privs(true)?;
        let listener = apply(&self.asks, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
        let listener = i32::try_from(listener).map_err(|_| io::ErrorKind::InvalidData)?;
        // SAFETY: the kernel just made this descriptor, and nobody else knows it.
        let listener = unsafe { OwnedFd::from_raw_fd(listener) };
        hand_over(self.gate.as_fd(), listener.as_fd())?;
        drop(listener);
        for filter in &self.filters {
            apply(filter, 0)?;
        }
        Ok(())
    }

    /// Makes the root directory, and lets go of the host's (pivot_root(2), NOTES).
    fn furnish(&self) -> io::Result<()> {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", private)?;
        let root = small_root()?;
        let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&root, c"", CWD, c"/", onto)?;
        rustix::process::fchdir(&root)?;
        let directory = |name: &CStr| rustix::fs::mkdirat(CWD, name, Mode::from_raw_mode(0o755));
        for (target, name) in &self.links {
            rustix::fs::symlinkat(target.as_c_str(), CWD, name.as_c_str())?;
        }
        for (path, name) in &self.dirs {
            directory(name)?;
            show(path, name)?;
        }
        if let Some(path) = &self.loader {
            directory(c"etc")?;
            empty_file(c"etc/ld.so.cache")?;
            show(path, c"etc/ld.so.cache")?;
        }
        directory(c"dev")?;
        directory(c"dev/fd")?;
        empty_file(&self.place)?;
        restrict(root.as_fd(), libc::MOUNT_ATTR_RDONLY, 0)?;
        rustix::process::pivot_root(c".", c".")?;
        // The old root lies on top of the new one now.
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        Ok(rustix::process::chdir(c"/")?)
    }
}

fn small_root() -> io::Result<OwnedFd> {
    let made = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [(c"size", c"1m"), (c"nr_inodes", c"64"), (c"mode", c"755")] {
        rustix::mount::fsconfig_set_string(made.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_create(made.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(rustix::mount::fsmount(made.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
}

/// Shows a file or directory of the host, only to be read.
fn show(path: &CStr, name: &CStr) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    let only = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    restrict(tree.as_fd(), only, libc::AT_RECURSIVE)?;
    let onto = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(&tree, c"", CWD, name, onto)?)
}

fn empty_file(name: &CStr) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(rustix::fs::openat(CWD, name, flags, Mode::from_raw_mode(0o644))?);
    Ok(())
}

fn restrict(mount: BorrowedFd<'_>, set: u64, reach: libc::c_int) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a terminated string and `attr` a live struct of the size that is passed; the kernel only
    // reads both.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | reach,
            std::ptr::from_ref(&attr),
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Applies a filter of system calls to this thread, the only one.
fn apply(filter: &BpfProgram, flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let len = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // Both libraries have the kernel's layout of an instruction.
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel reads one program, of as many instructions as the vector has.
    let done = unsafe {
        let how = libc::SECCOMP_SET_MODE_FILTER;
        libc::syscall(libc::SYS_seccomp, how, flags, std::ptr::from_ref(&program))
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

fn hand_over(gate: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights = [listener];
    if !control.push(SendAncillaryMessage::ScmRights(&rights)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    rustix::net::sendmsg(gate, &[IoSlice::new(b"l")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
