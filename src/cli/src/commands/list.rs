//! Lists VMs. All of them: one that is hidden because it does not run is one that is forgotten. One whose record is
//! damaged is nothing but a name; `why` tells more.

use clap::{Args, ValueEnum};
use ocivisor_core::units::Bytes;
use ocivisor_rpc::ClientError;
use ocivisor_schema::reply::{DamagedVm, StateNameV1, VmSummary};
use serde::Serialize;

use crate::connect::Context;
use crate::failure::Failure;
use crate::output::Table;

/// Options of `list`.
#[derive(Debug, Args)]
pub struct Options {
    /// Only those in this state
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<State>,
    /// All of them, as is done without it too
    #[arg(short, long, hide = true)]
    all: bool,
}

/// A settled state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    Stopped,
    Running,
    Paused,
    Suspended,
    Failed,
    /// Its record cannot be read
    Damaged,
}

impl State {
    fn is(self, name: StateNameV1) -> bool {
        let wanted = match self {
            Self::Damaged => return false,
            Self::Stopped => StateNameV1::Stopped,
            Self::Running => StateNameV1::Running,
            Self::Paused => StateNameV1::Paused,
            Self::Suspended => StateNameV1::Suspended,
            Self::Failed => StateNameV1::Failed,
        };
        wanted == name
    }
}

#[derive(Debug, Serialize)]
struct Report {
    vms: Vec<VmSummary>,
    damaged: Vec<DamagedVm>,
}

/// Runs it.
///
/// # Errors
/// See [`Context::ask`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let mut vms = context.ask(client.vm_list()).await?;
    vms.retain(|vm| options.state.is_none_or(|state| state.is(vm.state)));
    let damaged = async { ClientError::if_known(client.vm_damaged().await) };
    let mut damaged = context.ask(damaged).await?.unwrap_or_default();
    damaged.retain(|_| options.state.is_none_or(|state| state == State::Damaged));
    let report = Report { vms, damaged };
    let ids = || {
        let sound = report.vms.iter().map(|vm| vm.id.to_string());
        sound.chain(report.damaged.iter().map(|vm| vm.id.to_string())).collect()
    };
    context.output.list(&report, ids, || table(&report))
}

fn table(report: &Report) -> String {
    let mut table =
        Table::new(&["ID", "NAME", "STATE", "PID", "VCPUS", "MEMORY", "UIDS", "ADDRESS"]);
    for vm in &report.vms {
        table.row([
            vm.id.to_string(),
            vm.name.clone(),
            match vm.health {
                Some(health) => format!("{} ({})", vm.display_state, health.name()),
                None => vm.display_state.clone(),
            },
            vm.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            vm.vcpus.to_string(),
            Bytes(vm.memory).to_string(),
            vm.uid_base
                .map(|base| ocivisor_core::ids::IdRange { base }.to_string())
                .unwrap_or_default(),
            vm.addresses.join(" "),
        ]);
    }
    for vm in &report.damaged {
        let none = || String::new();
        let state = "damaged".to_owned();
        table.row([vm.id.to_string(), none(), state, none(), none(), none(), none(), none()]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_what_people_look_for() {
        let vm = |json| serde_json::from_value::<VmSummary>(json).unwrap();
        let running = vm(serde_json::json!({
            "id": "one-7", "name": "web", "platform": "opennebula", "state": "running",
            "failure": null, "display_state": "rebooting", "pid": 4711,
            "addresses": ["10.0.0.5/24"], "memory": 1_073_741_824_u64, "cpu_share": 100, "vcpus": 2,
            "uid_base": 1_000_000, "created": "2026-11-20T10:00:00.000Z",
            "changed": "2026-11-20T10:00:00.000Z", "op": "op-3", "health": "healthy",
        }));
        let stopped = vm(serde_json::json!({
            "id": "b", "name": "b", "platform": "local", "state": "stopped", "failure": null,
            "display_state": "stopped", "pid": null, "addresses": [], "memory": 67_108_864_u64,
            "cpu_share": 100, "vcpus": 1, "uid_base": null,
            "created": "2026-11-20T10:00:00.000Z", "changed": "2026-11-20T10:00:00.000Z",
            "op": null,
        }));
        assert!(State::Running.is(running.state) && !State::Running.is(stopped.state));
        let id = ocivisor_schema::Text("one-8".parse().unwrap());
        let damaged = vec![DamagedVm { id, why: "sha256".into() }];
        insta::assert_snapshot!(table(&Report { vms: vec![stopped, running], damaged }), @r"
        ID     NAME  STATE                PID   VCPUS  MEMORY  UIDS             ADDRESS
        b      b     stopped              -     1      64 MiB  -                -
        one-7  web   rebooting (healthy)  4711  2      1 GiB   1000000-1065535  10.0.0.5/24
        one-8  -     damaged              -     -      -       -                -
        ");
    }
}
