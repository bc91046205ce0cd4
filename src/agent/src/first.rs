//! What a start finds out, before the agent that it leaves is the agent.

use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::monitor::{Configuration, Firsts, MessageKind, States, Told};
use tokio::time::timeout;

use crate::host::{self, Places};
use crate::looks::Looks;
use crate::spool::Spool;
use crate::vms::Vms;
use crate::{Orders, now};

/// Between two looks at the processors, to tell how busy they are.
const LOOK: Duration = Duration::from_millis(100);
/// Between two tries to reach the daemon.
const PAUSE: Duration = Duration::from_millis(100);
/// How long what VMs use may take; it may be missing.
const USE: Duration = Duration::from_secs(15);
/// How old states may be. OpenNebula does not believe them within 30 seconds after it did something to a VM: what it
/// deployed since they were found out would be missing among those that are older.
const FRESH: Duration = Duration::from_secs(5);

/// What was found out.
#[derive(Debug)]
pub struct Found {
    texts: Vec<(MessageKind, String)>,
    states_at: Instant,
}

impl Found {
    /// The document that says it now. States that are too old are left out: the agent tells them at once.
    #[must_use]
    pub fn document(self) -> String {
        let (fresh, mut firsts) = (self.states_at.elapsed() < FRESH, Firsts::default());
        for (kind, text) in self.texts {
            if fresh || kind != MessageKind::StateVm {
                firsts.add(kind, &text);
            }
        }
        firsts.document(now())
    }
}

/// Finds everything out.
///
/// # Errors
/// The document that says what could not be found out.
pub async fn find_out(
    orders: &Orders,
    configuration: &Configuration,
) -> std::result::Result<Found, String> {
    let mut vms = Vms::new(orders.socket.clone());
    let of_vms = async {
        let states = states(orders, configuration, &vms).await;
        let at = Instant::now();
        // The agent tells it again at once.
        let used = timeout(USE, vms.usage(&configuration.datastores)).await;
        (states, at, used.ok().and_then(Result::ok).unwrap_or_default().concat())
    };
    let looks = Looks::default();
    let system = system(orders, configuration, &looks);
    let (system, usage, (states, states_at, used)) = tokio::join!(system, usage(orders), of_vms);
    let (mut texts, mut firsts) = (Vec::new(), Firsts::default());
    for (kind, found) in [
        (MessageKind::SystemHost, system),
        (MessageKind::MonitorHost, usage),
        (MessageKind::StateVm, states),
        (MessageKind::MonitorVm, Ok(used)),
        (MessageKind::ExecVm, Spool::new(&orders.state_dir).tell().map(|told| told.0)),
    ] {
        match found {
            Ok(text) => {
                firsts.add(kind, &text);
                texts.push((kind, text));
            }
            Err(error) => return Err(firsts.failed(kind, &error)),
        }
    }
    Ok(Found { texts, states_at })
}

async fn usage(orders: &Orders) -> Result<String> {
    let mut before = host::times()?;
    tokio::time::sleep(LOOK).await;
    Ok(host::usage(&orders.hypervisor, &mut before)?.into_text())
}

/// A daemon that is away, or does not answer, is waited for.
async fn states(orders: &Orders, configuration: &Configuration, vms: &Vms) -> Result<String> {
    let (began, most) = (Instant::now(), Duration::from_secs(orders.daemon_timeout));
    loop {
        let left = most.saturating_sub(began.elapsed()).max(Duration::from_secs(1));
        let seen = timeout(left, vms.states(configuration.periods.state_vm)).await;
        let silent = |_| Err(Error::new(ErrorKind::Timeout, "ocivisord does not answer"));
        match seen.unwrap_or_else(silent) {
            Ok(seen) => return Ok(States::default().tell(&seen, Duration::ZERO, Told::All)),
            Err(_) if began.elapsed() < most => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

/// What the host is.
pub(crate) async fn system(
    orders: &Orders,
    configuration: &Configuration,
    looks: &Looks,
) -> Result<String> {
    let Orders { hypervisor, pci, version_file, .. } = orders;
    let places = Places { hypervisor, pci, version_file };
    let mut text = host::system(places)?;
    text.append(&host::space(looks, &configuration.datastores).await);
    Ok(text.into_text())
}
