//! A VM's changes become a layer: against real overlays, and with uppers that nobody meant well.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
mod out_common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use ocivisor_datastore::{
    CommitChanges, CommitOptions, Error, IdMap, Limit, Limits, Packing, Reference, Refusal, Upper,
};
use out_common::*;
use rustix::fs::{CWD, FileType, Mode};

const FIRST: u32 = 1_000_000;

/// Every kind of change a guest can make.
fn change_everything(at: &impl Fn(&str) -> std::path::PathBuf) {
    fs::remove_file(at("etc/passwd")).unwrap();
    fs::remove_dir_all(at("etc/conf.d")).unwrap();
    fs::create_dir(at("etc/conf.d")).unwrap();
    put(&at("etc/conf.d/c"), b"c");
    // mv does this where rename says EXDEV.
    run("mv", &[text(&at("deep/d/d")), text(&at("moved"))]);
    chmod(&at("bin"), 0o711);
    chown(&at("home/me"), 1001, 65_535);
    set_xattr(&at("bin/su"), "security.capability", &CAPABILITY);
    chmod(&at("bin/su"), 0o6755);
    set_xattr(&at("etc/hostname"), "user.note", b"=\0\xff\n");
    set_xattr(&at("etc"), "user.dir", b"");
    // Copied up, this one leaves its links behind.
    File::options().append(true).open(at("bin/ping6")).unwrap().write_all(b"6").unwrap();
    put(&at("one"), b"linked");
    for link in ["two", "bin/three", "home/four"] {
        fs::hard_link(at("one"), at(link)).unwrap();
    }
    fs::hard_link(at("usr/lib/new.so"), at("usr/lib/alias.so")).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    sparse.write_all_at(b"middle", 9 << 20).unwrap();
    sparse.write_all_at(b"end", (20 << 20) - 3).unwrap();
    fs::remove_dir_all(at("swap")).unwrap();
    symlink("usr", at("swap")).unwrap();
    fs::remove_file(at("lib")).unwrap();
    fs::create_dir(at("lib")).unwrap();
    put(&at("lib/own"), b"");
    fs::remove_file(at("deep/pipe")).unwrap();
    mkfifo(&at("pipe"));
    chmod(&at("pipe"), 0o620);
    chown(&at("pipe"), 7, 8);
    symlink("t".repeat(3000), at("long-link")).unwrap();
    symlink("caf\u{e9}", at("dangling")).unwrap();
    chown(&at("dangling"), 5, 6);
    let name = |bytes: &[u8]| at(".").join(std::ffi::OsStr::from_bytes(bytes));
    put(&name(b"not \xff\xfe utf-8\n"), b"x");
    put(&name(&[0xff; 200]), b"y");
    put(&name("pfad\u{fc}".as_bytes()), b"z");
    let long = at(&"n".repeat(180)).join("m".repeat(180));
    fs::create_dir_all(&long).unwrap();
    put(&long.join("leaf"), &[9; 1025]);
    fs::create_dir(at("sticky")).unwrap();
    chmod(&at("sticky"), 0o3777);
    let old = File::create(at("old")).unwrap();
    let before_1970 = std::time::UNIX_EPOCH - std::time::Duration::from_millis(1500);
    old.set_modified(before_1970).unwrap();
    let future = std::time::UNIX_EPOCH + std::time::Duration::new(10_000_000_000, 120_000_000);
    File::create(at("future")).unwrap().set_modified(future).unwrap();
    chmod(&at("."), 0o751);
}

#[test]
fn a_commit_shows_what_the_guest_saw() {
    let bench = Bench::new();
    let base = base(&bench);
    let overlay = Overlay::of(&bench, &base, "vm");
    change_everything(&|p| overlay.at(p));
    let want = overlay.tree();
    let made = commit(&bench, &base, &overlay.upper()).unwrap();
    assert_eq!(made.image.layers[..2], base.layers);
    assert_eq!(made.image.layers[2], made.layer);
    assert_eq!(made.omitted, ocivisor_datastore::Omitted::default());
    assert_same_tree(&seen_by_a_guest(&bench, &made.image), &want, "new layers");
    assert!(want[&b"bin/su"[..]].xattrs.contains_key(&b"security.capability"[..]));

    let (elsewhere, image) = {
        let dir = File::open(bench.top.path()).unwrap();
        let new: Reference = "new".parse().unwrap();
        let form = ocivisor_datastore::Archive::OciArchive;
        bench.store.save(&[new], form, &dir, "saved.tar", &mut |_| {}).unwrap();
        import_elsewhere(&bench, &text(&bench.path("saved.tar")).parse().unwrap())
    };
    assert_eq!(image.manifest_digest, made.image.manifest_digest);
    assert_same_tree(&seen_by_a_guest(&elsewhere, &image), &want, "on another host");
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
    bench.assert_probe_untouched();
}

#[test]
fn changes_on_top_of_a_commit_are_committed_again() {
    let bench = Bench::new();
    let mut image = base(&bench);
    for round in 0..4 {
        let overlay = Overlay::of(&bench, &image, &format!("vm{round}"));
        for gone in ["bin", "etc"] {
            fs::remove_dir_all(overlay.at(gone)).unwrap();
        }
        fs::create_dir_all(overlay.at("etc/x")).unwrap();
        put(&overlay.at(&format!("etc/x/{round}")), &[round; 100]);
        fs::create_dir(overlay.at("bin")).unwrap();
        let want = overlay.tree();
        image = commit(&bench, &image, &overlay.upper()).unwrap().image;
        assert_same_tree(&seen_by_a_guest(&bench, &image), &want, &format!("round {round}"));
    }
    assert_eq!(image.layers.len(), 6);
    assert_eq!(bench.store.history(&"new".parse().unwrap()).unwrap().len(), 6);
}

#[test]
fn the_same_changes_give_the_same_image_and_zstd_the_same_layer() {
    let bench = Bench::new();
    let base = base(&bench);
    let overlay = Overlay::of(&bench, &base, "vm");
    change_everything(&|p| overlay.at(p));
    let first = commit(&bench, &base, &overlay.upper()).unwrap();
    assert_eq!(commit(&bench, &base, &overlay.upper()).unwrap(), first);
    let options = CommitOptions { packing: Packing::Zstd, ..CommitOptions::default() };
    let changes = CommitChanges::default();
    let zstd = bench.store.commit(
        &Reference::from(base.manifest_digest),
        Upper { dir: &overlay.upper(), ids: IdMap::IDENTITY },
        &changes,
        &"zstd".parse().unwrap(),
        &options,
        &mut |_| {},
    );
    let zstd = zstd.unwrap();
    assert_eq!(zstd.layer, first.layer);
    assert_ne!(zstd.blob, first.blob);
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

/// Moves every id of a tree, and capabilities with them, as an idmapped mount shows them.
fn shift(root: &Path) {
    for (path, seen) in tree(root) {
        let path = root.join(std::ffi::OsStr::from_bytes(&path));
        if seen.rdev == 0 && seen.mode & 0o170_000 == 0o020_000 {
            continue;
        }
        chown(&path, seen.owner.0 + FIRST, seen.owner.1 + FIRST);
        if seen.mode & 0o170_000 != 0o120_000 {
            chmod(&path, seen.mode & 0o7777);
        }
        if seen.xattrs.contains_key(&b"security.capability"[..]) {
            set_xattr(&path, "security.capability", &capability_of(FIRST));
        }
    }
}

#[test]
fn a_shifted_upper_gives_the_same_layer() {
    let bench = Bench::new();
    let base = base(&bench);
    let plain = {
        let overlay = Overlay::of(&bench, &base, "vm");
        change_everything(&|p| overlay.at(p));
        let made = commit(&bench, &base, &overlay.upper()).unwrap();
        drop(overlay);
        made
    };
    let upper = bench.path("vm/upper");
    shift(&upper);
    let ids = IdMap::shifted(FIRST);
    let made =
        commit_with(&bench, &base, &File::open(&upper).unwrap(), ids, &Limits::default()).unwrap();
    assert_eq!(made.layer, plain.layer);
    // Seen without the mapping, these are nobody's files.
    let error = commit(&bench, &base, &File::open(&upper).unwrap()).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Unmapped { field: "uid", id: FIRST }));
}

/// An upper made by hand, above a small base.
struct Crafted {
    bench: Bench,
    base: ocivisor_datastore::Image,
    upper: std::path::PathBuf,
}

impl Crafted {
    fn new() -> Self {
        let bench = Bench::new();
        let base = base(&bench);
        let upper = bench.path("upper");
        fs::create_dir(&upper).unwrap();
        Self { bench, base, upper }
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.upper.join(path)
    }

    fn commit(&self) -> Result<ocivisor_datastore::Committed, Error> {
        commit(&self.bench, &self.base, &File::open(&self.upper).unwrap())
    }

    /// Commits what must be refused; nothing may be left of it.
    fn refuse(&self, limits: &Limits) -> (Refusal, String) {
        let upper = File::open(&self.upper).unwrap();
        let before = entries(&self.bench.path("store/blobs/sha256"));
        let error = commit_with(&self.bench, &self.base, &upper, IdMap::IDENTITY, limits)
            .expect_err("was committed");
        assert_eq!(entries(&self.bench.path("store/blobs/sha256")), before);
        assert_eq!(entries(&self.bench.path("store/staging")), Vec::<String>::new());
        assert_eq!(entries(&self.bench.path("store/refs")), ["base"]);
        assert_eq!(self.bench.store.fsck().unwrap(), vec![]);
        self.bench.assert_probe_untouched();
        (error.refusal().unwrap_or_else(|| panic!("{error:?}")).clone(), error.to_string())
    }
}

#[test]
fn what_has_no_place_in_an_image_is_left_out_and_counted() {
    let crafted = Crafted::new();
    let socket = std::os::unix::net::UnixListener::bind(crafted.at("socket")).unwrap();
    for (name, kind) in [("null", FileType::CharacterDevice), ("sda", FileType::BlockDevice)] {
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, crafted.at(name), kind, Mode::RUSR, device).unwrap();
    }
    put(&crafted.at("file"), b"");
    set_xattr(&crafted.at("file"), "user.kept", b"1");
    set_xattr(&crafted.at("file"), "user.overlay.opaque", b"y");
    set_xattr(&crafted.at("file"), "user.a=b", b"1");
    set_xattr(&crafted.at("file"), "trusted.other", b"1");
    set_xattr(&crafted.at("file"), "trusted.overlay.origin", b"1");
    set_xattr(&crafted.at("file"), "security.capability", &capability_of(FIRST + 5));
    let acl = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0,
        255, 255, 255, 255,
    ];
    set_xattr(&crafted.at("file"), "system.posix_acl_access", &acl);
    let made = crafted.commit().unwrap();
    drop(socket);
    let omitted = &made.omitted;
    assert_eq!((omitted.sockets, omitted.devices), (1, 2));
    // An ACL that says no more than the mode is none to the kernel.
    assert_eq!((omitted.xattrs, omitted.capabilities), (3, 1));
    let layer = tree(&crafted.bench.store.layer_path(&made.layer));
    assert_eq!(layer.keys().map(Vec::as_slice).collect::<Vec<_>>(), [&b""[..], b"file"]);
    assert_eq!(layer[&b"file"[..]].xattrs, [(b"user.kept".to_vec(), b"1".to_vec())].into());
}

#[test]
fn whiteouts_of_every_form_hide() {
    let crafted = Crafted::new();
    fs::create_dir(crafted.at("etc")).unwrap();
    set_xattr(&crafted.at("etc"), "trusted.overlay.opaque", b"x");
    put(&crafted.at("etc/passwd"), b"");
    set_xattr(&crafted.at("etc/passwd"), "trusted.overlay.whiteout", b"y");
    // Not in a directory that says so: an empty file.
    put(&crafted.at("lib"), b"");
    set_xattr(&crafted.at("lib"), "trusted.overlay.whiteout", b"y");
    rustix::fs::mknodat(CWD, crafted.at("bin"), FileType::CharacterDevice, Mode::empty(), 0)
        .unwrap();
    // What overlayfs makes belongs to the mounter, whom no mapping may know.
    chown(&crafted.at("bin"), 65_536, 65_536);
    fs::create_dir(crafted.at("home")).unwrap();
    set_xattr(&crafted.at("home"), "trusted.overlay.opaque", b"y");
    set_xattr(&crafted.upper, "trusted.overlay.opaque", b"y");
    let made = crafted.commit().unwrap();
    assert_eq!(made.whiteouts, 3);
    let seen = seen_by_a_guest(&crafted.bench, &made.image);
    let has = |path: &str| seen.contains_key(path.as_bytes());
    assert!(has("etc/hostname") && has("lib") && has("home") && has("deep/f"));
    assert!(!has("etc/passwd") && !has("bin") && !has("home/me"));
}

#[test]
fn an_upper_that_points_into_lower_layers_is_refused() {
    let bench = Bench::new();
    let base = base(&bench);
    let overlay = Overlay::with(&bench, &base, "vm", "redirect_dir=on,metacopy=off,index=off");
    fs::create_dir(overlay.at("to")).unwrap();
    run("mv", &["-T", text(&overlay.at("deep")), text(&overlay.at("to/renamed"))]);
    let error = commit(&bench, &base, &overlay.upper()).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Upper("a renamed directory (redirect_dir)")));
    let text = "upper directory, \"to/renamed\" refused: not to be written as a layer: a renamed directory (redirect_dir)";
    assert_eq!(error.to_string(), text);
    drop(overlay);

    let overlay = Overlay::with(&bench, &base, "vm2", "redirect_dir=on,metacopy=on,index=off");
    chmod(&overlay.at("usr/lib/new.so"), 0o600);
    let error = commit(&bench, &base, &overlay.upper()).unwrap_err();
    let why = "a file whose content is in a lower layer (metacopy)";
    assert_eq!(error.refusal(), Some(&Refusal::Upper(why)));
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
}

#[test]
fn names_that_would_delete_are_refused() {
    for name in [".wh.etc", ".wh..wh..opq", ".wh.", "etc/.wh..wh.aufs"] {
        let crafted = Crafted::new();
        fs::create_dir(crafted.at("etc")).unwrap();
        put(&crafted.at(name), b"");
        let (refusal, said) = crafted.refuse(&Limits::default());
        let why = "a name that begins with .wh. would delete a file";
        assert_eq!(refusal, Refusal::Upper(why), "{name}");
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn an_upper_without_bounds_is_refused() {
    let crafted = Crafted::new();
    File::create(crafted.at("huge")).unwrap().set_len(15 << 40).unwrap();
    let limits = Limits::default();
    let (refusal, _) = crafted.refuse(&limits);
    assert_eq!(refusal, Refusal::Limit { limit: Limit::ImageBytes, max: limits.image_bytes });

    let crafted = Crafted::new();
    let mut dir = crafted.upper.clone();
    for _ in 0..300 {
        dir.push("d");
        fs::create_dir(&dir).unwrap();
    }
    let (refusal, _) = crafted.refuse(&limits);
    assert_eq!(refusal, Refusal::Limit { limit: Limit::Depth, max: 256 });

    let crafted = Crafted::new();
    for n in 0..100 {
        put(&crafted.at(&n.to_string()), b"");
    }
    let (refusal, _) = crafted.refuse(&Limits { entries: 50, ..limits });
    assert_eq!(refusal, Refusal::Limit { limit: Limit::Entries, max: 50 });

    let crafted = Crafted::new();
    put(&crafted.at("f"), b"");
    let full = Limits { layers: 2, ..Limits::default() };
    let upper = File::open(&crafted.upper).unwrap();
    let error = commit_with(&crafted.bench, &crafted.base, &upper, IdMap::IDENTITY, &full);
    assert!(error.unwrap_err().to_string().contains("more than 2 layers per image"));
}

#[test]
fn another_file_system_below_the_upper_is_not_entered() {
    let crafted = Crafted::new();
    fs::create_dir(crafted.at("mnt")).unwrap();
    let at = crafted.at("mnt");
    rustix::mount::mount("tmpfs", &at, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let mounted = Overlay { merged: at, upper: crafted.upper.clone() };
    put(&mounted.at("secret"), b"of the host");
    let error = crafted.commit().unwrap_err();
    drop(mounted);
    assert!(
        matches!(&error, Error::Io { op: "open", source, .. } if source.raw_os_error() == Some(18)),
        "{error:?}"
    );
}

#[test]
fn a_tenant_who_swaps_links_reads_nothing_of_the_host() {
    let crafted = Crafted::new();
    let (dir, probe) = (crafted.at("dir"), crafted.bench.path("probe"));
    fs::create_dir_all(dir.join("sub")).unwrap();
    put(&dir.join("shadow"), b"guest");
    put(&dir.join("sub/keep"), b"guest");
    symlink(&probe, crafted.at("link")).unwrap();
    symlink(probe.join("shadow"), dir.join("file-link")).unwrap();
    let stop = AtomicBool::new(false);
    let swap = |a: &Path, b: &Path| {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(CWD, a, CWD, b, flags).unwrap();
    };
    let image = crafted.base.manifest_digest.into();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                swap(&dir, &crafted.at("link"));
                swap(&crafted.at("link"), &dir);
                swap(&dir.join("shadow"), &dir.join("file-link"));
            }
        });
        let mut outcomes = [0, 0];
        for _ in 0..300 {
            let upper = File::open(&crafted.upper).unwrap();
            let mut tar = Vec::new();
            let top = Some(Upper { dir: &upper, ids: IdMap::IDENTITY });
            let store = &crafted.bench.store;
            match store.export_tar(&image, top, &mut tar, &Limits::default(), &mut |_| {}) {
                Ok(_) => outcomes[0] += 1,
                Err(e) => {
                    assert_eq!(e.refusal(), Some(&Refusal::Changed), "{e:?}");
                    outcomes[1] += 1;
                }
            }
            let secret = b"root:secret";
            assert!(!tar.windows(secret.len()).any(|w| w == secret), "the host was read");
        }
        stop.store(true, Ordering::Relaxed);
        assert_eq!(outcomes[0] + outcomes[1], 300);
    });
    crafted.bench.assert_probe_untouched();
}

#[test]
fn the_config_says_what_the_caller_changed() {
    let crafted = Crafted::new();
    put(&crafted.at("f"), b"");
    let mut changes = CommitChanges {
        author: Some("me".into()),
        message: Some("installed f".into()),
        ..CommitChanges::default()
    };
    for line in ["ENTRYPOINT [\"/f\"]", "ENV B=2", "USER 9", "WORKDIR /etc", "EXPOSE 80"] {
        changes.instruction(line).unwrap();
    }
    let upper = File::open(&crafted.upper).unwrap();
    let store = &crafted.bench.store;
    let mut told = 0;
    let made = store.commit(
        &"base".parse().unwrap(),
        Upper { dir: &upper, ids: IdMap::IDENTITY },
        &changes,
        &"new".parse().unwrap(),
        &CommitOptions::default(),
        &mut |n| told = n,
    );
    let made = made.unwrap();
    let config = &made.image.config;
    assert_eq!((&config.entrypoint[..], &config.cmd[..]), (&["/f".to_owned()][..], &[][..]));
    let env = [("A", "1"), ("B", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!((&config.env[..], config.working_dir.as_str()), (&env[..], "/etc"));
    assert_eq!(config.exposed_ports, ["80/tcp"]);
    assert!(told > 0 && told <= made.tar_size);
    let history = store.history(&"new".parse().unwrap()).unwrap();
    assert_eq!((history[0].author.as_str(), history[0].comment.as_str()), ("me", "installed f"));
    assert_eq!(history[0].diff_id, Some(made.layer));
    let inspected = store.inspect(&"new".parse().unwrap()).unwrap();
    assert_eq!(inspected.names.iter().map(|n| n.as_str()).collect::<Vec<_>>(), ["new"]);
    assert_eq!(inspected.layers.len(), 3);
    assert_eq!(inspected.layers[2].blob, made.blob);
    assert_eq!(inspected.config["config"]["User"], "9");
    assert_eq!(inspected.manifest["layers"][2]["size"], made.size);
    let json = serde_json::to_value(&inspected).unwrap();
    assert_eq!(serde_json::from_value::<ocivisor_datastore::Inspection>(json).unwrap(), inspected);
    // The base is what it was.
    assert_eq!(store.resolve(&"base".parse().unwrap()).unwrap(), crafted.base);
}

#[test]
fn a_base_that_is_not_whole_is_no_base() {
    let crafted = Crafted::new();
    let inspected = crafted.bench.store.inspect(&"base".parse().unwrap()).unwrap();
    let blob = inspected.layers[0].blob.hex();
    fs::remove_file(crafted.bench.path("store/blobs/sha256").join(blob)).unwrap();
    let error = crafted.commit().unwrap_err();
    assert!(matches!(&error, Error::Damaged { why, .. } if why == "is absent"), "{error:?}");
}
