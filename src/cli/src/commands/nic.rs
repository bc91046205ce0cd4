//! Network interfaces of a VM, while it runs or not.
//!
//! The API replaces them as a whole. So this reads those that are there, changes one, and sends all of them; those
//! that stay as they are are not touched.

use clap::{Args, Subcommand};
use ocivisor_rpc::Client;
use ocivisor_schema::spec::{NicV1, RateV1};
use ocivisor_schema::{ChangeV1, Text};
use serde::Serialize;

use super::Vm;
use crate::connect::Context;
use crate::failure::{Exit, Failure};
use crate::nic::{NicOption, bridge_text, lowest_free, rate_or_none, with};
use crate::output::Table;
use crate::units::OrNone;

/// Options of `nic`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the network interfaces of a virtual machine
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        vm: Vm,
    },
    /// Give a virtual machine one more network interface
    Attach {
        #[command(flatten)]
        vm: Vm,
        /// As of define --nic: bridge=br0,ip=10.0.0.5/24,gw=10.0.0.1,…
        #[arg(value_name = "NIC")]
        nic: NicOption,
    },
    /// Bound the traffic of a network interface, or take the bounds away
    Limit {
        #[command(flatten)]
        vm: Vm,
        /// Its name inside (eth1), the name of the host's end, or its MAC address
        #[arg(value_name = "NIC")]
        nic: String,
        /// What goes to the guest: bytes per second, as in 10M:20M:1M, or none
        #[arg(long, value_name = "AVERAGE[:PEAK[:BURST]]", value_parser = rate_or_none)]
        inbound: Option<OrNone<RateV1>>,
        /// What comes from the guest
        #[arg(long, value_name = "AVERAGE[:PEAK[:BURST]]", value_parser = rate_or_none)]
        outbound: Option<OrNone<RateV1>>,
    },
    /// Take a network interface away from a virtual machine
    Detach {
        #[command(flatten)]
        vm: Vm,
        /// Its name inside (eth1), the name of the host's end, or its MAC address
        #[arg(value_name = "NIC")]
        nic: String,
    },
}

#[derive(Debug, Serialize)]
struct Report {
    nics: Vec<NicV1>,
}

/// Runs it.
///
/// # Errors
/// There is no such interface; else see [`Context::operate`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let (Command::List { vm }
    | Command::Attach { vm, .. }
    | Command::Limit { vm, .. }
    | Command::Detach { vm, .. }) = &options.command;
    let client = context.daemon().await?;
    let info = context.ask(client.vm_get(vm.text())).await?;
    let now = info.record.spec.nics;
    let (nics, done) = match &options.command {
        Command::List { .. } => {
            let report = Report { nics: now };
            let ids = || report.nics.iter().map(|nic| format!("eth{}", nic.index)).collect();
            return context.output.list(&report, ids, || table(&report.nics));
        }
        Command::Attach { nic, .. } => {
            let nic = nic.to_spec(&vm.vm, lowest_free(&now));
            taken(&now, &nic)?;
            let done = format!("eth{} is attached, {} outside", nic.index, nic.host_name);
            (with(now, nic), done)
        }
        Command::Limit { nic, inbound, outbound, .. } => {
            let mut nic = called(&now, nic, vm)?.clone();
            nic.inbound = inbound.as_ref().map_or(nic.inbound, |rate| rate.0);
            nic.outbound = outbound.as_ref().map_or(nic.outbound, |rate| rate.0);
            let done = format!("eth{} is bounded as wished", nic.index);
            (with(now, nic), done)
        }
        Command::Detach { nic, .. } => {
            let gone = called(&now, nic, vm)?.index;
            let rest = now.into_iter().filter(|nic| nic.index != gone).collect();
            (rest, format!("eth{gone} is detached"))
        }
    };
    let change = ChangeV1 { nics: Some(nics), ..ChangeV1::default() };
    let send =
        async |client: &Client, id: Text<_>| client.vm_change(id, vm.text(), change.clone()).await;
    context.operate(&done, send).await
}

/// The one interface of that name.
fn called<'a>(now: &'a [NicV1], name: &str, vm: &Vm) -> Result<&'a NicV1, Failure> {
    let found: Vec<&NicV1> = now.iter().filter(|nic| is_called(nic, name)).collect();
    let [nic] = found[..] else {
        let failure = Failure::new(Exit::NotFound, format!("vm {} has no nic {name}", vm.vm));
        return Err(failure.hint(format!("ocivisor nic list {} shows those it has", vm.vm)));
    };
    Ok(nic)
}

fn is_called(nic: &NicV1, name: &str) -> bool {
    nic.host_name == name
        || name.strip_prefix("eth").is_some_and(|n| n == nic.index.to_string())
        || nic.mac.eq_ignore_ascii_case(name)
}

/// Nothing that is there makes room for what an admin attaches.
fn taken(now: &[NicV1], new: &NicV1) -> Result<(), Failure> {
    let found = now.iter().find(|nic| nic.host_name == new.host_name || nic.mac == new.mac);
    found.map_or(Ok(()), |nic| {
        let what = format!("eth{} has this name outside or this MAC address", nic.index);
        Err(Failure::new(Exit::Conflict, what).hint("leave host= and mac= out, or detach that one"))
    })
}

fn table(nics: &[NicV1]) -> String {
    let mut table = Table::new(&["NIC", "HOST END", "BRIDGE", "MAC", "MTU", "ADDRESSES"]);
    for nic in nics {
        table.row([
            format!("eth{}", nic.index),
            nic.host_name.clone(),
            bridge_text(&nic.bridge),
            nic.mac.clone(),
            nic.mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
            nic.addresses.join(" "),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nics() -> Vec<NicV1> {
        serde_json::from_value(serde_json::json!([
            {"index": 0, "host_name": "web-0", "mac": "02:00:00:00:00:0a", "mtu": 1450,
             "bridge": {"kind": "linux", "name": "br0"}, "addresses": ["10.0.0.5/24", "fd00::5/64"]},
            {"index": 2, "host_name": "eth7", "mac": "02:00:00:00:00:0c"},
        ]))
        .unwrap()
    }

    #[test]
    fn interfaces_have_three_names() {
        let of = |name: &str| -> Vec<u32> {
            nics().iter().filter(|nic| is_called(nic, name)).map(|nic| nic.index).collect()
        };
        for (name, want) in [
            ("eth0", vec![0]),
            ("web-0", vec![0]),
            ("02:00:00:00:00:0A", vec![0]),
            ("eth7", vec![2]),
            ("eth02", vec![]),
            ("eth1", vec![]),
            ("0", vec![]),
        ] {
            assert_eq!(of(name), want, "{name}");
        }
        insta::assert_snapshot!(table(&nics()), @r"
        NIC   HOST END  BRIDGE  MAC                MTU   ADDRESSES
        eth0  web-0     br0     02:00:00:00:00:0a  1450  10.0.0.5/24 fd00::5/64
        eth2  eth7      none    02:00:00:00:00:0c  -     -
        ");
    }

    #[test]
    fn what_is_taken_is_not_replaced() {
        let [first, mut new] = [nics().remove(0), nics().remove(1)];
        (new.host_name, new.mac) = ("web-1".into(), "02:00:00:00:00:0d".into());
        assert!(taken(&nics(), &new).is_ok());
        assert!(taken(&nics(), &NicV1 { mac: first.mac.clone(), ..new.clone() }).is_err());
        assert!(taken(&nics(), &NicV1 { host_name: first.host_name, ..new }).is_err());
    }
}
