//! A guest for tests: a command on its own terminal, under a shim, cleaned up when dropped.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ocivisor_shim::client::{Client, Console, Event};
use ocivisor_shim::exit::{self, Exit, ExitRecord};
use ocivisor_shim::facts::{self, Facts, Process, start_ticks};
use ocivisor_shim::message::{Access, Size};
use ocivisor_shim::sys;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::TempDir;

pub const LONG: Duration = Duration::from_secs(20);
pub const SHIM: &str = env!("CARGO_BIN_EXE_ocivisor-shim");

/// Starts the guest as its child, then becomes the shim, as the runtime does. The master comes as
/// standard input, the status pipe as standard output. No shell: it may collect a guest that ended.
const CREATE: &str = r#"
    use POSIX ();
    $^F = 255;
    my $pid = fork();
    if (!$pid) {
        POSIX::setsid();
        open(STDIN, '+<', $ENV{PTS}) or die;
        open(STDOUT, '>&', \*STDIN); open(STDERR, '>&', \*STDIN);
        ioctl(STDIN, 0x540e, 0);
        exec 'sh', '-c', $ENV{GUEST};
    }
    sub stat_fields {
        open(my $stat, '<', "/proc/$pid/stat") or die;
        return split ' ', <$stat> =~ s/.*\) //r;
    }
    my $ticks = (stat_fields())[19];
    if ($ENV{KILL}) {
        kill 9, $pid;
        1 until (stat_fields())[0] eq 'Z';
    }
    open(my $master, '+<&', \*STDIN); open(my $status, '>&', \*STDOUT);
    open(STDIN, '<', '/dev/null'); open(STDOUT, '>', '/dev/null');
    exec $ENV{SHIM}, @ARGV, '--init', $pid, '--start-ticks', $ticks,
        '--console-fd', fileno($master), '--status-fd', fileno($status);
"#;

const ADOPT: &str = r#"
    $^F = 255;
    open(my $master, '+<&', \*STDIN); open(my $status, '>&', \*STDOUT);
    open(STDIN, '<', '/dev/null'); open(STDOUT, '>', '/dev/null');
    my @console = $ENV{CONSOLE} ? ('--console-fd', fileno($master)) : ();
    exec $ENV{SHIM}, '--adopt', @ARGV, @console, '--status-fd', fileno($status);
"#;

pub struct Options {
    pub log_max: u64,
    pub start: Option<String>,
    pub group: Option<u32>,
    /// Whether to kill the guest before the shim is there.
    pub kill: bool,
    /// Where the log goes, if not beside the rest.
    pub log_dir: Option<PathBuf>,
    /// Where the shim's files go, if not beside the rest.
    pub vm_dir: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            log_max: 1 << 20,
            start: None,
            group: None,
            kill: false,
            log_dir: None,
            vm_dir: None,
        }
    }
}

pub struct Guest {
    pub dir: TempDir,
    pub vm_dir: PathBuf,
    pub log: PathBuf,
    pub log_max: u64,
    pub init: Process,
    pub init_fd: Option<OwnedFd>,
    pub shim: Child,
}

impl Guest {
    pub fn run(script: &str) -> Self {
        Self::with(script, Options::default())
    }

    pub fn with(script: &str, options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vm_dir = options.vm_dir.unwrap_or_else(|| dir.path().to_owned());
        let log = options.log_dir.as_deref().unwrap_or(dir.path()).join("console.log");
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let pts = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let mut command = wrapper(CREATE, &vm_dir, &log, options.log_max);
        command.env("GUEST", script).env("PTS", pts).stdin(Stdio::from(master));
        command.args(["--start", options.start.as_deref().unwrap_or("none")]);
        if options.kill {
            command.env("KILL", "yes");
        }
        if let Some(group) = options.group {
            command.args(["--group", &group.to_string()]);
        }
        let (shim, init) = ready(command).unwrap();
        let init_fd = pidfd(init);
        Self { dir, vm_dir, log, log_max: options.log_max, init, init_fd, shim }
    }

    pub fn socket(&self) -> PathBuf {
        self.vm_dir.join(facts::SOCKET)
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket(), LONG).unwrap()
    }

    pub fn attach(&self, access: Access) -> Console {
        let size = Size { cols: 132, rows: 43 };
        let console = self.client().attach(access, size, false).unwrap();
        console.stream().set_read_timeout(Some(LONG)).unwrap();
        console
    }

    pub fn facts(&self) -> Facts {
        Facts::from_json(&fs::read(self.vm_dir.join(facts::FILE)).unwrap()).unwrap()
    }

    pub fn record(&self) -> Option<ExitRecord> {
        ExitRecord::from_json(&fs::read(self.vm_dir.join(exit::FILE)).ok()?)
    }

    /// The recorded end, once the shim ended as well.
    pub fn end(&mut self) -> Exit {
        let status = reaped(&mut self.shim);
        assert!(status.success(), "{status}");
        let record = self.record().unwrap();
        assert_eq!(record.init, self.init);
        record.exit
    }

    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn kill_shim(&mut self) {
        self.shim.kill().unwrap();
        self.shim.wait().unwrap();
    }

    /// A new shim after the old one died.
    pub fn adopt(&mut self, master: Option<OwnedFd>) -> Result<(), String> {
        let mut command = wrapper(ADOPT, &self.vm_dir, &self.log, self.log_max);
        let (init, ticks) = (self.init.pid.to_string(), self.init.start_ticks.to_string());
        command.args(["--init", &init, "--start-ticks", &ticks]);
        match master {
            Some(master) => {
                command.env("CONSOLE", "yes").stdin(Stdio::from(master));
            }
            None => {
                command.stdin(Stdio::null());
            }
        }
        let (shim, init) = ready(command)?;
        assert_eq!(init, self.init);
        self.shim = shim;
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(init) = &self.init_fd {
            let _ = sys::send_signal(init.as_fd(), 9);
        }
        let _ = self.shim.kill();
        let _ = self.shim.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "the test makes the processes it tests")]
fn wrapper(script: &str, vm_dir: &Path, log: &Path, log_max: u64) -> Command {
    let mut command = Command::new("perl");
    command.args(["-e", script, "--"]).env("SHIM", SHIM).stdout(Stdio::piped());
    command.arg("--vm-dir").arg(vm_dir).arg("--socket-dir").arg(vm_dir).arg("--log").arg(log);
    command.args(["--log-max", &log_max.to_string()]);
    command
}

/// Waits for the status line; who the guest's first process is.
fn ready(mut command: Command) -> Result<(Child, Process), String> {
    let mut shim = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(shim.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let ["ready", pid, ticks, own] = words[..] else {
        shim.wait().unwrap();
        return Err(line);
    };
    assert_eq!(own.parse().ok(), start_ticks(shim.id()));
    let init = Process { pid: pid.parse().unwrap(), start_ticks: ticks.parse().unwrap() };
    Ok((shim, init))
}

/// `None` if it ended and was collected.
pub fn pidfd(process: Process) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(process.pid).unwrap()).unwrap();
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits for a condition; says what was waited for if it does not come.
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "did not come: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

pub fn reaped(child: &mut Child) -> std::process::ExitStatus {
    until("the shim's end", || child.try_wait().unwrap())
}

/// Reads until the text was printed; everything up to then, and the bytes that were left out.
pub fn read_until(console: &mut Console, text: &str) -> (String, u64) {
    let (mut seen, mut gap) = (Vec::new(), 0);
    loop {
        match console.next_event().unwrap() {
            Event::Output(bytes) => seen.extend_from_slice(&bytes),
            Event::Gap(bytes) => gap += u64::from(bytes),
            end @ (Event::Exit(_) | Event::Detached) => {
                panic!("{end:?} before {text:?} in {:?}", String::from_utf8_lossy(&seen))
            }
        }
        // Only the end is searched, so that much output stays cheap.
        let from = seen.len().saturating_sub(8192 + text.len());
        if seen[from..].windows(text.len()).any(|part| part == text.as_bytes()) {
            return (String::from_utf8_lossy(&seen).into_owned(), gap);
        }
    }
}

/// What comes after everything that was printed.
pub fn last_events(console: &mut Console) -> Vec<Event> {
    let mut events = Vec::new();
    while events.last() != Some(&Event::Detached) {
        match console.next_event().unwrap() {
            Event::Output(_) | Event::Gap(_) => {}
            event @ (Event::Exit(_) | Event::Detached) => events.push(event),
        }
    }
    events
}
