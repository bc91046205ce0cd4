//! XFS of version 4, as systems of before 2015 have it.
//!
//! Kernels of today may refuse to mount it (`CONFIG_XFS_SUPPORT_V4`), so it is filled by `mkfs.xfs -p` and `xfs_db`. No tool
//! makes a tree of extents in it; that one is written here, and `xfs_db` must read in it what we meant.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use crate::bench;
use crate::common::{Bench, assert_same_tree, put, run, text, tree};
use crate::make::*;

/// Bytes of a block.
const BLOCK: usize = 4096;

/// What a description can say: no hard links, no xattrs, no names with spaces.
fn plain_root(dir: &Path) {
    small_root(dir);
    for sub in ["bin", "few", "some", "many", "var"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    let at = |name: &str| dir.join(name);
    put(&at("bin/su"), b"su");
    run("chown", &["7:42", text(&at("bin/su"))]);
    run("chmod", &["6755", text(&at("bin/su"))]);
    run("mkfifo", &["-m", "600", text(&at("var/pipe"))]);
    // Directories in the inode, in a block, with an index, and with a tree of indexes where blocks are small.
    for (sub, count) in [("few", 3), ("some", 60), ("many", 2000)] {
        for n in 0..count {
            put(&at(&format!("{sub}/a-file-of-some-length-{n:05}")), b"");
        }
    }
    for size in [0, 1, 155, 156, 157, 511, 512, 513, 4095, 4096, 4097, 1_000_001] {
        put(&at(&format!("var/size-{size:07}")), &noise(size));
    }
    for length in [1, 155, 156, 157, 400, 512, 513, 1000] {
        symlink("t".repeat(length), at(&format!("var/link-{length:04}"))).unwrap();
    }
    put(&at("var/attributes"), b"x");
    put(&at("var/large-attribute"), b"x");
    put(&at("var/pieces"), &noise(PIECES * BLOCK));
    put(&at("var/spare"), &[0; BLOCK]);
}

/// The directory in the language of mkfs.xfs(8), option `-p`.
fn describe(dir: &Path, out: &mut String) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let meta = fs::symlink_metadata(&path).unwrap();
        let mode = meta.permissions().mode();
        let bit = |bit, shown| if mode & bit != 0 { shown } else { '-' };
        let rest = format!(
            "{}{}{:03o} {} {}",
            bit(0o4000, 'u'),
            bit(0o2000, 'g'),
            mode & 0o777,
            meta.uid(),
            meta.gid()
        );
        let name = path.file_name().unwrap().to_str().unwrap();
        if meta.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            writeln!(out, "{name} l{rest} {}", text(&target)).unwrap();
        } else if meta.is_dir() {
            writeln!(out, "{name} d{rest}").unwrap();
            describe(&path, out);
        } else if meta.is_file() {
            writeln!(out, "{name} -{rest} {}", text(&path)).unwrap();
        } else {
            writeln!(out, "{name} p{rest}").unwrap();
        }
    }
    out.push_str("$\n");
}

/// Makes a file system of version 4 with that content.
fn make(bench: &Bench, root: &Path, file: &Path, options: &[&str]) {
    let mut proto = String::from("/\n0 0\nd--755 0 0\n");
    describe(root, &mut proto);
    put(&bench.path("proto"), proto.as_bytes());
    blank(file, 320);
    let proto = bench.path("proto");
    let args = [&["-q", "-f", "-m", "crc=0", "-p", text(&proto)], options, &[text(file)]].concat();
    run("mkfs.xfs", &args);
}

/// What xfs_db says to these commands.
#[expect(clippy::disallowed_methods, reason = "tests run foreign tools")]
fn db(file: &Path, commands: &[String]) -> String {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let output = Command::new("xfs_db")
        .arg("-x")
        .args(commands)
        .arg(file)
        // It would ask for more.
        .stdin(Stdio::null())
        .output()
        .expect("this test needs xfs_db, of Debian's package xfsprogs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Imports a disk and compares it with the tree. mkfs stamps everything with its own time.
fn same_but_times(bench: &Bench, file: &Path, root: &Path, begun: SystemTime, what: &str) {
    let image = import(bench, file).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    let seconds = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().cast_signed()
    };
    let made = seconds(begun)..=seconds(SystemTime::now());
    let mut got = tree(&bench.fs(&image));
    let mut want = expected(root);
    for (path, seen) in &mut got {
        assert!(made.contains(&seen.mtime.0), "{what}: {}: {:?}", path.escape_ascii(), seen.mtime);
        seen.mtime = (0, 0);
    }
    for seen in want.values_mut() {
        seen.mtime = (0, 0);
    }
    for tree in [&mut got, &mut want] {
        tree.remove(&b""[..]);
    }
    assert_same_tree(&got, &want, what);
    forget(bench);
}

#[test]
fn version_4_comes_in_file_by_file() {
    let bench = bench();
    let root = bench.path("root");
    plain_root(&root);
    let file = bench.path("disk");
    for options in [
        &[][..],
        &["-n", "ftype=0", "-i", "size=256,attr=1,projid32bit=0", "-l", "version=1"],
        &["-b", "size=512", "-i", "size=256"],
        &["-b", "size=1024", "-n", "size=8192", "-i", "size=512"],
    ] {
        let begun = SystemTime::now();
        make(&bench, &root, &file, options);
        let version = db(&file, &["version".into()]);
        assert!(version.contains(" = V4,"), "{version}");
        assert_eq!(version.contains("FTYPE"), !options.contains(&"ftype=0"), "{version}");
        same_but_times(&bench, &file, &root, begun, &options.join(" "));
    }
}

#[test]
fn attributes_of_version_4_are_taken() {
    let bench = bench();
    let (root, file) = (bench.path("root"), bench.path("disk"));
    plain_root(&root);
    let begun = SystemTime::now();
    make(&bench, &root, &file, &[]);
    // In the inode, and in a leaf.
    for (name, size) in [("var/attributes", 5), ("var/large-attribute", 300)] {
        db(&file, &[format!("path /{name}"), format!("attr_set -u -v {size} note")]);
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(root.join(name), "user.note", &vec![b'v'; size], flags).unwrap();
    }
    let form = |name: &str, form: &str| db(&file, &[format!("path /{name}"), format!("p {form}")]);
    assert_eq!(form("var/attributes", "core.aformat"), "core.aformat = 1 (local)\n");
    assert_eq!(form("var/large-attribute", "core.aformat"), "core.aformat = 2 (extents)\n");
    same_but_times(&bench, &file, &root, begun, "attributes");
}

/// Blocks of the file whose extents lie in a tree.
const PIECES: usize = 64;

/// First block of a file with one extent.
fn first_block(file: &Path, path: &str) -> u64 {
    let map = db(file, &[format!("path {path}"), "bmap".into()]);
    let (_, rest) = map.split_once("startblock ").unwrap_or_else(|| panic!("{map}"));
    rest.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_tree_of_extents_of_version_4_is_read() {
    let bench = bench();
    let (root, file) = (bench.path("root"), bench.path("disk"));
    plain_root(&root);
    let begun = SystemTime::now();
    make(&bench, &root, &file, &[]);

    // The file's blocks in reverse: as many extents as blocks, in a leaf that takes the place of the spare file.
    let pieces = first_block(&file, "/var/pieces");
    let spare = first_block(&file, "/var/spare");
    let mut leaf = b"BMAP\0\0\0".to_vec();
    leaf.push(PIECES as u8);
    leaf.extend([0xff; 16]);
    for n in 0..PIECES as u64 {
        let record = u128::from(n) << 73 | u128::from(pieces + PIECES as u64 - 1 - n) << 21 | 1;
        leaf.extend(record.to_be_bytes());
    }
    let at = db(&file, &[format!("convert fsblock {spare} byte")]);
    let at = at.trim().split(' ').next().unwrap().trim_start_matches("0x");
    let at = u64::from_str_radix(at, 16).unwrap();
    File::options().write(true).open(&file).unwrap().write_all_at(&leaf, at).unwrap();
    let write = |what: &str| format!("write {what}");
    let commands = [
        "path /var/pieces".to_owned(),
        write("core.format 3"),
        write(&format!("core.nextents {PIECES}")),
        write("u.bmbt.level 1"),
        write("u.bmbt.numrecs 1"),
        write("u.bmbt.keys[1].startoff 0"),
        write(&format!("u.bmbt.ptrs[1] {spare}")),
    ];
    db(&file, &commands);
    let map = db(&file, &["path /var/pieces".into(), "bmap".into()]);
    assert_eq!(map.lines().count(), PIECES, "{map}");
    let last = pieces + PIECES as u64 - 1;
    assert!(map.starts_with(&format!("data offset 0 startblock {last} ")), "{map}");

    let reversed: Vec<u8> = noise(PIECES * BLOCK).chunks(BLOCK).rev().flatten().copied().collect();
    put(&root.join("var/pieces"), &reversed);
    leaf.resize(BLOCK, 0);
    put(&root.join("var/spare"), &leaf);
    same_but_times(&bench, &file, &root, begun, "tree of extents");
}
