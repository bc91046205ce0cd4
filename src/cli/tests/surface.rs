//! What users see without a daemon: help, mistakes, exit codes. Everything runs with an empty
//! environment, so that neither colours nor variables of the machine show.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use assert_cmd::Command;
use insta::assert_snapshot;

/// The command with nothing around it.
fn ocivisor(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocivisor"));
    command.env_clear().args(args);
    command
}

/// Standard output, standard error and exit code together.
fn run(args: &[&str]) -> String {
    let output = ocivisor(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    format!(
        "exit: {}\n--- stdout\n{}--- stderr\n{}",
        output.status.code().map_or("none".to_owned(), |c| c.to_string()),
        text(&output.stdout),
        text(&output.stderr)
    )
}

#[test]
fn the_help_lists_everything() {
    assert_snapshot!(run(&["--help"]));
}

#[test]
fn every_command_has_help() {
    for command in [
        "list",
        "info",
        "define",
        "start",
        "shutdown",
        "destroy",
        "reboot",
        "reset",
        "resize",
        "stats",
        "nic",
        "nic list",
        "nic attach",
        "nic limit",
        "nic detach",
        "undefine",
        "console",
        "exec",
        "cp",
        "logs",
        "why",
        "events",
        "image",
        "image import",
        "image stat",
        "image build",
        "image list",
        "image inspect",
        "image history",
        "image df",
        "image tag",
        "one install",
        "image rm",
        "image prune",
        "image fsck",
        "image push",
        "image save",
        "image export",
        "image commit",
        "disk",
        "disk create",
        "host",
        "host info",
        "doctor",
        "version",
        "completions",
        "man",
    ] {
        let args: Vec<&str> = command.split(' ').chain(["-h"]).collect();
        assert_snapshot!(format!("help {command}"), run(&args));
    }
}

#[test]
fn mistakes_are_one_line_and_advice() {
    let cases: [&[&str]; 12] = [
        &["list", "--frob"],
        &["lst"],
        &["info"],
        &["info", "No_Such"],
        &["define", "web"],
        &["define", "web", "--disk", "/d", "--memory", "lots"],
        &["define", "web", "--disk", "/d", "--memory", "1M"],
        &["define", "--file", "/nonexistent/spec.toml"],
        &["shutdown", "web", "--timeout", "soon"],
        &["list", "--output", "yaml"],
        &["disk", "create", "--image", "x", "/d"],
        &["console", "web", "--read-only", "--take"],
    ];
    let all: Vec<String> =
        cases.iter().map(|args| format!("$ ocivisor {}\n{}", args.join(" "), run(args))).collect();
    for text in &all {
        let stderr = text.split("--- stderr\n").nth(1).unwrap();
        assert!(stderr.starts_with("ocivisor: "), "{text}");
        assert!(stderr.lines().count() <= 2, "{text}");
    }
    assert_snapshot!(all.join("\n"));
}

#[test]
fn a_daemon_that_is_not_there_has_its_own_exit_code() {
    assert_snapshot!(run(&["--socket", "/nonexistent/ocivisord.sock", "list"]), @r"
    exit: 9
    --- stdout
    --- stderr
    ocivisor: cannot reach the daemon at /nonexistent/ocivisord.sock: No such file or directory (os error 2)
    hint: is ocivisord running? ocivisor doctor says more
    ");
}

#[test]
fn the_socket_can_come_from_the_environment() {
    let output =
        ocivisor(&["list"]).env("OCIVISOR_SOCKET", "/nonexistent/other.sock").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("/nonexistent/other.sock"), "{stderr}");
}

#[test]
fn version_needs_no_daemon() {
    let output =
        ocivisor(&["--socket", "/nonexistent/x", "version", "-o", "json"]).output().unwrap();
    assert!(output.status.success());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["schema_version"], 1);
    assert_eq!(value["client"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(value["daemon"], serde_json::Value::Null);
}

#[test]
fn doctor_reports_every_check_as_json_and_agrees_with_its_exit_code() {
    let output =
        ocivisor(&["--socket", "/nonexistent/x", "doctor", "-o", "json"]).output().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = value["checks"].as_array().unwrap();
    assert!(checks.len() > 20);
    let failed = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!(output.status.code(), Some(if failed { 8 } else { 0 }));
    let daemon = checks.iter().find(|check| check["name"] == "daemon").unwrap();
    assert_eq!(daemon["status"], "warn");
    assert_eq!(daemon["detail"], "no socket /nonexistent/x");
}

#[test]
fn completions_are_made_for_every_shell() {
    for (shell, sign) in [
        ("bash", "complete -F _ocivisor"),
        ("zsh", "#compdef ocivisor"),
        ("fish", "complete -c ocivisor"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let output = ocivisor(&["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains(sign), "{shell}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = escape(&ocivisor(&["completions", "bash"]));
    let status = command.stdout(writer).status().unwrap();
    assert!(status.success(), "{status}");
}

/// assert_cmd's command does not take a pipe of our own.
fn escape(command: &Command) -> std::process::Command {
    #[expect(clippy::disallowed_methods, reason = "a test runs the program under test")]
    let mut plain = std::process::Command::new(command.get_program());
    plain.args(command.get_args()).env_clear();
    plain
}

#[test]
fn man_pages_are_written_where_asked() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("man/man1");
    let output = ocivisor(&["man", target.to_str().unwrap(), "--quiet"]).output().unwrap();
    let names = String::from_utf8(output.stdout).unwrap();
    assert!(names.lines().any(|name| name == "ocivisor-disk-create.1"), "{names}");
    for name in names.lines() {
        assert!(target.join(name).is_file());
    }
}

mod one {
    use super::*;

    fn one(args: &[&str], stdin: &str) -> (i32, String, String) {
        let config = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut config.as_file(), b"daemon_timeout = 0\n").unwrap();
        let output = ocivisor(&[&["one", "vmm"], args].concat())
            .env("OCIVISOR_SOCKET", "/nonexistent/ocivisord.sock")
            .env("OCIVISOR_OPENNEBULA_CONFIG", config.path())
            .write_stdin(stdin)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    #[test]
    fn every_failure_is_one_sentence_and_exit_code_one() {
        let cases: [(&[&str], &str); 8] = [
            (&["frobnicate", "one-7", "n", "7", "n"], ""),
            (&["migrate", "one-7", "n2", "n1", "7", "n1"], ""),
            (&["deploy", "/x/7/deployment.0", "n", "7", "n"], "<VM><ID>7</ID>"),
            (&["deploy", "--help"], ""),
            (&["cancel"], ""),
            (&[], ""),
            (&["cancel", "", "n", "7", "n"], ""),
            (&["shutdown", "-", "n", "7", "n"], "<VM><ID>8</ID></VM>"),
        ];
        let mut all = String::new();
        for (args, stdin) in cases {
            let (code, stdout, stderr) = one(args, stdin);
            assert_eq!((code, stdout.as_str()), (1, ""), "{args:?}: {stderr}");
            let plain: Vec<&str> = stderr.lines().filter(|l| !l.starts_with("INFO: ")).collect();
            assert_eq!(plain.len(), 1, "{stderr}");
            assert!(plain[0].ends_with('.') && !plain[0].starts_with('-'), "{stderr}");
            all.push_str(&format!("{args:?}\n{stderr}\n"));
        }
        assert_snapshot!(all);
    }

    #[test]
    fn global_options_may_stand_in_front() {
        let output =
            ocivisor(&["--socket", "/nonexistent/x", "one", "vmm", "cancel"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8(output.stderr).unwrap().ends_with(".\n"));
    }
}
