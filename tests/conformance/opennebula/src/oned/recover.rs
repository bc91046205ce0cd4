//! What an admin does about a VM that is stuck or failed (`onevm recover`).

use super::{Oned, Reply, transfer};
use crate::drivers::Answer;
use crate::model::Action;
use crate::state::{Lcm, State};

impl Oned {
    /// `onevm recover --retry|--success|--failure|--delete|--recreate`.
    ///
    /// # Errors
    /// There is no such way.
    pub fn recover(&self, id: u32, how: &str) -> Reply {
        let lcm = self.model().vms.get(&id).ok_or("no VM")?.lcm;
        match how {
            "retry" => {
                let state = self.model().vms[&id].state;
                if state != State::Active {
                    let state = crate::state::shown(state, lcm);
                    let why = format!("Could not perform a retry on VM {id}, wrong state {state}.");
                    return Err(format!("[one.vm.recover] {why}"));
                }
                // A failed one is tried again; of one under way the same is begun once more.
                let again = lcm.of_failure().unwrap_or(lcm);
                self.with(id, |vm, _| vm.go(State::Active, again));
                self.carry_on(id);
            }
            "success" | "failure" => {
                let failed = lcm.of_failure();
                // A move of what rests is given up: it rests where it was.
                let rests = match lcm {
                    Lcm::PrologMigratePoweroffFailure => Some(State::Poweroff),
                    Lcm::PrologMigrateSuspendFailure => Some(State::Suspended),
                    _ => None,
                };
                if how == "failure" && failed.is_some() {
                    if let Some(state) = rests {
                        self.with(id, |vm, now| {
                            vm.turn_back(now);
                            vm.go(state, Lcm::Init);
                        });
                    }
                    return Ok(String::new());
                }
                let answer = match how {
                    // oned never heard the name that the driver gives.
                    "success" => Answer::Success(self.model().vms[&id].deploy_id.clone()),
                    _ => Answer::Failure("-".to_owned()),
                };
                self.conclude(id, failed.unwrap_or(lcm), "", &answer);
                self.carry_on(id);
            }
            "delete" | "recreate" => self.clean_up(id, lcm, how == "recreate"),
            other => return Err(format!("no way to recover by {other}")),
        }
        Ok(String::new())
    }

    fn clean_up(&self, id: u32, lcm: Lcm, again: bool) {
        let next = if again { Lcm::CleanupResubmit } else { Lcm::CleanupDelete };
        let action = if again { Action::DeleteRecreate } else { Action::Delete };
        if self.model().vms[&id].history.is_empty() {
            self.with(id, |vm, _| vm.go(State::Done, Lcm::Init));
            return;
        }
        self.with(id, |vm, _| {
            vm.place_mut().action = action;
            vm.go(State::Active, next);
        });
        if lcm.is_transfer() {
            self.drivers.cancel("one_tm", id);
            let (lines, seq) = {
                let model = self.model();
                let vm = &model.vms[&id];
                let machine = Self::machine_of(vm);
                (transfer::epilog(&model, vm, &machine, false), vm.place().seq)
            };
            let answer = self.transfer_file(id, seq, "delete", &lines);
            self.conclude(id, next, "CLEANUP", &answer);
        } else if self.model().vms[&id].left_at.is_none() {
            self.drivers.cancel("one_vmm_exec", id);
        }
        self.carry_on(id);
        if again {
            self.with(id, |vm, _| vm.deploy_id.clear());
            self.schedule(id);
        }
    }
}
