//! Recordings of a real oned: what was asked of it, which scripts it called, where its VMs ended.
//!
//! A file of JSON lines per scenario: a head, then for each step what a user did, the calls in the order in which the
//! scripts began, the lines between oned and its driver processes, and the states afterwards.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What the scenario begins with.
#[derive(Debug, Clone, Deserialize)]
pub struct Head {
    /// Its name.
    pub scenario: String,
    /// What it is about.
    pub title: String,
    /// Numbers and addresses that come next: `vm`, `image`, names of networks.
    #[serde(default)]
    pub next: BTreeMap<String, String>,
    /// Rules of the security group `web` then.
    #[serde(default)]
    pub rules: Option<String>,
    /// What networks had been given then, by name.
    #[serde(default)]
    pub networks: BTreeMap<String, String>,
}

/// A call of a script.
#[derive(Debug, Clone, Deserialize)]
pub struct RecordedCall {
    /// The machine.
    pub call: String,
    /// The script's path.
    pub script: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Exit status that the recorder gave.
    #[serde(default)]
    pub exit: i32,
    /// Its output.
    #[serde(default)]
    pub out: String,
    /// Its errors.
    #[serde(default)]
    pub err: String,
    /// Whether it had not ended when the step was over: it ends in the next.
    #[serde(default)]
    pub held: bool,
    /// The document on its standard input, as it differs from the one before.
    #[serde(default)]
    pub stdin: Option<Change>,
    /// That document; none: no document came.
    #[serde(skip)]
    pub document: Vec<String>,
    /// Its name among all recorded calls.
    pub id: String,
}

/// How a document differs from the one recorded before it, as lines of [`crate::xml::Element::lines`]: at which line, how
/// many are left out, which come instead.
pub type Change = Vec<(usize, usize, Vec<String>)>;

/// What a step was and led to.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// Its number.
    pub number: u32,
    /// The command; none: time went by.
    pub command: String,
    /// The command's file.
    pub given: String,
    /// What it printed.
    pub prints: Option<String>,
    /// Why it was refused.
    pub refused: Option<String>,
    /// Seconds since recording began, if something happened.
    pub at: Option<f64>,
    /// Calls of scripts.
    pub calls: Vec<RecordedCall>,
    /// Lines: driver, whether it speaks, text.
    pub lines: Vec<(String, bool, String)>,
    /// Scripts that were removed from hosts before: host, path.
    pub removed: Vec<(String, String)>,
    /// What the host's probe said from then on: host, seconds, text.
    pub probes: Vec<(String, f64, String)>,
    /// VMs afterwards: number, `STATE`, `LCM_STATE`, error.
    pub vms: Vec<(u32, u8, u8, Option<String>)>,
    /// Images afterwards: number, state, source, format, size, error.
    pub images: Vec<(u32, String, [String; 3], Option<String>)>,
    /// What a host's probe said of commands in guests.
    pub executed: Option<String>,
    /// Images that are gone.
    pub gone: Vec<u32>,
    /// Hosts afterwards: name, `STATE`.
    pub hosts: Vec<(String, u8)>,
}

/// A scenario.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Its head.
    pub head: Head,
    /// Its steps.
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Step {
        step: u32,
        #[serde(rename = "do")]
        command: String,
        #[serde(default)]
        given: String,
        prints: Option<String>,
        refused: Option<String>,
        at: Option<f64>,
    },
    Call(Box<RecordedCall>),
    Ask {
        ask: String,
        line: String,
    },
    Say {
        say: String,
        line: String,
        #[serde(default)]
        more: bool,
    },
    Probe {
        host: String,
        at: f64,
        out: String,
        #[serde(rename = "probe")]
        _probe: String,
    },
    Executed {
        executed: String,
    },
    Removed {
        removed: String,
        host: String,
    },
    Host {
        host: String,
        state: u8,
    },
    Vm {
        vm: u32,
        state: u8,
        lcm: u8,
        error: Option<String>,
    },
    Image {
        image: u32,
        state: String,
        source: String,
        format: String,
        size: u64,
        error: Option<String>,
    },
    Gone {
        gone: u32,
    },
}

impl Recording {
    /// The recording of that name.
    ///
    /// # Panics
    /// There is none, or it cannot be read.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings");
        let path = dir.join(format!("{name}.jsonl"));
        let text = std::fs::read_to_string(&path);
        let text = text.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut lines = text.lines();
        let head = serde_json::from_str(lines.next().unwrap_or_default()).unwrap();
        let mut before = Vec::new();
        let mut steps: Vec<Step> = Vec::new();
        for line in lines {
            let entry =
                serde_json::from_str(line).unwrap_or_else(|e| panic!("{name}: {e}: {line}"));
            take(entry, &mut steps, &mut before);
        }
        Self { head, steps }
    }
}

fn take(entry: Entry, steps: &mut Vec<Step>, before: &mut Vec<String>) {
    if let Entry::Step { step, command, given, prints, refused, at } = entry {
        steps.push(Step { number: step, command, given, prints, refused, at, ..Step::default() });
        return;
    }
    let step = steps.last_mut().expect("a step before what happened in it");
    match entry {
        Entry::Step { .. } => {}
        Entry::Call(mut call) => {
            if let Some(change) = &call.stdin {
                apply(change, before);
                call.document.clone_from(before);
            }
            step.calls.push(*call);
        }
        Entry::Ask { ask, line } => step.lines.push((ask, false, line)),
        Entry::Say { line, more: true, .. } => {
            if let Some((_, _, last)) = step.lines.last_mut() {
                last.push('\n');
                last.push_str(&line);
            }
        }
        Entry::Say { say, line, .. } => step.lines.push((say, true, line)),
        Entry::Probe { host, at, out, .. } => step.probes.push((host, at, out)),
        Entry::Executed { executed } => step.executed = Some(executed),
        Entry::Removed { removed, host } => step.removed.push((host, removed)),
        Entry::Host { host, state } => step.hosts.push((host, state)),
        Entry::Vm { vm, state, lcm, error } => step.vms.push((vm, state, lcm, error)),
        Entry::Image { image, state, source, format, size, error } => {
            step.images.push((image, state, [source, format, size.to_string()], error));
        }
        Entry::Gone { gone } => step.gone.push(gone),
    }
}

fn apply(change: &Change, lines: &mut Vec<String>) {
    for (at, gone, instead) in change.iter().rev() {
        lines.splice(*at..at + gone, instead.iter().cloned());
    }
}
