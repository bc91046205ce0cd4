//! The small init, as the first process of a pid namespace and on its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests start the program under test"
)]

use std::process::{Command, Output, Stdio};

const INIT: &str = env!("CARGO_BIN_EXE_ocivisor-init");

fn first(script: &str) -> Output {
    Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", INIT, "--", "/bin/sh", "-c", script])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn the_code_of_the_program_is_its_own() {
    assert_eq!(first("exit 0").status.code(), Some(0));
    assert_eq!(first("exit 7").status.code(), Some(7));
    assert_eq!(first("kill -9 $$").status.code(), Some(137));
}

#[test]
fn signals_reach_the_program_which_ends_by_them() {
    // As process 1 the shell itself would ignore SIGTERM.
    let output = first("kill -TERM 1; sleep 60");
    assert_eq!(output.status.code(), Some(143));
    let output = first("trap 'echo got it; exit 3' USR1; kill -USR1 1; sleep 60 & wait");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"got it\n"[..]));
}

#[test]
fn orphans_are_reaped_while_the_program_runs() {
    // An orphan ends; no zombie of it stays.
    let script = "(sh -c 'sleep 0.1 & exit 0'); sleep 0.5; \
                  for s in /proc/[0-9]*/stat; do read -r a b c d < $s; echo $c; done 2>/dev/null";
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", INIT, "--", "/bin/sh", "-c", script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.is_empty() && !text.lines().any(|state| state == "Z"), "{text}");
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let output = Command::new(INIT).args(["--", "/no/such"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.starts_with("ocivisor-init: /no/such: No such file"), "{error}");
    let output = Command::new(INIT).args(["--", "/etc"]).output().unwrap();
    assert_eq!(output.status.code(), Some(126));
}

/// Runs the small init with a start script; `options` come before the program's.
fn with_script(script: &str, options: &[&str], program: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("script");
    std::fs::write(&path, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&path, mode).unwrap();
    let options: Vec<&str> = options
        .iter()
        .map(|word| if *word == "SCRIPT" { path.to_str().unwrap() } else { word })
        .collect();
    Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", INIT])
        .args(options)
        .args(["--", "/bin/sh", "-c", program])
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn out(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_start_script_runs_as_root_before_the_program_which_is_the_users() {
    let options = ["--before", "SCRIPT", "--user", "1000:1001:7,8"];
    for script in
        ["echo script $(id -u) $HOME; exit 3", "#!/bin/sh\necho script $(id -u) $HOME; exit 3"]
    {
        let program = "grep -E '^(Uid|Gid|Groups)' /proc/self/status; exit 5";
        let (code, stdout, stderr) = out(&with_script(script, &options, program));
        let words = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        let ids = "Uid: 1000 1000 1000 1000 Gid: 1001 1001 1001 1001 Groups: 7 8";
        assert_eq!((code, words), (Some(5), format!("script 0 /root {ids}")));
        assert_eq!(stderr, "ocivisor-init: start script ended with 3\n");
    }
    // One that is not there is no script.
    let (code, stdout, stderr) = out(&with_script("", &["--before", "/no/such"], "id -u"));
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(0), "0\n", ""));
}

#[test]
fn a_guest_that_is_told_to_end_during_its_script_ends() {
    let ended = with_script("kill -TERM 1; sleep 60", &["--before", "SCRIPT"], "echo never");
    assert_eq!(out(&ended), (Some(143), String::new(), String::new()));
    // Also if the script has a handler of its own, which tidies up and ends well.
    for (signal, code) in [("TERM", 143), ("INT", 130), ("QUIT", 131)] {
        let script = format!("trap 'exit 0' {signal}; kill -{signal} 1; sleep 60 & wait");
        let ended = with_script(&script, &["--before", "SCRIPT"], "echo never");
        assert_eq!(out(&ended), (Some(code), String::new(), String::new()), "{signal}");
    }
    let script = "kill -WINCH 1; sleep 0.1";
    let ended = with_script(script, &["--before", "SCRIPT", "--stop", "28"], "echo never");
    assert_eq!(out(&ended), (Some(156), String::new(), String::new()));
    // Ending itself so is the script's own matter.
    let ended = with_script("kill -TERM $$", &["--before", "SCRIPT"], "echo goes on");
    assert_eq!(out(&ended).1, "goes on\n");
}

#[test]
fn beside_a_script_the_program_is_the_first_process() {
    let program = "echo $$ $(sleep 0.5); wait";
    let (code, stdout, _) = out(&with_script("echo $PPID", &["--beside", "SCRIPT"], program));
    assert_eq!(code, Some(0));
    let mut lines: Vec<&str> = stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["1", "1"]);
}
