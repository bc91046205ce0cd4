//! What users name in vain, and what they are told: one sentence each, with what to do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "common/calls.rs"]
mod calls;
#[path = "../../../datastore/tests/common/mod.rs"]
mod common;

use std::fs::{self, File};

use calls::{Cloud, Wish};
use common::*;

/// Both calls refuse it in the same words, but for how they begin.
fn refused(cloud: &Cloud, kind: u32, path: &str, want: &str) {
    let wish = Wish { id: 1, kind, path: path.into(), ..Wish::default() };
    let stat = cloud.call("stat", &wish).unwrap_err();
    assert_eq!(stat, format!("Cannot tell the size of the image: {want}.\n"));
    let cp = cloud.call("cp", &wish).unwrap_err();
    assert_eq!(cp, format!("Cannot bring in image 1: {want}.\n"));
}

#[test]
fn what_cannot_be_an_image_is_refused_while_the_user_waits() {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir(top.path().join("datastores")).unwrap();
    let cloud = Cloud::new(top.path());
    let at = |name: &str| top.path().join(name).display().to_string();
    put(&top.path().join("a"), b"a");
    run("tar", &["-C", text(top.path()), "-cjf", &at("a.tar.bz2"), "a"]);
    let unpack = "is compressed in a way that is not read; unpack it, or use gzip, xz or zstd";
    refused(&cloud, 0, &at("a.tar.bz2"), &format!("{} {unpack}", at("a.tar.bz2")));
    for (format, name) in [("vmdk", "VMDK"), ("vdi", "VDI"), ("vhdx", "VHDX")] {
        let disk = at(format);
        run("qemu-img", &["create", "-q", "-f", format, &disk, "1M"]);
        let convert = "convert it first: qemu-img convert -O qcow2 FILE NEW.qcow2";
        let want = format!("{disk} is a disk in the format {name}, which is not read; {convert}");
        for kind in [0, 1, 2] {
            let wish = Wish { id: 1, kind, path: disk.clone(), ..Wish::default() };
            let stat = cloud.call("stat", &wish).unwrap_err();
            assert_eq!(stat, format!("Cannot tell the size of the image: {want}.\n"));
            let cp = cloud.call("cp", &wish).unwrap_err();
            // Of what is to be booted, the reader of disks says it.
            let said = if kind == 0 {
                format!("it is a {name} image; convert it first")
            } else {
                want.clone()
            };
            assert!(cp.contains(&said), "{cp}");
        }
    }
    fs::create_dir(top.path().join("empty")).unwrap();
    refused(
        &cloud,
        0,
        &at("empty"),
        &format!(
            "{} is no image layout, and has no Dockerfile; pack a root file system into a tar and name that",
            at("empty")
        ),
    );
    let wish = Wish { id: 1, kind: 2, path: at("empty"), ..Wish::default() };
    let error = cloud.call("cp", &wish).unwrap_err();
    let want = "is a directory, and a disk for data is a file; \
                container images, also those that are built, have the type OS.\n";
    assert!(error.ends_with(want), "{error}");
    File::create(at("zeros")).unwrap().set_len(1 << 20).unwrap();
    let error = cloud.cp(1, &format!("oci-archive:{}", at("zeros"))).unwrap_err();
    assert!(error.ends_with("; without oci-archive: the content says what it is.\n"), "{error}");
    for (path, want) in [
        ("app", "PATH \"app\" is no absolute path; name a file from / on, or docker://…"),
        (
            "dockerfile:/a",
            "PATH \"dockerfile:/a\" begins with what is not known; images come by docker://…, https://…, \
             dockerfile:///path, oci:/path, oci-archive:/path, docker-archive:/path, rootfs:/path, disk:/path, \
             raw:/path, qcow2:/path or /path",
        ),
        (
            "docker://UPPER/Case",
            "bad image name \"docker://UPPER/Case\": has a repository that is not lower-case letters and \
             digits joined by . _ - /; write docker://registry/repository:tag",
        ),
        (
            "docker://127.0.0.1:1/a:1",
            "docker://127.0.0.1:1/a manifest 1: not reachable: Connection refused (os error 111); check its \
             address, and that the front-end reaches it (proxies too)",
        ),
    ] {
        refused(&cloud, 0, path, want);
    }
    cloud.assert_clean();
}

#[test]
fn file_systems_are_not_made_on_disks_that_are_too_small() {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir(top.path().join("datastores")).unwrap();
    let cloud = Cloud::new(top.path());
    for (name, least) in [("xfs", 300), ("btrfs", 110)] {
        let make = |size: u32| {
            let (format, fs, size) = ("raw".into(), name.into(), size.to_string());
            cloud.call("mkfs", &Wish { id: 1, kind: 2, format, fs, size, ..Wish::default() })
        };
        let want = format!(
            "Cannot make image 1: {name} needs a disk of at least {least} MiB; give a larger SIZE.\n"
        );
        assert_eq!(make(least - 1).unwrap_err(), want);
        make(least).unwrap();
    }
    cloud.assert_clean();
}
