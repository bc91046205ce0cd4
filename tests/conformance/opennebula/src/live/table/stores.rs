//! Datastores that are shared or mixed, and odd images.

use super::{Play, at};
use crate::state::{Lcm, State};

pub(super) const PLAYS: &[Play] = &[
    Play {
        name: "28-datastores-shared-and-mixed",
        turns: &[
            at(6).refused("save").then(&["onevm undeploy 36", "onevm resume 36"]),
            at(7).instead(&[]),
            at(8).instead(&["onevm deploy 36 host02 103"]),
            at(9).refused("save").then(&["onevm migrate --poff 36 host01"]),
            at(10)
                .refused("premigrate")
                .undone("failmigrate")
                .then(&["onevm migrate --poff 36 host02"]),
            // Not of a disk that a guest runs on.
            at(14).refused("cpds"),
            at(18).refused("snap_create_live"),
            at(19).refused("save").then(&["onevm migrate --poff 37 host02"]),
            at(20)
                .refused("premigrate")
                .undone("failmigrate")
                .then(&["onevm migrate --poff 37 host01"]),
            at(28).refused("save").then(&["onevm migrate --poff 38 host01 106"]),
        ],
    },
    Play {
        name: "30-two-datastores-full",
        turns: &[
            at(3).refused("save").then(&["onevm undeploy 41", "onevm resume 41"]),
            at(4).instead(&[]),
            at(5).cold("onevm deploy 41 host02 101"),
            at(6).cold("onevm migrate --poff 41 host01"),
            at(7)
                .refused("premigrate")
                .undone("failmigrate")
                .then(&["onevm migrate --poff 41 host02"]),
        ],
    },
    Play {
        name: "35-odd-image-sources",
        turns: &[
            // Nothing can be run from an empty data block, nor from nothing.
            at(8).refused("deploy").ends(State::Active, Lcm::BootFailure),
            at(9).spares("cancel"),
            at(11).refused("deploy").ends(State::Active, Lcm::BootFailure),
            at(12).instead(&[]),
        ],
    },
];
