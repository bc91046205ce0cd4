//! Starts `ocivisor-vnc` as its contract says, and ends it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use ocivisor_vnc::record::{FILE, Record};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{LONG, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ocivisor-vnc");
/// Nobody's ids: no user has them, and no file.
pub const UID: u32 = 64_998;
pub const GID: u32 = 64_999;

/// The program, and the directory of its VM.
pub struct Program {
    pub dir: TempDir,
    pub port: u16,
    child: Child,
}

pub struct Options<'a> {
    pub password: Option<&'a [u8]>,
    pub address: &'a str,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { password: Some(b"secret12"), address: "127.0.0.1:0" }
    }
}

impl Program {
    pub fn start() -> Self {
        Self::start_with(&Options::default()).unwrap()
    }

    /// Or the line with which it failed.
    pub fn start_with(options: &Options<'_>) -> Result<Self, String> {
        Self::start_in(tempfile::tempdir().unwrap(), options)
    }

    /// In a directory where a shim may be already.
    pub fn start_in(dir: TempDir, options: &Options<'_>) -> Result<Self, String> {
        let listener = TcpListener::bind(options.address).unwrap();
        let port = listener.local_addr().unwrap().port();
        // Not inherited by what other tests start meanwhile: an end that is left open is no end.
        let pipe = || pipe_with(PipeFlags::CLOEXEC).unwrap();
        let ((status, far_status), (far_password, password)) = (pipe(), pipe());
        let mut command = Command::new(PROGRAM);
        command.args(["--name", "one-42"]);
        command.arg("--vm-dir").arg(dir.path()).arg("--socket").arg(socket(&dir));
        command.args(["--uid", &UID.to_string(), "--gid", &GID.to_string()]);
        let mut passed: Vec<OwnedFd> = vec![listener.into(), far_status];
        command.args(["--listen-fd", "10", "--status-fd", "11"]);
        match options.password {
            Some(text) => {
                fs::File::from(password).write_all(text).unwrap();
                command.args(["--password-fd", "12"]);
                passed.push(far_password);
            }
            None => drop(command.arg("--no-password")),
        }
        let numbers: Vec<_> = passed.iter().map(AsRawFd::as_raw_fd).collect();
        let free = numbers.iter().max().unwrap_or(&0).max(&20) + 1;
        // SAFETY: dup2 and nothing else between fork and exec.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || {
                // Out of the way first, so that none is overwritten before it is moved.
                for (to, fd) in (free..).zip(&numbers) {
                    move_to(*fd, to)?;
                }
                for (to, fd) in (10..).zip(free..).take(numbers.len()) {
                    move_to(fd, to)?;
                }
                Ok(())
            });
        }
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap();
        drop(passed);
        let mut line = String::new();
        BufReader::new(fs::File::from(status)).read_line(&mut line).unwrap();
        if !line.starts_with("ready ") {
            child.wait().unwrap();
            return Err(line);
        }
        let program = Self { dir, port, child };
        assert_eq!(line, program.ready_line());
        Ok(program)
    }

    fn ready_line(&self) -> String {
        let keeper = self.record().unwrap().keeper;
        assert_eq!(keeper.pid, self.child.id());
        format!("ready {} {}\n", keeper.pid, keeper.start_ticks)
    }

    pub fn socket(&self) -> PathBuf {
        socket(&self.dir)
    }

    pub fn record(&self) -> Option<Record> {
        Record::from_json(&fs::read(self.dir.path().join(FILE)).ok()?)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    /// A connection that is in already, by security none and with a shared screen.
    pub fn come_in(&self) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(b"RFB 003.008\n\x01\x01").unwrap();
        let mut head = [0; 12 + 2 + 4 + 24];
        stream.read_exact(&mut head).unwrap();
        let mut name = vec![0; usize::from(head[41])];
        stream.read_exact(&mut name).unwrap();
        assert_eq!(name, b"one-42");
        stream
    }

    /// The process that faces the network.
    pub fn server(&self) -> u32 {
        until("a server", || self.try_server())
    }

    pub fn try_server(&self) -> Option<u32> {
        let keeper = self.child.id();
        let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    pub fn keeper(&self) -> u32 {
        self.child.id()
    }

    /// A line of /proc/PID/status.
    pub fn status(pid: u32, field: &str) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Kilobytes of memory that the server has at most had.
    pub fn peak(&self) -> u64 {
        let text = Self::status(self.server(), "VmHWM").unwrap();
        text.trim_end_matches(" kB").parse().unwrap()
    }

    pub fn signal(&self, pid: u32, signal: Signal) {
        kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

/// Where the shim is.
pub fn socket(dir: &TempDir) -> PathBuf {
    dir.path().join("shim.sock")
}

fn move_to(from: i32, to: i32) -> std::io::Result<()> {
    // SAFETY: both are numbers of this child, which owns no other.
    #[allow(unsafe_code)]
    match unsafe { libc::dup2(from, to) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(()),
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
