//! Ports of Open vSwitch bridges, by `ovs-vsctl`: its database has no netlink.
//!
//! A port is marked in `external_ids` like a link in its alias, so that a port whose link is gone
//! (a reboot of the host keeps the database and no links) is still known as ours.

use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{IfName, VmId};

use super::mark::Mark;
use crate::command;

/// Kind of link, as the kernel names it.
pub(super) const KIND: &str = "openvswitch";

/// The tool waits for the switch to carry out a change, for ever if told nothing.
const WAIT: &str = "--timeout=20";
const TIMEOUT: Duration = Duration::from_secs(30);

/// Plugs a link into a bridge; plugged in already is fine.
pub(super) fn plug(bridge: &IfName, port: &IfName, mark: &Mark) -> Result<()> {
    let (bridge, port) = (bridge.as_str(), port.as_str());
    let id = format!("external_ids:ocivisor=\"{}\"", mark.alias());
    let add = ["ovs-vsctl", WAIT, "--may-exist", "add-port", bridge, port];
    let set = ["--", "set", "Interface", port, &id];
    let argv: Vec<&str> = add.into_iter().chain(set).collect();
    let what = || format!("plug {port} into open vswitch bridge {bridge}");
    command::run(&argv, TIMEOUT).map(drop).map_err(|e| e.context(what()))
}

/// Takes a port away if it is marked as this VM's; absent is fine, so is a host without the tool.
pub(super) fn unplug(port: &str, daemon: &str, vm: &VmId) -> Result<()> {
    let get = ["ovs-vsctl", WAIT, "--if-exists", "get", "Interface", port, "external_ids:ocivisor"];
    let what = |e: Error| e.context(format!("unplug {port} from open vswitch"));
    let found = match command::run(&get, TIMEOUT) {
        Ok(found) => String::from_utf8_lossy(&found).trim().trim_matches('"').to_owned(),
        // Where the tool is not, nothing was plugged in with it.
        Err(e) if e.kind == ErrorKind::Unsupported => return Ok(()),
        Err(e) => return Err(what(e)),
    };
    match Mark::parse(&found) {
        Some(mark) if mark.daemon == daemon && mark.vm == *vm => {
            let del = ["ovs-vsctl", WAIT, "--if-exists", "del-port", port];
            command::run(&del, TIMEOUT).map(drop).map_err(what)
        }
        _ => Ok(()),
    }
}
