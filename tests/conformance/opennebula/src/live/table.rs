//! Scenarios, and in which of their steps something breaks or our drivers do not do yet what is asked.

use super::effects::Really;
use super::fault::Fault;
use crate::model::ImageState;
use crate::state::{Lcm, State};

/// A scenario.
#[derive(Debug)]
pub struct Play {
    /// Its recording.
    pub name: &'static str,
    /// Steps that are not as recorded.
    pub turns: &'static [Turn],
}

/// What is done to a guest behind oned's back.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// Its first process is killed.
    Kill,
    /// It is started.
    Start,
    /// It is forgotten.
    Forget,
}

/// A step that is not as recorded.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Its number.
    pub step: u32,
    /// What breaks right before the call that failed on purpose.
    pub fault: Option<Fault>,
    /// The script at which our drivers refuse: nothing is called after it.
    pub refuses: Option<&'static str>,
    /// But for this one, which undoes it, with the same words.
    pub undone: Option<&'static str>,
    /// What is asked in place of what was, since that goes on from what is refused. Nothing of it is compared.
    pub instead: Option<&'static [&'static str]>,
    /// What is asked besides, so that the scenario goes on from where it went on.
    pub then: &'static [&'static str],
    /// Where its VM ends.
    pub ends: Option<(State, Lcm)>,
    /// How the user is refused.
    pub answers: Option<&'static str>,
    /// Where its image ends.
    pub image: Option<ImageState>,
    /// What is done to its guest.
    pub acts: &'static [Act],
    /// What is not as oned believes.
    pub really: Option<Really>,
}

impl Turn {
    /// As recorded.
    pub const EMPTY: Self = at(0);

    const fn breaks(self, fault: Fault) -> Self {
        Self { fault: Some(fault), ..self }
    }

    /// The VM runs on.
    const fn refused(self, script: &'static str) -> Self {
        Self { refuses: Some(script), ends: Some((State::Active, Lcm::Running)), ..self }
    }

    const fn undone(self, script: &'static str) -> Self {
        Self { undone: Some(script), ..self }
    }

    const fn then(self, commands: &'static [&'static str]) -> Self {
        Self { then: commands, ..self }
    }

    const fn instead(self, commands: &'static [&'static str]) -> Self {
        Self { instead: Some(commands), ..self }
    }

    const fn ends(self, state: State, lcm: Lcm) -> Self {
        Self { ends: Some((state, lcm)), ..self }
    }

    const fn acts(self, acts: &'static [Act]) -> Self {
        Self { acts, ..self }
    }

    const fn really(self, really: Really) -> Self {
        Self { really: Some(really), ..self }
    }

    const fn image(self, state: ImageState) -> Self {
        Self { image: Some(state), ..self }
    }

    const fn answers(self, text: &'static str) -> Self {
        Self { answers: Some(text), ..self }
    }
}

const fn at(step: u32) -> Turn {
    Turn {
        step,
        fault: None,
        refuses: None,
        undone: None,
        instead: None,
        then: &[],
        ends: None,
        answers: None,
        image: None,
        acts: &[],
        really: None,
    }
}

/// The scenario of that name.
///
/// # Panics
/// There is none.
#[must_use]
pub fn play(name: &str) -> &'static Play {
    PLAYS.iter().find(|play| play.name == name).unwrap_or_else(|| panic!("no scenario {name}"))
}

const OFF: (State, Lcm) = (State::Poweroff, Lcm::Init);

const PLAYS: &[Play] = &[
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
    Play { name: "11-nic-hotplug", turns: &[] },
    Play { name: "12-resize-updateconf-exec", turns: &[] },
    Play { name: "14-exec", turns: &[at(4).breaks(Fault::DaemonGone)] },
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
];
