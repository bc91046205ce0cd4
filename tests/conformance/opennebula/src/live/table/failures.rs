//! What fails for a reason, and what an admin does then.

use super::super::effects::Really;
use super::super::fault::Fault;
use super::{Act, Play, at};
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
        name: "21-fail-stop-save-restore",
        turns: &[
            at(3).breaks(Fault::GuestHangs),
            at(4).breaks(Fault::DaemonGone),
            at(5).breaks(Fault::GuestHangs),
            at(6).breaks(Fault::DaemonGone),
            // From here on it does not run, whatever oned believes, until the host's agent tells.
            at(7).breaks(Fault::LinkTaken).really(Really::NothingRuns),
            at(9).refused("save").really(Really::NothingRuns),
            at(10).refused("save").really(Really::NothingRuns),
            at(11).breaks(Fault::DaemonGone).really(Really::NothingRuns),
            at(12).refused("reboot").really(Really::NothingRuns),
            at(13).refused("reset").really(Really::NothingRuns),
            at(14).refused("save").really(Really::NothingRuns).corrected(),
            at(15).cold("onevm resume 25").breaks(Fault::BridgeGone),
            at(16).cold("onevm resume 25").breaks(Fault::LinkMoved),
            at(17).cold("onevm resume 25"),
            at(19).breaks(Fault::DaemonDies("deploy.before-start")),
            at(21).cold("onevm undeploy 25").breaks(Fault::HostGone).whole(),
            at(22).cold("onevm recover --failure 25"),
            at(23).cold("onevm recover --retry 25"),
            at(25).cold("onevm deploy 25 host01 101").breaks(Fault::HostFull).whole(),
            at(26).cold("onevm recover --retry 25"),
            at(27).cold("onevm undeploy 25"),
            at(29).cold("onevm deploy 25 host01 101").breaks(Fault::BridgeGone),
            at(30).cold("onevm recover --retry 25"),
            // It stays where it was, and is there when it is to come back.
            at(31).breaks(Fault::HostGone).whole(),
            at(34).breaks(Fault::DaemonDies("deploy.before-start")),
            at(36).breaks(Fault::HostGone),
            at(40).breaks(Fault::HostGone),
            at(41).acts(&[Act::Remove]),
        ],
    },
    Play {
        name: "22-fail-migrate",
        turns: &[
            // Guests do not move while they run yet.
            at(3).refused("premigrate").undone("failmigrate"),
            at(4).refused("premigrate").undone("failmigrate"),
            at(5).refused("premigrate").undone("failmigrate"),
            at(6)
                .refused("premigrate")
                .undone("failmigrate")
                .then(&["onevm migrate --poff 27 host02"]),
            at(7)
                .refused("premigrate")
                .undone("failmigrate")
                .then(&["onevm migrate --poff 27 host01"]),
            at(8)
                .refused("premigrate")
                .undone("failmigrate")
                .then(&["onevm migrate --poff 27 host02"]),
            at(9).refused("save"),
            at(10).cold("onevm migrate --poff 27 host01").breaks(Fault::HostFull).whole(),
            at(11).cold("onevm recover --retry 27"),
            at(12).cold("onevm migrate --poff 27 host02").breaks(Fault::BridgeGone),
            at(13).cold("onevm recover --retry 27"),
            at(14).breaks(Fault::GuestHangs),
            at(15).breaks(Fault::DaemonDies("deploy.before-start")),
            at(18).breaks(Fault::HostGone),
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
