//! Files out of guests and into them, by the CLI.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests write files and run tools"
)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::process::Stdio;

use ocivisor_tests::{Answer, Host, tool, wait_for};

const OPERATOR: u32 = 54_321;
const ACCESS: &str = "[access]\noperate_gid = 54321\n";

/// A host with a guest `web` that runs, and a directory of ours.
fn with_guest() -> (Host, PathBuf) {
    let host = Host::start_with(ACCESS);
    let disk = host.add_disk(0).display().to_string();
    let define =
        ["define", "web", "--disk", &disk, "--memory", "64M", "--entrypoint", "/bin/sleep"];
    host.cli(&[&define[..], &["--", "100000"]].concat()).ok();
    host.cli(&["start", "web"]).ok();
    let here = host.dir().join("here");
    fs::create_dir(&here).unwrap();
    (host, here)
}

fn inside(host: &Host, script: &str) -> String {
    host.cli(&["exec", "web", "--", "sh", "-c", script]).ok()
}

fn cp(host: &Host, arguments: &[&str]) -> Answer {
    host.cli(&[&["cp"], arguments].concat())
}

#[test]
fn files_go_both_ways() {
    let (host, here) = with_guest();
    let at = |name: &str| here.join(name).display().to_string();
    // A file, in and out, with its content, mode and time.
    tool(&["sh", "-c", &format!("head -c 9000000 /dev/urandom > {0}; chmod 640 {0}", at("big"))]);
    cp(&host, &[&at("big"), "web:/srv-big"]).ok();
    let sum = |line: String| line.split(' ').next().unwrap().to_owned();
    let want = sum(tool(&["sha256sum", &at("big")]));
    assert_eq!(sum(inside(&host, "sha256sum /srv-big")), want);
    assert_eq!(inside(&host, "stat -c '%a %u:%g' /srv-big").trim(), "640 0:0");
    cp(&host, &["web:srv-big", &at("back")]).ok();
    assert_eq!(sum(tool(&["sha256sum", &at("back")])), want);
    let (old, new) = (fs::metadata(at("big")).unwrap(), fs::metadata(at("back")).unwrap());
    assert_eq!((old.mode(), old.mtime()), (new.mode(), new.mtime()));

    // A directory with all that may be in one.
    inside(
        &host,
        "mkdir -p /d/e; echo 1 > /d/e/f; ln -s e/f /d/l; mkfifo /d/p; chown 1000:1000 /d/e/f; chmod 4755 /d/e/f",
    );
    inside(&host, "truncate -s 100G /d/holes; echo x > \"/d/$(printf 'a\\033[2Jb')\"");
    let out = cp(&host, &["web:/d", &at("d")]);
    assert_eq!((out.code, out.err.as_str()), (0, "ocivisor: left out d/p: a FIFO\n"));
    assert_eq!(fs::read(here.join("d/e/f")).unwrap(), b"1\n");
    let file = fs::metadata(here.join("d/e/f")).unwrap();
    assert_eq!((file.uid(), file.mode() & 0o7777), (0, 0o755));
    assert_eq!(fs::read_link(here.join("d/l")).unwrap().as_os_str(), "e/f");
    let holes = fs::metadata(here.join("d/holes")).unwrap();
    assert_eq!((holes.len(), holes.blocks() < 100), (100 << 30, true));
    // Into a directory that is there; what is in it; owners kept as the guest has them.
    fs::create_dir(here.join("into")).unwrap();
    cp(&host, &["-a", "web:/d/e", &at("into")]).ok();
    let kept = fs::metadata(here.join("into/e/f")).unwrap();
    assert_eq!((kept.uid(), kept.gid(), kept.mode() & 0o7777), (1000, 1000, 0o4755));
    cp(&host, &["-a", &at("into/."), "web:/tmp"]).ok();
    assert_eq!(inside(&host, "stat -c '%a %u:%g' /tmp/e/f").trim(), "4755 1000:1000");
    cp(&host, &[&at("into"), "web:/"]).ok();
    assert_eq!(inside(&host, "stat -c '%a %u:%g' /into/e/f").trim(), "755 0:0");
    // A link as it is, or what it leads to: in the guest.
    cp(&host, &["web:/d/l", &at("l")]).ok();
    assert!(here.join("l").is_symlink());
    cp(&host, &["-L", "web:/d/l", &at("followed")]).ok();
    assert_eq!(fs::read(here.join("followed")).unwrap(), b"1\n");

    // Tar streams. Not of the holes: a tar that was not asked to keep them sends them all.
    fs::remove_file(here.join("d/holes")).unwrap();
    let pipe = format!("{} cp web:/d/e - | tar -C {} -xf -", bin(), at("into"));
    host_shell(&host, &pipe);
    let pipe = format!("tar -C {} -cf - d | {} cp - web:/tmp", here.display(), bin());
    host_shell(&host, &pipe);
    assert_eq!(inside(&host, "cat /tmp/d/e/f"), "1\n");

    // What fails says so, in one line and a code.
    for (arguments, code, message) in [
        (
            ["web:/none", "."],
            3,
            "ocivisor: in the guest: look at /none: No such file or directory (os error 2)\n",
        ),
        (["none:/x", "."], 3, "ocivisor: no vm none\nhint: ocivisor list shows those there are\n"),
        ([&at("none"), "web:/"], 3, ""),
        (["web:/d", &at("big")], 4, ""),
        (
            [&at("big"), "web:/none/x"],
            3,
            "ocivisor: in the guest: open /none/: No such file or directory (os error 2)\n",
        ),
        (
            ["web:/dev/null", "."],
            2,
            "ocivisor: in the guest: /dev/null is a device (for a stream, use exec and a pipe)\n",
        ),
        (["a", "b"], 2, "ocivisor: neither is in a guest\nhint: a path in a guest is VM:PATH\n"),
    ] {
        let answer = cp(&host, &arguments);
        assert_eq!(answer.code, code, "{arguments:?}: {answer:?}");
        assert!(message.is_empty() || answer.err == message, "{arguments:?}: {answer:?}");
    }
    // Operators are root in guests and themselves here.
    let theirs = host.dir().join("theirs");
    fs::create_dir(&theirs).unwrap();
    tool(&["chown", "54321:54321", &theirs.display().to_string()]);
    tool(&["chmod", "755", &host.dir().display().to_string()]);
    let ask =
        |from: &str, to: &str| host.as_user(OPERATOR, &host.cli_command(&["cp", from, to]), b"");
    let mine = ask("web:/d/e/f", &theirs.join("f").display().to_string());
    assert_eq!(mine.code, 0, "{mine:?}");
    assert_eq!(fs::metadata(theirs.join("f")).unwrap().uid(), OPERATOR);
    assert_eq!(ask("web:/d/e/f", "/etc/ocv-copy").code, 5);
    assert_eq!(ask("/etc/shadow", "web:/tmp/").code, 5);
    assert_eq!(host.as_user(OPERATOR + 1, &host.cli_command(&["cp", "web:/d", "-"]), b"").code, 5);

    // A machine that does not run has no inside.
    host.cli(&["destroy", "web"]).ok();
    let stopped = cp(&host, &["web:/d", &at("x")]);
    assert_eq!(stopped.code, 4);
    assert!(stopped.err.ends_with("hint: start it\n"), "{stopped:?}");
}

fn bin() -> String {
    ocivisor_tests::bin_dir().join("ocivisor").display().to_string()
}

fn host_shell(host: &Host, script: &str) {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", script]).env("OCIVISOR_SOCKET", host.socket());
    assert!(shell.status().unwrap().success(), "{script}");
}

#[test]
fn a_guest_leads_nobody_to_the_hosts_files() {
    let (host, here) = with_guest();
    let at = |name: &str| here.join(name).display().to_string();
    fs::write(host.dir().join("secret"), "of the host").unwrap();
    let secret = host.dir().join("secret").display().to_string();
    // Links, out: as they are, and followed inside, where there is no such file.
    inside(
        &host,
        &format!(
            "mkdir -p /evil; ln -s {secret} /evil/s; ln -s /etc/shadow /evil/e; ln -s / /evil/root; ln -s /proc/1/root /evil/proc"
        ),
    );
    inside(&host, "echo guests-own > /etc/shadow");
    let via = cp(&host, &["-L", "web:/evil/s", &at("s")]);
    assert_eq!((via.code, here.join("s").exists()), (3, false), "{via:?}");
    cp(&host, &["-L", "web:/evil/e", &at("e")]).ok();
    assert_eq!(fs::read(here.join("e")).unwrap(), b"guests-own\n");
    let through = cp(&host, &[&format!("web:/evil/root{secret}"), &at("s")]);
    assert_eq!(through.code, 3);
    assert_ne!(cp(&host, &["-L", "web:/evil/proc", &at("p")]).code, 0);
    // In: a link of the guest leads but inside.
    fs::write(here.join("new"), "new").unwrap();
    assert_ne!(cp(&host, &[&at("new"), "web:/evil/s"]).code, 0);
    assert_eq!(fs::read(&secret).unwrap(), b"of the host");
    // A link of ours below the destination is not followed for a guest.
    fs::create_dir_all(here.join("to/evil")).unwrap();
    inside(&host, "rm -r /evil; mkdir -p /evil/sub; echo x > /evil/sub/secret");
    symlink(host.dir(), here.join("to/evil/sub")).unwrap();
    let refused = cp(&host, &["web:/evil", &at("to")]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert_eq!(fs::read(&secret).unwrap(), b"of the host");

    // A directory that becomes a link to / and back, all the time.
    let swap = "mkdir -p /race/a/d; echo inside > /race/a/d/f; ln -s / /race/b; cd /race; \
        while :; do mv a c; mv b a; mv a b; mv c a; done";
    host.cli(&["exec", "-d", "web", "--", "sh", "-c", swap]).ok();
    for what in ["-L /race/a", "-d /race/a/d"] {
        wait_for("both of them", || {
            match host.cli(&["exec", "web", "--", "sh", "-c", &format!("test {what}")]) {
                answer if answer.code == 0 => Ok(()),
                answer => Err(answer),
            }
        });
    }
    for n in 0..10 {
        let to = here.join(format!("race{n}"));
        let answer = cp(&host, &["-q", "web:/race", &to.display().to_string()]);
        assert!(matches!(answer.code, 0 | 3), "{answer:?}");
        // Never what is behind the link.
        for name in ["a", "b", "c"] {
            let got = to.join(name);
            if got.is_symlink() || !got.exists() {
                continue;
            }
            let within = fs::read_dir(&got).unwrap().map(|entry| entry.unwrap().file_name());
            assert!(within.eq(["d"]), "{}", got.display());
        }
    }
    // And as the destination: all of it stays inside.
    // The host has this directory, too: the one that all of this is in.
    let both = host.dir().display().to_string();
    inside(&host, &format!("mkdir -p {both}"));
    let arrived = (0..40)
        .filter(|_| {
            let answer = cp(&host, &[&at("new"), &format!("web:/race/a{both}/")]);
            assert!(matches!(answer.code, 0 | 3 | 4), "{answer:?}");
            answer.code == 0
        })
        .count();
    assert!(arrived > 0, "it was never a link when it was looked at");
    assert_eq!(inside(&host, &format!("cat {both}/new")), "new");
    assert!(!host.dir().join("new").exists());
}

#[test]
fn a_copy_that_is_broken_off_leaves_nothing_running() {
    let (host, here) = with_guest();
    let before = host.counts().processes;
    // A pipe that nobody reads stops it in the middle.
    inside(&host, "truncate -s 1M /f; head -c 30000000 /dev/zero | tr '\\0' x > /big");
    let mut out = host.cli_command(&["cp", "web:/big", "-"]);
    let mut child = out.stdout(Stdio::piped()).spawn().unwrap();
    wait_for("its session", || match host.counts().processes.len() {
        n if n > before.len() + 1 => Ok(()),
        n => Err(n),
    });
    tool(&["kill", "-INT", &child.id().to_string()]);
    drop(child.stdout.take());
    child.wait().unwrap();
    // In, from a stream that does not go on: half of a file that is there already.
    inside(&host, "mkdir /half; echo old > /half/new");
    fs::write(here.join("new"), vec![b'x'; 2_000_000]).unwrap();
    let archive = std::process::Command::new("tar")
        .arg("-C")
        .arg(&here)
        .args(["-cf", "-", "new"])
        .output()
        .unwrap();
    let mut into = host.cli_command(&["cp", "-", "web:/half"]);
    let mut child = into.stdin(Stdio::piped()).spawn().unwrap();
    let mut stream = child.stdin.take().unwrap();
    stream.write_all(&archive.stdout[..1_000_000]).unwrap();
    wait_for("its session", || match host.counts().processes.len() {
        n if n > before.len() + 1 => Ok(()),
        n => Err(n),
    });
    // The copy is under way.
    wait_for("its beginning", || match inside(&host, "ls -A /half | wc -l").trim() {
        "2" => Ok(()),
        other => Err(other.to_owned()),
    });
    tool(&["kill", "-INT", &child.id().to_string()]);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(stream);
    wait_for("the end of both", || match host.counts().processes {
        now if now == before => Ok(()),
        now => Err(now),
    });
    assert_eq!(inside(&host, "ls -A /half; cat /half/new"), "new\nold\n");

    // Out, the file half here: what was there before stays.
    let mut out = host.cli_command(&["cp", "web:/big", &here.join("new").display().to_string()]);
    let mut child = out.spawn().unwrap();
    wait_for("its beginning", || match fs::read_dir(&here).unwrap().count() {
        2 => Ok(()),
        n => Err(n),
    });
    tool(&["kill", "-INT", &child.id().to_string()]);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read(here.join("new")).unwrap(), vec![b'x'; 2_000_000]);
    assert_eq!(fs::read_dir(&here).unwrap().count(), 1);
}
