//! Hosts, and what they report of VMs.

use super::super::effects::Really;
use super::super::fault::Fault;
use super::{Act, OFF, Play, at};

pub(super) const PLAYS: &[Play] = &[
    Play { name: "25-hosts", turns: &[] },
    Play {
        name: "26-monitor-driven-states",
        turns: &[
            at(3).acts(&[Act::Kill]).really(Really::NothingRuns),
            at(4).acts(&[Act::Start]),
            // Nobody suspends guests yet.
            at(5).acts(&[Act::Kill]).ends(OFF.0, OFF.1),
            at(6).acts(&[Act::Start]).ends(OFF.0, OFF.1).really(Really::Runs),
            at(7).ends(OFF.0, OFF.1).really(Really::Runs),
            // It is not on the host any more.
            at(14).acts(&[Act::Kill, Act::Forget]),
        ],
    },
    Play {
        name: "32-monitor-driven-states-after-30s",
        turns: &[
            at(3).acts(&[Act::Kill]),
            at(4).acts(&[Act::Start]),
            // Nobody suspends guests yet.
            at(5).acts(&[Act::Kill]).ends(OFF.0, OFF.1),
            at(6).acts(&[Act::Start]),
            at(7).acts(&[Act::Fail]),
            at(8).acts(&[Act::Clear, Act::Start]),
            at(9).acts(&[Act::Silence]),
            at(10).acts(&[Act::Speak, Act::Kill, Act::Lose]),
            at(11).acts(&[Act::Find, Act::Start]),
        ],
    },
    Play { name: "36-host-probe-failure", turns: &[at(2).breaks(Fault::DaemonGone)] },
];
