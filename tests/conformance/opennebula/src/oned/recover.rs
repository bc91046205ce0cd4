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
                // A failed one is tried again; of one under way the same is begun once more.
                let again = lcm.of_failure().unwrap_or(lcm);
                self.with(id, |vm, _| vm.go(State::Active, again));
                self.carry_on(id);
            }
            "success" | "failure" => {
                let failed = lcm.of_failure();
                if how == "failure" && failed.is_some() {
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
