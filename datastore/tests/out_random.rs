//! Random lives of a guest: whatever it did to its files, a commit shows the same, and so does an exported tar.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
mod out_common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use common::*;
use ocivisor_datastore::{IdMap, Limits, Upper};
use out_common::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;

/// Something that may be done to a path, with another path where two are needed.
#[derive(Clone, Copy, Debug)]
enum Do {
    Write(u16),
    Append,
    Truncate(u16),
    Sparse,
    Remove,
    MakeDir,
    Rename,
    Exchange,
    Link,
    Symlink,
    Fifo,
    Mode(u16),
    Owner(u16),
    Xattr(u8),
    DropXattr(u8),
    Capability,
    Time(u32),
    Recreate,
}

fn action() -> impl Strategy<Value = Do> {
    prop_oneof![
        3 => any::<u16>().prop_map(Do::Write),
        1 => Just(Do::Append),
        1 => any::<u16>().prop_map(Do::Truncate),
        1 => Just(Do::Sparse),
        3 => Just(Do::Remove),
        3 => Just(Do::MakeDir),
        3 => Just(Do::Rename),
        1 => Just(Do::Exchange),
        2 => Just(Do::Link),
        1 => Just(Do::Symlink),
        1 => Just(Do::Fifo),
        1 => (0..0o10000u16).prop_map(Do::Mode),
        1 => any::<u16>().prop_map(Do::Owner),
        1 => any::<u8>().prop_map(Do::Xattr),
        1 => any::<u8>().prop_map(Do::DropXattr),
        1 => Just(Do::Capability),
        1 => any::<u32>().prop_map(Do::Time),
        2 => Just(Do::Recreate),
    ]
}

/// One to three of few names, so that they meet.
fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("d")];
    proptest::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"))
}

/// Does what the kernel lets happen; errors are part of life.
fn act(overlay: &Overlay, what: Do, path: &str, other: &str) -> std::io::Result<()> {
    let at = |p: &str| -> PathBuf { overlay.at(p) };
    let (one, two) = (at(path), at(other));
    let meta = fs::symlink_metadata(&one);
    let is_link = meta.as_ref().is_ok_and(|m| m.is_symlink());
    let plain = meta.as_ref().is_ok_and(|m| m.is_file());
    let is_dir = meta.as_ref().is_ok_and(|m| m.is_dir());
    let sys = |r: Result<(), rustix::io::Errno>| r.map_err(std::io::Error::from);
    match what {
        Do::Write(_) | Do::Append | Do::Truncate(_) | Do::Sparse if meta.is_ok() && !plain => {
            Ok(())
        }
        Do::Write(n) => File::create(one)?.write_all(&vec![n as u8; usize::from(n)]),
        Do::Append => File::options().append(true).open(one)?.write_all(b"more"),
        Do::Truncate(n) => File::options().write(true).open(one)?.set_len(n.into()),
        Do::Sparse => {
            let file = File::create(one)?;
            file.set_len(1 << 20)?;
            file.write_all_at(b"in the middle", 500_000)
        }
        Do::Remove if is_dir => fs::remove_dir_all(one),
        Do::Remove => fs::remove_file(one),
        Do::MakeDir => fs::create_dir(one),
        Do::Rename => sys(rustix::fs::renameat(rustix::fs::CWD, one, rustix::fs::CWD, two)),
        Do::Exchange => {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            sys(rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, two, flags))
        }
        // Links of symbolic links and fifos no layer can keep.
        Do::Link if plain => fs::hard_link(one, two),
        Do::Link => Ok(()),
        Do::Symlink => symlink(other, one),
        Do::Fifo => {
            let kind = rustix::fs::FileType::Fifo;
            let mode = rustix::fs::Mode::RUSR;
            sys(rustix::fs::mknodat(rustix::fs::CWD, one, kind, mode, 0))
        }
        Do::Mode(mode) if !is_link => {
            let mode = rustix::fs::Mode::from_raw_mode(mode.into());
            sys(rustix::fs::chmodat(rustix::fs::CWD, one, mode, rustix::fs::AtFlags::empty()))
        }
        Do::Owner(id) => std::os::unix::fs::lchown(one, Some(id.into()), Some((id / 2).into())),
        Do::Xattr(n) => {
            let flags = rustix::fs::XattrFlags::empty();
            sys(rustix::fs::lsetxattr(one, format!("user.{}", n % 3), &[n; 9], flags))
        }
        Do::DropXattr(n) => sys(rustix::fs::lremovexattr(one, format!("user.{}", n % 3))),
        Do::Capability if plain => {
            let flags = rustix::fs::XattrFlags::empty();
            sys(rustix::fs::lsetxattr(one, "security.capability", &CAPABILITY, flags))
        }
        Do::Time(n) if plain => {
            let time = UNIX_EPOCH + Duration::new(n.into(), n % 1_000_000_000);
            File::options().write(true).open(one)?.set_modified(time)
        }
        Do::Recreate if is_dir => {
            fs::remove_dir_all(&one)?;
            fs::create_dir(one)
        }
        Do::Mode(_) | Do::Capability | Do::Time(_) | Do::Recreate => Ok(()),
    }
}

#[test]
fn whatever_a_guest_did_a_commit_shows_the_same() {
    let bench = Bench::new();
    let layout = bench.layout("layout");
    let mut lower = RawTar::new();
    for one in ["a", "b"] {
        lower = lower.dir(one);
        for two in ["a", "b"] {
            lower = lower.dir(&format!("{one}/{two}")).file(&format!("{one}/{two}/c"), b"lower");
        }
        lower = lower
            .file(&format!("{one}/c"), &[3; 3000])
            .hardlink(&format!("{one}/d"), &format!("{one}/c"));
    }
    let lower = lower.symlink("c", "a/b").kind(b'6', "d", "");
    let middle =
        RawTar::new().dir("b").file("b/.wh.a", b"").dir("a").file("a/.wh..wh..opq", b"").dir("a/b");
    layout.image(&[plain(lower.end()), plain(middle.file("a/b/d", b"m").end())], &json!({}));
    let base = bench.import(&layout.source()).unwrap();

    let lives = proptest::collection::vec((action(), path(), path()), 1..40);
    let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
    let count = std::cell::Cell::new(0);
    let outcome = TestRunner::new(config).run(&lives, |life| {
        count.set(count.get() + 1);
        let overlay = Overlay::of(&bench, &base, &format!("vm{}", count.get()));
        for (what, path, other) in &life {
            // What the kernel refuses a guest does not get done either.
            let _ = act(&overlay, *what, path, other);
        }
        let want = grouped(&overlay.merged);
        let upper = overlay.upper();
        let made = commit(&bench, &base, &upper).unwrap();
        prop_assert_eq!(difference(&grouped_by_a_guest(&bench, &made.image), &want), None);

        let mut tar = Vec::new();
        let image = base.manifest_digest.into();
        let top = Some(Upper { dir: &upper, ids: IdMap::IDENTITY });
        bench.store.export_tar(&image, top, &mut tar, &Limits::default(), &mut |_| {}).unwrap();
        let file = bench.path("exported.tar");
        put(&file, &tar);
        let source = format!("rootfs:{}", text(&file)).parse().unwrap();
        let flat = bench.import(&source).unwrap();
        let got = grouped(&bench.store.layer_path(&flat.layers[0]));
        prop_assert_eq!(difference(&got, &want), None);
        Ok(())
    });
    outcome.unwrap();
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}
