//! What others may try: garbage, floods, full disks, foreign users.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ocivisor_shim::client::{Client, ClientError};
use ocivisor_shim::exit::Exit;
use ocivisor_shim::message::{Access, Code};
use rustix::fs::{Gid, Uid};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::guest::{Guest, LONG, Options, read_until};

/// A small filesystem that can be full.
pub struct Tmpfs(TempDir);

impl Tmpfs {
    pub fn mount(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(options.as_c_str())).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Fills it up; the file that does.
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = fs::File::create(&path).unwrap();
        while file.write(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

fn say(guest: &Guest, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(guest.socket()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    // The shim may have closed already, after what it had read was enough.
    let _ = stream.write_all(bytes);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn garbage_is_refused_and_the_connection_closed() {
    let guest = Guest::run("read x");
    let refused = "error bad-request no request\n";
    assert_eq!(say(&guest, b"hello\n"), refused);
    assert_eq!(say(&guest, b"\xff\xfe\n"), refused);
    assert_eq!(say(&guest, b"ping\0\n"), refused);
    assert_eq!(say(&guest, &[b'x'; 4096]), refused);
    assert_eq!(say(&guest, &vec![b'x'; 1 << 20]), refused);
    assert_eq!(say(&guest, b"GET / HTTP/1.1\r\n\r\n"), refused);
    // An oversized frame after a good line.
    let mut stream = UnixStream::connect(guest.socket()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(b"attach rw 0x0\n\x00\xff\xff").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"ok rw\n\x02\x00\x00");
    guest.client().ping().unwrap();
}

#[test]
fn many_lines_without_reading_do_not_pile_up() {
    let guest = Guest::run("read x");
    let mut stream = UnixStream::connect(guest.socket()).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // Ends when all buffers between us are full: the shim does not take more.
    let mut taken = 0;
    while taken < (64 << 20) && stream.write_all(&b"ping\n".repeat(1000)).is_ok() {
        taken += 5000;
    }
    assert!(taken < (64 << 20));
    let status = fs::read_to_string(format!("/proc/{}/status", guest.shim.id())).unwrap();
    let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 16 * 1024, "{kib} KiB");
    guest.client().ping().unwrap();
}

#[test]
fn more_connections_than_allowed_are_told_so_and_idle_ones_are_closed() {
    let guest = Guest::run("read x");
    let mut streams: Vec<UnixStream> =
        (0..100).map(|_| UnixStream::connect(guest.socket()).unwrap()).collect();
    let began = Instant::now();
    let mut answers = Vec::new();
    for stream in &mut streams {
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answers.push(answer);
    }
    let busy = answers.iter().filter(|a| *a == "error busy too many connections\n").count();
    let idle = answers.iter().filter(|a| a.is_empty()).count();
    assert_eq!((busy, idle), (68, 32));
    assert!(began.elapsed() > Duration::from_secs(8), "{:?}", began.elapsed());
    guest.client().ping().unwrap();
}

#[test]
fn a_full_log_disk_neither_blocks_nor_ends_the_guest() {
    let disk = Tmpfs::mount(64 * 1024);
    let options = Options { log_dir: Some(disk.path().to_owned()), ..Options::default() };
    let mut guest = Guest::with(
        "read x; head -c 500000 /dev/zero | tr '\\0' a; echo done; read x; echo later; exit 6",
        options,
    );
    let mut console = guest.attach(Access::Write);
    console.type_bytes(b"\n").unwrap();
    read_until(&mut console, "done\r\n");
    assert!(fs::metadata(&guest.log).unwrap().len() <= 64 * 1024);
    // Room again: the log says what is missing, then goes on.
    fs::OpenOptions::new().write(true).open(&guest.log).unwrap().set_len(0).unwrap();
    console.type_bytes(b"\n").unwrap();
    assert_eq!(guest.end(), Exit::Code(6));
    let text = guest.log_text();
    assert!(text.contains("bytes of output were not logged]\r\n"), "{text}");
    assert!(text.ends_with("later\r\n"), "{text}");
}

#[test]
fn a_log_directory_that_vanishes_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        Options { log_dir: Some(dir.path().to_owned()), log_max: 4096, ..Options::default() };
    let mut guest = Guest::with("read x; seq 1 10000; exit 6", options);
    drop(dir);
    guest.attach(Access::Write).type_bytes(b"\n").unwrap();
    assert_eq!(guest.end(), Exit::Code(6));
}

#[test]
fn the_group_may_watch_and_type_but_not_act_for_the_host() {
    const GROUP: u32 = 64_123;
    let guest = Guest::with("read x; exit 8", Options { group: Some(GROUP), ..Options::default() });
    let meta = fs::metadata(guest.socket()).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o660, 0, GROUP));
    assert_eq!(fs::metadata(guest.vm_dir.join("shim.json")).unwrap().mode() & 0o7777, 0o600);
    fs::set_permissions(guest.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let socket = guest.socket();
    let as_user = move |gid: u32, socket: PathBuf| {
        let thread = std::thread::spawn(move || {
            let (uid, gid) = (Uid::from_raw(65_534), Gid::from_raw(gid));
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            Client::connect(&socket, LONG)
        });
        thread.join().unwrap()
    };
    let outsider = as_user(64_124, socket.clone()).unwrap_err();
    assert_eq!(outsider.kind(), std::io::ErrorKind::PermissionDenied);
    let code = |result: Result<(), ClientError>| match result.unwrap_err() {
        ClientError::Refused(refusal) => refusal.code,
        other => panic!("{other}"),
    };
    let mut member = as_user(GROUP, socket.clone()).unwrap();
    assert_eq!(code(member.start()), Code::Denied);
    assert_eq!(code(member.signal(9)), Code::Denied);
    assert_eq!(code(member.quit()), Code::Denied);
    assert_eq!(code(member.master().map(drop)), Code::Denied);
    member.ping().unwrap();
    // Members together cannot lock the host out.
    let members: Vec<_> = (0..40).map(|_| as_user(GROUP, socket.clone()).unwrap()).collect();
    guest.client().ping().unwrap();
    drop(members);
    let mut console = member.attach(Access::Write, Default::default(), false).unwrap();
    assert!(console.writes());
    console.type_bytes(b"\n").unwrap();
    let mut guest = guest;
    assert_eq!(guest.end(), Exit::Code(8));
}

#[test]
fn wrong_arguments_are_named_on_standard_error() {
    #[expect(clippy::disallowed_methods, reason = "the test makes the processes it tests")]
    let output = std::process::Command::new(crate::guest::SHIM).arg("--color").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "ocivisor-shim: --color needs a value\n");
}
