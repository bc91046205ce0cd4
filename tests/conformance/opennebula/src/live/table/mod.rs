//! Scenarios, and in which of their steps something breaks or our drivers do not do yet what is asked.
//!
//! One file for each theme; in it, one entry for each scenario, in the order of their numbers.

mod changes;
mod failures;
mod life;
mod reports;
mod stores;

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
    /// It ends while somebody is in its disk, which cannot be let go: it fails.
    Fail,
    /// Whoever was there leaves, and what had failed is cleared.
    Clear,
    /// The host's daemon is killed: of no guest anything is told.
    Silence,
    /// There is a daemon again.
    Speak,
    /// The host remembers nothing of it any more.
    Lose,
    /// It remembers.
    Find,
    /// What is left of its disks on the host is removed by hand.
    Remove,
}

/// What oned knows.
#[derive(Debug, Clone, Copy)]
pub enum Known {
    /// A snapshot of the VM: its number, the driver's name for it.
    Snapshot(&'static str, &'static str),
    /// A snapshot of the VM's first disk.
    DiskSnapshot(u32),
    /// A snapshot of the image.
    ImageSnapshot(u32),
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
    /// Or this one of the transfer driver, which takes the disk back that the first call made.
    pub taken_back: Option<&'static str>,
    /// Another command than the recorded one, and its calls, each in one line.
    pub asked: Option<(&'static str, &'static [&'static str])>,
    /// What oned knows that it would not, since our drivers refused to make it.
    pub knows: Option<Known>,
    /// A script that is not called, since its VM does not run.
    pub spares: Option<&'static str>,
    /// Whether what fails is the last of its kind, with which everything moves: calls for disks only prepare it.
    pub whole: bool,
    /// What is asked in place of what was, since that goes on from what is refused. Nothing of it is compared.
    pub instead: Option<&'static [&'static str]>,
    /// What is asked in place of what needs checkpoints: the same with power-offs, which is compared with that.
    pub cold: Option<&'static str>,
    /// Whether the host's agent then tells oned what really is.
    pub corrected: bool,
    /// What is asked besides, so that the scenario goes on from where it went on.
    pub then: &'static [&'static str],
    /// Where its VM ends.
    pub ends: Option<(State, Lcm)>,
    /// How the user is refused.
    pub answers: Option<&'static str>,
    /// Where its image ends.
    pub image: Option<ImageState>,
    /// What is done to its guest before.
    pub acts: &'static [Act],
    /// What the command in the guest printed, as its host's agent tells.
    pub output: Option<&'static str>,
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

    const fn taken_back(self, script: &'static str) -> Self {
        Self { taken_back: Some(script), ..self }
    }

    const fn asked(self, command: &'static str, calls: &'static [&'static str]) -> Self {
        Self { asked: Some((command, calls)), ..self }
    }

    const fn knows(self, known: Known) -> Self {
        Self { knows: Some(known), ..self }
    }

    /// The VM stays powered off.
    const fn off(self) -> Self {
        Self { ends: Some(OFF), ..self }
    }

    const fn spares(self, script: &'static str) -> Self {
        Self { spares: Some(script), ..self }
    }

    const fn whole(self) -> Self {
        Self { whole: true, ..self }
    }

    const fn cold(self, command: &'static str) -> Self {
        Self { cold: Some(command), ..self }
    }

    const fn corrected(self) -> Self {
        Self { corrected: true, ..self }
    }

    const fn output(self, text: &'static str) -> Self {
        Self { output: Some(text), ..self }
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
        taken_back: None,
        asked: None,
        knows: None,
        spares: None,
        whole: false,
        instead: None,
        cold: None,
        corrected: false,
        then: &[],
        ends: None,
        answers: None,
        image: None,
        acts: &[],
        output: None,
        really: None,
    }
}

/// The scenario of that name.
///
/// # Panics
/// There is none.
#[must_use]
pub fn play(name: &str) -> &'static Play {
    let themes = [life::PLAYS, changes::PLAYS, failures::PLAYS, reports::PLAYS, stores::PLAYS];
    let found = themes.into_iter().flatten().find(|play| play.name == name);
    found.unwrap_or_else(|| panic!("no scenario {name}"))
}

const OFF: (State, Lcm) = (State::Poweroff, Lcm::Init);
