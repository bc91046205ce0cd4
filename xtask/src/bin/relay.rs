//! Stands in for ssh in `bench opennebula`: the remote command runs here, and what goes to it is counted.
//!
//! Called as ssh is, `ssh [OPTIONS] HOST COMMAND…`. Both ways that are measured go through it, so both pay for its copy
//! and neither for a cipher. The bytes that the command took are added as a line to the file that [`COUNT`] names.
//!
//! By another name, `onevm` or `onedatastore`, it answers with the file of that name in the directory that [`SHOWN`] names.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};

/// Names the file.
const COUNT: &str = "OCIVISOR_BENCH_MOVED";

/// Names the program that scripts run, here and on hosts.
const OURS: &str = "OCIVISOR_BIN";

/// Names the directory with what oned knows.
const SHOWN: &str = "OCIVISOR_BENCH_SHOWN";

/// Options of ssh(1) that are followed by a value.
const WITH_VALUE: &str = "BbcDEeFIiJLlmOopQRSWw";

fn main() -> Result<ExitCode> {
    let mut args = std::env::args();
    let own = PathBuf::from(args.next().unwrap_or_default());
    let own = own.file_name().unwrap_or_default();
    if own != "ssh" {
        let dir = std::env::var_os(SHOWN).with_context(|| format!("relay: no {SHOWN}"))?;
        let shown = std::fs::read(PathBuf::from(dir).join(own)).context("relay: read an answer")?;
        io::stdout().write_all(&shown)?;
        return Ok(ExitCode::SUCCESS);
    }
    let words = remote(args)?;
    let (name, args) = words.split_first().context("relay: no command")?;
    // Ours is not installed here.
    let program = std::env::var_os(OURS).filter(|_| name == "/usr/bin/ocivisor");
    let program = program.unwrap_or_else(|| name.into());
    #[expect(clippy::disallowed_methods, reason = "what stands in for ssh runs the command")]
    let mut command = Command::new(program);
    let child = command.args(args).stdin(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("relay: start {name}"))?;
    let moved = Arc::new(AtomicU64::new(0));
    let to = child.stdin.take().context("relay: no input")?;
    let counter = Arc::clone(&moved);
    // As with ssh, the command's end is the end, whether all input was taken or not.
    std::thread::spawn(move || carry(to, &counter));
    let status = child.wait().context("relay: wait")?;
    if let Some(path) = std::env::var_os(COUNT) {
        let mut file = OpenOptions::new().append(true).create(true).open(path)?;
        // A whole line at once: several may run side by side.
        file.write_all(format!("{}\n", moved.load(Ordering::SeqCst)).as_bytes())?;
    }
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(255)))
}

/// The words of the command, which ssh joins by blanks for the shell at the other end.
fn remote(args: impl Iterator<Item = String>) -> Result<Vec<String>> {
    let mut args = args.peekable();
    while let Some(option) = args.next_if(|word| word.starts_with('-')) {
        let last = option.chars().next_back().unwrap_or_default();
        // `-oX=Y` has its value with it.
        if option.len() == 2 && WITH_VALUE.contains(last) && args.next().is_none() {
            bail!("relay: {option} has no value");
        }
    }
    args.next().context("relay: no host")?;
    let line: Vec<String> = args.collect();
    Ok(line.join(" ").split_whitespace().map(str::to_owned).collect())
}

fn carry(mut to: ChildStdin, moved: &AtomicU64) {
    let mut buffer = vec![0; 256 * 1024];
    let mut from = io::stdin().lock();
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            // The other side sees the end; it is for it to say that something lacks.
            Err(_) => return,
        };
        // Before it is taken, so that who has seen the last byte finds it counted.
        moved.fetch_add(n as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Option<Vec<String>> {
        remote(line.iter().map(|word| (*word).to_owned())).ok()
    }

    #[test]
    fn options_and_host_are_not_the_command() {
        let command = ["tar", "-C", "/tmp", "-xf", "-"].map(str::to_owned).to_vec();
        let line = ["-o", "BatchMode=yes", "-T", "-oX=y", "host01", "tar -C /tmp", "-xf -"];
        assert_eq!(words(&line), Some(command));
        assert_eq!(words(&["host01", "true"]), Some(vec!["true".to_owned()]));
        assert_eq!(words(&["-T"]), None);
        assert_eq!(words(&["-o"]), None);
    }
}
