//! Disks in qcow2 files: served by QEMU's storage daemon, one process per disk. See docs/adr/0012-qcow2-disks.md.
//!
//! ```text
//!   file, and those below it ([`chain`]) ─ open here ─► qemu-storage-daemon ─ FUSE ─ a mount attached nowhere: one file
//!                                                            │                            └─ loop device, as for raw disks
//!                                                            └─ born in +disks/<vm>, confined ([`room`], [`filter`])
//! ```
//!
//! We open `/dev/fuse` and make the mount, whose root is a regular file and which is attached nowhere; the server gets
//! the far end and needs no right at all. The loop device keeps that file, the file the mount: with the device all of it
//! is gone, and nothing is left to be cleared up but the process. From the loop device on it is a disk like any other.
//!
//! What can go wrong, and what is done:
//! * Images name files: nothing that one names is opened by the server, see [`chain`] and [`opens`].
//! * Images attack their reader: it has a user of the VM's own range, no capability, no network, no file but those of
//!   the disk, bounded memory, by itself and with the VM's other servers, a list of system calls. What it can spoil is the disk, which was the image's anyway.
//! * The server dies: the kernel ends the connection, whoever uses the disk gets errors of input and output at once, and
//!   the VM has it anew with its next boot. The daemon tells it.
//! * The server hangs: so does who uses the disk, as with a file server. Attaching all disks of a VM has one time, that
//!   of their checks, in which is let go of what is attached still, and detaching has one; when it is over servers are killed, and their disks' readers get errors
//!   ([`patience`]). Not even that frees from a file server of the host's that is dead, which holds the killed one.
//! * A crash of ours: the server's group is there before the server, so release finds it by the VM's id.
//!
//! The lock against a second writer is the open file's, which the server has as well. QEMU's own locks are taken, too:
//! an image that a virtual machine or `qemu-img` uses is refused, and `qemu-img` refuses ours.

mod chain;
mod filter;
mod opens;
mod orders;
mod patience;
mod room;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{IdRange, VmId};
use ocivisor_core::spec::{DataDisk, DiskFormat};
use ocivisor_core::state::ProcessRef;
use ocivisor_core::units::Bytes;
use rustix::mount::MountAttrFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};

use self::chain::Link;
use self::orders::{Orders, Refused};
use self::room::Room;
use super::super::fsctx::FsContext;
use super::super::loopdev::{self, LoopDevice};
use super::claim::Claim;
use super::record::{Attached, Attachments, Server};
use super::{Failed, HostStorage, Places, name};
use crate::cgroup::HostCgroups;
use crate::fs::io_error;
use crate::process;

const PROGRAM: &str = "qemu-storage-daemon";
/// What a server has to open its files and answer: libraries come from a cold disk, and files from a file server.
const START: Duration = Duration::from_secs(60);
/// What it has to write its tables when it is told to end.
const END: Duration = Duration::from_secs(30);
/// Which id of the VM's own range it is: one that hardly a guest has a user for. The last is the display's.
const USER: u32 = IdRange::LEN - 3;
/// Of tables: all disks of a VM together, all files of a disk together, and at least for one of them; QEMU's own default is
/// 33 MB for each.
const ALL_CACHES: u64 = 256 << 20;
const CACHE: u64 = 32 << 20;
const LEAST_CACHE: u64 = 1 << 20;
/// Memory of all servers of a VM: what one of them may have at most, and what each has in any case.
const SHARED: u64 = room::DATA;
const EACH: u64 = 16 << 20;

/// Servers that are children of this process and not reaped yet. A later daemon's are init's.
static CHILDREN: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// Who serves a disk that is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskServer {
    /// The disk's number in the spec.
    pub number: u32,
    /// Its file.
    pub path: PathBuf,
    /// The process.
    pub process: ProcessRef,
}

/// A disk that is served.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) process: ProcessRef,
    /// Its content, for a loop device.
    pub(super) export: File,
}

impl Served {
    /// With the loop device that is bound to it.
    pub(super) fn record(&self, device: &LoopDevice) -> io::Result<Server> {
        let ProcessRef { pid, start_ticks } = self.process;
        let sequence = loopdev::sequence(device.number)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Server { pid, start_ticks, sequence })
    }
}

impl HostStorage {
    /// Has a qcow2 disk served, one of `served` of its VM; the groups of its VM's servers are there afterwards, whatever
    /// comes.
    pub(super) fn serve(
        &self,
        id: &VmId,
        (wish, served): (&DataDisk, u64),
        claim: &Claim,
        ids: IdRange,
    ) -> Result<Served> {
        if claim.device.is_some() {
            let what = format!("{}: qcow2 in a block device is not served", name(wish));
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let links = chain::below(wish, claim)?;
        let Some(cgroups) = &self.cgroups else {
            let what = format!("{}: qcow2 is not served without control groups", name(wish));
            return Err(Error::new(ErrorKind::Unsupported, what));
        };
        let memory = Bytes(SHARED + EACH * served);
        let open = |path: PathBuf| {
            File::options().write(true).open(&path).map_err(|e| io_error("open", &path, &e))
        };
        let procs = cgroups.ensure_disk_procs(id, memory)?.into_iter().map(open);
        let room = (ids.base + USER, procs.collect::<Result<Vec<_>>>()?);
        start(wish, claim, &links, room, CACHE.min(ALL_CACHES / served.max(1)))
    }

    /// Who serves the disks that a VM has attached.
    #[must_use]
    pub fn disk_servers(&self, id: &VmId) -> Vec<DiskServer> {
        reap();
        let places = Places::of(&self.places(id).dir);
        let attached = Attachments::load(&places.record).map(|all| all.disks).unwrap_or_default();
        let server = |disk: Attached| {
            let process = disk.server?.process();
            Some(DiskServer { number: disk.number, path: disk.path, process })
        };
        attached.into_iter().filter_map(server).collect()
    }

    /// Ends all servers of a VM, which have this time at most; there are none is fine.
    pub(super) fn end_servers(&self, id: &VmId, patience: Duration) -> Result<()> {
        let patience = patience.min(END);
        let end = |groups: &HostCgroups| groups.end_disk_servers(id, patience);
        let ended = self.cgroups.as_ref().map_or(Ok(()), end);
        reap();
        ended
    }
}

/// Reaps servers that ended.
fn reap() {
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
}

/// A child that is killed unless it is kept.
struct Newborn(Option<Child>);

impl Newborn {
    fn keep(mut self) {
        if let Some(mut child) = self.0.take() {
            // Nobody would read it, and it must not wait for that.
            drop(child.stderr.take());
            CHILDREN.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        }
    }

    /// What it said last; it is ended for that.
    fn last_words(&mut self) -> Option<String> {
        let child = self.0.as_mut()?;
        let _ = child.kill();
        let mut said = Vec::new();
        child.stderr.take()?.take(4096).read_to_end(&mut said).ok()?;
        let said = String::from_utf8_lossy(&said);
        let line = said.lines().rev().find(|line| !line.trim().is_empty())?;
        Some(line.chars().filter(|c| !c.is_control()).collect())
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Failing to kill means that it ended; either way it must be reaped.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `room` is its user and files of its control groups, `cache` the bytes of its tables.
fn start(
    wish: &DataDisk,
    claim: &Claim,
    links: &[Link],
    room: (u32, Vec<File>),
    cache: u64,
) -> Result<Served> {
    reap();
    let failed = |what: &str, e: io::Error| wish.failed(what, &e);
    let deadline = Instant::now() + START;
    let (fuse, mount) = connection(wish)?;
    let (orders, far) = UnixStream::pair().map_err(|e| failed("serve", e))?;
    let (gate, far_gate) = UnixStream::pair().map_err(|e| failed("serve", e))?;
    let far = OwnedFd::from(far);
    let place = format!("/dev/fd/{}", fuse.as_raw_fd());
    let chardev = format!("socket,id=orders,fd={}", far.as_raw_fd());
    #[expect(clippy::disallowed_methods, reason = "it outlives us, as shims do")]
    let mut command = Command::new(PROGRAM);
    command.args(["--chardev", &chardev, "--monitor", "chardev=orders"]);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/libexec").env("LC_ALL", "C");
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let (user, procs) = room;
    let room = Room::new(user, procs, far_gate.into(), vec![fuse, far], &place);
    room.map_err(|e| failed("serve", e))?.confine(&mut command);
    let child = command.spawn().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            let what = format!("{}: qcow2 takes {PROGRAM}, which is not installed", name(wish));
            let hint = format!("install the package that has {PROGRAM}");
            Error::new(ErrorKind::Unsupported, what).hint(hint)
        }
        _ => failed("start the server of", e),
    })?;
    // With the far ends, whose copies here would keep it from noticing that we are gone, and us from noticing its end.
    drop(command);
    let mut child = Newborn(Some(child));
    let pid = child.0.as_ref().map_or(0, Child::id);
    let listener = received(&gate).map_err(|e| failed("start the server of", e))?;
    let null = File::open("/dev/null").map_err(|e| failed("serve", e))?;
    let files: Vec<&File> =
        std::iter::once(&claim.file).chain(links.iter().map(|link| &link.file)).collect();
    let (over, end) = io::pipe().map_err(|e| failed("serve", e)).map(|(r, w)| (w, r))?;
    let told = thread::scope(|scope| {
        scope.spawn(|| opens::answer(&listener, &files, &null, &end));
        let told = Orders::begin(orders, deadline)
            .and_then(|mut orders| tell(&mut orders, wish, links, cache, &place));
        drop(over);
        told
    });
    if let Err(refused) = told {
        return Err(why(wish, refused, &mut child));
    }
    let process = process::process_ref(pid)
        .ok_or_else(|| failed("serve", io::Error::other("the server ended at once")))?;
    let export = open_within(&mount, !wish.read_only, deadline, process)
        .map_err(|e| failed("open what is served of", e))?;
    child.keep();
    Ok(Served { process, export })
}

/// Both ends of a FUSE connection: the server's, and a mount whose root is a regular file, attached nowhere. Only root
/// of the host may look into it.
fn connection(wish: &DataDisk) -> Result<(OwnedFd, OwnedFd)> {
    let path = Path::new("/dev/fuse");
    let fuse =
        File::options().read(true).write(true).open(path).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                let what =
                    format!("{}: qcow2 takes FUSE, which this host has not: {e}", name(wish));
                Error::new(ErrorKind::Unsupported, what).hint("load the kernel module `fuse`")
            }
            _ => io_error("open", path, &e),
        })?;
    let mounted = (|| {
        let context = FsContext::open(c"fuse")?;
        context.set(c"source", "ocivisor")?;
        context.set(c"fd", &fuse.as_raw_fd().to_string())?;
        context.set(c"rootmode", "100600")?;
        context.set(c"user_id", "0")?;
        context.set(c"group_id", "0")?;
        let nothing = MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        context.mount(nothing)
    })();
    let mount = mounted.map_err(|e| wish.failed("make a FUSE mount for", &e))?;
    Ok((fuse.into(), mount))
}

/// The listener of its openings, which it sent before it became the program.
fn received(gate: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [io::IoSliceMut::new(&mut byte)];
    let how = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    rustix::net::recvmsg(gate, &mut into, &mut control, how)?;
    let rights = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    rights.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Names each file by the place where it is given, and nothing else: no driver, format or backing file is looked for.
fn tell(
    orders: &mut Orders,
    wish: &DataDisk,
    links: &[Link],
    cache: u64,
    place: &str,
) -> std::result::Result<(), Refused> {
    let formats = std::iter::once(DiskFormat::Qcow2).chain(links.iter().map(|link| link.format));
    let all: Vec<DiskFormat> = formats.collect();
    let cache = (cache / all.len() as u64).max(LEAST_CACHE);
    let mut below = Value::Null;
    for (number, format) in all.into_iter().enumerate().rev() {
        let read_only = number > 0 || wish.read_only;
        let node = format!("n{number}");
        let file = json!({
            "driver": "file",
            "filename": opens::path_of(number),
            "read-only": read_only,
        });
        let mut options = json!({
            "node-name": node,
            "driver": format.name(),
            "read-only": read_only,
            "discard": "unmap",
            "file": file,
        });
        if format == DiskFormat::Qcow2 {
            options["backing"] = below;
            options["cache-size"] = cache.into();
        }
        orders.give("blockdev-add", &options)?;
        below = node.into();
    }
    orders.give(
        "block-export-add",
        &json!({
            "type": "fuse",
            "id": "disk",
            "node-name": "n0",
            "mountpoint": place,
            "writable": !wish.read_only,
            "growable": false,
            "allow-other": "off",
        }),
    )
}

fn why(wish: &DataDisk, refused: Refused, child: &mut Newborn) -> Error {
    match refused {
        Refused::Said(said) if said.contains("lock") => {
            let what = format!("{} is in use by another process: {said}", name(wish));
            Error::new(ErrorKind::Conflict, what)
        }
        Refused::Said(said) if said.contains("'fuse'") => {
            let what = format!("{}: this host's {PROGRAM} has no FUSE exports: {said}", name(wish));
            Error::new(ErrorKind::Unsupported, what)
                .hint("install one of QEMU 6.1 or later, with FUSE")
        }
        Refused::Said(said) => {
            let what = format!("{} cannot be served: {said}", name(wish));
            Error::new(ErrorKind::Integrity, what)
                .hint("qemu-img check shows what is wrong with it")
        }
        Refused::Broken(e) => {
            let said = child.last_words().map(|said| format!(": {said}")).unwrap_or_default();
            let what = format!("{}: its server does not answer: {e}{said}", name(wish));
            Error::new(ErrorKind::Host, what)
        }
    }
}

/// Opens the export, and asks for its length: a loop device takes the one that the kernel was told last (Linux 6.1 does, 6.18
/// asks itself), and it was told none. The server answers both. One that does not is killed, which ends the waiting.
fn open_within(
    mount: &OwnedFd,
    writable: bool,
    deadline: Instant,
    server: ProcessRef,
) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", mount.as_fd().as_raw_fd());
    let (done, opened) = channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let open = File::options().read(true).write(writable).open(path);
            // Who waited may have given up.
            let _ = done.send(open.and_then(|file| file.metadata().map(|_| file)));
        });
        let left = deadline.saturating_duration_since(Instant::now());
        opened.recv_timeout(left).unwrap_or_else(|_| {
            process::kill(server);
            Err(io::ErrorKind::TimedOut.into())
        })
    })
}
