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
