//! System calls that neither rustix nor nix wraps safely: `mount_setattr`, the loop ioctls, and a
//! child whose only purpose is to be in a new user namespace.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct mount_attr`, mount_setattr(2).
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct MountAttr {
    pub(super) set: u64,
    pub(super) clear: u64,
    pub(super) propagation: u64,
    pub(super) userns_fd: u64,
}

/// Changes the mount that `mount` is the root of.
pub(super) fn mount_setattr(mount: BorrowedFd<'_>, attr: &MountAttr) -> io::Result<()> {
    let path = c"";
    // SAFETY: the path is a terminated string and `attr` a live struct of the size that is passed;
    // the kernel only reads both.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            path.as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct loop_info64`, loop(4).
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct LoopInfo {
    pub(super) device: u64,
    pub(super) inode: u64,
    /// `new_encode_dev` of the device that it is bound to, if it is a device; else 0.
    pub(super) rdevice: u64,
    offset: u64,
    /// Bytes of the file that are shown; 0 is all.
    pub(super) size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub(super) flags: u32,
    pub(super) file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`, loop(4).
#[repr(C)]
#[derive(Debug)]
pub(super) struct LoopConfig {
    pub(super) fd: u32,
    pub(super) block_size: u32,
    pub(super) info: LoopInfo,
    reserved: [u64; 8],
}

impl LoopConfig {
    pub(super) fn zeroed() -> Self {
        // SAFETY: the struct is integers only, for which all zeroes is a value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }
}

const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_ADD: libc::c_ulong = 0x4C80;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;

/// Makes the loop device of this number; EEXIST if it is there.
pub(super) fn loop_add(control: &File, number: u32) -> io::Result<()> {
    // SAFETY: this request takes a number.
    let made =
        unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_ADD as _, libc::c_long::from(number)) };
    if made >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Number of a loop device that was free a moment ago.
pub(super) fn loop_get_free(control: &File) -> io::Result<u32> {
    // SAFETY: this request takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    u32::try_from(number).map_err(|_| io::Error::last_os_error())
}

/// Binds a loop device; EBUSY if it is bound.
pub(super) fn loop_configure(device: &File, config: &LoopConfig) -> io::Result<()> {
    let config = std::ptr::from_ref(config);
    // SAFETY: the kernel reads one `struct loop_config`, which `config` points to.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, config) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Unbinds a loop device when its last user is gone; ENXIO if it is not bound.
pub(super) fn loop_clear(device: &File) -> io::Result<()> {
    // SAFETY: this request takes no argument.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD as _) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What a loop device is bound to; ENXIO if to nothing.
pub(super) fn loop_status(device: &File) -> io::Result<LoopInfo> {
    let mut info = MaybeUninit::<LoopInfo>::zeroed();
    // SAFETY: the kernel writes one `struct loop_info64`, for which `info` has room.
    let done =
        unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64 as _, info.as_mut_ptr()) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: integers only, zeroed above and written by the kernel.
    Ok(unsafe { info.assume_init() })
}

/// A child in a new user namespace that waits to be killed; dropping kills and reaps it.
#[derive(Debug)]
pub(super) struct NamespaceHolder {
    pub(super) pid: libc::pid_t,
}

impl NamespaceHolder {
    /// Makes the child.
    ///
    /// The process is multi-threaded, so the child may only do what signal-safety(7) allows, and
    /// it does less: no handler can run in it (all signals are blocked), it ends with the thread
    /// that made it, and it never returns.
    pub(super) fn spawn() -> io::Result<Self> {
        let parent = std::process::id();
        let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
        let mut old = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: both sets are writable and live; the clone passes no pointers and shares no
        // memory, so the child works on its own copy of this stack; in the child only prctl,
        // close_range, getppid, pause and _exit are called, all plain system calls.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr());
            // No exit signal: nobody who waits for children in general gets this one.
            let flags = libc::CLONE_NEWUSER as libc::c_ulong;
            let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
            if pid == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // Copies of other threads' descriptors would keep their devices and locks.
                libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
                // The parent may have died before the line above.
                while u32::try_from(libc::getppid()) == Ok(parent) {
                    libc::pause();
                }
                libc::_exit(0);
            }
            let error = io::Error::last_os_error();
            libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), std::ptr::null_mut());
            match libc::pid_t::try_from(pid) {
                Ok(pid) if pid > 0 => Ok(Self { pid }),
                _ => Err(error),
            }
        }
    }
}

impl Drop for NamespaceHolder {
    fn drop(&mut self) {
        // SAFETY: the pid is ours and not yet reaped, so it cannot be another process; a null
        // status pointer is allowed. __WALL because the child has no exit signal, wait(2).
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            while libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL) == -1
                && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
            {}
        }
    }
}
