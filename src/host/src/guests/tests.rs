//! Real shims, processes and control groups, under a runtime that only plays one: it opens a
//! terminal, starts a shell script on it, and becomes the shim, as `ocivisor-runtime` does.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ocivisor_core::error::ErrorKind;
use ocivisor_core::ids::VmId;
use ocivisor_core::ports::{Cgroups, GuestView, Guests};
use ocivisor_core::spec::{
    Boot, Context, InitKind, IoLimits, Isolation, Placement, Platform, Resources, RootDisk, Upkeep,
    VmSpec,
};
use ocivisor_core::state::{GuestExit, GuestFacts, GuestKind, ProcessRef};
use ocivisor_core::units::{Bytes, CentiCores};
use ocivisor_shim::client::{Client, Event};
use ocivisor_shim::message::{Access, Size};
use tempfile::TempDir;

use super::adopt::LOST_CONSOLE;
use super::*;
use crate::labels::Use;
use crate::process;

const LONG: Duration = Duration::from_secs(20);

const RUNTIME: &str = r#"#!/usr/bin/perl
use POSIX ();
$^F = 255;
my $verb = shift @ARGV;
my (%o, @procs);
while (@ARGV) {
    my ($k, $v) = (shift @ARGV, shift @ARGV);
    if ($k eq '--cgroup-procs') { push @procs, $v } else { $o{$k} = $v }
}
for (@procs) { open(my $f, '>', $_) or die; syswrite($f, '0'); close $f }
open(my $status, '>&=', $o{'--status-fd'}) or die;
@BEFORE@
open(my $master, '+<', '/dev/ptmx') or die;
my $n = pack('i', 0);
ioctl($master, 0x40045431, $n) && ioctl($master, 0x80045430, $n) or die;
my $pid = fork();
if (!$pid) {
    POSIX::setsid();
    open(STDIN, '+<', '/dev/pts/' . unpack('i', $n)) or die;
    open(STDOUT, '>&', \*STDIN); open(STDERR, '>&', \*STDIN);
    close $master; close $status;
    exec 'sh', '-c', q{@GUEST@};
}
open(my $stat, '<', "/proc/$pid/stat") or die;
my $ticks = (split ' ', <$stat> =~ s/.*\) //r)[19];
close $stat;
my @group = defined $o{'--group'} ? ('--group', $o{'--group'}) : ();
exec $o{'--shim'}, '--vm-dir', $o{'--vm-dir'}, '--socket-dir', $o{'--socket-dir'}, '--log', $o{'--log'}, '--log-max', $o{'--log-max'},
    '--init', $pid, '--start-ticks', $ticks, '--console-fd', fileno($master), '--status-fd',
    $o{'--status-fd'}, '--start', q{@START@}, @group;
"#;

/// The shim, built beside this test: another package's program is not built for tests.
fn shim_bin() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // <target>/debug/deps/<this test>
        let exe = std::env::current_exe().unwrap();
        let profile = exe.parent().unwrap().parent().unwrap();
        #[expect(clippy::disallowed_methods, reason = "the build tool of the test itself")]
        let built = std::process::Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "ocivisor-shim", "--bins", "--target-dir"])
            .arg(profile.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success());
        profile.join("ocivisor-shim")
    })
}

struct Host {
    dir: TempDir,
    guests: HostGuests,
    id: VmId,
}

impl Host {
    fn new(guest: &str) -> Self {
        Self::with(guest, "", "none")
    }

    fn with(guest: &str, before: &str, start: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let base =
            format!("ocvguests{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let layout = Layout {
            state: dir.path().join("state"),
            run: dir.path().join("run"),
            cgroup_base: base,
        };
        let runtime_bin = dir.path().join("runtime");
        let script = RUNTIME.replace("@GUEST@", guest).replace("@BEFORE@", before);
        crate::fs::replace(&runtime_bin, script.replace("@START@", start).as_bytes()).unwrap();
        fs::set_permissions(&runtime_bin, fs::Permissions::from_mode(0o755)).unwrap();
        let cgroups = HostCgroups::new(&layout).unwrap();
        let id: VmId = "one-7".parse().unwrap();
        cgroups.ensure_cgroup(&id, &resources()).unwrap();
        let settings = Settings {
            layout,
            cgroups,
            runtime_bin,
            shim_bin: shim_bin().to_owned(),
            vnc_bin: "/nonexistent".into(),
            console_group: None,
            log_max: Bytes(100_000),
            engine: Engine::Embedded,
            labels: Labels::none(),
            lxcfs: Lxcfs::new("/nonexistent".into(), Use::Off),
            boot: "this".to_owned(),
        };
        Self { dir, guests: HostGuests::new(settings), id }
    }

    fn launch(&self) -> ocivisor_core::error::Result<GuestFacts> {
        let bundle = bundle::Facts { kind: GuestKind::Application, stop_signal: 15 };
        self.guests.launch(&self.id, bundle)
    }

    /// As after a restart of the daemon.
    fn restart(&mut self) {
        // Its shims are its children still; init would reap them.
        let children = std::mem::take(&mut *self.guests.children.lock().unwrap());
        self.guests = HostGuests::new(self.guests.settings.clone());
        *self.guests.children.lock().unwrap() = children;
    }

    fn run(&self) -> crate::layout::VmRun {
        self.guests.settings.layout.run_vm(&self.id)
    }

    fn log(&self) -> String {
        let log = self.guests.settings.layout.console_log(&self.id);
        String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned()
    }

    fn wait_log(&self, text: &str) {
        until(text, || self.log().contains(text).then_some(()));
    }

    fn type_line(&self, line: &str) {
        let client = Client::connect(&self.guests.console_socket(&self.id), LONG).unwrap();
        let mut console = client.attach(Access::Take, Size::default(), false).unwrap();
        console.type_bytes(line.as_bytes()).unwrap();
        console.detach().unwrap();
        while console.next_event().unwrap() != Event::Detached {}
    }

    fn kill_shim(&self, facts: &GuestFacts) {
        process::kill(facts.shim);
        until("the shim's death", || (!process::is_alive(facts.shim)).then_some(()));
        self.guests.reap();
    }

    fn wait(&self, facts: &GuestFacts) -> GuestExit {
        self.guests.wait_exit(&self.id, facts, LONG, &|| false).unwrap().unwrap()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.guests.drop_guest(&self.id);
        let cgroups = &self.guests.settings.cgroups;
        let _ = cgroups.drop_cgroup(&self.id);
        for root in cgroups.hierarchies().all() {
            let _ = fs::remove_dir(root.join(&self.guests.settings.layout.cgroup_base));
        }
        self.guests.reap();
    }
}

fn resources() -> Resources {
    Resources {
        cpu_share: CentiCores(100),
        vcpus: 1,
        cpu_quota: None,
        memory: Bytes::mib(64),
        swap: Bytes(0),
        pids: 64,
        io_weight: None,
        placement: Placement::default(),
        hugepages: Vec::new(),
    }
}

fn spec() -> VmSpec {
    VmSpec {
        id: "one-7".parse().unwrap(),
        name: "seven".parse().unwrap(),
        hostname: "seven".parse().unwrap(),
        platform: Platform::Local,
        resources: resources(),
        boot: Boot { init: InitKind::Auto, ..Boot::default() },
        root: RootDisk { path: "/nowhere/disk".into(), io: IoLimits::default() },
        disks: Vec::new(),
        nics: vec![],
        isolation: Isolation::Default,
        context: Context::default(),
        graphics: None,
        upkeep: Upkeep::default(),
    }
}

fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "did not come: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

const ECHO: &str =
    r#"stty -echo; echo ready; while read x; do echo "<$x>"; [ "$x" = end ] && exit 7; done"#;

#[test]
fn a_guest_from_creation_to_its_end() {
    let host = Host::new(ECHO);
    let id = &host.id;
    assert_eq!(host.guests.observe_guest(id, None).unwrap(), GuestView::Absent);
    let facts = host.launch().unwrap();
    assert!(process::is_alive(facts.init) && process::is_alive(facts.shim));
    assert_eq!((facts.kind, facts.stop_signal), (GuestKind::Application, 15));
    let running = GuestView::Running { shim_alive: true };
    assert_eq!(host.guests.observe_guest(id, Some(&facts)).unwrap(), running);
    assert_eq!(host.guests.observe_guest(id, None).unwrap(), running);
    assert_eq!(host.guests.observe_guests().unwrap(), BTreeSet::from([id.clone()]));
    let shims = fs::read_to_string(&host.guests.settings.cgroups.shim_procs(id)[0]).unwrap();
    assert!(shims.lines().any(|line| line == facts.shim.pid.to_string()), "{shims}");
    host.guests.start_guest(id, &facts).unwrap();
    host.wait_log("ready");
    let waited = |timeout: u64, stop: bool| {
        host.guests.wait_exit(id, &facts, Duration::from_millis(timeout), &|| stop).unwrap()
    };
    assert_eq!(waited(0, false), None);
    assert_eq!(waited(60_000, true), None);
    host.type_line("end\n");
    assert_eq!(host.wait(&facts), GuestExit::Code(7));
    assert_eq!(host.wait(&facts), GuestExit::Code(7));
    let ended = GuestView::Exited(GuestExit::Code(7));
    assert_eq!(host.guests.observe_guest(id, Some(&facts)).unwrap(), ended);
    assert_eq!(host.guests.observe_guest(id, None).unwrap(), ended);
    host.guests.signal_guest(id, &facts, 15).unwrap();
    assert_eq!(host.guests.start_guest(id, &facts).unwrap_err().kind, ErrorKind::Host);
    until("the shim is reaped", || {
        host.guests.reap();
        host.guests.children.lock().unwrap().is_empty().then_some(())
    });
    host.guests.drop_guest(id).unwrap();
    assert_eq!(host.guests.observe_guest(id, Some(&facts)).unwrap(), GuestView::Absent);
    assert!(host.guests.observe_guests().unwrap().is_empty());
}

#[test]
fn dropping_ends_everything_keeps_the_log_and_may_run_twice() {
    let host = Host::new("trap '' TERM; sleep 1000 & echo ready; wait");
    let facts = host.launch().unwrap();
    host.wait_log("ready");
    let others = host.run().dir().join("root");
    fs::create_dir(&others).unwrap();
    host.guests.drop_guest(&host.id).unwrap();
    assert!(!process::is_alive(facts.init) && !process::is_alive(facts.shim));
    let left = fs::read_dir(host.run().dir()).unwrap().map(|e| e.unwrap().path());
    assert_eq!(left.collect::<BTreeSet<_>>(), BTreeSet::from([others.clone()]));
    for procs in host.guests.settings.cgroups.shim_procs(&host.id) {
        assert_eq!(fs::read_to_string(procs).unwrap(), "");
    }
    fs::remove_dir(others).unwrap();
    host.guests.drop_guest(&host.id).unwrap();
    host.guests.drop_guest(&host.id).unwrap();
    assert!(!host.run().dir().exists());
    assert!(host.guests.masters.lock().unwrap().is_empty());
    assert_eq!(host.log(), "ready\r\n");
    host.guests.forget_guest(&host.id).unwrap();
    host.guests.forget_guest(&host.id).unwrap();
    assert!(!host.guests.settings.layout.console_log(&host.id).exists());
}

#[test]
fn a_created_guest_waits_for_its_start() {
    let fifo = tempfile::tempdir().unwrap();
    let door = fifo.path().join("exec.fifo");
    let guest = format!("mkfifo {0}; echo made; echo 0 >{0}; echo runs; read x", door.display());
    let host = Host::with(&guest, "", &format!("fifo:{}", door.display()));
    let facts = host.launch().unwrap();
    host.wait_log("made");
    let seen = || host.guests.observe_guest(&host.id, Some(&facts)).unwrap();
    assert_eq!(seen(), GuestView::Created);
    // Also by way of another shim.
    host.kill_shim(&facts);
    let adopted = host.guests.adopt_guest(&spec(), &facts).unwrap();
    assert_eq!(seen(), GuestView::Created);
    host.guests.start_guest(&host.id, &adopted.facts).unwrap();
    host.wait_log("runs");
    host.guests.start_guest(&host.id, &adopted.facts).unwrap();
    let seen = host.guests.observe_guest(&host.id, Some(&adopted.facts)).unwrap();
    assert_eq!(seen, GuestView::Running { shim_alive: true });
}

#[test]
fn a_runtime_that_dies_is_reported_and_what_it_made_is_killed() {
    let before = "if (!fork()) { exec 'sleep', '1000' } kill 9, $$;";
    let host = Host::with("", before, "none");
    let error = host.launch().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Host);
    let want = "guest one-7: its runtime ended without an answer (signal 9)";
    assert_eq!(error.message, want);
    let procs = &host.guests.settings.cgroups.shim_procs(&host.id)[0];
    assert_eq!(fs::read_to_string(procs).unwrap().lines().count(), 1);
    // The sleeper holds the status pipe open all the time.
    host.guests.drop_guest(&host.id).unwrap();
    assert_eq!(fs::read_to_string(procs).unwrap(), "");
}

#[test]
fn what_a_runtime_says_is_the_error() {
    let host =
        Host::with("", "syswrite($status, \"error image no such user: x\\n\"); exit 1;", "none");
    let error = host.launch().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Image);
    assert_eq!(error.message, "guest one-7: no such user: x");
    let mut settings = host.guests.settings.clone();
    settings.runtime_bin = host.dir.path().join("nothing");
    let missing = HostGuests::new(settings);
    let bundle = bundle::Facts { kind: GuestKind::System, stop_signal: 15 };
    assert_eq!(missing.launch(&host.id, bundle).unwrap_err().kind, ErrorKind::Unsupported);
}

#[test]
fn a_second_guest_of_that_id_is_refused_and_the_first_unharmed() {
    let host = Host::new(ECHO);
    let facts = host.launch().unwrap();
    let error = host.guests.create_guest(&spec(), ocivisor_core::ids::IdRange { base: 100_000 });
    assert_eq!(error.unwrap_err().kind, ErrorKind::Conflict);
    assert!(process::is_alive(facts.init));
    host.type_line("end\n");
    assert_eq!(host.wait(&facts), GuestExit::Code(7));
    // The exit is told before the shim itself has ended.
    until("the shim's end", || (!process::is_alive(facts.shim)).then_some(()));
    // Left-overs of an ended guest are cleared.
    host.guests.clear(&host.id).unwrap();
    assert!(!host.run().exit_record().exists());
}

#[test]
fn a_shim_that_dies_alone_loses_nothing() {
    let host = Host::new(ECHO);
    let facts = host.launch().unwrap();
    host.wait_log("ready");
    host.kill_shim(&facts);
    let seen = host.guests.observe_guest(&host.id, Some(&facts)).unwrap();
    assert_eq!(seen, GuestView::Running { shim_alive: false });
    let adoption = host.guests.adopt_guest(&spec(), &facts).unwrap();
    assert_eq!(adoption.losses, Vec::<String>::new());
    assert_ne!(adoption.facts.shim, facts.shim);
    let shims = fs::read_to_string(&host.guests.settings.cgroups.shim_procs(&host.id)[0]).unwrap();
    assert!(shims.lines().any(|line| line == adoption.facts.shim.pid.to_string()), "{shims}");
    // As long as the record names the old one, the guest is to be adopted.
    let seen = |facts| host.guests.observe_guest(&host.id, Some(facts)).unwrap();
    assert_eq!(seen(&facts), GuestView::Running { shim_alive: false });
    assert_eq!(seen(&adoption.facts), GuestView::Running { shim_alive: true });
    // Again is fine and changes nothing.
    assert_eq!(host.guests.adopt_guest(&spec(), &facts).unwrap(), adoption);
    host.type_line("hello\n");
    host.wait_log("<hello>");
    host.type_line("end\n");
    assert_eq!(host.wait(&adoption.facts), GuestExit::Code(7));
    assert_eq!(host.guests.adopt_guest(&spec(), &facts).unwrap_err().kind, ErrorKind::GuestExited);
}

#[test]
fn a_new_daemon_fetches_the_console_from_the_living_shim() {
    let mut host = Host::new(ECHO);
    let facts = host.launch().unwrap();
    host.wait_log("ready");
    host.restart();
    let adoption = host.guests.adopt_guest(&spec(), &facts).unwrap();
    assert_eq!((adoption.facts.shim, adoption.losses), (facts.shim, vec![]));
    host.kill_shim(&facts);
    let adoption = host.guests.adopt_guest(&spec(), &facts).unwrap();
    assert_eq!(adoption.losses, Vec::<String>::new());
    host.type_line("end\n");
    assert_eq!(host.wait(&adoption.facts), GuestExit::Code(7));
}

#[test]
fn a_shim_that_died_with_the_daemon_takes_the_console_along() {
    let mut host = Host::new("trap '' HUP; echo ready; sleep 1000 & wait");
    let facts = host.launch().unwrap();
    host.wait_log("ready");
    host.restart();
    host.kill_shim(&facts);
    let adoption = host.guests.adopt_guest(&spec(), &facts).unwrap();
    assert_eq!(adoption.losses, [LOST_CONSOLE]);
    host.guests.signal_guest(&host.id, &facts, 9).unwrap();
    assert_eq!(host.wait(&adoption.facts), GuestExit::Signal(9));
}

#[test]
fn a_shim_that_does_not_answer_is_replaced() {
    let host = Host::new(ECHO);
    let facts = host.launch().unwrap();
    host.wait_log("ready");
    let stop = process::pidfd(facts.shim).unwrap();
    ocivisor_shim::sys::send_signal(std::os::fd::AsFd::as_fd(&stop), 19).unwrap();
    let adoption = host.guests.adopt_guest(&spec(), &facts).unwrap();
    assert_ne!(adoption.facts.shim, facts.shim);
    host.type_line("end\n");
    assert_eq!(host.wait(&adoption.facts), GuestExit::Code(7));
}

#[test]
fn an_end_that_no_shim_saw_is_told_by_the_kernel() {
    let host = Host::new("trap '' HUP; echo ready; read x; sleep 1; exit 9");
    let facts = host.launch().unwrap();
    host.wait_log("ready");
    host.kill_shim(&facts);
    let waiter = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| host.wait(&facts));
        host.guests.signal_guest(&host.id, &facts, 9).unwrap();
        waiter.join().unwrap()
    });
    // Unknown if it was over before the waiter looked.
    assert!(matches!(waiter, GuestExit::Signal(9) | GuestExit::Unknown), "{waiter:?}");
    let seen = host.guests.observe_guest(&host.id, Some(&facts)).unwrap();
    assert_eq!(seen, GuestView::Exited(GuestExit::Unknown));
}

#[test]
fn facts_of_another_boot_of_the_host_are_nobodys() {
    let host = Host::new(ECHO);
    let me = process::process_ref(std::process::id()).unwrap();
    let facts = GuestFacts {
        init: me,
        shim: ProcessRef { pid: 1, start_ticks: 0 },
        kind: GuestKind::System,
        stop_signal: 15,
        host_boot: "another".into(),
    };
    assert_eq!(host.guests.observe_guest(&host.id, Some(&facts)).unwrap(), GuestView::Absent);
}

#[test]
fn exit_descriptors_become_readable() {
    let host = Host::new(ECHO);
    let facts = host.launch().unwrap();
    let fds = host.guests.exit_fds(&facts);
    assert!(fds.init.is_some() && fds.shim.is_some());
    host.type_line("end\n");
    host.wait(&facts);
    until("both ended", || {
        let fds = host.guests.exit_fds(&facts);
        host.guests.reap();
        (fds.init.is_none() && fds.shim.is_none()).then_some(())
    });
    let readable = |fd: &Option<OwnedFd>| {
        let fd = fd.as_ref().unwrap();
        let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))
    };
    assert_eq!((readable(&fds.init), readable(&fds.shim)), (Ok(1), Ok(1)));
}

#[test]
fn exec_sessions_end_with_the_guest() {
    let host = Host::new(ECHO);
    host.launch().unwrap();
    #[expect(clippy::disallowed_methods, reason = "plays an exec session")]
    let mut session = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let it = process::process_ref(session.id()).unwrap();
    let json = format!("{{\"pid\":{},\"start_ticks\":{}}}", it.pid, it.start_ticks);
    let sockets = host.run().sockets().to_owned();
    crate::fs::replace(&sockets.join("1.json"), json.as_bytes()).unwrap();
    crate::fs::replace(&sockets.join("2.json"), b"garbage").unwrap();
    host.guests.drop_guest(&host.id).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&session.wait().unwrap()), Some(9));
}

#[test]
fn last_words_are_the_last_line_without_its_colours() {
    let host = Host::new("true");
    assert_eq!(host.guests.last_words(&host.id), None);
    let log = host.guests.settings.layout.console_log(&host.id);
    crate::fs::ensure_dir(log.parent().unwrap(), false).unwrap();
    let mut text = vec![b'x'; 10_000];
    text.extend_from_slice(b"\r\ncannot open \x1b[31m/etc\xff\r\n\r\n");
    crate::fs::replace(&log, &text).unwrap();
    let words = host.guests.last_words(&host.id).unwrap();
    assert_eq!(words, "cannot open /etc\u{fffd}");
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &log).unwrap();
    assert_eq!(host.guests.last_words(&host.id), None);
}

#[test]
fn shims_hold_nothing_of_ours() {
    let host = Host::new(ECHO);
    let path = host.dir.path().join("secret");
    let leaky = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR;
    // Without CLOEXEC, as careless code would.
    let _secret = rustix::fs::open(&path, leaky, rustix::fs::Mode::RUSR).unwrap();
    let facts = host.launch().unwrap();
    host.wait_log("ready");
    let dir = host.dir.path().display();
    let mut want = vec![
        "/dev/null".to_owned(),
        "/dev/null".to_owned(),
        "/dev/null".to_owned(),
        // The terminal's two ends.
        "/dev/pts".to_owned(),
        "/dev/pts".to_owned(),
        format!("{dir}/run/vms/one-7"),
        format!("{dir}/state/vms/one-7"),
        format!("{dir}/state/vms/one-7/console.log"),
        // The guest's pidfd and the signalfd; the listener.
        "anon_inode".to_owned(),
        "anon_inode".to_owned(),
        "socket".to_owned(),
    ];
    want.sort();
    until("just these descriptors", || {
        let mut held = descriptors(facts.shim.pid);
        held.sort();
        (held == want).then_some(())
    });
}

/// What a process has open, without the numbers that differ each time.
fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = entries.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let plain = |target: PathBuf| match target.to_string_lossy().into_owned() {
        t if t == "/dev/ptmx" || t.starts_with("/dev/pts/") => "/dev/pts".to_owned(),
        t if t.starts_with("pidfd:") => "anon_inode".to_owned(),
        t => t.split(':').next().unwrap_or_default().to_owned(),
    };
    targets.map(plain).collect()
}
