//! The floor of the benchmarks: what the kernel alone needs for a guest of the same kind.
//!
//! Per round: control groups with limits, an overlay, clone3 into seven new namespaces with an id
//! map, a veth pair on a bridge, pivot_root, proc, execve; then kill, unmount, remove. In this very
//! process, with system calls only: no records, no confinement, no terminal, no checks.
//!
//! `floor ROOTFS WORK BRIDGE_INDEX ROUNDS` prints for each round three numbers of nanoseconds:
//! until the guest's first instruction, until everything is made, and for taking it away.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};
use rustix::pipe::{PipeFlags, pipe_with};

/// Base of the host ids.
const IDS: u32 = 1 << 30;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [rootfs, work, bridge, rounds] = args.as_slice() else {
        bail!("usage: floor ROOTFS WORK BRIDGE_INDEX ROUNDS");
    };
    let bridge: u32 = bridge.parse().context("bridge index")?;
    for round in 0..rounds.parse::<u32>().context("rounds")? {
        let [first, made, gone] = one(Path::new(rootfs), Path::new(work), bridge, round)?;
        println!("{} {} {}", first.as_nanos(), made.as_nanos(), gone.as_nanos());
    }
    Ok(())
}

fn one(rootfs: &Path, work: &Path, bridge: u32, round: u32) -> Result<[Duration; 3]> {
    let began = Instant::now();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let mut made = Made::default();
    groups(round, &mut made.groups)?;
    let root = made.root.insert(overlay(rootfs, work)?).clone();
    let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (out_read, out_write) = pipe_with(PipeFlags::empty())?;
    let child = clone3()?;
    if child == 0 {
        drop((go_write, out_read));
        let error = inside(&root, go_read, &out_write);
        eprintln!("floor: in the guest: {error}");
        // SAFETY: ends this process at once; nothing of it is used afterwards.
        unsafe { libc::_exit(1) };
    }
    drop((go_read, out_write));
    for kind in ["uid_map", "gid_map"] {
        put(&PathBuf::from(format!("/proc/{child}/{kind}")), &format!("0 {IDS} 65536\n"))?;
    }
    for group in &made.groups {
        put(&group.join("cgroup.procs"), &child.to_string())?;
    }
    veth(bridge, child, round)?;
    File::from(go_write).write_all(b"g")?;
    let said = line(out_read)?;
    let ready = began.elapsed();
    let at: u128 = said.trim().strip_prefix("first ").context("no stamp")?.parse()?;
    let first = at.saturating_sub(wall.as_nanos());
    let ending = Instant::now();
    // SAFETY: plain system calls on our own child; no memory is shared.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    made.remove()?;
    Ok([Duration::from_nanos(u64::try_from(first)?), ready, ending.elapsed()])
}

/// What a round leaves on the host if it is not removed.
#[derive(Debug, Default)]
struct Made {
    root: Option<PathBuf>,
    groups: Vec<PathBuf>,
}

impl Made {
    fn remove(&mut self) -> Result<()> {
        if let Some(root) = self.root.take() {
            unmount(&root, UnmountFlags::DETACH)?;
        }
        while let Some(group) = self.groups.pop() {
            remove_when_empty(&group)?;
        }
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // After a failure that is told already.
        let _ = self.remove();
    }
}

/// In every v1 hierarchy with a limit, or in v2.
fn groups(round: u32, made: &mut Vec<PathBuf>) -> Result<()> {
    let base = Path::new("/sys/fs/cgroup");
    let memory = (256_u64 << 20).to_string();
    let v2 = [("memory.max", memory.as_str()), ("cpu.max", "100000 100000"), ("pids.max", "4096")];
    let v1 = [
        ("memory", "memory.limit_in_bytes", memory.as_str()),
        ("cpu", "cpu.cfs_quota_us", "100000"),
        ("pids", "pids.max", "4096"),
    ];
    let mut make = |parent: PathBuf, limits: &[(&str, &str)]| -> Result<()> {
        let group = parent.join(format!("ocvfloor{round}"));
        fs::create_dir(&group).with_context(|| format!("make {}", group.display()))?;
        made.push(group.clone());
        limits.iter().try_for_each(|(file, value)| put(&group.join(file), value))
    };
    if base.join("cgroup.controllers").exists() {
        return make(base.to_owned(), &v2);
    }
    v1.into_iter()
        .try_for_each(|(controller, file, value)| make(base.join(controller), &[(file, value)]))
}

fn remove_when_empty(group: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(group) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {}
            result => return result.with_context(|| format!("remove {}", group.display())),
        }
    }
}

fn overlay(rootfs: &Path, work: &Path) -> Result<PathBuf> {
    let [upper, scratch, root] = ["upper", "work", "root"].map(|name| work.join(name));
    for dir in [&upper, &scratch, &root] {
        fs::create_dir_all(dir)?;
    }
    let fs = fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&fs, c"lowerdir", rootfs)?;
    fsconfig_set_string(&fs, c"upperdir", &upper)?;
    fsconfig_set_string(&fs, c"workdir", &scratch)?;
    fsconfig_create(&fs)?;
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mount, c"", rustix::fs::CWD, &root, flags)?;
    Ok(root)
}

fn clone3() -> Result<i32> {
    // SAFETY: all zero is a valid clone_args: plain integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    args.flags = u64::from(flags.cast_unsigned());
    args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: without CLONE_VM this is a fork of a process with one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    if pid < 0 {
        return Err(io::Error::last_os_error()).context("clone3");
    }
    Ok(i32::try_from(pid)?)
}

/// From the new namespaces to the guest's program; returns only to say why not.
fn inside(root: &Path, go: OwnedFd, out: &OwnedFd) -> anyhow::Error {
    let go = || -> Result<()> {
        File::from(go).read_exact(&mut [0])?;
        use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
        let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", all)?;
        // A mount that came from a more privileged namespace is locked: pivot_root takes a copy.
        mount_bind(root, root)?;
        rustix::process::chdir(root)?;
        mount(c"proc", "proc", c"proc", MountFlags::empty(), None)?;
        rustix::process::pivot_root(".", ".")?;
        unmount(".", UnmountFlags::DETACH)?;
        // SAFETY: a descriptor of ours onto standard output.
        unsafe { libc::dup2(out.as_raw_fd(), 1) };
        let program = CString::new("/first")?;
        let argv = [program.as_ptr(), std::ptr::null()];
        // SAFETY: strings and arrays end with a null and outlive the call.
        unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), argv[1..].as_ptr()) };
        Err(io::Error::last_os_error()).context("execve")
    };
    go().err().unwrap_or_else(|| anyhow::anyhow!("came back"))
}

fn line(from: OwnedFd) -> Result<String> {
    let mut from = File::from(from);
    let mut said = Vec::new();
    while !said.ends_with(b"\n") {
        let mut chunk = [0; 128];
        match from.read(&mut chunk)? {
            0 => bail!("the guest said nothing"),
            n => said.extend_from_slice(&chunk[..n]),
        }
    }
    Ok(String::from_utf8(said)?)
}

fn put(path: &Path, text: &str) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("write {}", path.display()))
}

/// One RTM_NEWLINK (rtnetlink(7)): a pair, one end up on the bridge, the other in the namespace of
/// `pid` as `eth0`.
fn veth(bridge: u32, pid: i32, round: u32) -> Result<()> {
    const VETH_INFO_PEER: u16 = 1;
    let header = |up: u32| {
        // struct ifinfomsg: family, type, index, flags, change.
        [&[0; 8][..], &up.to_ne_bytes(), &up.to_ne_bytes()].concat()
    };
    let name = |name: &str| attribute(libc::IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
    let peer = [header(0), name("eth0"), attribute(libc::IFLA_NET_NS_PID, &pid.to_ne_bytes())];
    let info = [
        attribute(libc::IFLA_INFO_KIND, b"veth"),
        attribute(libc::IFLA_INFO_DATA, &attribute(VETH_INFO_PEER, &peer.concat())),
    ];
    let body = [
        header(libc::IFF_UP.cast_unsigned()),
        name(&format!("ocvf{}-{round}", std::process::id())),
        attribute(libc::IFLA_MASTER, &bridge.to_ne_bytes()),
        attribute(libc::IFLA_LINKINFO, &info.concat()),
    ];
    let body = body.concat();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let length = u32::try_from(16 + body.len())?;
    let head = [
        &length.to_ne_bytes()[..],
        &libc::RTM_NEWLINK.to_ne_bytes(),
        &u16::try_from(flags)?.to_ne_bytes(),
        &[0; 8],
    ];
    let message = [head.concat(), body].concat();
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, socket};
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0_u8; 512];
    recv(&socket, &mut answer, RecvFlags::empty())?;
    // nlmsghdr is 16 bytes, then struct nlmsgerr begins with the error.
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    if code != 0 {
        return Err(io::Error::from_raw_os_error(-code)).context("make veth");
    }
    Ok(())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
