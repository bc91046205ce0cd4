//! A guest's root is a directory here.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use rustix::process::{Signal, parent_process_death_signal, set_parent_process_death_signal};

use super::*;

struct Guest {
    dir: tempfile::TempDir,
    root: Root,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let root = Root::new(File::open(dir.path().join("root")).unwrap().into());
        Self { dir, root }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("root").join(below)
    }

    fn write(&self, path: &str) -> Result<()> {
        let content = Content::Bytes(b"new\n".to_vec());
        self.root.write(path, &content, Access::root(0o640))
    }
}

fn fifo(path: &Path) {
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0).unwrap();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "makes a hostile guest")]
fn the_last_link_is_replaced_and_what_it_led_to_is_left_alone() {
    let guest = Guest::new();
    let outside = guest.dir.path().join("host");
    std::fs::write(&outside, "host's").unwrap();
    for (name, target) in
        [("a", "/secret"), ("b", "../../host"), ("c", outside.to_str().unwrap()), ("d", "d")]
    {
        symlink(target, guest.path(name)).unwrap();
    }
    std::fs::write(guest.path("secret"), "guest's").unwrap();
    for name in ["a", "b", "c", "d"] {
        let path = format!("/{name}");
        assert!(matches!(guest.root.read(&path, 99).unwrap(), Node::Link(_)));
        assert_eq!(guest.root.digest(&path, 7).unwrap(), None);
        guest.write(&path).unwrap();
        let meta = guest.path(name).symlink_metadata().unwrap();
        assert!(meta.is_file());
        assert_eq!(meta.mode() & 0o7777, 0o640);
    }
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "host's");
    assert_eq!(std::fs::read_to_string(guest.path("secret")).unwrap(), "guest's");
    let names: Vec<_> = std::fs::read_dir(guest.path("")).unwrap().collect();
    assert_eq!(names.len(), 5, "{names:?}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "makes a hostile guest")]
fn links_above_end_inside() {
    let guest = Guest::new();
    symlink("/../../../..", guest.path("up")).unwrap();
    symlink("/proc", guest.path("etc")).unwrap();
    symlink("loop", guest.path("loop")).unwrap();
    guest.write("/up/file").unwrap();
    assert!(guest.path("file").is_file());
    assert_eq!(guest.write("/etc/hostname").unwrap_err().kind, ErrorKind::Image);
    assert_eq!(guest.write("/loop/x").unwrap_err().kind, ErrorKind::Image);
    assert_eq!(guest.root.read("/etc/hostname", 9).unwrap(), Node::Absent);
    std::fs::write(guest.path("plain"), "").unwrap();
    assert_eq!(guest.root.missing_dirs("/plain/x").unwrap_err().kind, ErrorKind::Image);
    assert_eq!(guest.root.missing_dirs("/a/b").unwrap(), ["/a", "/a/b"]);
    for bad in ["relative", "/a/../b", "/", "/a//b", "/a\0b"] {
        assert!(guest.write(bad).is_err(), "{bad}");
    }
}

#[test]
fn kernel_filesystems_are_not_written() {
    let root = Root::new(File::open("/").unwrap().into());
    for path in ["/proc/sys/kernel/x", "/sys/kernel/x", "/dev/pts/x"] {
        let content = Content::Bytes(Vec::new());
        let error = root.write(path, &content, Access::root(0o600)).unwrap_err();
        assert!(error.message.contains("filesystem of the kernel"), "{error}");
    }
}

#[test]
fn odd_nodes_are_never_opened_and_are_replaced_but_directories() {
    let guest = Guest::new();
    fifo(&guest.path("fifo"));
    fifo(&guest.path(UNFINISHED));
    assert_eq!(guest.root.read("/fifo", 9).unwrap(), Node::Odd);
    assert_eq!(guest.root.digest("/fifo", 0).unwrap(), None);
    guest.write("/fifo").unwrap();
    let access = Access::root(0o640);
    assert_eq!(guest.root.read("/fifo", 4).unwrap(), Node::File(access, Some(b"new\n".into())));
    assert_eq!(guest.root.read("/fifo", 3).unwrap(), Node::File(access, None));
    std::fs::create_dir(guest.path("dir")).unwrap();
    assert_eq!(guest.write("/dir").unwrap_err().kind, ErrorKind::Image);
    assert!(!guest.path(UNFINISHED).exists());
    assert!(guest.root.remove("/dir").is_err());
    guest.root.remove_dir("/dir").unwrap();
    guest.root.remove_dir("/dir").unwrap();
    assert!(!guest.path("dir").exists());
}

#[test]
fn with_a_users_rights_nothing_of_roots_can_be_reached() {
    let guest = Guest::new();
    for dir in ["home", "closed"] {
        std::fs::create_dir(guest.path(dir)).unwrap();
    }
    std::fs::set_permissions(guest.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(guest.path("home"), Some(1000), Some(1000)).unwrap();
    symlink("/closed", guest.path("home/.ssh")).unwrap();
    let access = Access { mode: 0o600, uid: 1000, gid: 1000 };
    let content = Content::Bytes(b"k".to_vec());
    let write =
        |path: &str| guest.root.acting_as(1000, 1000, |root| root.write(path, &content, access));
    assert_eq!(write("/home/.ssh/authorized_keys").unwrap_err().kind, ErrorKind::Image);
    write("/home/own").unwrap();
    assert_eq!(std::fs::metadata(guest.path("home/own")).unwrap().uid(), 1000);
    // And afterwards they are root's again.
    guest.write("/closed/x").unwrap();
}

#[test]
fn with_a_users_rights_a_process_stays_tied_to_its_parent() {
    let guest = Guest::new();
    // One that does nothing to who gets it: the test's own thread is asked.
    let tie = Some(Signal::URG);
    set_parent_process_death_signal(tie).unwrap();
    let during = guest.root.acting_as(1000, 1000, |_| Ok(parent_process_death_signal()));
    assert_eq!(during.unwrap().unwrap(), tie);
    assert_eq!(parent_process_death_signal().unwrap(), tie);
    set_parent_process_death_signal(None).unwrap();
    let refused = guest.root.acting_as(u32::MAX, 1000, |_| Ok(()));
    assert_eq!(refused.unwrap_err().message, "the guest has no user 4294967295 with group 1000");
    guest.write("/x").unwrap();
    assert_eq!(std::fs::metadata(guest.path("x")).unwrap().uid(), 0);
}

#[test]
fn a_rename_elsewhere_on_the_host_does_not_disturb_a_walk() {
    let guest = Guest::new();
    std::fs::create_dir(guest.path("d")).unwrap();
    symlink(format!("{}d", "d/../".repeat(20)), guest.path("winding")).unwrap();
    guest.root.write("/d/file", &Content::Bytes(b"x".to_vec()), Access::root(0o600)).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let (one, other) = (elsewhere.path().join("one"), elsewhere.path().join("other"));
    std::fs::create_dir(&one).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let order = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(order) {
                rustix::fs::rename(&one, &other).unwrap();
                rustix::fs::rename(&other, &one).unwrap();
            }
        });
        // What each walk would meet without another try.
        let plain = || {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            openat2(&guest.root.dir, "/winding", flags, Mode::empty(), inside())
        };
        let (mut met, mut led, mut walks) = (0, true, 0);
        while met < 50 && walks < 1_000_000 {
            walks += 1;
            met += u32::from(plain().is_err_and(|e| e == Errno::AGAIN));
            led &= guest.root.leads_to("/winding/file", FileType::RegularFile);
            led &= matches!(guest.root.read("/winding/file", 9), Ok(Node::File(..)));
        }
        done.store(true, order);
        assert_eq!((met, led), (50, true), "{walks} walks");
    });
}

#[test]
fn a_walk_that_is_met_each_time_ends() {
    let mut calls = 0;
    let met: std::result::Result<(), Errno> = again(|| {
        calls += 1;
        Err(if calls % 2 == 0 { Errno::AGAIN } else { Errno::INTR })
    });
    assert_eq!((met, calls), (Err(Errno::AGAIN), WALKS));
    let mut answers = [Err(Errno::AGAIN), Err(Errno::NOENT), Ok(())].into_iter();
    assert_eq!(again(|| answers.next().unwrap()), Err(Errno::NOENT), "an answer is an answer");
}
