//! Disks for the tests: a small system with one of each kind of file, file systems, partition tables.
#![allow(dead_code, reason = "each suite uses its part")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ocivisor_datastore::{DiskOptions, Error, Image, Source};
use rustix::fs::{CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use crate::common::{Bench, Seen, assert_same_tree, put, run, text, tree};

const CAP_NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn set(path: &Path, owner: (u32, u32), mode: u32, mtime: (i64, i64)) {
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    let keep = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(CWD, path, Some(uid), Some(gid), keep).unwrap();
    if !path.is_symlink() {
        rustix::fs::chmod(path, Mode::from_raw_mode(mode)).unwrap();
    }
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, keep).unwrap();
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// Bytes without a pattern, always the same.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> =
        std::iter::repeat_with(&mut step).take(len / 8 + 1).flatten().collect();
    bytes.truncate(len);
    bytes
}

/// The least that passes for a system.
pub fn small_root(dir: &Path) {
    for sub in ["etc", "usr/sbin", "usr/lib/systemd", "boot/grub", "usr/lib/modules/6.1/kernel"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    put(&dir.join("etc/os-release"), b"ID=test\n");
    put(&dir.join("etc/fstab"), b"UUID=1 / ext4 defaults 0 1\n");
    fs::copy("/bin/true", dir.join("usr/lib/systemd/systemd")).unwrap();
    symlink("usr/sbin", dir.join("sbin")).unwrap();
    symlink("../lib/systemd/systemd", dir.join("usr/sbin/init")).unwrap();
    symlink("usr/lib", dir.join("lib")).unwrap();
    put(&dir.join("boot/vmlinuz-6.1"), &noise(10_000));
    put(&dir.join("boot/grub/grub.cfg"), b"set root");
    put(&dir.join("usr/lib/modules/6.1/kernel/a.ko"), &noise(5000));
    symlink("boot/vmlinuz-6.1", dir.join("vmlinuz")).unwrap();
}

/// One of each kind of file, and enough of some to need the larger forms that file systems have.
pub fn rich_root(dir: &Path) {
    small_root(dir);
    let at = |name: &str| dir.join(name);
    for sub in ["bin", "dev", "run", "many", "tmp", "var/lib"] {
        fs::create_dir_all(at(sub)).unwrap();
    }
    set(&at("tmp"), (0, 0), 0o1777, (1_000_000_000, 0));
    put(&at("bin/su"), b"su");
    set(&at("bin/su"), (0, 0), 0o4755, (1_100_000_000, 123_456_789));
    put(&at("bin/ping"), b"ping");
    set(&at("bin/ping"), (0, 42), 0o2755, (-86_400, 5));
    xattr(&at("bin/ping"), "security.capability", &CAP_NET_RAW);
    for (name, kind, device) in [
        ("dev/null", FileType::CharacterDevice, (1, 3)),
        ("dev/sda", FileType::BlockDevice, (8, 0)),
        ("dev/wide", FileType::BlockDevice, (259, 70_000)),
        ("run/pipe", FileType::Fifo, (0, 0)),
    ] {
        let device = rustix::fs::makedev(device.0, device.1);
        rustix::fs::mknodat(CWD, at(name), kind, Mode::RUSR | Mode::WUSR, device).unwrap();
    }
    drop(UnixListener::bind(at("run/socket")).unwrap());
    // Hard links, across directories; the first in order is not the first made.
    put(&at("var/lib/linked"), b"three names");
    fs::hard_link(at("var/lib/linked"), at("bin/linked")).unwrap();
    fs::hard_link(at("var/lib/linked"), at("usr/linked")).unwrap();
    rustix::fs::mknodat(CWD, at("run/pipe2"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    // Names.
    put(&at(&"n".repeat(255)), b"long");
    put(&dir.join(OsStr::from_bytes(b"line\nbreak \xff\x1b")), b"odd");
    let mut deep = at("deep");
    for n in 0..60 {
        deep.push(format!("level-{n}-of-a-deep-tree"));
    }
    fs::create_dir_all(&deep).unwrap();
    put(&deep.join("bottom"), b"bottom");
    // Directories of many blocks.
    for n in 0..1500 {
        let name = format!("many/a-file-with-a-name-of-some-length-{n:05}");
        put(&at(&name), n.to_string().as_bytes());
    }
    // Sizes about the borders of blocks, content of all sorts.
    for size in [0, 1, 59, 60, 61, 155, 156, 157, 1023, 1024, 1025, 2047, 4095, 4096, 4097, 65_537]
    {
        put(&at(&format!("var/size-{size:06}")), &noise(size));
    }
    put(&at("var/noise"), &noise(3_000_001));
    put(&at("var/text"), "all work and no play makes jack a dull boy\n".repeat(40_000).as_bytes());
    put(&at("var/zeros"), &vec![0; 300_000]);
    let sparse = File::create(at("var/sparse")).unwrap();
    sparse.write_all_at(b"middle", 1_000_000).unwrap();
    sparse.write_all_at(&noise(100_000), 5_000_000).unwrap();
    sparse.set_len(9_000_001).unwrap();
    // Every other block written: as many extents as blocks.
    let holes = File::create(at("var/holes")).unwrap();
    for n in 0..800 {
        holes.write_all_at(&noise(4096), n * 8192).unwrap();
    }
    for length in [1, 58, 59, 60, 61, 155, 156, 157, 400, 1000] {
        symlink("t".repeat(length), at(&format!("var/link-{length:04}"))).unwrap();
        set(&at(&format!("var/link-{length:04}")), (7, 8), 0, (1_234_567_890, 987_654_321));
    }
    // Attributes: few and small, many, and one that needs a block.
    put(&at("var/attributes"), b"");
    xattr(&at("var/attributes"), "user.note", b"hello");
    xattr(&at("var/attributes"), "user.empty", b"");
    xattr(&at("var/attributes"), "trusted.secret", b"dropped");
    xattr(&at("var/lib"), "user.of.a.directory", &[0, 1, 2, 255]);
    put(&at("var/large-attribute"), b"x");
    xattr(&at("var/large-attribute"), "user.large", &noise(3000));
    put(&at("var/many-attributes"), b"x");
    for n in 0..40 {
        xattr(&at("var/many-attributes"), &format!("user.number-{n}"), &noise(n * 2));
    }
    set(&at("var/text"), (65_535, 65_535), 0o600, (4_000_000_000, 1));
    set(&at("var"), (0, 0), 0o755, (1_500_000_000, 500));
}

/// What of a tree an image has.
pub fn expected(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = tree(root);
    all.retain(|_, seen| !matches!(seen.mode & 0o170_000, 0o020_000 | 0o060_000 | 0o140_000));
    for seen in all.values_mut() {
        seen.xattrs.retain(|name, _| name.starts_with(b"user.") || name == b"security.capability");
    }
    all
}

/// The same without what only boots a machine.
pub fn without_boot(mut all: BTreeMap<Vec<u8>, Seen>) -> BTreeMap<Vec<u8>, Seen> {
    all.retain(|path, _| {
        !path.starts_with(b"boot/") && !path.starts_with(b"usr/lib/modules/") && path != b"vmlinuz"
    });
    all
}

/// A file system that a test made itself, mounted as long as this lives.
pub struct Mounted(pub PathBuf, PathBuf);

impl Mounted {
    pub fn new(disk: &Path, at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        run("mount", &["-o", &format!("loop,{options}"), text(disk), text(at)]);
        Self(at.into(), disk.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[text(&self.0)]);
        // The kernel closes the loop device some time later, and writes to the file until then.
        let begun = Instant::now();
        while is_looped(&self.1) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?} is still in use", self.1);
            std::thread::yield_now();
        }
    }
}

/// Whether a loop device stands on this file.
fn is_looped(file: &Path) -> bool {
    let devices = fs::read_dir("/sys/block").unwrap().map(|device| device.unwrap().path());
    // Gone in between is not looped.
    let mut files = devices.filter_map(|device| fs::read(device.join("loop/backing_file")).ok());
    files.any(|name| name.strip_suffix(b"\n") == Some(file.as_os_str().as_bytes()))
}

/// An empty file of that size.
pub fn blank(path: &Path, mib: u64) {
    File::create(path).unwrap().set_len(mib << 20).unwrap();
}

/// Copies a tree, as it is, over the content of another directory.
pub fn copy(from: &Path, to: &Path) {
    run("cp", &["-a", "--sparse=auto", &format!("{}/.", text(from)), text(to)]);
}

/// Makes a file system and fills it by way of the kernel.
pub fn fill(bench: &Bench, disk: &Path, mkfs: &[&str], options: &str, root: &Path) {
    let args: Vec<&str> = mkfs[1..].iter().copied().chain([text(disk)]).collect();
    run(mkfs[0], &args);
    let mounted = Mounted::new(disk, &bench.path("mnt"), options);
    copy(root, &mounted.0);
}

pub fn with(file: &Path, options: DiskOptions) -> Source {
    Source::DiskImage { file: file.into(), options }
}

pub fn disk(file: &Path) -> Source {
    with(file, DiskOptions { keep_boot: true, ..DiskOptions::default() })
}

pub fn import(bench: &Bench, file: &Path) -> Result<Image, Error> {
    bench.import(&disk(file))
}

/// Imports a disk and compares what lies in the store with the tree it was made from.
pub fn same(bench: &Bench, file: &Path, want: &BTreeMap<Vec<u8>, Seen>, what: &str) -> Image {
    let image = import(bench, file).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    let mut got = tree(&bench.fs(&image));
    // Mounting and copying leave their own mark on the root, and mkfs a directory.
    let mut want = want.clone();
    for tree in [&mut got, &mut want] {
        tree.remove(&b""[..]);
        tree.remove(&b"lost+found"[..]);
    }
    assert_same_tree(&got, &want, what);
    image
}

/// The text of a refusal; nothing may be left of the image.
pub fn refused(bench: &Bench, source: &Source) -> String {
    let error = bench.import(source).expect_err("was imported");
    bench.assert_nothing_happened();
    assert!(matches!(error, Error::Disk { .. }), "{error:?}");
    let text = error.to_string();
    text.split_once(" refused: ").unwrap_or_else(|| panic!("{text}")).1.to_owned()
}

/// Empties the store.
pub fn forget(bench: &Bench) {
    bench.store.remove(&"test".parse().unwrap()).unwrap();
    bench.store.prune(&std::collections::HashSet::new()).unwrap();
}

pub const MIB: u64 = 1 << 20;

/// Writes a partition table from sfdisk's own language.
#[expect(clippy::disallowed_methods, reason = "tests run foreign tools")]
pub fn partition(disk: &Path, script: &str) {
    let mut sfdisk = Command::new("sfdisk")
        .args(["-q", "--no-reread", "--no-tell-kernel", text(disk)])
        .stdin(Stdio::piped())
        .spawn()
        .expect("this test needs sfdisk, of Debian's package fdisk");
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
}

/// Puts a file's content somewhere into a disk.
pub fn place(part: &Path, disk: &Path, at: u64) {
    let bytes = fs::read(part).unwrap();
    let disk = File::options().write(true).open(disk).unwrap();
    for (n, block) in bytes.chunks(MIB as usize).enumerate() {
        if block.iter().any(|b| *b != 0) {
            disk.write_all_at(block, at + n as u64 * MIB).unwrap();
        }
    }
}

/// A small root as an ext4 file system of 16 MiB.
pub fn root_fs(bench: &Bench) -> (PathBuf, PathBuf) {
    let (root, part) = (bench.path("root"), bench.path("part"));
    if !root.exists() {
        small_root(&root);
        blank(&part, 16);
        run("mke2fs", &["-q", "-t", "ext4", "-d", text(&root), text(&part)]);
    }
    (root, part)
}

/// The tree that `mke2fs -d` made: it keeps whole seconds.
pub fn in_seconds(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = expected(root);
    for seen in all.values_mut() {
        seen.mtime.1 = 0;
    }
    all
}

const ROOT_X86: &str = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709";
const ROOT_ARM: &str = "B921B045-1DF0-41C3-AF44-4C6F280D3FAE";

pub fn own_root() -> &'static str {
    if cfg!(target_arch = "aarch64") { ROOT_ARM } else { ROOT_X86 }
}

/// A disk as a distribution's cloud image has it: GPT, EFI system partition, root.
pub fn cloud(bench: &Bench, root_type: &str) -> PathBuf {
    let (_, part) = root_fs(bench);
    let disk = bench.path("cloud.raw");
    blank(&disk, 40);
    let script = format!(
        "label: gpt\nstart=2048, size=8192, type=U\nstart=16384, size=32768, type={root_type}\n"
    );
    partition(&disk, &script);
    let esp = bench.path("esp");
    blank(&esp, 4);
    // A FAT boot sector is enough.
    let mut sector = vec![0; 512];
    sector[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
    sector[54..59].copy_from_slice(b"FAT16");
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    File::options().write(true).open(&esp).unwrap().write_all_at(&sector, 0).unwrap();
    place(&esp, &disk, MIB);
    place(&part, &disk, 8 * MIB);
    disk
}
