//! Partition tables and qcow2, by the tools that write them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ocivisor_datastore::{DiskFormat, DiskOptions, Source};

use crate::bench;
use crate::common::{put, run, text, tree};
use crate::make::*;

#[test]
fn a_cloud_image_in_every_form_of_qcow2_gives_the_same_files() {
    let bench = bench();
    let raw = cloud(&bench, own_root());
    let want = in_seconds(&bench.path("root"));
    let first = same(&bench, &raw, &want, "raw");
    for options in [
        &["-o", "compat=1.1"][..],
        &["-o", "compat=0.10"],
        &["-c"],
        &["-c", "-o", "compression_type=zstd"],
        &["-c", "-o", "cluster_size=2M"],
        &["-o", "cluster_size=512"],
        &["-o", "preallocation=metadata,lazy_refcounts=on"],
        &["-o", "refcount_bits=64"],
    ] {
        let file = bench.path("cloud.qcow2");
        let args = [&["convert", "-O", "qcow2"], options, &[text(&raw), text(&file)]].concat();
        run("qemu-img", &args);
        let image = same(&bench, &file, &want, &options.join(" "));
        assert_eq!(image.layers, first.layers, "{options:?}");
        let said: Source = format!("qcow2:{}:2", text(&file)).parse().unwrap();
        assert_eq!(
            said,
            with(
                &file,
                DiskOptions {
                    format: Some(DiskFormat::Qcow2),
                    partition: Some(2),
                    ..DiskOptions::default()
                }
            )
        );
    }
    // Found by content where no prefix says what it is.
    let found: Source = text(&raw).parse().unwrap();
    assert_eq!(found, with(&raw, DiskOptions::default()));
    assert_eq!(bench.import(&found).unwrap().config.entrypoint, ["/sbin/init"]);
}

#[test]
fn a_root_without_its_own_type_is_found_by_what_is_in_it() {
    let bench = bench();
    let disk = cloud(&bench, "L");
    same(&bench, &disk, &in_seconds(&bench.path("root")), "GPT, type Linux");
}

#[test]
fn the_backup_of_a_gpt_serves_where_the_first_is_lost() {
    let bench = bench();
    let disk = cloud(&bench, own_root());
    let file = File::options().write(true).open(&disk).unwrap();
    file.write_all_at(&[0x5a; 3 * 512], 512).unwrap();
    same(&bench, &disk, &in_seconds(&bench.path("root")), "backup");
    file.write_all_at(&[0; 512], 40 * MIB - 512).unwrap();
    forget(&bench);
    let why = refused(&bench, &crate::make::disk(&disk));
    assert_eq!(why, "GPT is damaged: neither header nor backup is there");
}

#[test]
fn mbr_and_logical_partitions_are_read() {
    let bench = bench();
    let (root, part) = root_fs(&bench);
    let disk = bench.path("disk");
    blank(&disk, 60);
    partition(
        &disk,
        "label: dos\nstart=2048, size=2048, type=82\nstart=6144, size=100000, type=5\n\
         start=8192, size=2048, type=83\nstart=14336, size=2048, type=83\nstart=32768, size=40000, type=83\n",
    );
    place(&part, &disk, 16 * MIB);
    same(&bench, &disk, &in_seconds(&root), "logical");
    let image = bench.import(&format!("raw:{}:7", text(&disk)).parse().unwrap()).unwrap();
    assert!(tree(&bench.fs(&image)).contains_key(&b"etc/fstab"[..]));
    let error = bench.import(&format!("disk:{}:2", text(&disk)).parse().unwrap()).unwrap_err();
    let there = "it has 1 (nothing known), 5 (nothing known), 6 (nothing known), 7 (ext4)";
    assert!(error.to_string().ends_with(&format!("it has no partition 2; {there}")), "{error}");
}

#[test]
fn of_several_roots_one_must_be_named() {
    let bench = bench();
    let (root, part) = root_fs(&bench);
    let file = bench.path("disk");
    blank(&file, 50);
    partition(&file, "label: gpt\nstart=2048, size=32768\nstart=40960, size=32768\n");
    place(&part, &file, MIB);
    place(&part, &file, 20 * MIB);
    assert_eq!(
        refused(&bench, &disk(&file)),
        "more than one partition could be the root; name one: 1 (ext4), 2 (ext4)"
    );
    let one = DiskOptions { partition: Some(2), keep_boot: true, ..DiskOptions::default() };
    let image = bench.import(&with(&file, one)).unwrap();
    assert_eq!(tree(&bench.fs(&image)).len(), in_seconds(&root).len());
}

#[test]
fn what_is_no_root_is_named() {
    let bench = bench();
    let file = bench.path("disk");
    blank(&file, 20);
    partition(&file, "label: gpt\nstart=2048, size=16384, type=L\n");
    assert_eq!(
        refused(&bench, &disk(&file)),
        "no partition looks like the root of a system; name one: 1 (nothing known)"
    );
    for (at, magic, what) in [
        (0, &b"LUKS\xba\xbe\0\x02"[..], "LUKS encryption"),
        (512, b"LABELONE", "an LVM physical volume"),
        (4096, b"\xfc\x4e\x2b\xa9", "a member of an MD RAID"),
    ] {
        let bytes = File::options().write(true).open(&file).unwrap();
        bytes.write_all_at(&[0; 8192], MIB).unwrap();
        bytes.write_all_at(magic, MIB + at).unwrap();
        let rest = "which is not read here; ext2, ext3, ext4, xfs and btrfs are";
        assert_eq!(refused(&bench, &disk(&file)), format!("partition 1 holds {what}, {rest}"));
    }
    put(&file, &noise(1 << 20));
    let rest = "which is not read here; ext2, ext3, ext4, xfs and btrfs are";
    assert_eq!(refused(&bench, &disk(&file)), format!("the disk holds nothing known, {rest}"));
}

#[test]
fn backing_and_data_files_are_opened_where_the_caller_names_them_only() {
    let bench = bench();
    let raw = cloud(&bench, own_root());
    let want = in_seconds(&bench.path("root"));
    let (base, middle, top) = (bench.path("base"), bench.path("middle"), bench.path("top"));
    run("qemu-img", &["convert", "-c", "-O", "qcow2", text(&raw), text(&base)]);
    let above = |under: &Path, file: &Path| {
        let args = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(under), text(file)];
        run("qemu-img", &args);
    };
    above(&base, &middle);
    above(&middle, &top);
    let said = |options: &DiskOptions| refused(&bench, &with(&top, options.clone()));
    let none = DiskOptions { keep_boot: true, ..DiskOptions::default() };
    assert_eq!(
        said(&none),
        format!(
            "it needs the backing file \"{}\", which is not opened for an image; \
             name the file yourself or flatten it: qemu-img convert -O qcow2 FILE NEW.qcow2",
            text(&middle)
        )
    );
    let half = DiskOptions { backing: vec![middle.clone()], ..none.clone() };
    assert!(said(&half).starts_with("it needs the backing file"));
    let many =
        DiskOptions { backing: vec![middle.clone(), base.clone(), raw.clone()], ..none.clone() };
    assert_eq!(said(&many), "3 backing files are named, it asks for 2; name as many");
    let whole = DiskOptions { backing: vec![middle, base], ..none.clone() };
    let image = bench.import(&with(&top, whole)).unwrap();
    assert_eq!(tree(&bench.fs(&image)).len(), want.len());
    forget(&bench);

    let (file, data) = (bench.path("front"), bench.path("data"));
    let external = format!("data_file={},data_file_raw=off", text(&data));
    run("qemu-img", &["convert", "-O", "qcow2", "-o", &external, text(&raw), text(&file)]);
    assert_eq!(
        refused(&bench, &with(&file, none.clone())),
        "it keeps its data in another file, which is not opened for an image; \
         name the file yourself or put it in: qemu-img convert -O qcow2 FILE NEW.qcow2"
    );
    let named = DiskOptions { data_file: Some(data), ..none };
    let image = bench.import(&with(&file, named)).unwrap();
    assert_eq!(tree(&bench.fs(&image)).len(), want.len());
}
