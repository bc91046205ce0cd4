//! `NIC` to [`NicSpec`].
//!
//! The host's end must be called `one-<vm>-<nic>`: OpenNebula's network drivers compute that name
//! from the deploy id when they filter and tag. A tenant may write another `TARGET` into the
//! template (for KVM it names the tap device); honouring any name would let a tenant point at
//! another VM's interface or the host's, so a name that is not this VM's prefix and letters or
//! digits is replaced, with a note.

use std::collections::{BTreeMap, BTreeSet};

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::{IfName, MacAddr};
use ocivisor_core::spec::{Bridge, NicSpec, Rate};

use crate::answer::Notes;
use crate::context::{Addressing, Group, groups};
use crate::vm::{DriverVm, Nic, Vector, is_yes};
use crate::{clip, decimal, invalid, told};

/// Metric that the kernel gives an IPv6 route without one (`IP6_RT_PRIO_USER`); IPv4 has 0.
const IPV6_METRIC: u32 = 1024;
/// As [`ocivisor_core::spec::VmSpec::check`]; here so that a hostile template costs no time.
const MAX_NICS: usize = 64;

/// The NIC with that MAC that is to be attached. All are read, for the routes of one are told from those of others,
/// but only what is wrong with this one is worth a note.
pub(crate) fn attached(vm: &DriverVm, mac: MacAddr, notes: &mut Notes) -> Result<NicSpec, Error> {
    let found = nics(vm, &mut Notes::default())?.into_iter().find(|nic| {
        let marked = |of: &&Nic| of.id == nic.index && of.moving;
        nic.mac == mac && vm.nics.iter().any(|of| marked(&of))
    });
    let nic = found.ok_or_else(|| invalid(format!("no NIC with MAC {mac} is to be attached")))?;
    let alone = vm.nics.iter().filter(|of| of.id == nic.index);
    let alone = alone.map(|of| Nic { moving: false, ..of.clone() }).collect();
    nics(&DriverVm { nics: alone, ..vm.clone() }, notes)?;
    Ok(nic)
}

pub(crate) fn nics(vm: &DriverVm, notes: &mut Notes) -> Result<Vec<NicSpec>, Error> {
    refuse_pci(vm)?;
    if vm.nics.len() > MAX_NICS {
        let count = vm.nics.len();
        return Err(invalid(format!("the VM has {count} NICs, at most {MAX_NICS} are possible")));
    }
    let none = Vector::new();
    let context = vm.context.as_ref().unwrap_or(&none);
    let network = is_yes(context, "NETWORK");
    if !network && !vm.nics.is_empty() {
        notes.add("CONTEXT has no NETWORK=YES, so the guest's interfaces get no addresses");
    }
    let groups = if network { groups(context) } else { BTreeMap::new() };
    let mut metrics = Metrics::default();
    let mut specs = Vec::new();
    for (position, nic) in vm.nics.iter().enumerate() {
        let named = |error: Error| error.context(format_args!("NIC {}", nic.id));
        let mac: MacAddr = parsed(nic.mac.as_deref().unwrap_or_default()).map_err(named)?;
        let group = group_of(&groups, position, mac);
        // One that is being detached has none any more.
        if network && group.is_none() && !nic.moving {
            notes.add(format_args!("NIC {}: CONTEXT has no addresses for it", nic.id));
        }
        let mask = nic.network_mask.as_deref();
        let addressing = group.map(|group| group.addressing(mask, notes)).transpose();
        let Addressing { addresses, mut routes } = addressing.map_err(named)?.unwrap_or_default();
        metrics.separate(&mut routes);
        let text = |key: &str| group.and_then(|group| group.get(key)).map(str::to_owned);
        let label = |key: &str| format!("{}_{key}", group.map_or("", |group| group.label()));
        specs.push(NicSpec {
            index: nic.id,
            host_name: host_name(vm, nic, notes).map_err(named)?,
            bridge: bridge(nic, notes).map_err(named)?,
            mac,
            mtu: mtu(nic, group).map_err(named)?,
            addresses,
            routes,
            dns: told::servers(text("DNS").as_ref(), &label("DNS"), notes),
            search: told::domains(text("SEARCH_DOMAIN").as_ref(), &label("SEARCH_DOMAIN"), notes),
            inbound: rate(nic, "INBOUND", notes).map_err(named)?,
            outbound: rate(nic, "OUTBOUND", notes).map_err(named)?,
        });
    }
    Ok(specs)
}

fn refuse_pci(vm: &DriverVm) -> Result<(), Error> {
    let Some(pci) = vm.pci.first() else {
        return Ok(());
    };
    let kind = if pci.get("TYPE").is_some_and(|kind| kind == "NIC") {
        "network interfaces"
    } else {
        "devices"
    };
    let address = pci.get("ADDRESS").or_else(|| pci.get("SHORT_ADDRESS"));
    let address = address.map_or_else(String::new, |at| format!(" ({:?})", clip(at)));
    Err(Error::new(ErrorKind::Unsupported, format!("PCI {kind} are not supported yet{address}")))
}

fn parsed<T: std::str::FromStr<Err = ocivisor_core::ids::BadId>>(text: &str) -> Result<T, Error> {
    text.parse().map_err(invalid)
}

/// The group with the NIC's MAC; one that names no MAC counts by position.
fn group_of<'a, 'b>(
    groups: &'b BTreeMap<u32, Group<'a>>,
    position: usize,
    mac: MacAddr,
) -> Option<&'b Group<'a>> {
    let has = |group: &&Group<'_>| group.get("MAC").and_then(|m| m.parse().ok()) == Some(mac);
    let by_position = || groups.get(&u32::try_from(position).ok()?);
    let found = groups.values().find(has);
    found.or_else(|| by_position().filter(|group| group.get("MAC").is_none()))
}

fn host_name(vm: &DriverVm, nic: &Nic, notes: &mut Notes) -> Result<IfName, Error> {
    let own = format!("one-{}-{}", vm.id, nic.id);
    let Some(target) = nic.target.as_deref() else {
        return parsed(&own);
    };
    let target: IfName = parsed(target).map_err(|error| error.context("TARGET"))?;
    if target.as_str() == own {
        return Ok(target);
    }
    // A user's choice: security groups go by the NIC's number, and would find nothing, or another NIC.
    notes.add(format_args!("NIC {}: TARGET {target} is not used, the host's end is {own}", nic.id));
    parsed(&own)
}

fn bridge(nic: &Nic, notes: &mut Notes) -> Result<Bridge, Error> {
    let Some(name) = nic.bridge.as_deref() else {
        return Ok(Bridge::None);
    };
    let name: IfName = parsed(name).map_err(|error| error.context("BRIDGE"))?;
    match nic.bridge_type.as_deref() {
        Some("linux") => Ok(Bridge::Linux(name)),
        Some("openvswitch") => Ok(Bridge::OpenVswitch(name)),
        Some("none") => Ok(Bridge::None),
        None => {
            notes.add(format_args!(
                "NIC {}: it has no BRIDGE_TYPE and is not plugged into {name}",
                nic.id
            ));
            Ok(Bridge::None)
        }
        Some(other) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("BRIDGE_TYPE {:?} is not supported", clip(other)),
        )
        .hint("use linux or openvswitch")),
    }
}

/// Rates are kB/s, bursts are KiB: what `tc` understands by the `kbps` and `kb` that libvirt hands it for KVM.
fn rate(nic: &Nic, direction: &str, notes: &mut Notes) -> Result<Option<Rate>, Error> {
    let number = |key: &str, unit: u64| {
        let key = format!("{direction}_{key}");
        let Some(text) = nic.bandwidth.get(&key) else { return Ok(None) };
        let bytes = decimal(text).map(|number| u64::from(number) * unit);
        // Nought is how a template takes a bound of its network away.
        bytes
            .map(|bytes| Some(bytes).filter(|bytes| *bytes > 0))
            .ok_or_else(|| invalid(format!("{key} is {:?}, not a number", clip(text))))
    };
    let (average, peak) = (number("AVG_BW", 1000)?, number("PEAK_BW", 1000)?);
    let burst = number("PEAK_KB", 1024)?;
    let Some(average) = average else {
        if peak.is_some() || burst.is_some() {
            let what = "has no effect without an average";
            notes.add(format_args!("NIC {}: {direction}_PEAK_… {what}", nic.id));
        }
        return Ok(None);
    };
    if peak.is_some_and(|peak| peak < average) {
        let what = "is below the average and has no effect";
        notes.add(format_args!("NIC {}: {direction}_PEAK_BW {what}", nic.id));
    }
    Ok(Some(Rate { average, peak: peak.filter(|peak| *peak >= average), burst }))
}

/// The network's MTU, else the one meant for the guest.
fn mtu(nic: &Nic, group: Option<&Group<'_>>) -> Result<Option<u32>, Error> {
    let text = nic.mtu.as_deref().or_else(|| group?.get("MTU"));
    let parse = |text| {
        decimal(text).ok_or_else(|| invalid(format!("MTU is {:?}, not a number", clip(text))))
    };
    text.map(parse).transpose()
}

/// Keeps default routes of several NICs apart: the kernel refuses a second one with the same
/// metric. The NIC that comes first in the template wins, as its metric is the smaller one.
#[derive(Default)]
struct Metrics(BTreeSet<(bool, u32)>);

impl Metrics {
    fn separate(&mut self, routes: &mut [ocivisor_core::spec::Route]) {
        for route in routes.iter_mut().filter(|route| route.destination.is_none()) {
            let v4 = route.gateway.is_ipv4();
            let least = if v4 { 0 } else { IPV6_METRIC };
            // For IPv6 the kernel reads 0 as "none given".
            let given = route.metric.filter(|metric| v4 || *metric > 0);
            let wanted = given.unwrap_or(least);
            let mut metric = wanted;
            while !self.0.insert((v4, metric)) {
                metric = metric.wrapping_add(1);
            }
            if metric != wanted {
                route.metric = Some(metric);
            }
        }
    }
}

#[cfg(test)]
mod tests;
