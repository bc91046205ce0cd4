//! A host for whole-system tests: a real daemon with directories, control groups and a network
//! namespace of its own, so that many live side by side and leave nothing.
//!
//! Programs are those of `OCIVISOR_BIN_DIR`, which `cargo xtask test` builds and sets. Everything
//! is driven as users and platforms do: the CLI, the driver scripts with oned's argv and stdin
//! through a pipe, and looked at from outside (mounts, links, processes), not only by answers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::disallowed_methods,
    reason = "test harness: a panic is a failed test, and it starts the programs under test"
)]

pub mod context_disk;
pub mod count;
pub mod fixture;
pub mod frontend;
pub mod image;
pub mod monitor;
pub mod share;
pub mod viewer;
pub mod wait;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

pub use count::Counts;
pub use fixture::Call;
pub use monitor::Monitor;
pub use share::DeadShare;
pub use viewer::Viewer;
pub use wait::{wait_for, wait_for_option};

/// How long anything may take before the test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A host with a daemon.
#[derive(Debug)]
pub struct Host {
    dir: TempDir,
    name: String,
    daemon: Option<Child>,
    environment: Vec<(String, String)>,
}

/// What a program answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Exit code; -1 if it was killed.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Answer {
    /// What it ended with and wrote.
    #[must_use]
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The standard output of a success.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// The standard output of a success, as JSON.
    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok()).expect("JSON")
    }
}

/// The directory of the programs under test.
#[must_use]
pub fn bin_dir() -> PathBuf {
    let dir = std::env::var_os("OCIVISOR_BIN_DIR");
    dir.expect("OCIVISOR_BIN_DIR is not set: run these tests by `cargo xtask test`").into()
}

/// The repository.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

impl Host {
    /// A host whose daemon answers, with a bridge `br0` and the image `busybox`.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// The same with more keys in the section `[guests]` of the daemon's configuration, or more
    /// sections; `@DIR@` stands for the host's directory.
    #[must_use]
    pub fn start_with(guests: &str) -> Self {
        let mut host = Self::without_daemon();
        let path = host.dir().join("c.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        let more = guests.replace("@DIR@", &host.dir().display().to_string());
        std::fs::write(&path, config + &more).unwrap();
        host.start_daemon();
        host.add_bridge("br0", "192.168.100.1/24");
        let tar = host.dir().join("busybox.tar");
        image::busybox(&tar);
        let source = format!("rootfs:{}", tar.display());
        host.cli(&["image", "import", &source, "busybox"]).ok();
        host
    }

    /// A host whose daemon was not yet started.
    #[must_use]
    pub fn without_daemon() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        // Short: unix sockets below must fit into 107 bytes.
        let dir = tempfile::Builder::new().prefix("ocv").tempdir_in("/tmp").unwrap();
        let name = format!("ocvt{}-{n}", std::process::id());
        tool(&["ip", "netns", "add", &name]);
        let host = Self { dir, name, daemon: None, environment: Vec::new() };
        host.in_netns(&["ip", "link", "set", "lo", "up"]).ok();
        for sub in ["s", "r", "ds"] {
            std::fs::create_dir(host.dir().join(sub)).unwrap();
        }
        // What a guest that ends at once may take for it; more where processors are emulated.
        let settle = std::env::var("OCIVISOR_TEST_SETTLE_MS").unwrap_or_else(|_| "50".to_owned());
        let config = format!(
            "cgroup_base = \"{}\"\nlibexec_dir = \"{}\"\nlog_level = \"info\"\n\
             [images]\npolicy = \"{}\"\n[guests]\nsettle_ms = {settle}\nlxcfs_dir = \"{}\"\n",
            host.name,
            bin_dir().display(),
            // Not the machine's own.
            host.dir().join("policy.json").display(),
            host.dir().join("lxcfs").display()
        );
        std::fs::write(host.dir().join("c.toml"), config).unwrap();
        host
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The run directory.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir().join("r")
    }

    /// The state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir().join("s")
    }

    /// Name of its network namespace and of its control groups.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("ocivisord.sock")
    }

    /// Sets a variable for daemons started from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.environment.retain(|(n, _)| n != name);
        self.environment.push((name.into(), value.into()));
    }

    /// Removes a variable for daemons started from now on.
    pub fn unset_env(&mut self, name: &str) {
        self.environment.retain(|(n, _)| n != name);
    }

    /// The daemon's process id.
    #[must_use]
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().expect("a daemon").id()
    }

    /// Starts the daemon, in the host's network namespace, and waits until it answers.
    pub fn start_daemon(&mut self) {
        assert!(self.daemon.is_none(), "a daemon runs");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir().join("daemon.log"))
            .unwrap();
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg(bin_dir().join("ocivisord"))
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--config")
            .arg(self.dir().join("c.toml"))
            .envs(self.environment.iter().map(|(n, v)| (n, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut daemon = command.spawn().unwrap();
        let socket = self.socket();
        let begun = wait::wait_for_option(PATIENCE, || {
            if let Some(status) = daemon.try_wait().unwrap() {
                return Some(Err(status));
            }
            std::os::unix::net::UnixStream::connect(&socket).ok().map(|_| Ok(()))
        });
        match begun {
            Some(Ok(())) => self.daemon = Some(daemon),
            other => panic!("the daemon did not begin: {other:?}\n{}", self.daemon_log()),
        }
    }

    /// Kills the daemon as `kill -9` does.
    pub fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    /// Waits until the daemon died by itself (a fault point).
    pub fn daemon_dies(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon");
        let died = wait::wait_for_option(PATIENCE, || daemon.try_wait().unwrap());
        assert!(died.is_some(), "the daemon lives on\n{}", self.daemon_log());
    }

    /// Kills the daemon and starts another.
    pub fn restart_daemon(&mut self) {
        self.kill_daemon();
        self.start_daemon();
    }

    /// What a boot of the machine is to a host: nothing runs or is mounted, the run directory is empty,
    /// the state directory is as it was. Then a daemon is started.
    pub fn reboot(&mut self) {
        static BOOTS: AtomicU32 = AtomicU32::new(0);
        self.kill_daemon();
        count::clear(self);
        std::fs::remove_dir_all(self.run_dir()).unwrap();
        std::fs::create_dir(self.run_dir()).unwrap();
        let boot = format!("boot-{}", BOOTS.fetch_add(1, Ordering::Relaxed));
        self.set_env("OCIVISOR_FAULT_BOOT", &boot);
        self.start_daemon();
    }

    /// Tells the daemon to stop and waits for it.
    pub fn stop_daemon(&mut self) -> i32 {
        let mut daemon = self.daemon.take().expect("a daemon");
        tool(&["kill", "-TERM", &daemon.id().to_string()]);
        let status = wait::wait_for_option(PATIENCE, || daemon.try_wait().unwrap());
        status.expect("it stops").code().unwrap_or(-1)
    }

    /// What the daemon wrote.
    #[must_use]
    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.dir().join("daemon.log")).unwrap_or_default()
    }

    /// Runs the CLI.
    pub fn cli(&self, arguments: &[&str]) -> Answer {
        Answer::of(&self.cli_command(arguments).output().unwrap())
    }

    /// The CLI with these arguments, to be run as the test wants.
    #[must_use]
    pub fn cli_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(bin_dir().join("ocivisor"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("OCIVISOR_SOCKET", self.socket())
            .stdin(Stdio::null());
        command
    }

    /// Runs a driver script as oned does: no terminal, stdin through a pipe and in pieces.
    pub fn driver(&self, call: &Call) -> Answer {
        let mut child = self.driver_command(call).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let middle = call.stdin.len() / 2;
        for piece in [&call.stdin[..middle], &call.stdin[middle..], b"\n"] {
            // A script that refuses early need not read all.
            if stdin.write_all(piece).and_then(|()| stdin.flush()).is_err() {
                break;
            }
        }
        drop(stdin);
        Answer::of(&child.wait_with_output().unwrap())
    }

    /// The driver script with a pipe as stdin, to be run as the test wants. The context disk that the
    /// call expects is made before, as oned has it.
    #[must_use]
    pub fn driver_command(&self, call: &Call) -> Command {
        context_disk::for_call(call);
        let remotes = repository().join("driver-scripts/opennebula/remotes/vmm/ocivisor");
        let mut command = Command::new(remotes.join(&call.action));
        command
            .args(&call.arguments)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/games")
            .env("OCIVISOR_BIN", bin_dir().join("ocivisor"))
            .env("OCIVISOR_SOCKET", self.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command as another user, in the group of the same number alone.
    pub fn as_user(&self, uid: u32, command: &Command, stdin: &[u8]) -> Answer {
        self.as_member(uid, uid, command, stdin)
    }

    /// Runs a command as another user, in that group alone.
    pub fn as_member(&self, uid: u32, gid: u32, command: &Command, stdin: &[u8]) -> Answer {
        let (uid, gid, mut other) = (uid.to_string(), gid.to_string(), Command::new("setpriv"));
        other.args(["--reuid", &uid, "--regid", &gid, "--clear-groups"]);
        other.arg(command.get_program()).args(command.get_args()).env_clear();
        other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        other.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = other.spawn().unwrap();
        // A command that refuses early need not read.
        let _early = child.stdin.take().unwrap().write_all(stdin);
        Answer::of(&child.wait_with_output().unwrap())
    }

    /// Runs a program in the host's network namespace.
    pub fn in_netns(&self, arguments: &[&str]) -> Answer {
        let net = format!("--net=/run/netns/{}", self.name);
        let output = Command::new("nsenter").arg(net).args(arguments).output().unwrap();
        Answer::of(&output)
    }

    /// Adds a bridge with an address.
    pub fn add_bridge(&self, name: &str, address: &str) {
        self.in_netns(&["ip", "link", "add", name, "type", "bridge"]).ok();
        self.in_netns(&["ip", "address", "add", address, "dev", name]).ok();
        self.in_netns(&["ip", "link", "set", name, "up"]).ok();
    }

    /// The directory where a platform keeps a VM's disks, made if need be.
    #[must_use]
    pub fn vm_dir(&self, number: u32) -> PathBuf {
        let dir = self.dir().join(format!("ds/101/{number}"));
        if !dir.exists() {
            std::fs::create_dir_all(&dir).unwrap();
            // What recorded VMs have at most beside their root disk.
            for disk in [1, 2] {
                let file = std::fs::File::create(dir.join(format!("disk.{disk}"))).unwrap();
                file.set_len(16 << 20).unwrap();
            }
        }
        dir
    }

    /// Makes `disk.0` of a VM from the image `busybox`, as the platform's transfer driver will.
    pub fn add_disk(&self, number: u32) -> PathBuf {
        let path = self.vm_dir(number).join("disk.0");
        let text = path.display().to_string();
        self.cli(&["disk", "create", "--image", "busybox", "--size", "64MiB", &text]).ok();
        path
    }

    /// `info` of a VM as JSON; `None` if it is not known.
    #[must_use]
    pub fn info(&self, vm: &str) -> Option<Value> {
        let answer = self.cli(&["info", vm, "-o", "json"]);
        match answer.code {
            3 => None,
            _ => Some(answer.json()),
        }
    }

    /// Everything of this host that must not leak, counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts::of(self)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- daemon of {} ---\n{}", self.name, self.daemon_log());
        }
        self.kill_daemon();
        count::clear(self);
        // A namespace that is gone already is as good.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Runs a host tool that must succeed.
#[track_caller]
pub fn tool(arguments: &[&str]) -> String {
    let output = Command::new(arguments[0]).args(&arguments[1..]).output().unwrap();
    Answer::of(&output).ok()
}

/// Writes a file for a program under test.
pub fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}
