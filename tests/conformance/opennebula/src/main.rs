//! Programs that stand for others on the stand-in's machines: `ssh`, `onevm` and its like, scripts of the recorder.

#![allow(clippy::disallowed_methods, reason = "a stub of programs that start others")]

use std::io::{Read, Write, pipe, stderr, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ocivisor_conformance::desk::{Question, ask};
use ocivisor_conformance::place::FRONTEND;
use ocivisor_conformance::sshd::{self, MACHINE, Order};

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
        "sudo" => sudo(root, rest),
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
    let mut text = command.join(" ");
    // Hosts have the program where the tests have it.
    if let Some(rest) = text.strip_prefix(INSTALLED) {
        text = format!("exec \"${{OCIVISOR_BIN:-{INSTALLED}}}\"{rest}");
    }
    if !sshd::is_open(root) {
        return here(root, host, &text);
    }
    let order = Order { host: host.to_owned(), words: vec![text], sudo: false };
    let most = std::fs::read_to_string(dir.join("cut")).ok();
    match most.and_then(|most| most.trim().parse().ok()) {
        Some(most) => cut_off(root, &order, most),
        None => {
            told(sshd::order(root, &order, [stdin().as_fd(), stdout().as_fd(), stderr().as_fd()]))
        }
    }
}

/// Runs a command on a machine that has nothing of its own, by the user's shell.
fn here(root: &Path, host: &str, text: &str) -> ExitCode {
    let mut command = Command::new("/bin/bash");
    command.args(["-c", text]);
    sshd::session(&mut command, host, &root.join("var/lib/one"), &[]);
    eprintln!("ssh: {}", command.exec());
    ExitCode::from(255)
}

/// `sudo HOST WORD…`: what the platform's user may do as root on a host.
fn sudo(root: &Path, args: &[String]) -> ExitCode {
    let Some((host, words)) = args.split_first() else { return ExitCode::FAILURE };
    let order = Order { host: host.clone(), words: words.to_vec(), sudo: true };
    told(sshd::order(root, &order, [stdin().as_fd(), stdout().as_fd(), stderr().as_fd()]))
}

fn told(status: std::io::Result<u8>) -> ExitCode {
    match status {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            eprintln!("ssh: {e}");
            ExitCode::from(255)
        }
    }
}

/// A connection that breaks once that many bytes went by, in either direction.
fn cut_off(root: &Path, order: &Order, most: u64) -> ExitCode {
    let (Ok((to, in_writer)), Ok((out_reader, from))) = (pipe(), pipe()) else {
        return ExitCode::from(255);
    };
    let passed = Arc::new(AtomicU64::new(0));
    let of_input = Arc::clone(&passed);
    std::thread::spawn(move || pass(stdin(), in_writer, &of_input, most));
    let output = std::thread::spawn(move || pass(out_reader, stdout(), &passed, most));
    let status = sshd::order_with(root, order, to, from);
    let _passed = output.join();
    told(status)
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
