//! Calls that OpenNebula made, as they were recorded: each is understood, and answered as oned needs it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "common/calls.rs"]
mod calls;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use calls::Cloud;
use ocivisor_opennebula::ds;

/// A recording with another directory for the datastore, and what the script says to it.
fn replay(cloud: &Cloud, name: &str) -> Result<String, String> {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(name);
    let argv: Vec<String> =
        serde_json::from_slice(&std::fs::read(dir.join("argv")).unwrap()).unwrap();
    let action = argv[0].rsplit('/').next().unwrap();
    let stdin = std::fs::read(dir.join("stdin")).unwrap();
    if argv.len() != 2 {
        return Err(ds::plan(action, &argv[1..], &stdin).unwrap_err().stderr);
    }
    let text: Vec<u8> = stdin.into_iter().filter(|c| !c.is_ascii_whitespace()).collect();
    let xml = String::from_utf8(STANDARD.decode(text).unwrap()).unwrap();
    let mut moved = xml;
    for id in [100, 102, 104] {
        let theirs = format!("/var/lib/one//datastores/{id}");
        moved = moved.replace(&theirs, &cloud.base.display().to_string());
    }
    let stdin = STANDARD.encode(moved);
    calls::answer(&cloud.config, action, &argv[1], stdin.as_bytes(), &mut |_| {})
}

#[test]
fn recorded_calls_are_answered() {
    let top = tempfile::tempdir().unwrap();
    let mut cloud = Cloud::new(top.path());
    cloud.config.registries.attempts = 1;
    // Nothing leaves this machine.
    cloud.config.registries.proxy = Some("http://127.0.0.1:9".into());
    let data = |id: u32| format!("{}\n", cloud.depot().data_path(id).display());
    assert_eq!(replay(&cloud, "0049-ds-mkfs").unwrap(), data(4));
    assert_eq!(std::fs::metadata(data(4).trim_end()).unwrap().len(), 1 << 30);
    assert_eq!(replay(&cloud, "0051-ds-mkfs").unwrap(), data(5));
    assert_eq!(replay(&cloud, "0350-ds-mkfs").unwrap(), "ocivisor:12\n");
    let monitor =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).unwrap();
    let monitor = monitor.map(|e| e.unwrap().file_name().into_string().unwrap());
    let monitor = monitor.into_iter().find(|name| name.ends_with("monitor")).unwrap();
    assert_eq!(replay(&cloud, &monitor).unwrap().lines().count(), 3);
    assert_eq!(replay(&cloud, "0066-ds-rm").unwrap(), "");
    for (name, want) in [
        ("0038-ds-cp", "Cannot bring in image 0: "),
        ("0037-ds-stat", "Cannot tell the size of the image: "),
        ("0041-ds-cp", "Cannot bring in image 1: "),
        ("0062-ds-clone", "Cannot clone image 9: "),
        (
            "0044-ds-cp",
            "Cannot bring in image 2: \"/var/lib/one/rootfs.raw\" is not there, or in a",
        ),
        (
            "0069-ds-cp",
            "Cannot bring in image 11: \"/var/lib/one/rootfs.raw\" is not there, or in a",
        ),
        ("0060-ds-cp", "Cannot bring in image 8: PATH \"oci://quay.io/example/app@sha256:"),
        (
            "0367-ds-snap_delete",
            "Cannot delete a snapshot of image 7: snapshots of images are not supported",
        ),
        (
            "0508-ds-backup",
            "Cannot take a backup into the datastore: ocivisor's datastores hold images",
        ),
    ] {
        let error = replay(&cloud, name).unwrap_err();
        assert!(error.starts_with(want), "{name}: {error}");
    }
    cloud.assert_clean();
}
