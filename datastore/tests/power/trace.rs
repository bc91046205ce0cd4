//! What a process did to a file system, as strace(1) saw it: every system call that changes something, whoever in
//! the process made it.

use std::path::Path;
use std::process::Command;

/// A change, with paths relative to the top.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Create(String, u32),
    Write(String, Vec<u8>),
    Truncate(String, usize),
    Mkdir(String, u32),
    Node(String, u32),
    Symlink(String, Vec<u8>),
    Link(String, String),
    Rename(String, String),
    Exchange(String, String),
    Unlink(String),
    Mode(String, u32),
    Owner(String, u32, u32),
    Xattr(String, String, Vec<u8>),
    Modified(String, i64, i64),
    Sync(String),
    SyncAll,
}

/// All that changes files, and what brings changes to the disk. A call of these that [`op`] does not know fails the
/// test: then the store has learned something that the model has to learn, too.
const CALLS: &str = "openat,openat2,open,creat,write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,\
    splice,ftruncate,truncate,fallocate,mkdir,mkdirat,mknod,mknodat,symlink,symlinkat,link,linkat,rename,renameat,\
    renameat2,unlink,unlinkat,rmdir,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,setxattr,fsetxattr,\
    lsetxattr,removexattr,fremovexattr,utimensat,fsync,fdatasync,syncfs,sync,sync_file_range,msync";

/// Runs a program under strace; it must succeed.
#[expect(clippy::disallowed_methods, reason = "the test runs itself under strace")]
pub fn record(top: &Path, test: &str, variables: &[(&str, &str)]) -> Vec<Op> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new("strace")
        .args(["-f", "-y", "-xx", "-s", "10000000", "-e", "signal=none", "-e"])
        .arg(format!("trace={CALLS}"))
        .arg("-o")
        .arg(log.path())
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .envs(variables.iter().copied())
        .output()
        .unwrap_or_else(|e| panic!("this test needs strace, install it: {e}"));
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(log.path()).unwrap();
    let top = top.to_str().unwrap();
    whole_lines(&text).iter().filter_map(|line| op(line, top)).collect()
}

/// Joins what other threads interrupted.
fn whole_lines(text: &str) -> Vec<String> {
    let mut begun: Vec<(String, String)> = Vec::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let (pid, rest) = line.split_once(' ').unwrap();
        let rest = rest.trim_start();
        if let Some(start) = rest.strip_suffix("<unfinished ...>") {
            begun.push((pid.to_owned(), start.trim_end().to_owned()));
        } else if let Some(end) = rest.strip_prefix("<... ") {
            let at = begun.iter().position(|(p, _)| p == pid).unwrap();
            let (_, start) = begun.remove(at);
            lines.push(start + end.split_once("resumed>").unwrap().1);
        } else {
            lines.push(rest.to_owned());
        }
    }
    lines
}

fn op(line: &str, top: &str) -> Option<Op> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(") ").or_else(|| rest.rsplit_once(')'))?;
    let result = result.trim_start().strip_prefix('=')?.trim();
    if result.starts_with('-') || result.starts_with('?') {
        return None;
    }
    let args = split(arguments);
    let arg = |n: usize| args[n].as_str();
    let below = |path: String| -> Option<String> {
        let path = path.strip_prefix(top)?;
        Some(path.trim_start_matches('/').to_owned())
    };
    let fd = |n: usize| below(of_fd(arg(n)));
    let at = |n: usize| {
        let name = String::from_utf8(string(arg(n + 1))).unwrap();
        below(if name.starts_with('/') { name } else { format!("{}/{name}", of_fd(arg(n))) })
    };
    let number = |n: usize| u32::from_str_radix(arg(n), 8).unwrap();
    let returned: usize = result.split(['<', ' ']).next().unwrap().parse().unwrap_or(0);
    Some(match name {
        "openat" if arg(2).contains("O_CREAT") => Op::Create(at(0)?, number(3)),
        "openat" | "openat2" => {
            assert!(!arg(2).contains("O_TRUNC") || at(0).is_none(), "{line}");
            return None;
        }
        "open" => {
            assert!(!arg(1).contains("O_CREAT") && !arg(1).contains("O_TRUNC"), "{line}");
            return None;
        }
        "write" => {
            let mut bytes = string(arg(1));
            bytes.truncate(returned);
            Op::Write(fd(0)?, bytes)
        }
        "ftruncate" => Op::Truncate(fd(0)?, arg(1).parse().unwrap()),
        "mkdirat" => Op::Mkdir(at(0)?, number(2)),
        "mkdir" => Op::Mkdir(below(String::from_utf8(string(arg(0))).unwrap())?, number(1)),
        "mknodat" => {
            let (kind, mode) = arg(2).split_once('|').unwrap();
            let kind = match kind {
                "S_IFIFO" => 0o010_000,
                "S_IFCHR" => 0o020_000,
                _ => panic!("{line}"),
            };
            Op::Node(at(0)?, kind | u32::from_str_radix(mode, 8).unwrap())
        }
        "symlinkat" => Op::Symlink(at(1)?, string(arg(0))),
        "linkat" => Op::Link(at(0)?, at(2)?),
        "renameat2" if arg(4).contains("RENAME_EXCHANGE") => Op::Exchange(at(0)?, at(2)?),
        "renameat" | "renameat2" => Op::Rename(at(0)?, at(2)?),
        "unlinkat" => Op::Unlink(at(0)?),
        "fchmod" => Op::Mode(fd(0)?, number(1)),
        "fchmodat" => Op::Mode(at(0)?, number(2)),
        "fchown" => Op::Owner(fd(0)?, arg(1).parse().unwrap(), arg(2).parse().unwrap()),
        "fchownat" => Op::Owner(at(0)?, arg(2).parse().unwrap(), arg(3).parse().unwrap()),
        "fsetxattr" => {
            Op::Xattr(fd(0)?, String::from_utf8(string(arg(1))).unwrap(), string(arg(2)))
        }
        "utimensat" => {
            let path = if arg(1) == "NULL" { fd(0)? } else { at(0)? };
            // [{tv_sec=…, tv_nsec=…} /* … */, {tv_sec=…, tv_nsec=…} /* … */]
            let field = |key: &str| {
                let after = arg(2).rsplit_once(key).unwrap().1;
                let end = after.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap();
                after[..end].parse().unwrap()
            };
            Op::Modified(path, field("tv_sec="), field("tv_nsec="))
        }
        "fsync" | "fdatasync" => Op::Sync(fd(0)?),
        "syncfs" => {
            fd(0)?;
            Op::SyncAll
        }
        _ if line.contains(&hex(top)) => panic!("the model does not know {line}"),
        _ => return None,
    })
}

/// Arguments, at commas outside of strings and brackets.
fn split(arguments: &str) -> Vec<String> {
    let mut args = vec![String::new()];
    let (mut depth, mut quoted) = (0, false);
    for c in arguments.chars() {
        match c {
            '"' => quoted = !quoted,
            '[' | '{' if !quoted => depth += 1,
            ']' | '}' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                args.push(String::new());
                continue;
            }
            _ => {}
        }
        args.last_mut().unwrap().push(c);
    }
    args.iter().map(|a| a.trim().to_owned()).collect()
}

fn hex(text: &str) -> String {
    text.bytes().map(|b| format!("\\x{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).map(|h| u8::from_str_radix(&h[..2], 16).unwrap()).collect()
}

fn string(argument: &str) -> Vec<u8> {
    unhex(argument.trim_matches('"'))
}

fn of_fd(argument: &str) -> String {
    let path = argument.split_once('<').map_or("", |(_, p)| p.trim_end_matches('>'));
    String::from_utf8(unhex(path)).unwrap()
}
