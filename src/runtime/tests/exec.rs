//! `exec` on the real kernel.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use common::session::{TOKEN, begin, begin_at, frame, run, shell};
use common::{Guest, eventually};

fn running() -> Guest {
    let mut guest = Guest::script("echo up; sleep 1000");
    guest.boot_until("embedded", "up");
    guest
}

const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

#[test]
fn a_session_is_in_the_guest_with_all_that_confines_it() {
    for engine in ["embedded", "runc"] {
        let mut guest = Guest::script("echo up; sleep 1000");
        guest.boot_until(engine, "up");
        let script = format!(
            "for n in {}; do echo $n=$(readlink /proc/self/ns/$n); done
             echo uid_map=$(cat /proc/self/uid_map)
             echo fds=$(ls /proc/self/fd)
             echo paths=$(cat /proc/self/cgroup)
             echo env=$FROM,$HOME,$X
             echo cwd=$(pwd)
             echo unshare=$(unshare -U true 2>&1)
             grep -E '^(Cap|Seccomp:|NoNewPrivs|SigIgn|SigBlk|Groups|PPid)' /proc/self/status",
            NAMESPACES.join(" ")
        );
        let mut request = shell(&script);
        request["env"] = serde_json::json!(["X=y z"]);
        let done = run(&guest, "1", request);
        assert_eq!((done.code, done.err.as_str()), (Some(0), ""));
        let line = |name: &str| {
            let found =
                done.out.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(['=', ':']));
            found.unwrap_or_else(|| panic!("{name} in {}", done.out)).trim().to_owned()
        };
        let init = guest.init.unwrap();
        for name in NAMESPACES {
            let of_init = fs::read_link(format!("/proc/{init}/ns/{name}")).unwrap();
            assert_eq!(line(name), of_init.to_str().unwrap(), "{name}");
            let of_host = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
            assert_ne!(of_init, of_host, "{name}");
        }
        assert_eq!(line("uid_map"), format!("0 {} 65536", guest.ids.base));
        assert_eq!(line("fds"), "0 1 2 3", "3 is the listing itself");
        assert_eq!(line("env"), "image,/root,y z");
        assert_eq!(line("cwd"), "/");
        assert!(line("unshare").contains("not permitted"));
        assert!(line("paths").split(' ').all(|l| l.ends_with(":/")), "{}", line("paths"));
        let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
        for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Seccomp", "NoNewPrivs"] {
            let of_init =
                status.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).unwrap();
            assert_eq!(line(name), of_init.trim(), "{name}");
        }
        // Straight, because shells change them.
        let own =
            run(&guest, "2", serde_json::json!({"argv": ["grep", "^Sig", "/proc/self/status"]}));
        for name in ["SigIgn", "SigBlk"] {
            assert!(own.out.contains(&format!("{name}:\t0000000000000000\n")), "{}", own.out);
        }
        assert_eq!(line("Groups"), "");
    }
}

#[test]
fn a_user_is_looked_up_in_the_guest_and_has_no_capabilities() {
    let guest = running();
    let mut request =
        shell("id; grep CapEff /proc/self/status; echo again > /dev/stdout; echo $HOME");
    request["user"] = "web".into();
    let done = run(&guest, "1", request);
    assert_eq!(
        done.out,
        "uid=33(web) gid=34(web) groups=35(log)\nCapEff:\t0000000000000000\nagain\n/tmp\n"
    );
    let mut request = shell("id -u");
    request["user"] = "4294967296".into();
    let done = run(&guest, "2", request);
    assert_eq!(done.code, Some(126));
    assert_eq!(done.err, "ocivisor: user \"4294967296\" holds an id above 65535\n");
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    let guest = running();
    for (n, (request, code, err)) in [
        (shell("exit 7"), 7, ""),
        (shell("kill -9 $$"), 137, ""),
        (serde_json::json!({"argv": ["nope"]}), 127, "ocivisor: \"nope\" not found in $PATH\n"),
        (serde_json::json!({"argv": ["/x/y"]}), 127, "ocivisor: no such executable \"/x/y\"\n"),
        (
            serde_json::json!({"argv": ["/etc/passwd"]}),
            126,
            "ocivisor: \"/etc/passwd\" is not executable\n",
        ),
        (
            serde_json::json!({"argv": ["ls"], "workdir": "/none"}),
            125,
            "ocivisor: change to /none: No such file or directory (os error 2)\n",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let done = run(&guest, &n.to_string(), request);
        assert_eq!((done.code, done.err.as_str()), (Some(code), err));
        assert_eq!(done.out, "");
    }
}

#[test]
fn input_reaches_the_program_and_ends() {
    let guest = running();
    let session = begin(&guest, "1", shell("cat; echo err >&2"));
    let mut client = session.connect();
    let block = [b'x'; 16 * 1024];
    let writer = std::thread::spawn({
        let mut client = client.try_clone().unwrap();
        move || {
            for _ in 0..64 {
                client.write_all(&frame(0, &block)).unwrap();
            }
            client.write_all(&frame(2, &[])).unwrap();
        }
    });
    client.flush().unwrap();
    let done = session.finish(client);
    writer.join().unwrap();
    assert_eq!((done.out.len(), done.err.as_str(), done.code), (1 << 20, "err\n", Some(0)));
}

#[test]
fn a_terminal_is_the_guests_own_and_follows_the_clients_size() {
    let guest = running();
    let mut request = shell("tty; read line; stty size; echo got $line");
    request["tty"] = true.into();
    let session = begin(&guest, "1", request);
    let mut client = session.connect();
    client.write_all(&frame(3, &[0, 132, 0, 43])).unwrap();
    client.write_all(&frame(0, b"hello\n")).unwrap();
    let done = session.finish(client);
    let out = done.out.replace('\r', "");
    assert!(out.contains("/dev/pts/"), "{out}");
    assert!(out.ends_with("43 132\ngot hello\n"), "{out}");
    assert_eq!(done.code, Some(0));
}

#[test]
fn only_the_right_token_opens_a_session_and_only_once() {
    let guest = running();
    let session = begin(&guest, "1", shell("echo in"));
    let mode = fs::metadata(&session.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let card = fs::read_to_string(session.socket.with_extension("json")).unwrap();
    let card: serde_json::Value = serde_json::from_str(&card).unwrap();
    assert_eq!(card["pid"], session.child.id());
    let mut stranger = UnixStream::connect(&session.socket).unwrap();
    stranger.write_all(&[b'x'; TOKEN.len() + 1]).unwrap();
    let mut nothing = Vec::new();
    // Reset or closed, but no byte.
    let _ = stranger.read_to_end(&mut nothing);
    assert_eq!(nothing, b"");
    let client = session.connect();
    eventually("socket removed", || (!session.socket.exists()).then_some(()));
    let done = session.finish(client);
    assert_eq!(done.out, "in\n");
}

#[test]
fn a_client_that_leaves_takes_its_program_along() {
    let guest = running();
    for tty in [false, true] {
        let mut request = shell("echo started; sleep 12345");
        request["tty"] = tty.into();
        let mut session = begin(&guest, if tty { "1" } else { "2" }, request);
        let mut client = session.connect();
        let mut first = [0; 5];
        client.read_exact(&mut first).unwrap();
        drop(client);
        assert!(session.child.wait().unwrap().success());
        let left = run(&guest, "3", shell("ps | grep -c '[s]leep 12345'"));
        assert_eq!(left.out, "0\n");
    }
}

#[test]
fn what_a_program_leaves_running_goes_on_and_may_speak() {
    let guest = running();
    // Nobody hears it: it neither waits for a reader nor is it killed for having none.
    let script = "echo begun; (head -c 300000 /dev/zero; touch /tmp/spoke; sleep 23456) & exit 3";
    let mut session = begin(&guest, "1", shell(script));
    let mut client = session.connect();
    let mut said = Vec::new();
    client.read_to_end(&mut said).unwrap();
    assert!(said.starts_with(&frame(0, b"begun\n")) && said.ends_with(&frame(4, &[3])));
    eventually("its word", || guest.root().join("tmp/spoke").exists().then_some(()));
    let end = "ps | grep '[s]leep 23456$' | while read pid rest; do kill $pid; done";
    assert_eq!(run(&guest, "2", shell(end)).code, Some(0));
    // The session was there for it, and for nothing else.
    assert!(session.child.wait().unwrap().success());
}

#[test]
fn a_program_has_its_time_and_its_session_with_it() {
    let guest = running();
    // A background job of a shell with job control has a process group of its own.
    let script =
        "sleep 34567 & setsid sleep 45678 </dev/null >/dev/null 2>&1 & echo on; sleep 34567";
    for tty in [false, true] {
        let mut request = shell(&format!("{}{script}", if tty { "set -m; " } else { "" }));
        request["timeout_ms"] = 300.into();
        request["tty"] = tty.into();
        let done = run(&guest, if tty { "1" } else { "2" }, request);
        assert_eq!(done.code, Some(124));
        assert_eq!(done.err, "ocivisor: killed, its time of 300ms is over\n");
        assert!(done.out.contains("on"), "{}", done.out);
        let left = run(&guest, "3", shell("ps | grep -c '[s]leep 34567$'"));
        assert_eq!(left.out, "0\n");
    }
    // Who left the session did so on purpose.
    let left = run(&guest, "4", shell("ps | grep -c '[s]leep 45678$'"));
    assert_eq!(left.out, "2\n");
    let mut request = shell("exit 5");
    request["timeout_ms"] = 60_000.into();
    assert_eq!(run(&guest, "5", request).code, Some(5));
}

#[test]
fn a_detached_program_needs_no_client() {
    let guest = running();
    let mut request = shell("head -c 300000 /dev/zero; echo $$ > /tmp/there; sleep 56789");
    request["detach"] = true.into();
    request["timeout_ms"] = 2_000.into();
    let mut session = begin(&guest, "1", request);
    let mut client = session.connect();
    let mut said = Vec::new();
    client.read_to_end(&mut said).unwrap();
    assert_eq!(said, frame(4, &[0]));
    drop(client);
    eventually("it works", || guest.root().join("tmp/there").exists().then_some(()));
    // Its time is limited all the same.
    assert!(session.child.wait().unwrap().success());
    assert_eq!(run(&guest, "2", shell("ps | grep -c '[s]leep 56789$'")).out, "0\n");
    // That it cannot run is told.
    let done = run(&guest, "3", serde_json::json!({"argv": ["nope"], "detach": true}));
    assert_eq!(
        (done.code, done.err.as_str()),
        (Some(127), "ocivisor: \"nope\" not found in $PATH\n")
    );
}

#[test]
fn a_session_ends_with_its_guest() {
    let guest = running();
    let session = begin(&guest, "1", shell("echo started; sleep 1000"));
    let mut client = session.connect();
    let mut first = [0; 11];
    client.read_exact(&mut first).unwrap();
    let init = rustix::process::Pid::from_raw(guest.init.unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
    assert_eq!(session.finish(client).code, Some(137));
    assert_eq!(guest.wait_exit(), "signal 9");
}

#[test]
fn a_guest_that_is_gone_or_another_process_is_refused() {
    let guest = running();
    let session = begin_at(&guest, "1", shell("true"), "1");
    assert!(session.status.starts_with("error guest_exited "), "{}", session.status);
    assert!(!session.socket.exists() && !session.socket.with_extension("json").exists());
}

#[test]
fn a_client_that_does_not_read_costs_bounded_memory() {
    let guest = running();
    let session = begin(&guest, "1", shell("head -c 30000000 /dev/zero; echo end >&2"));
    let client = session.connect();
    // The program stops in its write: the pipe, our buffer and the socket are full.
    let stuck = eventually("the program waiting for its reader", || {
        let children = guest.processes();
        children.into_iter().find(|pid| {
            let wchan = fs::read_to_string(format!("/proc/{pid}/stack")).unwrap_or_default();
            wchan.contains("pipe_write")
        })
    });
    let status = fs::read_to_string(format!("/proc/{}/status", session.child.id())).unwrap();
    let anonymous = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    let kib: u64 = anonymous.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 8192, "{kib} KiB while {stuck} waits");
    let done = session.finish(client);
    assert_eq!((done.out.len(), done.err.as_str(), done.code), (30_000_000, "end\n", Some(0)));
}

#[test]
fn hostile_files_of_the_guest_neither_hang_nor_mislead() {
    let guest = running();
    fs::remove_file(guest.root().join("etc/passwd")).unwrap();
    let setup =
        run(&guest, "1", shell("/bin/busybox mkfifo /etc/passwd; /bin/busybox mkfifo /etc/group2"));
    assert_eq!(setup.code, Some(0));
    let mut request = shell("id -u");
    request["user"] = "web".into();
    let done = run(&guest, "2", request);
    assert_eq!(
        (done.code, done.err.as_str()),
        (Some(126), "ocivisor: the guest has no user \"web\"\n")
    );
    // Directories of the host have no path in the guest.
    let mut request = shell("pwd");
    request["workdir"] = "/proc/self/fd".into();
    let done = run(&guest, "3", request);
    assert!(done.code == Some(0) || done.code == Some(125), "{:?} {}", done.code, done.err);
    let mut request = shell("pwd");
    for fd in 3..12 {
        request["workdir"] = format!("/proc/self/fd/{fd}").into();
        let done = run(&guest, "4", request.clone());
        assert_eq!((done.code, done.out.as_str()), (Some(125), ""), "fd {fd}: {}", done.err);
    }
}

#[test]
fn a_watching_guest_never_sees_the_program_that_enters_it() {
    let mut guest = Guest::script(
        "echo up; while :; do for p in /proc/[0-9]*; do readlink $p/exe; done; done >> /tmp/seen",
    );
    guest.boot_until("embedded", "up");
    for n in 0..20 {
        let done = run(&guest, &n.to_string(), shell("ls -l /proc/*/exe /proc/*/cwd 2>&1"));
        assert!(!done.out.contains("ocivisor"), "{}", done.out);
    }
    let seen = fs::read_to_string(guest.root().join("tmp/seen")).unwrap();
    assert!(seen.contains("/bin/busybox"), "it did look");
    assert!(!seen.contains("ocivisor") && !seen.contains("target"), "{seen}");
}

#[test]
fn a_system_is_entered_beside_its_init() {
    let mut guest = Guest::new(&["/bin/sh"]);
    std::os::unix::fs::symlink("../bin/busybox", guest.root().join("sbin/init")).unwrap();
    guest.file("etc/inittab", "::sysinit:/etc/init.d/rcS\n");
    guest.file("etc/init.d/rcS", "#!/bin/sh\necho booted\n");
    guest.boot_until("embedded", "booted");
    let done = run(
        &guest,
        "1",
        shell(
            "mount -t tmpfs x /tmp && echo mounted; grep -E '^(NoNewPrivs|Seccomp:|CapBnd)' /proc/self/status; unshare -U true 2>&1",
        ),
    );
    assert!(done.out.starts_with("mounted\nCapBnd:\t"), "{}", done.out);
    assert!(done.out.contains("NoNewPrivs:\t0\nSeccomp:\t2\n"), "{}", done.out);
    assert!(done.out.contains("not permitted"), "{}", done.out);
    let line = guest.console();
    assert!(!line.contains("mounted"), "sessions do not print on the console: {line}");
}
