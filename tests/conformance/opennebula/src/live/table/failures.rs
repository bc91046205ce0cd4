//! What fails for a reason, and what an admin does then.

use super::super::effects::Really;
use super::super::fault::Fault;
use super::{Play, at};
use crate::model::ImageState;

pub(super) const PLAYS: &[Play] = &[
    Play {
        name: "20-fail-deploy",
        turns: &[
            at(2).breaks(Fault::HostFull),
            at(6).breaks(Fault::HostGone),
            at(11).breaks(Fault::HostGone),
            at(15).breaks(Fault::BridgeTaken),
            at(19).breaks(Fault::DaemonDies("deploy.before-start")),
            at(23).breaks(Fault::BridgeGone),
            at(24).really(Really::NothingRuns),
            at(27).breaks(Fault::LinkMoved),
        ],
    },
    Play {
        name: "24-fail-images",
        turns: &[
            at(1).breaks(Fault::RegistryGone),
            at(2).breaks(Fault::RegistryGone),
            // Odd answers, which are none of our drivers'.
            at(4).image(ImageState::Ready),
            at(8)
                .breaks(Fault::RegistryGone)
                .refused("stat")
                .answers("[one.image.allocate] Cannot parse image SIZE: "),
            at(9).breaks(Fault::StoreFull),
            at(10).breaks(Fault::StoreReadOnly),
            at(12).breaks(Fault::StoreReadOnly),
            at(13).breaks(Fault::StoreReadOnly),
        ],
    },
];
