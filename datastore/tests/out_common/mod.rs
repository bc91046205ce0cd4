//! What tests of committing and exporting share: real overlays, and trees full of everything.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ocivisor_datastore::{
    CommitChanges, CommitOptions, Committed, Error, IdMap, Image, Limits, Source, Upper,
};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;

use super::common::{self, *};

pub type Trees = BTreeMap<Vec<u8>, Seen>;

/// An overlay that is mounted until dropped.
#[derive(Debug)]
pub struct Overlay {
    pub merged: PathBuf,
    pub upper: PathBuf,
}

impl Overlay {
    /// Layers of the image with a new upper directory; all below `dir`.
    pub fn of(bench: &Bench, image: &Image, dir: &str) -> Self {
        Self::with(bench, image, dir, "metacopy=off,redirect_dir=nofollow,index=off,xino=off")
    }

    pub fn with(bench: &Bench, image: &Image, dir: &str, options: &str) -> Self {
        let dir = bench.path(dir);
        let [merged, upper, work] = ["merged", "upper", "work"].map(|d| dir.join(d));
        for d in [&merged, &upper, &work] {
            fs::create_dir_all(d).unwrap();
        }
        // As the host does it: `/` looks like the topmost layer's.
        let top = common::tree(&bench.store.layer_path(&image.overlay_order()[0]));
        let top = &top[&b""[..]];
        std::os::unix::fs::chown(&upper, Some(top.owner.0), Some(top.owner.1)).unwrap();
        rustix::fs::chmodat(
            CWD,
            &upper,
            Mode::from_raw_mode(top.mode & 0o7777),
            rustix::fs::AtFlags::empty(),
        )
        .unwrap();
        let lower = lower(bench, image);
        let options =
            format!("lowerdir={lower},upperdir={},workdir={},{options}", text(&upper), text(&work));
        let options = CString::new(options).unwrap();
        mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
        Self { merged, upper }
    }

    pub fn upper(&self) -> File {
        File::open(&self.upper).unwrap()
    }

    pub fn tree(&self) -> Trees {
        common::tree(&self.merged)
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.merged.join(path)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let gone = unmount(&self.merged, UnmountFlags::DETACH);
        assert!(gone.is_ok() || std::thread::panicking(), "{gone:?}");
    }
}

fn lower(bench: &Bench, image: &Image) -> String {
    let dirs: Vec<_> = image.overlay_order().iter().map(|l| bench.store.layer_path(l)).collect();
    dirs.iter().map(|d| text(d)).collect::<Vec<_>>().join(":")
}

/// What a guest of the image would see.
pub fn seen_by_a_guest(bench: &Bench, image: &Image) -> Trees {
    look(bench, image, common::tree)
}

/// The same, with links as [`grouped`] has them.
pub fn grouped_by_a_guest(bench: &Bench, image: &Image) -> Trees {
    look(bench, image, grouped)
}

fn look(bench: &Bench, image: &Image, how: fn(&Path) -> Trees) -> Trees {
    let merged = bench.path("seen");
    fs::create_dir_all(&merged).unwrap();
    // A second layer, for the kernel makes no overlay of one read-only directory.
    let empty = bench.path("empty");
    fs::create_dir_all(&empty).unwrap();
    let options =
        CString::new(format!("lowerdir={}:{}", lower(bench, image), text(&empty))).unwrap();
    mount("overlay", &merged, "overlay", MountFlags::RDONLY, options.as_c_str()).unwrap();
    let mounted = Overlay { merged, upper: empty };
    how(&mounted.merged)
}

/// The tree with `links` meaning: of how many paths here is this the file. The kernel counts links that a copy up
/// has left behind in a lower layer.
pub fn grouped(root: &Path) -> Trees {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let mut trees = common::tree(root);
    let mut groups: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let key = |path: &[u8]| {
        let path = root.join(std::ffi::OsStr::from_bytes(path));
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.dev(), meta.ino())
    };
    for path in trees.keys() {
        *groups.entry(key(path)).or_default() += 1;
    }
    for (path, seen) in &mut trees {
        seen.links = groups[&key(path)];
    }
    trees
}

/// The first difference, in few words.
pub fn difference(got: &Trees, want: &Trees) -> Option<String> {
    let paths = got.keys().chain(want.keys());
    let different = paths.into_iter().find(|p| got.get(*p) != want.get(*p))?;
    let path = different.escape_ascii();
    Some(format!("{path}: {:.20?} is not {:.20?}", got.get(different), want.get(different)))
}

pub fn commit(bench: &Bench, base: &Image, upper: &File) -> Result<Committed, Error> {
    commit_with(bench, base, upper, IdMap::IDENTITY, &Limits::default())
}

pub fn commit_with(
    bench: &Bench,
    base: &Image,
    upper: &File,
    ids: IdMap,
    limits: &Limits,
) -> Result<Committed, Error> {
    let options = CommitOptions { limits: limits.clone(), ..CommitOptions::default() };
    let changes =
        CommitChanges { created: Some(std::time::UNIX_EPOCH), ..CommitChanges::default() };
    let name = "new".parse().unwrap();
    let base = base.manifest_digest.into();
    bench.store.commit(&base, Upper { dir: upper, ids }, &changes, &name, &options, &mut |_| {})
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

pub fn mkfifo(path: &Path) {
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
}

pub fn chmod(path: &Path, mode: u32) {
    rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), rustix::fs::AtFlags::empty())
        .unwrap();
}

pub fn chown(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
}

/// `security.capability`, revision 2: `CAP_NET_RAW`, permitted and effective.
pub const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The same for the root of another user namespace.
pub fn capability_of(root: u32) -> Vec<u8> {
    let mut value = [&CAPABILITY[..], &root.to_le_bytes()].concat();
    value[3] = 3;
    value
}

/// An image of two layers with something of everything.
pub fn base(bench: &Bench) -> Image {
    let mut lower = RawTar::new()
        .head(&Head { path: b"./", kind: b'5', mode: 0o755, ..Head::default() }, b"")
        .dir("etc")
        .file("etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        .file("etc/gone", b"")
        .dir("etc/conf.d")
        .file("etc/conf.d/a", b"a")
        .file("etc/conf.d/b", b"b")
        .dir("bin")
        .head(&Head { path: b"bin/su", mode: 0o4755, ..Head::default() }, b"su")
        .file("bin/ping", b"ping")
        .hardlink("bin/ping6", "bin/ping")
        .hardlink("bin/ping4", "bin/ping")
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/libc.so", &[1; 5000])
        .symlink("lib", "usr/lib")
        .dir("swap")
        .file("swap/inner", b"i")
        .head(
            &Head {
                path: b"home",
                kind: b'5',
                uid: 1000,
                gid: 1000,
                mode: 0o700,
                ..Head::default()
            },
            b"",
        )
        .head(&Head { path: b"home/me", uid: 1000, gid: 1000, ..Head::default() }, b"mine")
        .dir("deep")
        .file("deep/f", b"f")
        .kind(b'6', "deep/pipe", "");
    for n in 1..12 {
        lower = lower
            .dir(&format!("deep{}", "/d".repeat(n)))
            .file(&format!("deep{}/f", "/d".repeat(n)), b"f");
    }
    let upper = RawTar::new()
        .dir("etc")
        .file("etc/.wh.gone", b"")
        .file("etc/hostname", b"two")
        .dir("usr")
        .file("usr/.wh..wh..opq", b"")
        .dir("usr/lib")
        .file("usr/lib/new.so", b"n")
        .end();
    let layout = bench.layout("base");
    layout
        .image(&[gzipped(&lower.end()), gzipped(&upper)], &json!({"Cmd": ["sh"], "Env": ["A=1"]}));
    bench
        .store
        .import(&layout.source(), &"base".parse().unwrap(), &Limits::default(), &mut |_| {})
        .unwrap()
}

/// The archive's image, imported into a store of its own.
pub fn import_elsewhere(bench: &Bench, source: &Source) -> (Bench, Image) {
    let elsewhere = Bench::new();
    let image = elsewhere
        .store
        .import(source, &"back".parse().unwrap(), &Limits::default(), &mut |_| {})
        .unwrap_or_else(|e| panic!("{source:?}: {e:?}"));
    let _ = bench;
    (elsewhere, image)
}

/// Runs a program and returns what it says.
#[expect(clippy::disallowed_methods, reason = "tests run foreign tools")]
pub fn output(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("this test needs {program}, install it: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
