//! VMs, as the daemon has them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::Result;
use ocivisor_opennebula::OneId;
use ocivisor_opennebula::monitor::{Seen, Template};
use ocivisor_rpc::{Client, ClientError, MAX_EVENTS, MAX_WAIT_MS};
use ocivisor_schema::EventDataV1;
use ocivisor_schema::reply::{StatesReply, VmNow};
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

    fn daemon(&self) -> Client {
        Client::new(&self.socket)
    }

    /// What is to be said of the VMs of OpenNebula's. Those whose records are damaged are there, and more is not known of
    /// them: their guests may run.
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub async fn states(&self, period: Duration) -> Result<Vec<Seen>> {
        let StatesReply { vms, damaged } = all(&self.daemon()).await?;
        let now = Millis::try_from(since_1970().as_millis()).unwrap_or(Millis::MAX);
        let damaged = damaged.iter().filter_map(|vm| OneId::of_vm(&vm.0)).map(Seen::damaged);
        Ok(vms.iter().filter_map(|vm| Seen::of(vm, now, period)).chain(damaged).collect())
    }

    /// What VMs use: a line for each that uses something, its disks included.
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub async fn usage(&mut self, location: &Path) -> Result<Vec<String>> {
        let client = self.daemon();
        let list = all(&client).await?.vms;
        let stats = client.vm_stats(None).await?;
        let ours = |vm: VmNow| Some((OneId::of_vm(&vm.id.0)?, vm));
        let list: Vec<(OneId, VmNow)> = list.into_iter().filter_map(ours).collect();
        let numbers: BTreeSet<u32> = list.iter().map(|(vm, _)| vm.number()).collect();
        let disks = disks::sizes(&self.looks, location, Arc::new(numbers)).await;
        let running = stats.vms.iter().filter_map(|vm| Some((OneId::of_vm(&vm.id.0)?, vm)));
        let running: BTreeMap<OneId, &VmStats> = running.collect();
        let before = std::mem::take(&mut self.usage);
        let mut lines = Vec::with_capacity(list.len());
        for (vm, seen) in &list {
            let mut text = Template::default();
            if let Some(guest) = running.get(vm) {
                let now = (guest.cpu.usage_us, stats.at.0.0);
                if let Some(percent) = before.get(vm).and_then(|before| busy(*before, now)) {
                    text.bare("CPU", percent);
                }
                self.usage.insert(*vm, now);
                add(&mut text, seen, guest);
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
        let client = self.daemon();
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
        Ok(self.daemon().events_since(u64::MAX, 1, 0).await?.next_seq)
    }
}

/// All VMs. A daemon of before the agent's package, not restarted yet, is asked as it can be.
pub(crate) async fn all(client: &Client) -> std::result::Result<StatesReply, ClientError> {
    if let Some(now) = ClientError::if_known(client.vm_states().await)? {
        return Ok(now);
    }
    let vms = client.vm_list().await?.into_iter().map(VmNow::from).collect();
    let damaged = ClientError::if_known(client.vm_damaged().await)?.unwrap_or_default();
    Ok(StatesReply { vms, damaged: damaged.into_iter().map(|vm| vm.id).collect() })
}

fn add(text: &mut Template, seen: &VmNow, guest: &VmStats) {
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
        seen.addresses.iter().filter_map(|address| address.split('/').next()).collect();
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
    use ocivisor_schema::reply::StateNameV1;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// A daemon that answers with one of these results, or does not know the method.
    async fn daemon(listener: UnixListener, results: Value) {
        loop {
            let mut stream = listener.accept().await.unwrap().0;
            let (mut asked, mut room) = (Vec::new(), [0; 4096]);
            let call: Value = loop {
                let n = stream.read(&mut room).await.unwrap();
                asked.extend_from_slice(&room[..n]);
                let body = asked.windows(4).position(|four| four == b"\r\n\r\n");
                let body = body.map(|at| serde_json::from_slice(&asked[at + 4..]));
                if let Some(Ok(call)) = body {
                    break call;
                }
            };
            let answer = match results.get(call["method"].as_str().unwrap()) {
                Some(result) => json!({"jsonrpc": "2.0", "id": 1, "result": result}),
                None => {
                    let error = json!({"code": -32601, "message": "Method not found"});
                    json!({"jsonrpc": "2.0", "id": 1, "error": error})
                }
            };
            let answer = answer.to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", answer.len());
            stream.write_all((head + &answer).as_bytes()).await.unwrap();
        }
    }

    async fn asked(results: Value) -> std::result::Result<StatesReply, ClientError> {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let client = Client::new(socket);
        tokio::select! {
            found = all(&client) => found,
            () = daemon(listener, results) => unreachable!("it answers for ever"),
        }
    }

    #[tokio::test]
    async fn older_daemons_are_asked_for_their_lists() {
        let at = "2026-11-21T10:00:00.000Z";
        let now = json!({"id": "one-7", "state": "stopped", "changed": at, "busy": true});
        let whole = json!({
            "id": "one-7", "name": "web", "platform": "opennebula", "state": "stopped", "failure": null,
            "display_state": "starting", "pid": null, "addresses": [], "memory": 1, "cpu_share": 1,
            "vcpus": 1, "uid_base": null, "created": at, "changed": at, "op": "op-5",
        });
        let today =
            asked(json!({"vm.states": {"vms": [now], "damaged": ["one-8"]}})).await.unwrap();
        assert_eq!(today.vms[0].state, StateNameV1::Stopped);
        assert!(today.vms[0].busy);
        assert_eq!(today.damaged[0].to_string(), "one-8");
        let damaged = json!([{"id": "one-8", "why": "sha256"}]);
        let before = asked(json!({"vm.list": [whole], "vm.damaged": damaged})).await.unwrap();
        assert_eq!(before, today);
        let oldest = asked(json!({"vm.list": [whole]})).await.unwrap();
        assert_eq!(oldest, StatesReply { damaged: Vec::new(), ..today });
        asked(json!({})).await.unwrap_err();
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
