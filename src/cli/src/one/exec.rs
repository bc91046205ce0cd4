//! Commands that OpenNebula has run in guests.
//!
//! `exec` returns as soon as the command runs; a helper stays, which holds the command's session and writes down how it
//! ends ([`ocivisor_agent::spool`]). The monitoring agent tells OpenNebula. `exec_cancel` ends the helper, and with it the
//! command and all of its session.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_agent::seat::tell;
use ocivisor_agent::spool::{Command, Entry, Slot, Spool, Status};
use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_frame::session::Collected;
use ocivisor_opennebula::OneId;
use ocivisor_rpc::Client;
use ocivisor_schema::Text;
use rustix::process::Signal;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::config::Config;
use super::detached::{Task, leave};
use crate::attach::Signals;
use crate::connect::block_on;
use crate::failure::{Exit, Failure};
use crate::session::{Heard, Terminal, connect, run};

/// Most bytes that are kept of each output. All of it becomes part of the VM's template: in base64 both are 60 KiB.
const MOST: usize = 22 * 1024;
/// How long a helper may take to end when it is told to; then it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long all of that may take: one that hangs in the kernel cannot be killed, and OpenNebula waits.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);
/// Exit codes that a session gives when it cannot run the program.
const NOT_RUN: std::ops::RangeInclusive<u8> = 125..=127;
/// Of what was killed.
const KILLED: u8 = 128 + 9;

/// Begins a command; returns once it runs.
pub fn begin(
    vm: OneId,
    command: &str,
    stdin: &[u8],
    config: &Config,
    socket: Option<PathBuf>,
) -> Result<(), Error> {
    let state_dir = config.monitoring.state_dir.clone();
    let slot = Slot::take(&state_dir, vm)?.ok_or_else(|| {
        Error::new(ErrorKind::Conflict, "a command runs in it already").hint("wait, or cancel it")
    })?;
    let command = Command {
        vm: vm.number(),
        command: command.to_owned(),
        stdin: STANDARD.encode(stdin),
        socket: config.socket(socket),
        state_dir,
        daemon_timeout: config.daemon_timeout,
    };
    leave(Task::Exec, slot.hand_on(&command)?).map(drop)
}

/// Ends the command of a VM, if there is one; returns once it is written down.
pub fn cancel(vm: OneId, config: &Config) -> Result<(), Error> {
    end(vm, &config.monitoring.state_dir, GRACE, PATIENCE)
}

fn end(vm: OneId, state_dir: &Path, grace: Duration, patience: Duration) -> Result<(), Error> {
    let spool = Spool::new(state_dir);
    let ended = async {
        let began = Instant::now();
        let mut told = None;
        loop {
            let entry = spool.get(vm)?.filter(|entry| entry.status == Status::Executing);
            let Some(entry) = entry else { return Ok(()) };
            // Nobody holds it any more: whoever did was killed.
            if let Some(slot) = Slot::take(state_dir, vm)? {
                if spool.get(vm)?.is_some_and(|now| now.status == Status::Executing) {
                    slot.write(&entry.end(Status::Cancelled, None, String::new(), String::new()))?;
                }
                return Ok(());
            }
            let helper = entry.helper();
            if began.elapsed() > patience {
                let what = format!("process {} holds the command and does not end", helper.pid);
                return Err(
                    Error::new(ErrorKind::Timeout, what).hint("see what it waits for on the host")
                );
            }
            if began.elapsed() > grace {
                tell(helper, Signal::KILL);
            } else if told != Some(helper) {
                tell(helper, Signal::TERM);
                told = Some(helper);
            }
            sleep(PAUSE).await;
        }
    };
    block_on(async { ended.await.map_err(|error: Error| Failure::from(error)) })
        .map_err(Error::from)
}

/// Being the helper: has the command run and writes down how it ends. `begun` is called once it runs.
pub async fn hold(descriptor: OwnedFd, begun: fn()) -> Result<(), Error> {
    let (slot, command) = Slot::inherit(descriptor)?;
    let stdin = STANDARD.decode(&command.stdin).unwrap_or_default();
    // Before there is anything to cancel.
    let signals = Signals::catch()?;
    let client = daemon(&command).await?;
    let vm = command.vm.to_string().parse::<OneId>()?;
    let guest = guest(&client, vm).await;
    let stream = begin_session(&client, vm, command.command).await?;
    let entry = Entry::begin()?;
    slot.write(&entry)?;
    begun();
    let (typed, input) = mpsc::channel(1);
    // There is room for one.
    let _ = typed.try_send(stdin);
    drop(typed);
    let mut all = Collected::up_to(MOST);
    let done = run(stream, signals, Some(input), Terminal::None, Heard::Kept(&mut all)).await;
    let (status, note) = match (all.code, done) {
        (Some(code), _) if NOT_RUN.contains(&code) && all.error.starts_with(b"ocivisor: ") => {
            (Status::Error, None)
        }
        // Its end is not its own if it is the guest's.
        (Some(KILLED), _) if guest.is_none() || self::guest(&client, vm).await != guest => {
            (Status::Error, Some("the guest ended".to_owned()))
        }
        (Some(_), _) => (Status::Done, None),
        (None, Ok(_)) => (Status::Cancelled, None),
        (None, Err(failure)) => (Status::Error, Some(failure.message)),
    };
    if all.left_out > 0 {
        all.error.extend(format!("\nocivisor: {} bytes are left out\n", all.left_out).bytes());
    }
    if let Some(note) = note {
        all.error.extend(format!("ocivisor: {note}\n").bytes());
    }
    let code = all.code.filter(|_| status == Status::Done);
    slot.write(&entry.end(status, code, STANDARD.encode(&all.output), STANDARD.encode(&all.error)))
}

async fn begin_session(client: &Client, vm: OneId, command: String) -> Result<UnixStream, Error> {
    let argv = vec!["/bin/sh".to_owned(), "-c".to_owned(), command];
    let begun = client.vm_exec(Text(vm.vm_id()), argv, Vec::new(), None, None, false, None, false);
    let place = begun.await?;
    Ok(connect(Path::new(&place.socket), &place.token).await?)
}

/// A daemon that may be away for a moment.
async fn daemon(command: &Command) -> Result<Client, Error> {
    let (began, most) = (Instant::now(), Duration::from_secs(command.daemon_timeout));
    loop {
        match Client::connect(&command.socket).await.map_err(Failure::from) {
            Err(failure) if failure.exit == Exit::Unreachable && began.elapsed() < most => {
                sleep(Duration::from_millis(100)).await;
            }
            other => return Ok(other?),
        }
    }
}

/// The guest that runs, by its first process; `None` if none does, or something is being done to it.
async fn guest(client: &Client, vm: OneId) -> Option<u32> {
    let info = client.vm_get(Text(vm.vm_id())).await.ok()?;
    let guest = info.record.guest.filter(|_| info.record.op.is_none())?;
    Some(guest.init.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_does_not_end_is_not_waited_for_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let (vm, dir) = ("7".parse().unwrap(), dir.path().join("x"));
        // Somebody holds the slot whom no signal reaches.
        let slot = Slot::take(&dir, vm).unwrap().unwrap();
        let mut entry = Entry::begin().unwrap();
        entry.helper.1 += 1;
        slot.write(&entry).unwrap();
        let patience = Duration::from_millis(50);
        let error = end(vm, &dir, patience, patience).unwrap_err();
        let pid = std::process::id();
        assert_eq!(error.message, format!("process {pid} holds the command and does not end"));
        drop(slot);
        end(vm, &dir, patience, patience).unwrap();
        let entry = Spool::new(&dir).get(vm).unwrap().unwrap();
        assert_eq!(entry.status, Status::Cancelled);
    }
}
