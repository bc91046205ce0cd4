//! runc as the OCI runtime, by its command line; crun takes the same.
//!
//! Limits of processes are set here and inherited, not by runc: it sets those of another process,
//! which takes `CAP_SYS_RESOURCE` in the guest's user namespace (prlimit(2)), and that root of the
//! host has only if it has it on the host, since the namespace belongs to an id of the guest.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ocivisor_core::error::{Error, ErrorKind, Result};

use oci_spec::runtime::PosixRlimitType;
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::create::load_config;
use crate::runtime::{Created, Creation, Runtime, Start, runtime_error};

/// Where host tools are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most bytes of a log that are looked at.
const MAX_LOG: u64 = 1 << 20;

/// A runtime with runc's command line.
#[derive(Debug)]
pub struct External {
    /// Name or path of the program.
    pub program: PathBuf,
}

impl Runtime for External {
    fn create(&self, creation: &Creation<'_>) -> Result<Created> {
        let own = creation.bundle.join("external");
        let created = without_limits(creation.bundle, &own).and_then(|()| {
            let creation = Creation { bundle: &own, ..*creation };
            // Not in the runtime's own state directory, whose entries are guests to it.
            self.run(&creation, &own.join("runtime.log"), &own.join("runtime.pid"))
        });
        // Best effort: it is in the bundle, which is made anew for each boot.
        let _ = fs::remove_dir_all(&own);
        let fifo = creation.root.join(creation.id).join("exec.fifo");
        created.map(|pid| Created { pid, start: Start::Fifo(fifo) })
    }
}

impl External {
    fn run(&self, creation: &Creation<'_>, log: &Path, pid_file: &Path) -> Result<u32> {
        let name = self.program.display();
        // A file, not a pipe: the guest's first process inherits it until it runs, so the end of a
        // pipe would not come.
        let errors = File::create(log)
            .map_err(|e| Error::new(ErrorKind::Host, format!("{}: {e}", log.display())))?;
        #[expect(clippy::disallowed_methods, reason = "this program's one place that spawns")]
        let status = Command::new(&self.program)
            .arg("--root")
            .arg(creation.root)
            .args(["--log-format", "json", "create", "--bundle"])
            .arg(creation.bundle)
            .arg("--console-socket")
            .arg(creation.console_socket)
            .arg("--pid-file")
            .arg(pid_file)
            .arg(creation.id)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .status();
        let status = match status {
            Ok(status) => status,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let missing =
                    Error::new(ErrorKind::Unsupported, format!("{name} is not installed"));
                return Err(missing.hint("install it, or use the embedded runtime"));
            }
            Err(e) => return Err(Error::new(ErrorKind::Host, format!("start {name}: {e}"))),
        };
        if !status.success() {
            let text = last_message(&read_bounded(log));
            return Err(runtime_error(&format!("{name} failed ({status}): {text}")));
        }
        let pid = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok());
        pid.ok_or_else(|| Error::new(ErrorKind::Host, format!("{name} wrote no process id")))
    }
}

/// Takes the limits on ourselves, and makes a second bundle at `own` that does not name them.
fn without_limits(bundle: &Path, own: &Path) -> Result<()> {
    let mut config = load_config(bundle)?;
    if let Some(mut process) = config.process().clone() {
        for limit in process.rlimits().iter().flatten() {
            if limit.typ() != PosixRlimitType::RlimitNofile {
                let what = format!("limit {:?} cannot be set for this runtime", limit.typ());
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
            let wanted = Rlimit { current: Some(limit.soft()), maximum: Some(limit.hard()) };
            setrlimit(Resource::Nofile, wanted)
                .map_err(|e| Error::new(ErrorKind::Host, format!("limit open files: {e}")))?;
        }
        process.set_rlimits(None);
        config.set_process(Some(process));
    }
    let written = fs::create_dir_all(own)
        .and_then(|()| File::create(own.join("config.json")))
        .and_then(|file| Ok(serde_json::to_writer(io::BufWriter::new(file), &config)?));
    written.map_err(|e| Error::new(ErrorKind::Host, format!("{}: {e}", own.display())))
}

fn read_bounded(path: &Path) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path)
        .and_then(|file| io::Read::read_to_end(&mut io::Read::take(file, MAX_LOG), &mut bytes));
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) => format!("its log cannot be read: {e}"),
    }
}

/// The last message of a log in JSON lines, or its last line if it is not JSON.
fn last_message(log: &str) -> String {
    let message = |line: &str| -> Option<String> {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(value.get("msg")?.as_str()?.to_owned())
    };
    let mut lines = log.lines().rev().filter(|line| !line.trim().is_empty());
    match lines.next() {
        None => "no message".into(),
        Some(line) => message(line).unwrap_or_else(|| line.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_message_of_a_log_counts() {
        assert_eq!(last_message("{\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b\"}\n\n"), "b");
        assert_eq!(last_message("{\"msg\":\"a\"}\nplain"), "plain");
        assert_eq!(last_message(""), "no message");
    }
}
