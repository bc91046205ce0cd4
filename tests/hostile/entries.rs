//! Layers that attack the unpacker. Every test states what happens, and that the host and the store are as before.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::common::*;
use crate::confined::bench;
use ocivisor_datastore::{Limit, Limits, Refusal};

fn limit(limit: Limit, max: u64) -> Refusal {
    Refusal::Limit { limit, max }
}

// 1: paths

#[test]
fn climbing_out_of_the_layer_is_refused() {
    for path in ["../../../etc/cron.d/x", "a/../../x", "..", "./../x", "/../x", "a/.."] {
        let bench = bench();
        assert_eq!(
            bench.refuse_tar(RawTar::new().file(path, b"x").end()),
            Refusal::ParentTraversal,
            "{path}"
        );
    }
}

#[test]
fn climbing_to_a_real_directory_of_the_host_leaves_it_alone() {
    let bench = bench();
    for path in bench.probe_paths().iter().filter(|p| p.contains("..") && p.len() < 90) {
        let tar = RawTar::new().file(&format!("{path}/pwned"), b"x").end();
        assert_eq!(bench.refuse_tar(tar), Refusal::ParentTraversal, "{path}");
    }
}

#[test]
fn an_absolute_path_lands_inside_the_layer() {
    let bench = bench();
    let probe = bench.path("probe/pwned");
    let image = bench
        .import_tar(RawTar::new().pax(&[("path", text(&probe).as_bytes())]).file("x", b"in").end());
    let inside = bench.fs(&image.unwrap()).join(text(&probe).trim_start_matches('/'));
    assert_eq!(fs::read(inside).unwrap(), b"in");
    bench.assert_probe_untouched();
}

#[test]
fn an_absolute_hardlink_target_is_taken_inside_the_layer() {
    let bench = bench();
    let image = bench.import_tar(RawTar::new().file("a", b"in").hardlink("b", "/a").end()).unwrap();
    assert_eq!(fs::read(bench.fs(&image).join("b")).unwrap(), b"in");
}

// 2: writing through links

#[test]
fn a_symlink_of_a_lower_layer_is_not_followed() {
    let bench = bench();
    for to in bench.probe_paths() {
        let lower = RawTar::new().pax(&[("linkpath", to.as_bytes())]).symlink("etc", "x").end();
        let upper = RawTar::new().file("etc/passwd", b"pwned").end();
        let image = bench.import_layers(&[plain(lower), plain(upper)]).unwrap();
        let upper = bench.store.layer_path(&image.layers[1]);
        assert_eq!(fs::read(upper.join("etc/passwd")).unwrap(), b"pwned");
        bench.assert_probe_untouched();
    }
}

#[test]
fn a_symlinked_parent_cannot_lead_out_of_the_layer() {
    let bench = bench();
    for to in bench.probe_paths() {
        let link = RawTar::new().pax(&[("linkpath", to.as_bytes())]).symlink("etc", "x");
        // Inside the layer the target does not exist: a link to nothing.
        let got = bench.refuse_tar(link.file("etc/passwd", b"pwned").end());
        assert_eq!(got, Refusal::Parent("symbolic link to no directory of this layer"), "{to}");
    }
}

#[test]
fn a_symlinked_parent_is_resolved_inside_the_layer() {
    let bench = bench();
    let tar =
        RawTar::new().dir("usr/lib").symlink("lib", "/../../usr/lib").file("lib/a", b"a").end();
    let image = bench.import_tar(tar).unwrap();
    assert_eq!(fs::read(bench.fs(&image).join("usr/lib/a")).unwrap(), b"a");
}

#[test]
fn a_file_over_a_symlink_replaces_the_link() {
    let bench = bench();
    let target = format!("{}/shadow", text(&bench.path("probe")));
    let tar = RawTar::new()
        .pax(&[("linkpath", target.as_bytes())])
        .symlink("f", "x")
        .file("f", b"new")
        .end();
    let image = bench.import_tar(tar).unwrap();
    let file = bench.fs(&image).join("f");
    assert!(fs::symlink_metadata(&file).unwrap().is_file());
    assert_eq!(fs::read(file).unwrap(), b"new");
    bench.assert_probe_untouched();
}

#[test]
fn a_directory_over_a_symlink_replaces_the_link() {
    let bench = bench();
    let target = text(&bench.path("probe")).to_owned();
    let tar = RawTar::new()
        .pax(&[("linkpath", target.as_bytes())])
        .symlink("d", "x")
        .dir("d")
        .file("d/f", b"f");
    let image = bench.import_tar(tar.end()).unwrap();
    assert_eq!(fs::read(bench.fs(&image).join("d/f")).unwrap(), b"f");
    assert!(fs::symlink_metadata(bench.fs(&image).join("d")).unwrap().is_dir());
    bench.assert_probe_untouched();
}

#[test]
fn a_file_over_a_directory_removes_the_tree_without_following_its_links() {
    let bench = bench();
    let target = text(&bench.path("probe")).to_owned();
    let tar = RawTar::new().dir("d").pax(&[("linkpath", target.as_bytes())]).symlink("d/out", "x");
    let image =
        bench.import_tar(tar.dir("d/e").file("d/e/f", b"f").file("d", b"file").end()).unwrap();
    assert_eq!(fs::read(bench.fs(&image).join("d")).unwrap(), b"file");
    bench.assert_probe_untouched();
}

#[test]
fn links_in_a_circle_are_refused() {
    let bench = bench();
    let tar = RawTar::new().symlink("a", "b").symlink("b", "a").file("a/f", b"x").end();
    assert_eq!(bench.refuse_tar(tar), Refusal::Parent("symbolic links in a circle"));
}

#[test]
fn a_file_is_no_parent() {
    let bench = bench();
    let tar = RawTar::new().file("a", b"x").file("a/b", b"x").end();
    assert_eq!(bench.refuse_tar(tar), Refusal::Parent("not a directory"));
}

#[test]
fn magic_links_of_proc_are_not_followed() {
    let bench = bench();
    let tar = RawTar::new().symlink("p", "/proc/self/root").file("p/tmp/pwned", b"x").end();
    assert_eq!(
        bench.refuse_tar(tar),
        Refusal::Parent("symbolic link to no directory of this layer")
    );
}

// 3: hard links

#[test]
fn a_hardlink_that_climbs_is_refused() {
    let bench = bench();
    for to in bench.probe_paths().iter().filter(|p| p.contains("..")) {
        let to = format!("{to}/shadow");
        let tar = RawTar::new().pax(&[("linkpath", to.as_bytes())]).hardlink("a", "x").end();
        assert_eq!(bench.refuse_tar(tar), Refusal::HardLink("target climbs with '..'"), "{to}");
    }
}

#[test]
fn a_hardlink_to_a_file_of_the_host_is_refused() {
    let bench = bench();
    let to = format!("{}/shadow", text(&bench.path("probe")));
    let tar = RawTar::new().pax(&[("linkpath", to.as_bytes())]).hardlink("a", "x").end();
    assert_eq!(bench.refuse_tar(tar), Refusal::HardLink("target is not in this layer"));
    assert_eq!(fs::metadata(bench.path("probe/shadow")).unwrap().nlink(), 1);
}

#[test]
fn a_hardlink_behind_a_symlinked_parent_is_refused() {
    let bench = bench();
    for to in [text(&bench.path("probe")).to_owned(), "d".into()] {
        let tar = RawTar::new().dir("d").file("d/shadow", b"x").pax(&[("linkpath", to.as_bytes())]);
        let tar = tar.symlink("s", "x").hardlink("a", "s/shadow").end();
        assert_eq!(
            bench.refuse_tar(tar),
            Refusal::HardLink("target lies behind a symbolic link"),
            "{to}"
        );
    }
}

#[test]
fn a_hardlink_to_anything_but_a_regular_file_is_refused() {
    let bench = bench();
    let want = Refusal::HardLink("target is not a regular file");
    let symlink = RawTar::new().symlink("s", "/etc/shadow").hardlink("a", "s").end();
    assert_eq!(bench.refuse_tar(symlink), want);
    assert_eq!(bench.refuse_tar(RawTar::new().dir("d").hardlink("a", "d").end()), want);
    assert_eq!(bench.refuse_tar(RawTar::new().kind(b'6', "p", "").hardlink("a", "p").end()), want);
    assert_eq!(bench.refuse_tar(RawTar::new().file(".wh.w", b"").hardlink("a", "w").end()), want);
    let root = RawTar::new().hardlink("a", "/").end();
    assert_eq!(bench.refuse_tar(root), Refusal::HardLink("target is the root"));
}

#[test]
fn writing_over_a_hardlink_does_not_change_its_other_name() {
    let bench = bench();
    let tar = RawTar::new().file("a", b"old").hardlink("b", "a").file("b", b"new").end();
    let image = bench.import_tar(tar).unwrap();
    assert_eq!(fs::read(bench.fs(&image).join("a")).unwrap(), b"old");
    assert_eq!(fs::read(bench.fs(&image).join("b")).unwrap(), b"new");
}

#[test]
fn a_hardlink_to_itself_keeps_the_file_and_one_to_a_removed_parent_is_refused() {
    let bench = bench();
    let image = bench.import_tar(RawTar::new().file("a", b"x").hardlink("a", "./a").end()).unwrap();
    assert_eq!(fs::read(bench.fs(&image).join("a")).unwrap(), b"x");
    let bench = crate::confined::bench();
    let tar = RawTar::new().file("d/f", b"x").hardlink("d", "d/f").end();
    assert_eq!(bench.refuse_tar(tar), Refusal::HardLink("target is not in this layer"));
}

// 4: whiteouts

#[test]
fn whiteouts_that_hide_no_name_are_refused() {
    let bench = bench();
    for path in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh..."] {
        let got = bench.refuse_tar(RawTar::new().file(path, b"").end());
        assert_eq!(got, Refusal::Whiteout("hides no name"), "{path}");
    }
}

#[test]
fn an_opaque_root_is_refused() {
    let bench = bench();
    let got = bench.refuse_tar(RawTar::new().file(".wh..wh..opq", b"").end());
    assert_eq!(got, Refusal::Whiteout("opaque root of a layer"));
}

#[test]
fn a_whiteout_as_directory_is_refused() {
    let bench = bench();
    let got = bench.refuse_tar(RawTar::new().file(".wh.a/b", b"").end());
    assert_eq!(got, Refusal::Whiteout("used as a directory"));
    let got = bench.refuse_tar(RawTar::new().dir(".wh.a").end());
    assert_eq!(got, Refusal::Whiteout("not a regular file"));
}

#[test]
fn a_whiteout_under_a_symlinked_directory_deletes_nothing_outside() {
    let bench = bench();
    for to in bench.probe_paths() {
        for name in [".wh.shadow", ".wh..wh..opq"] {
            let tar = RawTar::new().pax(&[("linkpath", to.as_bytes())]).symlink("s", "x");
            let got = bench.refuse_tar(tar.file(&format!("s/{name}"), b"").end());
            assert_eq!(got, Refusal::Parent("symbolic link to no directory of this layer"), "{to}");
        }
    }
}

// 5: types

#[test]
fn devices_are_left_out_and_fifos_kept() {
    let bench = bench();
    let device = |kind, path: &'static str| Head {
        path: path.as_bytes(),
        kind,
        mode: 0o666,
        ..Head::default()
    };
    let tar = RawTar::new()
        .head(&device(b'4', "sda"), b"")
        .head(&device(b'3', "kmsg"), b"")
        .head(&device(b'3', "whiteout"), b"")
        .head(&device(b'6', "fifo"), b"")
        .end();
    let image = bench.import_tar(tar).unwrap();
    assert_eq!(entries(&bench.fs(&image)), ["fifo"]);
    let fifo = fs::symlink_metadata(bench.fs(&image).join("fifo")).unwrap();
    assert!(fifo.file_type().is_fifo());
    assert_eq!(fifo.mode() & 0o7777, 0o666);
}

#[test]
fn unknown_types_and_sparse_files_are_refused() {
    let bench = bench();
    for kind in [b'Z', b's', b'V', b'M', b'D', b'X', 0xff, b'8'] {
        let got = bench.refuse_tar(RawTar::new().kind(kind, "x", "").end());
        assert_eq!(got, Refusal::EntryType(kind));
    }
    assert_eq!(bench.refuse_tar(RawTar::new().kind(b'S', "x", "").end()), Refusal::Sparse);
    for key in ["GNU.sparse.major", "GNU.sparse.realsize", "GNU.sparse.map"] {
        let tar = RawTar::new().pax(&[(key, b"9223372036854775807")]).file("x", b"").end();
        assert_eq!(bench.refuse_tar(tar), Refusal::Sparse, "{key}");
    }
}

#[test]
fn a_root_that_is_no_directory_is_refused() {
    let bench = bench();
    assert_eq!(bench.refuse_tar(RawTar::new().symlink("./", "/etc").end()), Refusal::Root);
    assert_eq!(bench.refuse_tar(RawTar::new().file("/", b"").end()), Refusal::Root);
    assert_eq!(bench.refuse_tar(RawTar::new().file("", b"").end()), Refusal::Header("empty path"));
}

// 6: privileges in attributes

#[test]
fn setuid_stays_and_dangerous_xattrs_go() {
    let bench = bench();
    let v2 = [1u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut v3 = v2.to_vec();
    v3[3] = 3;
    v3.extend(1_000_000u32.to_le_bytes());
    let tar = RawTar::new()
        .pax(&[
            ("SCHILY.xattr.security.capability", &v3),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"unconfined"),
            ("SCHILY.xattr.user.kept", b"\0\xff\n="),
        ])
        .head(&Head { path: b"ping", mode: 0o6755, uid: 7, gid: 65535, ..Head::default() }, b"elf")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.d", b"1")])
        .head(&Head { path: b"d", kind: b'5', mode: 0o3777, ..Head::default() }, b"")
        .end();
    let image = bench.import_tar(tar).unwrap();
    let ping = bench.fs(&image).join("ping");
    let meta = fs::metadata(&ping).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o6755, 7, 65535));
    let kept = xattrs(&ping);
    assert_eq!(
        kept.keys().collect::<Vec<_>>(),
        [&b"security.capability".to_vec(), &b"user.kept".to_vec()]
    );
    assert_eq!(kept[&b"security.capability"[..]], v2);
    assert_eq!(kept[&b"user.kept"[..]], b"\0\xff\n=");
    let dir = bench.fs(&image).join("d");
    assert_eq!(xattrs(&dir).keys().collect::<Vec<_>>(), [&b"user.d".to_vec()]);
    assert_eq!(fs::metadata(dir).unwrap().mode() & 0o7777, 0o3777);
}

#[test]
fn a_capability_of_no_known_shape_is_refused() {
    let bench = bench();
    let tar = RawTar::new()
        .pax(&[("SCHILY.xattr.security.capability", b"\x01\0\0\x04")])
        .file("x", b"")
        .end();
    assert_eq!(bench.refuse_tar(tar), Refusal::Xattr("security.capability of no known revision"));
}

#[test]
fn owners_outside_the_guests_range_are_refused() {
    let bench = bench();
    let uid = RawTar::new().head(&Head { uid: 65536, ..Head::default() }, b"").end();
    assert_eq!(bench.refuse_tar(uid), Refusal::Id { field: "uid", id: 65536 });
    let gid = RawTar::new().pax(&[("gid", b"4294967296")]).file("x", b"").end();
    assert_eq!(bench.refuse_tar(gid), Refusal::Id { field: "gid", id: 4_294_967_296 });
    let negative = RawTar::new().pax(&[("uid", b"-1")]).file("x", b"").end();
    assert_eq!(bench.refuse_tar(negative), Refusal::Pax("bad number"));
}

// 8: sizes and numbers

#[test]
fn ten_million_entries_stop_at_the_limit() {
    let bench = bench();
    let layout = bench.layout("layout");
    let mut tar = RawTar::new();
    for n in 0..50 {
        tar = tar.file(&format!("f{n}"), b"");
    }
    layout.image(&[gzipped(&tar.end())], &serde_json::json!({}));
    let limits = Limits { entries: 49, ..Limits::default() };
    let error = bench.import_with(&layout.source(), &limits).unwrap_err();
    assert_eq!(error.refusal(), Some(&limit(Limit::Entries, 49)));
    bench.assert_nothing_happened();
    let limits = Limits { entries: 50, ..Limits::default() };
    assert!(bench.import_with(&layout.source(), &limits).is_ok());
}

#[test]
fn the_limit_on_entries_counts_extension_headers_too() {
    let bench = bench();
    let layout = bench.layout("layout");
    let tar =
        RawTar::new().pax(&[("mtime", b"1")]).file("a", b"").pax(&[("mtime", b"1")]).file("b", b"");
    layout.image(&[plain(tar.end())], &serde_json::json!({}));
    let limits = Limits { entries: 3, ..Limits::default() };
    let error = bench.import_with(&layout.source(), &limits).unwrap_err();
    assert_eq!(error.refusal(), Some(&limit(Limit::Entries, 3)));
}

#[test]
fn four_thousand_directories_deep_is_refused() {
    let bench = bench();
    let deep = "d/".repeat(2040);
    let tar = RawTar::new().pax(&[("path", deep.as_bytes())]).dir("x").end();
    assert_eq!(bench.refuse_tar(tar), limit(Limit::Depth, 256));
}

#[test]
fn depth_built_by_links_is_removed_again() {
    // Each entry goes through up to 12 links, each to the deepest directory so far: no path is long, the tree is
    // 3,100 levels deep, far beyond what a path can name. Not more links: the kernel allows 40, but 31 of them
    // were seen to fail now and then with ELOOP.
    let bench = bench();
    let deeper = ["d"; 240].join("/");
    let mut tar = RawTar::new().pax(&[("path", deeper.as_bytes())]).dir("x");
    let mut here = deeper.clone();
    for n in 0..12 {
        let link = format!("s{n}");
        let below = format!("{link}/{deeper}");
        tar = tar.pax(&[("linkpath", here.as_bytes())]).symlink(&link, "x");
        tar = tar.pax(&[("path", below.as_bytes())]).dir("x");
        here = below;
    }
    assert_eq!(bench.refuse_tar(tar.file("../x", b"").end()), Refusal::ParentTraversal);
}

#[test]
fn a_pax_path_of_300_kilobytes_is_refused() {
    let bench = bench();
    let long = vec![b'a'; 300 * 1024];
    let tar = RawTar::new().pax(&[("path", &long)]).file("x", b"").end();
    assert_eq!(bench.refuse_tar(tar), limit(Limit::PathBytes, 4095));
    let huge = vec![b'a'; 1 << 20];
    let tar = RawTar::new().pax(&[("comment", &huge)]).file("x", b"").end();
    assert_eq!(bench.refuse_tar(tar), limit(Limit::PaxBytes, 1 << 20));
    let gnu =
        RawTar::new().head(&Head { kind: b'L', path: b"././@LongLink", ..Head::default() }, &long);
    assert_eq!(bench.refuse_tar(gnu.file("x", b"").end()), limit(Limit::PathBytes, 4095));
    let name = "n".repeat(256);
    let tar = RawTar::new().pax(&[("path", name.as_bytes())]).file("x", b"").end();
    assert_eq!(bench.refuse_tar(tar), limit(Limit::NameBytes, 255));
}

#[test]
fn negative_and_enormous_sizes_are_refused() {
    let bench = bench();
    let size = |size: &[u8; 12]| {
        RawTar::new().head(&Head { size: Some(size), ..Head::default() }, b"").end()
    };
    let negative = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff";
    assert_eq!(bench.refuse_tar(size(negative)), Refusal::Header("negative number"));
    let two63 = b"\x80\0\0\0\x80\0\0\0\0\0\0\0";
    assert_eq!(bench.refuse_tar(size(two63)), Refusal::Header("number out of range"));
    let below = b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
    assert_eq!(bench.refuse_tar(size(below)), Refusal::Header("size out of range"));
    assert_eq!(bench.refuse_tar(size(b"77777777777\0")), Refusal::Truncated);
    let pax = RawTar::new().pax(&[("size", b"18446744073709551615")]).file("x", b"").end();
    assert_eq!(bench.refuse_tar(pax), Refusal::Header("size out of range"));
}

#[test]
fn data_after_a_link_or_directory_is_refused() {
    let bench = bench();
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let head = Head { kind, link: b"x", ..Head::default() };
        let tar = RawTar::new().file("x", b"").head(&head, &[0; 512]).end();
        let want = Refusal::Header("data after an entry that has none");
        assert_eq!(bench.refuse_tar(tar), want, "{}", kind as char);
    }
}

#[test]
fn the_pax_size_decides_where_a_file_ends() {
    // Readers that go by the header see a second entry in the data (CVE-2025-62518).
    let bench = bench();
    let smuggled = RawTar::new().file("smuggled", b"").0;
    let length = smuggled.len().to_string();
    let head = Head { path: b"outer", size: Some(b"00000000000\0"), ..Head::default() };
    let tar = RawTar::new().pax(&[("size", length.as_bytes())]).head(&head, &smuggled).end();
    let image = bench.import_tar(tar).unwrap();
    assert_eq!(entries(&bench.fs(&image)), ["outer"]);
    assert_eq!(fs::read(bench.fs(&image).join("outer")).unwrap(), smuggled);
}

#[test]
fn headers_that_two_readers_would_read_differently_are_refused() {
    let bench = bench();
    let long = |name: &[u8]| RawTar::new().head(&Head { kind: b'L', ..Head::default() }, name);
    let two = long(b"a\0").0;
    let tar = RawTar([two.clone(), two.clone()].concat()).file("x", b"").end();
    assert_eq!(bench.refuse_tar(tar), Refusal::Header("two long names for one entry"));
    let tar = RawTar(two).pax(&[("path", b"b")]).file("x", b"").end();
    assert_eq!(bench.refuse_tar(tar), Refusal::Header("PAX and GNU long names differ"));
    let tar = RawTar::new().pax(&[("path", b"a")]).pax(&[("path", b"b")]).file("x", b"").end();
    assert_eq!(bench.refuse_tar(tar), Refusal::Pax("two extended headers for one entry"));
    let global = Head { kind: b'g', ..Head::default() };
    let tar = RawTar::new().head(&global, b"9 path=x\n").file("y", b"").end();
    assert_eq!(bench.refuse_tar(tar), Refusal::Pax("global header that changes entries"));
    let comment = RawTar::new().head(&global, b"17 comment=1234a\n").file("y", b"").end();
    assert!(bench.import_tar(comment).is_ok());
}

#[test]
fn a_tar_cut_off_or_spoilt_in_a_header_is_refused() {
    let whole = RawTar::new().file("a", &[1; 700]).file("b", b"x").end();
    for (cut, want) in
        [(100, Refusal::Truncated), (600, Refusal::Truncated), (1900, Refusal::Truncated)]
    {
        let bench = bench();
        assert_eq!(bench.refuse_tar(whole[..cut].to_vec()), want, "{cut}");
    }
    let bench = bench();
    let mut spoilt = whole.clone();
    spoilt[0] = b'z';
    assert_eq!(bench.refuse_tar(spoilt), Refusal::Header("wrong checksum"));
    let mut gap = vec![0; 512];
    gap.extend(whole);
    assert_eq!(bench.refuse_tar(gap), Refusal::Header("empty header between entries"));
}

// 9: names

#[test]
fn names_are_bytes_and_stay_as_they_are() {
    let bench = bench();
    let names: [&[u8]; 6] =
        [b"caf\xc3\xa9", b"cafe\xcc\x81", b"a\nb", b"\x1b]52;c;x\x07", b"\xff\xfe", b"Case"];
    let mut tar = RawTar::new().file("case", b"");
    for name in names {
        tar = tar.head(&Head { path: name, ..Head::default() }, name);
    }
    let image = bench.import_tar(tar.end()).unwrap();
    let tree = tree(&bench.fs(&image));
    for name in names {
        assert_eq!(tree[name].content, name);
    }
    assert_eq!(tree.len(), 8);
}

#[test]
fn a_bad_name_is_escaped_in_the_error() {
    let bench = bench();
    let head = Head { path: b"a\n<3>root: \x1b[2J", uid: 70_000, ..Head::default() };
    let error = bench.import_tar(RawTar::new().head(&head, b"").end()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.ends_with(r#"entry "a\n<3>root: \x1b[2J" refused: uid 70000 is above 65535"#),
        "{text}"
    );
    bench.assert_nothing_happened();
}

#[test]
fn nul_in_a_pax_path_is_refused() {
    let bench = bench();
    let tar = RawTar::new().pax(&[("path", b"etc/passwd\0.txt")]).file("x", b"").end();
    assert_eq!(bench.refuse_tar(tar), Refusal::Nul);
    let tar = RawTar::new().pax(&[("linkpath", b"a\0b")]).symlink("x", "y").end();
    assert_eq!(bench.refuse_tar(tar), Refusal::Nul);
}

// 21: file systems that lie in wait for their user

#[test]
fn a_rootfs_of_traps_is_stored_as_it_is_and_the_host_unchanged() {
    let bench = bench();
    let tar = RawTar::new()
        .symlink("dev", "/etc")
        .symlink("proc", "/")
        .file("sys", b"")
        .dir("etc")
        .symlink("etc/resolv.conf", "/etc/shadow")
        .kind(b'6', "etc/passwd", "")
        .end();
    let image = bench.import_tar(tar).unwrap();
    let fs = bench.fs(&image);
    assert_eq!(fs::read_link(fs.join("dev")).unwrap().to_str(), Some("/etc"));
    assert_eq!(entries(&fs.join("etc")), ["passwd", "resolv.conf"]);
    bench.assert_probe_untouched();
}
