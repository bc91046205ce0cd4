//! SIGKILL in the middle of a commit or a save: the store stays sound, and no half archive has the name.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
mod out_common;

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use ocivisor_datastore::{
    Archive, CommitChanges, CommitOptions, DiffId, Error, Finding, IdMap, Image, ImageName, Store,
    Upper,
};
use out_common::*;

const TOP: &str = "OCIVISOR_TEST_OUT_TOP";
const WORK: &str = "OCIVISOR_TEST_OUT_WORK";

const KILLS: u32 = 6;

/// The child's life: one commit or one save. Without the variables there is nothing to do.
#[test]
fn child() {
    let (Some(top), Some(work)) = (std::env::var_os(TOP), std::env::var(WORK).ok()) else {
        return;
    };
    let top = Path::new(&top);
    let store = Store::open(&top.join("store")).unwrap();
    let base = "base".parse().unwrap();
    if work == "commit" {
        let upper = File::open(top.join("upper")).unwrap();
        let upper = Upper { dir: &upper, ids: IdMap::IDENTITY };
        let name = "new".parse().unwrap();
        let changes = CommitChanges::default();
        let options = CommitOptions::default();
        store.commit(&base, upper, &changes, &name, &options, &mut |_| {}).unwrap();
    } else {
        let dir = File::open(top).unwrap();
        store.save(&[base], form(&work), &dir, "out", &mut |_| {}).unwrap();
    }
}

fn form(work: &str) -> Archive {
    match work {
        "layout" => Archive::OciLayout,
        "oci" => Archive::OciArchive,
        "docker" => Archive::DockerArchive,
        other => panic!("{other}"),
    }
}

#[expect(clippy::disallowed_methods, reason = "the test runs itself as the process to be killed")]
fn spawn(bench: &Bench, work: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact"])
        .env(TOP, bench.top.path())
        .env(WORK, work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills the child after a time unless it ends before; says whether it had succeeded.
fn run_for(mut child: Child, time: Duration) -> bool {
    let pid = rustix::process::Pid::from_child(&child);
    let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let mut poll = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec::try_from(time).unwrap();
    if rustix::event::poll(&mut poll, Some(&timeout)).unwrap() == 0 {
        child.kill().unwrap();
    }
    child.wait().unwrap().success()
}

/// Kills one work at moments spread over its length, and looks at what is left each time.
fn kill_often(bench: &Bench, work: &str, mut look: impl FnMut(bool, Duration)) {
    let start = Instant::now();
    assert!(run_for(spawn(bench, work), Duration::from_secs(120)));
    let mut whole = start.elapsed();
    look(true, whole);
    let mut killed = 0;
    for attempt in 0..60u32 {
        if killed == KILLS {
            return;
        }
        let time = whole.mul_f64((f64::from(attempt) * 0.618_034).fract());
        let start = Instant::now();
        let finished = run_for(spawn(bench, work), time);
        if finished {
            // The machine was busier when the measure was taken.
            whole = start.elapsed();
        } else {
            killed += 1;
        }
        look(finished, time);
    }
    panic!("too few were killed in time");
}

fn fill(dir: &Path) {
    for n in 0..400u32 {
        let dir = dir.join(format!("d{}", n % 9));
        fs::create_dir_all(&dir).unwrap();
        put(&dir.join(format!("f{n}")), &vec![(n % 251) as u8; 4000 + n as usize * 7]);
    }
}

/// What is visible is whole, and once the store is opened there is no rubbish.
fn check_store(bench: &Bench, time: Duration) -> Store {
    let found = bench.store.fsck().unwrap();
    let rubbish = |f: &Finding| matches!(f, Finding::StagingLeftover { .. });
    assert!(found.iter().all(rubbish), "{time:?}: {found:?}");
    let store = Store::open(&bench.path("store")).unwrap();
    assert_eq!(store.fsck().unwrap(), vec![], "{time:?}");
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new(), "{time:?}");
    store
}

/// Prunes. A process that another test forks has a copy of every lock of ours until its exec.
fn prune(store: &Store, in_use: &HashSet<DiffId>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match store.prune(in_use) {
            Err(Error::Busy { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            other => return drop(other.unwrap()),
        }
    }
}

#[test]
fn a_killed_commit_leaves_no_image_and_no_rubbish() {
    let bench = Bench::new();
    let base = base(&bench);
    let upper = bench.path("upper");
    fs::create_dir(&upper).unwrap();
    fill(&upper);
    let new: ImageName = "new".parse().unwrap();
    let in_use = base.layers.iter().copied().collect();
    kill_often(&bench, "commit", |finished, time| {
        let store = check_store(&bench, time);
        let image: Option<Image> = store.resolve(&new.clone().into()).ok();
        assert!(image.is_some() || !finished, "{time:?}");
        if let Some(image) = image {
            let layer = tree(&store.layer_path(&image.layers[2]));
            assert_eq!(layer.len(), 1 + 9 + 400, "{time:?}");
        }
        // Each time anew.
        store.remove(&new).unwrap();
        prune(&store, &in_use);
        assert_eq!(entries(&bench.path("store/layers")).len(), 2);
    });
}

#[test]
fn a_killed_save_leaves_the_target_as_it_was() {
    for (work, count) in [("layout", 7), ("oci", 8), ("docker", 4)] {
        let bench = Bench::new();
        let layout = bench.layout("big");
        let mut tar = RawTar::new();
        for n in 0..300u32 {
            tar = tar.file(&format!("f{n}"), &vec![(n % 251) as u8; 8000]);
        }
        let small = RawTar::new().file("x", b"").end();
        layout.image(&[gzipped(&tar.end()), plain(small)], &serde_json::json!({}));
        let name = "base".parse().unwrap();
        let image = bench.store.import(&layout.source(), &name, &Default::default(), &mut |_| {});
        let image = image.unwrap();
        let out = bench.path("out");
        kill_often(&bench, work, |finished, time| {
            assert!(out.exists() || !finished, "{work} {time:?}");
            if out.exists() {
                let (_, back) = import_elsewhere(&bench, &text(&out).parse().unwrap());
                assert_eq!(back.layers, image.layers, "{work} {time:?}");
            }
            // The next one cleans up and succeeds; here, without what is there now.
            if out.is_dir() {
                fs::remove_dir_all(&out).unwrap();
            } else if out.exists() {
                fs::remove_file(&out).unwrap();
            }
            let dir = File::open(bench.top.path()).unwrap();
            let base = "base".parse().unwrap();
            bench.store.save(&[base], form(work), &dir, "again", &mut |_| {}).unwrap();
            let again = bench.path("again");
            if again.is_dir() {
                assert_eq!(tree(&again).len(), 1 + 4 + count - 3, "{work}");
                fs::remove_dir_all(&again).unwrap();
            } else {
                fs::remove_file(&again).unwrap();
            }
            let left: Vec<_> = entries(bench.top.path())
                .into_iter()
                .filter(|n| n.starts_with(".ocivisor"))
                .collect();
            assert_eq!(left, Vec::<String>::new(), "{work} {time:?}");
        });
        assert_eq!(bench.store.fsck().unwrap(), vec![]);
    }
}
