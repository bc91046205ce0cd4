//! What is done on hosts besides what oned asks, and what their agents tell of it.

use std::sync::Arc;

use ocivisor_tests::{PATIENCE, wait_for_option};

use super::table::{Act, Turn};
use super::{Live, failing};
use crate::drivers::unbase64;
use crate::model::Vm;
use crate::node::{Node, Occupant};
use crate::recording::Step;
use crate::replay::at;
use crate::template::Template;

/// What a host's agent says of the guest to which something was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// This word.
    Word(&'static str),
    /// Nothing, with all others: it is not there.
    Absent,
    /// Nothing of anybody: its daemon is away.
    Silence,
}

/// What there is of acts that last.
#[derive(Debug)]
pub(super) struct State {
    told: Told,
    occupant: Option<Occupant>,
}

impl State {
    pub(super) const fn new() -> Self {
        Self { told: Told::Word("RUNNING"), occupant: None }
    }
}

impl Live {
    /// Carries acts out.
    pub(super) fn act(&mut self, node: &Node, vm: u32, acts: &[Act]) {
        let name = format!("one-{vm}");
        let ended = || {
            let running = || node.cli(&["list", "--state", "running", "-q"]);
            let ended = || (!running().contains(&name)).then_some(());
            wait_for_option(PATIENCE, ended).expect("its end is seen");
        };
        for act in acts {
            match act {
                Act::Kill => {
                    node.kill_guest(&name);
                    self.acted.told = Told::Word("POWEROFF");
                }
                Act::Start => {
                    node.cli(&["start", &name]);
                    self.acted.told = Told::Word("RUNNING");
                }
                Act::Forget => {
                    ended();
                    node.cli(&["undefine", &name]);
                    self.acted.told = Told::Absent;
                }
                Act::Fail => {
                    self.acted.occupant = Some(node.occupy(&name));
                    node.kill_guest(&name);
                    self.acted.told = Told::Word("FAILURE");
                }
                Act::Clear => {
                    self.acted.occupant = None;
                    node.cli(&["destroy", &name]);
                    self.acted.told = Told::Word("POWEROFF");
                }
                Act::Silence => {
                    node.kill_daemon();
                    self.acted.told = Told::Silence;
                }
                Act::Speak => node.start_daemon(),
                Act::Lose => {
                    ended();
                    node.lose(&name);
                    self.acted.told = Told::Absent;
                }
                Act::Find => {
                    node.find(&name);
                    self.acted.told = Told::Word("POWEROFF");
                }
                Act::Remove => {
                    let stores = node.dir().join("datastores");
                    for store in std::fs::read_dir(stores).unwrap().filter_map(Result::ok) {
                        let left = store.path().join(vm.to_string());
                        let _none = std::fs::remove_dir_all(left);
                    }
                }
            }
        }
    }

    /// Whether nobody can look at guests.
    pub(super) fn is_silent(&self) -> bool {
        self.acted.told == Told::Silence
    }

    /// A host is monitored.
    fn follow(&mut self, host: &str) {
        if !self.monitors.contains_key(host) {
            let monitor = self.cloud.monitor(host);
            self.monitors.insert(host.to_owned(), monitor);
        }
    }

    /// What a host's agent says from a recorded moment to the next: where the probe was made to say something, the same
    /// was brought about.
    pub(super) fn report(&mut self, step: &Step, turn: &Turn, next: Option<f64>) {
        let Some((host, moment, _)) = step.probes.first() else { return };
        self.follow(host);
        self.cloud.oned.model().now = at(*moment);
        let node = Arc::clone(self.cloud.node(host));
        match step.vms.first() {
            Some((vm, ..)) => self.act(&node, *vm, turn.acts),
            None => self.acted.told = Told::Absent,
        }
        let as_recorded = step.vms.iter().all(|(id, state, lcm, _)| {
            let vm = &self.cloud.oned.model().vms[id];
            (vm.state.number(), vm.lcm.number()) == (*state, *lcm)
        });
        // The first may have been on its way before: that matters where something is to change.
        let twice = |host: &str| (0..2).for_each(|_| self.hear(host));
        if !turn.acts.is_empty() {
            twice(host);
        }
        // What was not changed is told once more, late.
        self.cloud.oned.model().now = next.map_or(at(*moment) + 5, at).saturating_sub(1);
        if as_recorded || !turn.acts.is_empty() {
            self.hear(host);
        } else {
            twice(host);
        }
    }

    /// Waits until a host's agent has told of all guests once more.
    fn hear(&self, host: &str) {
        let monitor = &self.monitors[host];
        let _before = monitor.take();
        if self.acted.told == Told::Silence {
            let _heard = monitor.hears("BEACON_HOST", "");
            return;
        }
        let _heard = monitor.hears_that("STATE_VM", "what was done", |payload| {
            payload.contains("SYNC_STATE")
                && match self.acted.told {
                    Told::Word(word) => payload.contains(&format!("STATE=\"{word}\"")),
                    _ => !payload.contains("DEPLOY_ID"),
                }
        });
    }

    /// A host's agent tells what really is of a VM that oned believes to run: it is not there.
    pub(super) fn correct(&mut self, vm: u32) {
        let host = self.cloud.oned.model().vms[&vm].place().host.clone();
        // Reports are not heard for a while after it began.
        self.cloud.oned.wait(60);
        let before = std::mem::replace(&mut self.acted.told, Told::Absent);
        let followed = self.monitors.contains_key(&host);
        self.follow(&host);
        (0..2).for_each(|_| self.hear(&host));
        self.acted.told = before;
        if !followed && self.monitors.remove(&host).is_some() {
            self.cloud.stop_monitoring(&host);
        }
    }

    /// A host that is to be monitored no more: it was till then, whether a scenario told of it or not.
    pub(super) fn follow_before(&mut self, command: &str) {
        let host = command.strip_prefix("onehost offline ").unwrap_or_default();
        if self.cloud.nodes.iter().any(|node| node.name == host) {
            self.follow(host);
            let _begun = self.cloud.oned.drivers.take_calls();
        }
        // Of one that is deleted nobody knows afterwards.
        let host = command.strip_prefix("onehost delete ").unwrap_or_default();
        if self.monitors.remove(host).is_some() {
            self.cloud.stop_monitoring(host);
        }
    }

    /// What a real oned's monitor does when a host's state is changed.
    pub(super) fn tell_host(&mut self, step: &Step) {
        let mut words = step.command.split_whitespace().skip(1);
        let (action, host) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !self.cloud.nodes.iter().any(|node| node.name == host) {
            return;
        }
        match action {
            "offline" if self.monitors.remove(host).is_some() => self.cloud.stop_monitoring(host),
            "enable" | "forceupdate" => {
                self.monitors.remove(host);
                let cloud = &self.cloud;
                match cloud.oned.begin_monitoring(host, || cloud.try_to_monitor(host)) {
                    Ok(monitor) => {
                        self.monitors.insert(host.to_owned(), monitor);
                        if self.cloud.node(host).agent().is_none() {
                            self.differences.push(format!("{host} has no agent"));
                        }
                    }
                    // The element that could not be told says why.
                    Err(why)
                        if failing(step).is_some() && why.contains("ocivisord does not answer") => {
                    }
                    Err(why) => self.differences.push(format!("{host} is not monitored: {why}")),
                }
            }
            "sync" => self.cloud.oned.drivers.place.sync(host),
            _ => {}
        }
    }

    /// What came of a command in a guest is told by its host's agent.
    pub(super) fn compare_output(&mut self, step: &Step, wanted: &str) {
        let Some((vm, ..)) = step.vms.first() else { return };
        let host = self.cloud.oned.model().vms[vm].place().host.clone();
        self.follow(&host);
        let output = |vm: &Vm| {
            let told = vm.template.vectors("QEMU_GA_EXEC").next()?;
            let done = told.get("STATUS").is_some_and(|status| status == "DONE");
            told.get("STDOUT").filter(|_| done).and_then(|text| unbase64(text))
        };
        let seen = wait_for_option(PATIENCE, || output(&self.cloud.oned.model().vms[vm]));
        let seen = seen.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        if seen.as_deref() != Some(wanted) {
            self.differences.push(format!("the command printed {seen:?}, not {wanted:?}"));
        }
    }

    /// By which names recorded probes called a VM.
    pub(super) fn names_in_probes(step: &Step, vm: u32) -> Vec<String> {
        let told = step.probes.iter().map(|(_, _, text)| Template::read(text));
        let mut names = Vec::new();
        for told in told {
            let own = told.vectors("VM").filter(|found| found.get("ID") == Some(&vm.to_string()));
            names.extend(own.filter_map(|found| found.get("DEPLOY_ID").cloned()));
        }
        names
    }
}
