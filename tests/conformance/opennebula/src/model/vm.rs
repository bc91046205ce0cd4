//! VMs.

use std::collections::BTreeMap;

use super::Snapshots;
use crate::state::{Lcm, State};
use crate::template::{Template, Value, Vector, vector_of};
use crate::xml::Element;

/// What a history record says was done (numbers of oned).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "OpenNebula's own names")]
pub enum Action {
    None = 0,
    Migrate = 1,
    LiveMigrate = 2,
    Undeploy = 5,
    UndeployHard = 6,
    Stop = 9,
    Suspend = 10,
    Resume = 11,
    Delete = 13,
    DeleteRecreate = 14,
    Poweroff = 19,
    PoweroffHard = 20,
    DiskAttach = 21,
    DiskDetach = 22,
    NicAttach = 23,
    NicDetach = 24,
    DiskSnapshotCreate = 25,
    DiskSnapshotDelete = 26,
    Terminate = 27,
    TerminateHard = 28,
    DiskResize = 29,
    Resize = 35,
    DiskSnapshotRevert = 41,
    AliasAttach = 46,
    AliasDetach = 47,
    PoffMigrate = 48,
    PoffHardMigrate = 49,
    Backup = 50,
    NicUpdate = 51,
    Restore = 60,
    Exec = 61,
    ExecCancel = 63,
}

/// One stay of a VM on a host.
#[derive(Debug, Clone)]
pub struct History {
    /// Its number.
    pub seq: u32,
    /// The host's name.
    pub host: String,
    /// The host's number.
    pub host_id: u32,
    /// The driver's name.
    pub vm_mad: String,
    /// The transfer driver of the system datastore.
    pub tm_mad: String,
    /// The system datastore.
    pub store: u32,
    /// What was last done.
    pub action: Action,
    /// Begin and end.
    pub stime: u64,
    /// 0: it lasts.
    pub etime: u64,
    /// Of the prolog: begin.
    pub pstime: u64,
    /// Of the prolog: end.
    pub petime: u64,
    /// Of running: begin.
    pub rstime: u64,
    /// Of running: end.
    pub retime: u64,
}

/// A VM.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: State,
    /// What is done with it while it is active.
    pub lcm: Lcm,
    /// The states before, as documents tell them.
    pub previous: (State, Lcm),
    /// When it was made.
    pub stime: u64,
    /// When it ended.
    pub etime: u64,
    /// What the driver named it.
    pub deploy_id: String,
    /// What oned made of its template.
    pub template: Template,
    /// What it did not know.
    pub user_template: Template,
    /// `BACKUP_CONFIG` if it has one.
    pub backup: Option<Value>,
    /// Images of its backups.
    pub backups: Vec<u32>,
    /// `CONTEXT` as the user wanted it.
    pub asked_context: Option<Vector>,
    /// What the context disk is called in the guest: that comes after what boots.
    pub context_target: String,
    /// Where it was and is.
    pub history: Vec<History>,
    /// Text of `USER_TEMPLATE/ERROR` without its date.
    pub error: Option<String>,
    /// Whether the end under way is a hard one.
    pub hard: bool,
    /// Whether a cold migration goes by power-off.
    pub by_poweroff: bool,
    /// Stopped or undeployed, if it waits to be placed again.
    pub waits_from: Option<State>,
    /// The front-end, if its disks wait there while it is ended.
    pub left_at: Option<String>,
    /// Snapshots of its disks, by the disk's number.
    pub snapshots: BTreeMap<String, Snapshots>,
}

impl Vm {
    /// One that was just made.
    #[must_use]
    pub fn new(id: u32, name: &str, now: u64, hold: bool) -> Self {
        let state = if hold { State::Hold } else { State::Pending };
        let mut template = Template::default();
        template.set("VMID", id);
        if hold {
            template.set("SUBMIT_ON_HOLD", "YES");
        }
        Self {
            id,
            name: name.to_owned(),
            state,
            lcm: Lcm::Init,
            previous: (state, Lcm::Init),
            stime: now,
            etime: 0,
            deploy_id: String::new(),
            template,
            user_template: Template::default(),
            backup: None,
            backups: Vec::new(),
            asked_context: None,
            context_target: "sda".to_owned(),
            history: Vec::new(),
            error: None,
            hard: false,
            by_poweroff: false,
            waits_from: None,
            left_at: None,
            snapshots: BTreeMap::new(),
        }
    }

    /// What oned adds to every template.
    pub fn settle(&mut self, graphics: Option<Value>) {
        // What has no disk of an image and no NIC may be in any cluster.
        let bound = self.template.vectors("NIC").next().is_some()
            || self.template.vectors("DISK").any(|disk| disk.contains_key("IMAGE_ID"));
        let mut needs = |key: &str, what: &str| self.template.set(key, what);
        let pinned = "!(PIN_POLICY = PINNED)";
        if bound {
            needs("AUTOMATIC_DS_REQUIREMENTS", "(\"CLUSTERS/ID\" @> 0)");
            needs("AUTOMATIC_NIC_REQUIREMENTS", "(\"CLUSTERS/ID\" @> 0)");
            needs("AUTOMATIC_REQUIREMENTS", &format!("(CLUSTER_ID = 0) & {pinned}"));
        } else {
            needs("AUTOMATIC_REQUIREMENTS", pinned);
        }
        if let Some(Value::Vector(mut graphics)) = graphics {
            let port = (5900 + self.id).to_string();
            graphics.entry("PORT".into()).or_insert(port);
            self.template.add_vector("GRAPHICS", graphics);
        }
        let uuid = format!("00000000-0000-4000-8000-{:012x}", self.id);
        let mut os = match self.template.take("OS").pop() {
            Some(Value::Vector(os)) => os,
            _ => Vector::new(),
        };
        os.entry("MACHINE".into()).or_insert("q35".into());
        os.entry("UUID".into()).or_insert(uuid);
        self.order_disks(os.get("BOOT").map(String::as_str).unwrap_or_default());
        self.template.add_vector("OS", os);
        if self.template.vectors("TOPOLOGY").next().is_some()
            && self.template.text("VCPU").is_none()
        {
            self.template.set("VCPU", 1);
        }
    }

    /// What boots first, of `OS/BOOT`.
    fn order_disks(&mut self, boot: &str) {
        for (at, name) in boot.split(',').enumerate() {
            let wanted = name.trim().strip_prefix("disk");
            for disk in self.template.vectors_mut("DISK") {
                if wanted.is_some() && disk.get("DISK_ID").map(String::as_str) == wanted {
                    disk.insert("ORDER".into(), (at + 1).to_string());
                }
            }
        }
    }

    /// Where it is, or was last.
    ///
    /// # Panics
    /// It never was anywhere.
    #[must_use]
    pub fn place(&self) -> &History {
        self.history.last().unwrap()
    }

    /// The same, to be changed.
    ///
    /// # Panics
    /// It never was anywhere.
    pub fn place_mut(&mut self) -> &mut History {
        self.history.last_mut().unwrap()
    }

    /// A request failed; `word` is none for a transfer.
    pub fn fails(&mut self, word: &str, text: &str) {
        // oned keeps none that begins so.
        if text.starts_with('-') {
            return;
        }
        self.error = Some(match word {
            "" => format!("Error executing image transfer script: {}", text.trim()),
            "RESET" => format!("REBOOT: {}", text.trim()),
            word => format!("{word}: {}", text.trim()),
        });
    }

    /// It runs; a deploy says by which name.
    pub fn booted(&mut self, word: &str, said: &str, now: u64) {
        if word == "DEPLOY" {
            self.deploy_id = said.split_whitespace().next().unwrap_or("-").to_owned();
        }
        let place = self.place_mut();
        (place.rstime, place.retime) = (now, 0);
    }

    /// Sets the state.
    pub fn go(&mut self, state: State, lcm: Lcm) {
        self.state = state;
        self.lcm = lcm;
        self.previous = (state, lcm);
    }

    /// A new record of where it is: as the one before, whose action becomes `done`.
    pub fn turn(&mut self, done: Action, now: u64) {
        let mut next = self.place().clone();
        let last = self.place_mut();
        last.action = done;
        last.etime = now;
        last.retime = now;
        next.seq += 1;
        (next.stime, next.pstime, next.petime) = (now, 0, 0);
        next.rstime = if next.retime == 0 { now } else { 0 };
        self.history.push(next);
    }

    /// A move failed: a new record of where it was before.
    pub fn turn_back(&mut self, now: u64) {
        let Some(old) = self.history.iter().rev().nth(1).cloned() else { return };
        let seq = self.place().seq + 1;
        self.place_mut().etime = now;
        let ended = History { seq, action: Action::None, stime: now, etime: 0, ..old };
        self.history.push(ended);
    }

    /// The number of the next disk: one more than the highest, the context's among them.
    #[must_use]
    pub fn next_disk(&self) -> u32 {
        let disks = self.template.vectors("DISK").chain(self.template.vectors("CONTEXT"));
        let ids = disks.filter_map(|disk| disk.get("DISK_ID")?.parse::<u32>().ok());
        ids.max().map_or(0, |most| most + 1)
    }

    /// The disk of that number.
    #[must_use]
    pub fn disk(&self, id: &str) -> Option<&Vector> {
        self.template.vectors("DISK").find(|disk| disk["DISK_ID"] == id)
    }

    /// The same, to be changed.
    pub fn disk_mut(&mut self, id: &str) -> Option<&mut Vector> {
        self.template.vectors_mut("DISK").find(|disk| disk["DISK_ID"] == id)
    }

    /// The number of the next NIC or alias: one more than the highest.
    #[must_use]
    pub fn next_nic(&self) -> u32 {
        let nics = self.template.vectors("NIC").chain(self.template.vectors("NIC_ALIAS"));
        let ids = nics.filter_map(|nic| nic.get("NIC_ID")?.parse::<u32>().ok());
        ids.max().map_or(0, |most| most + 1)
    }

    /// Notes an alias at its NIC; its number among them.
    pub fn add_alias(&mut self, parent: &str, id: u32) -> usize {
        let mut number = 0;
        for nic in self.template.vectors_mut("NIC") {
            if nic.get("NIC_ID").is_some_and(|id| id == parent) {
                let list = nic.entry("ALIAS_IDS".into()).or_default();
                number = list.split(',').filter(|id| !id.is_empty()).count();
                *list = [list.as_str(), &id.to_string()].join(",").trim_matches(',').to_owned();
            }
        }
        number
    }

    /// Names of disks in the guest: the first, the context's, the others.
    pub fn name_disks(&mut self) {
        let has_target: Vec<String> =
            self.template.vectors("DISK").filter_map(|d| d.get("TARGET").cloned()).collect();
        let mut free = ('a'..='z')
            .map(|c| format!("sd{c}"))
            .filter(|name| *name != self.context_target && !has_target.contains(name));
        for disk in self.template.vectors_mut("DISK") {
            if !disk.contains_key("TARGET")
                && let Some(name) = free.next()
            {
                disk.insert("TARGET".into(), name);
            }
        }
    }

    /// Distinct network drivers of its NICs, in order.
    #[must_use]
    pub fn network_drivers(&self) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let nics = self.template.vectors("NIC").chain(self.template.vectors("NIC_ALIAS"));
        for driver in nics.filter_map(|nic| nic.get("VN_MAD")) {
            if !found.contains(driver) {
                found.push(driver.clone());
            }
        }
        found
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> Element {
        let mut user = self.user_template.clone();
        if let Some(error) = &self.error {
            user.set("ERROR", format!("Fri Nov 20 12:00:00 2026: {error}"));
        }
        let mut template = self.template.clone();
        for password in template.vectors_mut("CONTEXT").filter_map(|c| c.get_mut("PASSWORD")) {
            // Only oned can read it there; guests are told by the context disk.
            let hidden: Vec<u8> = password.bytes().map(|byte| !byte).collect();
            *password = crate::drivers::base64(&hidden);
        }
        let history = self.history.last().map(|record| record.document(self.id));
        let mut parts = vec![
            Element::plain("ID", self.id),
            Element::plain("UID", 0),
            Element::plain("GID", 0),
            Element::plain("UNAME", "oneadmin"),
            Element::plain("GNAME", "oneadmin"),
            Element::plain("NAME", &self.name),
            permissions(false),
            Element::plain("LAST_POLL", 0),
            Element::plain("STATE", self.state.number()),
            Element::plain("LCM_STATE", self.lcm.number()),
            Element::plain("PREV_STATE", self.previous.0.number()),
            Element::plain("PREV_LCM_STATE", self.previous.1.number()),
            Element::plain("RESCHED", 0),
            Element::plain("STIME", self.stime),
            Element::plain("ETIME", self.etime),
            Element::plain("DEPLOY_ID", &self.deploy_id),
            Element::of("MONITORING", Vec::new()),
            Element::of("SCHED_ACTIONS", Vec::new()),
            Element::of("TEMPLATE", template.elements()),
            Element::of("USER_TEMPLATE", user.elements()),
            Element::of("HISTORY_RECORDS", history.into_iter().collect()),
        ];
        parts.extend(self.snapshots.iter().map(|(disk, all)| all.document(Some(disk))));
        let config = self.backup.clone().map(|value| {
            let mut keys = vector_of(&[
                ("BACKUP_VOLATILE", "NO"),
                ("FS_FREEZE", "NONE"),
                ("INCREMENTAL_BACKUP_ID", "-1"),
                ("INCREMENT_MODE", "CBT"),
                ("INTERACTIVE", "NO"),
                ("LAST_INCREMENT_ID", "-1"),
                ("MODE", "FULL"),
            ]);
            if let Value::Vector(given) = value {
                keys.extend(given);
            }
            keys.iter().map(|(key, value)| Element::quoted(key, value)).collect()
        });
        parts.push(Element::of(
            "BACKUPS",
            vec![
                Element::of("BACKUP_CONFIG", config.unwrap_or_default()),
                Element::of(
                    "BACKUP_IDS",
                    self.backups.iter().map(|id| Element::plain("ID", id)).collect(),
                ),
            ],
        ));
        Element::of("VM", parts)
    }
}

impl History {
    fn document(&self, vm: u32) -> Element {
        // Who asked for it: nobody in particular until somebody does something.
        let (who, request) = if self.action == Action::None { (-1, -1) } else { (0, 1) };
        Element::of(
            "HISTORY",
            vec![
                Element::plain("OID", vm),
                Element::plain("SEQ", self.seq),
                Element::plain("HOSTNAME", &self.host),
                Element::plain("HID", self.host_id),
                Element::plain("CID", 0),
                Element::plain("STIME", self.stime),
                Element::plain("ETIME", self.etime),
                Element::quoted("VM_MAD", &self.vm_mad),
                Element::quoted("TM_MAD", &self.tm_mad),
                Element::plain("DS_ID", self.store),
                Element::plain("PLAN_ID", -2),
                Element::plain("ACTION_ID", -1),
                Element::plain("PSTIME", self.pstime),
                Element::plain("PETIME", self.petime),
                Element::plain("RSTIME", self.rstime),
                Element::plain("RETIME", self.retime),
                Element::plain("ESTIME", 0),
                Element::plain("EETIME", 0),
                Element::plain("ACTION", self.action as u8),
                Element::plain("UID", who),
                Element::plain("GID", who),
                Element::plain("REQUEST_ID", request),
            ],
        )
    }
}

/// `PERMISSIONS` as they are by default; groups may use datastores.
pub(crate) fn permissions(group: bool) -> Element {
    let names = ["OWNER_U", "OWNER_M", "OWNER_A", "GROUP_U", "GROUP_M", "GROUP_A"];
    let mut bits: Vec<Element> = names
        .iter()
        .map(|name| {
            let given = ["OWNER_U", "OWNER_M"].contains(name) || (group && *name == "GROUP_U");
            Element::plain(name, u8::from(given))
        })
        .collect();
    bits.extend(["OTHER_U", "OTHER_M", "OTHER_A"].iter().map(|name| Element::plain(name, 0)));
    Element::of("PERMISSIONS", bits)
}
