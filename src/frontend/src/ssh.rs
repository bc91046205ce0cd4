//! A host, reached by the platform's own ssh.
//!
//! The command is fixed. What varies goes through its standard input ([`crate::wire`]), so nothing is quoted for a shell
//! and nothing of a template ever reaches one. The front-end's own directories are served by the same program, as a
//! child without ssh: both ends of a move are then the same.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::Machine;

use crate::config::Transfer;
use crate::files::{broken, garbled, is_broken};
use crate::timed::{Stalled, Timed};
use crate::tool::{Pipe, last_line};
use crate::wire::{self, DiskFacts, Message, Order, Reply, VERSION};

/// What is run on hosts. No part of it varies.
pub const COMMAND: &str = "/usr/bin/ocivisor one host";

/// No question is asked of anybody, and a host that is gone is told from one that is slow.
const OPTIONS: [&str; 6] =
    ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=4"];

type Input = Timed<ChildStdin>;
type Output = Timed<ChildStdout>;

/// How long a program may take to end when nobody wants more of it.
const GRACE: Duration = Duration::from_secs(3);

/// A connection to a host, or to the front-end's own side.
#[derive(Debug)]
pub struct Link {
    /// For messages.
    name: String,
    here: bool,
    child: Child,
    input: Option<BufWriter<Input>>,
    output: BufReader<Output>,
    /// Whether one of them did not go on in time.
    stalled: Stalled,
    said: Option<Pipe>,
}

impl Link {
    /// Reaches a machine.
    ///
    /// # Errors
    /// There is no ssh. Whether the host answers is found out by the first order.
    pub fn open(config: &Transfer, machine: &Machine) -> Result<Self> {
        let name = machine.name();
        if config.is_here(name) {
            return Self::own(config, name);
        }
        let arguments = [&OPTIONS[..], &[name, COMMAND]].concat();
        Self::run(&config.ssh, &arguments, name, false, Duration::from_secs(config.answer_timeout))
    }

    /// Reaches the front-end's own side, whatever its name is.
    ///
    /// # Errors
    /// The program cannot be run once more.
    pub fn here(config: &Transfer) -> Result<Self> {
        Self::own(config, "the front-end")
    }

    fn own(config: &Transfer, name: &str) -> Result<Self> {
        let program = std::env::current_exe()
            .map_err(|e| Error::new(ErrorKind::Host, format!("find own program: {e}")))?;
        let patience = Duration::from_secs(config.answer_timeout);
        Self::run(&program, &["one", "host"], name, true, patience)
    }

    fn run(
        program: &Path,
        arguments: &[&str],
        name: &str,
        here: bool,
        patience: Duration,
    ) -> Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "the one place that reaches hosts")]
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .map_err(|e| Error::new(ErrorKind::Host, format!("run {}: {e}", program.display())))?;
        let (Some(input), Some(output), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Error::new(ErrorKind::Host, "a child without pipes"));
        };
        let stalled = Stalled::default();
        let failed = |e| Error::new(ErrorKind::Host, format!("pipe to {name}: {e}"));
        let told = output.as_fd().try_clone_to_owned().map_err(failed)?;
        let input = Timed::new(input, patience, &stalled).map_err(failed)?.heeding(told);
        let output = Timed::new(output, patience, &stalled).map_err(failed)?;
        Ok(Self {
            name: name.to_owned(),
            here,
            child,
            input: Some(BufWriter::with_capacity(1 << 17, input)),
            output: BufReader::with_capacity(1 << 17, output),
            stalled,
            said: Some(Pipe::read(errors, 16 * 1024)),
        })
    }

    /// Whether it is the front-end itself.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.here
    }

    /// Asks, and has it answered.
    ///
    /// # Errors
    /// The host says why it could not be done, or cannot be reached.
    pub fn ask(&mut self, order: &Order) -> Result<Reply> {
        self.tell(order)?;
        self.answer()
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn done(&mut self, order: &Order) -> Result<()> {
        self.tell(order)?;
        self.is_done()
    }

    /// Waits until what was asked for is done.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn is_done(&mut self) -> Result<()> {
        match self.answer()? {
            Reply::Done => Ok(()),
            other => Err(self.odd(&other)),
        }
    }

    /// Asks whether something is there.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn there(&mut self, order: &Order) -> Result<bool> {
        match self.ask(order)? {
            Reply::There(there) => Ok(there),
            other => Err(self.odd(&other)),
        }
    }

    /// Asks for a disk.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn disk(&mut self, order: &Order) -> Result<Option<DiskFacts>> {
        match self.ask(order)? {
            Reply::Disk(facts) => Ok(facts),
            other => Err(self.odd(&other)),
        }
    }

    /// Sends an order.
    ///
    /// # Errors
    /// The host cannot be reached.
    pub fn tell(&mut self, order: &Order) -> Result<()> {
        let message = Message { v: VERSION, order: order.clone() };
        self.write(|to| wire::write_line(to, &message))
    }

    /// Writes what follows an order.
    ///
    /// # Errors
    /// What `work` says; if the connection is at fault, what the host says of it.
    pub(crate) fn write<T>(
        &mut self,
        work: impl FnOnce(&mut BufWriter<Input>) -> Result<T>,
    ) -> Result<T> {
        let Some(input) = self.input.as_mut() else { return Err(broken("it is closed")) };
        let done = work(input);
        done.map_err(|error| self.explain(error))
    }

    /// Reads what follows an answer.
    ///
    /// # Errors
    /// What `work` says; if the connection is at fault, what the host says of it.
    pub(crate) fn read<T>(
        &mut self,
        work: impl FnOnce(&mut BufReader<Output>) -> Result<T>,
    ) -> Result<T> {
        let done = work(&mut self.output);
        done.map_err(|error| self.explain(error))
    }

    /// An answer.
    ///
    /// # Errors
    /// It is that of a failure, or there is none.
    pub fn answer(&mut self) -> Result<Reply> {
        self.write(|to| to.flush().map_err(broken))?;
        loop {
            return match wire::try_line(&mut self.output) {
                Ok(Some(Reply::Waiting)) => continue,
                Ok(Some(Reply::Failed { why, hint, busy })) => Err(self.failed(&why, hint, busy)),
                Ok(Some(reply)) => Ok(reply),
                Ok(None) => Err(self.gone()),
                Err(error) => Err(self.explain(error)),
            };
        }
    }

    /// Why the connection broke, if that is what an error says.
    fn explain(&mut self, error: Error) -> Error {
        if self.stalled.is_so() {
            self.end();
            let what = format!("host {} did not go on in time", self.name);
            let hint = "look for what hangs there, as a share that is away; transfer.answer_timeout bounds it";
            return Error::new(ErrorKind::Timeout, what).hint(hint);
        }
        if !is_broken(&error) {
            return error.context(format!("host {}", self.name));
        }
        // It said why before it went.
        match wire::try_line(&mut self.output) {
            Ok(Some(Reply::Failed { why, hint, busy })) => self.failed(&why, hint, busy),
            _ => self.gone(),
        }
    }

    fn failed(&self, why: &str, hint: Option<String>, busy: bool) -> Error {
        // A host's words are foreign: bounded, and the sentence is made one line where it is told.
        let why: String = why.chars().take(600).collect();
        let kind = if busy { ErrorKind::Conflict } else { ErrorKind::Host };
        let error = Error::new(kind, format!("host {}: {why}", self.name));
        match hint {
            Some(hint) => error.hint(hint.chars().take(300).collect::<String>()),
            None => error,
        }
    }

    /// It is gone: what ssh, or what it ran, said last.
    fn gone(&mut self) -> Error {
        let code = self.end().and_then(|status| status.code());
        let said = self.said();
        let (name, line) = (&self.name, last_line(&said));
        let error = match code {
            // ssh(1): its own failures are 255.
            Some(255) => {
                Error::new(ErrorKind::Host, format!("host {name} cannot be reached: {line}"))
                    .hint(format!("try ssh {name} as oneadmin on the front-end"))
            }
            Some(126 | 127) => {
                Error::new(ErrorKind::Host, format!("host {name} has no {COMMAND}: {line}"))
                    .hint("install ocivisor on the host")
            }
            Some(code) => Error::new(
                ErrorKind::Host,
                format!("host {name} broke off with exit code {code}: {line}"),
            ),
            None => Error::new(ErrorKind::Host, format!("host {name} broke off: {line}")),
        };
        if self.here { error.context("on the front-end itself") } else { error }
    }

    /// Ends the program: by its input's end, else by force. What it says till then nobody wants.
    fn end(&mut self) -> Option<ExitStatus> {
        // What is left in it would have to be taken by the other side first.
        if let Some(input) = self.input.take() {
            let _unsent = input.into_parts();
        }
        let deadline = Instant::now() + GRACE;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            let talks = self.output.get_mut().now(&mut [0; 4096]).is_ok_and(|n| n > 0);
            if talks || Instant::now() >= deadline {
                let _ = self.child.kill();
                return self.child.wait().ok();
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// What it complained of. Who holds its pipe longer than it lived is not waited for.
    fn said(&mut self) -> Vec<u8> {
        self.said.take().map_or_else(Vec::new, |pipe| pipe.until(Instant::now() + GRACE))
    }

    fn odd(&self, reply: &Reply) -> Error {
        let kind = match reply {
            Reply::Done => "done",
            Reply::Failed { .. } => "failed",
            Reply::Waiting => "waiting",
            Reply::Lacking { .. } => "lacking",
            Reply::Disk(_) => "a disk",
            Reply::There(_) => "there",
        };
        garbled(format!("{kind:?} is no answer to that")).context(format!("host {}", self.name))
    }

    /// An answer that is another than the order's.
    pub(crate) fn out_of_turn(&self, reply: &Reply) -> Error {
        self.odd(reply)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.end();
    }
}

/// A directory from one machine to another.
///
/// Only who failed is asked why: the other one waits, for what does not come any more or for somebody who reads.
pub(crate) fn relay(from: &mut Link, to: &mut Link, most: u64) -> Result<u64> {
    let Some(input) = to.input.as_mut() else { return Err(broken("it is closed")) };
    let mut onward = Onward { to: input, failed: false };
    match crate::files::tree::relay(&mut from.output, &mut onward, most) {
        Err(error) if onward.failed => Err(to.explain(broken(error.message))),
        Err(error) => Err(from.explain(error)),
        other => other,
    }
}

/// Knows whether it was the writing that failed.
struct Onward<'a> {
    to: &'a mut BufWriter<Input>,
    failed: bool,
}

impl Write for Onward<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.to.write(bytes);
        self.failed |= written.as_ref().is_err_and(|e| e.kind() != std::io::ErrorKind::Interrupted);
        written
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let flushed = self.to.flush();
        self.failed |= flushed.is_err();
        flushed
    }
}

/// Sends a blob as it is.
pub(crate) fn send_blob(link: &mut Link, digest: &str, size: u64, file: File) -> Result<()> {
    link.tell(&Order::Blob { digest: digest.to_owned(), size })?;
    link.write(|to| {
        let copied = std::io::copy(&mut file.take(size), to).map_err(broken)?;
        if copied == size { Ok(()) } else { Err(garbled(format!("blob {digest} is cut"))) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A host that says that and ends so.
    fn host(says: &str) -> Link {
        let text = format!("read line; {says}");
        Link::run(Path::new("/bin/sh"), &["-c", &text], "n1", false, PATIENCE).unwrap()
    }

    fn asked(says: &str) -> Error {
        host(says).done(&Order::Has { dir: "/d/1/2".into() }).unwrap_err()
    }

    #[test]
    fn a_failure_names_the_host_and_the_cause() {
        assert_eq!(
            asked(r#"echo '{"failed":{"why":"no room","hint":null,"busy":false}}'"#).message,
            "host n1: no room"
        );
        let gone = asked("echo 'ssh: connect to host n1 port 22: No route to host' >&2; exit 255");
        assert_eq!(
            gone.message,
            "host n1 cannot be reached: ssh: connect to host n1 port 22: No route to host"
        );
        assert!(asked("exit 127").message.starts_with("host n1 has no /usr/bin/ocivisor one host"));
        assert!(asked("kill -9 $$").message.starts_with("host n1 broke off"));
        assert!(asked("exit 3").message.contains("exit code 3"));
    }

    #[test]
    fn of_two_machines_the_one_that_is_lost_is_named_and_nobody_waits_for_the_other() {
        let machine = |name: &str, says: &str| {
            Link::run(Path::new("/bin/sh"), &["-c", says], name, false, PATIENCE).unwrap()
        };
        let entry = r#"echo '{"entry":"directory","path":["a"],"mode":493}'"#;
        let waits = "cat > /dev/null";
        let lost = |says: &str| {
            let (mut from, mut to) = (machine("n1", says), machine("n2", waits));
            relay(&mut from, &mut to, u64::MAX).unwrap_err().message
        };
        assert!(lost(&format!("{entry}; kill -9 $$")).starts_with("host n1 broke off"));
        let away = lost(&format!("{entry}; echo 'transfer broke off: x' >&2; exit 255"));
        assert!(away.starts_with("host n1 cannot be reached: "), "{away}");
        // One that goes on sending is not waited for.
        let endless = format!("while :; do {entry} || exit; done");
        let (mut from, mut to) = (machine("n1", &endless), machine("n2", "exit 255"));
        let error = relay(&mut from, &mut to, u64::MAX).unwrap_err().message;
        assert!(error.starts_with("host n2 cannot be reached"), "{error}");
    }

    #[test]
    fn who_does_not_go_on_is_given_up() {
        let order = Order::Has { dir: "/d/1/2".into() };
        let waited_for = |says: &str, patience: u64| {
            let program = Path::new("/bin/sh");
            let patience = Duration::from_millis(patience);
            Link::run(program, &["-c", says], "n1", false, patience).unwrap()
        };
        let host = |says: &str| waited_for(says, 200);
        // It neither answers nor ends; it does not read.
        let mut silent = host("cat > /dev/null; exec sleep 600");
        let pid = silent.child.id();
        let error = silent.done(&order).unwrap_err();
        assert_eq!(
            (error.kind, &*error.message),
            (ErrorKind::Timeout, "host n1 did not go on in time")
        );
        drop(silent);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        let mut deaf = host("exec sleep 600");
        let sent = deaf.write(|to| to.write_all(&vec![0; 4 << 20]).map_err(broken));
        assert_eq!(sent.unwrap_err().kind, ErrorKind::Timeout);
        // Who waits for another's work says so, and is waited for.
        let slow =
            r#"read line; for i in 1 2 3 4; do sleep 0.7; echo '"waiting"'; done; echo '"done"'"#;
        waited_for(slow, 2000).done(&order).unwrap();
        // Also while it takes nothing.
        let full = r#"for i in 1 2 3 4; do sleep 0.7; echo '"waiting"'; done
            head -c 4194304 > /dev/null; echo '"done"'"#;
        let mut full = waited_for(full, 2000);
        full.write(|to| to.write_all(&vec![0; 4 << 20]).map_err(broken)).unwrap();
        full.is_done().unwrap();
    }

    #[test]
    fn what_is_no_answer_is_told() {
        assert!(asked("echo Welcome to n1").message.contains("\"Welcome to n1\" is no message"));
        assert!(asked(r#"echo '{"there":true}'"#).message.contains("is no answer to that"));
        assert!(asked("head -c 3000000 /dev/zero | tr '\\0' a").message.contains("too long"));
    }
}
