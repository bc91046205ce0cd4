//! Figures: medians and tails, ours beside each peer's.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Life;

/// All that was measured, by figure and contender.
#[derive(Debug, Default)]
pub struct Figures {
    samples: BTreeMap<(&'static str, &'static str), Vec<f64>>,
}

/// Figures and their units, in the order of the table.
const FIGURES: [(&str, &str); 5] = [
    ("first-instruction", "ms"),
    ("create", "ms"),
    ("delete", "ms"),
    ("driver-script", "ms"),
    ("memory-per-guest", "bytes"),
];
/// Whom ours is compared with.
const PEERS: [&str; 4] = ["floor", "runc", "crun", "docker"];

impl Figures {
    /// One life of a guest.
    pub fn life(&mut self, who: &'static str, life: Life) {
        self.add("first-instruction", who, milliseconds(life.first));
        self.add("create", who, milliseconds(life.made));
        self.add("delete", who, milliseconds(life.gone));
    }

    /// One call of the driver script `deploy`.
    pub fn script(&mut self, took: Duration) {
        self.add("driver-script", "ours", milliseconds(took));
    }

    /// Memory of one more guest.
    pub fn memory(&mut self, who: &'static str, bytes: u64) {
        // Far below 2^52.
        self.add("memory-per-guest", who, bytes as f64);
    }

    fn add(&mut self, figure: &'static str, who: &'static str, value: f64) {
        self.samples.entry((figure, who)).or_default().push(value);
    }

    fn of(&self, figure: &str, who: &str) -> Option<Summary> {
        let found = self.samples.iter().find(|((f, w), _)| *f == figure && *w == who);
        Summary::of(found?.1)
    }

    /// An object per figure and peer; without peers the fields about one are null.
    fn objects(&self) -> Vec<Value> {
        let mut objects = Vec::new();
        for (figure, unit) in FIGURES {
            let Some(ours) = self.of(figure, "ours") else { continue };
            let object = |peer: Option<(&str, &Summary)>| {
                json!({
                    "name": figure, "unit": unit, "p50": ours.p50, "p99": ours.p99, "n": ours.n,
                    "peer": peer.map(|(name, _)| name),
                    "peer_p50": peer.map(|(_, s)| s.p50),
                    "ratio": peer.map(|(_, s)| ours.p50 / s.p50),
                })
            };
            let peers = PEERS.iter().filter_map(|name| Some((*name, self.of(figure, name)?)));
            let with: Vec<Value> = peers.map(|(name, s)| object(Some((name, &s)))).collect();
            objects.extend(if with.is_empty() { vec![object(None)] } else { with });
        }
        objects
    }

    /// As JSON lines up to people: one array.
    #[must_use]
    pub fn json(&self) -> String {
        let text = serde_json::to_string_pretty(&self.objects());
        text.unwrap_or_default() + "\n"
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<20}{:<7}{:>12}{:>12}{:>6}  {:<8}{:>12}{:>8}\n",
            "FIGURE", "UNIT", "P50", "P99", "N", "PEER", "PEER P50", "RATIO"
        );
        for object in self.objects() {
            let number = |key: &str| object[key].as_f64().map_or("-".into(), |n| format!("{n:.2}"));
            let word = |key: &str| object[key].as_str().unwrap_or("-").to_owned();
            text.push_str(&format!(
                "{:<20}{:<7}{:>12}{:>12}{:>6}  {:<8}{:>12}{:>8}\n",
                word("name"),
                word("unit"),
                number("p50"),
                number("p99"),
                object["n"],
                word("peer"),
                number("peer_p50"),
                number("ratio"),
            ));
        }
        text
    }
}

fn milliseconds(duration: Duration) -> f64 {
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
}
