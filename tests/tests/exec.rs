//! Commands in a guest, by the CLI.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests start programs and stop them"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use ocivisor_tests::{Answer, Host, tool, wait_for};

/// A host with a guest `web` that runs.
fn with_guest() -> Host {
    let host = Host::start();
    add_guest(&host);
    host
}

fn add_guest(host: &Host) {
    let disk = host.add_disk(0).display().to_string();
    host.cli(&[
        "define",
        "web",
        "--disk",
        &disk,
        "--memory",
        "64M",
        "--entrypoint",
        "/bin/sleep",
        "--",
        "100000",
    ])
    .ok();
    host.cli(&["start", "web"]).ok();
    let prepare = "echo 'log:x:77:app' >> /etc/group; mkdir /srv; chown app /srv";
    host.cli(&["exec", "web", "--", "sh", "-c", prepare]).ok();
}

fn exec(host: &Host, options: &[&str], script: &str) -> Answer {
    host.cli(&[&["exec"], options, &["web", "--", "sh", "-c", script]].concat())
}

/// Processes of the guest whose command line has this in it.
fn running(host: &Host, what: &str) -> usize {
    let list = exec(host, &[], "ps -o args").ok();
    list.lines().filter(|line| line.contains(what)).count()
}

fn gone(host: &Host, what: &str) {
    wait_for("its end", || match running(host, what) {
        0 => Ok(()),
        n => Err(n),
    });
}

#[test]
fn commands_run_as_they_were_asked_to() {
    let host = with_guest();
    // Users by name and number; groups are those of the guest's own files.
    for (user, want) in [
        ("app", "uid=1000(app) gid=1000(app) groups=77(log),1000(app)\n"),
        ("1000", "uid=1000(app) gid=1000(app) groups=77(log),1000(app)\n"),
        ("app:log", "uid=1000(app) gid=77(log) groups=77(log)\n"),
        ("12:34", "uid=12 gid=34 groups=34\n"),
    ] {
        let answer = exec(&host, &["-u", user], "id").ok();
        // busybox names a main group among the groups or not, as it happens to be there.
        let (got, want) = (answer.split(" groups=").next(), want.trim().split(" groups=").next());
        assert_eq!(got.map(str::trim), want, "{user}: {answer}");
    }
    assert_eq!(exec(&host, &["-u", "app"], "id -G | tr ' ' '\\n' | sort -n").ok(), "77\n1000\n");
    let nobody = exec(&host, &["-u", "nope"], "id");
    assert_eq!(nobody.code, 126);
    assert_eq!(nobody.err, "ocivisor: the guest has no user \"nope\"\n");

    let all = exec(
        &host,
        &["-e", "A=b c", "-e", "E=", "-w", "/srv", "-u", "app"],
        "echo $A,$E,$HOME; pwd; touch x",
    );
    assert_eq!(all.ok(), "b c,,/tmp\n/srv\n");
    assert_eq!(exec(&host, &[], "stat -c %U /srv/x").ok(), "app\n");

    // Both outputs, and codes.
    let answer = exec(&host, &[], "echo out; echo err >&2; exit 7");
    assert_eq!((answer.code, &*answer.out, &*answer.err), (7, "out\n", "err\n"));
    assert_eq!(exec(&host, &[], "kill -15 $$").code, 143);
    assert_eq!(host.cli(&["exec", "web", "nope"]).code, 127);
    assert_eq!(host.cli(&["exec", "web", "/etc/passwd"]).code, 126);
    assert_eq!(host.cli(&["exec", "-w", "/nowhere", "web", "true"]).code, 125);
    assert_eq!(host.cli(&["exec", "nobody", "true"]).code, 125);

    // Its input is ours with -i, empty without.
    let mut cat = host.cli_command(&["exec", "-i", "web", "md5sum"]);
    let mut child = cat.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&vec![b'x'; 3_000_000]).unwrap();
    let sum = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let want = tool(&["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x | md5sum"]);
    assert_eq!(sum, want);
    assert_eq!(host.cli(&["exec", "web", "cat"]).ok(), "");
    // One that does not read it all ends as it would.
    let mut deaf = host.cli_command(&["exec", "-i", "web", "sh", "-c", "read x; exit 4"]);
    let mut child = deaf.stdin(Stdio::piped()).spawn().unwrap();
    let _broken = child.stdin.take().unwrap().write_all(&vec![b'\n'; 3_000_000]);
    assert_eq!(child.wait().unwrap().code(), Some(4));

    // A terminal of its own. script(1) gives us one, too. Its size comes right after its program.
    let program = "tty; until stty size; do sleep 0.1; done 2>/dev/null; read x; echo got $x";
    let line = format!(
        "exec {} exec -it web sh -c '{program}'",
        ocivisor_tests::bin_dir().join("ocivisor").display()
    );
    let mut script = Command::new("script");
    script.args(["-qec", &format!("stty rows 33 cols 99; {line}"), "/dev/null"]);
    script.env("OCIVISOR_SOCKET", host.socket()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = script.spawn().unwrap();
    let mut typed = child.stdin.take().unwrap();
    let mut shown = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || shown.next().unwrap().unwrap().trim().to_owned();
    assert!(next().starts_with("/dev/pts/"));
    assert_eq!(next(), "33 99");
    typed.write_all(b"word\n").unwrap();
    assert_eq!((next(), next()), ("word".to_owned(), "got word".to_owned()));
    assert!(child.wait().unwrap().success());

    // All at once, for programs.
    let json = exec(
        &host,
        &["-o", "json", "--max-output", "4"],
        "printf 'a\\0bcdef'; echo no >&2; exit 3",
    );
    assert_eq!(json.code, 3);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "schema_version": 1, "exit_code": 3, "stdout_base64": "YQBiYw==",
            "stderr_base64": "bm8K", "left_out_bytes": 3,
        })
    );
}

#[test]
fn commands_end_when_they_must_and_daemons_go_on() {
    let host = Host::start();
    let before = host.counts();
    add_guest(&host);
    // Its time.
    let answer = exec(&host, &["--timeout", "300ms"], "sleep 11111 & sleep 11111");
    assert_eq!((answer.code, &*answer.err), (124, "ocivisor: killed, its time of 300ms is over\n"));
    assert_eq!(running(&host, "sleep 11111"), 0);
    assert_eq!(exec(&host, &["--timeout", "1m"], "exit 9").code, 9);
    assert_eq!(exec(&host, &["--timeout", "0"], "true").code, 125);

    // What was put into the background.
    let said = exec(&host, &[], "(echo late; sleep 22222) & echo begun").ok();
    assert!(said.lines().any(|line| line == "begun"), "{said}");
    // It may still be about to begin.
    wait_for("the background", || match running(&host, "sleep 22222") {
        1 => Ok(()),
        n => Err(n),
    });

    // Left to itself.
    assert_eq!(exec(&host, &["-d"], "echo unheard; echo done > /srv/d; sleep 33333").ok(), "");
    wait_for("its work", || match exec(&host, &[], "cat /srv/d") {
        answer if answer.out == "done\n" => Ok(()),
        answer => Err(answer),
    });
    assert_eq!(running(&host, "sleep 33333"), 1);
    assert_eq!(host.cli(&["exec", "-d", "web", "nope"]).code, 127);
    assert_eq!(exec(&host, &["-d", "--timeout", "200ms"], "sleep 44444").code, 0);
    gone(&host, "sleep 44444");

    // ^C, with all that belongs to it.
    let mut command =
        host.cli_command(&["exec", "web", "sh", "-c", "sleep 55555 | sleep 55555; true"]);
    let mut child = command.spawn().unwrap();
    wait_for("both", || match running(&host, "sleep 55555") {
        // The shell's own line has it, too.
        3 => Ok(()),
        n => Err(n),
    });
    tool(&["kill", "-INT", &child.id().to_string()]);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    gone(&host, "sleep 55555");

    // A daemon that says more than a pipe holds outlives who began it and left.
    let daemon = "setsid sh -c 'echo begun; until test -e /srv/go; do sleep 0.1; done; head -c 1000000 /dev/zero && : > /srv/heard' & sleep 66666";
    let mut command = host.cli_command(&["exec", "web", "sh", "-c", daemon]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut heard = [0; 6];
    child.stdout.take().unwrap().read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"begun\n");
    tool(&["kill", "-INT", &child.id().to_string()]);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    gone(&host, "sleep 66666");
    exec(&host, &[], "touch /srv/go").ok();
    wait_for("its work", || match exec(&host, &[], "ls /srv/heard") {
        answer if answer.code == 0 => Ok(()),
        answer => Err(answer),
    });

    // None of it keeps a machine from ending.
    assert_eq!(running(&host, "sleep 22222"), 1);
    host.cli(&["destroy", "web"]).ok();
    host.cli(&["undefine", "web"]).ok();
    let mut after = host.counts();
    // What all guests have in common stays with the daemon.
    after.files.retain(|file| !file.starts_with("r/skeleton"));
    assert_eq!(after, before);
}
