//! QEMU: boots the VM, passes on what it says, and sees to it that it ends.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::image::{Image, Module};
use crate::cmd::{program, say};

/// What came of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Every program in the VM ended well.
    pub good: bool,
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed.
    pub failed: u32,
}

/// Ends the VM, also after a failure.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It ended already, or it is to.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the VM to its end.
///
/// # Errors
/// It does not start, does not end in time, or ends without a word about the tests.
pub fn run(
    image: &Image,
    module: Module,
    load: &Path,
    console: &Path,
    patience: Duration,
) -> Result<Outcome> {
    let mut command = qemu(image, module, load, console);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut running = Running(child.context("start qemu-system-x86_64")?);
    let output = running.0.stdout.take().context("hear qemu")?;
    let (tell, lines) = channel();
    // Ends with the VM, at the latest when it is killed.
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if tell.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    match listen(&lines, Instant::now() + patience) {
        Heard::Result(outcome) => Ok(outcome),
        Heard::End => bail!("the VM ended without a result; its console:\n{}", tail(console)),
        Heard::Silence(last) => {
            let minutes = patience.as_secs() / 60;
            let tail = tail(console);
            bail!("the VM did not end within {minutes} min, after {last:?}; its console:\n{tail}")
        }
    }
}

/// The last lines of the console: where CI runs, nobody can look into the file afterwards.
fn tail(console: &Path) -> String {
    let bytes = std::fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// With a result.
    Result(Outcome),
    /// Without.
    End,
    /// Not in time; what it said last.
    Silence(String),
}

/// Shows what the VM says, until it ends.
fn listen(lines: &Receiver<String>, deadline: Instant) -> Heard {
    let mut outcome = Outcome::default();
    let mut told = false;
    let mut last = String::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) if told => return Heard::Result(outcome),
            Err(RecvTimeoutError::Disconnected) => return Heard::End,
            Err(RecvTimeoutError::Timeout) => return Heard::Silence(last),
        };
        if let Some(result) = line.strip_prefix("vm-result ") {
            (told, outcome.good) = (true, result == "0");
            continue;
        }
        if line.starts_with("test result: ") {
            outcome.passed += number_before(&line, " passed");
            outcome.failed += number_before(&line, " failed");
        }
        say(&line);
        last = line;
    }
}

/// The number right before a word; 0 if there is none.
fn number_before(line: &str, word: &str) -> u32 {
    let before = line.split(word).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn qemu(image: &Image, module: Module, load: &Path, console: &Path) -> Command {
    let mut command = program("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072"]);
    command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
    // The kernel's trial of the timer counts on a machine that is not kept waiting; under load it ends
    // in a panic (kernel-parameters.txt, `no_timer_check`).
    let boot =
        format!("console=ttyS0 root=/dev/vda rw quiet panic=-1 no_timer_check{}", module.boot());
    command.args(["-append", &boot]);
    let drive = |path: &Path, more: &str| {
        // In a value, a comma is written twice.
        let path = path.display().to_string().replace(',', ",,");
        format!("file={path},format=raw,if=virtio,{more}")
    };
    command.args(["-drive", &drive(&image.disk, "snapshot=on,cache=unsafe")]);
    command.args(["-drive", &drive(load, "readonly=on")]);
    let log = console.display().to_string().replace(',', ",,");
    command.args(["-chardev", &format!("file,id=console,path={log}")]);
    command.args(["-serial", "chardev:console", "-device", "virtio-serial-pci"]);
    // Not "stdio": the end of standard input would disconnect the port.
    command.args(["-chardev", "file,id=output,path=/dev/stdout"]);
    command.args(["-device", "virtserialport,chardev=output,name=output"]);
    command.args(["-device", "virtio-rng-pci"]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[&str]) -> Heard {
        let (tell, told) = channel();
        lines.iter().for_each(|line| tell.send((*line).to_owned()).unwrap());
        drop(tell);
        listen(&told, Instant::now() + Duration::from_mins(1))
    }

    #[test]
    fn results_of_all_suites_count() {
        let one = "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out";
        let two = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        let good = Outcome { good: true, passed: 24, failed: 0 };
        assert_eq!(heard(&["x", one, one, "vm-result 0"]), Heard::Result(good));
        let bad = Outcome { good: false, passed: 13, failed: 2 };
        assert_eq!(heard(&[one, two, "vm-result 1"]), Heard::Result(bad));
    }

    #[test]
    fn a_vm_that_ends_early_has_no_result() {
        assert_eq!(heard(&["test result: ok. 12 passed; 0 failed"]), Heard::End);
    }

    #[test]
    fn a_vm_that_does_not_end_is_told_with_its_last_line() {
        let (tell, told) = channel();
        tell.send("test a ... ok".to_owned()).unwrap();
        let ended = listen(&told, Instant::now() + Duration::from_millis(100));
        assert_eq!(ended, Heard::Silence("test a ... ok".to_owned()));
    }

    #[test]
    fn the_end_of_a_console_is_shown_without_carriage_returns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let lines: String = (0..100).map(|n| format!("{n}\r\n")).collect();
        crate::cmd::write(&path, &lines).unwrap();
        assert_eq!(tail(&path), (60..100).map(|n| n.to_string()).collect::<Vec<_>>().join("\n"));
    }
}
