//! VMs, as the daemon has them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::{ErrorKind, Result};
use ocivisor_opennebula::OneId;
use ocivisor_opennebula::monitor::{Seen, Template};
use ocivisor_rpc::{Client, ClientError, MAX_EVENTS, MAX_WAIT_MS};
use ocivisor_schema::EventDataV1;
use ocivisor_schema::reply::{DamagedVm, VmSummary};
use ocivisor_schema::stats::VmStats;

use crate::looks::Looks;
use crate::{disks, since_1970};

/// A moment in time, in milliseconds since 1970.
type Millis = u64;

/// What is asked about VMs.
#[derive(Debug)]
pub struct Vms {
    socket: PathBuf,
    /// Processor time of each at the last look, in microseconds, and when that was.
    usage: BTreeMap<OneId, (u64, Millis)>,
    /// Those at disks.
    looks: Looks,
}

impl Vms {
    /// Asks the daemon that listens there.
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, usage: BTreeMap::new(), looks: Looks::default() }
    }

    async fn daemon(&self) -> Result<Client> {
        Ok(Client::connect(&self.socket).await?)
    }

    /// What is to be said of the VMs of OpenNebula's. Those whose records are damaged are there, and more is not known of
    /// them: their guests may run.
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub async fn states(&self, period: Duration) -> Result<Vec<Seen>> {
        let client = self.daemon().await?;
        let (all, damaged) = (client.vm_list().await?, known(client.vm_damaged().await)?);
        let now = Millis::try_from(since_1970().as_millis()).unwrap_or(Millis::MAX);
        let damaged = damaged.iter().filter_map(|vm| OneId::of_vm(&vm.id.0)).map(Seen::damaged);
        Ok(all.iter().filter_map(|vm| Seen::of(vm, now, period)).chain(damaged).collect())
    }

    /// What VMs use: a line for each that uses something, its disks included.
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub async fn usage(&mut self, location: &Path) -> Result<Vec<String>> {
        let client = self.daemon().await?;
        let list = client.vm_list().await?;
        let stats = client.vm_stats(None).await?;
        let ours = |vm: VmSummary| Some((OneId::of_vm(&vm.id.0)?, vm));
        let list: Vec<(OneId, VmSummary)> = list.into_iter().filter_map(ours).collect();
        let numbers: BTreeSet<u32> = list.iter().map(|(vm, _)| vm.number()).collect();
        let disks = disks::sizes(&self.looks, location, Arc::new(numbers)).await;
        let running = stats.vms.iter().filter_map(|vm| Some((OneId::of_vm(&vm.id.0)?, vm)));
        let running: BTreeMap<OneId, &VmStats> = running.collect();
        let before = std::mem::take(&mut self.usage);
        let mut lines = Vec::with_capacity(list.len());
        for (vm, summary) in &list {
            let mut text = Template::default();
            if let Some(guest) = running.get(vm) {
                let now = (guest.cpu.usage_us, stats.at.0.0);
                if let Some(percent) = before.get(vm).and_then(|before| busy(*before, now)) {
                    text.bare("CPU", percent);
                }
                self.usage.insert(*vm, now);
                add(&mut text, summary, guest);
            }
            if let Some(disks) = disks.get(&vm.number()) {
                text.append(disks);
            }
            if !text.text().is_empty() {
                let (id, packed) = (vm.vm_id(), STANDARD.encode(text.text()));
                let mut line = Template::default();
                line.vector("VM", &[("ID", vm), ("DEPLOY_ID", &id), ("MONITOR", &packed)]);
                lines.push(line.into_text());
            }
        }
        Ok(lines)
    }

    /// Waits until the state of a VM changed, from event number `next` on. Returns the number to go on with.
    ///
    /// # Errors
    /// The daemon cannot be asked, or went away.
    pub async fn changed(&self, mut next: u64) -> Result<u64> {
        let client = self.daemon().await?;
        loop {
            let reply = client.events_since(next, MAX_EVENTS, MAX_WAIT_MS).await?;
            next = reply.next_seq;
            let changed = |data: &EventDataV1| {
                matches!(data, EventDataV1::StateChanged { .. } | EventDataV1::VmForgotten)
            };
            if reply.lost || reply.events.iter().any(|event| changed(&event.data)) {
                return Ok(next);
            }
        }
    }

    /// The number of the next event.
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub async fn next_event(&self) -> Result<u64> {
        // Beyond what there is, which is answered at once.
        Ok(self.daemon().await?.events_since(u64::MAX, 1, 0).await?.next_seq)
    }
}

/// A daemon of before the agent's package, not restarted yet, knows of no damaged records and says so: it tells of none.
fn known(
    damaged: std::result::Result<Vec<DamagedVm>, ClientError>,
) -> std::result::Result<Vec<DamagedVm>, ClientError> {
    match damaged {
        Err(ClientError::Api(no)) if no.error.kind == ErrorKind::Unsupported => Ok(Vec::new()),
        other => other,
    }
}

fn add(text: &mut Template, summary: &VmSummary, guest: &VmStats) {
    text.bare("MEMORY", guest.memory.used / 1024);
    let sum = |of: fn(&ocivisor_schema::stats::NicStats) -> u64| -> u64 {
        guest.nics.iter().map(of).fold(0, u64::saturating_add)
    };
    text.bare("NETRX", sum(|nic| nic.rx_bytes)).bare("NETTX", sum(|nic| nic.tx_bytes));
    if let Some(disk) = guest.disk {
        text.bare("DISKRDBYTES", disk.read_bytes)
            .bare("DISKWRBYTES", disk.write_bytes)
            .bare("DISKRDIOPS", disk.read_ops)
            .bare("DISKWRIOPS", disk.write_ops);
    }
    let addresses: Vec<&str> =
        summary.addresses.iter().filter_map(|address| address.split('/').next()).collect();
    if let Some(first) = addresses.first() {
        text.quoted("GUEST_IP", first).quoted("GUEST_IP_ADDRESSES", &addresses.join(","));
    }
}

/// Percent of one processor, with one digit behind the point. `None` if that cannot be said: no time passed, or the guest
/// was booted anew.
fn busy(before: (u64, Millis), now: (u64, Millis)) -> Option<String> {
    let used = now.0.checked_sub(before.0)?;
    let passed = now.1.checked_sub(before.1).filter(|ms| *ms > 0)?;
    // Microseconds per millisecond are tenths of a percent.
    let tenths = used / passed;
    Some(format!("{}.{}", tenths / 10, tenths % 10))
}

#[cfg(test)]
mod tests {
    use ocivisor_core::error::Error;

    use super::*;

    #[test]
    fn a_daemon_that_knows_no_damaged_records_has_none() {
        let no = |kind| Err(ClientError::Api(Error::new(kind, "method not found").into()));
        assert_eq!(known(no(ErrorKind::Unsupported)).unwrap(), []);
        assert!(known(no(ErrorKind::Host)).is_err(), "what it could not tell is not none");
    }

    #[test]
    fn busy_is_percent_of_one_processor() {
        assert_eq!(busy((0, 0), (1_255_000, 10_000)).as_deref(), Some("12.5"));
        assert_eq!(busy((5, 0), (20_000_005, 10_000)).as_deref(), Some("200.0"));
        assert_eq!(busy((5, 10), (5, 10)), None, "no time passed");
        assert_eq!(busy((5, 10), (4, 20)), None, "another boot");
        assert_eq!(busy((5, 10), (6, 9)), None, "the clock was put back");
    }
}
