//! Trees through a stream, and streams that nobody honest wrote.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use ocivisor_copy::Notes;
use ocivisor_copy::pack::{Source, pack};
use ocivisor_copy::place::Parts;
use ocivisor_copy::unpack::{Naming, Rules, Trust, unpack};
use ocivisor_core::error::{ErrorKind, Result};
use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use tar::{Builder, EntryType, Header};

const ANY: Naming<'_> = Naming::One { expect: None };
const STRANGER: Rules<'_> = Rules { trust: Trust::Stranger, naming: ANY, owners: false };
const INSIDE: Rules<'_> = Rules { trust: Trust::Inside, naming: Naming::Own, owners: false };

const INVALID: ErrorKind = ErrorKind::Invalid;
const CONFLICT: ErrorKind = ErrorKind::Conflict;
const IN_THE_WAY: &str = "has something in its way that is no directory";

/// Names in a directory, in order.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn packed(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    let source = Source { path: bytes(path), follow: false };
    pack(source, &mut out, &mut Notes::default()).unwrap();
    out
}

fn put(stream: &[u8], to: &Path, rules: Rules<'_>) -> Result<Vec<String>> {
    let mut notes = Notes::default();
    unpack(stream, bytes(to), rules, &mut notes).map(|()| notes.lines().collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    put(&packed(from), to, STRANGER).map(drop)
}

/// Kind, path, and what it links to.
type Named<'n> = (EntryType, &'n str, &'n str);

/// Entries as somebody else might write them.
fn stream(entries: &[Named<'_>]) -> Vec<u8> {
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
    let evil: [(&[Named<'_>], ErrorKind, &str); 15] = [
        (&[(T::Regular, "/etc/evil", "")], INVALID, "/etc/evil is no relative path"),
        (&[(T::Regular, "../evil", "")], INVALID, "../evil leads upwards"),
        (&[d, (T::Regular, "d/../../evil", "")], INVALID, "d/../../evil leads upwards"),
        (&[d, (T::Symlink, "d/l", ".."), (T::Regular, "d/l/evil", "")], CONFLICT, IN_THE_WAY),
        (&[d, (T::Symlink, "d/l", ".."), (T::Directory, "d/l/", "")], CONFLICT, IN_THE_WAY),
        (&[(T::Symlink, "d", "."), (T::Regular, "d/evil", "")], CONFLICT, IN_THE_WAY),
        (&[d, (T::Link, "d/h", "../secret")], INVALID, "d/h is of the type 1"),
        (&[d, (T::Link, "d/h", "d/x")], INVALID, "d/h is of the type 1"),
        (&[d, (T::Char, "d/c", "")], INVALID, "d/c is of the type 3"),
        (&[d, (T::Block, "d/b", "")], INVALID, "d/b is of the type 4"),
        (&[d, (T::Fifo, "d/p", "")], INVALID, "d/p is of the type 6"),
        (&[d, (T::Regular, "other/evil", "")], INVALID, "other/evil is not what was asked for"),
        (&[(T::Regular, "a/b", "")], INVALID, "a/b is not what was asked for"),
        (&[(T::Regular, "", "")], INVALID, " is no relative path"),
        (&[(T::Symlink, "./", "x")], INVALID, "./ is not what was asked for"),
    ];
    for (entries, kind, why) in &evil {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        let to = dir.path().join("in/to");
        fs::create_dir_all(&to).unwrap();
        let refused = put(&stream(entries), &to, STRANGER).unwrap_err();
        assert_eq!(refused.kind, *kind, "{entries:?}: {refused}");
        assert!(refused.message.contains(why), "{entries:?}: {refused}");
        assert!(!dir.path().join("evil").exists() && !dir.path().join("in/evil").exists());
        assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
    }
}

#[test]
fn nothing_comes_that_was_not_asked_for() {
    use EntryType as T;
    let d = (T::Directory, "./", "");
    let asked = |path: &str| Parts::of(path.as_bytes());
    for (path, entries, refused) in [
        // CVE-2019-6111: into the home directory goes what the other side names.
        ("/tmp/report.txt", &[(T::Regular, ".bashrc", "")][..], ".bashrc"),
        ("/tmp/report.txt", &[(T::Directory, ".ssh/", ""), (T::Regular, ".ssh/x", "")], ".ssh/"),
        ("/tmp/report.txt", &[d, (T::Regular, "./.bashrc", "")], "./"),
        ("/tmp/report.txt", &[(T::Regular, "report.txt/../.bashrc", "")], "leads upwards"),
        ("/srv", &[d, (T::Regular, ".bashrc", "")], "./"),
        ("/srv/.", &[(T::Directory, ".ssh/", "")], ".ssh/"),
        ("/", &[(T::Regular, "x", "")], "x"),
        ("/srv/..", &[(T::Regular, "srv", "")], "srv"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let parts = asked(path);
        let naming = Naming::One { expect: Some(parts.top()) };
        let error = put(&stream(entries), home.path(), Rules { naming, ..STRANGER }).unwrap_err();
        assert_eq!(error.kind, INVALID, "{path}");
        let why = format!("tar stream: {refused} is not what was asked for");
        assert!(error.message == why || error.message.contains(refused), "{path}: {error}");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "{path} {entries:?}");
    }
    // What was asked for does come, by the names that the other side has for it.
    for (path, came) in [("d", "d/f"), ("d/", "d/f"), ("d/.", "f"), ("d/f", "f")] {
        let dir = tempfile::tempdir().unwrap();
        let (from, home) = (dir.path().join("from"), dir.path().join("home"));
        fs::create_dir_all(from.join("d")).unwrap();
        fs::create_dir(&home).unwrap();
        fs::write(from.join("d/f"), "").unwrap();
        // Not joined: that takes a dot at the end away.
        let path = format!("{}/{path}", from.display());
        let mut out = Vec::new();
        let source = Source { path: path.as_bytes(), follow: false };
        pack(source, &mut out, &mut Notes::default()).unwrap();
        let parts = asked(&path);
        let naming = Naming::One { expect: Some(parts.top()) };
        put(&out, &home, Rules { naming, ..STRANGER }).unwrap();
        assert!(home.join(came).is_file(), "{path}");
    }
}

#[test]
fn archives_inside_do_not_leave_the_destination() {
    use EntryType as T;
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("passwd"), "passwd").unwrap();
    let outside = etc.to_str().unwrap();
    for entries in [
        [(T::Symlink, "l", outside), (T::Regular, "l/passwd", "")],
        [(T::Symlink, "l", "../etc"), (T::Regular, "l/passwd", "")],
        [(T::Symlink, "l", "../etc"), (T::Directory, "l/", "")],
        [(T::Symlink, "l", "../etc"), (T::Directory, "l/new/", "")],
        [(T::Symlink, "l", outside), (T::Link, "h", "l/passwd")],
        [(T::Symlink, "l", "../etc"), (T::Link, "h", "l/passwd")],
        [(T::Symlink, "l", "/proc/self/root"), (T::Link, "h", "l/etc/passwd")],
    ] {
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        let refused = put(&stream(&entries), &to, INSIDE).unwrap_err();
        assert_eq!(refused.kind, CONFLICT, "{entries:?}: {refused}");
        assert!(refused.message.ends_with("is behind a link out of the destination"), "{refused}");
        assert!(!to.join("h").exists());
        assert_eq!(fs::metadata(etc.join("passwd")).unwrap().nlink(), 1);
        assert_eq!(fs::read(etc.join("passwd")).unwrap(), b"passwd");
        assert_eq!(names(&etc), ["passwd"]);
        fs::remove_dir_all(&to).unwrap();
    }
    // A link as the source of a hard link is none of a file.
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    let entries = [(T::Symlink, "l", "../etc/passwd"), (T::Link, "h", "l")];
    assert_eq!(put(&stream(&entries), &to, INSIDE).unwrap_err().kind, INVALID);
    assert_eq!(names(&to), ["l"]);
}

#[test]
fn what_is_replaced_is_there_until_the_new_is_whole() {
    use EntryType as T;
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("big"), dir.path().join("to"));
    fs::write(&from, vec![1; 100_000]).unwrap();
    let whole = packed(&from);
    fs::create_dir(&to).unwrap();
    for (rules, target) in [
        (STRANGER, to.join("big")),
        (STRANGER, to.clone()),
        (Rules { trust: Trust::Inside, ..STRANGER }, to.join("big")),
        (INSIDE, to.clone()),
    ] {
        fs::write(to.join("big"), "old").unwrap();
        let cut = put(&whole[..50_000], &target, rules).unwrap_err();
        assert_eq!(cut.message, "tar stream: ends in the middle");
        assert_eq!(fs::read(to.join("big")).unwrap(), b"old");
        assert_eq!(names(&to), ["big"]);
        put(&whole, &target, rules).unwrap();
        assert_eq!(fs::read(to.join("big")).unwrap().len(), 100_000);
        assert_eq!(names(&to), ["big"]);
    }
    // Links replace and are replaced, also by what they are already.
    let file = (T::Regular, "f", "");
    for entries in [
        [file, (T::Link, "big", "f")],
        [file, (T::Link, "big", "f")],
        [file, (T::Symlink, "big", "f")],
        [file, (T::Link, "big", "f")],
        [file, (T::Link, "f", "f")],
        [file, (T::Regular, "big", "")],
    ] {
        put(&stream(&entries), &to, INSIDE).unwrap();
        assert_eq!(names(&to), ["big", "f"], "{entries:?}");
        assert_eq!(fs::read(to.join("big")).unwrap(), b"evil");
    }
    // Neither a directory nor a device is replaced.
    fs::create_dir(to.join("d")).unwrap();
    for rules in [STRANGER, INSIDE] {
        for kind in [T::Regular, T::Symlink] {
            let refused = put(&stream(&[(T::Directory, "./", ""), (kind, "d", "x")]), &to, rules);
            assert_eq!(refused.unwrap_err().kind, CONFLICT);
        }
    }
    assert_eq!(names(&to), ["big", "d", "f"]);
}

#[test]
fn directories_that_were_there_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
    let set = |name: &str, mode| {
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    for name in ["tmp", "from", "from/tmp", "from/new"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    set("tmp", 0o1777);
    set("from/tmp", 0o755);
    set("from/new", 0o3770);
    let mut out = Vec::new();
    let path = format!("{}/from/.", dir.path().display());
    let source = Source { path: path.as_bytes(), follow: false };
    pack(source, &mut out, &mut Notes::default()).unwrap();
    for rules in [STRANGER, Rules { trust: Trust::Inside, ..STRANGER }] {
        put(&out, dir.path(), rules).unwrap();
        // What is new has its sticky bit, and nobody's group.
        assert_eq!((mode("tmp"), mode("new")), (0o1777, 0o1770));
        fs::remove_dir(dir.path().join("new")).unwrap();
    }
    put(&out, dir.path(), Rules { owners: true, ..STRANGER }).unwrap();
    assert_eq!((mode("tmp"), mode("new")), (0o755, 0o3770));
}

#[test]
fn names_and_attributes_hold_any_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    let long = format!("{}\n{}", "a".repeat(75), "b".repeat(74));
    fs::write(from.join(&long), "long").unwrap();
    symlink(&long, from.join("link")).unwrap();
    let holes = fs::File::create(from.join("with\nholes")).unwrap();
    holes.set_len(1 << 28).unwrap();
    holes.write_all_at(b"here", 1 << 27).unwrap();
    copy(&from, &to).unwrap();
    assert_eq!(names(&to), names(&from));
    assert_eq!(fs::read(to.join(&long)).unwrap(), b"long");
    assert_eq!(fs::read_link(to.join("link")).unwrap().to_str(), Some(&*long));
    let sparse = fs::metadata(to.join("with\nholes")).unwrap();
    assert_eq!((sparse.len(), sparse.blocks() < 100), (1 << 28, true));

    // As of tar --xattrs: a value of bytes, before the name that matters.
    let mut builder = Builder::new(Vec::new());
    let value = [b'v', 0x0a, 0xff, 0x0a];
    let attributes = [("SCHILY.xattr.user.x", &value[..]), ("path", &b"named"[..])];
    builder.append_pax_extensions(attributes).unwrap();
    let mut header = Header::new_ustar();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    builder.append(&header, &b""[..]).unwrap();
    put(&builder.into_inner().unwrap(), &to, INSIDE).unwrap();
    assert!(to.join("named").is_file());
}

#[test]
fn what_the_other_side_would_refuse_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut at = dir.path().join("deep");
    fs::create_dir(&at).unwrap();
    for _ in 0..257 {
        at.push("d");
        fs::create_dir(&at).unwrap();
        fs::write(at.join("f"), "").unwrap();
    }
    let mut notes = Notes::default();
    let mut out = Vec::new();
    let deep = dir.path().join("deep");
    pack(Source { path: bytes(&deep), follow: false }, &mut out, &mut notes).unwrap();
    let notes: Vec<String> = notes.lines().collect();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes.iter().all(|note| note.ends_with(": more than 256 directories deep")));
    put(&out, &dir.path().join("to"), STRANGER).unwrap();

    // Names of 4095 bytes and one more; no path of a process is so long, so a step is taken at a time.
    let long = dir.path().join("long");
    fs::create_dir(&long).unwrap();
    let mut fd = rustix::fs::open(&long, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let mut left = 4095 - "long".len();
    while left > 0 {
        let name = "n".repeat((left - 1).min(200));
        rustix::fs::mkdirat(&fd, &name, Mode::RWXU).unwrap();
        fd = rustix::fs::openat(&fd, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
        left -= name.len() + 1;
        left = if left == 1 { 0 } else { left };
    }
    let mut notes = Notes::default();
    let mut out = Vec::new();
    pack(Source { path: bytes(&long), follow: false }, &mut out, &mut notes).unwrap();
    rustix::fs::mkdirat(&fd, "xx", Mode::RWXU).unwrap();
    put(&out, &dir.path().join("copy"), STRANGER).unwrap();
    let mut more = Notes::default();
    pack(Source { path: bytes(&long), follow: false }, Vec::new(), &mut more).unwrap();
    assert_eq!((notes.lines().count(), more.lines().count()), (0, 1));
}

/// Does something whenever a piece of the stream was written.
struct Meanwhile<F>(F, Vec<u8>);

impl<F: FnMut(&[u8])> std::io::Write for Meanwhile<F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.1.extend_from_slice(bytes);
        (self.0)(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_directory_that_becomes_a_link_is_not_left() {
    for swapped_at in ["from/", "from/a/", "from/a/d/"] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("from/a/d")).unwrap();
        fs::create_dir_all(at("outside/d")).unwrap();
        fs::write(at("from/a/d/f"), "inside").unwrap();
        fs::write(at("outside/d/f"), "secret").unwrap();
        fs::write(at("outside/secret"), "secret").unwrap();
        let swap = |written: &[u8]| {
            if written.starts_with(&[swapped_at.as_bytes(), &[0]].concat()) {
                fs::rename(at("from/a"), at("moved")).unwrap();
                symlink("../outside", at("from/a")).unwrap();
            }
        };
        let mut out = Meanwhile(swap, Vec::new());
        let from = at("from");
        pack(Source { path: bytes(&from), follow: false }, &mut out, &mut Notes::default())
            .unwrap();
        assert!(at("from/a").is_symlink(), "{swapped_at}");
        put(&out.1, &at("to"), STRANGER).unwrap();
        // Before it was looked at it is the link, afterwards the directory that it was.
        assert_eq!(at("to/a").is_symlink(), swapped_at == "from/", "{swapped_at}");
        assert!(!out.1.windows(6).any(|bytes| bytes == b"secret"), "{swapped_at}");
    }
}

#[test]
fn a_file_that_becomes_shorter_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, vec![1; 5000]).unwrap();
    let mut notes = Notes::default();
    let log = fs::File::options().write(true).open(&path).unwrap();
    let mut out = Meanwhile(|_: &[u8]| log.set_len(1000).unwrap(), Vec::new());
    pack(Source { path: bytes(&path), follow: false }, &mut out, &mut notes).unwrap();
    let notes: Vec<String> = notes.lines().collect();
    assert_eq!(notes, ["log became shorter meanwhile: zeros at its end"]);
    let to = dir.path().join("to");
    put(&out.1, &to, STRANGER).unwrap();
    assert_eq!(fs::read(&to).unwrap(), [vec![1; 1000], vec![0; 4000]].concat());
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
        inside in any::<bool>(),
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
        let trust = if inside { Trust::Inside } else { Trust::Stranger };
        let naming = if own { Naming::Own } else { ANY };
        let _ = put(&stream, &to, Rules { naming, trust, ..STRANGER });
        let beside = fs::read_dir(dir.path()).unwrap();
        let beside: Vec<_> = beside.map(|entry| entry.unwrap().file_name()).collect();
        prop_assert_eq!(beside, ["to"]);
    }
}
