//! Telling a guest about itself: the document and the context disk go to `ocivisor-runtime tell`, which enters the
//! guest. Nothing of the guest is written from here.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use ocivisor_context::{Moment, Runner, Telling, patience};
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::VmSpec;
use ocivisor_core::state::{GuestFacts, GuestKind};
use serde::Deserialize;

use super::bundle::init;
use super::bundle::rootfs::GuestRoot;
use super::exec::in_memory;
use super::spawn::quiet;
use super::sys::Life;
use super::{HostGuests, client};
use crate::fs::io_error;
use crate::storage;

/// What a telling needs beside its own time: to begin, to call an agent, to end.
const BESIDE: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Outcome {
    notes: Vec<String>,
    agent: bool,
}

impl HostGuests {
    /// Tells it.
    pub(super) fn tell(&self, spec: &VmSpec, facts: &GuestFacts) -> Result<()> {
        self.reap();
        let id = &spec.id;
        let settings = &self.settings;
        let run = settings.layout.run_vm(id);
        let started = client::read_facts(&run)?.is_none_or(|known| known.started);
        let moment = if started { Moment::Change } else { Moment::Boot };
        let runner = match (&spec.context.start_script, facts.kind) {
            (Some(_), GuestKind::System) => {
                let root = GuestRoot::open(&run.root())?;
                let found = init::detect(&root)?;
                init::script_runner(&root, &spec.boot, facts.kind, found.as_ref())?
            }
            _ => Runner::Ours,
        };
        let telling = Telling { moment, kind: facts.kind, runner, spec: spec.clone() };
        let document = in_memory("telling", &telling.to_bytes()?)
            .map_err(|e| io_error("keep what to tell", run.dir(), &e))?;
        let disk = spec.context.disk.as_deref().map(open_disk).transpose()?;

        let mut command = quiet(&settings.runtime_bin);
        command.arg("tell").arg("--vm-dir").arg(run.dir());
        command.args(["--init", &facts.init.pid.to_string()]);
        command.args(["--start-ticks", &facts.init.start_ticks.to_string()]);
        for procs in settings.cgroups.shim_procs(id) {
            command.arg("--cgroup-procs").arg(procs);
        }
        let mut descriptors = vec![("--telling-fd", document.as_fd())];
        descriptors.extend(disk.as_ref().map(|disk| ("--disk-fd", disk.as_fd())));
        let deadline = patience(disk.as_ref())? + BESIDE;
        let program = &settings.runtime_bin;
        let outcome =
            self.spawn_within(deadline, id, program, command, &descriptors, Life::Ours, parse)?;
        for note in outcome.notes {
            tracing::warn!(vm = %id, "context: {note}");
        }
        if outcome.agent {
            tracing::info!(vm = %id, "the agent in the guest was called");
        }
        Ok(())
    }
}

/// The context disk, which a platform's user keeps: a file, or a device.
fn open_disk(path: &Path) -> Result<std::fs::File> {
    storage::open_to_read(path).map_err(|error| {
        let error = Error { message: format!("context {}", error.message), ..error };
        match error.kind {
            ErrorKind::NotFound => error.hint("the platform makes it before it starts the VM"),
            _ => error,
        }
    })
}

fn parse(line: &str, _: u32) -> Option<Outcome> {
    serde_json::from_str(line.strip_prefix("told ")?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_strictly() {
        let told = parse(r#"told {"notes":["a"],"agent":true}"#, 1);
        assert_eq!(told, Some(Outcome { notes: vec!["a".into()], agent: true }));
        for bad in ["told", "told {}", "ready 1 2 3", r#"told {"notes":[],"agent":true} x"#] {
            assert_eq!(parse(bad, 1), None, "{bad}");
        }
    }
}
