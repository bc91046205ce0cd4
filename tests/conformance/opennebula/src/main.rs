//! Programs that stand for others on the stand-in's machines: `ssh`, `onevm` and its like, scripts of the recorder.

#![allow(clippy::disallowed_methods, reason = "a stub of programs that start others")]

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ocivisor_conformance::desk::{Question, ask};
use ocivisor_conformance::place::FRONTEND;

/// Tells the recorder's scripts on which machine they are.
const MACHINE: &str = "OCIVISOR_CONFORMANCE_MACHINE";
/// Options of ssh with a word of their own.
const VALUED: [&str; 8] = ["-o", "-i", "-p", "-l", "-F", "-c", "-E", "-S"];

/// Where hosts have our program.
const INSTALLED: &str = "/usr/bin/ocivisor";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(role), Some(root)) = (args.first(), args.get(1)) else {
        eprintln!("ocivisor-conformance is called by the tests of this crate.");
        return ExitCode::from(2);
    };
    let (root, rest) = (Path::new(root), &args[2..]);
    match role.as_str() {
        "ssh" => ssh(root, rest),
        "record" => record(root, rest),
        program => {
            reply(root, &Question::Show { program: program.to_owned(), args: rest.to_vec() })
        }
    }
}

/// Runs a command on a machine as sshd does: by the user's shell, with an environment of its own.
fn ssh(root: &Path, args: &[String]) -> ExitCode {
    let mut words = args.iter();
    let mut host = None;
    while let Some(word) = words.next() {
        if VALUED.contains(&word.as_str()) {
            words.next();
        } else if !word.starts_with('-') {
            host = Some(word.rsplit('@').next().unwrap_or(word));
            break;
        }
    }
    let Some(host) = host else { return ExitCode::from(255) };
    let command: Vec<&str> = words.map(String::as_str).collect();
    let dir = root.join("hosts").join(host);
    if (host != FRONTEND && !dir.exists()) || dir.join("down").exists() {
        eprintln!("ssh: connect to host {host} port 22: No route to host");
        return ExitCode::from(255);
    }
    let words = |file: &str| -> Vec<String> {
        let text = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    };
    // How the machine is entered, and what its users have in their environment.
    let mut line = words("enter");
    let mut text = command.join(" ");
    // Hosts have the program where the tests have it.
    if let Some(rest) = text.strip_prefix(INSTALLED) {
        text = format!("exec \"${{OCIVISOR_BIN:-{INSTALLED}}}\"{rest}");
    }
    line.extend(["/bin/bash".to_owned(), "-c".to_owned(), text]);
    let home = match dir.join("home") {
        home if home.exists() => home,
        _ => PathBuf::from(root).join("var/lib/one"),
    };
    let mut command = Command::new(&line[0]);
    command
        .args(&line[1..])
        .env_clear()
        .env("HOME", &home)
        .env("LC_CTYPE", "C.UTF-8")
        .env("LOGNAME", "oneadmin")
        .env("MAIL", "/var/mail/oneadmin")
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/games")
        .env("SHELL", "/bin/bash")
        .env("SSH_CLIENT", "127.0.0.1 37894 22")
        .env("SSH_CONNECTION", "127.0.0.1 37894 127.0.0.1 22")
        .env("USER", "oneadmin")
        .env(MACHINE, host)
        .envs(words("environment").iter().filter_map(|line| line.split_once('=')))
        .current_dir(&home);
    if let Some(most) = words("cut").first().and_then(|most| most.parse().ok()) {
        return cut_off(command, most);
    }
    eprintln!("ssh: {}", command.exec());
    ExitCode::from(255)
}

/// A connection that breaks once that many bytes went by, in either direction.
fn cut_off(mut command: Command, most: u64) -> ExitCode {
    let passed = Arc::new(AtomicU64::new(0));
    let Ok(mut child) = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
        return ExitCode::from(255);
    };
    if let Some(to) = child.stdin.take() {
        let passed = Arc::clone(&passed);
        std::thread::spawn(move || pass(std::io::stdin(), to, &passed, most));
    }
    if let Some(from) = child.stdout.take() {
        pass(from, std::io::stdout(), &passed, most);
    }
    let code = child.wait().ok().and_then(|status| status.code());
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255))
}

fn pass(mut from: impl Read, mut to: impl Write, passed: &AtomicU64, most: u64) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if passed.fetch_add(length as u64, Ordering::Relaxed) + length as u64 > most {
            eprintln!("client_loop: send disconnect: Broken pipe");
            std::process::exit(255);
        }
        if to.write_all(&buffer[..length]).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}

fn record(root: &Path, args: &[String]) -> ExitCode {
    let mut stdin = Vec::new();
    // What does not come any more is not recorded.
    let _broken = std::io::stdin().read_to_end(&mut stdin);
    let on = std::env::var(MACHINE).unwrap_or_else(|_| FRONTEND.to_owned());
    let script = args.first().cloned().unwrap_or_default();
    let args = args.get(1..).unwrap_or_default().to_vec();
    reply(root, &Question::Record { on, script, args, stdin })
}

fn reply(root: &Path, question: &Question) -> ExitCode {
    match ask(root, question) {
        Ok(reply) => {
            // Nobody is left to tell if it cannot be written.
            let _gone = std::io::stdout().write_all(reply.out.as_bytes());
            let _gone = std::io::stderr().write_all(reply.err.as_bytes());
            ExitCode::from(u8::try_from(reply.exit).unwrap_or(1))
        }
        Err(e) => {
            eprintln!("the stand-in of oned is gone: {e}");
            ExitCode::FAILURE
        }
    }
}
