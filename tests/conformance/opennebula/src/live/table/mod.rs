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
    let themes = [life::PLAYS, changes::PLAYS, failures::PLAYS, reports::PLAYS, stores::PLAYS];
    let found = themes.into_iter().flatten().find(|play| play.name == name);
    found.unwrap_or_else(|| panic!("no scenario {name}"))
}

const OFF: (State, Lcm) = (State::Poweroff, Lcm::Init);
