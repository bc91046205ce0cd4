//! What hosts report of VMs, and what oned makes of it (contract §6.6).

use super::Oned;
use crate::model::HostState;
use crate::state::{Lcm, State};
use crate::template::Template;

/// Reports are ignored for so long after a VM's last start or end, in seconds.
const WINDOW: u64 = 30;
/// How often `one_im_ssh` begins once more (`-r 3`).
const RETRIES: u32 = 3;

impl Oned {
    /// A `STATE_VM` message of a host, its payload in the template language.
    pub fn hear_states(&self, host: &str, payload: &str) {
        let told = Template::read(payload);
        let mut listed = Vec::new();
        for vm in told.vectors("VM") {
            let text = |key: &str| vm.get(key).map(String::as_str).unwrap_or_default();
            let Ok(id) = text("ID").parse::<u32>() else { continue };
            listed.push(id);
            self.hear_state(host, id, text("DEPLOY_ID"), text("STATE"));
        }
        let missing = told.text("MISSING_STATE");
        if told.text("SYNC_STATE").is_some_and(|sync| sync.eq_ignore_ascii_case("yes"))
            && let Some(missing) = missing
        {
            let there: Vec<u32> = {
                let model = self.model();
                let here = model.vms.values().filter(|vm| {
                    vm.state != State::Done
                        && vm.history.last().is_some_and(|place| place.host == host)
                        && matches!(
                            vm.lcm,
                            Lcm::Running
                                | Lcm::Unknown
                                | Lcm::Shutdown
                                | Lcm::ShutdownPoweroff
                                | Lcm::ShutdownUndeploy
                        )
                });
                here.map(|vm| vm.id).collect()
            };
            for id in there.into_iter().filter(|id| !listed.contains(id)) {
                self.hear_state(host, id, "", missing);
            }
        }
    }

    /// One VM of a report.
    fn hear_state(&self, host: &str, id: u32, deploy_id: &str, state: &str) {
        let mut model = self.model();
        let now = model.now;
        let Some(vm) = model.vms.get_mut(&id) else { return };
        let Some(place) = vm.history.last() else { return };
        if place.host != host || vm.state == State::Done {
            return;
        }
        let since = |moment: u64| now.saturating_sub(moment);
        let heard = since(place.rstime) >= WINDOW && since(place.retime) >= WINDOW;
        // By which name it goes is believed at any time (recorded: scenario 32, step 14).
        if state == "RUNNING" && !deploy_id.is_empty() && vm.deploy_id != deploy_id {
            vm.deploy_id = deploy_id.to_owned();
        }
        if !heard {
            return;
        }
        let alive = matches!((vm.state, vm.lcm), (State::Active, Lcm::Running | Lcm::Unknown));
        let ends = matches!(vm.lcm, Lcm::Shutdown | Lcm::ShutdownPoweroff | Lcm::ShutdownUndeploy);
        match state {
            "RUNNING" => {
                let ended = matches!(vm.state, State::Poweroff | State::Suspended);
                let lost =
                    vm.state == State::Active && (vm.lcm == Lcm::Unknown || vm.lcm.is_boot());
                if ended || lost {
                    if ended {
                        vm.place_mut().action = crate::model::Action::None;
                        // It goes on in a stay of its own.
                        let done = vm.place().action;
                        vm.turn(done, now);
                    }
                    let place = vm.place_mut();
                    (place.rstime, place.retime) = (now, 0);
                    vm.go(State::Active, Lcm::Running);
                }
            }
            "POWEROFF" if alive => end(vm, State::Poweroff, now),
            "SUSPENDED" if alive => end(vm, State::Suspended, now),
            "FAILURE" if alive => vm.go(State::Active, Lcm::Unknown),
            "POWEROFF" if ends => {
                drop(model);
                self.with(id, |vm, now| vm.place_mut().retime = now);
            }
            _ => {}
        }
    }

    /// An `EXEC_VM` message: what became of a command.
    pub fn hear_commands(&self, payload: &str) {
        for vm in Template::read(payload).vectors("VM") {
            let Some(id) = vm.get("ID").and_then(|id| id.parse::<u32>().ok()) else { continue };
            let mut model = self.model();
            let Some(found) = model.vms.get_mut(&id) else { continue };
            for told in found.template.vectors_mut("QEMU_GA_EXEC") {
                let keys = vm.iter().filter(|(key, _)| *key != "ID");
                told.extend(keys.map(|(key, value)| (key.clone(), value.clone())));
            }
        }
    }

    /// A host is to be monitored (`START_MONITOR`): `once` is one try. If none works the host is in error, and its VMs
    /// are unknown.
    ///
    /// # Errors
    /// What the last try said.
    pub fn begin_monitoring<T>(
        &self,
        host: &str,
        mut once: impl FnMut() -> Result<T, String>,
    ) -> Result<T, String> {
        let mut begun = once();
        for _ in 0..RETRIES {
            if begun.is_err() {
                begun = once();
            }
        }
        let state = if begun.is_ok() { HostState::Monitored } else { HostState::Error };
        self.host_state(host, state);
        if begun.is_err() {
            self.lose_host(host);
        }
        begun
    }

    pub(super) fn host_state(&self, host: &str, state: HostState) {
        for found in self.model().hosts.values_mut().filter(|found| found.name == host) {
            found.state = state;
        }
    }

    /// A host is not heard of any more: what it had is unknown.
    pub fn lose_host(&self, host: &str) {
        for vm in self.model().vms.values_mut() {
            let there = vm.history.last().is_some_and(|place| place.host == host);
            if there && vm.lcm == Lcm::Running {
                vm.go(State::Active, Lcm::Unknown);
            }
        }
    }
}

fn end(vm: &mut crate::model::Vm, state: State, now: u64) {
    vm.place_mut().retime = now;
    vm.go(state, Lcm::Init);
}
