//! VMs and their images come, are powered, moved and end.

use super::{Play, at};

pub(super) const PLAYS: &[Play] = &[
    Play { name: "00-infrastructure", turns: &[] },
    Play {
        name: "01-images",
        turns: &[
            // There is no such scheme; the user is told at once.
            at(9).refused("stat").answers("[one.image.allocate] Cannot parse image SIZE: "),
        ],
    },
    Play { name: "02-security-group", turns: &[] },
    Play { name: "03-deploy-by-scheduler", turns: &[] },
    Play {
        name: "05-power",
        turns: &[
            // No checkpoints yet: what they were needed for goes by power-off.
            at(7).refused("save"),
            at(8).instead(&[]),
            at(9).refused("save").then(&["onevm undeploy 2", "onevm resume 2"]),
            at(10).instead(&[]),
            at(11).instead(&["onevm deploy 2 host01 101"]),
            at(12).refused("save").then(&["onevm undeploy 2", "onevm resume 2"]),
            at(13).instead(&[]),
            at(14).instead(&["onevm deploy 2 host02 101"]),
            at(21).refused("save").then(&["onevm undeploy --hard 2"]),
        ],
    },
    Play {
        name: "06-terminate-from-states",
        turns: &[at(7).refused("save").then(&["onevm poweroff 4"])],
    },
    Play {
        name: "07-migrate",
        turns: &[
            // Neither by a checkpoint nor live yet: by power-off it gets there.
            at(3).refused("save").then(&["onevm migrate --poff 7 host02"]),
            at(6)
                .refused("premigrate")
                .undone("failmigrate")
                .then(&["onevm migrate --poff 7 host01"]),
            at(10).refused("save").then(&["onevm poweroff 7"]),
            at(11).off(),
            at(12).instead(&["onevm resume 7"]),
        ],
    },
];
