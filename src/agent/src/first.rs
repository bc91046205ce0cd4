//! What a start finds out and prints.

use std::time::{Duration, Instant};

use ocivisor_core::error::Result;
use ocivisor_opennebula::monitor::{Configuration, Firsts, MessageKind, States, Told};

use crate::host::{self, Places};
use crate::spool::Spool;
use crate::vms::Vms;
use crate::{Orders, blocking, now};

/// Between two looks at the processors, to tell how busy they are.
const LOOK: Duration = Duration::from_millis(100);
/// Between two tries to reach the daemon.
const PAUSE: Duration = Duration::from_millis(100);

/// The document, or the one that says what could not be found out.
pub async fn document(
    orders: &Orders,
    configuration: &Configuration,
) -> std::result::Result<String, String> {
    let mut firsts = Firsts::default();
    let mut vms = Vms::new(orders.socket.clone());
    for kind in [
        MessageKind::SystemHost,
        MessageKind::MonitorHost,
        MessageKind::StateVm,
        MessageKind::MonitorVm,
        MessageKind::ExecVm,
    ] {
        match find_out(kind, orders, configuration, &mut vms).await {
            Ok(text) => firsts.add(kind, &text),
            Err(error) => return Err(firsts.failed(kind, &error)),
        };
    }
    Ok(firsts.document(now()))
}

async fn find_out(
    kind: MessageKind,
    orders: &Orders,
    configuration: &Configuration,
    vms: &mut Vms,
) -> Result<String> {
    match kind {
        MessageKind::BeaconHost => Ok(String::new()),
        MessageKind::SystemHost => system(orders, configuration).await,
        MessageKind::MonitorHost => {
            let mut before = host::times()?;
            tokio::time::sleep(LOOK).await;
            Ok(host::usage(&orders.hypervisor, &mut before)?.into_text())
        }
        MessageKind::StateVm => {
            let (began, most) = (Instant::now(), Duration::from_secs(orders.daemon_timeout));
            loop {
                match vms.states(configuration.periods.state_vm).await {
                    Ok(seen) => {
                        return Ok(States::default().tell(&seen, Duration::ZERO, Told::All));
                    }
                    Err(_) if began.elapsed() < most => tokio::time::sleep(PAUSE).await,
                    Err(error) => return Err(error),
                }
            }
        }
        MessageKind::MonitorVm => Ok(vms.usage(configuration.datastores.clone()).await?.concat()),
        MessageKind::ExecVm => Ok(Spool::open(&orders.state_dir)?.tell()?.0),
    }
}

/// What the host is.
pub(crate) async fn system(orders: &Orders, configuration: &Configuration) -> Result<String> {
    let (orders, datastores) = (orders.clone(), configuration.datastores.clone());
    let look = move || {
        let places = Places {
            hypervisor: &orders.hypervisor,
            datastores: &datastores,
            version_file: &orders.version_file,
        };
        host::system(places)
    };
    Ok(blocking(look).await?.into_text())
}
