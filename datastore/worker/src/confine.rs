//! The steps into confinement, in the order in which each is still possible and the next not yet harmful.
//!
//! Two processes, because no one may do both: a map of 65,536 ids and an idmapped mount take root of the host
//! (user_namespaces(7), mount_setattr(2)), and the process that unpacks must not be it. They talk over a pair of
//! sockets, `gate`:
//!
//! ```text
//! first                                    confined
//!   fork into a pid namespace ───────────►   unshare user, mount, net, ipc, uts, cgroup namespaces
//!   write uid_map and gid_map   ◄─ 'u' ───
//!   clone mounts of what it works on, map their ids
//!   ── descriptors of these mounts ──────►   become root of the namespace; die with the first
//!                               ◄─ 'r' ───
//!   ── 'g': still alive ─────────────────►   pivot into the mount, limits, capabilities, Landlock, seccomp
//!   drop all but the broker's work
//! ```
//!
//! A side that fails closes its end; the other then ends too. Only the kernel's own messages are believed: until the
//! last step no byte of a layer has been read.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid};
use ocivisor_datastore::worker::{IDS, Job, Request, Unusable};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{Step, filter, sys, tool};

/// Most mounts that the first process makes for the other.
const MOUNTS_MAX: usize = 1;

/// Descriptors: removing a deep tree holds 64 levels open.
const DESCRIPTORS: u64 = 256;

/// Which of the two processes this is.
pub enum Side {
    /// The first.
    Broker(Broker),
    /// The one that reads the blob.
    Confined(Confined),
}

/// What the first process has left.
pub struct Broker {
    /// The confined one.
    pub child: Child,
    /// The layer's directory as the host sees it, if one is to be filled.
    pub layer: Option<File>,
    /// Where marks are asked for.
    pub marks: Option<OwnedFd>,
}

/// What the confined process has.
pub struct Confined {
    /// Its root directory, if one is to be filled.
    pub root: Option<File>,
    /// Where plain bytes go, if they are wanted.
    pub output: Option<File>,
    /// Where to ask for marks.
    pub marks: Option<OwnedFd>,
}

/// A process to wait for.
pub struct Child(Pid);

impl Child {
    /// Its code, or 128 and its signal, as shells tell it.
    pub fn wait(self) -> ExitCode {
        loop {
            match waitpid(self.0, None) {
                Err(nix::errno::Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, code)) => {
                    return u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from);
                }
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    let code = u8::try_from(128 + signal as i32);
                    return code.map_or(ExitCode::FAILURE, ExitCode::from);
                }
                _ => return ExitCode::FAILURE,
            }
        }
    }
}

/// Splits into the two processes.
pub fn enter(request: &Request, files: &[File]) -> Result<Side, Unusable> {
    die_with_parent().step("ask to die with the importing process")?;
    for procs in request.cgroup_procs() {
        // 0 is whoever writes it.
        let join = || OpenOptions::new().write(true).open(procs)?.write_all(b"0");
        join().step("join the control group for workers")?;
    }
    let second = || dup(rustix::stdio::stderr());
    let (layer, output) = match request.job() {
        Job::Layer { .. } => (Some(second().step("keep the layer's directory")?), None),
        Job::Expand | Job::Disk(_) | Job::Tool { .. } => {
            (None, Some(second().step("keep the pipe for the bytes")?))
        }
    };
    // From here on a message of the C library would go there.
    let null =
        OpenOptions::new().read(true).write(true).open("/dev/null").step("open /dev/null")?;
    rustix::stdio::dup2_stderr(&null).step("close descriptor 2")?;

    let (gate, far_gate) = pair().step("make sockets")?;
    let (marks, far_marks) = match layer {
        Some(_) => pair().map(|(near, far)| (Some(near), Some(far))).step("make sockets")?,
        None => (None, None),
    };
    nix::sched::unshare(CloneFlags::CLONE_NEWPID).step("make a pid namespace")?;
    match sys::fork().step("fork")? {
        Some(pid) => {
            drop((far_gate, far_marks, output));
            let done = prepare(&gate, pid, layer.as_ref(), files, request);
            if done.is_err() {
                // It waits for us; nothing else can have happened to it.
                let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            }
            done?;
            rustix::stdio::dup2_stdin(&null).step("close the stream")?;
            rustix::stdio::dup2_stdout(&null).step("close the answer")?;
            become_broker(layer.is_some())?;
            Ok(Side::Broker(Broker { child: Child(pid), layer, marks }))
        }
        None => {
            drop((gate, marks, null, layer));
            let root = confine(&far_gate, files, request)?;
            Ok(Side::Confined(Confined { root, output, marks: far_marks }))
        }
    }
}

fn dup(fd: BorrowedFd<'_>) -> io::Result<File> {
    Ok(fd.try_clone_to_owned()?.into())
}

fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Of the thread that started us, so to say; see the library's `client`.
fn die_with_parent() -> rustix::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
}

/// What takes root of the host.
fn prepare(
    gate: &OwnedFd,
    pid: Pid,
    layer: Option<&File>,
    files: &[File],
    request: &Request,
) -> Result<(), Unusable> {
    hear(gate, b'u').step("make namespaces for a worker")?;
    let proc = format!("/proc/{pid}");
    let map = format!("0 {} {IDS}\n", request.id_base());
    for file in ["uid_map", "gid_map"] {
        let write = || {
            OpenOptions::new().write(true).open(format!("{proc}/{file}"))?.write_all(map.as_bytes())
        };
        write().step("map the ids of workers")?;
    }
    let mounts = match request.job() {
        Job::Layer { .. } => {
            layer.into_iter().map(|layer| mapped(layer, &proc)).collect::<Result<Vec<_>, _>>()?
        }
        Job::Tool { tree: true } => {
            let tree = files.first().ok_or(rustix::io::Errno::BADF).step("take the tree")?;
            let tree = mapped(tree, &proc)?;
            sys::read_only(tree.as_fd(), sys::Reach::Alone).step("protect the tree")?;
            vec![tree]
        }
        Job::Expand | Job::Disk(_) | Job::Tool { tree: false } => Vec::new(),
    };
    send(gate, &mounts).step("hand over the layer's mount")?;
    hear(gate, b'r').step("become root of the worker's namespace")?;
    say(gate, b'g').step("let the worker go")
}

/// The layer's directory alone, its ids shifted into the worker's.
fn mapped(layer: &File, proc: &str) -> Result<OwnedFd, Unusable> {
    let namespace = File::open(format!("{proc}/ns/user")).step("open the worker's namespace")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = rustix::mount::open_tree(layer, "", flags).step("clone the layer's mount")?;
    sys::map_ids(mount.as_fd(), namespace.as_fd())
        .step("map the ids of the layer's mount (the file system must support idmapped mounts)")?;
    Ok(mount)
}

/// The first process gives up what setting marks does not take, or all where there are none to set.
fn become_broker(sets_marks: bool) -> Result<(), Unusable> {
    let left = if sets_marks {
        CapabilitySet::SYS_ADMIN | CapabilitySet::SETFCAP | CapabilitySet::DAC_OVERRIDE
    } else {
        CapabilitySet::empty()
    };
    keep_capabilities(left).step("drop capabilities")?;
    rustix::thread::set_no_new_privs(true).step("forbid new privileges")?;
    let program = filter::broker().map_err(io::Error::other).step("make the broker's filter")?;
    seccompiler::apply_filter(&program).map_err(io::Error::other).step("apply the broker's filter")
}

/// All the way in; returns the root directory, if there is one to fill.
fn confine(gate: &OwnedFd, files: &[File], request: &Request) -> Result<Option<File>, Unusable> {
    let apart = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::unshare(apart).step("make namespaces")?;
    say(gate, b'u').step("reach the first process")?;
    let mounts = receive(gate).step("take the layer's mount")?;

    nix::unistd::setgroups(&[]).step("drop groups")?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    nix::unistd::setresgid(gid, gid, gid).step("become root's group of the namespace")?;
    nix::unistd::setresuid(uid, uid, uid).step("become root of the namespace")?;
    // Now, since a change of user takes it back; and if the first died before, it does not answer.
    die_with_parent().step("ask to die with the first process")?;
    say(gate, b'r').step("reach the first process")?;
    hear(gate, b'g').step("hear the first process")?;

    let root = match request.job() {
        Job::Layer { .. } => {
            let layer = mounts.first().ok_or(rustix::io::Errno::PIPE);
            let layer = layer.step("take the layer's mount")?;
            pivot(layer, || Ok(())).step("make the layer the root directory")?;
            let flags = rustix::fs::OFlags::RDONLY
                | rustix::fs::OFlags::DIRECTORY
                | rustix::fs::OFlags::CLOEXEC;
            let root = rustix::fs::open("/", flags, rustix::fs::Mode::empty());
            Some(File::from(root.step("open the root directory")?))
        }
        Job::Expand | Job::Disk(_) => {
            let nothing = nothing().step("make an empty root directory")?;
            pivot(&nothing, || Ok(())).step("make an empty root directory")?;
            None
        }
        Job::Tool { .. } => {
            let room = tool::root().step("make a root directory for the tool")?;
            pivot(&room, || tool::furnish(&room, mounts.first()))
                .step("fill the tool's root directory")?;
            None
        }
    };

    limit(request).step("set limits")?;
    rustix::process::umask(rustix::fs::Mode::empty());
    let (capabilities, filters) = rights(request.job());
    keep_capabilities(capabilities).step("drop capabilities")?;
    rustix::thread::set_no_new_privs(true).step("forbid new privileges")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step("forbid core dumps")?;
    match request.job() {
        Job::Tool { tree } => tool::landlock(&files[usize::from(tree)..]),
        _ => landlock(root.as_ref()),
    }
    .map_err(io::Error::other)
    .step("apply Landlock")?;
    drop(mounts);
    for program in filters.map_err(io::Error::other).step("make the filter")? {
        seccompiler::apply_filter(&program).map_err(io::Error::other).step("apply the filter")?;
    }
    Ok(root)
}

/// What a job takes, and no more: capabilities, and system calls.
fn rights(job: Job) -> (CapabilitySet, Result<Vec<seccompiler::BpfProgram>, filter::Bad>) {
    match job {
        Job::Layer { .. } => {
            let over_files = CapabilitySet::CHOWN
                | CapabilitySet::DAC_OVERRIDE
                | CapabilitySet::FOWNER
                | CapabilitySet::FSETID;
            (over_files, filter::layer().map(Vec::from))
        }
        Job::Expand => (CapabilitySet::empty(), filter::stream().map(Vec::from)),
        Job::Tool { tree } => {
            // A tree has files that only their owner may read.
            let reads = if tree { CapabilitySet::DAC_READ_SEARCH } else { CapabilitySet::empty() };
            (reads, filter::tool().map(Vec::from))
        }
        Job::Disk(_) => (CapabilitySet::empty(), filter::disk().map(Vec::from)),
    }
}

/// An empty file system that cannot be written, for a worker that only reads a stream.
fn nothing() -> rustix::io::Result<OwnedFd> {
    let made = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(made.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(made.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// Makes a detached mount the root directory, and lets go of everything else (pivot_root(2), NOTES). Meanwhile it is
/// the working directory: then `furnish` may put something into it.
fn pivot(mount: &OwnedFd, furnish: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    use rustix::mount::{MountPropagationFlags, UnmountFlags};
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", rustix::fs::CWD, "/", flags)?;
    rustix::process::fchdir(mount)?;
    furnish()?;
    rustix::process::pivot_root(".", ".")?;
    // The old root lies on top of the new one now.
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

/// Bytes of address space.
fn address_space(job: Job) -> u64 {
    match job {
        // A zstd window of 128 MiB or an xz dictionary, stacks and arenas of two threads, and as much again.
        Job::Layer { .. } | Job::Expand => 1 << 30,
        // Names: of as many files as an image may have in one directory, the longest, and of hard links.
        Job::Disk(_) => 2 << 30,
        Job::Tool { .. } => tool::ADDRESS_SPACE,
    }
}

fn limit(request: &Request) -> nix::Result<()> {
    for (what, most) in [
        (Resource::RLIMIT_AS, address_space(request.job())),
        (Resource::RLIMIT_FSIZE, request.largest_file()),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        setrlimit(what, most, most)?;
    }
    Ok(())
}

/// Drops all capabilities but these, for good.
fn keep_capabilities(kept: CapabilitySet) -> rustix::io::Result<()> {
    for capability in CapabilitySet::all().difference(kept).iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(e) => return Err(e),
        }
    }
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

/// As much of Landlock as the kernel has: a second wall, should a mount or namespace be left open.
fn landlock(root: Option<&File>) -> Result<(), landlock::RulesetError> {
    const NEWEST: ABI = ABI::V7;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    if let Some(root) = root {
        let allowed = AccessFs::ReadFile
            | AccessFs::ReadDir
            | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::RemoveDir
            | AccessFs::RemoveFile
            | AccessFs::MakeDir
            | AccessFs::MakeReg
            | AccessFs::MakeSym
            | AccessFs::MakeFifo
            | AccessFs::MakeChar
            | AccessFs::Refer;
        rules = rules.add_rule(PathBeneath::new(root, allowed))?;
    }
    rules.restrict_self().map(drop)
}

fn say(gate: &OwnedFd, what: u8) -> io::Result<()> {
    match rustix::net::send(gate, &[what], SendFlags::NOSIGNAL)? {
        1 => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

fn hear(gate: &OwnedFd, what: u8) -> io::Result<()> {
    let mut byte = [0];
    let (n, _) = rustix::net::recv(gate, &mut byte[..], RecvFlags::empty())?;
    match (n, byte) {
        (1, [got]) if got == what => Ok(()),
        // The other side failed, and says so itself where it can.
        _ => Err(rustix::io::Errno::PIPE.into()),
    }
}

/// Sends mounts, if there are any.
fn send(gate: &OwnedFd, mounts: &[OwnedFd]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOUNTS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let rights: Vec<BorrowedFd<'_>> = mounts.iter().map(AsFd::as_fd).collect();
    if !rights.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&rights)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    rustix::net::sendmsg(gate, &[IoSlice::new(b"m")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(gate: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOUNTS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    let got = rustix::net::recvmsg(gate, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes != 1 {
        return Err(rustix::io::Errno::PIPE.into());
    }
    let mut mounts = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            mounts.extend(fds);
        }
    }
    Ok(mounts)
}
