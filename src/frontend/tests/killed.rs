//! SIGKILL at any moment of `cp`: the same call again succeeds, and `rm` leaves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "common/calls.rs"]
mod calls;
#[path = "../../../datastore/tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use calls::Cloud;
use common::*;
use serde_json::json;

const TOP: &str = "OCIVISOR_TEST_CP_TOP";

fn path(top: &Path) -> String {
    top.join("layout").display().to_string()
}

/// The child's life: the same call over and over. Without the variable there is nothing to do.
#[test]
fn child() {
    let Some(top) = std::env::var_os(TOP) else { return };
    let top = Path::new(&top);
    let cloud = Cloud::new(top);
    for id in (1..=3).cycle() {
        cloud.cp(id, &path(top)).unwrap();
        if id == 3 {
            cloud.rm(1, "").unwrap();
            cloud.rm(2, "").unwrap();
            cloud.rm(3, "").unwrap();
        }
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test runs itself as the process to be killed")]
fn a_driver_that_is_killed_is_called_again() {
    let top = tempfile::tempdir().unwrap();
    std::fs::create_dir(top.path().join("datastores")).unwrap();
    let layout = Layout::new(&top.path().join("layout"));
    let noise = |n: u8| vec![n; 400_000];
    let layers = [1, 2, 3].map(|n| gzipped(&RawTar::new().file(&format!("f{n}"), &noise(n)).end()));
    layout.image(&layers, &json!({}));
    let cloud = Cloud::new(top.path());
    let want = cloud.cp(9, &path(top.path())).unwrap();
    cloud.rm(9, "").unwrap();
    for round in 0..16u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact"])
            .env(TOP, top.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (_hold, clock) = mpsc::channel::<()>();
        clock.recv_timeout(Duration::from_millis(5 + round * 6)).unwrap_err();
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "the child ended by itself");
        for id in 1..=3 {
            assert_eq!(
                cloud.cp(id, &path(top.path())).unwrap(),
                want.replace(":9@", &format!(":{id}@"))
            );
        }
        cloud.assert_clean();
        for id in 1..=3 {
            cloud.rm(id, "").unwrap();
        }
        assert_eq!(cloud.blobs(), 0);
        assert_eq!(std::fs::read_dir(cloud.base.join("images")).unwrap().count(), 0);
    }
}
