//! `shim.json`: who shim and first process are, for whoever finds the directory later.

use crate::json::{self, Value};

/// Name of the file in the VM's run directory.
pub const FILE: &str = "shim.json";
/// Name of the socket beside it.
pub const SOCKET: &str = "shim.sock";
/// Most bytes of a `shim.json`; the start action holds a path.
pub const MAX_FILE: u64 = 16 * 1024;

/// A process: pids are reused, pid and start time are not within one boot of the host (proc(5),
/// field 22 of /proc/PID/stat).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Process id in the host's pid namespace.
    pub pid: u32,
    /// Clock ticks after the host's boot.
    pub start_ticks: u64,
}

/// Content of `shim.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The shim that wrote it.
    pub shim: Process,
    /// The guest's first process.
    pub init: Process,
    /// Whether the shim is not the first process's parent.
    pub adopted: bool,
    /// Whether the guest was let go.
    pub started: bool,
    /// Whether the shim holds the guest's terminal.
    pub console: bool,
    /// How the guest is let go, as in the shim's `--start`.
    pub start: String,
}

impl Facts {
    /// As stored.
    #[must_use]
    pub fn to_json(&self) -> String {
        format!(
            "{{\"version\":1,\"shim\":{},\"init\":{},\"adopted\":{},\"started\":{},\"console\":{},\"start\":{}}}\n",
            process_to_json(self.shim),
            process_to_json(self.init),
            self.adopted,
            self.started,
            self.console,
            json::quote(&self.start),
        )
    }

    /// Reads what was stored; `None` if it is damaged or of another version.
    #[must_use]
    pub fn from_json(bytes: &[u8]) -> Option<Self> {
        let value = json::parse(bytes)?;
        if value.number("version") != Some(1) {
            return None;
        }
        Some(Self {
            shim: process_from_json(value.get("shim")?)?,
            init: process_from_json(value.get("init")?)?,
            adopted: value.bool("adopted")?,
            started: value.bool("started")?,
            console: value.bool("console")?,
            start: value.text("start")?.to_owned(),
        })
    }
}

pub(crate) fn process_to_json(process: Process) -> String {
    format!("{{\"pid\":{},\"start_ticks\":{}}}", process.pid, process.start_ticks)
}

pub(crate) fn process_from_json(value: &Value) -> Option<Process> {
    Some(Process {
        pid: u32::try_from(value.number("pid")?).ok()?,
        start_ticks: value.number("start_ticks")?,
    })
}

/// Start time of a process, field 22 of /proc/PID/stat; `None` if there is no such process. The
/// command name in parentheses may hold anything, so fields count after the last parenthesis.
#[must_use]
pub fn start_ticks(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after = stat.iter().rposition(|&c| c == b')')? + 1;
    let mut fields = stat.get(after..)?.split(|&c| c == b' ').filter(|field| !field.is_empty());
    std::str::from_utf8(fields.nth(22 - 3)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_round_trip_and_are_pinned() {
        let facts = Facts {
            shim: Process { pid: 7, start_ticks: 100 },
            init: Process { pid: 8, start_ticks: 101 },
            adopted: false,
            started: true,
            console: true,
            start: "connect:/run/a \"b\"/notify.sock".into(),
        };
        let json = facts.to_json();
        assert_eq!(
            json,
            "{\"version\":1,\"shim\":{\"pid\":7,\"start_ticks\":100},\
             \"init\":{\"pid\":8,\"start_ticks\":101},\"adopted\":false,\"started\":true,\
             \"console\":true,\"start\":\"connect:/run/a \\\"b\\\"/notify.sock\"}\n"
        );
        assert_eq!(Facts::from_json(json.as_bytes()), Some(facts));
        assert_eq!(Facts::from_json(json.replace(":1,", ":2,").as_bytes()), None);
        assert_eq!(Facts::from_json(b""), None);
    }

    #[test]
    fn own_start_time_is_known() {
        assert!(start_ticks(std::process::id()).unwrap() > 0);
        assert_eq!(start_ticks(0), None);
    }
}
