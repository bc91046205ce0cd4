//! SIGKILL in the middle of an import: whatever the moment, the store opens, is sound, and takes the image.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::*;
use ocivisor_datastore::{Limits, Source, Store};
use serde_json::json;

const STORE: &str = "OCIVISOR_TEST_CRASH_STORE";
const LAYOUT: &str = "OCIVISOR_TEST_CRASH_LAYOUT";

const KILLS: u32 = 15;

/// The child's life: one import, then a byte on stdout. Without the variables there is nothing to do.
#[test]
fn child() {
    let (Some(store), Some(layout)) = (std::env::var_os(STORE), std::env::var_os(LAYOUT)) else {
        return;
    };
    let store = Store::open(store.as_ref()).unwrap();
    let source = Source::OciLayout { dir: layout.into(), tag: None };
    store.import(&source, &"app".parse().unwrap(), &Limits::default(), &mut |_| {}).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "the test runs itself as the process to be killed")]
fn spawn(bench: &Bench) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact"])
        .env(STORE, bench.path("store"))
        .env(LAYOUT, bench.path("layout"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits until the child ends or the time is over, then kills it; says whether it had succeeded.
fn run_for(mut child: Child, time: Duration) -> bool {
    let mut stdout = child.stdout.take().unwrap();
    let (ended, end) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        drop(stdout.read_to_string(&mut text));
        // Nobody listens any more once the time was over.
        let _ = ended.send(());
    });
    let over = end.recv_timeout(time).is_err();
    if over {
        child.kill().unwrap();
    }
    reader.join().unwrap();
    child.wait().unwrap().success()
}

fn layout(bench: &Bench) -> Layout {
    let layout = bench.layout("layout");
    let layers: Vec<_> = (0..4u32)
        .map(|layer| {
            let mut tar = RawTar::new();
            for n in 0..250u32 {
                let content = vec![(n % 251) as u8; 4000 + n as usize * 7];
                tar = tar.file(&format!("l{layer}/d{}/f{n}", n % 9), &content);
            }
            gzipped(&tar.file(".wh.gone", b"").end())
        })
        .collect();
    layout.image(&layers, &json!({"Cmd": ["x"]}));
    layout
}

#[test]
fn killed_at_any_moment_the_store_is_sound_and_takes_the_image() {
    let mut whole = {
        let bench = Bench::new();
        layout(&bench);
        let start = Instant::now();
        assert!(run_for(spawn(&bench), Duration::from_secs(120)));
        start.elapsed()
    };
    let mut killed = 0;
    for attempt in 0..60u32 {
        if killed == KILLS {
            break;
        }
        let bench = Bench::new();
        let layout = layout(&bench);
        // Moments spread evenly over the whole import, however many attempts it takes.
        let time = whole.mul_f64((f64::from(attempt) * 0.618_034).fract());
        let start = Instant::now();
        let finished = run_for(spawn(&bench), time);
        if finished {
            // The machine was busier when the measure was taken.
            whole = start.elapsed();
        } else {
            killed += 1;
        }

        // Before anybody cleans: what is visible is whole, and rubbish is in staging only.
        let found = bench.store.fsck().unwrap();
        let rubbish = |f: &ocivisor_datastore::Finding| {
            matches!(f, ocivisor_datastore::Finding::StagingLeftover { .. })
        };
        assert!(found.iter().all(rubbish), "{time:?}: {found:?}");
        let store = Store::open(&bench.path("store")).unwrap();
        assert_eq!(store.fsck().unwrap(), vec![], "{time:?}");
        assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new(), "{time:?}");
        for listed in store.list().unwrap() {
            store.resolve(&listed.manifest_digest.into()).unwrap();
        }
        if finished {
            store.resolve(&"app".parse::<ocivisor_datastore::ImageName>().unwrap().into()).unwrap();
        }

        let image = store.import(
            &layout.source(),
            &"app".parse().unwrap(),
            &Limits::default(),
            &mut |_| {},
        );
        let image = image.unwrap();
        for (n, layer) in image.layers.iter().enumerate() {
            let files = store.layer_path(layer).join(format!("l{n}/d5/f248"));
            assert_eq!(fs::read(files).unwrap(), vec![248; 4000 + 248 * 7]);
            assert_eq!(tree(&store.layer_path(layer)).len(), 1 + 1 + 9 + 250 + 1);
        }
        assert_eq!(store.fsck().unwrap(), vec![]);
    }
    assert_eq!(killed, KILLS, "too few imports were killed in time");
}
