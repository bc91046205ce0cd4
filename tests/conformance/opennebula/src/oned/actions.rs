//! What users ask of VMs.

use super::{Oned, Reply};
use crate::drivers::Answer;
use crate::model::{Action, Datastore, History, Vm};
use crate::state::{Lcm, State, shown};
use crate::template::Vector;

impl Oned {
    /// `onevm deploy`: also of a VM that was stopped or undeployed and waits again.
    ///
    /// # Errors
    /// What oned would say.
    pub fn deploy(&self, id: u32, host: &str, store: Option<&str>) -> Reply {
        {
            let mut model = self.model();
            let now = model.now;
            let host = model.host(host).cloned().ok_or(format!("no host {host}"))?;
            let before = model.vms[&id].history.last().map(|place| place.store);
            let store = match store {
                Some(store) => model.store(store),
                None => before.and_then(|store| model.stores.get(&store)),
            };
            let store = store.cloned().ok_or("no datastore")?;
            let vm = &model.vms[&id];
            for disk in vm.template.vectors("DISK").filter(|disk| disk.contains_key("IMAGE")) {
                let of_image = &model.stores[&disk["DATASTORE_ID"].parse().map_err(|_| "")?];
                if !of_image.goes_with(&store.tm_mad) {
                    let why = "Image Datastore does not support transfer mode";
                    return Err(format!("[one.vm.deploy] {why}: {}", store.tm_mad));
                }
            }
            let vm = model.vms.get_mut(&id).ok_or("no VM")?;
            if !matches!(vm.state, State::Hold | State::Pending) {
                return Err(unavailable("deploy", vm, "one.vm.deploy"));
            }
            let seq = vm.history.last().map_or(0, |last| last.seq + 1);
            vm.history.push(History {
                seq,
                host: host.name,
                host_id: host.id,
                vm_mad: host.vm_mad,
                tm_mad: store.tm_mad.clone(),
                store: store.id,
                action: Action::None,
                stime: now,
                etime: 0,
                pstime: now,
                petime: 0,
                rstime: 0,
                retime: 0,
            });
            placed(vm, &store);
            let lcm = match vm.waits_from {
                Some(State::Stopped) => Lcm::PrologResume,
                Some(State::Undeployed) => Lcm::PrologUndeploy,
                _ => Lcm::Prolog,
            };
            (vm.waits_from, vm.left_at) = (None, None);
            vm.go(State::Active, lcm);
        }
        self.carry_on(id);
        Ok(String::new())
    }

    /// Ends or pauses a VM: `poweroff`, `suspend`, `stop`, `undeploy`, `terminate`, `reboot`, `resume`.
    ///
    /// # Errors
    /// Its state does not allow it.
    pub fn action(&self, id: u32, name: &str, hard: bool) -> Reply {
        let (state, lcm, now) = {
            let model = self.model();
            let vm = model.vms.get(&id).ok_or(format!("no VM {id}"))?;
            (vm.state, vm.lcm, model.now)
        };
        let runs = state == State::Active && lcm == Lcm::Running;
        let lost = state == State::Active && lcm == Lcm::Unknown;
        let either = |soft: Action, hard_one: Action| if hard { hard_one } else { soft };
        let begin = |lcm: Lcm, action: Action| {
            self.with(id, |vm, now| {
                vm.hard = hard;
                let place = vm.place_mut();
                (place.action, place.etime) = (action, 0);
                let _ = now;
                vm.go(State::Active, lcm);
            });
        };
        match name {
            "poweroff" if runs || lost => {
                begin(Lcm::ShutdownPoweroff, either(Action::Poweroff, Action::PoweroffHard));
            }
            "suspend" if runs => begin(Lcm::SaveSuspend, Action::Suspend),
            "stop" if runs => begin(Lcm::SaveStop, Action::Stop),
            "undeploy" if runs => {
                begin(Lcm::ShutdownUndeploy, either(Action::Undeploy, Action::UndeployHard));
            }
            "undeploy" if state == State::Poweroff => {
                begin(Lcm::EpilogUndeploy, Action::Undeploy);
            }
            "reboot" if runs => return self.reboot(id, hard),
            "resume" => return self.resume(id, now),
            "terminate" => return self.terminate(id, hard),
            _ => {
                let model = self.model();
                return Err(unavailable(name, &model.vms[&id], "one.vm.action"));
            }
        }
        self.carry_on(id);
        Ok(String::new())
    }

    fn reboot(&self, id: u32, hard: bool) -> Reply {
        let word = if hard { "RESET" } else { "REBOOT" };
        let answer = self.drivers.act(word, &self.plain_job(id));
        // Of a soft one only the log tells (recorded: scenario 21, steps 12 and 13).
        if let (Answer::Failure(text), true) = (answer, hard) {
            self.with(id, |vm, _| vm.fails(word, &text));
        }
        Ok(String::new())
    }

    fn resume(&self, id: u32, now: u64) -> Reply {
        let again = self.with(id, |vm, _| match vm.state {
            State::Poweroff | State::Suspended => {
                let lcm = match vm.state {
                    State::Poweroff => Lcm::BootPoweroff,
                    _ => Lcm::BootSuspended,
                };
                let done = vm.place().action;
                vm.turn(done, now);
                vm.place_mut().action = Action::Resume;
                vm.go(State::Active, lcm);
                Ok(true)
            }
            State::Stopped | State::Undeployed => {
                vm.waits_from = Some(vm.state);
                vm.go(State::Pending, Lcm::Init);
                Ok(false)
            }
            State::Hold => {
                vm.go(State::Pending, Lcm::Init);
                Ok(false)
            }
            _ => Err(unavailable("resume", vm, "one.vm.action")),
        })?;
        if again {
            self.carry_on(id);
        }
        Ok(String::new())
    }

    fn terminate(&self, id: u32, hard: bool) -> Reply {
        let action = if hard { Action::TerminateHard } else { Action::Terminate };
        let (state, lcm) = self.with(id, |vm, _| (vm.state, vm.lcm));
        match (state, lcm) {
            (State::Hold | State::Pending, _) if self.model().vms[&id].history.is_empty() => {
                self.with(id, |vm, now| {
                    vm.etime = now;
                    vm.go(State::Done, Lcm::Init);
                });
                return Ok(String::new());
            }
            (State::Active, Lcm::Running | Lcm::Unknown) => self.with(id, |vm, _| {
                vm.hard = hard;
                vm.place_mut().action = action;
                vm.go(State::Active, Lcm::Shutdown);
            }),
            (State::Poweroff | State::Suspended | State::Stopped | State::Undeployed, _) => {
                self.with(id, |vm, _| {
                    vm.left_at = match vm.state {
                        State::Stopped | State::Undeployed => {
                            Some(crate::place::FRONTEND.to_owned())
                        }
                        _ => None,
                    };
                    vm.place_mut().action = action;
                    vm.go(State::Active, Lcm::Epilog);
                });
            }
            // Nothing of a failed boot is known to run.
            (State::Active, _) => return self.recover(id, "delete"),
            _ => {
                let model = self.model();
                return Err(unavailable("terminate", &model.vms[&id], "one.vm.action"));
            }
        }
        self.carry_on(id);
        Ok(String::new())
    }

    /// `onevm migrate`: live, by a checkpoint, or by power-off.
    ///
    /// # Errors
    /// oned does not allow it.
    pub fn migrate(&self, id: u32, host: &str, store: Option<&str>, how: &str) -> Reply {
        {
            let mut model = self.model();
            let now = model.now;
            let host = model.host(host).cloned().ok_or(format!("no host {host}"))?;
            let store = match store {
                Some(store) => model.store(store).cloned(),
                None => model.stores.get(&model.vms[&id].place().store).cloned(),
            };
            let store = store.ok_or("no datastore")?;
            let vm = model.vms.get_mut(&id).ok_or("no VM")?;
            let (other_host, other_store) =
                (vm.place().host != host.name, vm.place().store != store.id);
            if how == "live" && other_host && other_store {
                let why = "Cannot live migrate host and datastore at the same time.";
                return Err(format!("[one.vm.migrate] {why}"));
            }
            if !other_host && !other_store {
                let where_ = format!("host [{}] and datastore [{}]", host.id, store.id);
                return Err(format!("[one.vm.migrate] VM is already running on {where_}"));
            }
            let (lcm, action) = match (vm.state, vm.lcm, how) {
                (State::Active, Lcm::Running, "live") => (Lcm::Migrate, Action::LiveMigrate),
                (State::Active, Lcm::Running, "poff") => (Lcm::SaveMigrate, Action::PoffMigrate),
                (State::Active, Lcm::Running, "poff-hard") => {
                    (Lcm::SaveMigrate, Action::PoffHardMigrate)
                }
                (State::Active, Lcm::Running, _) => (Lcm::SaveMigrate, Action::Migrate),
                (State::Poweroff, ..) => (Lcm::PrologMigratePoweroff, Action::Migrate),
                (State::Suspended, ..) => (Lcm::PrologMigrateSuspend, Action::Migrate),
                _ => return Err(unavailable("migrate", vm, "one.vm.migrate")),
            };
            let rests = vm.state != State::Active;
            let kept = if rests { vm.place().action } else { action };
            vm.turn(kept, now);
            let place = vm.place_mut();
            (place.host, place.host_id) = (host.name, host.id);
            (place.store, place.tm_mad) = (store.id, store.tm_mad.clone());
            // Of a live one the new stay has no action yet.
            let begun = if lcm == Lcm::Migrate { Action::None } else { action };
            (place.pstime, place.action) = (now, begun);
            vm.by_poweroff = how.starts_with("poff");
            vm.hard = how == "poff-hard";
            placed(vm, &store);
            vm.go(State::Active, lcm);
        }
        self.carry_on(id);
        Ok(String::new())
    }

    /// An action that leaves a VM running whatever came of it is over.
    pub(super) fn back_to_running(&self, id: u32, word: &str, answer: &Answer) {
        self.with(id, |vm, _| {
            if let Answer::Failure(text) = answer {
                vm.fails(word, text);
            }
            vm.go(State::Active, Lcm::Running);
        });
    }
}

/// What a VM's disks have from the system datastore where it is.
fn placed(vm: &mut Vm, store: &Datastore) {
    vm.template.set("TM_MAD_SYSTEM", &store.tm_mad);
    for disk in vm.template.vectors_mut("DISK") {
        placed_disk(disk, store);
    }
}

/// What a disk has from the system datastore where its VM is.
pub(super) fn placed_disk(disk: &mut Vector, store: &Datastore) {
    if disk.contains_key("IMAGE") {
        let differs = disk["TM_MAD"] != store.tm_mad;
        if differs {
            disk.insert("TM_MAD_SYSTEM".into(), store.tm_mad.clone());
            disk.insert("CLONE_TARGET".into(), "SYSTEM".into());
            disk.insert("LN_TARGET".into(), "SYSTEM".into());
        } else {
            disk.remove("TM_MAD_SYSTEM");
        }
        return;
    }
    for (key, value) in [
        ("ALLOW_ORPHANS", "YES"),
        ("CLUSTER_ID", "0"),
        ("DATASTORE", &store.name),
        ("DATASTORE_ID", &store.id.to_string()),
        ("DISK_TYPE", "FILE"),
        ("PERSISTENT_SNAPSHOTS", "YES"),
        ("TM_MAD", &store.tm_mad),
    ] {
        disk.insert(key.to_owned(), value.to_owned());
    }
    let format = disk.entry("FORMAT".into()).or_insert("raw".into()).clone();
    disk.entry("DRIVER".into()).or_insert(format);
}

/// oned's refusal of an action that a state does not allow.
pub(super) fn unavailable(action: &str, vm: &Vm, call: &str) -> String {
    let state = shown(vm.state, vm.lcm);
    let why = "This action is not available for state";
    format!("[{call}] Error performing action \"{action}\": {why} {state}")
}
