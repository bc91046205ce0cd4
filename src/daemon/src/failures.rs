//! The last failure of each VM, as files: `failures/<id>.json`. For people who ask why; nothing is decided by them.
//!
//! They are apart from the VMs' own directories, because a platform's VM is forgotten when its deploy fails. So nobody
//! takes them away but a success ([`Failures::concluded`]), the VM's end, and the bound.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ocivisor_core::engine::Outcome;
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::failure::KeptFailure;
use ocivisor_core::ids::VmId;
use ocivisor_core::ports::Guests as _;
use ocivisor_core::state::{OpKind, Record};
use ocivisor_host::fs::{drop_file, ensure_dir, io_error, read_bounded, replace};
use ocivisor_host::layout::Layout;
use ocivisor_schema::failure::{MAX_FAILURE, WhyReply, decode, encode};

use crate::host::Host;

/// Most files; the oldest go first. With what one may have at most, that is 8 MiB.
const MOST: usize = 256;

/// Failures below a state directory.
#[derive(Debug)]
pub struct Failures {
    layout: Layout,
    /// Each file has one writer, its VM's operation; making room touches all.
    writing: Mutex<()>,
}

impl Failures {
    /// Failures of this layout.
    pub fn new(layout: Layout) -> Self {
        Self { layout, writing: Mutex::default() }
    }

    /// Keeps a failure in place of the VM's last one.
    ///
    /// # Errors
    /// It is not kept.
    pub fn keep(&self, failure: &KeptFailure) -> Result<()> {
        let _writing = self.lock();
        ensure_dir(&self.layout.failures(), true)?;
        replace(&self.layout.failure(&failure.vm), &encode(failure)?)?;
        make_room(&self.layout.failures(), MOST)
    }

    /// The VM's last failure. A damaged one is set aside: nothing hangs on it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn get(&self, id: &VmId) -> Result<Option<KeptFailure>> {
        let path = self.layout.failure(id);
        let Some(bytes) = read_bounded(&path, u64::try_from(MAX_FAILURE).unwrap_or(u64::MAX))?
        else {
            return Ok(None);
        };
        let why = match decode(&bytes) {
            Ok(failure) if failure.vm == *id => return Ok(Some(failure)),
            Ok(failure) => format!("it is of vm {}", failure.vm),
            Err(error) => error.to_string(),
        };
        let _writing = self.lock();
        tracing::warn!(vm = %id, "vm {id}: what was kept of its last failure is set aside: {why}");
        replace(&path.with_extension("json.damaged"), &bytes)?;
        drop_file(&path)?;
        Ok(None)
    }

    /// Drops the failure that the outcome of an operation makes the past: something that mends it worked, or the VM
    /// was forgotten as wished.
    pub fn concluded(&self, id: &VmId, kind: OpKind, outcome: &Outcome) {
        let dropped = match outcome {
            Outcome::Settled(_, Ok(())) => self.mended(id, kind),
            Outcome::Forgotten(Ok(())) => self.forget(id),
            Outcome::Settled(_, Err(_)) | Outcome::Forgotten(Err(_)) | Outcome::GivenUp(_) => {
                Ok(())
            }
        };
        if let Err(error) = dropped {
            tracing::warn!(vm = %id, "vm {id}: its last failure is still kept: {error}");
        }
    }

    fn mended(&self, id: &VmId, by: OpKind) -> Result<()> {
        match self.get(id)? {
            Some(failure) if failure.is_mended_by(by) => self.forget(id),
            _ => Ok(()),
        }
    }

    fn forget(&self, id: &VmId) -> Result<()> {
        drop_file(&self.layout.failure(id))
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the oldest files beyond so many.
fn make_room(dir: &Path, most: usize) -> Result<()> {
    let failed = |e: std::io::Error| io_error("list", dir, &e);
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // One that is just being removed counts as the oldest.
        let written = entry.metadata().and_then(|meta| meta.modified());
        files.push((written.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
    }
    files.sort();
    let excess = files.len().saturating_sub(most);
    files.iter().take(excess).try_for_each(|(_, path)| drop_file(path))
}

/// What is known of why a VM is as it is.
///
/// # Errors
/// `NotFound`: nothing is.
pub fn why(host: &Host, id: &VmId, record: Option<&Record>) -> Result<WhyReply> {
    let failure = host.failures.get(id)?.filter(|failure| !is_past(failure, record));
    if record.is_none() && failure.is_none() {
        let what = format!("nothing is known of vm {id}");
        let hint = "a request that was refused leaves nothing behind, and old failures make room for new ones";
        return Err(Error::new(ErrorKind::NotFound, what).hint(hint));
    }
    let console = record.map(|_| host.guests.last_lines(id)).unwrap_or_default();
    Ok(WhyReply::new(id, record, failure.as_ref(), console))
}

/// Whether the record tells of a later success; a crash came before the failure was dropped for it.
fn is_past(failure: &KeptFailure, record: Option<&Record>) -> bool {
    let mut finished = record.iter().flat_map(|record| &record.finished);
    finished.any(|op| op.id > failure.op && op.result.is_ok() && failure.is_mended_by(op.kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocivisor_core::ids::OpId;
    use ocivisor_core::state::{GuestExit, Timestamp};

    fn failure(vm: &str) -> KeptFailure {
        KeptFailure {
            vm: vm.parse().unwrap(),
            op: OpId(7),
            kind: OpKind::Deploy,
            step: Some("settle".into()),
            error: Error::new(ErrorKind::GuestExited, "it ended").hint("see why"),
            at: Timestamp(1),
            exit: Some(GuestExit::Code(3)),
            console: vec!["no luck".into()],
        }
    }

    fn at(dir: &Path) -> Failures {
        Failures::new(Layout { state: dir.join("s"), run: dir.join("r"), cgroup_base: "x".into() })
    }

    #[test]
    fn a_failure_is_kept_until_something_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let (failures, vm) = (at(dir.path()), failure("one-1").vm);
        assert_eq!(failures.get(&vm), Ok(None));
        failures.mended(&vm, OpKind::Start).unwrap();
        failures.keep(&failure("one-1")).unwrap();
        failures.mended(&vm, OpKind::Change).unwrap();
        // Another daemon.
        assert_eq!(at(dir.path()).get(&vm), Ok(Some(failure("one-1"))));
        failures.mended(&vm, OpKind::Start).unwrap();
        assert_eq!(failures.get(&vm), Ok(None));
    }

    #[test]
    fn a_damaged_failure_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (failures, vm) = (at(dir.path()), failure("one-1").vm);
        for bytes in [&b"{"[..], &encode(&failure("one-2")).unwrap()] {
            failures.keep(&failure("one-1")).unwrap();
            replace(&failures.layout.failure(&vm), bytes).unwrap();
            assert_eq!(failures.get(&vm), Ok(None));
            let aside = failures.layout.failures().join("one-1.json.damaged");
            assert_eq!(read_bounded(&aside, 1 << 20).unwrap().as_deref(), Some(bytes));
        }
    }

    #[test]
    fn the_oldest_make_room() {
        let dir = tempfile::tempdir().unwrap();
        for (age, name) in [(30, "b"), (10, "a"), (20, "c")] {
            let path = dir.path().join(name);
            replace(&path, b"x").unwrap();
            let written = SystemTime::now() - std::time::Duration::from_secs(age);
            fs::File::open(&path).unwrap().set_modified(written).unwrap();
        }
        make_room(dir.path(), 3).unwrap();
        make_room(dir.path(), 2).unwrap();
        let left = ["a", "b", "c"].map(|name| dir.path().join(name).exists());
        assert_eq!(left, [true, false, true]);
    }
}
