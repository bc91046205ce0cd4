//! SIGKILL at random: whatever a process was doing, the store opens, is sound, and has what it had.
//!
//! A child does one thing after another to a store and says on stdout what it begins and what it has done. It is
//! killed at a random moment, again and again, on the same store. What it had said to be done must hold.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/killed.rs"]
mod killed;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use common::*;
use killed::{Random, kill_after};
use ocivisor_datastore::{CheckOptions, Finding, ImageName, Limits, RepairOptions, Source, Store};
use serde_json::json;

const TOP: &str = "OCIVISOR_TEST_CRASH_TOP";
const SEED: &str = "OCIVISOR_TEST_CRASH_SEED";
const DAMAGE: &str = "OCIVISOR_TEST_CRASH_DAMAGE";

const ROUNDS: u32 = 100;
const IMAGES: u32 = 4;

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn layout(top: &Path, n: u32) -> Layout {
    Layout { dir: top.join(format!("layout{n}")) }
}

/// Images that share layers.
fn make_layouts(top: &Path) {
    let layer = |n: u32| {
        let mut tar = RawTar::new().dir("d");
        for file in 0..12u8 {
            tar = tar.file(&format!("d/l{n}f{file}"), &vec![file; 700 * usize::from(file)]);
        }
        gzipped(&tar.file(".wh.gone", b"").end())
    };
    for n in 0..IMAGES {
        let layout = Layout::new(&layout(top, n).dir);
        layout.image(&[layer(0), layer(n + 1), layer(n + 2)], &json!({"Cmd": [n.to_string()]}));
    }
}

fn source(top: &Path, n: u32) -> Source {
    layout(top, n).source()
}

/// The child's life. Without the variables there is nothing to do.
#[test]
fn child() {
    let Some(top) = std::env::var_os(TOP) else { return };
    let top = Path::new(&top);
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let damage = std::env::var_os(DAMAGE).is_some();
    let mut random = Random(seed);
    let mut out = std::io::stdout();
    let store = Store::open(&top.join("store")).unwrap();
    loop {
        let (n, m) = (random.next(IMAGES), random.next(IMAGES));
        let (from, to) = (name(&format!("n{n}")), name(&format!("n{m}")));
        // One write each, so that a line is there or not.
        let mut say = |text: String| out.write_all(format!("{text}\n").as_bytes()).unwrap();
        match random.next(8) {
            0..=2 => {
                say(format!("begin n{n}"));
                let made = store.import(&source(top, n), &from, &Limits::default(), &mut |_| {});
                say(format!("done n{n} {}", made.unwrap().manifest_digest));
            }
            3 => {
                say(format!("begin n{m}"));
                let tagged = store.tag(&from.into(), &to).map(|i| i.manifest_digest.to_string());
                // Its name was not there, or its layers were just damaged.
                say(format!("done n{m} {}", tagged.unwrap_or_else(|_| "unchanged".into())));
            }
            4 => {
                say(format!("begin n{n}"));
                store.remove(&from).unwrap();
                say(format!("done n{n} none"));
            }
            5 => drop(store.prune(&HashSet::new()).unwrap()),
            6 if damage => {
                for listed in store.list().unwrap() {
                    let file = store.layer_path(&listed.layers[1]).join("d");
                    for file in fs::read_dir(file).into_iter().flatten().flatten().take(3) {
                        put(&file.path(), b"damaged");
                    }
                }
            }
            _ => {
                let options = RepairOptions {
                    check: CheckOptions::default(),
                    in_use: &HashSet::new(),
                    refetch: None,
                };
                store.repair(&options).unwrap();
            }
        }
    }
}

fn spawn(bench: &Bench, seed: u32, damage: bool) -> Child {
    let mut command = killed::itself();
    command.env(TOP, bench.top.path()).env(SEED, seed.to_string());
    if damage {
        command.env(DAMAGE, "1");
    }
    command.spawn().unwrap()
}

/// What each name may point at: one thing, or two while the child was at it.
type Truth = BTreeMap<String, Vec<String>>;

fn follow(truth: &mut Truth, text: &str, digests: &[String]) {
    let mut begun: Option<(String, Vec<String>)> = None;
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["begin", name] => {
                begun = Some((name.to_owned(), truth.get(name).cloned().unwrap_or_default()));
                // Anything an operation could make of it.
                let all = digests.iter().cloned().chain(["none".to_owned()]).collect();
                truth.insert(name.to_owned(), all);
            }
            ["done", name, "unchanged"] => {
                let (_, before) = begun.take().unwrap();
                truth.insert(name.to_owned(), before);
            }
            ["done", name, what] => drop(truth.insert(name.to_owned(), vec![what.to_owned()])),
            _ => {}
        }
    }
}

fn rounds(damage: bool, rounds: u32) {
    let bench = Bench::new();
    make_layouts(bench.top.path());
    let digests: Vec<String> = (0..IMAGES)
        .map(|n| {
            let other = Store::open(&bench.path("other")).unwrap();
            let limits = Limits::default();
            let made = other.import(&source(bench.top.path(), n), &name("x"), &limits, &mut |_| {});
            made.unwrap().manifest_digest.to_string()
        })
        .collect();
    let mut truth = Truth::new();
    for n in 0..IMAGES {
        truth.insert(format!("n{n}"), vec!["none".into()]);
    }
    let mut random = Random(42);
    for round in 0..rounds {
        let time = Duration::from_micros(u64::from(random.next(40_000)));
        let child = spawn(&bench, round, damage);
        let text = killed::text(&kill_after(child, |line| line.starts_with("begin"), time));
        follow(&mut truth, &text, &digests);

        // Before anybody cleans: what is visible is whole, and rubbish is in staging only.
        let found = bench.store.fsck().unwrap();
        let expected = |f: &Finding| {
            matches!(f, Finding::StagingLeftover { .. })
                || (damage && matches!(f, Finding::LayerChanged { .. }))
        };
        assert!(found.iter().all(expected), "{round}: {found:?}\n{text}");
        let store = Store::open(&bench.path("store")).unwrap();
        assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new(), "{round}");
        for listed in store.list().unwrap() {
            store.resolve(&listed.manifest_digest.into()).unwrap();
        }
        for (name_text, may) in &mut truth {
            let is = match store.resolve(&name(name_text).into()) {
                Ok(image) => image.manifest_digest.to_string(),
                Err(ocivisor_datastore::Error::NotFound { .. }) => "none".to_owned(),
                Err(e) => panic!("{round}: {e:?}"),
            };
            assert!(may.contains(&is), "{round}: {name_text} is {is}, not {may:?}\n{text}");
            *may = vec![is];
        }
    }
    let options =
        RepairOptions { check: CheckOptions::default(), in_use: &HashSet::new(), refetch: None };
    let report = bench.store.repair(&options).unwrap();
    assert!(report.findings.iter().all(|f| !f.is_open()), "{report:?}");
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
    // All of it again, to the end.
    for n in 0..IMAGES {
        let limits = Limits::default();
        let name = name(&format!("n{n}"));
        bench.store.import(&source(bench.top.path(), n), &name, &limits, &mut |_| {}).unwrap();
    }
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn killed_at_any_moment_a_hundred_times_the_store_is_sound_and_keeps_its_word() {
    rounds(false, ROUNDS);
}

#[test]
fn killed_in_the_middle_of_repairs_the_store_can_still_be_repaired() {
    rounds(true, ROUNDS / 3);
}
