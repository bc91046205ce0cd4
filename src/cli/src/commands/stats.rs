//! Shows what guests use.
//!
//! The daemon tells counters; rates are differences of two answers. So the table takes an interval to
//! come, and JSON, which is for programs that count themselves, comes at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use clap::Args;
use ocivisor_core::ids::VmId;
use ocivisor_rpc::Client;
use ocivisor_schema::Text;
use ocivisor_schema::stats::{NicStats, StatsReply, VmStats};

use crate::connect::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Format, Reader, SCHEMA_VERSION, Table, write_bytes};
use crate::units;

/// Options of `stats`.
#[derive(Debug, Args)]
pub struct Options {
    /// Ids of virtual machines that run; else all that do
    #[arg(value_name = "VM")]
    vms: Vec<VmId>,
    /// Go on
    #[arg(short, long)]
    watch: bool,
    /// Time that rates are measured over
    #[arg(long, value_name = "TIME", value_parser = units::duration, default_value = "1s")]
    interval: Duration,
}

/// Runs it.
///
/// # Errors
/// A VM is not known or does not run; else see [`Context::ask`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let mut before = ask(options, context, &client).await?;
    if context.output.format == Format::Json {
        loop {
            if tell(&json(&before)?)? == Reader::Gone || !options.watch {
                return Ok(());
            }
            tokio::time::sleep(options.interval).await;
            before = ask(options, context, &client).await?;
        }
    }
    if context.output.quiet {
        let ids: String = before.vms.iter().map(|vm| format!("{}\n", vm.id)).collect();
        return tell(&ids).map(|_| ());
    }
    loop {
        tokio::time::sleep(options.interval).await;
        let now = ask(options, context, &client).await?;
        let mut text = table(&before, &now);
        if options.watch {
            // Home, and what was below is cleared: ECMA-48, CUP and ED.
            text = format!("\x1b[H\x1b[J{text}");
        }
        if tell(&text)? == Reader::Gone || !options.watch {
            return Ok(());
        }
        before = now;
    }
}

fn tell(text: &str) -> Result<Reader, Failure> {
    write_bytes(text.as_bytes())
}

fn json(reply: &StatsReply) -> Result<String, Failure> {
    let mut value = serde_json::to_value(reply)
        .map_err(|e| Failure::new(Exit::Failure, format!("make JSON: {e}")))?;
    value["schema_version"] = SCHEMA_VERSION.into();
    Ok(format!("{value}\n"))
}

/// One guest alone, or all of which some may be wanted: in one pass either way.
async fn ask(options: &Options, context: &Context, client: &Client) -> Result<StatsReply, Failure> {
    if let [vm] = options.vms.as_slice() {
        return context.ask(client.vm_stats(Some(Text(vm.clone())))).await;
    }
    let mut reply = context.ask(client.vm_stats(None)).await?;
    if !options.vms.is_empty() {
        let there: BTreeSet<VmId> = reply.vms.iter().map(|vm| vm.id.0.clone()).collect();
        if let Some(missing) = options.vms.iter().find(|vm| !there.contains(vm)) {
            // Which says why: not known, or it does not run.
            context.ask(client.vm_stats(Some(Text(missing.clone())))).await?;
        }
        reply.vms.retain(|vm| options.vms.contains(&vm.id.0));
    }
    Ok(reply)
}

fn table(before: &StatsReply, now: &StatsReply) -> String {
    let micros = now.at.0.0.saturating_sub(before.at.0.0).saturating_mul(1000).max(1);
    let before: BTreeMap<&VmId, &VmStats> = before.vms.iter().map(|vm| (&vm.id.0, vm)).collect();
    let mut table = Table::new(&[
        "ID", "CPU %", "MEMORY", "LIMIT", "MEM %", "NET RX", "NET TX", "READ", "WRITTEN", "PIDS",
        "OOM",
    ]);
    for vm in &now.vms {
        let old = before.get(&vm.id.0).map(|old| old.cpu.usage_us);
        // A guest that was booted anew counts anew; one that is new has no rate yet.
        let used = old.and_then(|old| vm.cpu.usage_us.checked_sub(old));
        let net = |count: fn(&NicStats) -> u64| size(vm.nics.iter().map(count).sum());
        let disk = |count: fn(&ocivisor_schema::stats::DiskStats) -> u64| {
            vm.disk.as_ref().map(|disk| size(count(disk))).unwrap_or_default()
        };
        table.row([
            vm.id.to_string(),
            used.map(|used| percent(used, micros)).unwrap_or_default(),
            size(vm.memory.used),
            size(vm.memory.limit),
            percent(vm.memory.used, vm.memory.limit.max(1)),
            net(|nic| nic.rx_bytes),
            net(|nic| nic.tx_bytes),
            disk(|disk| disk.read_bytes),
            disk(|disk| disk.write_bytes),
            format!("{}/{}", vm.pids.current, vm.pids.limit),
            vm.memory.oom_kills.to_string(),
        ]);
    }
    table.render()
}

/// With one decimal; of processors, 100 is one of them.
fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// In the largest unit that leaves something before the point, with one decimal.
fn size(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> StatsReply {
        let golden = include_str!("../../../schema/tests/golden/stats.json");
        serde_json::from_str(golden).unwrap()
    }

    #[test]
    fn sizes_have_one_decimal() {
        for (bytes, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_answers() {
        let (before, mut now) = (reply(), reply());
        now.at.0.0 += 2000;
        now.vms[0].cpu.usage_us += 3_000_000;
        // Booted anew in between.
        now.vms[1].cpu.usage_us = 1;
        let mut new = now.vms[0].clone();
        new.id = Text("new".parse().unwrap());
        now.vms.push(new);
        insta::assert_snapshot!(table(&before, &now), @r"
        ID      CPU %  MEMORY     LIMIT      MEM %  NET RX   NET TX  READ     WRITTEN  PIDS     OOM
        one-42  150.0  100.0 MiB  256.0 MiB  39.0   1.4 KiB  900 B   4.0 KiB  1.0 MiB  12/4096  1
        web     -      100.0 MiB  256.0 MiB  39.0   0 B      0 B     -        -        12/4096  1
        new     -      100.0 MiB  256.0 MiB  39.0   1.4 KiB  900 B   4.0 KiB  1.0 MiB  12/4096  1
        ");
    }

    #[test]
    fn json_is_one_line_with_its_version() {
        let text = json(&reply()).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert!(text.contains("\"schema_version\":1"), "{text}");
    }
}
