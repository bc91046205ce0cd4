//! The drivers' side of oned: what `one_vmm_exec`, `one_tm` and `one_datastore` do with a request (contract §0, §2.3).

mod process;
mod steps;
mod stream;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::place::Place;
use crate::xml::Element;
pub use steps::Job;

/// Generations whose MADs differ in what becomes of standard error (§0.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// 6.10: the whole of it, newlines turned into blanks.
    Six,
    /// 7.0 and later: lines without a prefix, joined by nothing.
    Seven,
}

/// A script as it was called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The machine.
    pub on: String,
    /// The script's path.
    pub script: String,
    /// What followed.
    pub args: Vec<String>,
    /// What it could read.
    pub stdin: Vec<u8>,
    /// What it answered: exit status, output, errors.
    pub answer: (i32, String, String),
}

impl Call {
    /// What followed, as recordings have it: paths as they would be in a real installation, documents left out.
    #[must_use]
    pub fn words(&self, place: &Place) -> Vec<String> {
        let document = |word: &str| document_of(word).is_some();
        let word = |word: &String| match document(word) {
            true => "…".to_owned(),
            false => place.plain(word),
        };
        self.args.iter().map(word).collect()
    }
}

/// The document that a word is in base64, if it is one.
pub(crate) fn document_of(word: &str) -> Option<String> {
    let text = String::from_utf8(unbase64(word)?).ok()?;
    text.starts_with('<').then_some(text)
}

/// What a driver process answered to oned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done; what it says.
    Success(String),
    /// Not done; why.
    Failure(String),
    /// oned took it back; nobody hears of it.
    Cancelled,
}

/// A line between oned and a driver process: its name, whether the driver says it, the line.
pub type Line = (&'static str, bool, String);

/// The driver processes.
#[derive(Debug)]
pub struct Drivers {
    /// Where scripts are.
    pub place: Place,
    /// Directory of the VMM scripts below `vmm`.
    pub vmm: String,
    /// `-p`: several actions on one host at once.
    pub parallel: bool,
    trace: Mutex<Vec<Call>>,
    lines: Mutex<Vec<Line>>,
    busy: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
    interventions: Interventions,
    cancels: Mutex<BTreeMap<u32, Arc<AtomicBool>>>,
}

/// The end of a script's path, and what happens right before it is called.
type Intervention = (String, Box<dyn FnOnce() + Send>);

/// What happens right before scripts are called.
#[derive(Default)]
struct Interventions(Mutex<Vec<Intervention>>);

impl std::fmt::Debug for Interventions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(lock(&self.0).iter().map(|(script, _)| script)).finish()
    }
}

/// A lock whose holder may have failed a test meanwhile.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drivers {
    /// Driver processes for these scripts.
    #[must_use]
    pub fn new(place: Place, vmm: &str) -> Self {
        Self {
            place,
            vmm: vmm.to_owned(),
            parallel: true,
            trace: Mutex::default(),
            lines: Mutex::default(),
            busy: Mutex::default(),
            interventions: Interventions::default(),
            cancels: Mutex::default(),
        }
    }

    /// Calls since this was last asked.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut lock(&self.trace))
    }

    /// Lines since this was last asked.
    pub fn take_lines(&self) -> Vec<Line> {
        std::mem::take(&mut lock(&self.lines))
    }

    /// Whether there were lines since they were last asked for.
    pub fn has_lines(&self) -> bool {
        !lock(&self.lines).is_empty()
    }

    fn note(&self, call: Call) {
        lock(&self.trace).push(call);
    }

    /// Right before the next call of a script whose path ends so, this happens.
    pub fn before(&self, script: &str, what: impl FnOnce() + Send + 'static) {
        lock(&self.interventions.0).push((script.to_owned(), Box::new(what)));
    }

    /// What was to happen before calls that never came: their scripts.
    pub fn forget_interventions(&self) -> Vec<String> {
        lock(&self.interventions.0).drain(..).map(|(script, _)| script).collect()
    }

    /// A script is about to be called.
    fn intervene(&self, script: &str) {
        let what = {
            let mut waiting = lock(&self.interventions.0);
            let at = waiting.iter().position(|(end, _)| script.ends_with(end.as_str()));
            at.map(|at| waiting.remove(at).1)
        };
        if let Some(what) = what {
            what();
        }
    }

    fn line(&self, driver: &'static str, says: bool, text: String) {
        lock(&self.lines).push((driver, says, text));
    }

    /// oned takes back what a driver process does for that VM (`DRIVER_CANCEL`): the process forgets it, whatever
    /// runs on hosts goes on.
    pub fn cancel(&self, driver: &'static str, vm: u32) {
        self.line(driver, false, format!("DRIVER_CANCEL  {vm} "));
        if let Some(token) = lock(&self.cancels).get(&vm) {
            token.store(true, Ordering::Relaxed);
        }
        if driver == "one_tm" {
            self.line(driver, true, format!("LOG I {vm} Driver command for {vm} cancelled"));
        }
    }

    /// Whether something is being done for that VM.
    #[must_use]
    pub fn works_for(&self, vm: u32) -> bool {
        lock(&self.cancels).contains_key(&vm)
    }

    /// One request: its lines, and that it can be taken back.
    fn request(
        &self,
        driver: &'static str,
        word: &str,
        id: u32,
        payload: &str,
        work: impl FnOnce(&AtomicBool) -> Answer,
    ) -> Answer {
        self.line(driver, false, format!("{word}  {id} {payload}"));
        let token = Arc::new(AtomicBool::new(false));
        lock(&self.cancels).insert(id, Arc::clone(&token));
        let answer = work(&token);
        lock(&self.cancels).retain(|_, held| !Arc::ptr_eq(held, &token));
        match &answer {
            Answer::Success(text) => self.line(driver, true, format!("{word} SUCCESS {id} {text}")),
            Answer::Failure(text) => self.line(driver, true, format!("{word} FAILURE {id} {text}")),
            Answer::Cancelled => {}
        }
        answer
    }

    /// Waits for the turn on a host, where one action at a time is done.
    fn turn(&self, host: &str) -> Arc<Mutex<()>> {
        let key = if self.parallel { String::new() } else { host.to_owned() };
        let turn = Arc::clone(lock(&self.busy).entry(key).or_default());
        if self.parallel { Arc::default() } else { turn }
    }

    /// Runs a transfer file line by line, to the first that fails.
    pub fn transfer(&self, vm: u32, path: &str, lines: &[String]) -> Answer {
        self.request("one_tm", "TRANSFER", vm, path, |token| {
            for line in lines {
                match self.transfer_line(line, b"", token) {
                    Answer::Success(_) => {}
                    other => return other,
                }
            }
            Answer::Success("-".to_owned())
        })
    }

    /// A line of a transfer file: `COMMAND[.SYSTEM] DRIVER ARGUMENT…`.
    fn transfer_line(&self, line: &str, stdin: &[u8], token: &AtomicBool) -> Answer {
        let mut words = line.split_whitespace();
        let (command, driver) =
            (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let dir = self.place.remotes().join("tm").join(driver);
        let mut script = dir.join(command.to_lowercase());
        if !script.exists() {
            let short = command.split('.').next().unwrap_or_default();
            script = dir.join(short.to_lowercase());
        }
        let args: Vec<String> = words.map(str::to_owned).collect();
        self.local(&script, &args, stdin, token)
    }

    /// A request to the datastore driver, with its document in base64.
    pub fn datastore(&self, word: &str, store: &str, id: u32, document: &str) -> Answer {
        let script = self.place.remotes().join("datastore").join(store).join(word.to_lowercase());
        let stdin = base64(document.as_bytes());
        self.request("one_datastore", word, id, "…", |token| {
            self.local(&script, &[id.to_string()], stdin.as_bytes(), token)
        })
    }

    /// A request to the datastore driver of a backup, in words as a transfer driver gets them.
    fn back_up(
        &self,
        word: &str,
        store: &str,
        words: &[String],
        document: &str,
        token: &AtomicBool,
    ) -> Answer {
        let script = self.place.remotes().join("datastore").join(store).join(word);
        self.local(&script, words, document.as_bytes(), token)
    }

    /// Space of a datastore: the driver's answer.
    pub fn monitor_datastore(&self, kind: &str, driver: &str, id: u32, document: &str) -> Answer {
        let script = self.place.remotes().join(kind).join(driver).join("monitor");
        let stdin = base64(document.as_bytes());
        self.local(&script, &[id.to_string()], stdin.as_bytes(), &AtomicBool::new(false))
    }

    /// A network is told to its driver, if that wants to hear of it; how it answers means nothing here.
    pub fn create_network(&self, id: u32, driver: &str, document: &Element) {
        let script = format!("ipam/../vnm/{driver}/vnet_create");
        // The path goes by a directory that a driver tree need not have.
        let _first = std::fs::create_dir_all(self.place.remotes().join("ipam"));
        let script = self.place.remotes().join(script);
        if script.exists() {
            let stdin = base64(document.write().as_bytes());
            let token = AtomicBool::new(false);
            let _told = self.local(&script, &[id.to_string()], stdin.as_bytes(), &token);
        }
    }

    /// By the version that stands at the top of the drivers' tree.
    #[must_use]
    pub fn generation(&self) -> Generation {
        let version = std::fs::read_to_string(self.place.remotes().join("VERSION"));
        if version.is_ok_and(|text| text.starts_with("6.")) {
            Generation::Six
        } else {
            Generation::Seven
        }
    }

    /// What becomes of a script's standard error for the user.
    #[must_use]
    pub fn message(&self, stderr: &str) -> String {
        match self.generation() {
            Generation::Six => stderr.trim().replace('\n', " "),
            Generation::Seven => {
                let plain = stderr.lines().filter(|line| {
                    !["ERROR: ", "INFO: ", "WARN: ", "DEBUG: "].iter().any(|p| line.starts_with(p))
                });
                plain.map(str::trim).collect()
            }
        }
    }
}

/// In one line.
#[must_use]
pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// The bytes of a text in base64, line breaks left out.
#[must_use]
pub fn unbase64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    let text: String = text.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}
