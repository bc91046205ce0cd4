//! A bridge for the guest, with the address that the recorded site's gateway had.

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;

use anyhow::{Context, Result, bail};

use super::recording::Replacements;
use super::undo::Undo;
use crate::cmd::{output, program, run, say, succeeds};

/// The bridge.
const BRIDGE: &str = "ocvqs0";

/// What the recording says.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Name of its bridge.
    pub bridge: String,
    /// Address of its gateway.
    pub gateway: Ipv4Addr,
    /// Address of the guest.
    pub guest: Ipv4Addr,
}

/// What is here.
#[derive(Debug, Clone)]
pub struct Net {
    /// Address of the guest.
    pub guest: Ipv4Addr,
    /// What of the recording is replaced.
    pub replace: Replacements,
}

/// Makes the bridge. If this host uses the recorded network already, the next free one is taken.
///
/// # Errors
/// No network is free, or ip(8) fails.
pub fn make(recorded: &Recorded, undo: &mut Undo) -> Result<Net> {
    if succeeds(program("ip").args(["link", "show", "dev", BRIDGE])) {
        say(&format!("removing the bridge {BRIDGE} of an earlier run"));
        run(program("ip").args(["link", "delete", BRIDGE]))?;
    }
    let used = output(program("ip").args(["-4", "-o", "address", "show"]))?
        + &output(program("ip").args(["-4", "route", "show"]))?;
    let [a, b, recorded_c, _] = recorded.gateway.octets();
    let free = std::iter::once(recorded_c)
        .chain(200..=250)
        .find(|c| !used.contains(&format!("{a}.{b}.{c}.")));
    let Some(c) = free else {
        bail!("no network {a}.{b}.X.0/24 is free on this host");
    };
    let here = |addr: Ipv4Addr| Ipv4Addr::new(a, b, c, addr.octets()[3]);
    let gateway = here(recorded.gateway);
    run(program("ip").args(["link", "add", BRIDGE, "type", "bridge"]))?;
    undo.add(format!("remove the bridge {BRIDGE}"), || {
        run(program("ip").args(["link", "delete", BRIDGE]).process_group(0))
    });
    run(program("ip").args(["address", "add", &format!("{gateway}/24"), "dev", BRIDGE]))?;
    run(program("ip").args(["link", "set", BRIDGE, "up"]))?;
    let mut replace = Replacements::default();
    say("replaced in the recording, because it belongs to its site:");
    let bridge = |name: &str| format!("<BRIDGE><![CDATA[{name}]]>");
    say(&replace.add(&bridge(&recorded.bridge), &bridge(BRIDGE)));
    if c != recorded_c {
        say(&replace.add(&format!("{a}.{b}.{recorded_c}."), &format!("{a}.{b}.{c}.")));
    }
    Ok(Net { guest: here(recorded.guest), replace })
}

/// Reaches the guest from the host.
///
/// # Errors
/// No answer.
pub fn ping(net: &Net) -> Result<()> {
    let guest = net.guest.to_string();
    run(program("ping").args(["-c", "3", "-i", "0.2", "-w", "5", &guest]))
        .context("the guest does not answer over the bridge")
}
