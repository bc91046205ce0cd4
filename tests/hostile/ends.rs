//! How a worker may end before its time, and what is left then: nothing.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use ocivisor_datastore::{Error, Limits, Source, Store};
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Bench, entries};
use crate::confined::*;

fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn why(error: Error) -> String {
    match error {
        Error::Worker { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

/// Imports, does something to the worker in the middle, and checks that its end leaves nothing.
fn interrupted(bench: &Bench, interrupt: impl Fn(Pair)) -> Error {
    let mut seen = None;
    let result = import_looking(bench, |pair| {
        seen = Some(pair);
        interrupt(pair);
    });
    let error = result.unwrap_err();
    let Pair { broker, confined } = seen.unwrap();
    // The worker dies with its broker, a moment later.
    until("both are gone", || is_gone(broker) && is_gone(confined));
    bench.assert_nothing_happened();
    error
}

#[test]
fn a_worker_killed_in_the_middle_leaves_nothing() {
    let bench = bench();
    let error = interrupted(&bench, |pair| send(pair.confined, Signal::KILL));
    let want = "was killed by signal 9; the memory limit of its control group may be too low";
    assert_eq!(why(error), want);
    // And the next one finds all in order.
    import_looking(&bench, |_| {}).unwrap();
}

#[test]
fn a_broker_killed_in_the_middle_takes_the_worker_along() {
    let error = interrupted(&bench(), |pair| send(pair.broker, Signal::KILL));
    assert!(why(error).starts_with("was killed by signal 9"));
}

#[test]
fn a_worker_that_hangs_is_killed() {
    let bench = bench_of(worker().with_patience(Duration::from_secs(1)));
    let error = interrupted(&bench, |pair| send(pair.confined, Signal::STOP));
    assert_eq!(why(error), "did nothing for 1 s and was killed");
}

#[test]
fn a_broker_that_hangs_is_killed_with_its_worker() {
    let bench = bench_of(worker().with_patience(Duration::from_secs(1)));
    let error = interrupted(&bench, |pair| {
        send(pair.confined, Signal::STOP);
        send(pair.broker, Signal::STOP);
    });
    assert_eq!(why(error), "did nothing for 1 s and was killed");
}

const STORE: &str = "OCIVISOR_TEST_HOSTILE_STORE";
const LAYOUT: &str = "OCIVISOR_TEST_HOSTILE_LAYOUT";

/// The life of an importing process that stops in the middle; without the variables there is nothing to do.
#[test]
fn importer() {
    let (Some(store), Some(layout)) = (std::env::var_os(STORE), std::env::var_os(LAYOUT)) else {
        return;
    };
    let top = std::path::Path::new(&store).parent().unwrap().to_owned();
    let store = Store::open(store.as_ref()).unwrap().with_worker(worker());
    let source = Source::OciLayout { dir: layout.into(), tag: None };
    let mut told = false;
    let result = store.import(&source, &"app".parse().unwrap(), &Limits::default(), &mut |p| {
        if matches!(p, ocivisor_datastore::Progress::Layer { done, .. } if done > 8 << 20) && !told
        {
            told = true;
            let Pair { broker, confined } = pair_of(std::process::id(), &top);
            eprintln!("pair {broker} {confined}");
            // Until it is killed.
            until("killed", || false);
        }
    });
    result.unwrap();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test runs itself as the process to be killed")]
fn a_worker_does_not_outlive_who_started_it() {
    let bench = bench();
    let layout = bench.layout("layout");
    layout.image(&[crate::common::plain(long_tar())], &serde_json::json!({}));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["ends::importer", "--exact", "--nocapture"])
        .env(STORE, bench.path("store"))
        .env(LAYOUT, bench.path("layout"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stderr.take().unwrap());
    let line = said.lines().map(Result::unwrap).find(|l| l.starts_with("pair ")).unwrap();
    let pids: Vec<u32> = line.split(' ').skip(1).map(|n| n.parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| !is_gone(*pid)));
    child.kill().unwrap();
    child.wait().unwrap();
    until("the worker outlives its importer", || pids.iter().all(|pid| is_gone(*pid)));
    assert_eq!(entries(&bench.path("store/staging")).len(), 2);
    drop(Store::open(&bench.path("store")).unwrap());
    bench.assert_nothing_happened();
}
