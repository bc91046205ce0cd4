//! Changes what a VM may use; a guest that runs obeys at once, or nothing is changed.
//!
//! The API replaces limits as a whole, so that they are never half those of one caller and half those
//! of another. So this reads what is in force, changes what was asked for, and sends all of it.

use clap::Args;
use ocivisor_core::units::{Bytes, CentiCores, NumberSet};
use ocivisor_rpc::Client;
use ocivisor_schema::spec::ResourcesV1;
use ocivisor_schema::{ChangeV1, Text};

use super::Vm;
use crate::connect::{Context, progress};
use crate::failure::Failure;
use crate::units::{self, OrNone};

/// Options of `resize`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    vm: Vm,
    #[command(flatten)]
    limits: Limits,
}

/// What is to be changed.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Limits {
    /// Its memory; less than it uses is refused
    #[arg(short, long, value_name = "SIZE", value_parser = units::size)]
    memory: Option<Bytes>,
    /// Swap beyond its memory
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    swap: Option<Bytes>,
    /// Processors
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Share of the processors under contention, in cores
    #[arg(long, value_name = "CORES", value_parser = units::cores)]
    cpu_share: Option<CentiCores>,
    /// Hard limit of processor time below its processors, in cores, or none
    #[arg(long, value_name = "CORES", value_parser = units::cores_or_none)]
    cpu_quota: Option<OrNone<CentiCores>>,
    /// Most processes and threads
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
    /// Share of the disks' time under contention, 1 to 10000, or none for what everybody has (100)
    #[arg(long, value_name = "N", value_parser = units::number_or_none)]
    io_weight: Option<OrNone<u16>>,
    /// Processors of the host that it runs on, as in 0-3,8, or none for all
    #[arg(long, value_name = "LIST", value_parser = units::numbers_or_none)]
    cpus: Option<OrNone<NumberSet>>,
    /// NUMA nodes of the host that its memory comes from, or none for all
    #[arg(long, value_name = "LIST", value_parser = units::numbers_or_none)]
    nodes: Option<OrNone<NumberSet>>,
}

impl Limits {
    /// These limits, and for the rest those in force.
    fn over(&self, now: ResourcesV1) -> ResourcesV1 {
        let list = |new: &Option<OrNone<NumberSet>>, now: Option<String>| match new {
            Some(OrNone(new)) => new.as_ref().map(ToString::to_string),
            None => now,
        };
        ResourcesV1 {
            cpu_share: self.cpu_share.map_or(now.cpu_share, |share| share.0),
            vcpus: self.vcpus.unwrap_or(now.vcpus),
            cpu_quota: match &self.cpu_quota {
                Some(OrNone(quota)) => quota.map(|quota| quota.0),
                None => now.cpu_quota,
            },
            memory: self.memory.map_or(now.memory, |memory| memory.0),
            swap: self.swap.map_or(now.swap, |swap| swap.0),
            pids: self.pids.unwrap_or(now.pids),
            io_weight: self.io_weight.as_ref().map_or(now.io_weight, |weight| weight.0),
            cpus: list(&self.cpus, now.cpus),
            nodes: list(&self.nodes, now.nodes),
            hugepages: now.hugepages,
        }
    }
}

/// Runs it.
///
/// # Errors
/// The guest uses more than it would be left with; else see [`Context::operate`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let vm = || options.vm.text();
    let client = context.daemon().await?;
    let info = context.ask(client.vm_get(vm())).await?;
    let resources = options.limits.over(info.record.spec.resources);
    let send = async |client: &Client, id: Text<_>| {
        let change = ChangeV1 { resources: Some(resources.clone()), ..ChangeV1::default() };
        client.vm_change(id, vm(), change).await
    };
    context.operate("resized", send).await?;
    if options.limits.pids.is_some() {
        remark(options, context, &client).await;
    }
    Ok(())
}

/// A lower limit of processes ends none, which may surprise. The change is made: what cannot be found out
/// now is not worth a failure.
async fn remark(options: &Options, context: &Context, client: &Client) {
    let Ok(reply) = client.vm_stats(Some(options.vm.text())).await else { return };
    for vm in reply.vms.iter().filter(|vm| vm.pids.current > u64::from(vm.pids.limit)) {
        let (id, current, limit) = (&vm.id, vm.pids.current, vm.pids.limit);
        let text = format!(
            "{id}: it has {current} processes and threads; no new one begins before fewer than {limit} are left"
        );
        progress(context.output, &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn now() -> ResourcesV1 {
        ResourcesV1 {
            cpu_share: 100,
            vcpus: 2,
            cpu_quota: Some(150),
            memory: 1 << 30,
            swap: 0,
            pids: 4096,
            io_weight: Some(50),
            cpus: Some("0-3".into()),
            nodes: None,
            hugepages: Vec::new(),
        }
    }

    fn over(args: &[&str]) -> ResourcesV1 {
        let line = Line::try_parse_from([&["resize", "web"], args].concat()).unwrap();
        line.options.limits.over(now())
    }

    #[test]
    fn what_is_not_named_stays() {
        assert_eq!(over(&["--memory", "2G"]), ResourcesV1 { memory: 2 << 30, ..now() });
        assert_eq!(
            over(&["--vcpus", "4", "--cpu-share", "0.5"]),
            ResourcesV1 { vcpus: 4, cpu_share: 50, ..now() }
        );
        assert_eq!(over(&["--nodes", "1,0"]), ResourcesV1 { nodes: Some("0-1".into()), ..now() });
    }

    #[test]
    fn none_takes_a_limit_away() {
        let all = ["--cpu-quota", "none", "--io-weight", "none", "--cpus", "none"];
        let want = ResourcesV1 { cpu_quota: None, io_weight: None, cpus: None, ..now() };
        assert_eq!(over(&all), want);
    }

    #[test]
    fn nothing_to_change_is_a_mistake() {
        Line::try_parse_from(["resize", "web"]).unwrap_err();
        Line::try_parse_from(["resize", "web", "--cpus", "x"]).unwrap_err();
    }
}
