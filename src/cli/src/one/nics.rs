//! NICs of a VM that OpenNebula plugs and unplugs.
//!
//! The daemon takes all NICs at once; oned calls for one VM one after the other, so nobody else changes them between
//! our look and our request. A VM that is not known is powered off (drivers with `COLD_NIC_ATTACH` are called all the
//! same): what it shall have is in the XML of its next deployment.

use ocivisor_opennebula::progress;
use ocivisor_opennebula::vmm::VmmCall;
use ocivisor_rpc::{Client, ClientError};
use ocivisor_schema::reply::VmInfo;
use ocivisor_schema::spec::NicV1;
use ocivisor_schema::{ChangeV1, Text};

use super::remarks::remark;
use crate::connect::{Context, fresh_request_id};
use crate::failure::{Exit, Failure};

/// The VM as it is when nothing is under way; `None` if there is none. An attachment that a caller gave up goes on
/// here, and what follows it must not be refused for that.
async fn settled(client: &Client, vm: &VmmCall) -> Result<Option<VmInfo>, Failure> {
    loop {
        let info = match client.vm_get(Text(vm.vm_id())).await {
            Ok(info) => info,
            Err(error) => {
                let failure = Failure::from(error);
                return if failure.exit == Exit::NotFound { Ok(None) } else { Err(failure) };
            }
        };
        let Some(op) = &info.record.op else { return Ok(Some(info)) };
        match client.wait_op(op.id.0, None, |_| ()).await {
            // Forgotten with its VM, or concluded long ago: the next look tells.
            Ok(_) | Err(ClientError::Api(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes a change that depends on what the VM is now; `None` changes nothing.
pub async fn change(
    call: &VmmCall,
    context: &Context,
    client: &Client,
    of: impl FnOnce(Vec<NicV1>) -> ChangeV1,
) -> Result<(), Failure> {
    let Some(info) = settled(client, call).await? else {
        remark(&progress(call.vm(), "there is no guest: its next deployment brings it"));
        return Ok(());
    };
    let hostname = info.record.spec.hostname.as_deref();
    if let Some(note) = hostname.and_then(|now| call.hostname_note(now)) {
        remark(&progress(call.vm(), &note));
    }
    let change = of(info.record.spec.nics);
    let send = async |c: &Client, id| c.vm_change(id, Text(call.vm_id()), change.clone()).await;
    let Err(failure) = context.run_operation(client, &send).await else { return Ok(()) };
    // oned forgets a NIC whose attachment fails this late, and it would stay plugged. The guest is told at least.
    let told = ChangeV1 { nics: None, ..change.clone() };
    if !matches!(call, VmmCall::Reconfigure { .. }) || change.nics.is_none() {
        return Err(failure);
    }
    let what = format!("the network interfaces stay as they are: {}", failure.message);
    remark(&progress(call.vm(), &what));
    let again = Context { request_id: fresh_request_id(), ..context.clone() };
    let send = async |c: &Client, id| c.vm_change(id, Text(call.vm_id()), told.clone()).await;
    again.run_operation(client, &send).await.map(drop)
}

/// The NICs that a VM shall have that has those of `now`. One that is on its way is listed whether it comes or goes.
pub fn wished(now: &[NicV1], all: Vec<NicV1>, moving: Option<u32>) -> Vec<NicV1> {
    let has = |nic: &NicV1| now.iter().any(|n| n.host_name == nic.host_name && n.mac == nic.mac);
    all.into_iter().filter(|nic| Some(nic.index) != moving || has(nic)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nic_on_its_way_is_wished_for_if_it_is_there() {
        let nic = |index: u32| -> NicV1 {
            let [name, mac] = [format!("one-7-{index}"), format!("02:00:00:00:00:0{index}")];
            serde_json::from_value(
                serde_json::json!({"index": index, "host_name": name, "mac": mac}),
            )
            .unwrap()
        };
        let all = || vec![nic(0), nic(1)];
        assert_eq!(wished(&[nic(0)], all(), Some(1)), [nic(0)]);
        assert_eq!(wished(&[nic(0), nic(1)], all(), Some(1)), all());
        // An earlier one of that name is not it.
        let stale = NicV1 { mac: "02:00:00:00:00:0f".into(), ..nic(1) };
        assert_eq!(wished(&[nic(0), stale], all(), Some(1)), [nic(0)]);
        assert_eq!(wished(&[], all(), None), all());
    }
}
