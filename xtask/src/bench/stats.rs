//! Figures: medians and tails, ours beside each peer's.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Life;
use super::ours::Crowd;

/// All that was measured, by figure and contender.
#[derive(Debug, Default)]
pub struct Figures {
    samples: BTreeMap<(&'static str, &'static str), Vec<f64>>,
    /// Only these; all if there are none.
    wanted: Vec<String>,
    /// Who does not run here, and why.
    left_out: Vec<(&'static str, String)>,
    /// Other figures and contenders than those of guests.
    of_others: Option<(Names, &'static [&'static str])>,
}

/// Figures with their units.
type Names = &'static [(&'static str, &'static str)];

/// Figures and their units, in the order of the table.
pub const FIGURES: [(&str, &str); 9] = [
    ("deploy", "ms"),
    ("deploy-answer", "ms"),
    ("delete", "ms"),
    ("driver-script", "ms"),
    ("memory", "KiB"),
    ("list", "ms"),
    ("info", "ms"),
    ("stats", "ms"),
    ("stats-cpu", "ms"),
];
/// Whom ours is compared with.
pub const PEERS: [&str; 4] = ["floor", "runc", "crun", "docker"];

impl Figures {
    /// Only these figures; all if none is named.
    #[must_use]
    pub fn new(wanted: &[String]) -> Self {
        Self { wanted: wanted.to_vec(), ..Self::default() }
    }

    /// Of something else than guests.
    #[must_use]
    pub fn of_others(figures: Names, peers: &'static [&'static str]) -> Self {
        Self { of_others: Some((figures, peers)), ..Self::default() }
    }

    fn names(&self) -> (Names, &'static [&'static str]) {
        self.of_others.unwrap_or((&FIGURES, &PEERS))
    }

    /// Who could not be measured.
    pub fn left_out(&mut self, who: &'static str, why: String) {
        self.left_out.push((who, why));
    }

    /// One life of a guest.
    pub fn life(&mut self, who: &'static str, life: Life) {
        self.add("deploy", who, milliseconds(life.first));
        self.add("deploy-answer", who, milliseconds(life.made));
        self.add("delete", who, milliseconds(life.gone));
    }

    /// One call of the driver script `deploy`.
    pub fn script(&mut self, took: Duration) {
        self.add("driver-script", "ours", milliseconds(took));
    }

    /// What stays resident, for each of many guests.
    pub fn memory(&mut self, who: &'static str, bytes: &[u64]) {
        for bytes in bytes {
            // Far below 2^52.
            self.add("memory", who, *bytes as f64 / 1024.0);
        }
    }

    /// What is measured beside many guests of ours.
    pub fn crowd(&mut self, crowd: &Crowd) {
        self.memory("ours", &crowd.memory);
        for (figure, answers) in [("list", &crowd.list), ("info", &crowd.info)] {
            answers.iter().for_each(|took| self.add(figure, "ours", milliseconds(*took)));
        }
    }

    /// Passes over many guests: until the answer, and on the daemon's processors.
    pub fn passes(&mut self, passes: &[(Duration, Duration)]) {
        for (answer, cpu) in passes {
            self.add("stats", "ours", milliseconds(*answer));
            self.add("stats-cpu", "ours", milliseconds(*cpu));
        }
    }

    /// One sample.
    pub fn add(&mut self, figure: &'static str, who: &'static str, value: f64) {
        self.samples.entry((figure, who)).or_default().push(value);
    }

    fn of(&self, figure: &str, who: &str) -> Option<Summary> {
        let found = self.samples.iter().find(|((f, w), _)| *f == figure && *w == who);
        Summary::of(found?.1)
    }

    /// An object per figure and peer; without peers the fields about one are null. A peer that
    /// does not run here is told with the first figure, and why.
    fn objects(&self) -> Vec<Value> {
        let mut objects = Vec::new();
        let wanted =
            |name: &str| self.wanted.is_empty() || self.wanted.iter().any(|own| own == name);
        let (figures, peers) = self.names();
        for (figure, unit) in figures.iter().filter(|(figure, _)| wanted(figure)) {
            let Some(ours) = self.of(figure, "ours") else { continue };
            let object = |peer: Option<(&str, &Summary)>| {
                json!({
                    "name": figure, "unit": unit, "p50": ours.p50, "p99": ours.p99, "n": ours.n,
                    "peer": peer.map(|(name, _)| name),
                    "peer_p50": peer.map(|(_, s)| s.p50),
                    "ratio": peer.map(|(_, s)| ours.p50 / s.p50),
                })
            };
            let peers = peers.iter().filter_map(|name| Some((*name, self.of(figure, name)?)));
            let with: Vec<Value> = peers.map(|(name, s)| object(Some((name, &s)))).collect();
            let first = objects.is_empty();
            objects.extend(if with.is_empty() { vec![object(None)] } else { with });
            for (name, why) in self.left_out.iter().filter(|_| first) {
                let mut told = object(None);
                told["peer"] = json!(name);
                told["not_run"] = json!(why);
                objects.push(told);
            }
        }
        objects
    }

    /// As JSON: one array.
    #[must_use]
    pub fn json(&self) -> String {
        let text = serde_json::to_string_pretty(&self.objects());
        text.unwrap_or_default() + "\n"
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<18} {:<6} {:>12} {:>12} {:>5}  {:<7} {:>12} {:>7}\n",
            "FIGURE", "UNIT", "P50", "P99", "N", "PEER", "PEER P50", "RATIO"
        );
        for object in self.objects() {
            let number = |key: &str| object[key].as_f64().map_or("-".into(), |n| format!("{n:.2}"));
            let word = |key: &str| object[key].as_str().unwrap_or("-").to_owned();
            text.push_str(&format!(
                "{:<18} {:<6} {:>12} {:>12} {:>5}  {:<7} {:>12} {:>7}\n",
                word("name"),
                word("unit"),
                number("p50"),
                number("p99"),
                object["n"].to_string(),
                word("peer"),
                number("peer_p50"),
                number("ratio"),
            ));
        }
        for (name, why) in &self.left_out {
            text.push_str(&format!("not run: {name}: {why}\n"));
        }
        text
    }
}

/// As figures have it.
#[must_use]
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Median and tail.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Summary {
    p50: f64,
    p99: f64,
    n: usize,
}

impl Summary {
    /// By the nearest rank; nothing of nothing.
    fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let rank = |percent: usize| sorted.get((n * percent).div_ceil(100).max(1) - 1).copied();
        Some(Self { p50: rank(50)?, p99: rank(99)?, n })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_nearest() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(Summary::of(&samples), Some(Summary { p50: 50.0, p99: 99.0, n: 100 }));
        assert_eq!(Summary::of(&[7.0]), Some(Summary { p50: 7.0, p99: 7.0, n: 1 }));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn each_peer_has_an_object() {
        let mut figures = Figures::default();
        let life = |ms| Life {
            first: Duration::from_millis(ms),
            made: Duration::from_millis(ms),
            gone: Duration::from_millis(ms),
        };
        figures.life("ours", life(10));
        figures.life("floor", life(5));
        figures.script(Duration::from_millis(30));
        let objects = figures.objects();
        assert_eq!(objects.len(), 4);
        assert_eq!(objects[0]["ratio"], 2.0);
        assert_eq!(objects[0]["peer"], "floor");
        assert_eq!(objects[3]["peer"], Value::Null);
    }

    #[test]
    fn a_peer_that_does_not_run_is_told_with_its_reason() {
        let mut figures = Figures::new(&["driver-script".to_owned()]);
        figures.script(Duration::from_millis(30));
        figures.left_out("crun", "it refuses".to_owned());
        let objects = figures.objects();
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[1]["peer"], "crun");
        assert_eq!(objects[1]["ratio"], Value::Null);
        assert_eq!(objects[1]["not_run"], "it refuses");
    }
}
