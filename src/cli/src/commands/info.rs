//! Shows everything that is kept of a VM.

use clap::Args;
use ocivisor_core::ids::IdRange;
use ocivisor_core::spec::{DiskFormat, Filesystem};
use ocivisor_core::units::{Bytes, CentiCores};
use ocivisor_schema::OutcomeV1;
use ocivisor_schema::record::{GuestExitV1, GuestKindV1, RecordV1, VmStateV1};
use ocivisor_schema::reply::{HealthV1, VmInfo};
use ocivisor_schema::spec::{DataDiskV1, IoLimitsV1, NicV1, VmSpecV1};

use super::Vm;
use crate::connect::Context;
use crate::failure::Failure;
use crate::nic::{bridge_text, rate_text};
use crate::output::fields;
use crate::upkeep;

/// Options of `info`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    vm: Vm,
}

/// Runs it.
///
/// # Errors
/// See [`Context::ask`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let info = context.ask(client.vm_get(options.vm.text())).await?;
    context.output.emit(&info, || text(&info))
}

/// Values first, then network interfaces, then what happened.
fn text(info: &VmInfo) -> String {
    let VmInfo { display_state, health, record } = info;
    let spec = &record.spec;
    let mut pairs = vec![
        ("id", spec.id.clone()),
        ("name", spec.name.clone().unwrap_or_else(|| spec.id.clone())),
        ("state", display_state.clone()),
    ];
    if let VmStateV1::Failed { reason } = &record.state {
        pairs.push(("failure", reason.clone()));
    }
    if let Some(health) = health {
        pairs.push(("health", health_text(health)));
    }
    pairs.extend(guest(record));
    pairs.extend(wishes(spec));
    pairs.extend(upkeep::describe(&spec.upkeep, record.tally.restarts));
    if let Some(exit) = record.last_exit {
        pairs.push(("last exit", exit_text(exit)));
    }
    pairs.push(("defined", record.created.to_string()));
    pairs.push(("state since", record.changed.to_string()));
    let mut text = fields(&pairs);
    for disk in &spec.disks {
        text.push_str(&format!("\ndata disk {}\n", disk.number));
        text.push_str(&fields(&disk_fields(disk)));
    }
    for nic in &spec.nics {
        text.push_str("\nnetwork interface eth");
        text.push_str(&nic.index.to_string());
        text.push('\n');
        text.push_str(&fields(&nic_fields(nic)));
    }
    text.push_str(&history(record));
    text
}

fn guest(record: &RecordV1) -> Vec<(&'static str, String)> {
    let mut pairs = Vec::new();
    if let Some(guest) = &record.guest {
        let kind = match guest.kind {
            GuestKindV1::System => "system",
            GuestKindV1::Application => "application",
        };
        pairs.push(("kind", kind.to_owned()));
        pairs.push(("pid", guest.init.pid.to_string()));
        pairs.push(("shim pid", guest.shim.pid.to_string()));
    }
    if let Some(ids) = &record.ids {
        pairs.push(("uids and gids", IdRange { base: ids.base }.to_string()));
    }
    pairs
}

fn wishes(spec: &VmSpecV1) -> Vec<(&'static str, String)> {
    let limits = &spec.resources;
    let mut pairs = vec![
        ("vcpus", limits.vcpus.to_string()),
        ("cpu share", format!("{} cores", CentiCores(limits.cpu_share))),
    ];
    if let Some(quota) = limits.cpu_quota {
        pairs.push(("cpu quota", format!("{} cores", CentiCores(quota))));
    }
    pairs.extend([
        ("memory", Bytes(limits.memory).to_string()),
        ("swap", Bytes(limits.swap).to_string()),
        ("pids limit", limits.pids.to_string()),
    ]);
    let pages = limits.hugepages.iter();
    let pages = pages.map(|h| format!("{} of {}", Bytes(h.limit), Bytes(h.page)));
    let optional = [
        ("processors", limits.cpus.clone()),
        ("memory nodes", limits.nodes.clone()),
        ("huge pages", Some(pages.collect::<Vec<_>>().join(", ")).filter(|all| !all.is_empty())),
        ("io weight", limits.io_weight.map(|weight| weight.to_string())),
    ];
    pairs.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?))));
    pairs.push(("root disk", spec.root.path.clone()));
    pairs.extend(rates(&spec.root.io));
    if let Some(name) = &spec.hostname {
        pairs.push(("host name", name.clone()));
    }
    if let Some(vnc) = &spec.graphics {
        let host =
            if vnc.listen.contains(':') { format!("[{}]", vnc.listen) } else { vnc.listen.clone() };
        let password =
            if vnc.password.is_some() { "with a password" } else { "without a password" };
        pairs.push(("vnc", format!("{host}:{}, {password}", vnc.port)));
    }
    pairs
}

/// Bounds on the traffic of a disk.
fn rates(io: &IoLimitsV1) -> Option<(&'static str, String)> {
    let rates = [
        (io.read_bytes.map(|n| format!("{} read", Bytes(n)))),
        (io.write_bytes.map(|n| format!("{} written", Bytes(n)))),
        (io.read_ops.map(|n| format!("{n} reads"))),
        (io.write_ops.map(|n| format!("{n} writes"))),
    ];
    let rates: Vec<String> = rates.into_iter().flatten().collect();
    (!rates.is_empty()).then(|| ("per second", rates.join(", ")))
}

fn disk_fields(disk: &DataDiskV1) -> Vec<(&'static str, String)> {
    let (format, access) =
        (DiskFormat::from(disk.format), if disk.read_only { ", only read" } else { "" });
    let mut pairs =
        vec![("path", disk.path.clone()), ("format", format!("{}{access}", format.name()))];
    let device = disk.device.as_ref().map(|name| format!("/dev/{name}"));
    let seen = match (&disk.mount, device) {
        (Some(at), Some(device)) => format!("mounted at {at}, else {device}"),
        (Some(at), None) => format!("mounted at {at}"),
        (None, device) => device.unwrap_or_default(),
    };
    pairs.push(("in the guest", seen));
    if let Some(make) = disk.make {
        pairs.push(("if it is empty", format!("formatted as {}", Filesystem::from(make).name())));
    }
    pairs.extend(rates(&disk.io));
    pairs
}

fn nic_fields(nic: &NicV1) -> Vec<(&'static str, String)> {
    let mut pairs = vec![
        ("host end", nic.host_name.clone()),
        ("bridge", bridge_text(&nic.bridge)),
        ("mac", nic.mac.clone()),
    ];
    if let Some(mtu) = nic.mtu {
        pairs.push(("mtu", mtu.to_string()));
    }
    for (name, rate) in [("inbound", &nic.inbound), ("outbound", &nic.outbound)] {
        pairs.extend(rate.as_ref().map(|rate| (name, rate_text(rate))));
    }
    if !nic.addresses.is_empty() {
        pairs.push(("addresses", nic.addresses.join(" ")));
    }
    for route in &nic.routes {
        let to = route.destination.as_deref().unwrap_or("default");
        pairs.push(("route", format!("{to} via {}", route.gateway)));
    }
    pairs
}

fn health_text(health: &HealthV1) -> String {
    let mut text = health.status.name().to_owned();
    if health.failures > 0 {
        text.push_str(&format!(", failures in a row: {}", health.failures));
        if let Some(output) = &health.output {
            text.push_str(&format!(" ({output})"));
        }
    }
    text
}

/// Losses and the last operations, newest last.
fn history(record: &RecordV1) -> String {
    let mut text = String::new();
    if !record.losses.is_empty() {
        text.push_str("\nwhat was lost\n");
        for loss in &record.losses {
            text.push_str(&format!("  {}\n", ocivisor_core::error::one_line(loss)));
        }
    }
    if !record.finished.is_empty() {
        text.push_str("\nlast operations\n");
        for op in &record.finished {
            let how = match &op.result {
                OutcomeV1::Ok => "done".to_owned(),
                OutcomeV1::Error(error) => error.message.clone(),
            };
            let line = format!("  {}  {}  {}  {how}", op.at, op.id, op.kind);
            text.push_str(&ocivisor_core::error::one_line(&line));
            text.push('\n');
        }
    }
    text
}

pub(super) fn exit_text(exit: GuestExitV1) -> String {
    match exit {
        GuestExitV1::Code { code } => format!("exit code {code}"),
        GuestExitV1::Signal { signal } => format!("signal {signal}"),
        GuestExitV1::Unknown => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_shown_and_escaped() {
        let info: VmInfo = serde_json::from_value(serde_json::json!({
            "display_state": "running", "version": 1, "generation": 4,
            "spec": {
                "id": "one-7", "name": "web\u{1b}[2J", "hostname": "web",
                "resources": {"memory": 536_870_912, "vcpus": 2, "cpu_quota": 150},
                "root": {"path": "/srv/7/disk.0"},
                "disks": [
                    {"number": 1, "path": "/srv/7/disk.1", "mount": "/data", "device": "vdb", "make": "ext4"},
                    {"number": 3, "path": "/srv/7/disk.3", "format": "qcow2", "device": "hda", "read_only": true,
                     "io": {"read_ops": 50}},
                ],
                "upkeep": {"restart": {"when": "on_failure", "most": 5}, "autostart": 3},
                "graphics": {"listen": "::", "port": 5907, "password": "(hidden)"},
                "nics": [{
                    "index": 0, "host_name": "one-7-0", "mac": "02:00:c0:a8:00:01", "mtu": 1450,
                    "bridge": {"kind": "linux", "name": "br0"},
                    "addresses": ["10.0.0.5/24"], "routes": [{"gateway": "10.0.0.1"}],
                }],
            },
            "state": {"name": "running"},
            "ids": {"base": 1_000_000},
            "guest": {
                "init": {"pid": 11, "start_ticks": 1}, "shim": {"pid": 10, "start_ticks": 1},
                "kind": "system", "stop_signal": 37, "host_boot": "x",
            },
            "health": {"status": "unhealthy", "failures": 3, "output": "no \u{1b}[2Janswer\n"},
            "tally": {
                "wanted": true, "restarts": 2, "failed": false,
                "since": "2026-11-20T10:00:00.000Z", "host_boot": "x",
            },
            "last_exit": {"kind": "signal", "signal": 9},
            "losses": ["console lost with its shim"],
            "finished": [{
                "id": "op-1", "request_id": "r", "kind": "start", "at": "2026-11-20T10:00:01.000Z",
                "result": {"error": {"kind": "not_found", "message": "no bridge br0"}},
            }],
            "created": "2026-11-20T10:00:00.000Z", "changed": "2026-11-20T10:00:00.000Z",
        }))
        .unwrap();
        insta::assert_snapshot!(text(&info));
    }
}
