//! The directory, as two drivers and a crash see it.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::*;

fn depot() -> (TempDir, Depot) {
    let top = tempfile::tempdir().unwrap();
    let depot = Depot::open(&top.path().join("101")).unwrap();
    (top, depot)
}

fn container(image: u32) -> ImageRecord {
    let origin = Some("docker://registry.example/app@sha256:00".into());
    let manifest = Some(Digest::of(b"manifest"));
    ImageRecord::new(image, Content::Container(Container { manifest, origin, saved: None }))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn the_layout_is_the_documented_one_and_records_read_as_written() {
    let (_top, depot) = depot();
    assert_eq!(names(depot.base()), ["disks", "images", "lock", "store"]);
    assert_eq!(depot.record(7).unwrap(), None);
    let saved = Some(Saved { vm: 3, disk: 0, image: Some(7) });
    for content in [
        container(7).content,
        Content::Container(Container { saved, ..Container::default() }),
        Content::Data(DataDisk { format: "qcow2".into(), origin: None }),
    ] {
        let record = ImageRecord::new(7, content);
        depot.write(&depot.lock(7).unwrap(), &record).unwrap();
        assert_eq!(depot.record(7).unwrap(), Some(record));
    }
    assert_eq!(names(&depot.base().join("images")), ["7.json"]);
    let again = Depot::open(depot.base()).unwrap();
    assert!(again.record(7).unwrap().is_some());
}

#[test]
fn the_record_on_disk_is_the_documented_one() {
    let text = String::from_utf8(container(12).encode().unwrap()).unwrap();
    let manifest = Digest::of(b"manifest");
    let want = format!(
        r#"{{
  "version": 1,
  "features": [],
  "image": 12,
  "content": {{
    "container": {{
      "manifest": "{manifest}",
      "origin": "docker://registry.example/app@sha256:00",
      "saved": null
    }}
  }}
}}
"#
    );
    assert_eq!(text, want);
}

#[test]
fn what_is_newer_damaged_or_of_another_image_is_refused() {
    let (_top, depot) = depot();
    let file = depot.base().join("images/5.json");
    let good = String::from_utf8(container(5).encode().unwrap()).unwrap();
    for (text, why) in [
        (good.replace("\"version\": 1", "\"version\": 2"), "version 2 needs a newer ocivisor"),
        (
            good.replace("\"features\": []", "\"features\": [\"x\"]"),
            "feature \"x\" needs a newer ocivisor",
        ),
        (good.replace("\"image\": 5", "\"image\": 6"), "it is about image 6"),
    ] {
        std::fs::File::create(&file).unwrap().write_all(text.as_bytes()).unwrap();
        let error = depot.record(5).unwrap_err();
        assert_eq!(error.message, format!("{} cannot be used: {why}", file.display()));
    }
    for text in ["", "{}", &good.replace("\"saved\"", "\"other\""), &"x".repeat(70_000)] {
        std::fs::File::create(&file).unwrap().write_all(text.as_bytes()).unwrap();
        depot.record(5).unwrap_err();
    }
    // What cannot be read can be removed.
    depot.remove(&depot.lock(5).unwrap(), 5).unwrap();
    assert_eq!(depot.record(5).unwrap(), None);
}

#[test]
fn everything_of_an_image_goes_and_nothing_of_others() {
    let (_top, depot) = depot();
    for image in [1, 11] {
        let held = depot.lock(image).unwrap();
        depot.new_disk_manifest(&held).unwrap().publish().unwrap();
        depot.new_disk(&held).unwrap().publish().unwrap();
        depot.new_data(&held).unwrap().publish().unwrap();
        depot.write(&held, &container(image)).unwrap();
    }
    for _ in 0..2 {
        depot.remove(&depot.lock(1).unwrap(), 1).unwrap();
    }
    assert_eq!(names(&depot.base().join("disks")), ["11", "11.json"]);
    assert_eq!(names(&depot.base().join("images")), ["11.json"]);
    assert!(depot.data_path(11).exists() && !depot.data_path(1).exists());
}

#[test]
fn names_of_data_disks_reach_nothing_else() {
    let (_top, depot) = depot();
    let held = depot.lock(1).unwrap();
    for name in ["", ".", "..", "lock", "images", "../x", &"A".repeat(32), &"a".repeat(33)] {
        depot.remove_data(&held, name).unwrap_err();
    }
    assert!(is_data_name(&data_name(1)) && data_name(1) != data_name(2));
}

#[test]
fn drafts_of_the_dead_are_swept_and_those_of_the_living_are_not() {
    let (_top, depot) = depot();
    let held = depot.lock(3).unwrap();
    let living = depot.new_disk(&held).unwrap();
    living.file().write_all(b"content").unwrap();
    for dir in ["", "images", "disks"] {
        std::fs::File::create(depot.base().join(dir).join(".3.1.0.part")).unwrap();
    }
    let again = Depot::open(depot.base()).unwrap();
    assert_eq!(names(&again.base().join("disks")), [living.name()]);
    assert_eq!(names(&again.base().join("images")), Vec::<String>::new());
    assert_eq!(names(again.base()), ["disks", "images", "lock", "store"]);
    living.publish().unwrap();
    assert_eq!(std::fs::read(again.disk_path(3)).unwrap(), b"content");
    drop(depot.new_disk(&held).unwrap());
    assert_eq!(names(&again.base().join("disks")), ["3"]);
}

#[test]
fn an_image_has_one_worker_at_a_time_and_others_go_on() {
    let (_top, depot) = depot();
    let other = depot.lock(2).unwrap();
    let busy = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let depot = Depot::open(depot.base()).unwrap();
                for _ in 0..20 {
                    let _held = depot.lock(1).unwrap();
                    assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0);
                    depot.write(&_held, &container(1)).unwrap();
                    assert_eq!(busy.fetch_sub(1, Ordering::SeqCst), 1);
                }
            });
        }
    });
    drop(other);
}

#[test]
fn another_users_directory_is_refused() {
    let top = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(top.path(), Some(65_534), Some(65_534)).unwrap();
    let error = Depot::open(top.path()).unwrap_err();
    let text = format!("{} belongs to user 65534, not to user 0", top.path().display());
    assert_eq!(error.message, text);
    assert_eq!(names(top.path()), Vec::<String>::new());
}
