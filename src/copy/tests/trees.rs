//! Trees through a stream, and streams that nobody honest wrote.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use ocivisor_copy::Notes;
use ocivisor_copy::pack::{Source, pack};
use ocivisor_copy::unpack::{Naming, Rules, Trust, unpack};
use ocivisor_core::error::{ErrorKind, Result};
use proptest::prelude::*;
use tar::{Builder, EntryType, Header};

const STRANGER: Rules = Rules { trust: Trust::Stranger, naming: Naming::One, owners: false };
const INSIDE: Rules = Rules { trust: Trust::Inside, naming: Naming::Own, owners: false };

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn packed(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    let source = Source { path: bytes(path), follow: false };
    pack(source, &mut out, &mut Notes::default()).unwrap();
    out
}

fn put(stream: &[u8], to: &Path, rules: Rules) -> Result<Vec<String>> {
    let mut notes = Notes::default();
    unpack(stream, bytes(to), rules, &mut notes).map(|()| notes.lines().collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    put(&packed(from), to, STRANGER).map(drop)
}

/// Entries as somebody else might write them.
fn stream(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, link) in entries {
        let mut header = Header::new_gnu();
        let fields = header.as_gnu_mut().unwrap();
        fields.name[..path.len()].copy_from_slice(path.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o6755);
        header.set_mtime(1_000_000_000);
        let content: &[u8] = if *kind == EntryType::Regular { b"evil" } else { b"" };
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_tree_arrives_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    let long = "n".repeat(200);
    fs::create_dir_all(from.join("a/b")).unwrap();
    fs::write(from.join("a/file"), "content").unwrap();
    fs::write(from.join("a").join(&long), "long").unwrap();
    fs::write(from.join("a/b/esc\u{1b}[2J\n"), "").unwrap();
    symlink("/etc/shadow", from.join("a/link")).unwrap();
    symlink("x".repeat(300), from.join("far")).unwrap();
    fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(from.join("a/b"), fs::Permissions::from_mode(0o555)).unwrap();
    let holes = fs::File::create(from.join("holes")).unwrap();
    holes.set_len(1 << 40).unwrap();
    holes.write_all_at(b"here", 1 << 39).unwrap();
    let to = dir.path().join("to");
    copy(&from, &to).unwrap();
    assert_eq!(fs::read(to.join("a/file")).unwrap(), b"content");
    assert_eq!(fs::read(to.join("a").join(&long)).unwrap(), b"long");
    assert!(to.join("a/b/esc\u{1b}[2J\n").exists());
    assert_eq!(fs::read_link(to.join("a/link")).unwrap(), Path::new("/etc/shadow"));
    assert_eq!(fs::read_link(to.join("far")).unwrap().as_os_str().len(), 300);
    // Nobody gets another's rights by a copy.
    assert_eq!(fs::metadata(to.join("a/file")).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::metadata(to.join("a/b")).unwrap().mode() & 0o7777, 0o555);
    let time = |root: &Path| root.join("a/b").metadata().unwrap().mtime();
    assert_eq!(time(&from), time(&to));
    let sparse = fs::File::open(to.join("holes")).unwrap();
    let mut four = [0; 4];
    sparse.read_exact_at(&mut four, 1 << 39).unwrap();
    assert_eq!((&four, sparse.metadata().unwrap().len()), (b"here", 1 << 40));
    assert!(sparse.metadata().unwrap().blocks() < 100);
}

#[test]
fn names_mean_what_docker_says() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let kind = |from: &str, to: &str| copy(&at(from), &at(to)).unwrap_err().kind;
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/f"), "1").unwrap();
    fs::write(at("f"), "2").unwrap();
    fs::create_dir(at("there")).unwrap();
    // A file: to a name, over a file, into a directory.
    copy(&at("f"), &at("new")).unwrap();
    copy(&at("d/f"), &at("new")).unwrap();
    assert_eq!(fs::read(at("new")).unwrap(), b"1");
    copy(&at("f"), &at("there")).unwrap();
    assert_eq!(fs::read(at("there/f")).unwrap(), b"2");
    assert_eq!(kind("f", "none/"), ErrorKind::NotFound);
    assert_eq!(kind("f", "none/x"), ErrorKind::NotFound);
    assert_eq!(kind("f", "new/"), ErrorKind::Conflict);
    // A directory: becomes, goes into, or only what is in it.
    copy(&at("d"), &at("became")).unwrap();
    copy(&at("d"), &at("there")).unwrap();
    assert!(at("became/f").exists() && at("there/d/f").exists());
    fs::create_dir(at("inner")).unwrap();
    copy(&at("d/."), &at("inner")).unwrap();
    copy(&at("d/."), &at("fresh")).unwrap();
    assert!(at("inner/f").exists() && at("fresh/f").exists() && !at("inner/d").exists());
    assert_eq!(kind("d", "f"), ErrorKind::Conflict);
    // A link is a link, and with a slash what it leads to.
    symlink("d", at("l")).unwrap();
    copy(&at("l"), &at("as-link")).unwrap();
    copy(&at("l/"), &at("as-dir")).unwrap();
    assert!(at("as-link").is_symlink() && at("as-dir/f").is_file());
    let null = Source { path: b"/dev/null", follow: false };
    let device = pack(null, Vec::new(), &mut Notes::default()).unwrap_err();
    assert_eq!(device.message, "/dev/null is a device");
}

#[test]
fn a_stream_with_evil_in_it_reaches_nothing() {
    use EntryType as T;
    let d = (T::Directory, "d/", "");
    let evil: [&[(EntryType, &str, &str)]; 14] = [
        &[(T::Regular, "/etc/evil", "")],
        &[(T::Regular, "../evil", "")],
        &[d, (T::Regular, "d/../../evil", "")],
        &[d, (T::Symlink, "d/l", ".."), (T::Regular, "d/l/evil", "")],
        &[d, (T::Symlink, "d/l", ".."), (T::Directory, "d/l/", "")],
        &[(T::Symlink, "d", "."), (T::Regular, "d/evil", "")],
        &[d, (T::Link, "d/h", "../secret")],
        &[d, (T::Link, "d/h", "d/x")],
        &[d, (T::Char, "d/c", "")],
        &[d, (T::Block, "d/b", "")],
        &[d, (T::Fifo, "d/p", "")],
        &[d, (T::Regular, "other/evil", "")],
        &[(T::Regular, "a/b", "")],
        &[(T::Regular, "", "")],
    ];
    for entries in evil {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let to = dir.path().join("in/to");
        fs::create_dir_all(&to).unwrap();
        assert!(put(&stream(entries), &to, STRANGER).is_err(), "{entries:?}");
        assert!(!dir.path().join("evil").exists() && !dir.path().join("in/evil").exists());
        assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
    }
}

#[test]
fn nothing_is_written_into_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let (to, secret) = (dir.path().join("to"), dir.path().join("secret"));
    fs::create_dir_all(to.join("d")).unwrap();
    fs::write(&secret, "secret").unwrap();
    symlink(&secret, to.join("d/link")).unwrap();
    fs::hard_link(&secret, to.join("d/hard")).unwrap();
    symlink(dir.path(), to.join("d/dir")).unwrap();
    let d = (EntryType::Directory, "d/", "");
    let entries = [d, (EntryType::Regular, "d/link", ""), (EntryType::Regular, "d/hard", "")];
    put(&stream(&entries), &to, STRANGER).unwrap();
    assert_eq!(fs::read(&secret).unwrap(), b"secret");
    assert_eq!(fs::read(to.join("d/hard")).unwrap(), b"evil");
    assert_eq!(fs::metadata(to.join("d/hard")).unwrap().mode() & 0o7777, 0o755);
    let through = stream(&[d, (EntryType::Regular, "d/dir/x", "")]);
    assert_eq!(put(&through, &to, STRANGER).unwrap_err().kind, ErrorKind::Conflict);
    assert!(!dir.path().join("x").exists());
}

#[test]
fn archives_of_others_go_into_a_directory_by_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let entries = [
        (EntryType::Regular, "usr/bin/x", ""),
        (EntryType::Link, "usr/bin/y", "usr/bin/x"),
        (EntryType::Fifo, "pipe", ""),
        (EntryType::Symlink, "bin", "usr/bin"),
        (EntryType::Regular, "bin/z", ""),
    ];
    let notes = put(&stream(&entries), dir.path(), INSIDE).unwrap();
    assert_eq!(notes, ["left out pipe: a device or FIFO"]);
    let inode = |name: &str| at(name).metadata().unwrap().ino();
    assert_eq!(inode("usr/bin/x"), inode("usr/bin/y"));
    assert!(at("usr/bin/z").is_file(), "a guest's own links lead inside");
    let none = put(&stream(&entries), &at("none"), INSIDE);
    assert_eq!(none.unwrap_err().kind, ErrorKind::NotFound);
}

#[test]
fn a_broken_stream_leaves_no_half_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("big"), vec![1; 100_000]).unwrap();
    let whole = packed(&dir.path().join("big"));
    let to = dir.path().join("to");
    let cut = put(&whole[..50_000], &to, STRANGER).unwrap_err();
    assert_eq!(cut.message, "tar stream: ends in the middle");
    assert!(!to.exists());
    let gzip = put(&[0x1f, 0x8b, 8, 0].repeat(200), &to, STRANGER).unwrap_err();
    assert!(gzip.message.contains("not compressed?"));
}

#[test]
fn gnu_tar_reads_what_is_written_and_writes_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("x".repeat(150)), "long").unwrap();
    let holes = fs::File::create(from.join("holes")).unwrap();
    holes.set_len(1 << 28).unwrap();
    holes.write_all_at(b"end", (1 << 28) - 3).unwrap();
    fs::write(dir.path().join("a.tar"), packed(&from)).unwrap();
    let run = |command: &str| {
        let mut shell = std::process::Command::new("sh");
        assert!(shell.args(["-c", command]).current_dir(dir.path()).status().unwrap().success());
    };
    run("mkdir gnu && tar -C gnu -xf a.tar && diff -r from gnu/from");
    run("tar --format=posix -S -cf b.tar from && tar --format=gnu -cf c.tar from/xxx*");
    for name in ["b", "c"] {
        let to = dir.path().join(name);
        fs::create_dir(&to).unwrap();
        let tar = fs::read(dir.path().join(format!("{name}.tar"))).unwrap();
        put(&tar, &to, INSIDE).unwrap();
    }
    run("diff -r from b/from && cmp from/x* c/from/x*");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever comes: below the destination, or an error.
    #[test]
    fn no_stream_reaches_beyond(
        entries in prop::collection::vec(
            (0_usize..8, "(\\.\\./|/|\\./|a/|b/){0,3}[abc.]{0,2}", "[/.abt]{0,6}"), 0..8),
        flips in prop::collection::vec((0_usize..4096, any::<u8>()), 0..3),
        own in any::<bool>(),
    ) {
        const KINDS: [EntryType; 8] = [
            EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link,
            EntryType::GNULongName, EntryType::XHeader, EntryType::Fifo, EntryType::Continuous,
        ];
        let entries: Vec<_> = entries
            .iter()
            .map(|(kind, path, link)| (KINDS[*kind], path.as_str(), link.as_str()))
            .collect();
        let mut stream = stream(&entries);
        for (at, byte) in flips {
            if let Some(place) = stream.get_mut(at) {
                *place = byte;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        let naming = if own { Naming::Own } else { Naming::One };
        let _ = put(&stream, &to, Rules { naming, ..STRANGER });
        let beside = fs::read_dir(dir.path()).unwrap();
        let beside: Vec<_> = beside.map(|entry| entry.unwrap().file_name()).collect();
        prop_assert_eq!(beside, ["to"]);
    }
}
