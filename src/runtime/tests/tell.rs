//! `tell` on the real kernel: the guest's own root writes, and the host is left alone.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};

use common::{Guest, eventually, first_line, runtime};
use ocivisor_context::{Moment, Runner, Telling};
use ocivisor_core::spec::{Context, Password, Secret};
use ocivisor_core::state::GuestKind;

const KEY: &str = "ssh-ed25519 AAAAC3Nz tenant";

fn context() -> Context {
    Context {
        ssh_keys: vec![KEY.into()],
        dns: vec!["10.0.0.1".parse().unwrap()],
        user: Some("dev".into()),
        password: Some(Password::Plain(Secret("secret".into()))),
        ..Context::default()
    }
}

fn ticks(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap();
    after.split_whitespace().nth(19).unwrap_or("1").to_owned()
}

fn begin(guest: &Guest, moment: Moment, context: Context) -> Child {
    begin_as(guest, GuestKind::Application, moment, context)
}

fn begin_as(guest: &Guest, kind: GuestKind, moment: Moment, context: Context) -> Child {
    let mut spec = guest.spec.clone();
    spec.context = context;
    let runner = Runner::Ours;
    let telling = Telling { moment, kind, runner, spec };
    let init = guest.init.unwrap();
    let mut command = runtime(&["tell"]);
    command.arg("--vm-dir").arg(guest.vm_dir());
    command.args(["--init", &init.to_string(), "--start-ticks", &ticks(init)]);
    command.args(["--telling-fd", "4", "--status-fd", "3"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&telling.to_bytes().unwrap()).unwrap();
    child
}

fn tell(guest: &Guest, moment: Moment, context: Context) -> String {
    let mut child = begin(guest, moment, context);
    let (line, _) = first_line(&mut child);
    child.wait().unwrap();
    line
}

const TOLD: &str = r#"told {"notes":[],"agent":false}"#;

#[test]
fn a_guest_is_told_before_it_begins_and_while_it_runs() {
    for engine in ["embedded", "runc"] {
        let mut guest = Guest::script(
            "echo name=$(cat /etc/hostname); id dev; ls -ln /home/dev/.ssh; sleep 1000",
        );
        let ready = guest.create(engine);
        assert_eq!(tell(&guest, Moment::Boot, context()), TOLD, "{engine}");
        let keys = guest.root().join("home/dev/.ssh/authorized_keys");
        let meta = fs::metadata(&keys).unwrap();
        let dev = guest.ids.base + 1000;
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (dev, dev, 0o600));
        let hostname = fs::metadata(guest.root().join("etc/hostname")).unwrap();
        assert_eq!(hostname.uid(), guest.ids.base, "the guest's root wrote it");
        guest.start(&ready);
        let console = guest.console_shows("authorized_keys");
        assert!(console.contains("name=guest-1\n"), "{console}");
        assert!(console.contains("uid=1000(dev) gid=1000(dev)"), "{console}");
        assert!(console.contains("1000     1000"), "{console}");

        assert_eq!(tell(&guest, Moment::Change, Context::default()), TOLD);
        assert!(!keys.exists());
        let shadow = fs::read_to_string(guest.root().join("etc/shadow")).unwrap();
        assert!(shadow.starts_with("dev:*:"), "{shadow}");
    }
}

#[test]
fn links_of_the_image_lead_nowhere_outside() {
    let mut guest = Guest::script("sleep 1000");
    let host = guest.dir.path().join("host-file");
    fs::write(&host, "host's").unwrap();
    fs::set_permissions(&host, fs::Permissions::from_mode(0o666)).unwrap();
    let etc = guest.root().join("etc");
    symlink("/etc/shadow", etc.join("resolv.conf")).unwrap();
    symlink(&host, etc.join("hostname")).unwrap();
    symlink("/proc/1/root/etc/hosts", etc.join("hosts")).unwrap();
    fs::write(etc.join("shadow"), "root:*:1::::::\n").unwrap();
    guest.shift(&guest.root());
    guest.create("embedded");
    let etc_hosts = fs::read("/etc/hosts").ok();
    assert_eq!(tell(&guest, Moment::Boot, context()), TOLD);
    assert_eq!(fs::read_to_string(&host).unwrap(), "host's");
    assert_eq!(fs::read("/etc/hosts").ok(), etc_hosts);
    for name in ["resolv.conf", "hostname", "hosts"] {
        assert!(etc.join(name).symlink_metadata().unwrap().is_file(), "{name}");
    }
    assert!(fs::read_to_string(etc.join("shadow")).unwrap().starts_with("root:*:1::::::\ndev:$6$"));
}

#[test]
fn images_that_cannot_be_told_are_refused_at_once() {
    type Make = fn(&Guest);
    let cases: [(Make, &str); 3] = [
        (
            |guest| {
                fs::remove_file(guest.root().join("etc/passwd")).unwrap();
                let made = Command::new("mkfifo").arg(guest.root().join("etc/passwd")).status();
                assert!(made.unwrap().success());
            },
            "error image the guest's /etc/passwd is no regular file \
             (users and passwords cannot be set in this image)",
        ),
        (
            |guest| {
                fs::rename(guest.root().join("etc"), guest.root().join("moved")).unwrap();
                symlink("/proc", guest.root().join("etc")).unwrap();
            },
            "error image the guest's /etc/resolv.conf leads into a filesystem of the kernel",
        ),
        (
            |guest| fs::create_dir_all(guest.root().join("etc/resolv.conf/x")).unwrap(),
            "error image write the guest's /etc/resolv.conf: Is a directory (os error 21)",
        ),
    ];
    for (make, want) in cases {
        let mut guest = Guest::script("sleep 1000");
        make(&guest);
        guest.shift(&guest.root());
        guest.create("embedded");
        let mut wish = context();
        if want.contains("kernel") {
            (wish.user, wish.password, wish.ssh_keys) = (None, None, Vec::new());
        }
        assert_eq!(tell(&guest, Moment::Boot, wish), want);
    }
}

#[test]
fn whoever_tells_is_in_the_guests_groups_and_out_of_its_reach() {
    let mut guest = Guest::script("sleep 1000");
    guest.boot_until("embedded", "");
    // It waits for the lock, as long as it is held.
    let lock = guest.root().join("etc/.pwd.lock");
    fs::write(&lock, "").unwrap();
    guest.shift(&lock);
    let file = fs::OpenOptions::new().write(true).open(&lock).unwrap();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut child = begin(&guest, Moment::Change, context());
    let inside = eventually("the teller in the guest's groups", || {
        let init = guest.init.unwrap();
        let others = guest.processes().into_iter().filter(|pid| *pid != init);
        others.filter(|pid| exe(*pid).ends_with("ocivisor-runtime")).find(|pid| {
            let here = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
            here.is_some() && here == fs::read_link(format!("/proc/{init}/ns/mnt")).ok()
        })
    });
    let status = fs::read_to_string(format!("/proc/{inside}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_default().to_owned()
    };
    assert_eq!(field("Uid"), vec![guest.ids.base.to_string(); 4].join("\t"));
    assert_eq!((field("CapEff"), field("NoNewPrivs")), ("00000000000000db".into(), "1".into()));
    for name in ["user", "net", "ipc", "uts", "cgroup"] {
        let of = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
        assert_eq!(of(inside), of(guest.init.unwrap()), "{name}");
    }
    // The guest's root may neither trace it nor open what it has open.
    let maps = fs::metadata(format!("/proc/{inside}/maps")).unwrap();
    assert_eq!(maps.uid(), 0, "not dumpable: /proc/PID belongs to the host");
    // What the holder of the lock does is not lost.
    let passwd = guest.root().join("etc/passwd");
    let mut accounts = fs::OpenOptions::new().append(true).open(&passwd).unwrap();
    accounts.write_all(b"late:x:1000:1000::/:/bin/sh\n").unwrap();
    drop(file);
    let (line, _) = first_line(&mut child);
    assert_eq!(line, TOLD);
    child.wait().unwrap();
    let accounts = fs::read_to_string(&passwd).unwrap();
    assert!(accounts.contains("\nlate:x:1000:1000:"), "{accounts}");
    assert!(accounts.contains("\ndev:x:1001:1001:"), "{accounts}");

    // The caller is killed: so is what it began in the guest.
    let file = fs::OpenOptions::new().write(true).open(&lock).unwrap();
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut wish = context();
    wish.user = Some("ops".into());
    let mut child = begin(&guest, Moment::Change, wish);
    let teller = || guest.processes().into_iter().find(|p| exe(*p).ends_with("ocivisor-runtime"));
    eventually("a teller in the guest", teller);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("its end", || teller().is_none().then_some(()));
}

#[test]
fn an_agent_that_cannot_be_called_is_told_of() {
    let mut guest = Guest::script("sleep 1000");
    for dir in ["usr/sbin", "run/systemd/system"] {
        fs::create_dir_all(guest.root().join(dir)).unwrap();
    }
    fs::write(guest.root().join("usr/sbin/one-contextd"), "").unwrap();
    let systemctl = guest.root().join("bin/systemctl");
    // What it says does not block it, and there is nothing to be read.
    let script = "#!/bin/sh\ncat; i=0; while [ $i -lt 9000 ]; do echo 0123456789; i=$((i+1)); done";
    for (code, notes) in [(0, ""), (5, "it ended with 5")] {
        let script = format!("{script}; exit {code}\n");
        fs::write(&systemctl, script).unwrap();
        fs::set_permissions(&systemctl, PermissionsExt::from_mode(0o755)).unwrap();
        if guest.init.is_none() {
            guest.shift(&guest.root());
            guest.boot_until("embedded", "");
        }
        let variables = vec![("A".to_owned(), Secret("1".into()))];
        let wish = Context { variables, ..Context::default() };
        let mut child = begin_as(&guest, GuestKind::System, Moment::Change, wish);
        let (line, _) = first_line(&mut child);
        child.wait().unwrap();
        let call = "systemctl --no-block restart one-context-reconfigure.service";
        let notes = if notes.is_empty() { String::new() } else { format!("\"{call}: {notes}\"") };
        assert_eq!(line, format!("told {{\"notes\":[{notes}],\"agent\":true}}"));
    }
}

/// Each change of ids unties a process from its parent: caught behind the first one, it must be tied again.
#[test]
fn whoever_tells_dies_with_its_caller_also_after_it_acted_as_a_user() {
    let mut guest = Guest::script("sleep 1000");
    guest.boot_until("embedded", "");
    tell(&guest, Moment::Change, context());
    let keys = guest.root().join("home/dev/.ssh/authorized_keys");
    // Long enough to be caught at it.
    let own = "ssh-ed25519 AAAA own\n".repeat(40_000);
    let user = guest.ids.base + 1000;
    for n in 0..200 {
        fs::write(&keys, &own).unwrap();
        let mut wish = context();
        wish.ssh_keys.push(format!("ssh-ed25519 BBBB {n}"));
        let mut child = begin(&guest, Moment::Change, wish);
        let caught = caught_as(&guest, user, &mut child);
        // The caller is gone in any case before it is looked at again.
        child.kill().unwrap();
        child.wait().unwrap();
        let Some(teller) = caught else { continue };
        let known = guest.root().join("var/lib/ocivisor/context.json");
        let then = fs::read(&known).unwrap();
        // Stopped between the loss of the tie and its renewal, it finds out as soon as it goes on.
        let pid = rustix::process::Pid::from_raw(teller.cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::CONT);
        eventually("its end", || (!exe(teller).ends_with("ocivisor-runtime")).then_some(()));
        assert_eq!(fs::read(&known).unwrap(), then, "it went on");
        return;
    }
    panic!("never caught");
}

/// The teller, stopped after it took the rights of that user; none if it was done before.
fn caught_as(guest: &Guest, user: u32, child: &mut Child) -> Option<u32> {
    let status = |pid: u32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    while child.try_wait().unwrap().is_none() {
        let inside = guest.processes().into_iter().filter(|pid| Some(*pid) != guest.init);
        for pid in inside {
            let uids = status(pid).lines().find_map(|l| Some(l.strip_prefix("Uid:\t")?.to_owned()));
            if uids.is_some_and(|uids| uids.ends_with(&format!("\t{user}"))) {
                let teller = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
                let _ = rustix::process::kill_process(teller, rustix::process::Signal::STOP);
                return status(pid).contains("State:\tT").then_some(pid);
            }
        }
    }
    None
}

fn exe(pid: u32) -> String {
    let link = fs::read_link(format!("/proc/{pid}/exe"));
    link.map(|path| path.display().to_string()).unwrap_or_default()
}
