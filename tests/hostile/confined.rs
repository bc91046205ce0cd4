//! A store with the real worker, and a look at the worker while it works.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ocivisor_datastore::worker::Worker;
use ocivisor_datastore::{Error, Image, Limits, Progress, Store};

use crate::common::{Bench, RawTar, plain};

/// Ids that nobody has on a machine that runs tests.
pub const BASE: u32 = 1_879_048_192;

/// The program that was built with this test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_ocivisor-unpack");

pub fn worker() -> Worker {
    Worker::new(PROGRAM, BASE)
}

pub fn bench() -> Bench {
    bench_of(worker())
}

pub fn bench_of(worker: Worker) -> Bench {
    Bench::opened(|root| Store::open(root).unwrap().with_worker(worker))
}

/// The two processes of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub broker: u32,
    pub confined: u32,
}

/// The worker that a process has started for a layer below `top`.
pub fn pair_of(parent: u32, top: &Path) -> Pair {
    let mut brokers = children(parent);
    // Tests may be threads of one process.
    brokers.retain(|pid| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
        fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).any(|to| to.starts_with(top))
    });
    let [broker] = brokers[..] else { panic!("{brokers:?}") };
    let [confined] = children(broker)[..] else { panic!("{:?}", children(broker)) };
    Pair { broker, confined }
}

/// Children of all threads of a process that are workers.
pub fn children(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    pids.filter(|pid| {
        // Gone in between is no child.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((before, after)) = stat.rsplit_once(')') else { return false };
        before.ends_with("(ocivisor-unpack")
            && after.split_whitespace().nth(1) == Some(&parent.to_string())
    })
    .collect()
}

pub fn proc(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

/// A line of /proc/PID/status.
pub fn status(pid: u32, field: &str) -> String {
    status_of(pid, field).unwrap()
}

/// The same of a process that may be gone.
pub fn status_of(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(&format!("{field}:")))?;
    Some(line.trim().to_owned())
}

pub fn is_gone(pid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // A zombie runs no more; whom it belongs to, is its parent's business.
        Ok(stat) => stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'),
        Err(_) => true,
    }
}

/// Waits until it is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::yield_now();
    }
}

/// Bytes that no compression makes smaller.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1u64;
    let next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// A tar that takes several looks to import.
pub fn long_tar() -> Vec<u8> {
    RawTar::new().file("first", b"first").file("long", &noise(17 << 20)).end()
}

/// Imports [`long_tar`] and calls `look` once in the middle, while the worker waits for more.
pub fn import_looking(bench: &Bench, mut look: impl FnMut(Pair)) -> Result<Image, Error> {
    let layout = bench.layout("layout");
    layout.image(&[plain(long_tar())], &serde_json::json!({}));
    let mut looked = false;
    let name = "test".parse().unwrap();
    let result = bench.store.import(&layout.source(), &name, &Limits::default(), &mut |p| {
        // Eight mebibytes on, the worker has read what no pipe and buffer holds: it is confined.
        if matches!(p, Progress::Layer { done, .. } if done > 8 << 20) && !looked {
            looked = true;
            look(pair_of(std::process::id(), bench.top.path()));
        }
    });
    assert!(looked);
    result
}

pub fn fake(name: &str) -> Worker {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/hostile/fakes");
    Worker::new(dir.join(name).canonicalize().unwrap(), BASE)
}
