//! Asks guests whether they work: a command in each, by the same sessions as `ocivisor exec`.
//!
//! One task per guest, one check of it at a time; beginnings are spread over the interval and few at
//! once, so that checks of many guests are no storm. A check is bounded in time and in what is kept of what it
//! says; one that is too slow ends with its session, which takes its processes along. What was seen is
//! of this daemon alone: the next one asks anew, and how long a guest has run is in its record.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::health::{Checks, Health};
use ocivisor_core::ids::{Generation, VmId};
use ocivisor_core::ports::Guests as _;
use ocivisor_core::spec::HealthCheck;
use ocivisor_core::state::{GuestFacts, ProcessRef, Record, VmState};
use ocivisor_frame::session::{FromClient, FromSession};
use ocivisor_host::guests::ExecRequest;
use ocivisor_schema::event::EventDataV1;
use ocivisor_schema::reply::{HealthV1, VmInfo, VmSummary};
use rustix::fs::{Mode, OFlags, open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::holds::Free;
use crate::vms::{Vms, blocking};

/// Checks that begin at once: each takes a process that enters the guest.
const BEGIN_AT_ONCE: usize = 4;

/// Most bytes that are kept of what a check says.
const MAX_OUTPUT: usize = 1024;

/// Exit code of a check that took too long, as timeout(1) has it.
const TOO_SLOW: u8 = 124;

/// What is known of the guests that are asked.
#[derive(Debug)]
pub struct Healths {
    guests: Mutex<BTreeMap<VmId, Asked>>,
    begin: Semaphore,
}

/// One guest that is asked.
#[derive(Debug)]
struct Asked {
    init: ProcessRef,
    checks: Checks,
    output: Option<String>,
    task: JoinHandle<()>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How one check ended.
#[derive(Debug)]
struct Checked {
    code: u8,
    output: Vec<u8>,
}

impl Healths {
    /// Of nobody yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { guests: Mutex::default(), begin: Semaphore::new(BEGIN_AT_ONCE) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, Asked>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VM in a list.
    pub fn summary(&self, record: &Record) -> VmSummary {
        let health = self.of(record).map(|health| health.status);
        VmSummary { health, ..VmSummary::from(record) }
    }

    /// Everything about a VM.
    pub fn info(&self, record: &Record) -> VmInfo {
        VmInfo { health: self.of(record), ..VmInfo::from(record) }
    }

    /// What is known of a VM's guest; `None` if it does not run or is not asked.
    fn of(&self, record: &Record) -> Option<HealthV1> {
        let (_, facts) = asked(record)?;
        let guests = self.lock();
        let known = guests.get(record.id()).filter(|guest| guest.init == facts.init);
        let checks = known.map(|guest| guest.checks).unwrap_or_default();
        Some(HealthV1 {
            status: checks.health().into(),
            failures: checks.failures(),
            output: known.and_then(|guest| guest.output.clone()),
        })
    }

    /// Begins to ask guests that are new, and ends it for those that are gone.
    pub fn watch(self: &Arc<Self>, vms: &Arc<Vms>, records: &[Record]) {
        let wanted: BTreeMap<&VmId, &GuestFacts> =
            records.iter().filter_map(|record| Some((record.id(), asked(record)?.1))).collect();
        let mut guests = self.lock();
        guests.retain(|id, guest| {
            let same = wanted.get(id).is_some_and(|facts| facts.init == guest.init);
            same && !guest.task.is_finished()
        });
        for (id, facts) in wanted {
            if !guests.contains_key(id) {
                let (vms, healths) = (Arc::clone(vms), Arc::clone(self));
                let (vm, init) = (id.clone(), facts.init);
                let task = tokio::spawn(async move { healths.ask(&vms, &vm, init).await });
                let (checks, output) = (Checks::default(), None);
                guests.insert(id.clone(), Asked { init, checks, output, task });
            }
        }
    }

    /// Asks no more.
    pub fn stop(&self) {
        self.lock().clear();
    }

    /// Asks one guest again and again, until another is there or none.
    async fn ask(&self, vms: &Arc<Vms>, id: &VmId, init: ProcessRef) {
        let mut first = true;
        loop {
            let Ok(record) = vms.get(id) else { return };
            let Some((spec, facts)) = asked(&record).filter(|(_, facts)| facts.init == init) else {
                return;
            };
            let wait = if first { spec.interval.mul_f64(place(id)) } else { spec.interval };
            tokio::time::sleep(wait).await;
            first = false;
            // It is about to end, or stands still; neither is its fault.
            let Some(before) = undisturbed(vms, id, facts) else { continue };
            let ran = vms.host.now().0.saturating_sub(record.tally.since.0);
            let checked = self.check(vms, id, facts, spec).await;
            if undisturbed(vms, id, facts) != Some(before) {
                tracing::debug!(vm = %id, "vm {id}: a health check was disturbed, it does not count");
                continue;
            }
            match checked {
                Ok(checked) => {
                    let age = Duration::from_millis(ran);
                    self.note(vms, id, facts, (spec, checked, age)).await;
                }
                // What keeps the host from asking says nothing about the guest.
                Err(error) => tracing::warn!(vm = %id, "vm {id}: cannot check its health: {error}"),
            }
        }
    }

    async fn check(
        &self,
        vms: &Arc<Vms>,
        id: &VmId,
        facts: &GuestFacts,
        spec: &HealthCheck,
    ) -> Result<Checked> {
        let argv = spec.command.clone();
        let request = ExecRequest {
            argv,
            env: Vec::new(),
            user: None,
            workdir: None,
            tty: false,
            timeout_ms: None,
            detach: false,
            // One check after the other would fill the guest with what they leave.
            whole: true,
        };
        let (host, vm, guest) = (Arc::clone(&vms.host), id.clone(), facts.clone());
        let session = {
            let _permit = self.begin.acquire().await;
            blocking(move || host.guests.begin_exec(&vm, &guest, &request)).await??
        };
        let failed = |e: io::Error| {
            Error::new(ErrorKind::Host, format!("vm {id}: session of a health check: {e}"))
        };
        let mut output = Vec::new();
        let talk = converse(&session.socket, &session.token, &mut output);
        // Who hangs up takes the program along.
        match tokio::time::timeout(spec.timeout, talk).await {
            Ok(code) => Ok(Checked { code: code.map_err(failed)?, output }),
            Err(_) => {
                let late = format!("no answer within {} ms", spec.timeout.as_millis());
                Ok(Checked { code: TOO_SLOW, output: late.into_bytes() })
            }
        }
    }

    /// Takes in a check; tells of a change, and ends a guest that shall not go on so.
    async fn note(
        &self,
        vms: &Arc<Vms>,
        id: &VmId,
        facts: &GuestFacts,
        (spec, checked, age): (&HealthCheck, Checked, Duration),
    ) {
        let passed = checked.code == 0;
        let said = String::from_utf8_lossy(&checked.output).trim_end().to_owned();
        let (before, after) = {
            let mut guests = self.lock();
            let Some(guest) = guests.get_mut(id).filter(|guest| guest.init == facts.init) else {
                return;
            };
            let before = guest.checks;
            guest.checks = before.after(spec, passed, age);
            guest.output = Some(said.clone()).filter(|said| !said.is_empty());
            (before.health(), guest.checks.health())
        };
        if before == after {
            return;
        }
        let code = checked.code;
        tracing::info!(vm = %id, code, "vm {id}: {} ({said:?})", after.name());
        vms.publish(id, EventDataV1::HealthChanged { from: before.into(), to: after.into() });
        if after == Health::Unhealthy && spec.end {
            tracing::warn!(vm = %id, "vm {id}: unhealthy, ended as its definition wants");
            let (host, vm, guest) = (Arc::clone(&vms.host), id.clone(), facts.clone());
            // SIGKILL: who does not answer need not obey. Its end is seen as any other, and its policy decides.
            let killed = blocking(move || host.guests.signal_guest(&vm, &guest, 9)).await;
            if let Err(error) = killed.and_then(|killed| killed) {
                tracing::error!(vm = %id, "vm {id}: unhealthy, but not ended: {error}");
            }
        }
    }
}

/// The guest that is to be asked, and how.
fn asked(record: &Record) -> Option<(&HealthCheck, &GuestFacts)> {
    let runs = record.state == VmState::Running;
    Some((record.spec.upkeep.health.as_ref().filter(|_| runs)?, record.guest.as_ref()?))
}

/// Now, if the guest runs and nobody is at work on it. Equal before and after a check: nor was anybody meanwhile.
fn undisturbed(vms: &Vms, id: &VmId, facts: &GuestFacts) -> Option<(Free, Generation)> {
    let free = vms.free(id)?;
    let now = vms.get(id).ok()?;
    let quiet = now.op.is_none() && now.guest.as_ref() == Some(facts);
    quiet.then_some((free, now.generation))
}

/// A VM's place in the interval, 0 to 1: always the same, and another one for each.
fn place(id: &VmId) -> f64 {
    let mut hasher = DefaultHasher::new();
    id.as_str().hash(&mut hasher);
    f64::from(u32::try_from(hasher.finish() % 1000).unwrap_or_default()) / 1000.0
}

/// Runs a session to its end without any input; its exit code. What it says goes to `output`, as far as
/// there is room.
async fn converse(socket: &Path, token: &str, output: &mut Vec<u8>) -> io::Result<u8> {
    let mut stream = connect(socket).await?;
    let mut hello = format!("{token}\n").into_bytes();
    FromClient::End.encode(&mut hello);
    stream.write_all(&hello).await?;
    let mut received = Vec::new();
    let mut chunk = vec![0_u8; 4096];
    loop {
        let mut done = 0;
        while let Some((said, used)) = FromSession::decode(&received[done..])
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?
        {
            done += used;
            match said {
                FromSession::Output(bytes) | FromSession::Error(bytes) => {
                    let room = MAX_OUTPUT.saturating_sub(output.len());
                    output.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                FromSession::Exit(code) => return Ok(code),
            }
        }
        received.drain(..done);
        match stream.read(&mut chunk).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => received.extend_from_slice(&chunk[..n]),
        }
    }
}

/// An address has room for 107 bytes, a path for more: by way of the directory.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    UnixStream::connect(Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name))
        .await
}
