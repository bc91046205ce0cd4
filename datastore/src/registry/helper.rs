//! Docker's credential helpers: programs `docker-credential-NAME` that keep logins.
//!
//! The protocol: argument `get`, the registry on stdin, JSON on stdout; a failure is an exit status other than zero with a
//! sentence on stdout. Run without a shell, with a name that cannot be a path, nothing of our environment but what finds
//! the user's key store, a deadline, and bounded output. stdout may hold a secret, so it is never shown.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::net::Stop;
use super::secret::Secret;
use crate::error::escape;

/// Most bytes a helper may say.
const MAX: u64 = 64 * 1024;
const MAX_NAME: usize = 64;

/// What of the environment a helper sees.
const ENVIRONMENT: [&str; 5] =
    ["PATH", "HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "GNUPGHOME"];

/// A helper's answer.
pub(crate) struct Login {
    pub username: String,
    pub secret: Secret,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Asks a helper; none if it has no login for that server.
pub(crate) fn get(name: &str, server: &str, time: Duration) -> Result<Option<Login>, String> {
    let good = (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if !good {
        return Err(format!("\"{}\" is no name of a credential helper", escape(name.as_bytes())));
    }
    let program = format!("docker-credential-{name}");
    let mut child = spawn(&program).map_err(|e| format!("{program} cannot be run: {e}"))?;
    let answer = talk(&mut child, server, time);
    // It leads a group of its own, so what it started ends with it.
    end(&mut child);
    let (status, stdout) = answer.map_err(|why| format!("{program} {why}"))?;
    if !status {
        let text = stdout.to_ascii_lowercase();
        return if text.windows(9).any(|w| w == b"not found") {
            Ok(None)
        } else {
            Err(format!("{program} failed; run it by hand to see why"))
        };
    }
    let answer: Answer = serde_json::from_slice(&stdout)
        .map_err(|_| format!("{program} gave no JSON with Username and Secret"))?;
    Ok(Some(Login { username: answer.username, secret: Secret::new(answer.secret) }))
}

#[expect(clippy::disallowed_methods, reason = "the one place where this crate runs helpers")]
fn spawn(program: &str) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.arg("get").env_clear().process_group(0).current_dir("/");
    for key in ENVIRONMENT {
        if let Some(value) = std::env::var_os(key) {
            command.env(key, value);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
}

fn talk(child: &mut Child, server: &str, time: Duration) -> Result<(bool, Vec<u8>), String> {
    let deadline = Instant::now() + time;
    if let Some(mut stdin) = child.stdin.take() {
        // Shorter than a pipe's buffer, so this does not block; one that does not read may still answer.
        drop(stdin.write_all(server.as_bytes()));
    }
    let stdout = child.stdout.take().ok_or("has no stdout")?;
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.take(MAX + 1).read_to_end(&mut bytes);
        // Nobody waits any more once the time is over.
        drop(send.send(read.map(|_| bytes)));
    });
    let bytes = receive
        .recv_timeout(time)
        .map_err(|_| "did not answer in time".to_owned())?
        .map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > MAX {
        return Err("said more than 64 KiB".into());
    }
    let pause = Stop::default();
    loop {
        if let Some(status) = child.try_wait().map_err(|e| format!("is lost: {e}"))? {
            return Ok((status.success(), bytes));
        }
        if Instant::now() >= deadline {
            return Err("did not end in time".into());
        }
        pause.wait(Duration::from_millis(2));
    }
}

fn end(child: &mut Child) {
    if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
        // Gone already, as a rule. The id is ours only until it is waited for.
        if matches!(child.try_wait(), Ok(None)) {
            let killed = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            // If it cannot be killed there is nothing to wait for.
            if killed.is_ok() {
                drop(child.wait());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_be_a_path_or_an_option_list_is_refused() {
        for name in ["", "../x", "a/b", "a b", "a;b", "a\0b", "$(id)", &"a".repeat(65)] {
            let why = get(name, "a.example", Duration::from_secs(1)).err().unwrap();
            assert!(why.ends_with("is no name of a credential helper"), "{why}");
        }
    }
}
