//! What oned has in its database, as far as drivers see of it.

mod context;
mod image;
mod network;
mod snapshots;
mod store;
mod vm;

use std::collections::BTreeMap;

pub(crate) use context::script as context_script;
pub use image::{Image, ImageState};
pub use network::Network;
pub use snapshots::{Snapshot, Snapshots};
pub use store::{Datastore, StoreKind};
pub use vm::{Action, History, Vm};

use crate::template::{Template, Value, Vector, vector_of};
use crate::xml::Element;

/// A hypervisor host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its number.
    pub id: u32,
    /// Its name, which is its address.
    pub name: String,
    /// Name of its driver.
    pub vm_mad: String,
    /// Whether it is monitored.
    pub state: HostState,
}

/// `STATE` of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "OpenNebula's own names")]
pub enum HostState {
    Init = 0,
    Monitored = 2,
    Error = 3,
    Disabled = 4,
    Offline = 8,
}

/// What names must not have, as recorded.
const NOT_IN_NAMES: [char; 1] = ['&'];

/// `FEATURES` and `TOPOLOGY` as oned keeps them.
fn settled(key: &str, value: Value) -> Value {
    let Value::Vector(mut vector) = value else { return value };
    if key == "TOPOLOGY" {
        vector.entry("PIN_POLICY".into()).or_insert("NONE".into());
    } else {
        vector.values_mut().for_each(|value| *value = value.to_uppercase());
    }
    Value::Vector(vector)
}

/// Rules of a security group.
pub type Rules = Vec<Vector>;

/// How a transfer driver is registered: `TM_MAD_CONF` (§1.5).
#[derive(Debug, Clone)]
pub struct TransferConf {
    /// Whether a system datastore of it is on all hosts.
    pub shared: bool,
    /// `LN_TARGET`.
    pub ln_target: &'static str,
    /// `CLONE_TARGET`.
    pub clone_target: &'static str,
    /// Transfer drivers of system datastores that its image datastores go with.
    pub systems: Vec<String>,
}

/// The database.
#[derive(Debug)]
pub struct Model {
    /// Hosts by number.
    pub hosts: BTreeMap<u32, Host>,
    /// Datastores by number.
    pub stores: BTreeMap<u32, Datastore>,
    /// Images by number.
    pub images: BTreeMap<u32, Image>,
    /// Networks by number.
    pub networks: BTreeMap<u32, Network>,
    /// Security groups by number: name and rules.
    pub groups: BTreeMap<u32, (String, Rules)>,
    /// VMs by number.
    pub vms: BTreeMap<u32, Vm>,
    /// VM templates by name.
    pub templates: BTreeMap<String, String>,
    /// Transfer drivers by name.
    pub transfers: BTreeMap<String, TransferConf>,
    /// `COLD_NIC_ATTACH` of the VMM driver: it is told of NICs of VMs that are powered off, too.
    pub cold_nics: bool,
    /// VMM drivers with `KEEP_SNAPSHOTS="yes"` and without `LIVE_RESIZE`.
    pub keepers: Vec<String>,
    /// Numbers that the next ones get.
    pub next: Next,
    /// Where datastores are, with the two slashes that oned makes of it.
    pub location: String,
    /// Where oned keeps what it writes for each VM.
    pub vms_dir: String,
    /// The moment, in seconds; a test moves it.
    pub now: u64,
}

/// Numbers that are given next.
#[derive(Debug, Default)]
pub struct Next {
    /// Of a VM.
    pub vm: u32,
    /// Of an image.
    pub image: u32,
    /// Of a datastore.
    pub store: u32,
    /// Of a network.
    pub network: u32,
    /// Of a request for an image's size.
    pub stat: u32,
    /// Of a disk, with its name in the guest, if they are to be others than the VM would give.
    pub disk: Option<(u32, String)>,
}

impl Next {
    /// A number, and then the one after.
    pub fn take(number: &mut u32) -> u32 {
        *number += 1;
        *number - 1
    }
}

impl Model {
    /// An empty one.
    #[must_use]
    pub fn new(location: &str, vms_dir: &str) -> Self {
        let rule = |kind| vector_of(&[("PROTOCOL", "ALL"), ("RULE_TYPE", kind)]);
        Self {
            hosts: BTreeMap::new(),
            stores: BTreeMap::new(),
            images: BTreeMap::new(),
            networks: BTreeMap::new(),
            groups: [(0, ("default".to_owned(), vec![rule("OUTBOUND"), rule("INBOUND")]))].into(),
            vms: BTreeMap::new(),
            templates: BTreeMap::new(),
            transfers: BTreeMap::new(),
            cold_nics: false,
            keepers: Vec::new(),
            next: Next { store: 100, ..Next::default() },
            location: location.to_owned(),
            vms_dir: vms_dir.to_owned(),
            now: 1_795_200_000,
        }
    }

    /// The image of that name or number.
    #[must_use]
    pub fn image(&self, name: &str) -> Option<&Image> {
        let by_name = self.images.values().rev().find(|image| image.name == name);
        by_name.or_else(|| self.images.get(&name.parse().ok()?))
    }

    /// The network of that name or number.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&Network> {
        let by_name = self.networks.values().find(|network| network.name == name);
        by_name.or_else(|| self.networks.get(&name.parse().ok()?))
    }

    /// The host of that name.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.values().find(|host| host.name == name)
    }

    /// The datastore of that name or number.
    #[must_use]
    pub fn store(&self, name: &str) -> Option<&Datastore> {
        let by_name = self.stores.values().find(|store| store.name == name);
        by_name.or_else(|| self.stores.get(&name.parse().ok()?))
    }

    /// Makes a VM of a template.
    ///
    /// # Errors
    /// What oned would say.
    pub fn add_vm(&mut self, text: &str, name: Option<&str>, hold: bool) -> Result<u32, String> {
        let mut given = Template::read(text);
        let id = Next::take(&mut self.next.vm);
        let own = given.take("NAME").pop();
        let name = match (name, own) {
            (Some(name), _) => name.to_owned(),
            (None, Some(Value::Text(name))) => name,
            _ => format!("one-{id}"),
        };
        if let Some(odd) = name.chars().find(|c| NOT_IN_NAMES.contains(c)) {
            return Err(format!("[one.vm.allocate] Invalid NAME, char '{odd}' is not allowed"));
        }
        let mut vm = Vm::new(id, &name, self.now, hold);
        let disks = given.take("DISK");
        let boots = disks.iter().any(|disk| match disk {
            Value::Vector(asked) => {
                let name = asked.get("IMAGE").or_else(|| asked.get("IMAGE_ID"));
                name.and_then(|name| self.image(name)).is_some_and(|image| image.kind == 0)
            }
            Value::Text(_) => false,
        });
        if boots {
            "sdb".clone_into(&mut vm.context_target);
        }
        for disk in disks {
            if let Value::Vector(asked) = disk {
                self.add_disk(&mut vm, &asked)?;
            }
        }
        for nic in given.take("NIC") {
            if let Value::Vector(asked) = nic {
                self.add_nic(&mut vm, &asked)?;
            }
        }
        for alias in given.take("NIC_ALIAS") {
            if let Value::Vector(mut asked) = alias {
                asked.extend(asked.get("PARENT").cloned().map(|nic| ("ALIAS".to_owned(), nic)));
                self.add_nic(&mut vm, &asked)?;
            }
        }
        let context = given.take("CONTEXT").pop();
        let graphics = given.take("GRAPHICS").pop();
        for (key, values) in given.drain() {
            for value in values {
                match key.as_str() {
                    "CPU" | "VCPU" | "MEMORY" | "OS" | "RAW" | "INPUT" | "TEMPLATE_ID" | "PCI" => {
                        vm.template.add(&key, value);
                    }
                    "FEATURES" | "TOPOLOGY" => vm.template.add(&key, settled(&key, value)),
                    "BACKUP_CONFIG" => vm.backup = Some(value),
                    _ => vm.user_template.add(&key, value),
                }
            }
        }
        vm.settle(graphics);
        if let Some(Value::Vector(mut asked)) = context {
            // Whoever has a token says who it is by number.
            if asked.get("TOKEN").is_some_and(|wanted| wanted == "YES") {
                vm.template.set("CREATED_BY", 0);
            }
            if let Some(files) = asked.get_mut("FILES_DS") {
                *files = self.files(files);
            }
            vm.asked_context = Some(asked);
            self.write_context(&mut vm);
        }
        self.write_rules(&mut vm);
        self.vms.insert(id, vm);
        Ok(id)
    }

    /// `$FILE[IMAGE="…"]…` as paths with names.
    fn files(&self, asked: &str) -> String {
        let names = asked.split("IMAGE=").skip(1).filter_map(|rest| {
            rest.trim_start_matches(['"', '\\']).split(['"', '\\', ']', ',']).next()
        });
        let images = names.filter_map(|name| self.image(name));
        images.map(|image| format!("{}:'{}' ", image.source, image.name)).collect()
    }

    /// Adds a disk; its number.
    ///
    /// # Errors
    /// The image does not exist.
    pub fn add_disk(&mut self, vm: &mut Vm, asked: &Vector) -> Result<u32, String> {
        let (id, name) = match self.next.disk.take() {
            Some((id, name)) => (id, Some(name)),
            None => (vm.next_disk(), None),
        };
        let mut disk = match asked.get("IMAGE").or_else(|| asked.get("IMAGE_ID")) {
            Some(name) => {
                let number = self.image(name).ok_or(format!("image {name} does not exist"))?.id;
                let store = self.images[&number].store;
                let image = self.images.get_mut(&number).ok_or("no image")?;
                image.used();
                image.disk(&self.stores[&store])
            }
            None => vector_of(&[("DEV_PREFIX", "sd")]),
        };
        disk.insert("DISK_ID".into(), id.to_string());
        // What the user says is kept, but for the size of an image's disk, which grows only.
        disk.extend(asked.iter().map(|(key, value)| (key.clone(), value.clone())));
        disk.extend(name.map(|name| ("TARGET".to_owned(), name)));
        vm.template.add_vector("DISK", disk);
        vm.name_disks();
        Ok(id)
    }

    /// An image that no VM has any more is ready again.
    pub fn free_image(&mut self, number: u32) {
        let named = number.to_string();
        let used = |vm: &Vm| {
            let mut disks = vm.template.vectors("DISK");
            vm.state != crate::state::State::Done
                && disks.any(|disk| disk.get("IMAGE_ID") == Some(&named))
        };
        if !self.vms.values().any(used)
            && let Some(image) = self.images.get_mut(&number)
            && matches!(image.state.0, ImageState::Used | ImageState::UsedPers)
        {
            image.state = (ImageState::Ready, ImageState::Ready as u8);
        }
    }

    /// Adds a NIC, or an alias of one, marked as the one that is being attached if the VM is.
    ///
    /// # Errors
    /// The network does not exist.
    pub fn add_nic(&mut self, vm: &mut Vm, asked: &Vector) -> Result<u32, String> {
        let wanted = asked.get("NETWORK").or_else(|| asked.get("NETWORK_ID"));
        let wanted = wanted.ok_or("a NIC without network")?;
        let network = self.network(wanted).ok_or(format!("network {wanted} does not exist"))?.id;
        let network = self.networks.get_mut(&network).ok_or("no network")?;
        let id = vm.next_nic();
        let mut nic = network.nic(asked.get("IP").map(String::as_str));
        nic.insert("NIC_ID".into(), id.to_string());
        let groups = match asked.get("SECURITY_GROUPS") {
            Some(groups) if !groups.split(',').any(|group| group == "0") => format!("0,{groups}"),
            Some(groups) => groups.clone(),
            None => "0".to_owned(),
        };
        nic.insert("SECURITY_GROUPS".into(), groups);
        for (key, value) in asked {
            if !["NETWORK", "NETWORK_ID", "SECURITY_GROUPS", "IP", "ALIAS"].contains(&key.as_str())
            {
                nic.insert(key.clone(), value.clone());
            }
        }
        nic.insert("NAME".into(), format!("NIC{id}"));
        nic.insert("TARGET".into(), format!("one-{}-{id}", vm.id));
        let key = match asked.get("ALIAS") {
            Some(parent) => {
                let parent_id = parent.trim_start_matches("NIC").to_owned();
                let number = vm.add_alias(&parent_id, id);
                nic.insert("NAME".into(), format!("{parent}_ALIAS{id}"));
                nic.insert("ALIAS_ID".into(), number.to_string());
                nic.insert("PARENT".into(), parent.clone());
                nic.insert("PARENT_ID".into(), parent_id);
                "NIC_ALIAS"
            }
            None => "NIC",
        };
        vm.template.add_vector(key, nic);
        Ok(id)
    }

    /// Writes the rules of the security groups of a VM's NICs into it.
    pub fn write_rules(&self, vm: &mut Vm) {
        vm.template.take("SECURITY_GROUP_RULE");
        let mut groups: Vec<u32> = Vec::new();
        let nics = vm.template.vectors("NIC").chain(vm.template.vectors("NIC_ALIAS"));
        for nic in nics {
            let list = nic.get("SECURITY_GROUPS").map(String::as_str).unwrap_or_default();
            for group in list.split(',').filter_map(|group| group.parse().ok()) {
                if !groups.contains(&group) {
                    groups.push(group);
                }
            }
        }
        groups.sort_unstable();
        for number in groups {
            let Some((name, rules)) = self.groups.get(&number) else { continue };
            for rule in rules {
                let mut rule = rule.clone();
                rule.insert("SECURITY_GROUP_ID".into(), number.to_string());
                rule.insert("SECURITY_GROUP_NAME".into(), name.clone());
                vm.template.add_vector("SECURITY_GROUP_RULE", rule);
            }
        }
    }

    /// The VM as drivers get it, its last history record alone.
    #[must_use]
    pub fn vm_document(&self, id: u32) -> Element {
        self.vms[&id].document()
    }

    /// The system datastore where a VM is.
    #[must_use]
    pub fn system(&self, vm: &Vm) -> &Datastore {
        &self.stores[&vm.place().store]
    }

    /// The directory of a VM in its system datastore.
    #[must_use]
    pub fn vm_dir(&self, store: u32, vm: u32) -> String {
        format!("{}/{store}/{vm}", self.location)
    }
}
