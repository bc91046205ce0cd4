//! What a guest's files and its shim say, in the core's words.

use std::path::Path;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::state::{GuestExit, ProcessRef};
use ocivisor_shim::client::{Client, ClientError};
use ocivisor_shim::exit::{self, Exit, ExitRecord};
use ocivisor_shim::facts::{self, Facts, Process};
use ocivisor_shim::message::Code;

use crate::fs;
use crate::layout::VmRun;

/// A shim answers in microseconds; one that takes this long is stuck.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to a guest's shim.
pub fn connect(id: &VmId, run: &VmRun) -> Result<Client> {
    Client::connect(&run.shim_socket(), PATIENCE).map_err(|e| shim_error(id, &ClientError::Io(e)))
}

/// A shim's failure as ours.
pub fn shim_error(id: &VmId, error: &ClientError) -> Error {
    let kind = match error {
        ClientError::Io(_) | ClientError::Protocol(_) => ErrorKind::Host,
        ClientError::Refused(refusal) => match refusal.code {
            Code::Gone => ErrorKind::GuestExited,
            Code::Busy | Code::Runs => ErrorKind::Conflict,
            Code::NoConsole => ErrorKind::NotFound,
            Code::Denied => ErrorKind::Permission,
            Code::BadRequest | Code::Host => ErrorKind::Host,
        },
    };
    Error::new(kind, format!("guest {id}: {error}"))
}

/// Who shim and first process are, if anything is written down.
pub fn read_facts(run: &VmRun) -> Result<Option<Facts>> {
    read(&run.shim_facts(), facts::MAX_FILE, Facts::from_json)
}

/// How the guest ended, if that is written down. `init` tells the end of this boot of the guest
/// from one left over.
pub fn read_exit(run: &VmRun, init: Option<ProcessRef>) -> Result<Option<GuestExit>> {
    let record = read(&run.exit_record(), exit::MAX_FILE, ExitRecord::from_json)?;
    let record = record.filter(|record| init.is_none_or(|init| process(record.init) == init));
    Ok(record.map(|record| guest_exit(record.exit)))
}

fn read<T>(path: &Path, max: u64, parse: fn(&[u8]) -> Option<T>) -> Result<Option<T>> {
    let Some(bytes) = fs::read_bounded(path, max)? else {
        return Ok(None);
    };
    let damaged = || Error::new(ErrorKind::Integrity, format!("{} is damaged", path.display()));
    parse(&bytes).map(Some).ok_or_else(damaged)
}

/// The core's process of the shim's.
pub fn process(process: Process) -> ProcessRef {
    ProcessRef { pid: process.pid, start_ticks: process.start_ticks }
}

/// The core's exit of the shim's.
pub fn guest_exit(exit: Exit) -> GuestExit {
    match exit {
        Exit::Code(code) => GuestExit::Code(code),
        Exit::Signal(signal) => GuestExit::Signal(signal),
        Exit::Unknown => GuestExit::Unknown,
    }
}
