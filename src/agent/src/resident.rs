//! The agent itself: each kind of message in its own time, until it is told to end or its seat is another's.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::monitor::{Configuration, MessageKind, States, Told};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval, interval_at, timeout};

use crate::leftovers::Leftovers;
use crate::looks::Looks;
use crate::place::Place;
use crate::seat::{Seat, Taken};
use crate::sender::{self, Sender};
use crate::spool::Spool;
use crate::ticket::Order;
use crate::vms::Vms;
use crate::{Orders, first, host};

/// How often the seat is looked at.
const SEAT: Duration = Duration::from_secs(5);
/// Between two looks at states: of many guests that begin or end at once not each is worth one.
const PAUSE: Duration = Duration::from_millis(200);

/// How long a look at states may take. With what sending may take it is less than the 30 seconds for which OpenNebula does
/// not believe states of a VM that it has just started.
const LOOK: Duration = Duration::from_secs(15);
const _: () = assert!(LOOK.as_secs() + sender::PATIENCE.as_secs() < 30);

/// Runs the agent whose orders are that file. Once it is the agent, or cannot be because something could not be found out, it
/// says so, with the document. A newer start is no failure of this one, for which OpenNebula would take the host for broken:
/// the host has an agent, if another one.
///
/// # Errors
/// The file holds no orders, the seat cannot be had, the kernel denies signals, monitoring was ended meanwhile.
pub async fn run(file: OwnedFd, say: impl FnOnce(std::result::Result<&str, &str>)) -> Result<()> {
    let orders = Orders::inherit(file)?;
    let (configuration, address) = orders.monitor()?;
    let place = Place::open(&orders.state_dir)?;
    let found = match first::find_out(&orders, &configuration).await {
        Ok(found) => found,
        Err(document) => {
            say(Err(&document));
            return Ok(());
        }
    };
    // From the moment on at which the seat names us.
    let mut told = signal(SignalKind::terminate())
        .map_err(|e| Error::new(ErrorKind::Host, format!("catch signals: {e}")))?;
    let mut seat = match Seat::take(&place, configuration.host, orders.ticket).await? {
        Taken::Seat(seat) => seat,
        Taken::Overtaken(Order::Start) => {
            say(Ok(&found.document()));
            return Ok(());
        }
        Taken::Overtaken(Order::Stop) => {
            let what = format!("monitoring of host {} was ended meanwhile", configuration.host);
            return Err(Error::new(ErrorKind::Cancelled, what));
        }
    };
    seat.occupy(&orders)?;
    let sender = Sender {
        host: configuration.host,
        address,
        port: configuration.port,
        key: configuration.key.clone(),
        last: 0,
        patience: sender::PATIENCE,
    };
    say(Ok(&found.document()));
    let agent = Agent { orders: &orders, configuration: &configuration, sender };
    let keep = async {
        let mut ticks = every(SEAT);
        while seat.keep(&place) {
            ticks.tick().await;
        }
    };
    tokio::select! {
        _ = told.recv() => {}
        () = keep => {}
        () = agent.beacons() => {}
        () = agent.host() => {}
        () = agent.usage() => {}
        () = agent.states() => {}
        () = agent.usage_of_vms() => {}
        () = agent.commands() => {}
        () = agent.leftovers() => {}
    }
    Ok(())
}

/// At once, and then in each period; one that was missed is not made up for.
fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The same, but for the first.
fn each(period: Duration) -> Interval {
    let mut ticks = interval_at(tokio::time::Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// What was not sent is sent in the next period, with what is true then; there is nobody to tell that it was not.
fn missed(_sent: Result<()>) {}

struct Agent<'a> {
    orders: &'a Orders,
    configuration: &'a Configuration,
    sender: Sender,
}

impl Agent<'_> {
    async fn beacons(&self) {
        let (mut sender, mut ticks) =
            (self.sender.clone(), every(self.configuration.periods.beacon_host));
        loop {
            ticks.tick().await;
            let text = crate::now().to_string();
            missed(sender.send(MessageKind::BeaconHost, &Ok(text)).await);
        }
    }

    async fn host(&self) {
        let (mut sender, mut ticks) =
            (self.sender.clone(), every(self.configuration.periods.system_host));
        let looks = Looks::default();
        loop {
            ticks.tick().await;
            let found = first::system(self.orders, self.configuration, &looks).await;
            missed(sender.send(MessageKind::SystemHost, &found).await);
        }
    }

    async fn usage(&self) {
        let (mut sender, mut ticks) =
            (self.sender.clone(), each(self.configuration.periods.monitor_host));
        let mut before = host::times().unwrap_or_default();
        loop {
            ticks.tick().await;
            let found = host::usage(&self.orders.hypervisor, &mut before);
            let found = found.map(|text| text.into_text());
            missed(sender.send(MessageKind::MonitorHost, &found).await);
        }
    }

    /// Nothing is told while the daemon is away, not even that: guests run on, and OpenNebula would take a failure for
    /// their end.
    async fn usage_of_vms(&self) {
        let (mut sender, mut ticks) =
            (self.sender.clone(), every(self.configuration.periods.monitor_vm));
        let mut vms = Vms::new(self.orders.socket.clone());
        loop {
            ticks.tick().await;
            if let Ok(lines) = vms.usage(&self.configuration.datastores).await {
                missed(sender.send_each(MessageKind::MonitorVm, &lines).await);
            }
        }
    }

    async fn states(&self) {
        let periods = self.configuration.periods;
        let (mut sender, vms) = (self.sender.clone(), Vms::new(self.orders.socket.clone()));
        let (mut states, began) = (States::default(), Instant::now());
        let (mut ticks, mut all) = (each(periods.state_vm), each(periods.sync_state_vm));
        let (mut next, mut due) = (None, Told::All);
        loop {
            // The number first: what happens while the list is on its way is looked at again.
            if next.is_none() {
                next = vms.next_event().await.ok();
                due = Told::All;
            }
            // What waited for the daemon and may wait for the monitor would be too old: OpenNebula has started VMs since.
            let looked = timeout(LOOK, vms.states(periods.state_vm)).await;
            let late = |_| Err(Error::new(ErrorKind::Timeout, "ocivisord does not answer"));
            let sent = match looked.unwrap_or_else(late) {
                Ok(seen) => {
                    let text = states.tell(&seen, began.elapsed(), due);
                    sender.send(MessageKind::StateVm, &Ok(text)).await
                }
                Err(error) => Err(error),
            };
            // Whatever the monitor did not hear of is told with everything else, once it listens.
            let failed = sent.is_err();
            tokio::time::sleep(PAUSE).await;
            due = tokio::select! {
                biased;
                changed = changed(&vms, next), if !failed => match changed {
                    Ok(seen) => {
                        next = Some(seen);
                        Told::Event
                    }
                    // The daemon ended; the next one numbers anew.
                    Err(_) => {
                        next = None;
                        Told::All
                    }
                },
                _ = all.tick() => {
                    // All of them are those that changed, too.
                    ticks.reset();
                    Told::All
                }
                _ = ticks.tick() => if failed { Told::All } else { Told::Period },
            };
        }
    }

    async fn commands(&self) {
        let (mut sender, mut ticks) =
            (self.sender.clone(), every(self.configuration.periods.exec_vm));
        let mut spool = Spool::new(&self.orders.state_dir);
        loop {
            ticks.tick().await;
            let Ok((text, ends)) = spool.tell() else { continue };
            if sender.send(MessageKind::ExecVm, &Ok(text)).await.is_ok() {
                spool.told(ends);
            }
        }
    }

    /// What is still so at the third look in a row is believed.
    async fn leftovers(&self) {
        let period = self.configuration.periods.sync_state_vm;
        let (socket, location) =
            (self.orders.socket.clone(), self.configuration.datastores.clone());
        let (mut leftovers, mut ticks) =
            (Leftovers::new(socket, location, period * 2), every(period));
        loop {
            ticks.tick().await;
            // Nobody is to be told; the next look is soon enough.
            let _ = timeout(LOOK, leftovers.look()).await;
        }
    }
}

/// Without a number there is nothing to wait for: the daemon is asked again in the next period.
async fn changed(vms: &Vms, next: Option<u64>) -> Result<u64> {
    match next {
        Some(next) => vms.changed(next).await,
        None => std::future::pending().await,
    }
}
