//! File systems with random damage: they are read or refused, without a panic, without end, without much memory.
//!
//! The damage hits structures: of a file system that is mostly empty, the bytes that are not zero. Each disk is
//! made once by its own tools and damaged many times.

use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::device::Device;
use super::fault::Res;
use super::fuzzing::fuzz_walk;
use super::{Disk, find};

#[expect(clippy::disallowed_methods, reason = "tests run foreign tools")]
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("this test needs {program}, install it: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
}

/// A root with a little of everything.
fn root(dir: &Path) {
    for sub in ["etc", "many", "sbin"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    let file = |name: &str, bytes: &[u8]| {
        std::io::Write::write_all(&mut fs::File::create(dir.join(name)).unwrap(), bytes).unwrap();
    };
    file("etc/os-release", b"ID=test\n");
    file("sbin/init", &b"init\n".repeat(3000));
    for n in 0..150 {
        file(&format!("many/file-number-{n:04}"), n.to_string().as_bytes());
    }
    fs::hard_link(dir.join("etc/os-release"), dir.join("etc/hard")).unwrap();
    std::os::unix::fs::symlink("/etc/os-release", dir.join("etc/soft")).unwrap();
    std::os::unix::fs::symlink("l".repeat(500), dir.join("etc/long")).unwrap();
    let name = dir.join("etc/os-release");
    for (key, len) in [("user.small", 5), ("user.large", 900)] {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&name, key, &vec![b'x'; len], flags).unwrap();
    }
}

/// Damages a disk in places that hold something, and reads it.
fn damage(disk: Vec<u8>, cases: u32) {
    // Whole first: what follows would prove little of a disk that is refused at once.
    let mut used = Vec::new();
    for (n, page) in disk.chunks(4096).enumerate().filter(|(_, p)| **p != [0; 4096]) {
        used.extend((0..page.len()).filter(|at| page[*at] != 0).map(|at| n * 4096 + at));
    }
    // Copying a disk of hundreds of megabytes for each case would take longer than reading it.
    let disk = std::rc::Rc::new(Damaged { whole: disk, hits: RefCell::default() });
    // Whole first: damage would prove little on a disk that is refused at once.
    let fs = find::root(&(std::rc::Rc::clone(&disk) as Disk), None).map_err(|e| e.to_string());
    assert!(fs.is_ok_and(|fs| find::looks_like_root(&*fs).unwrap()));
    let mut runner =
        TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..Default::default() });
    let value = prop_oneof![Just(0u8), Just(0xff), Just(0x7f), Just(1), any::<u8>()];
    let hits = prop::collection::vec((any::<prop::sample::Index>(), value), 1..6);
    let outcome = runner.run(&hits, |hits| {
        let hits = hits.into_iter().map(|(at, value)| (*at.get(&used), value));
        *disk.hits.borrow_mut() = hits.collect();
        fuzz_walk(&(std::rc::Rc::clone(&disk) as Disk), 16 << 20);
        Ok(())
    });
    outcome.unwrap();
}

/// A disk of which some bytes are others.
struct Damaged {
    whole: Vec<u8>,
    hits: RefCell<Vec<(usize, u8)>>,
}

impl Device for Damaged {
    fn size(&self) -> u64 {
        self.whole.size()
    }

    fn fill(&self, at: u64, buf: &mut [u8]) -> Res<()> {
        self.whole.fill(at, buf)?;
        let start = usize::try_from(at).unwrap();
        for (hit, value) in self.hits.borrow().iter() {
            if let Some(byte) = hit.checked_sub(start).and_then(|n| buf.get_mut(n)) {
                *byte = *value;
            }
        }
        Ok(())
    }
}

#[test]
fn damaged_ext_is_read_or_refused() {
    let top = tempfile::tempdir().unwrap();
    let (tree, file) = (top.path().join("root"), top.path().join("disk"));
    root(&tree);
    for options in [&["-t", "ext4"][..], &["-t", "ext4", "-O", "inline_data"], &["-t", "ext2"]] {
        fs::File::create(&file).unwrap().set_len(4 << 20).unwrap();
        let last = ["-q", "-F", "-b", "1024", "-N", "400", "-d"];
        let (tree, file) = (tree.to_str().unwrap(), file.to_str().unwrap());
        run("mke2fs", &[options, &last, &[tree, file]].concat());
        damage(fs::read(file).unwrap(), 250);
    }
}

#[test]
fn damaged_btrfs_is_read_or_refused() {
    let top = tempfile::tempdir().unwrap();
    let (tree, file) = (top.path().join("root"), top.path().join("disk"));
    root(&tree);
    fs::File::create(&file).unwrap().set_len(32 << 20).unwrap();
    let (tree, file) = (tree.to_str().unwrap(), file.to_str().unwrap());
    run("mkfs.btrfs", &["-q", "--mixed", "--rootdir", tree, file]);
    damage(fs::read(file).unwrap(), 400);
}

#[test]
fn damaged_xfs_is_read_or_refused() {
    let top = tempfile::tempdir().unwrap();
    let (proto, file) = (top.path().join("proto"), top.path().join("disk"));
    // mkfs takes a description of files: one directory in its own inode, and one with too many for that.
    let source = top.path().join("source");
    fs::copy("/bin/true", &source).unwrap();
    let source = source.to_str().unwrap();
    let mut text = String::from("/\n0 0\nd--755 0 0\netc d--755 0 0\n");
    text += &format!("os-release ---644 0 0 {source}\nsoft l--777 0 0 os-release\n");
    text += &format!("long l--777 0 0 {}\n$\nmany d--755 0 0\n", "l".repeat(600));
    for n in 0..200 {
        text += &format!("file-number-{n:04} ---644 0 0 {source}\n");
    }
    text += "$\ndev d--755 0 0\nnull c--666 0 0 1 3\n$\n$\n";
    std::io::Write::write_all(&mut fs::File::create(&proto).unwrap(), text.as_bytes()).unwrap();
    for size in ["size=4096", "size=1024"] {
        fs::File::create(&file).unwrap().set_len(300 << 20).unwrap();
        let (proto, file) = (proto.to_str().unwrap(), file.to_str().unwrap());
        run("mkfs.xfs", &["-q", "-f", "-b", size, "-p", proto, file]);
        damage(fs::read(file).unwrap(), 250);
    }
}
