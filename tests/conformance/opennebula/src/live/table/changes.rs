//! What is changed of a VM: disks, snapshots, NICs, capacity, context; commands in it.

use super::super::fault::Fault;
use super::{Play, at};

pub(super) const PLAYS: &[Play] = &[
    Play { name: "11-nic-hotplug", turns: &[] },
    Play { name: "12-resize-updateconf-exec", turns: &[] },
    Play { name: "14-exec", turns: &[at(4).breaks(Fault::DaemonGone)] },
];
