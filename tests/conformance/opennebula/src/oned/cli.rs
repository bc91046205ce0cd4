//! Commands of OpenNebula's CLI, as the recordings name them.

use super::{Oned, Reply};
use crate::model::{Host, HostState, Network, Next};
use crate::state::Lcm;
use crate::template::{Template, vector_of};

/// Words of a command: options without their dashes, and the others.
struct Words<'a> {
    flags: Vec<&'a str>,
    rest: Vec<&'a str>,
}

impl<'a> Words<'a> {
    /// Options named in `valued` take the word after them.
    fn of(line: &'a str, valued: &[&str]) -> (Self, Vec<(&'a str, &'a str)>) {
        let (mut flags, mut rest, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let mut words = line.split_whitespace();
        while let Some(word) = words.next() {
            match word.strip_prefix("--").or_else(|| word.strip_prefix('-')) {
                Some(name) if valued.contains(&name) => {
                    values.push((name, words.next().unwrap_or_default()));
                }
                Some(name) => flags.push(name),
                None => rest.push(word),
            }
        }
        (Self { flags, rest }, values)
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    fn get(&self, at: usize) -> &'a str {
        self.rest.get(at).copied().unwrap_or_default()
    }
}

fn value<'a>(values: &[(&str, &'a str)], name: &str) -> Option<&'a str> {
    values.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
}

impl Oned {
    /// Carries a command out; `given` is what its file or standard input says.
    ///
    /// # Errors
    /// What the CLI would print.
    pub fn command(&self, line: &str, given: &str) -> Reply {
        let (program, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (action, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        match program {
            "onevm" => self.onevm(action, rest, given),
            "onetemplate" => {
                let (words, values) = Words::of(rest, &["name"]);
                match action {
                    "instantiate" => {
                        let text = self.model().templates.get(words.get(0)).cloned();
                        let text = text.ok_or(format!("no template {}", words.get(0)))?;
                        let text = format!("{text}\nTEMPLATE_ID=0\n");
                        self.create_vm(&text, value(&values, "name"), words.has("hold"))
                    }
                    _ => {
                        let given_name = Template::read(given).text("NAME").map(str::to_owned);
                        let text = given.lines().filter(|line| !line.starts_with("NAME="));
                        let text: Vec<&str> = text.collect();
                        let mut model = self.model();
                        let id = model.templates.len();
                        model.templates.insert(given_name.unwrap_or_default(), text.join("\n"));
                        Ok(format!("ID: {id}"))
                    }
                }
            }
            "oneimage" => self.oneimage(action, rest, given),
            "onedatastore" => match action {
                "create" => self.create_store(given),
                _ => Ok(String::new()),
            },
            "onehost" => self.onehost(action, rest),
            "onevnet" => self.onevnet(action, rest, given),
            "onesecgroup" => self.onesecgroup(action, rest, given),
            other => Err(format!("no program {other}")),
        }
    }

    fn create_vm(&self, text: &str, name: Option<&str>, hold: bool) -> Reply {
        let id = self.model().add_vm(text, name, hold)?;
        if !hold {
            self.schedule(id);
        }
        Ok(format!("VM ID: {id}"))
    }

    fn onevm(&self, action: &str, rest: &str, given: &str) -> Reply {
        if action == "exec" {
            return self.onevm_exec(rest);
        }
        let valued = [
            "network", "ip", "alias", "cpu", "vcpu", "memory", "stdin", "image", "file",
            "snapshot", "d",
        ];
        let (words, values) = Words::of(rest, &valued);
        if action == "create" {
            let made = self.create_vm(given, None, words.has("hold"));
            return made.map(|text| text.trim_start_matches("VM ").to_owned());
        }
        let id: u32 = words.get(0).parse().map_err(|_| format!("no VM {}", words.get(0)))?;
        let hard = words.has("hard");
        match action {
            "deploy" => {
                let store = words.rest.get(2).copied();
                self.deploy(id, words.get(1), store)
            }
            "migrate" => {
                let ways = ["live", "poff", "poff-hard"];
                let how = ways.into_iter().find(|way| words.has(way)).unwrap_or_default();
                self.migrate(id, words.get(1), words.rest.get(2).copied(), how)
            }
            "nic-attach" => {
                let network = value(&values, "network").unwrap_or_default();
                self.attach_nic(id, network, value(&values, "ip"), value(&values, "alias"))
            }
            "nic-detach" => self.detach_nic(id, words.get(1)),
            "nic-update" => self.update_nic(id, words.get(1), given, false),
            "sg-attach" => self.change_group(id, words.get(1), words.get(2), true),
            "sg-detach" => self.change_group(id, words.get(1), words.get(2), false),
            "resize" => {
                let changes: Vec<(&str, String)> =
                    [("CPU", "cpu"), ("VCPU", "vcpu"), ("MEMORY", "memory")]
                        .into_iter()
                        .filter_map(|(key, name)| {
                            let text = value(&values, name)?;
                            Some((key, text.trim_end_matches('m').to_owned()))
                        })
                        .collect();
                self.resize(id, &changes)
            }
            "updateconf" => self.update_conf(id, given, words.has("a")),
            "exec-cancel" => self.exec_cancel(id),
            "exec-retry" => self.exec_retry(id),
            "recover" => self.recover(id, words.flags.first().copied().unwrap_or_default()),
            "disk-attach" => match value(&values, "image") {
                Some(image) => self.attach_disk(id, &vector_of(&[("IMAGE", image)])),
                None => {
                    let disk = Template::read(given).vectors("DISK").next().cloned();
                    let mut disk = disk.ok_or("no disk")?;
                    disk.insert("DEV_PREFIX".into(), "sd".into());
                    self.attach_disk(id, &disk)
                }
            },
            "disk-detach" => self.detach_disk(id, words.get(1)),
            "disk-resize" => self.resize_disk(id, words.get(1), words.get(2)),
            "disk-saveas" => {
                let snapshot = value(&values, "snapshot").unwrap_or("-1");
                self.save_disk(id, words.get(1), words.get(2), snapshot)
            }
            "disk-snapshot-create" => self.create_disk_snapshot(id, words.get(1), words.get(2)),
            "disk-snapshot-revert" => self.revert_disk_snapshot(id, words.get(1), words.get(2)),
            "disk-snapshot-delete" => self.delete_disk_snapshot(id, words.get(1), words.get(2)),
            "snapshot-create" => self.create_snapshot(id, words.get(1)),
            "snapshot-revert" => self.revert_snapshot(id, words.get(1)),
            "snapshot-delete" => self.delete_snapshot(id, words.get(1)),
            "backup" => self.back_up(id, value(&values, "d").unwrap_or_default()),
            "backup-cancel" => self.cancel_backup(id),
            "restore" => self.restore(id, words.get(1)),
            // Of these no driver hears.
            "update" | "lock" | "unlock" | "show" => Ok(String::new()),
            other => self.action(id, other, hard),
        }
    }

    fn onevm_exec(&self, rest: &str) -> Reply {
        let (id, command) = rest.split_once(' ').unwrap_or((rest, ""));
        let (command, input) = match command.split_once(" --stdin ") {
            Some((command, input)) => (command, Some(input)),
            None => (command, None),
        };
        self.exec(id.parse().map_err(|_| "no VM")?, command, input)
    }

    fn oneimage(&self, action: &str, rest: &str, given: &str) -> Reply {
        let (words, values) = Words::of(rest, &["d"]);
        let change = |change: &dyn Fn(&mut crate::model::Image)| {
            let mut model = self.model();
            let id = model.image(words.get(0)).map(|image| image.id).ok_or("no image")?;
            change(model.images.get_mut(&id).ok_or("no image")?);
            Ok(String::new())
        };
        match action {
            "create" => self.create_image(value(&values, "d").unwrap_or_default(), given),
            "clone" => self.clone_image(words.get(0), words.get(1), value(&values, "d")),
            "delete" => self.delete_image(words.get(0)),
            "snapshot-revert" | "snapshot-delete" | "snapshot-flatten" => {
                self.image_snapshot(words.get(0), action, words.get(1))
            }
            "persistent" => change(&|image| image.persistent = true),
            "nonpersistent" => change(&|image| image.persistent = false),
            "chtype" => change(&|image| image.kind = crate::model::Image::kind_of(words.get(1))),
            _ => Ok(String::new()),
        }
    }

    fn onehost(&self, action: &str, rest: &str) -> Reply {
        let (words, values) = Words::of(rest, &["i", "v"]);
        if action == "create" {
            let mut model = self.model();
            let id = model.hosts.keys().max().map_or(0, |last| last + 1);
            let (name, vm_mad) = (words.get(0).to_owned(), value(&values, "v").unwrap_or_default());
            let state = HostState::Init;
            model.hosts.insert(id, Host { id, name, vm_mad: vm_mad.to_owned(), state });
            return Ok(format!("ID: {id}"));
        }
        let name = words.get(0);
        match action {
            "enable" => self.host_state(name, HostState::Init),
            "disable" => self.host_state(name, HostState::Disabled),
            "offline" => self.host_state(name, HostState::Offline),
            "delete" => self.model().hosts.retain(|_, host| host.name != name),
            _ => {}
        }
        Ok(String::new())
    }

    fn onevnet(&self, action: &str, rest: &str, given: &str) -> Reply {
        match action {
            "create" => {
                let network = {
                    let mut model = self.model();
                    let id = Next::take(&mut model.next.network);
                    let network = Network::of(id, given);
                    model.networks.insert(id, network.clone());
                    network
                };
                self.drivers.create_network(network.id, &network.driver(), &network.document());
                return Ok(format!("ID: {}", network.id));
            }
            "update" => {
                let name = rest.split_whitespace().next().unwrap_or_default();
                let id =
                    self.model().network(name).map(|network| network.id).ok_or("no network")?;
                let mut told = Vec::new();
                for (vm, nic) in self.in_network(id) {
                    // A VM is told once, however many NICs it has there.
                    if !told.contains(&vm) {
                        self.update_nic(vm, &nic, given, true)?;
                        told.push(vm);
                    }
                }
            }
            _ => {}
        }
        Ok(String::new())
    }

    fn onesecgroup(&self, action: &str, rest: &str, given: &str) -> Reply {
        let rules = |text: &str| Template::read(text).vectors("RULE").cloned().collect();
        if action == "create" {
            if rest.is_empty() || given.is_empty() {
                return Err("## USAGE | create <file>".to_owned());
            }
            let mut model = self.model();
            let id = 100 + u32::try_from(model.groups.len()).unwrap_or(1) - 1;
            let name = Template::read(given).text("NAME").unwrap_or_default().to_owned();
            model.groups.insert(id, (name, rules(given)));
            return Ok(format!("ID: {id}"));
        }
        let name = rest.split_whitespace().next().unwrap_or_default();
        let running: Vec<(u32, u32)> = {
            let mut model = self.model();
            let group = model.groups.iter().find(|(_, (n, _))| n == name).map(|(id, _)| *id);
            let group = group.ok_or("no security group")?;
            if let (Some((_, old)), false) = (model.groups.get_mut(&group), given.is_empty()) {
                *old = rules(given);
            }
            let in_it = |list: &str| list.split(',').any(|id| id == group.to_string());
            let has = |vm: &&crate::model::Vm| {
                let mut nics = vm.template.vectors("NIC");
                nics.any(|nic| nic.get("SECURITY_GROUPS").is_some_and(|list| in_it(list)))
            };
            let all = model.vms.values().filter(|vm| vm.lcm == Lcm::Running).filter(has);
            all.map(|vm| (vm.id, group)).collect()
        };
        for (vm, group) in running {
            self.update_group(vm, group);
        }
        Ok(String::new())
    }
}
