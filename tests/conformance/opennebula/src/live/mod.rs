//! Recorded scenarios with real drivers in the place of the recorder's scripts: the same is asked, the same calls must come,
//! oned must reach the same states, and what oned believes must be so on hosts.
//!
//! The drivers' directories are there under the recorded names (`oci`, `ocis`), so calls are equal to the letter. What
//! differs by nature is mapped: names of images, which are digests here, and registries, which are of this test. Where the
//! recorder failed on purpose, something really breaks right before that call ([`fault`]); where our drivers do not do yet
//! what is asked, the table says at which script they refuse, and how the scenario goes on ([`table`]).

mod acts;
mod compare;
pub mod effects;
pub mod fault;
pub mod table;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ocivisor_tests::tool;

use crate::cloud::Cloud;
use crate::model::Snapshots;
use crate::monitor::Monitor;
use crate::node::Stores;
use crate::place::FRONTEND;
use crate::recording::{RecordedCall, Recording, Step};
use crate::registry::Registry;
use crate::replay::{at, prepare, register, scheduled};
use crate::template::vector_of;
use crate::web::Web;
use fault::Site;
use table::{Known, Play, Turn};

/// The cloud of the recordings, with real drivers.
#[derive(Debug)]
pub struct Live {
    /// The cloud.
    pub cloud: Cloud,
    /// What differed, in words.
    pub differences: Vec<String>,
    /// How many calls were compared.
    pub compared: usize,
    registry: Arc<Mutex<Registry>>,
    /// Text of the recordings, and what stands for it here.
    names: Vec<(String, String)>,
    /// What the recorder named VMs that are named otherwise here.
    called: BTreeMap<u32, Vec<String>>,
    /// Recorded names of images, and ours.
    sources: BTreeMap<String, String>,
    /// Whether VMs had stays that they had not when recorded: numbers of files differ.
    renumbered: bool,
    /// What else is called in a step where a move fails as a whole.
    others: Vec<RecordedCall>,
    /// VMs whose disks have a mark of the test.
    marked: Vec<u32>,
    monitors: BTreeMap<String, Monitor>,
    /// What was done on hosts and lasts.
    acted: acts::State,
    _web: Web,
}

impl Live {
    /// A cloud in which nothing is registered yet. `program` is this crate's own.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        let driver = std::env::var(crate::cloud::DRIVER).unwrap_or_else(|_| "ocivisor".to_owned());
        let own = |kind: &str| format!("{kind}/ocivisor");
        let more = [
            (format!("vmm/{driver}"), "vmm/oci"),
            (own("tm"), "tm/oci"),
            (own("tm"), "tm/ocis"),
            (own("datastore"), "datastore/oci"),
            ("im/ocivisor.d".to_owned(), "im/oci.d"),
        ];
        let stores = Stores { own: &[101, 106], shared: &[103] };
        let mut cloud = Cloud::bare(program, "oci", &more, stores, &[100, 101, 104, 105, 106]);
        "oci".clone_into(&mut cloud.monitoring);
        register(&cloud.oned, false);
        let web = Web::open(&cloud.upload(""));
        let registry = cloud.open_registry(&[&web.host()]);
        let names = bring_uploads(&cloud, &registry, &web);
        Self {
            cloud,
            differences: Vec::new(),
            compared: 0,
            registry: Arc::new(Mutex::new(registry)),
            names,
            called: BTreeMap::new(),
            sources: BTreeMap::new(),
            renumbered: false,
            others: Vec::new(),
            marked: Vec::new(),
            monitors: BTreeMap::new(),
            acted: acts::State::new(),
            _web: web,
        }
    }

    /// Plays scenarios, after those that all share.
    pub fn play_all(&mut self, names: &[&str]) {
        for name in ["00-infrastructure", "01-images", "02-security-group"].iter().chain(names) {
            self.play(table::play(name));
        }
    }

    fn play(&mut self, play: &Play) {
        let recording = Recording::named(play.name);
        prepare(&self.cloud.oned, &recording);
        let called = recording.steps.iter().flat_map(|step| &step.calls);
        for call in called.filter(|call| call.call != FRONTEND) {
            self.cloud.add_node(&call.call);
        }
        self.renumbered = false;
        for (index, step) in recording.steps.iter().enumerate() {
            let next = recording.steps[index + 1..].iter().find_map(|step| step.at);
            let turn = play.turns.iter().find(|turn| turn.step == step.number);
            self.others = others(&recording, step);
            let before = self.differences.len();
            eprintln!("{} step {}: {}", play.name, step.number, step.command);
            self.step(step, turn.unwrap_or(&Turn::EMPTY), next);
            for what in &mut self.differences[before..] {
                *what = format!("{} step {} `{}`: {what}", play.name, step.number, step.command);
            }
        }
    }

    fn step(&mut self, step: &Step, turn: &Turn, next: Option<f64>) {
        if let Some(moment) = step.at {
            self.cloud.oned.model().now = at(moment);
        }
        self.number(step);
        if let Some(commands) = turn.instead {
            self.renumbered = true;
            self.ask(commands);
            return self.look(&Turn::EMPTY);
        }
        if let Some(host) = scheduled(step) {
            self.cloud.oned.place_next(&host, "101");
        }
        let vm = step.vms.first().map_or(0, |vm| vm.0);
        let mended = turn.fault.map(|fault| {
            let site = self.site(step);
            match failing(step) {
                Some(call) if !fault.is_early() => {
                    let (there, script) = (site.clone(), compare::cold_script(&call.script, turn));
                    self.cloud.oned.drivers.before(&script, move || fault.strike(&there));
                }
                _ => fault.strike(&site),
            }
            (fault, site)
        });
        for (host, path) in &step.removed {
            let own = path.trim_start_matches("/var/tmp/");
            std::fs::remove_file(self.cloud.node(host).dir().join(own)).expect("a script");
        }
        if let Some(known) = turn.knows {
            self.know(step, known);
        }
        // A deploy comes after what was made for it.
        let refuses = turn.refuses.filter(|script| *script != "deploy");
        let before = refuses.map(|_| effects::picture(&self.cloud));
        let _before = self.cloud.oned.drivers.take_calls();
        let reply = match turn.cold.unwrap_or(&step.command) {
            "" => {
                self.report(step, turn, next);
                Ok(String::new())
            }
            command if command.starts_with("onehost ") => {
                self.follow_before(command);
                let reply = self.cloud.oned.command(command, "");
                self.tell_host(step);
                reply
            }
            recorded => {
                let command = turn.asked.map_or(recorded, |(command, _)| command);
                if !turn.acts.is_empty() {
                    let host = self.cloud.oned.model().vms[&vm].place().host.clone();
                    let node = Arc::clone(self.cloud.node(&host));
                    self.act(&node, vm, turn.acts);
                }
                let given = self.mapped(command, &step.given);
                self.cloud.oned.command(command, &given)
            }
        };
        let deploys = |call: &&RecordedCall| call.script.ends_with("/deploy") && call.exit == 0;
        for call in step.calls.iter().filter(deploys) {
            let named = call.out.split_whitespace().next().unwrap_or("-");
            let names = [named.to_owned(), call.out.lines().collect()];
            let names = names.into_iter().filter(|name| !name.is_empty()).collect();
            self.called.insert(vm, names);
        }
        self.called.entry(vm).or_default().extend(Self::names_in_probes(step, vm));
        self.renumbered |= turn.cold.is_some();
        self.compare_reply(step, turn, &reply);
        self.compare_calls(step, turn);
        for script in self.cloud.oned.drivers.forget_interventions() {
            self.differences.push(format!("{script} was never called"));
        }
        if let Some((fault, site)) = mended {
            fault.mend(&site);
        }
        self.compare_states(step, turn);
        if let Some(before) = before {
            let changed = |after: &String| !before.contains(after);
            let now = effects::picture(&self.cloud);
            let gone = before.iter().filter(|line| !now.contains(line));
            let gone = gone.map(|line| format!("what was refused changed {line}"));
            self.differences.extend(gone);
            let new = now.iter().filter(|line| changed(line));
            let new = new.map(|line| format!("what was refused left {line}"));
            self.differences.extend(new);
        }
        if let Some(wanted) = turn.output {
            self.compare_output(step, wanted);
        }
        if (!step.calls.is_empty() || !turn.acts.is_empty()) && !self.is_silent() {
            self.look(turn);
        }
        if turn.corrected {
            self.correct(vm);
        }
        if turn.corrected || !turn.then.is_empty() {
            self.ask(turn.then);
            self.renumbered = true;
            self.look(&Turn::EMPTY);
        }
    }

    /// What our drivers refused to make is noted with oned, so that it can be asked what becomes of it.
    fn know(&self, step: &Step, known: Known) {
        let mut model = self.cloud.oned.model();
        let model = &mut *model;
        let vm = step.vms.first().and_then(|vm| model.vms.get_mut(&vm.0));
        let snapshots = |all: &mut Snapshots, id: u32| {
            all.next = id;
            all.add("known", "1", 0);
        };
        match (known, vm) {
            (Known::Snapshot(id, name), Some(vm)) => {
                let keys = [("SNAPSHOT_ID", id), ("HYPERVISOR_ID", name), ("NAME", "known")];
                vm.template.add_vector("SNAPSHOT", vector_of(&keys));
            }
            (Known::DiskSnapshot(id), Some(vm)) => {
                snapshots(vm.snapshots.entry("0".to_owned()).or_default(), id);
            }
            (Known::ImageSnapshot(id), _) => {
                let image = step.images.first().and_then(|image| model.images.get_mut(&image.0));
                image.into_iter().for_each(|image| {
                    image.snapshots.all.clear();
                    snapshots(&mut image.snapshots, id);
                });
            }
            _ => {}
        }
    }

    /// What is made in a step gets the number that it had.
    fn number(&self, step: &Step) {
        let printed = step.prints.as_deref().and_then(|text| text.rsplit_once("ID: "));
        let made = printed.and_then(|(_, number)| number.trim().parse().ok());
        let mut model = self.cloud.oned.model();
        let plugs = step.calls.iter().find(|call| call.script.ends_with("/attach_disk"));
        let disk = plugs.and_then(|call| {
            let number = call.args.get(1)?.rsplit_once("/disk.")?.1.parse().ok()?;
            Some((number, call.args.get(2)?.clone()))
        });
        if disk.is_some() {
            model.next.disk = disk;
        }
        if let Some(number) = made
            && (step.command.starts_with("oneimage ") || step.command.contains(" disk-saveas "))
        {
            model.next.image = number;
        }
    }

    /// Asks what the recording does not have; it must be done.
    fn ask(&mut self, commands: &[&str]) {
        for command in commands {
            let reply = self.cloud.oned.command(command, "");
            let vm = command.split_whitespace().find_map(|word| word.parse::<u32>().ok());
            let error = vm.and_then(|vm| self.cloud.oned.model().vms.get_mut(&vm)?.error.take());
            if reply.is_err() || error.is_some() {
                self.differences.push(format!("{command}: {reply:?} {error:?}"));
            }
        }
    }

    /// A command's file with the registries and files of this test.
    fn mapped(&self, command: &str, given: &str) -> String {
        let mut text = given.to_owned();
        for (recorded, own) in &self.names {
            text = text.replace(recorded, own);
        }
        if command.starts_with("onedatastore ") {
            text += &format!("\nSAFE_DIRS=\"{}\"", self.cloud.upload("").display());
        }
        text
    }

    /// Where something breaks: the host of the call that failed, or that of its disk; and the VM.
    fn site(&self, step: &Step) -> Site {
        let call = failing(step).or(step.calls.first());
        let words = call.into_iter().flat_map(|call| call.args.iter().chain([&call.call]));
        let words: Vec<&String> = words.collect();
        let named = |name: &str| words.iter().any(|word| word.starts_with(name));
        let node = self.cloud.nodes.iter().find(|node| named(&node.name));
        let vm = step.vms.first().map_or(0, |vm| vm.0);
        Site {
            node: Arc::clone(node.unwrap_or(&self.cloud.nodes[0])),
            oned: Arc::clone(&self.cloud.oned),
            registry: Arc::clone(&self.registry),
            vm,
            starting: Arc::default(),
        }
    }

    /// What oned believes must be so.
    fn look(&mut self, turn: &Turn) {
        let wrong = effects::wrong(&self.cloud, &mut self.marked, turn.really);
        self.differences.extend(wrong);
    }

    /// What is left when all is over: of VMs nothing.
    ///
    /// # Panics
    /// Something was different, or something is left.
    pub fn end(mut self) {
        for host in std::mem::take(&mut self.monitors).into_keys() {
            self.cloud.stop_monitoring(&host);
        }
        self.differences.extend(effects::left(&self.cloud));
        assert!(self.differences.is_empty(), "{}", self.differences.join("\n"));
        assert!(self.compared > 0);
    }
}

/// What follows the call that failed on purpose where the same did not fail: more of its kind.
fn others(recording: &Recording, step: &Step) -> Vec<RecordedCall> {
    let Some(failed) = failing(step) else { return Vec::new() };
    let same = |call: &&RecordedCall| (&call.script, &call.args) == (&failed.script, &failed.args);
    let done = recording.steps.iter().find_map(|other| {
        let at = other.calls.iter().position(|call| call.exit == 0 && same(&call))?;
        Some(&other.calls[at + 1..])
    });
    let more = done.unwrap_or_default().iter();
    more.take_while(|call| call.script == failed.script).cloned().collect()
}

/// The call that failed on purpose.
fn failing(step: &Step) -> Option<&RecordedCall> {
    step.calls.iter().find(|call| call.exit != 0)
}

/// Images of a registry, and files, that stand for those of the recordings.
fn bring_uploads(cloud: &Cloud, registry: &Registry, web: &Web) -> Vec<(String, String)> {
    let path = |name: &str| cloud.upload(name).display().to_string();
    ocivisor_tests::image::busybox(&cloud.upload("busybox.tar"));
    cloud.archive("alpine", &[]);
    cloud.archive("nginx", &[("nginx", 300_000)]);
    registry.push(&cloud.upload("alpine.layout"), "library/alpine:3.20");
    registry.push(&cloud.upload("nginx.layout"), "library/nginx:1.27");
    let tree = path("tree");
    std::fs::create_dir(&tree).unwrap();
    tool(&["tar", "-C", &tree, "-xf", &path("busybox.tar")]);
    tool(&["mke2fs", "-q", "-t", "ext4", "-d", &tree, &path("rootfs.raw"), "16m"]);
    std::fs::remove_dir_all(&tree).unwrap();
    tool(&["xz", "-0", "-k", "-T1", &path("busybox.tar")]);
    std::fs::rename(path("busybox.tar.xz"), path("rootfs.tar.xz")).unwrap();
    std::fs::write(path("tools.iso"), vec![0; 1 << 20]).unwrap();
    tool(&["chmod", "-R", "a+rX", &path("")]);
    let (registry, web) = (registry.host(), web.host());
    [
        ("docker://alpine:", format!("docker://{registry}/library/alpine:")),
        ("docker://registry.example.org:5000/", format!("docker://{registry}/")),
        ("https://images.example.org/", format!("http://{web}/")),
        ("/var/lib/one/rootfs.raw", path("rootfs.raw")),
    ]
    .map(|(recorded, own)| (recorded.to_owned(), own))
    .into()
}
