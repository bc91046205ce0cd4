//! What an image counts is what it takes: quotas are counted by it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "common/calls.rs"]
mod calls;
#[path = "../../../datastore/tests/common/mod.rs"]
mod common;

use std::fs::File;
use std::path::Path;

use calls::{Cloud, Wish};
use common::*;
use serde_json::json;
use tempfile::TempDir;

fn cloud() -> (TempDir, Cloud) {
    let top = tempfile::tempdir().unwrap();
    std::fs::create_dir(top.path().join("datastores")).unwrap();
    let cloud = Cloud::new(top.path());
    (top, cloud)
}

fn wish(kind: u32, path: &Path, size: &str) -> Wish {
    let path = path.display().to_string();
    Wish { id: 1, kind, path, size: size.into(), ..Wish::default() }
}

#[test]
fn a_size_makes_an_image_larger_and_never_smaller() {
    let (top, cloud) = cloud();
    let at = |name: &str| top.path().join(name);
    File::create(at("disk")).unwrap().set_len(9 << 20).unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&at("disk.qcow2")), "5M"]);
    run("gzip", &["-1", "-k", text(&at("disk"))]);
    run("gzip", &["-1", "-k", text(&at("disk.qcow2"))]);
    let layout = Layout::new(&at("layout"));
    layout.image(&[gzipped(&[7; 100])], &json!({}));
    let noise: Vec<u8> = (0..400_000_u64)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    put(&at("layout/blobs/sha256/more"), &noise);
    for (name, least) in
        [("disk", 9), ("disk.gz", 9), ("disk.qcow2", 5), ("disk.qcow2.gz", 5), ("layout", 4)]
    {
        for (told, want) in [("1", least), ("4", least.max(4)), ("77", 77)] {
            let mut said = Vec::new();
            let got = cloud.call_with("stat", &wish(0, &at(name), told), &mut |text| {
                said.push(text.to_owned());
            });
            assert_eq!(got.unwrap(), format!("{want}\n"), "{name} {told}");
            let raised = told.parse::<u64>().unwrap() < least;
            assert_eq!(said.len(), usize::from(raised), "{said:?}");
        }
    }
    // Only what it shows counts, but for one that hides something behind that.
    let hidden = at("hidden.qcow2");
    std::fs::copy(at("disk.qcow2"), &hidden).unwrap();
    File::options().write(true).open(&hidden).unwrap().set_len(50 << 20).unwrap();
    assert_eq!(cloud.call("stat", &wish(0, &hidden, "6")).unwrap(), "50\n");
}

#[test]
fn nothing_comes_in_that_is_more_than_was_counted() {
    let (top, cloud) = cloud();
    let at = |name: &str| top.path().join(name);
    File::create(at("disk")).unwrap().set_len(60 << 20).unwrap();
    run("gzip", &["-1", "-k", text(&at("disk"))]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", text(&at("disk.qcow2")), "60M"]);
    // Datablock, CD-ROM, file.
    for kind in [1, 2, 5] {
        for name in ["disk", "disk.gz", "disk.qcow2"] {
            // Files stay as they are.
            let fits = kind == 5 && name != "disk";
            let error = match cloud.call("cp", &wish(kind, &at(name), "59")) {
                Ok(_) if fits => continue,
                other => other.unwrap_err(),
            };
            let want = "Cannot bring in image 1: it has more than the 59 MiB that its SIZE says; \
                        create it again with a larger SIZE (oneimage create --size).\n";
            assert_eq!(error, want, "{kind} {name}");
            cloud.rm(1, "").unwrap();
            cloud.call("cp", &wish(kind, &at(name), "60")).unwrap();
            cloud.rm(1, "").unwrap();
        }
    }
    cloud.assert_clean();
}

#[test]
fn files_for_kernels_and_contexts_are_as_long_as_they_are() {
    let (top, mut cloud) = cloud();
    cloud.kind = 2;
    let at = |name: &str| top.path().join(name);
    let (gz, zip, disk, tar) = (at("initrd.gz"), at("files.zip"), at("x.vmdk"), at("context.tar"));
    let long = |start: &[u8]| [start, &vec![0; 3 << 20][..]].concat();
    put(&gz, &gzipped(&long(b"")).blob);
    put(&zip, &long(b"PK\x03\x04"));
    put(&disk, &long(b"KDMV"));
    put(&tar, &RawTar::new().file("etc/os-release", &long(b"")).end());
    for (path, want) in [(&gz, 1), (&zip, 4), (&disk, 4), (&tar, 4)] {
        for (told, want) in [("", want), ("2", want.max(2)), ("9", 9)] {
            let got = cloud.call("stat", &wish(0, path, told)).unwrap();
            assert_eq!(got, format!("{want}\n"), "{} {told}", path.display());
            cloud.call("cp", &wish(5, path, &want.to_string())).unwrap();
            cloud.rm(1, "").unwrap();
        }
    }
    cloud.assert_clean();
}

#[test]
fn archives_that_are_compressed_as_a_whole_count_what_is_in_them() {
    let (top, mut cloud) = cloud();
    cloud.config.images.disk_mb = 1;
    let at = |name: &str| top.path().join(name);
    let layout = Layout::new(&at("layout"));
    // Shrinks to a few KiB.
    let root = RawTar::new().file("etc/os-release", &vec![0; 20 << 20]).end();
    layout.image(&[gzipped(&root)], &json!({}));
    let from = format!("oci:{}", layout.dir.display());
    let docker = at("docker.tar");
    run("skopeo", &["copy", "-q", &from, &format!("docker-archive:{}:a:1", docker.display())]);
    run("gzip", &["-1", "-k", text(&docker)]);
    let plain = docker.metadata().unwrap().len().div_ceil(1 << 20);
    assert!(plain >= 20, "{plain}");
    put(&at("rootfs.tar.gz"), &gzipped(&root).blob);
    let scheme = format!("docker-archive:{}", at("docker.tar.gz").display());
    // A root file system stays as it is.
    for (path, size) in [
        (text(&at("docker.tar.gz")), plain),
        (&scheme, plain),
        (text(&docker), plain),
        (text(&at("rootfs.tar.gz")), 1),
    ] {
        for template in ["", "<NO_DECOMPRESS>YES</NO_DECOMPRESS>"] {
            let cloud = Cloud { template: cloud.template.clone() + template, ..cloud.clone() };
            let of = |size: &str| Wish {
                id: 1,
                path: path.into(),
                size: size.into(),
                ..Wish::default()
            };
            assert_eq!(cloud.call("stat", &of("")).unwrap(), format!("{size}\n"), "{path}");
            cloud.call("cp", &of(&size.to_string())).unwrap();
            cloud.rm(1, "").unwrap();
        }
    }
    cloud.assert_clean();
}

#[test]
fn what_an_admin_registered_by_its_source_goes_as_it_came() {
    let (top, cloud) = cloud();
    let layout = Layout::new(&top.path().join("layout"));
    layout.image(&[gzipped(&RawTar::new().file("a", b"a").end())], &json!({}));
    let answer = cloud.cp(1, text(&layout.dir)).unwrap();
    let source = answer.split(' ').next().unwrap();
    let theirs = top.path().join("theirs");
    put(&theirs, b"theirs");
    let of_5 = Wish { id: 5, kind: 2, path: text(&theirs).into(), ..Wish::default() };
    let disk = cloud.call("cp", &of_5).unwrap();
    let disk = disk.split(' ').next().unwrap();
    let before = tree(&cloud.base);
    let lock = cloud.base.join("lock");
    let own = [
        text(&theirs),
        text(&lock),
        source,
        disk,
        "/etc/passwd",
        "docker://a.example/b",
        "dummy",
        "/a:b",
    ];
    for foreign in own {
        let mut said = Vec::new();
        let wish = Wish { id: 4, source: foreign.into(), ..Wish::default() };
        let answer = cloud.call_with("rm", &wish, &mut |text| said.push(text.to_owned()));
        assert_eq!(answer.unwrap(), "");
        assert_eq!(said, [format!("{foreign:?} is none of this datastore's and stays")]);
    }
    assert!(theirs.exists() && lock.exists());
    let names = |tree: &std::collections::BTreeMap<_, _>| -> Vec<Vec<u8>> {
        tree.keys().cloned().collect()
    };
    assert_eq!(names(&tree(&cloud.base)), names(&before));
}

#[test]
fn an_image_goes_whatever_tools_have_left_of_it() {
    let (top, cloud) = cloud();
    let layout = Layout::new(&top.path().join("layout"));
    layout.image(&[gzipped(&RawTar::new().file("a", b"a").end())], &json!({}));
    cloud.cp(1, text(&layout.dir)).unwrap();
    // No directory, so it cannot be removed as one.
    let left = cloud.base.join(".work-1");
    put(&left, b"");
    let mut said = Vec::new();
    let wish = Wish { id: 1, ..Wish::default() };
    cloud.call_with("rm", &wish, &mut |text| said.push(text.to_owned())).unwrap();
    assert_eq!((said.len(), cloud.blobs()), (1, 0));
    assert!(said[0].starts_with(&format!("cannot remove {}: ", left.display())), "{said:?}");
}

#[test]
fn an_archive_for_a_marketplace_needs_room() {
    let (top, cloud) = cloud();
    let layout = Layout::new(&top.path().join("layout"));
    let noise: Vec<u8> = (0..200_000_u64)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    layout.image(&[gzipped(&RawTar::new().file("a", &noise).end())], &json!({}));
    let answer = cloud.cp(1, text(&layout.dir)).unwrap();
    let source = answer.split(' ').next().unwrap().to_owned();
    let wish = Wish { id: 1, source, ..Wish::default() };
    let full = Cloud { free_mb: 1, ..cloud.clone() };
    let error = full.call("export", &wish).unwrap_err();
    let want = "Cannot export image 1: it has more than the 1 MiB that are free in the datastore; \
                free some, or use another datastore.\n";
    assert_eq!(error, want);
    // A copy in another datastore passes through an archive, too.
    let other = full.beside(102);
    let clone = Wish { id: 2, path: wish.source.clone(), ..Wish::default() };
    assert!(other.call("clone", &clone).unwrap_err().contains("1 MiB that are free"));
    full.assert_clean();
}
