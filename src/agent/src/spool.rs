//! Commands that OpenNebula had run in guests: `exec/<vm>.json` in the agents' directory, from the begin of a command until
//! OpenNebula knows how it ended.
//!
//! Who holds a command's session (the helper that `exec` leaves behind) has `<vm>.lock` locked: so there is one command per
//! VM, and one whose helper died is found out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::state::ProcessRef;
use ocivisor_opennebula::OneId;
use ocivisor_opennebula::monitor::Template;
use serde::{Deserialize, Serialize};

use crate::now;
use crate::place::Place;
use crate::seat::process_ref;

/// How long the end of a command is told, in seconds, each period. What OpenNebula took once it has; but it forgets what comes
/// while it is busy with the VM.
const TOLD: u64 = 60;
/// Most bytes of an entry.
const MOST: u64 = 1 << 20;

/// How far a command is. OpenNebula shows the word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// It runs.
    Executing,
    /// It ended, with a code.
    Done,
    /// It could not be run, or nobody knows how it ended.
    Error,
    /// It was ended.
    Cancelled,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Executing => "EXECUTING",
            Self::Done => "DONE",
            Self::Error => "ERROR",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// A command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// How far it is.
    pub status: Status,
    /// Its exit code, once there is one.
    pub code: Option<u8>,
    /// What it wrote to standard output, in base64.
    pub stdout: String,
    /// What it wrote to standard error, in base64.
    pub stderr: String,
    /// The helper on this host: pid and start time.
    pub helper: (u32, u64),
    /// When it ended, in seconds since 1970.
    pub ended: Option<u64>,
}

impl Entry {
    /// One that begins, held by this process.
    ///
    /// # Errors
    /// `/proc` does not know us.
    pub fn begin() -> Result<Self> {
        let me = process_ref(std::process::id());
        let me =
            me.ok_or_else(|| Error::new(ErrorKind::Host, "/proc does not know this process"))?;
        Ok(Self {
            status: Status::Executing,
            code: None,
            stdout: String::new(),
            stderr: String::new(),
            helper: (me.pid, me.start_ticks),
            ended: None,
        })
    }

    /// The same, ended now; outputs in base64.
    #[must_use]
    pub fn end(self, status: Status, code: Option<u8>, stdout: String, stderr: String) -> Self {
        Self { status, code, stdout, stderr, ended: Some(now()), ..self }
    }

    /// The helper.
    #[must_use]
    pub fn helper(&self) -> ProcessRef {
        ProcessRef { pid: self.helper.0, start_ticks: self.helper.1 }
    }

    /// All keys, always: OpenNebula keeps what it was told of the VM's last command of those that are not there.
    fn tell(&self, vm: u32, text: &mut Template) {
        let code = self.code.map_or_else(String::new, |code| code.to_string());
        let pairs: [(&str, &dyn std::fmt::Display); 6] = [
            ("ID", &vm),
            ("STATUS", &self.status.name()),
            ("RETURN_CODE", &code),
            ("STDOUT", &self.stdout),
            ("STDERR", &self.stderr),
            ("PID", &self.helper.0),
        ];
        text.vector("VM", &pairs);
    }
}

/// All of them.
#[derive(Debug)]
pub struct Spool {
    state_dir: PathBuf,
    /// Ends that the monitor took.
    taken: BTreeMap<u32, u64>,
}

fn open(state_dir: &Path) -> Result<Place> {
    Place::open(state_dir)?.below("exec")
}

/// What a helper is to have run. It is in the lock's file until the helper has read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// In which VM, by its number.
    pub vm: u32,
    /// For the guest's `/bin/sh -c`.
    pub command: String,
    /// Its standard input, in base64.
    pub stdin: String,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The agents' directory.
    pub state_dir: PathBuf,
    /// How long the daemon may be away, in seconds.
    pub daemon_timeout: u64,
}

/// The right to run a command in a VM.
#[derive(Debug)]
pub struct Slot {
    place: Place,
    vm: u32,
    lock: File,
}

impl Slot {
    /// Takes it for this process; `None` if a command runs there.
    ///
    /// # Errors
    /// The host's.
    pub fn take(state_dir: &Path, vm: OneId) -> Result<Option<Self>> {
        let place = open(state_dir)?;
        let (vm, lock) = (vm.number(), place.lock(&format!("{vm}.lock"))?);
        Ok(lock.map(|lock| Self { place, vm, lock }))
    }

    /// Hands it on, with what is to be run: the open file, lock and all. Of the command before nothing is told any more.
    ///
    /// # Errors
    /// The host's.
    pub fn hand_on(mut self, command: &Command) -> Result<OwnedFd> {
        self.place.remove(&format!("{}.json", self.vm))?;
        let text = serde_json::to_vec(command).map_err(std::io::Error::from);
        let written = text.and_then(|text| {
            self.lock.set_len(0)?;
            self.lock.rewind()?;
            self.lock.write_all(&text)
        });
        written.map_err(|e| Error::new(ErrorKind::Host, format!("write down a command: {e}")))?;
        Ok(self.lock.into())
    }

    /// What was handed on as that file.
    ///
    /// # Errors
    /// It is none.
    pub fn inherit(file: OwnedFd) -> Result<(Self, Command)> {
        let lock = File::from(file);
        let bad = |why: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Invalid, format!("this is no command: {why}"))
        };
        let size = lock.metadata().map_err(|e| bad(&e))?.len().min(MOST);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        lock.read_exact_at(&mut bytes, 0).map_err(|e| bad(&e))?;
        let command: Command = serde_json::from_slice(&bytes).map_err(|e| bad(&e))?;
        // It may hold what nobody should find later.
        lock.set_len(0).map_err(|e| bad(&e))?;
        let place = open(&command.state_dir)?;
        Ok((Self { place, vm: command.vm, lock }, command))
    }

    /// Writes down how far the command is.
    ///
    /// # Errors
    /// The host's.
    pub fn write(&self, entry: &Entry) -> Result<()> {
        let text = serde_json::to_vec(entry).map_err(|e| {
            Error::new(ErrorKind::Host, format!("write what became of a command: {e}"))
        })?;
        self.place.replace(&format!("{}.json", self.vm), &text)
    }
}

impl Spool {
    /// Those below the agents' directory. It is opened at each look: helpers make a new one if somebody cleans up.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { state_dir: state_dir.to_owned(), taken: BTreeMap::new() }
    }

    /// The last command of a VM; `None` if there is none that OpenNebula does not know all about.
    ///
    /// # Errors
    /// The host's; a file that is no entry.
    pub fn get(&self, vm: OneId) -> Result<Option<Entry>> {
        read(&open(&self.state_dir)?, vm.number())
    }

    /// What to tell of all, and which ends are among it. Forgets what was told long enough.
    ///
    /// # Errors
    /// The host's.
    pub fn tell(&mut self) -> Result<(String, BTreeMap<u32, u64>)> {
        let (mut text, mut ends) = (Template::default(), BTreeMap::new());
        let place = open(&self.state_dir)?;
        for name in place.names()? {
            let vm = name.strip_suffix(".json").and_then(|name| name.parse().ok());
            let Some(vm) = vm else { continue };
            // A file that cannot be read was not written by us, or by a later version: it is left.
            let Ok(Some(entry)) = read(&place, vm) else { continue };
            let entry = settled(&place, vm, entry)?;
            if let Some(ended) = entry.ended {
                if self.taken.get(&vm) == Some(&ended) && now().saturating_sub(ended) > TOLD {
                    self.forget(&place, vm, &entry)?;
                    continue;
                }
                ends.insert(vm, ended);
            }
            entry.tell(vm, &mut text);
        }
        Ok((text.into_text(), ends))
    }

    /// The monitor took these.
    pub fn told(&mut self, ends: BTreeMap<u32, u64>) {
        self.taken = ends;
    }

    fn forget(&mut self, place: &Place, vm: u32, entry: &Entry) -> Result<()> {
        let lock = format!("{vm}.lock");
        if let Some(_lock) = place.lock(&lock)?
            && read(place, vm)?.as_ref() == Some(entry)
        {
            place.remove(&format!("{vm}.json"))?;
            place.remove(&lock)?;
            self.taken.remove(&vm);
        }
        Ok(())
    }
}

fn read(place: &Place, vm: u32) -> Result<Option<Entry>> {
    let name = format!("{vm}.json");
    let Some(bytes) = place.read(&name, MOST)? else { return Ok(None) };
    let path = place.path(&name);
    let read = serde_json::from_slice(&bytes).map(Some);
    read.map_err(|e| Error::new(ErrorKind::Integrity, format!("{}: {e}", path.display())))
}

/// A command that nobody holds any more ended in a way that nobody saw.
fn settled(place: &Place, vm: u32, entry: Entry) -> Result<Entry> {
    if entry.status != Status::Executing {
        return Ok(entry);
    }
    let Some(_lock) = place.lock(&format!("{vm}.lock"))? else { return Ok(entry) };
    // It may have ended between the two looks.
    let Some(entry) = read(place, vm)?.filter(|again| again.status == Status::Executing) else {
        return Ok(entry);
    };
    let why = "ocivisor: what held this command on the host ended before it\n";
    let why = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, why);
    let entry = entry.end(Status::Error, None, String::new(), why);
    let text = serde_json::to_vec(&entry).unwrap_or_default();
    place.replace(&format!("{vm}.json"), &text)?;
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm() -> OneId {
        "42".parse().unwrap()
    }

    #[test]
    fn a_command_is_told_from_its_begin_until_its_end_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("x");
        let mut spool = Spool::new(&dir);
        assert_eq!(spool.tell().unwrap().0, "");
        let slot = Slot::take(&dir, vm()).unwrap().unwrap();
        assert!(Slot::take(&dir, vm()).unwrap().is_none(), "one at a time");
        let entry = Entry::begin().unwrap();
        let pid = entry.helper.0;
        slot.write(&entry).unwrap();
        let begun = format!(
            "VM=[ID=\"42\",STATUS=\"EXECUTING\",RETURN_CODE=\"\",STDOUT=\"\",STDERR=\"\",PID=\"{pid}\"]\n"
        );
        assert_eq!(spool.tell().unwrap(), (begun, BTreeMap::new()));

        let mut entry = entry.end(Status::Done, Some(3), "b3V0".into(), "ZXJy".into());
        slot.write(&entry).unwrap();
        let done = format!(
            "VM=[ID=\"42\",STATUS=\"DONE\",RETURN_CODE=\"3\",STDOUT=\"b3V0\",STDERR=\"ZXJy\",PID=\"{pid}\"]\n"
        );
        let ended = entry.ended.unwrap();
        assert_eq!(spool.tell().unwrap(), (done.clone(), BTreeMap::from([(42, ended)])));
        entry.ended = Some(ended - 61);
        slot.write(&entry).unwrap();
        drop(slot);
        let (text, ends) = spool.tell().unwrap();
        assert_eq!(text, done, "old, but nobody took it");
        spool.told(ends);
        assert_eq!(spool.tell().unwrap().0, "");
        assert!(open(&dir).unwrap().names().unwrap().is_empty());
    }

    #[test]
    fn a_new_command_is_told_nothing_of_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("x");
        let slot = Slot::take(&dir, vm()).unwrap().unwrap();
        slot.write(&Entry::begin().unwrap().end(
            Status::Done,
            Some(3),
            "b3V0".into(),
            String::new(),
        ))
        .unwrap();
        let command = Command {
            vm: 42,
            command: "true".into(),
            stdin: String::new(),
            socket: "/s".into(),
            state_dir: dir.clone(),
            daemon_timeout: 1,
        };
        let file = slot.hand_on(&command).unwrap();
        let mut spool = Spool::new(&dir);
        assert_eq!(spool.tell().unwrap().0, "", "it has not begun yet");
        let (slot, read) = Slot::inherit(file).unwrap();
        assert_eq!(read, command);
        let failed = Entry::begin().unwrap().end(Status::Error, None, String::new(), "ZXJy".into());
        slot.write(&failed).unwrap();
        let want = "STATUS=\"ERROR\",RETURN_CODE=\"\",STDOUT=\"\",STDERR=\"ZXJy\",PID=";
        assert!(spool.tell().unwrap().0.contains(want));
    }

    #[test]
    fn a_directory_that_was_cleaned_up_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("x");
        let mut spool = Spool::new(&dir);
        assert_eq!(spool.tell().unwrap().0, "");
        std::fs::remove_dir_all(dir.join("exec")).unwrap();
        let slot = Slot::take(&dir, vm()).unwrap().unwrap();
        slot.write(&Entry::begin().unwrap()).unwrap();
        assert!(spool.tell().unwrap().0.contains("STATUS=\"EXECUTING\""));
    }

    #[test]
    fn a_command_whose_helper_died_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("x");
        let slot = Slot::take(&dir, vm()).unwrap().unwrap();
        slot.write(&Entry::begin().unwrap()).unwrap();
        drop(slot);
        let mut spool = Spool::new(&dir);
        assert!(spool.tell().unwrap().0.contains("STATUS=\"ERROR\""));
        assert_eq!(spool.get(vm()).unwrap().unwrap().status, Status::Error);
    }

    #[test]
    fn a_file_that_is_no_entry_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("x");
        let mut spool = Spool::new(&dir);
        let place = open(&dir).unwrap();
        place.replace("1.json", b"{").unwrap();
        place.replace("x.json", b"{}").unwrap();
        assert_eq!(spool.tell().unwrap().0, "");
        assert!(spool.get("1".parse().unwrap()).is_err());
    }
}
