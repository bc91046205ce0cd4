//! Every file system, in the forms that its tools make.

use std::fs;
use std::os::unix::fs::FileExt;

use ocivisor_datastore::{DiskOptions, Limits, Principal};

use crate::bench;
use crate::common::{assert_same_tree, put, run, text, tree};
use crate::make::*;

#[test]
fn ext_of_every_age_comes_in_file_by_file() {
    let bench = bench();
    let root = bench.path("root");
    rich_root(&root);
    let want = expected(&root);
    // With small blocks there is no room for all attributes; ext2 has no seconds after 2038.
    let large = ["var/many-attributes"];
    let old = ["var/many-attributes", "var/large-attribute", "var/text"];
    for (mkfs, odd) in [
        (&["mkfs.ext4", "-q", "-b", "4096"][..], &[][..]),
        (&["mkfs.ext4", "-q", "-b", "1024", "-I", "512", "-O", "inline_data,ea_inode"], &large),
        (
            &[
                "mkfs.ext4",
                "-q",
                "-b",
                "4096",
                "-O",
                "^64bit,meta_bg,^resize_inode,bigalloc",
                "-C",
                "16384",
            ],
            &[],
        ),
        (&["mkfs.ext3", "-q", "-b", "4096", "-I", "256"], &[]),
        (
            &["mkfs.ext2", "-q", "-b", "1024", "-I", "256", "-O", "^sparse_super,^resize_inode"],
            &old,
        ),
    ] {
        let file = bench.path("disk");
        blank(&file, 200);
        fill(&bench, &file, mkfs, "user_xattr", &root);
        let mut want = want.clone();
        if !odd.is_empty() {
            let mounted = Mounted::new(&file, &bench.path("mnt"), "rw");
            for odd in odd {
                want.remove(odd.as_bytes());
                fs::remove_file(mounted.0.join(odd)).unwrap();
            }
            run("touch", &["-r", text(&root.join("var")), text(&mounted.0.join("var"))]);
        }
        same(&bench, &file, &want, &mkfs.join(" "));
    }
}

#[test]
fn xfs_comes_in_file_by_file() {
    let bench = bench();
    let root = bench.path("root");
    rich_root(&root);
    let want = expected(&root);
    for mkfs in [
        &["mkfs.xfs", "-q"][..],
        &["mkfs.xfs", "-q", "-b", "size=1024", "-n", "size=4096", "-m", "bigtime=0,reflink=0"],
        &["mkfs.xfs", "-q", "-i", "size=2048,nrext64=1", "-n", "size=16384"],
    ] {
        let file = bench.path("disk");
        blank(&file, 320);
        fill(&bench, &file, mkfs, "rw", &root);
        let mut want = want.clone();
        if mkfs.contains(&"bigtime=0,reflink=0") {
            // Times end in 2038.
            let text = want.get_mut(&b"var/text"[..]).unwrap();
            text.mtime = (i64::from(i32::MAX), text.mtime.1.min(0));
        }
        same(&bench, &file, &want, &mkfs.join(" "));
    }
}

#[test]
fn btrfs_comes_in_file_by_file() {
    let bench = bench();
    let root = bench.path("root");
    rich_root(&root);
    let want = expected(&root);
    for (mkfs, options) in [
        (&["mkfs.btrfs", "-q", "-f"][..], "rw"),
        (&["mkfs.btrfs", "-q", "-f", "--mixed"], "compress-force=lzo"),
        (&["mkfs.btrfs", "-q", "-f", "-n", "65536", "-O", "^no-holes"], "compress-force=zstd"),
        (&["mkfs.btrfs", "-q", "-f"], "compress-force=zlib,max_inline=0"),
    ] {
        let file = bench.path("disk");
        blank(&file, 400);
        fill(&bench, &file, mkfs, options, &root);
        same(&bench, &file, &want, &format!("{mkfs:?} {options}"));
    }
}

#[test]
fn the_root_of_btrfs_is_the_subvolume_that_distributions_use() {
    let bench = bench();
    let root = bench.path("root");
    small_root(&root);
    let want = expected(&root);
    for (name, is_default) in [("@", false), ("@rootfs", false), ("root", false), ("odd", true)] {
        let file = bench.path("disk");
        blank(&file, 200);
        run("mkfs.btrfs", &["-q", "-f", text(&file)]);
        {
            let mounted = Mounted::new(&file, &bench.path("mnt"), "rw");
            let volume = mounted.0.join(name);
            run("btrfs", &["-q", "subvolume", "create", text(&volume)]);
            copy(&root, &volume);
            run("btrfs", &["-q", "subvolume", "create", text(&volume.join("home"))]);
            put(&volume.join("home/file"), b"in a subvolume below");
            // Snapshots below it are not part of the system.
            let snapshot = volume.join("home/snapshot");
            run("btrfs", &["-q", "subvolume", "snapshot", text(&volume), text(&snapshot)]);
            put(&mounted.0.join("beside"), b"not of the root");
            if is_default {
                run("btrfs", &["-q", "subvolume", "set-default", text(&volume)]);
            }
        }
        let image = import(&bench, &file).unwrap();
        let mut got = tree(&bench.fs(&image));
        assert_eq!(got.remove(&b"home/file"[..]).unwrap().content, b"in a subvolume below");
        got.remove(&b"home"[..]).unwrap();
        got.remove(&b""[..]).unwrap();
        let mut want = want.clone();
        want.remove(&b""[..]);
        assert_same_tree(&got, &want, name);
    }
}

#[test]
fn kernels_stay_behind_unless_they_are_wanted_and_the_config_starts_the_init() {
    let bench = bench();
    let root = bench.path("root");
    small_root(&root);
    let file = bench.path("disk");
    blank(&file, 20);
    run("mke2fs", &["-q", "-t", "ext4", "-d", text(&root), text(&file)]);
    let whole = import(&bench, &file).unwrap();
    let image = bench.import(&with(&file, DiskOptions::default())).unwrap();
    let (whole, lean) = (tree(&bench.fs(&whole)), tree(&bench.fs(&image)));
    assert_eq!(whole[&b"boot/grub/grub.cfg"[..]].content, b"set root");
    assert_same_tree(&lean, &without_boot(whole), "without boot");
    assert!(lean.contains_key(&b"boot"[..]) && lean.contains_key(&b"usr/lib/modules"[..]));
    assert_eq!(lean[&b"etc/fstab"[..]].content, b"UUID=1 / ext4 defaults 0 1\n");
    assert_eq!(image.config.entrypoint, ["/sbin/init"]);
    assert_eq!(image.config.stop_signal.as_deref(), Some("SIGRTMIN+3"));
    assert_eq!(image.config.user.user, Principal::Id(0));
}

#[test]
fn the_same_files_in_another_order_give_the_same_layer() {
    let bench = bench();
    let root = bench.path("root");
    small_root(&root);
    for n in 0..300 {
        put(&root.join(format!("etc/{n}")), b"x");
    }
    let (one, two) = (bench.path("one"), bench.path("two"));
    blank(&one, 20);
    run("mke2fs", &["-q", "-t", "ext4", "-d", text(&root), text(&one)]);
    blank(&two, 30);
    run("mke2fs", &["-q", "-t", "ext2", "-b", "1024", "-I", "256", "-d", text(&root), text(&two)]);
    let layers = |file| import(&bench, file).unwrap().layers;
    // The root directory's time is the time of mkfs.
    for disk in [&one, &two] {
        run("debugfs", &["-w", "-R", "set_inode_field / mtime @1000000000", text(disk)]);
        run("debugfs", &["-w", "-R", "set_inode_field / mtime_extra 0", text(disk)]);
    }
    assert_eq!(layers(&one), layers(&two));
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn a_file_system_that_was_not_unmounted_is_refused() {
    let bench = bench();
    for (mkfs, kind, mib) in [
        (&["mkfs.ext4", "-q"][..], "ext4", 20),
        (&["mkfs.xfs", "-q", "-f"], "xfs", 310),
        (&["mkfs.btrfs", "-q", "-f"], "btrfs", 200),
    ] {
        let (file, copy) = (bench.path("disk"), bench.path("copy"));
        blank(&file, mib);
        let args: Vec<&str> = mkfs[1..].iter().copied().chain([text(&file)]).collect();
        run(mkfs[0], &args);
        {
            let mounted = Mounted::new(&file, &bench.path("mnt"), "rw");
            put(&mounted.0.join("file"), b"new");
            fs::File::open(mounted.0.join("file")).unwrap().sync_all().unwrap();
            run("cp", &["--sparse=always", text(&file), text(&copy)]);
        }
        assert_eq!(
            refused(&bench, &disk(&copy)),
            format!(
                "its {kind} file system was not unmounted cleanly; start and shut down the machine once, \
                 then take the disk again"
            )
        );
        fs::remove_file(&copy).unwrap();
        assert!(import(&bench, &file).is_ok(), "{kind} after unmounting");
        forget(&bench);
    }
}

#[test]
fn limits_hold_for_disks_as_for_tars() {
    let bench = bench();
    let root = bench.path("root");
    small_root(&root);
    fs::create_dir_all(root.join("a/b/c/d/e/f/g/h")).unwrap();
    let big = fs::File::create(root.join("zeros")).unwrap();
    big.write_all_at(b"x", 50 << 20).unwrap();
    let file = bench.path("disk");
    blank(&file, 20);
    run("mke2fs", &["-q", "-t", "ext4", "-d", text(&root), text(&file)]);
    let said = |limits: &Limits| {
        let error = bench.import_with(&disk(&file), limits).unwrap_err().to_string();
        bench.assert_nothing_happened();
        error.split_once(" refused: ").unwrap().1.to_owned()
    };
    let few = Limits { entries: 10, ..Limits::default() };
    assert!(
        said(&few).ends_with(
            "more than 10 entries per image; raise the limit only for an image you trust"
        )
    );
    let flat = Limits { depth: 4, ..Limits::default() };
    assert!(said(&flat).ends_with(
        "more than 4 depth of directories; raise the limit only for an image you trust"
    ));
    let small = Limits { image_bytes: 40 << 20, ..Limits::default() };
    assert!(said(&small).ends_with(
        "more than 41943040 bytes per image; raise the limit only for an image you trust"
    ));
    let tight = Limits { ratio_floor: 1 << 20, ..Limits::default() };
    assert!(
        said(&tight).ends_with(
            "more than 250 compression ratio; raise the limit only for an image you trust"
        )
    );
}
