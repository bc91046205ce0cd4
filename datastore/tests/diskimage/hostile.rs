//! Disks that are meant to do harm: each ends with the stated refusal, and nothing is left of it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};

use ocivisor_datastore::{DiskFormat, DiskOptions, Error, Limits, Progress};

use crate::bench;
use crate::common::{Bench, put, run, text};
use crate::make::*;

/// A qcow2 header of version 3 with 64 KiB clusters and a disk of 1 MiB, its L1 table in the second cluster.
struct Header(Vec<u8>);

impl Header {
    fn new() -> Self {
        let mut all = vec![0; 4 * 65_536];
        all[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        Self(all)
            .u32(20, 16)
            .u64(24, 1 << 20)
            .u32(36, 1)
            .u64(40, 65_536)
            .u64(48, 2 * 65_536)
            .u32(56, 1)
            .u32(96, 4)
            .u32(100, 104)
    }

    fn u32(mut self, at: usize, n: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&n.to_be_bytes());
        self
    }

    fn u64(mut self, at: usize, n: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&n.to_be_bytes());
        self
    }

    fn text(mut self, at: usize, text: &[u8]) -> Self {
        self.0[at..at + text.len()].copy_from_slice(text);
        self
    }

    fn says(self, bench: &Bench) -> String {
        let file = bench.path("evil.qcow2");
        put(&file, &self.0);
        refused(bench, &disk(&file))
    }
}

#[test]
fn qcow2_headers_that_ask_for_files_or_memory_are_refused() {
    let bench = bench();
    let backing = |name: &[u8]| {
        let len = u32::try_from(name.len()).unwrap();
        Header::new().u64(8, 512).u32(16, len).text(512, name).says(&bench)
    };
    let rest = "which is not opened for an image; \
                name the file yourself or flatten it: qemu-img convert -O qcow2 FILE NEW.qcow2";
    assert_eq!(
        backing(b"/etc/shadow"),
        format!("it needs the backing file \"/etc/shadow\", {rest}")
    );
    assert_eq!(
        backing(br#"json:{"driver":"file","filename":"/etc/shadow"}"#),
        format!(
            r#"it needs the backing file "json:{{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}}", {rest}"#
        )
    );
    assert_eq!(
        backing(b"a\n<3>root: \x1b]52;c"),
        format!("it needs the backing file \"a\\n<3>root: \\x1b]52;c\", {rest}")
    );
    for (header, why) in [
        (
            Header::new().u64(8, 512).u32(16, 1 << 30),
            "bytes of the qcow2 backing file name 1073741824 is above 1023",
        ),
        (
            Header::new().u64(72, 4),
            "it keeps its data in another file, which is not opened for an image; \
             name the file yourself or put it in: qemu-img convert -O qcow2 FILE NEW.qcow2",
        ),
        (
            Header::new().u32(36, u32::MAX),
            "bytes of the qcow2 L1 table 34359738360 is above 33554432",
        ),
        (
            Header::new().u64(24, 1 << 45),
            "qcow2 header is damaged: L1 table is too small for the disk",
        ),
        (
            Header::new().u64(24, u64::MAX),
            "qcow2 disk size 18446744073709551615 is above 70368744177664",
        ),
        (Header::new().u32(60, u32::MAX), "number of qcow2 snapshots 4294967295 is above 65536"),
        (
            Header::new().u32(60, 65_536).u64(64, 3 * 65_536),
            "qcow2 header is damaged: snapshot table lies outside of the file",
        ),
        (
            Header::new().u32(56, 1 << 20),
            "bytes of the qcow2 refcount table 68719476736 is above 8388608",
        ),
        (
            Header::new().u64(48, 1 << 40),
            "qcow2 header is damaged: refcount table lies outside of the file",
        ),
        (
            Header::new().u64(40, u64::MAX << 16),
            "qcow2 header is damaged: L1 table lies outside of the file",
        ),
        (
            Header::new().u32(20, 63),
            "qcow2 header is damaged: cluster size is not 512 bytes to 2 MiB",
        ),
        (Header::new().u32(4, 9), "the qcow2 image uses version 9, which is not handled"),
        (
            Header::new().u64(72, 1 << 40),
            "the qcow2 image uses incompatible features 0x10000000000, which is not handled",
        ),
        (
            Header::new().u64(72, 16),
            "the qcow2 image uses extended L2 entries, which is not handled",
        ),
        (
            Header::new().u64(72, 2),
            "qcow2 header is damaged: the image is marked as corrupt; repair it: qemu-img check -r all",
        ),
        (Header::new().u32(32, 1), "it is encrypted (qcow2 AES); decrypt it first"),
        (Header::new().u32(32, 2), "it is encrypted (LUKS in qcow2); decrypt it first"),
        (Header::new().u32(100, 1 << 20), "qcow2 header is damaged: header length is out of range"),
        (Header::new().u64(65_536, 1 << 40), "qcow2 L2 table is damaged: lies outside of the disk"),
        (
            Header::new().u64(65_536, 3 * 65_536).u64(3 * 65_536, 1 << 50),
            "qcow2 L2 table is damaged: entry points outside of the file",
        ),
        (
            // A table as its own data, and a compressed cluster in the middle of nowhere.
            Header::new().u64(65_536, 3 * 65_536).u64(3 * 65_536, 1 << 62 | 1 << 50),
            "qcow2 compressed cluster is damaged: lies outside of the file",
        ),
        (
            Header::new().u64(65_536, 3 * 65_536).u64(3 * 65_536, 1 << 62 | 512),
            "qcow2 compressed cluster is damaged: does not expand to a cluster",
        ),
    ] {
        assert_eq!(header.says(&bench), why);
    }
}

#[test]
fn formats_with_descriptors_and_extents_are_refused_with_the_way_out() {
    let bench = bench();
    let rest = "image; convert it first: qemu-img convert -O qcow2 FILE NEW.qcow2";
    let flat = b"# Disk DescriptorFile\nversion=1\nRW 20480 FLAT \"/etc/shadow\" 0\n";
    put(&bench.path("evil"), flat);
    assert_eq!(refused(&bench, &disk(&bench.path("evil"))), format!("it is a VMDK {rest}"));
    let root = bench.path("raw");
    blank(&root, 20);
    for (kind, name) in
        [("vmdk", "VMDK"), ("vdi", "VDI"), ("vhdx", "VHDX"), ("vpc", "VHD"), ("qed", "QED")]
    {
        let file = bench.path(kind);
        run("qemu-img", &["convert", "-O", kind, text(&root), text(&file)]);
        assert_eq!(refused(&bench, &disk(&file)), format!("it is a {name} {rest}"));
    }
}

#[test]
fn a_raw_disk_that_starts_like_qcow2_is_refused_unless_its_format_is_said() {
    let bench = bench();
    let (root, file) = (bench.path("root"), bench.path("disk"));
    small_root(&root);
    blank(&file, 20);
    run("mke2fs", &["-q", "-t", "ext4", "-d", text(&root), text(&file)]);
    // What a guest can write on its own disk: the first kilobyte is free for boot code.
    let evil = Header::new().u64(8, 512).u32(16, 11).text(512, b"/etc/shadow");
    File::options().write(true).open(&file).unwrap().write_all_at(&evil.0[..1024], 0).unwrap();
    assert_eq!(
        refused(&bench, &disk(&file)),
        "it could be qcow2 or raw: it starts like qcow2 and holds ext4; say qcow2: or raw:"
    );
    let said = |format| DiskOptions { format: Some(format), ..DiskOptions::default() };
    let error = bench.import(&with(&file, said(DiskFormat::Qcow2))).unwrap_err().to_string();
    assert!(error.contains("L1 table lies outside of the file") || error.contains("/etc/shadow"));
    assert!(bench.import(&with(&file, said(DiskFormat::Raw))).is_ok());
}

#[test]
fn partition_tables_with_loops_lies_and_bombs_are_refused() {
    let bench = bench();
    let file = bench.path("disk");
    let entry = |kind: u8, start: u32, sectors: u32| {
        let mut e = [0; 16];
        e[4] = kind;
        e[8..12].copy_from_slice(&start.to_le_bytes());
        e[12..].copy_from_slice(&sectors.to_le_bytes());
        e
    };
    let write = |sectors: &[(u64, &[[u8; 16]])]| {
        blank(&file, 4);
        let disk = File::options().write(true).open(&file).unwrap();
        for (at, entries) in sectors {
            let mut sector = [0; 512];
            for (n, entry) in entries.iter().enumerate() {
                sector[446 + n * 16..][..16].copy_from_slice(entry);
            }
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            disk.write_all_at(&sector, at * 512).unwrap();
        }
    };
    write(&[(0, &[entry(5, 8, 100)]), (8, &[entry(0x83, 1, 1), entry(5, 0, 100)])]);
    assert_eq!(refused(&bench, &disk(&file)), "chain of logical partitions is damaged: goes back");
    write(&[(0, &[entry(5, 8, 100)]), (8, &[entry(0x83, 1, 1), entry(5, u32::MAX, 100)])]);
    assert_eq!(
        refused(&bench, &disk(&file)),
        "chain of logical partitions is damaged: lies outside of the disk"
    );
    let chain: Vec<(u64, [[u8; 16]; 2])> =
        (0..200).map(|n| (8 + n, [entry(0x83, 1, 1), entry(5, n as u32 + 1, 100)])).collect();
    let mut all: Vec<(u64, &[[u8; 16]])> = chain.iter().map(|(at, e)| (*at, &e[..])).collect();
    let first = [entry(5, 8, 4000)];
    all.push((0, &first));
    write(&all);
    assert_eq!(refused(&bench, &disk(&file)), "chain of logical partitions is damaged: has no end");
    write(&[(0, &[entry(0x83, u32::MAX, u32::MAX)])]);
    assert_eq!(
        refused(&bench, &disk(&file)),
        "no partition looks like the root of a system; name one: 1 (no place on the disk)"
    );
    write(&[(0, &[entry(0xee, 1, u32::MAX)])]);
    assert_eq!(refused(&bench, &disk(&file)), "GPT is damaged: neither header nor backup is there");
}

#[test]
fn a_disk_that_is_replaced_written_or_cut_while_it_is_read_leaves_nothing() {
    let bench = bench();
    let (root, file) = (bench.path("root"), bench.path("disk"));
    small_root(&root);
    put(&root.join("large"), &noise(12 << 20));
    blank(&file, 30);
    run("mke2fs", &["-q", "-t", "ext4", "-d", text(&root), text(&file)]);
    let keep = bench.path("keep");
    fs::copy(&file, &keep).unwrap();
    let harms: [(&str, &dyn Fn()); 4] = [
        ("replaced", &|| {
            fs::copy(&keep, bench.path("other")).unwrap();
            run("mv", &[text(&bench.path("other")), text(&file)]);
        }),
        ("written", &|| {
            File::options().write(true).open(&file).unwrap().write_all_at(b"x", 3).unwrap();
        }),
        ("grown", &|| File::options().write(true).open(&file).unwrap().set_len(31 << 20).unwrap()),
        ("gone", &|| fs::remove_file(&file).unwrap()),
    ];
    for (what, harm) in harms {
        let mut done = false;
        let tell = &mut |progress| {
            if matches!(progress, Progress::Layer { .. }) && !done {
                done = true;
                harm();
            }
        };
        let name = "test".parse().unwrap();
        let error = bench.store.import(&disk(&file), &name, &Limits::default(), tell).unwrap_err();
        let said = error.to_string();
        let want = "it changed while it was read; try again when nothing writes to it";
        assert!(matches!(error, Error::Disk { .. }) && said.ends_with(want), "{what}: {said}");
        bench.assert_nothing_happened();
        fs::copy(&keep, &file).unwrap();
    }
    assert!(import(&bench, &file).is_ok());
}

#[test]
fn what_is_no_regular_file_is_not_opened() {
    let bench = bench();
    put(&bench.path("real"), &[0; 4096]);
    symlink(bench.path("real"), bench.path("link")).unwrap();
    run("mkfifo", &[text(&bench.path("fifo"))]);
    for name in ["link", "fifo", "/dev/null", "missing"] {
        let error = import(&bench, &bench.path(name)).unwrap_err();
        assert!(matches!(error, Error::Io { .. } | Error::Source { .. }), "{name}: {error:?}");
        bench.assert_nothing_happened();
    }
}

#[test]
fn names_that_a_layer_would_take_for_whiteouts_are_refused() {
    let bench = bench();
    let (root, file) = (bench.path("root"), bench.path("disk"));
    small_root(&root);
    put(&root.join("etc/.wh.passwd"), b"");
    blank(&file, 20);
    run("mke2fs", &["-q", "-t", "ext4", "-d", text(&root), text(&file)]);
    assert_eq!(
        refused(&bench, &disk(&file)),
        "\"etc\": bad file name: it starts with .wh., which a layer cannot hold; remove it"
    );
}

#[test]
fn a_disk_with_programs_for_another_machine_is_refused() {
    let bench = bench();
    let (root, file) = (bench.path("root"), bench.path("disk"));
    small_root(&root);
    let init = File::options().write(true).open(root.join("usr/lib/systemd/systemd")).unwrap();
    init.write_all_at(&258u16.to_le_bytes(), 18).unwrap();
    blank(&file, 20);
    run("mke2fs", &["-q", "-t", "ext4", "-d", text(&root), text(&file)]);
    let error = import(&bench, &file).unwrap_err();
    assert!(
        matches!(&error, Error::Platform { image_platform, .. } if image_platform == "linux/loong64"),
        "{error:?}"
    );
    bench.assert_nothing_happened();
}
