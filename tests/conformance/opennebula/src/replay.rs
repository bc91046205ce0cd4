//! Replays a recording: the same is asked of the stand-in, and what it does is compared.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use ocivisor_tests::{PATIENCE, wait_for_option};

use crate::desk::Desk;
use crate::drivers::{Call, Drivers, document_of, unbase64};
use crate::model::{Host, HostState, Model};
use crate::oned::{Oned, Reply};
use crate::place::Place;
use crate::recorder;
use crate::recording::{Recording, Step};
use crate::template::Template;
use crate::xml::Element;

/// A stand-in over the recorder's scripts.
#[derive(Debug)]
pub struct Replay {
    /// oned.
    pub oned: Arc<Oned>,
    desk: Desk,
    /// What differed, in words.
    pub differences: Vec<String>,
    /// How many calls were compared.
    pub compared: usize,
    /// What was asked in the step before and is still being done.
    begun: Option<JoinHandle<Reply>>,
}

/// When recording began, for the model's clock.
const BEGAN: u64 = 1_795_202_293;

impl Replay {
    /// With the recorder's scripts, before anything was registered. `program` is this crate's own.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        let place = Place::new(program);
        recorder::write(&place, program);
        for host in ["host01", "host02", "host03"] {
            std::fs::create_dir_all(place.host(host)).expect("a directory");
        }
        place.sync("host01");
        let mut drivers = Drivers::new(place, "oci");
        drivers.parallel = false;
        let oned = Arc::new(Oned::new(drivers));
        let desk = Desk::open(oned.drivers.place.root(), oned.shared_model());
        register(&oned, false);
        Self { oned, desk, differences: Vec::new(), compared: 0, begun: None }
    }

    /// With all that the scenarios share: hosts, datastores, networks, images, templates.
    #[must_use]
    pub fn with_infrastructure(program: &Path) -> Self {
        let mut replay = Self::new(program);
        for name in ["00-infrastructure", "01-images", "02-security-group"] {
            replay.play(name);
        }
        replay
    }

    /// Plays a recording.
    pub fn play(&mut self, name: &str) {
        let recording = Recording::named(name);
        prepare(&self.oned, &recording);
        for (at, step) in recording.steps.iter().enumerate() {
            let next = recording.steps[at + 1..].iter().find_map(|step| step.at);
            self.step(name, step, next);
        }
    }

    fn differs(&mut self, scenario: &str, step: &Step, what: &str) {
        self.differences
            .push(format!("{scenario} step {} `{}`: {what}", step.number, step.command));
    }

    fn step(&mut self, scenario: &str, step: &Step, next: Option<f64>) {
        self.desk.expect(&step.calls);
        if let Some(at) = step.at {
            self.oned.model().now = self::at(at);
        }
        if let Some(host) = scheduled(step) {
            self.oned.place_next(&host, "101");
        }
        for (_, path) in &step.removed {
            let root = self.oned.drivers.place.root();
            std::fs::remove_file(root.join(path.trim_start_matches('/'))).expect("a script");
        }
        let reply = match step.command.as_str() {
            "" => {
                self.probe(step, next);
                Ok(String::new())
            }
            command if step.calls.iter().any(|call| call.held) => self.begin(command),
            command => match self.begun.take() {
                Some(begun) => self.end(begun, command),
                None => self.oned.command(command, &step.given),
            },
        };
        self.monitor(&step.command);
        step.executed.iter().for_each(|text| self.oned.hear_commands(text));
        let wanted = match &step.refused {
            Some(text) => Err(text.clone()),
            None => Ok(step.prints.clone().unwrap_or_default()),
        };
        // What the CLI prints of its own is not oned's.
        let same = match (&reply, &wanted) {
            (Err(said), Err(wanted)) => wanted.starts_with(said.as_str()),
            (Ok(said), Ok(wanted)) => said == wanted || step.prints.is_none(),
            _ => false,
        };
        if !same {
            self.differs(scenario, step, &format!("answered {reply:?}, recorded {wanted:?}"));
        }
        self.compare_calls(scenario, step);
        self.compare_lines(scenario, step);
        self.compare_states(scenario, step);
    }

    /// Asks for something that goes on after the step.
    fn begin(&mut self, command: &str) -> Reply {
        self.begun = Some(self.ask(command));
        wait_for_option(PATIENCE, || self.desk.holds().then_some(())).expect("a script that waits");
        Ok(String::new())
    }

    /// Asks for something while that goes on, which then ends.
    fn end(&self, begun: JoinHandle<Reply>, command: &str) -> Reply {
        let asked = self.ask(command);
        let speaks = || self.oned.drivers.has_lines().then_some(());
        wait_for_option(PATIENCE, speaks).expect("a request");
        self.desk.release();
        let _told = begun.join().expect("an answer");
        asked.join().expect("an answer")
    }

    fn ask(&self, command: &str) -> JoinHandle<Reply> {
        let (oned, command) = (Arc::clone(&self.oned), command.to_owned());
        std::thread::spawn(move || oned.command(&command, ""))
    }

    /// The host's probe says the same every five seconds until the next step.
    fn probe(&self, step: &Step, next: Option<f64>) {
        for (host, at, text) in &step.probes {
            let until = next.unwrap_or(at + 5.0);
            let mut now = *at;
            while now < until {
                self.oned.model().now = self::at(now);
                self.oned.hear_states(host, text);
                now += 5.0;
            }
        }
    }

    /// A host is, or is not any more, to be monitored.
    fn monitor(&self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let ["onehost", action, host, ..] = words[..] else { return };
        let Some(number) = self.oned.model().host(host).map(|host| host.id) else { return };
        let client = |script: &str| {
            self.oned.drivers.monitor_client(script, &["oci", &number.to_string(), host], host, b"")
        };
        match action {
            "offline" => drop(client("stop_monitord_client")),
            // Whether it worked is the host's state.
            "enable" => {
                drop(self.oned.begin_monitoring(host, || client("run_monitord_client")));
            }
            _ => {}
        }
    }

    fn compare_calls(&mut self, scenario: &str, step: &Step) {
        let seen: Vec<Call> = self.desk.take_calls();
        // Of monitoring, calls were taken along where the scenario is about it.
        let of_monitor = |script: &str| script.contains("/im/");
        let told = step.calls.iter().any(|call| of_monitor(&call.script));
        let kept = |c: &&Call| !c.script.ends_with("/monitor") && (told || !of_monitor(&c.script));
        let seen: Vec<&Call> = seen.iter().filter(kept).collect();
        self.compared += step.calls.len();
        for at in 0..seen.len().max(step.calls.len()) {
            let place = &self.oned.drivers.place;
            let ours = seen
                .get(at)
                .map(|call| (call.on.clone(), place.plain(&call.script), call.words(place)));
            let theirs = step.calls.get(at);
            let theirs = theirs.map(|c| (c.call.clone(), c.script.clone(), c.args.clone()));
            if ours != theirs {
                let what = format!("call {at} is {ours:?}, recorded {theirs:?}");
                self.differs(scenario, step, &what);
                return;
            }
        }
        for call in &seen {
            let words = call.args.iter().filter(|word| document_of(word).is_some());
            let same =
                |word: &&String| self.document(word.as_bytes()) == self.document(&call.stdin);
            if words.clone().any(|word| !same(&word)) {
                self.differs(scenario, step, "a document among words is another than the input");
            }
        }
        let documents: Vec<(String, Vec<String>)> =
            seen.iter().map(|call| (call.script.clone(), self.document(&call.stdin))).collect();
        for ((script, ours), call) in documents.iter().zip(&step.calls) {
            // Documents that are not modelled were not taken along.
            if call.stdin.is_none() && call.document.is_empty() && !ours.is_empty() {
                continue;
            }
            if let Some(what) = first_difference(ours, &call.document) {
                let action = script.rsplit('/').next().unwrap_or_default();
                self.differs(scenario, step, &format!("document of {action}: {what}"));
            }
        }
    }

    /// Lines of a document on a script's standard input, without what differs each time.
    fn document(&self, stdin: &[u8]) -> Vec<String> {
        let text = match stdin.first() {
            None => return Vec::new(),
            Some(b'<') => String::from_utf8_lossy(stdin).into_owned(),
            Some(_) => {
                let bytes = unbase64(&String::from_utf8_lossy(stdin)).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            }
        };
        let text = self.oned.drivers.place.plain(text.trim_end());
        let Ok(document) = Element::read(&text) else { return vec!["no document".to_owned()] };
        let lines = document.lines().into_iter();
        lines.filter(|line| !line.contains("/DATASTORE/IMAGES")).map(without_moment).collect()
    }

    fn compare_lines(&mut self, scenario: &str, step: &Step) {
        let place = &self.oned.drivers.place;
        let seen: Vec<(String, bool, String)> = self
            .oned
            .drivers
            .take_lines()
            .into_iter()
            .filter(|(_, _, line)| !line.starts_with("LOG "))
            .map(|(driver, says, line)| (driver.to_owned(), says, place.plain(&line)))
            .collect();
        if seen != step.lines {
            let what = format!("lines are {seen:?}, recorded {:?}", step.lines);
            self.differs(scenario, step, &what);
        }
    }

    fn compare_states(&mut self, scenario: &str, step: &Step) {
        let mut wrong = Vec::new();
        let model = self.oned.model();
        for (id, state, lcm, error) in &step.vms {
            let Some(vm) = model.vms.get(id) else {
                wrong.push(format!("there is no VM {id}"));
                continue;
            };
            let ours = (vm.state.number(), vm.lcm.number());
            if ours != (*state, *lcm) {
                wrong.push(format!("VM {id} is in {ours:?}, recorded {:?}", (state, lcm)));
            }
            // A long one was cut.
            let cut =
                |text: &str| text.split(" ... see more").next().unwrap_or_default().to_owned();
            let told = error.as_deref().map(cut);
            if let Some(told) = told
                && !vm.error.as_ref().is_some_and(|ours| ours.starts_with(&told))
            {
                wrong.push(format!("VM {id} says {:?}, recorded {told:?}", vm.error));
            }
        }
        for (id, state, [source, format, size], error) in &step.images {
            let ours = model.images.get(id).map(|image| {
                let source = self.oned.drivers.place.plain(&image.source);
                let error = image.error.as_ref().filter(|_| error.is_some()).cloned();
                (image.state.0.name(), source, image.format.clone(), image.size.clone(), error)
            });
            let theirs =
                (state.clone(), source.clone(), format.clone(), size.clone(), error.clone());
            if ours.as_ref() != Some(&theirs) {
                wrong.push(format!("image {id} is {ours:?}, recorded {theirs:?}"));
            }
        }
        wrong.extend(left_and_hosts(step, &model));
        drop(model);
        wrong.iter().for_each(|what| self.differs(scenario, step, what));
    }
}

/// What is wrong with images that should be gone, and with states of hosts.
pub(crate) fn left_and_hosts(step: &Step, model: &Model) -> Vec<String> {
    let mut wrong: Vec<String> = step
        .gone
        .iter()
        .filter(|id| model.images.contains_key(id))
        .map(|id| format!("image {id} is still there"))
        .collect();
    for (name, state) in &step.hosts {
        let ours = model.host(name).map(|host| host.state as u8);
        if ours != Some(*state) {
            wrong.push(format!("{name} is in {ours:?}, recorded {state}"));
        }
    }
    wrong
}

/// A moment of the recording, for the model's clock.
pub(crate) fn at(moment: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an hour at most")]
    let seconds = moment as u64;
    BEGAN + seconds
}

/// What oned had when a scenario began: numbers and addresses that come next, rules, transfer drivers.
pub(crate) fn prepare(oned: &Oned, recording: &Recording) {
    let head = &recording.head;
    let number = head.scenario.split('-').next().unwrap_or_default();
    if number == "28" {
        register(oned, true);
    }
    let mut model = oned.model();
    model.cold_nics = number == "33";
    if number == "33" && model.host("host03").is_none() {
        let (name, vm_mad, state) = ("host03".into(), "ociks".into(), HostState::Monitored);
        model.hosts.insert(2, Host { id: 2, name, vm_mad, state });
    }
    for (name, given) in &head.networks {
        let id = model.network(name).expect("a network").id;
        let network = model.networks.get_mut(&id).expect("a network");
        for (key, values) in Template::read(given).drain() {
            network.template.take(&key);
            values.into_iter().for_each(|value| network.template.add(&key, value));
        }
    }
    if let Some(rules) = &head.rules {
        let rules = Template::read(rules).vectors("RULE").cloned().collect();
        model.groups.insert(100, ("web".to_owned(), rules));
    }
    for (what, value) in &head.next {
        match what.as_str() {
            "vm" => model.next.vm = value.parse().expect("a number"),
            "image" => model.next.image = value.parse().expect("a number"),
            "stat" => model.next.stat = value.parse().expect("a number"),
            network => {
                let id = model.network(network).map(|network| network.id);
                let network = id.and_then(|id| model.networks.get_mut(&id));
                network.expect("a network").begin_at(value.parse().expect("an address"));
            }
        }
    }
}

/// Where the scheduler put the VM of a step, if it did.
pub(crate) fn scheduled(step: &Step) -> Option<String> {
    let by_scheduler = step.command.contains("instantiate") || step.command.contains("--recreate");
    let deployed = step.calls.iter().rfind(|call| call.script.ends_with("/deploy"))?;
    by_scheduler.then(|| deployed.call.clone())
}

/// The transfer drivers of the recordings.
pub(crate) fn register(oned: &Oned, mixed: bool) {
    use crate::model::TransferConf;
    let systems = if mixed { vec!["oci".to_owned()] } else { Vec::new() };
    let (oci, ocis) = (
        TransferConf {
            shared: false,
            ln_target: "SYSTEM",
            clone_target: "SYSTEM",
            systems: Vec::new(),
        },
        TransferConf { shared: true, ln_target: "NONE", clone_target: "SYSTEM", systems },
    );
    oned.model().keepers = vec!["ociks".to_owned()];
    oned.model().transfers = [("oci".to_owned(), oci), ("ocis".to_owned(), ocis)].into();
}

/// Names of values that differ each time: moments, random numbers, space.
const PASSING: [&str; 25] = [
    "STIME",
    "ETIME",
    "PSTIME",
    "PETIME",
    "RSTIME",
    "RETIME",
    "ESTIME",
    "EETIME",
    "REGTIME",
    "MODTIME",
    "LAST_POLL",
    "REQUEST_ID",
    "UUID",
    "DATE",
    "TIME",
    "TOTAL_MB",
    "FREE_MB",
    "USED_MB",
    "ERROR",
    "PREV_STATE",
    "PREV_LCM_STATE",
    "IMAGE_STATE",
    "AUTOMATIC_DS_REQUIREMENTS",
    "PLAN_ID",
    "ACTION_ID",
];

fn without_moment(line: String) -> String {
    let end = line.find(['=', ':']).unwrap_or(line.len());
    let path = &line[..end];
    let name = path.rsplit('/').next().unwrap_or_default();
    let asked = ["UID", "GID"].contains(&name) && path.contains("/HISTORY");
    // Encrypted by a key of that oned's.
    let secret = path.ends_with("/CONTEXT/PASSWORD");
    if PASSING.contains(&name) || asked || secret { format!("{path}=*") } else { line }
}

fn first_difference(ours: &[String], theirs: &[String]) -> Option<String> {
    if theirs.is_empty() && ours.is_empty() {
        return None;
    }
    let at = (0..ours.len().max(theirs.len())).find(|at| ours.get(*at) != theirs.get(*at))?;
    Some(format!("{:?}, recorded {:?}", ours.get(at), theirs.get(at)))
}
