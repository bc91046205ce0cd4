//! What is changed of a VM that runs: NICs, capacity, context; and commands in it.

use super::actions::unavailable;
use super::{Oned, Reply};
use crate::drivers::{Answer, Job, base64, unbase64};
use crate::model::{Action, Vm};
use crate::state::{Lcm, State};
use crate::template::{Template, Value, Vector, vector_of};

/// Finds a NIC or alias by its number.
fn find(vm: &Vm, nic: &str) -> Option<(Vector, bool)> {
    let of = |key: &str| vm.template.vectors(key).find(|n| n["NIC_ID"] == nic).cloned();
    of("NIC").map(|nic| (nic, false)).or_else(|| of("NIC_ALIAS").map(|nic| (nic, true)))
}

fn mark(vm: &mut Vm, nic: &str, on: bool) {
    for key in ["NIC", "NIC_ALIAS"] {
        for found in vm.template.vectors_mut(key).filter(|n| n["NIC_ID"] == nic) {
            match on {
                true => found.insert("ATTACH".into(), "YES".into()),
                false => found.remove("ATTACH"),
            };
        }
    }
}

impl Oned {
    pub(super) fn can(&self, id: u32, what: &str) -> Result<bool, String> {
        let model = self.model();
        let vm = model.vms.get(&id).ok_or("no VM")?;
        match (vm.state, vm.lcm) {
            (State::Active, Lcm::Running) => Ok(true),
            (State::Poweroff, _) => Ok(false),
            _ => Err(unavailable(what, vm, "one.vm.action")),
        }
    }

    /// `onevm nic-attach`.
    ///
    /// # Errors
    /// The VM's state does not allow it, or there is no such network.
    pub fn attach_nic(
        &self,
        id: u32,
        network: &str,
        ip: Option<&str>,
        alias: Option<&str>,
    ) -> Reply {
        let runs = self.can(id, "nic-attach")?;
        let (told, busy) = self.tells_of_nics(runs);
        let action = if alias.is_some() { Action::AliasAttach } else { Action::NicAttach };
        let nic = {
            let mut model = self.model();
            let now = model.now;
            let mut vm = model.vms[&id].clone();
            let mut asked = vector_of(&[("NETWORK", network)]);
            asked.extend(ip.map(|ip| ("IP".to_owned(), ip.to_owned())));
            asked.extend(alias.map(|parent| ("ALIAS".to_owned(), parent.to_owned())));
            let nic = model.add_nic(&mut vm, &asked)?.to_string();
            model.write_context(&mut vm);
            model.write_rules(&mut vm);
            vm.turn(action, now);
            if told {
                mark(&mut vm, &nic, true);
                vm.go(State::Active, busy);
            }
            model.vms.insert(id, vm);
            nic
        };
        if !told {
            return Ok(String::new());
        }
        self.retell(id);
        let found = find(&self.model().vms[&id], &nic);
        let job = Job { nic: found, ..self.job(id) };
        let answer = self.drivers.act("ATTACHNIC", &job);
        if matches!(answer, Answer::Failure(_)) {
            self.drop_nic(id, &nic);
        }
        self.with(id, |vm, _| mark(vm, &nic, false));
        self.nics_changed(id, runs, "ATTACHNIC", &answer);
        Ok(String::new())
    }

    /// `onevm nic-detach`.
    ///
    /// # Errors
    /// The VM's state does not allow it, or there is no such NIC.
    pub fn detach_nic(&self, id: u32, nic: &str) -> Reply {
        let runs = self.can(id, "nic-detach")?;
        let (told, busy) = self.tells_of_nics(runs);
        let (_, alias) = find(&self.model().vms[&id], nic).ok_or("no such NIC")?;
        let action = if alias { Action::AliasDetach } else { Action::NicDetach };
        self.with(id, |vm, now| {
            vm.turn(action, now);
            unlist(vm, nic);
            if told {
                mark(vm, nic, true);
                vm.go(State::Active, busy);
            }
        });
        if !told {
            self.drop_nic(id, nic);
            return Ok(String::new());
        }
        // The guest is told of what will be.
        let context = {
            let model = self.model();
            let mut then = model.vms[&id].clone();
            drop_from(&mut then, nic);
            model.write_context(&mut then);
            then.template.vectors("CONTEXT").next().cloned()
        };
        if let Some(context) = &context {
            self.write_file(id, "context.sh", &crate::model::context_script(context));
            self.with(id, |vm, _| {
                vm.template.take("CONTEXT");
                vm.template.add("CONTEXT", Value::Vector(context.clone()));
            });
        }
        let found = find(&self.model().vms[&id], nic);
        let job = Job { nic: found, ..self.job(id) };
        let answer = self.drivers.act("DETACHNIC", &job);
        if matches!(answer, Answer::Success(_)) {
            self.drop_nic(id, nic);
        } else {
            self.with(id, |vm, _| mark(vm, nic, false));
        }
        self.nics_changed(id, runs, "DETACHNIC", &answer);
        Ok(String::new())
    }

    /// Whether the driver hears of a change of NICs, and what the VM is meanwhile.
    fn tells_of_nics(&self, runs: bool) -> (bool, Lcm) {
        let busy = if runs { Lcm::HotplugNic } else { Lcm::HotplugNicPoweroff };
        (runs || self.model().cold_nics, busy)
    }

    /// The VM runs again, or rests again if it did not run.
    fn nics_changed(&self, id: u32, runs: bool, word: &str, answer: &Answer) {
        if runs {
            return self.back_to_running(id, word, answer);
        }
        self.with(id, |vm, _| {
            if let Answer::Failure(text) = answer {
                vm.fails(word, text);
            }
            vm.go(State::Poweroff, Lcm::Init);
        });
    }

    fn drop_nic(&self, id: u32, nic: &str) {
        let mut model = self.model();
        let mut vm = model.vms[&id].clone();
        if let Some((dropped, _)) = find(&vm, nic) {
            let network = model.network(&dropped["NETWORK"]).map(|network| network.id);
            if let Some(network) = network.and_then(|n| model.networks.get_mut(&n)) {
                network.release(&dropped["IP"]);
            }
        }
        drop_from(&mut vm, nic);
        model.write_context(&mut vm);
        model.write_rules(&mut vm);
        model.vms.insert(id, vm);
    }

    /// Writes `context.sh` anew.
    fn retell(&self, id: u32) {
        let context = self.model().vms[&id].template.vectors("CONTEXT").next().cloned();
        if let Some(context) = context {
            self.write_file(id, "context.sh", &crate::model::context_script(&context));
        }
    }

    /// `onevm nic-update`, or a change of the network that reaches the VM.
    ///
    /// # Errors
    /// There is no such NIC.
    pub fn update_nic(&self, id: u32, nic: &str, change: &str, all: bool) -> Reply {
        let network = {
            let change = Template::read(change);
            let keys =
                ["INBOUND_AVG_BW", "OUTBOUND_AVG_BW", "INBOUND_PEAK_BW", "OUTBOUND_PEAK_BW", "MTU"];
            self.with(id, |vm, now| {
                vm.turn(Action::NicUpdate, now);
                let network =
                    vm.template.vectors("NIC").find(|n| n["NIC_ID"] == nic)?["NETWORK_ID"].clone();
                // A change of the network reaches all NICs in it.
                let meant = |n: &Vector| n["NETWORK_ID"] == network && (all || n["NIC_ID"] == nic);
                for found in vm.template.vectors_mut("NIC").filter(|n| meant(n)) {
                    for key in keys {
                        if let Some(value) = change.text(key) {
                            found.insert(key.to_owned(), value.to_owned());
                        }
                    }
                }
                Some(network)
            })
        };
        let network = network.ok_or("no such NIC")?;
        self.with(id, |vm, _| vm.go(State::Active, Lcm::HotplugNic));
        let job = Job { word: network, ..self.plain_job(id) };
        let answer = self.drivers.act("UPDATENIC", &job);
        self.back_to_running(id, "UPDATENIC", &answer);
        Ok(String::new())
    }

    /// VMs that run with a NIC in that network: VM and NIC.
    pub(super) fn in_network(&self, network: u32) -> Vec<(u32, String)> {
        let model = self.model();
        let running = model.vms.values().filter(|vm| vm.lcm == Lcm::Running);
        let all = running.flat_map(|vm| vm.template.vectors("NIC").map(move |nic| (vm.id, nic)));
        let there = all.filter(|(_, nic)| nic["NETWORK_ID"] == network.to_string());
        there.map(|(vm, nic)| (vm, nic["NIC_ID"].clone())).collect()
    }

    /// Rules of a security group reach a VM.
    pub(super) fn update_group(&self, id: u32, group: u32) {
        {
            let mut model = self.model();
            let mut vm = model.vms[&id].clone();
            model.write_rules(&mut vm);
            model.vms.insert(id, vm);
        }
        let job = Job { word: group.to_string(), ..self.plain_job(id) };
        let _told = self.drivers.act("UPDATESG", &job);
    }

    /// `onevm sg-attach` and `sg-detach`.
    pub(super) fn change_group(&self, id: u32, nic: &str, group: &str, attach: bool) -> Reply {
        self.with(id, |vm, _| {
            for found in vm.template.vectors_mut("NIC").filter(|n| n["NIC_ID"] == nic) {
                let list = found.get("SECURITY_GROUPS").cloned().unwrap_or_default();
                let mut groups: Vec<&str> = list.split(',').filter(|g| !g.is_empty()).collect();
                groups.retain(|g| *g != group);
                if attach {
                    groups.push(group);
                }
                found.insert("SECURITY_GROUPS".into(), groups.join(","));
            }
        });
        self.update_group(id, group.parse().map_err(|_| "no group")?);
        Ok(String::new())
    }

    /// `onevm resize`.
    ///
    /// # Errors
    /// The VM's state does not allow it.
    pub fn resize(&self, id: u32, changes: &[(&str, String)]) -> Reply {
        let runs = self.can(id, "resize")?;
        if runs && self.keeps_snapshots(id) {
            let driver = self.model().vms[&id].place().vm_mad.clone();
            return Err(format!("[one.vm.resize] Hotplug resize not supported by driver {driver}"));
        }
        let old = self.with(id, |vm, now| {
            let names = ["CPU", "MEMORY", "VCPU"];
            let old: Vec<(String, String)> = names
                .iter()
                .filter_map(|name| Some(((*name).to_owned(), vm.template.text(name)?.to_owned())))
                .collect();
            vm.turn(Action::Resize, now);
            for (name, value) in changes {
                vm.template.set(name, value);
            }
            if runs {
                vm.template.add_vector("RESIZE", old.iter().cloned().collect());
                vm.go(State::Active, Lcm::HotplugResize);
            }
            old
        });
        if !runs {
            return Ok(String::new());
        }
        let answer = self.drivers.act("RESIZE", &self.plain_job(id));
        self.with(id, |vm, _| {
            vm.template.take("RESIZE");
            if matches!(answer, Answer::Failure(_)) {
                old.iter().for_each(|(name, value)| vm.template.set(name, value));
            }
        });
        self.back_to_running(id, "RESIZE", &answer);
        Ok(String::new())
    }

    /// `onevm updateconf`: a new `CONTEXT`. What changes nothing of it reaches no driver.
    ///
    /// # Errors
    /// The VM's state does not allow it.
    pub fn update_conf(&self, id: u32, text: &str, append: bool) -> Reply {
        let runs = self.can(id, "updateconf")?;
        let changed = {
            let given = Template::read(text);
            let mut model = self.model();
            let mut vm = model.vms[&id].clone();
            let before: Vec<Vector> = vm.template.vectors("CONTEXT").cloned().collect();
            if let Some(context) = given.vectors("CONTEXT").next() {
                let mut asked = match append {
                    true => vm.asked_context.clone().unwrap_or_default(),
                    false => Vector::new(),
                };
                asked.extend(context.clone());
                vm.asked_context = Some(asked);
                // What is replaced is the whole.
                if !append {
                    vm.template.take("GRAPHICS");
                    vm.template.take("OS");
                }
                model.write_context(&mut vm);
            }
            if let Some(config) = given.vectors("BACKUP_CONFIG").next() {
                let mut all = match vm.backup.take() {
                    Some(Value::Vector(all)) => all,
                    _ => Vector::new(),
                };
                all.extend(config.clone());
                vm.backup = Some(Value::Vector(all));
            }
            let changed = !vm.template.vectors("CONTEXT").eq(before.iter());
            model.vms.insert(id, vm);
            changed
        };
        if !runs || !changed {
            return Ok(String::new());
        }
        self.with(id, |vm, _| vm.go(State::Active, Lcm::Hotplug));
        self.retell(id);
        let answer = self.drivers.act("UPDATECONF", &self.job(id));
        self.back_to_running(id, "UPDATECONF", &answer);
        Ok(String::new())
    }

    /// `onevm exec`.
    ///
    /// # Errors
    /// Another command is being executed.
    pub fn exec(&self, id: u32, command: &str, input: Option<&str>) -> Reply {
        let busy = self.with(id, |vm, _| {
            let told = vm.template.vectors("QEMU_GA_EXEC").next();
            told.is_some_and(|told| told.get("STATUS").is_some_and(|s| s == "EXECUTING"))
        });
        if busy {
            let why = "Could not execute command, a command is already being executed";
            return Err(format!("[one.vm.exec] {why}"));
        }
        self.with(id, |vm, now| {
            vm.turn(Action::Exec, now);
            vm.template.take("QEMU_GA_EXEC");
            let input = base64(input.unwrap_or_default().as_bytes());
            let told = vector_of(&[("COMMAND", command), ("STDIN", &input)]);
            vm.template.add_vector("QEMU_GA_EXEC", told);
            vm.go(State::Active, Lcm::Hotplug);
        });
        let job = self.plain_job(id);
        let job = Job { word: command.to_owned(), input: input.map(str::to_owned), ..job };
        let answer = self.drivers.act("EXEC", &job);
        let done = matches!(answer, Answer::Success(_));
        self.exec_status(id, if done { "EXECUTING" } else { "ERROR" });
        self.back_to_running(id, "EXEC", &answer);
        Ok(String::new())
    }

    /// `onevm exec-cancel`.
    ///
    /// # Errors
    /// None; the answer is the driver's.
    pub fn exec_cancel(&self, id: u32) -> Reply {
        self.with(id, |vm, now| {
            vm.turn(Action::ExecCancel, now);
            vm.go(State::Active, Lcm::Hotplug);
        });
        let answer = self.drivers.act("EXEC_CANCEL", &self.plain_job(id));
        if matches!(answer, Answer::Success(_)) {
            self.exec_status(id, "CANCELLED");
        }
        self.back_to_running(id, "EXEC_CANCEL", &answer);
        Ok(String::new())
    }

    /// `onevm exec-retry`.
    ///
    /// # Errors
    /// There was no command.
    pub fn exec_retry(&self, id: u32) -> Reply {
        let told = self.with(id, |vm, _| vm.template.vectors("QEMU_GA_EXEC").next().cloned());
        let told = told.ok_or("no command to be executed again")?;
        let input = told.get("STDIN").filter(|input| !input.is_empty());
        let input = input.and_then(|input| String::from_utf8(unbase64(input)?).ok());
        self.exec(id, &told["COMMAND"], input.as_deref())
    }

    /// Notes what became of a command.
    pub(super) fn exec_status(&self, id: u32, status: &str) {
        self.with(id, |vm, _| {
            for told in vm.template.vectors_mut("QEMU_GA_EXEC") {
                told.insert("STATUS".into(), status.to_owned());
            }
        });
    }
}

fn drop_from(vm: &mut Vm, nic: &str) {
    for key in ["NIC", "NIC_ALIAS"] {
        vm.template.drop_vectors(key, |found| found["NIC_ID"] == nic);
    }
    unlist(vm, nic);
}

/// An alias is none of its NIC's any more.
fn unlist(vm: &mut Vm, nic: &str) {
    for found in vm.template.vectors_mut("NIC") {
        if let Some(list) = found.get("ALIAS_IDS").cloned() {
            let left: Vec<&str> = list.split(',').filter(|id| *id != nic).collect();
            found.insert("ALIAS_IDS".into(), left.join(","));
        }
    }
}
