//! Guests: how they are made, entered and read.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::state::{GuestFacts, Record};
use ocivisor_core::units::Bytes;
use ocivisor_host::cgroup::HostCgroups;
use ocivisor_host::fs::io_error;
use ocivisor_host::guests::{CopyRequest, Direction, Engine, ExecRequest, HostGuests, Settings};
use ocivisor_host::layout::Layout;
use ocivisor_schema::reply::ExecReply;

use crate::config::{Config, RuntimeName};
use crate::host::Host;

/// The guests adapter as configured.
pub fn guests(config: &Config, layout: &Layout, cgroups: &HostCgroups, boot: &str) -> HostGuests {
    let libexec = config.libexec();
    HostGuests::new(Settings {
        layout: layout.clone(),
        cgroups: cgroups.clone(),
        runtime_bin: libexec.join("ocivisor-runtime"),
        shim_bin: libexec.join("ocivisor-shim"),
        vnc_bin: libexec.join("ocivisor-vnc"),
        console_group: config.access.operate_gid,
        log_max: Bytes(config.guests.console_log_bytes),
        engine: match config.guests.runtime {
            RuntimeName::Embedded => Engine::Embedded,
            RuntimeName::Runc => Engine::Runc,
        },
        lxcfs: config.guests.lxcfs(),
        labels: config.guests.labels(),
        boot: boot.to_owned(),
    })
}

/// The guest of a VM that runs.
pub fn running(record: &Record) -> Result<GuestFacts> {
    record.guest.clone().filter(|_| record.state.is_live()).ok_or_else(|| {
        let what = format!("vm {} is {}: it has no guest", record.id(), record.state.name());
        Error::new(ErrorKind::Conflict, what).hint("start it")
    })
}

/// Reads a direction of the wire.
pub fn direction(text: &str) -> Result<Direction> {
    match text {
        "in" => Ok(Direction::In),
        "out" => Ok(Direction::Out),
        _ => Err(Error::new(ErrorKind::Invalid, "direction is neither \"in\" nor \"out\"")),
    }
}

/// Begins a session; its client finds it at the socket, with the token.
pub fn begin(
    host: &Host,
    id: &VmId,
    facts: &GuestFacts,
    request: &ExecRequest,
) -> Result<ExecReply> {
    let session = host.guests.begin_exec(id, facts, request)?;
    Ok(ExecReply { socket: session.socket.display().to_string(), token: session.token })
}

/// Begins a session that copies, as [`begin`].
pub fn copy(
    host: &Host,
    id: &VmId,
    facts: &GuestFacts,
    request: &CopyRequest,
) -> Result<ExecReply> {
    let session = host.guests.begin_copy(id, facts, request)?;
    Ok(ExecReply { socket: session.socket.display().to_string(), token: session.token })
}

/// The last `max` bytes of the console log, and whether there are more.
pub fn console_tail(layout: &Layout, id: &VmId, max: u64) -> Result<(Vec<u8>, bool)> {
    let log = layout.console_log(id);
    let mut older = log.clone().into_os_string();
    older.push(".1");
    let (mut bytes, mut more) = tail(&log, max)?;
    let room = max.saturating_sub(bytes.len() as u64);
    if room > 0 {
        let (mut before, cut) = tail(Path::new(&older), room)?;
        before.append(&mut bytes);
        (bytes, more) = (before, cut);
    }
    Ok((bytes, more))
}

fn tail(path: &Path, max: u64) -> Result<(Vec<u8>, bool)> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), false)),
        Err(e) => return Err(io_error("open", path, &e)),
    };
    let read = |file: &mut std::fs::File| {
        let size = file.metadata()?.len();
        let skip = size.saturating_sub(max);
        file.seek(SeekFrom::Start(skip))?;
        let mut bytes = Vec::new();
        file.take(max).read_to_end(&mut bytes)?;
        Ok((bytes, skip > 0))
    };
    read(&mut file).map_err(|e| io_error("read", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_console_spans_both_logs() {
        let dir = tempfile::tempdir().unwrap();
        let layout =
            Layout { state: dir.path().into(), run: dir.path().into(), cgroup_base: "x".into() };
        let id: VmId = "one-1".parse().unwrap();
        assert_eq!(console_tail(&layout, &id, 9).unwrap(), (Vec::new(), false));
        ocivisor_host::fs::ensure_dir(&layout.vm(&id), false).unwrap();
        let log = layout.console_log(&id);
        ocivisor_host::fs::replace(&log, b"world").unwrap();
        ocivisor_host::fs::replace(&log.with_extension("log.1"), b"hello ").unwrap();
        assert_eq!(console_tail(&layout, &id, 100).unwrap(), (b"hello world".to_vec(), false));
        assert_eq!(console_tail(&layout, &id, 7).unwrap(), (b"o world".to_vec(), true));
        assert_eq!(console_tail(&layout, &id, 3).unwrap(), (b"rld".to_vec(), true));
    }
}
