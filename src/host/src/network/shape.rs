//! Bounds of a NIC's traffic, on the host's side, out of the guest's reach.
//!
//! ```text
//!   to the guest     tbf at the root of the host's end
//!   from the guest   ingress of the host's end ─ u32, mirred ─► a link of kind ifb with a tbf, and back
//! ```
//!
//! What is too much waits (`tbf`, tc-tbf(8)) instead of being dropped, in both directions: guests keep their speed
//! and lose no packets but when the queue is full. For traffic from the guest that takes a link of its own per NIC,
//! since the kernel queues nothing that arrives; policing it (`act_police`) would only drop.
//!
//! That link's name follows from the host's end's, and it carries the NIC's mark, so that both are found again. It is
//! made after the host's end and removed before it: one without a mark (a crash) has its host's end still there.

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::{NicSpec, Rate};

use super::claim::{Claim, Claimant};
use super::fault;
use super::link::{self, Link};
use super::mark::{self, Mark};
use super::nic;
use super::socket::{Netlink, Refusal};
use super::wire::Message;

/// Kind of the link that traffic from the guest goes round by, and of the queue that makes it wait.
pub(super) const IFB: &str = "ifb";
const TBF: &str = "tbf";

/// include/uapi/linux/{pkt_sched,pkt_cls,if_ether}.h and linux/tc_act/tc_mirred.h.
const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const TBF_HANDLE: u32 = 0x1_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_PRATE64: u16 = 5;
const TCA_TBF_BURST: u16 = 6;
const TCA_TBF_PBURST: u16 = 7;
const TC_LINKLAYER_ETHERNET: u8 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
/// Priority 1, all protocols (`ETH_P_ALL`, in network order).
const FILTER_INFO: u32 = 1 << 16 | (3_u16.to_be() as u32);

/// Least burst: a packet of the largest MTU, which a smaller bucket would never let through.
const LEAST_BURST: u64 = 66 << 10;
/// A burst that nobody gave is what passes in this part of a second, and so is the queue twice.
const BURST_PARTS: u64 = 50;
const QUEUE_PARTS: u64 = 10;

/// Name of the link for traffic from the guest.
pub(super) fn ifb_name(host_name: &str) -> String {
    format!("ocvi{:08x}", mark::hash([host_name.as_bytes()]))
}

/// Bounds the NIC as it is wished, and takes bounds away that are not.
pub(super) fn set(host: &mut Netlink, nic: &NicSpec, mark: &Mark) -> Result<()> {
    let name = nic.host_name.as_str();
    let found =
        host.link_by_name(name).map_err(|e| e.error(format!("examine interface {name}")))?;
    let gone = || Error::new(ErrorKind::Host, format!("interface {name} vanished"));
    let link = found.ok_or_else(gone)?;
    let failed = |e: Refusal| error(&e, name);
    match &nic.inbound {
        Some(rate) => host.change(tbf(link.index, rate)).map_err(failed)?,
        None if link.qdisc == TBF => {
            let gone = qdisc(libc::RTM_DELQDISC, 0, link.index, TC_H_ROOT, TBF_HANDLE);
            absent_is_fine(host.change(gone)).map_err(failed)?;
        }
        None => {}
    }
    fault::point()?;
    match &nic.outbound {
        Some(rate) => {
            let ifb = ensure_ifb(host, name, mark)?;
            fault::point()?;
            host.change(tbf(ifb, rate)).map_err(failed)?;
            fault::point()?;
            redirect(host, link.index, ifb).map_err(failed)?;
        }
        None => drop_ifb(host, name, Some(link.index), &mark.daemon, &mark.vm)?,
    }
    fault::point()
}

/// Removes the link for traffic from the guest, if there is one and it is the VM's.
pub(super) fn drop_ifb(
    host: &mut Netlink,
    name: &str,
    host_end: Option<u32>,
    daemon: &str,
    vm: &ocivisor_core::ids::VmId,
) -> Result<()> {
    let ifb = ifb_name(name);
    let failed = |e: Refusal| e.error(format!("remove interface {ifb}"));
    let Some(link) = host.link_by_name(&ifb).map_err(failed)? else { return Ok(()) };
    if !is_ours(host, &link, daemon, vm)? {
        return Ok(());
    }
    if let Some(index) = host_end {
        let gone = qdisc(libc::RTM_DELQDISC, 0, index, TC_H_INGRESS, INGRESS_HANDLE);
        absent_is_fine(host.change(gone)).map_err(failed)?;
        fault::point()?;
    }
    host.remove(link.index).map_err(failed)
}

/// A link of that name and kind without a mark is what a crash left of this very one.
fn is_ours(
    host: &mut Netlink,
    link: &Link,
    daemon: &str,
    vm: &ocivisor_core::ids::VmId,
) -> Result<bool> {
    let marked = matches!(Claimant::new(host, daemon, vm, None)?.claim(link), Claim::Ours);
    Ok(link.kind == IFB && (marked || link.alias.is_empty()))
}

fn ensure_ifb(host: &mut Netlink, name: &str, mark: &Mark) -> Result<u32> {
    let ifb = ifb_name(name);
    let failed = |e: Refusal| {
        let error = e.error(format!("create interface {ifb}"));
        match e.errno {
            libc::EOPNOTSUPP => error.hint("the kernel needs ifb: modprobe ifb"),
            _ => error,
        }
    };
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let request = Message::new(libc::RTM_NEWLINK, flags, &link::fixed(0, 0))
        .text(libc::IFLA_IFNAME, &ifb)
        .nest(libc::IFLA_LINKINFO, |m| m.text(libc::IFLA_INFO_KIND, IFB));
    match host.change(request) {
        Err(e) if !e.is(libc::EEXIST) => return Err(failed(e)),
        _ => {}
    }
    let link = host.link_by_name(&ifb).map_err(failed)?;
    let Some(link) = link else {
        return Err(Error::new(ErrorKind::Host, format!("interface {ifb} vanished")));
    };
    if !is_ours(host, &link, &mark.daemon, &mark.vm)? {
        let what = format!("interface {ifb} exists and is not the vm's");
        return Err(Error::new(ErrorKind::Conflict, what).hint("remove or rename it"));
    }
    // Up by a request of its own: this link has its carrier, and so an address, at once.
    nic::mark(host, link.index, 0, mark).map_err(failed)?;
    host.change(link::change(link.index, libc::IFF_UP)).map_err(failed)?;
    Ok(link.index)
}

/// All that arrives at a link goes to another one first.
fn redirect(host: &mut Netlink, from: u32, to: u32) -> std::result::Result<(), Refusal> {
    let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let ingress = qdisc(libc::RTM_NEWQDISC, create, from, TC_H_INGRESS, INGRESS_HANDLE);
    match host.change(ingress.text(TCA_KIND, "ingress")) {
        Err(e) if !e.is(libc::EEXIST) => return Err(e),
        _ => {}
    }
    let filter = |kind, flags| {
        Message::new(kind, libc::NLM_F_ACK | flags, &fixed(from, 0, INGRESS_HANDLE, FILTER_INFO))
    };
    absent_is_fine(host.change(filter(libc::RTM_DELTFILTER, 0)))?;
    // One key that matches everything: no bit of the first word counts.
    let mut select = [0; 32];
    (select[0], select[2]) = (TC_U32_TERMINAL, 1);
    // tc_gen (index, capab, action, refcnt, bindcnt), eaction, ifindex.
    let action = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to].map(u32::to_ne_bytes).concat();
    let mirred = |m: Message| {
        m.text(TCA_ACT_KIND, "mirred").nest(TCA_ACT_OPTIONS, |m| m.attr(TCA_MIRRED_PARMS, &action))
    };
    host.change(filter(libc::RTM_NEWTFILTER, create).text(TCA_KIND, "u32").nest(TCA_OPTIONS, |m| {
        m.attr(TCA_U32_SEL, &select).nest(TCA_U32_ACT, |m| m.nest(1, mirred))
    }))
}

/// The queue that lets so much through.
fn tbf(index: u32, rate: &Rate) -> Message {
    let low = |rate: u64| u32::try_from(rate).unwrap_or(u32::MAX);
    let size = |bytes: u64| low(bytes.max(LEAST_BURST));
    let burst = size(rate.burst.unwrap_or(rate.average / BURST_PARTS));
    let limit = size(rate.average / QUEUE_PARTS).saturating_add(burst);
    // The kernel takes a peak for a mistake that is no more than the average.
    let peak = rate.peak.filter(|peak| *peak > rate.average);
    // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate.
    let spec = |rate: u64| {
        let mut bytes = [0; 12];
        bytes[1] = TC_LINKLAYER_ETHERNET;
        bytes[8..].copy_from_slice(&low(rate).to_ne_bytes());
        bytes
    };
    // struct tc_tbf_qopt: rate, peakrate, limit, buffer, mtu; the last two are given in bytes below.
    let mut parms = spec(rate.average).to_vec();
    parms.extend(peak.map_or([0; 12], spec));
    parms.extend([limit, 0, 0].map(u32::to_ne_bytes).concat());
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    qdisc(libc::RTM_NEWQDISC, flags, index, TC_H_ROOT, TBF_HANDLE).text(TCA_KIND, TBF).nest(
        TCA_OPTIONS,
        |m| {
            let m = m
                .attr(TCA_TBF_PARMS, &parms)
                .attr(TCA_TBF_RATE64, &rate.average.to_ne_bytes())
                .number(TCA_TBF_BURST, burst);
            match peak {
                Some(peak) => m
                    .attr(TCA_TBF_PRATE64, &peak.to_ne_bytes())
                    .number(TCA_TBF_PBURST, low(LEAST_BURST)),
                None => m,
            }
        },
    )
}

fn qdisc(kind: u16, flags: i32, index: u32, parent: u32, handle: u32) -> Message {
    Message::new(kind, libc::NLM_F_ACK | flags, &fixed(index, handle, parent, 0))
}

/// `struct tcmsg`: family, padding, ifindex, handle, parent, info.
fn fixed(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [0, index, handle, parent, info].map(u32::to_ne_bytes).concat()
}

fn absent_is_fine(answer: std::result::Result<(), Refusal>) -> std::result::Result<(), Refusal> {
    match answer {
        Err(e) if [libc::ENOENT, libc::EINVAL].contains(&e.errno) => Ok(()),
        other => other,
    }
}

/// The kernel says `ENOENT` of a queue, a filter or an action that it does not know.
fn error(refusal: &Refusal, name: &str) -> Error {
    let error = refusal.error(format!("bound the traffic of {name}"));
    match refusal.errno {
        libc::ENOENT | libc::EOPNOTSUPP => {
            let hint = "the kernel needs sch_tbf and, for traffic from guests, sch_ingress, cls_u32, \
                        act_mirred and ifb: modprobe says which is missing";
            Error { kind: ErrorKind::Unsupported, ..error }.hint(hint)
        }
        _ => error,
    }
}
