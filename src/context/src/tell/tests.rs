//! A guest is a directory here; the kernel part is tested where the runtime is.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use ocivisor_core::error::ErrorKind;
use ocivisor_core::spec::{GuestFile, Secret, VmSpec};
use ocivisor_core::state::GuestKind;

use super::*;
use crate::telling::Runner;
use crate::testing::spec;

mod agents;
mod hostile;

const SHADOW: &str = "daemon:*:1:0:99999:7:::\nroot:*:1:0:99999:7:::\n";
const KEY: &str = "ssh-ed25519 AAAAC3Nz tenant";

struct Guest {
    dir: tempfile::TempDir,
    kind: GuestKind,
    runner: Runner,
}

#[expect(clippy::disallowed_methods, reason = "makes a guest")]
fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

impl Guest {
    fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        Self { dir, kind: GuestKind::System, runner: Runner::Systemd }
    }

    fn debian() -> Self {
        let guest = Self::empty();
        guest.put("etc/passwd", "root:x:0:0:root:/root:/bin/bash\n");
        guest.put("etc/shadow", SHADOW);
        guest.put("etc/group", "root:x:0:\n");
        guest.put("etc/hosts", "127.0.0.1 localhost\n");
        guest.put("etc/machine-id", "");
        guest.put("usr/share/zoneinfo/Europe/Madrid", "TZif2");
        guest.put("etc/skel/.profile", "umask 022\n");
        std::fs::create_dir(guest.path("root")).unwrap();
        symlink("/usr/share/zoneinfo/Etc/UTC", guest.path("etc/localtime")).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", guest.path("etc/resolv.conf")).unwrap();
        guest
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below.trim_start_matches('/'))
    }

    fn put(&self, below: &str, text: &str) {
        put(&self.path(below), text);
    }

    fn text(&self, below: &str) -> String {
        std::fs::read_to_string(self.path(below)).unwrap_or_else(|e| panic!("{below}: {e}"))
    }

    fn tell_at(&self, moment: Moment, spec: &VmSpec, disk: Option<&File>) -> Result<Told> {
        let root = Root::new(File::open(self.dir.path()).unwrap().into());
        let (kind, runner) = (self.kind, self.runner);
        tell(&root, &Telling { moment, kind, runner, spec: spec.clone() }, disk)
    }

    #[track_caller]
    fn tell(&self, spec: &VmSpec) -> Vec<String> {
        self.tell_at(Moment::Boot, spec, None).unwrap().notes
    }

    /// Every file and link, but the state.
    fn tree(&self) -> BTreeMap<PathBuf, (u32, u32, String)> {
        let mut found = BTreeMap::new();
        let mut todo = vec![self.dir.path().to_owned()];
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                let meta = path.symlink_metadata().unwrap();
                let text = if meta.is_dir() {
                    todo.push(path.clone());
                    "/".to_owned()
                } else if meta.is_symlink() {
                    format!("-> {}", std::fs::read_link(&path).unwrap().display())
                } else {
                    String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned()
                };
                found.insert(path, (meta.mode(), meta.uid(), text));
            }
        }
        found.retain(|path, _| !path.starts_with(self.path("var")));
        found
    }
}

fn full() -> VmSpec {
    let mut spec = spec();
    spec.context.dns = vec!["10.0.0.1".parse().unwrap()];
    spec.context.search = vec!["example.org".parse().unwrap()];
    spec.context.ssh_keys = vec![KEY.into()];
    spec.context.password = Some(Password::Plain(Secret("secret".into())));
    spec.context.timezone = Some("Europe/Madrid".into());
    spec.context.start_script = Some(b"echo hello".to_vec());
    spec.context.files = vec![GuestFile {
        path: "/srv/app/config".into(),
        content: b"x=1\n".to_vec(),
        mode: 0o640,
        owner: (0, 1000),
    }];
    spec
}

#[test]
fn a_plain_image_is_told_everything() {
    let guest = Guest::debian();
    assert_eq!(guest.tell(&full()), Vec::<String>::new());
    assert_eq!(guest.text("etc/hostname"), "web1\n");
    assert!(guest.text("etc/hosts").contains("\n10.0.0.5 web1\nfd00::5 web1\n"));
    assert!(guest.text("etc/hosts").ends_with("127.0.0.1 localhost\n"));
    assert!(guest.text("etc/resolv.conf").ends_with("search example.org\nnameserver 10.0.0.1\n"));
    assert!(guest.path("etc/resolv.conf").symlink_metadata().unwrap().is_file());
    let keys = guest.path("root/.ssh/authorized_keys");
    assert!(guest.text("root/.ssh/authorized_keys").contains(&format!("\n{KEY}\n")));
    assert_eq!(keys.metadata().unwrap().mode() & 0o7777, 0o600);
    assert_eq!(keys.parent().unwrap().metadata().unwrap().mode() & 0o7777, 0o700);
    let shadow = guest.text("etc/shadow");
    assert!(shadow.starts_with("daemon:*:1:0:99999:7:::\nroot:$6$"), "{shadow}");
    let localtime = std::fs::read_link(guest.path("etc/localtime")).unwrap();
    assert_eq!(localtime, Path::new("/usr/share/zoneinfo/Europe/Madrid"));
    assert_eq!(guest.text("etc/timezone"), "Europe/Madrid\n");
    assert_eq!(guest.text("var/lib/ocivisor/start-script"), "echo hello");
    let unit = guest.text("run/systemd/system/ocivisor-start-script.service");
    assert!(unit.contains("ExecStart=/bin/sh /var/lib/ocivisor/start-script\n"), "{unit}");
    let wanted = "run/systemd/system/multi-user.target.wants/ocivisor-start-script.service";
    assert_eq!(guest.text(wanted), unit);
    let config = guest.path("srv/app/config").metadata().unwrap();
    assert_eq!((config.mode() & 0o7777, config.uid(), config.gid()), (0o640, 0, 1000));
    let state = guest.path("var/lib/ocivisor/context.json").metadata().unwrap();
    assert_eq!(state.mode() & 0o7777, 0o600);
}

#[test]
fn what_is_told_no_more_is_taken_back() {
    let guest = Guest::debian();
    guest.put("root/.ssh/authorized_keys", "ssh-rsa BBBB own");
    guest.tell(&spec());
    let before = guest.tree();
    guest.tell(&full());
    assert_ne!(guest.tree(), before);
    guest.tell(&spec());
    let mut after = guest.tree();
    // The day of the password's change is not put back.
    let shadow = guest.path("etc/shadow");
    assert!(after[&shadow].2.contains("\nroot:*:"));
    after.insert(shadow.clone(), before[&shadow].clone());
    assert_eq!(after, before);
}

#[test]
fn told_the_same_twice_nothing_is_written() {
    let guest = Guest::debian();
    let inodes = || -> BTreeMap<PathBuf, u64> {
        let files = guest.tree().into_keys().chain([guest.path("var/lib/ocivisor/context.json")]);
        files.map(|path| (path.clone(), path.symlink_metadata().unwrap().ino())).collect()
    };
    guest.tell(&full());
    let first = inodes();
    guest.tell(&full());
    assert_eq!(inodes(), first);
}

#[test]
fn what_the_guest_changed_is_written_again_but_not_its_password() {
    let guest = Guest::debian();
    guest.tell(&full());
    guest.put("etc/hostname", "mine\n");
    guest.put("etc/shadow", "root:$y$own:1::::::\n");
    guest.put("srv/app/config", "changed");
    guest.tell(&full());
    assert_eq!(guest.text("etc/hostname"), "web1\n");
    assert_eq!(guest.text("srv/app/config"), "x=1\n");
    assert_eq!(guest.text("etc/shadow"), "root:$y$own:1::::::\n");
    // Told another one, it is that.
    let mut other = full();
    other.context.password = Some(Password::Crypted(Secret("$6$a$b".into())));
    guest.tell(&other);
    assert!(guest.text("etc/shadow").starts_with("root:$6$a$b:"));
    // What it changed is left alone when it is told no more.
    guest.put("srv/app/config", "changed");
    guest.put("etc/shadow", "root:$y$own:1::::::\n");
    guest.tell(&spec());
    assert_eq!(guest.text("srv/app/config"), "changed");
    assert_eq!(guest.text("etc/shadow"), "root:$y$own:1::::::\n");
}

#[test]
fn a_changed_mode_or_owner_is_a_change_too() {
    let guest = Guest::debian();
    guest.tell(&full());
    let config = guest.path("srv/app/config");
    let access = || {
        let meta = config.metadata().unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid())
    };
    // By what is told,
    let mut wish = full();
    wish.context.files[0].mode = 0o600;
    guest.tell(&wish);
    assert_eq!(access(), (0o600, 0, 1000));
    wish.context.files[0].owner = (7, 0);
    guest.tell(&wish);
    assert_eq!(access(), (0o600, 7, 0));
    // and by the guest.
    std::fs::set_permissions(&config, PermissionsExt::from_mode(0o666)).unwrap();
    chown(&config, Some(1), Some(1)).unwrap();
    guest.tell(&wish);
    assert_eq!(access(), (0o600, 7, 0));
    // It is still what we wrote, and so it goes.
    std::fs::set_permissions(&config, PermissionsExt::from_mode(0o666)).unwrap();
    guest.tell(&spec());
    assert!(!config.exists());
}

#[test]
fn one_telling_at_a_time() {
    let guest = Guest::debian();
    guest.tell(&spec());
    let dir = File::open(guest.path("var/lib/ocivisor")).unwrap();
    let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&dir, lock).unwrap();
    let error = guest.tell_at(Moment::Boot, &full(), None).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert_eq!(guest.text("etc/shadow"), SHADOW);
    drop(dir);
    guest.tell(&full());
}

#[test]
fn a_named_user_is_made_with_home_and_keys() {
    let guest = Guest::debian();
    let mut spec = full();
    spec.context.user = Some("dev".into());
    guest.tell(&spec);
    assert!(guest.text("etc/passwd").ends_with("\ndev:x:1000:1000::/home/dev:/bin/sh\n"));
    assert!(guest.text("etc/shadow").contains("\ndev:$6$"));
    assert!(guest.text("etc/shadow").starts_with(SHADOW));
    for (path, mode) in
        [("home/dev", 0o700), ("home/dev/.ssh", 0o700), ("home/dev/.ssh/authorized_keys", 0o600)]
    {
        let meta = guest.path(path).metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, 1000, 1000), "{path}");
    }
    assert_eq!(guest.text("home/dev/.profile"), "umask 022\n");
    assert!(!guest.path("root/.ssh").exists());
    // Another user: the old one keeps his home, also if it is empty, and neither key nor password.
    spec.context.user = Some("ops".into());
    std::fs::remove_file(guest.path("home/dev/.profile")).unwrap();
    guest.tell(&spec);
    assert!(guest.path("home/dev").is_dir() && !guest.path("home/dev/.ssh").exists());
    assert!(guest.text("etc/shadow").contains("\ndev:*:"));
    assert!(guest.text("home/ops/.ssh/authorized_keys").contains(KEY));
}

#[test]
fn a_telling_that_was_cut_off_is_known_to_the_next() {
    // At each place where it can stop: a directory in the way of the nth thing.
    for stop in [
        "etc/resolv.conf",
        "srv/app/config",
        "etc/timezone",
        // The state, before and after the rest; the accounts; the keys.
        "var/lib/ocivisor/context.json",
        "etc/.ocivisor-tell",
        "root/.ssh/authorized_keys",
    ] {
        let guest = Guest::debian();
        guest.tell(&spec());
        let before = guest.tree();
        drop(std::fs::remove_file(guest.path(stop)));
        std::fs::create_dir_all(guest.path(stop).join("in the way")).unwrap();
        let told = guest.tell_at(Moment::Boot, &full(), None);
        assert!(told.is_err(), "{stop}: {told:?}");
        std::fs::remove_dir_all(guest.path(stop)).unwrap();
        if stop == "etc/resolv.conf" {
            let target = "../run/systemd/resolve/stub-resolv.conf";
            symlink(target, guest.path(stop)).unwrap();
        }
        guest.tell(&spec());
        let mut after = guest.tree();
        let shadow = guest.path("etc/shadow");
        after.insert(shadow.clone(), before[&shadow].clone());
        // Made by the test.
        let own = ["srv", "srv/app", "root/.ssh"].map(|path| guest.path(path));
        after.retain(|path, _| !own.contains(path));
        assert_eq!(after, before, "{stop}");
        guest.tell(&full());
        assert!(guest.text("etc/resolv.conf").contains("10.0.0.1"));
    }
}

#[test]
fn a_copied_disk_becomes_another_machine() {
    let guest = Guest::debian();
    let id = "0123456789abcdef0123456789abcdef\n";
    guest.put("etc/machine-id", id);
    guest.put("var/lib/dbus/machine-id", id);
    guest.tell(&full());
    let first = guest.text("etc/machine-id");
    assert_ne!(first, id);
    assert_eq!((first.len(), guest.text("var/lib/dbus/machine-id")), (33, first.clone()));
    guest.tell(&full());
    assert_eq!(guest.text("etc/machine-id"), first, "the same machine");
    let mut other = full();
    other.id = "one-8".parse().unwrap();
    guest.put("etc/shadow", "root:$y$own:1::::::\n");
    guest.tell(&other);
    assert_ne!(guest.text("etc/machine-id"), first);
    assert!(guest.text("etc/shadow").starts_with("root:$6$"), "what another was told, it was not");
    // What means "choose at the first boot" stays.
    assert!(!guest.path("etc/ssh").exists(), "who has no sshd needs no key");
    for text in ["", "uninitialized\n"] {
        let guest = Guest::debian();
        guest.put("etc/machine-id", text);
        guest.tell(&spec());
        assert_eq!(guest.text("etc/machine-id"), text);
    }
}

#[test]
fn host_keys_of_the_image_are_replaced_once_per_machine() {
    let guest = Guest::debian();
    for kind in ["rsa", "ecdsa", "ed25519"] {
        guest.put(&format!("etc/ssh/ssh_host_{kind}_key"), "everybody's");
        guest.put(&format!("etc/ssh/ssh_host_{kind}_key.pub"), "everybody's");
    }
    guest.tell(&spec());
    let own = guest.text("etc/ssh/ssh_host_ed25519_key");
    assert!(own.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
    let meta = guest.path("etc/ssh/ssh_host_ed25519_key").metadata().unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o600);
    assert_eq!(std::fs::read_dir(guest.path("etc/ssh")).unwrap().count(), 2);
    guest.tell(&full());
    assert_eq!(guest.text("etc/ssh/ssh_host_ed25519_key"), own);
    let mut other = spec();
    other.id = "one-8".parse().unwrap();
    guest.tell(&other);
    assert_ne!(guest.text("etc/ssh/ssh_host_ed25519_key"), own);
    // An sshd without any would not start; one that is told which to use is left alone.
    let guest = Guest::debian();
    guest.put("usr/sbin/sshd", "");
    guest.put("etc/ssh/sshd_config", "");
    guest.tell(&spec());
    assert!(guest.path("etc/ssh/ssh_host_ed25519_key.pub").exists());
    let guest = Guest::debian();
    guest.put("etc/ssh/ssh_host_rsa_key", "everybody's");
    guest.put("etc/ssh/sshd_config", "HostKey /etc/ssh/ssh_host_rsa_key\n");
    assert_eq!(guest.tell(&spec()).len(), 1);
    assert_eq!(guest.text("etc/ssh/ssh_host_rsa_key"), "everybody's");
    // Also if a file says so that it includes, or nobody knows what it says.
    let parts: [fn(&Guest); 2] = [
        |guest| guest.put("etc/ssh/sshd_config.d/1.conf", "hostkey=/etc/ssh/ssh_host_rsa_key"),
        |guest| symlink("/usr/etc/sshd_config", guest.path("etc/ssh/sshd_config")).unwrap(),
    ];
    for part in parts {
        let guest = Guest::debian();
        guest.put("etc/ssh/ssh_host_rsa_key", "everybody's");
        part(&guest);
        assert_eq!(guest.tell(&spec()).len(), 1);
        assert_eq!(guest.text("etc/ssh/ssh_host_rsa_key"), "everybody's");
    }
    // What could not be written leaves what was there, and is tried again, unless the image is why.
    let guest = Guest::debian();
    guest.put("etc/ssh/ssh_host_rsa_key", "everybody's");
    std::fs::create_dir(guest.path("etc/ssh/ssh_host_ed25519_key")).unwrap();
    assert_eq!(guest.tell(&spec()).len(), 1);
    assert_eq!(guest.text("etc/ssh/ssh_host_rsa_key"), "everybody's");
}

#[test]
fn more_than_can_be_kept_is_written_all_the_same() {
    let guest = Guest::debian();
    let mut wish = spec();
    let old = "x".repeat(64 << 10);
    for n in 0..100 {
        let mut file = full().context.files.remove(0);
        file.path = format!("/srv/{n}").into();
        guest.put(&format!("srv/{n}"), &old);
        wish.context.files.push(file);
    }
    guest.tell(&wish);
    assert!(guest.path("var/lib/ocivisor/context.json").metadata().unwrap().len() < 8 << 20);
    guest.tell(&spec());
    assert_eq!(guest.text("srv/0"), old);
    assert_eq!(guest.text("srv/99"), "x=1\n", "what was there is lost");
}

#[test]
fn each_init_runs_the_script_in_its_own_way() {
    let inittab = "::sysinit:/etc/init.d/rcS\n::respawn:/sbin/getty 38400 tty1";
    for (runner, line) in [
        (Runner::Busybox, "::once:/var/lib/ocivisor/start-script\n"),
        (Runner::Sysvinit, "ocvs:2345:once:/var/lib/ocivisor/start-script\n"),
    ] {
        let guest = Guest { runner, ..Guest::debian() };
        guest.put("etc/inittab", inittab);
        let mut wish = spec();
        wish.context.start_script = Some(b"#!/bin/sh\nexit 0\n".to_vec());
        guest.tell(&wish);
        assert_eq!(guest.text("etc/inittab"), format!("{inittab}\n{line}"));
        wish.context.start_script = Some(b"exit 0\n".to_vec());
        guest.tell(&wish);
        let shell = line.replace("once:", "once:/bin/sh ");
        assert_eq!(guest.text("etc/inittab"), format!("{inittab}\n{shell}"));
        // What the guest does to the file is its own, also when the script is told no more.
        guest.put("etc/inittab", &format!("{inittab}\n{shell}::once:/own\n"));
        guest.tell(&wish);
        assert_eq!(guest.text("etc/inittab"), format!("{inittab}\n::once:/own\n{shell}"));
        guest.tell(&spec());
        assert_eq!(guest.text("etc/inittab"), format!("{inittab}\n::once:/own\n"));
    }
    let guest = Guest { runner: Runner::Ours, ..Guest::debian() };
    guest.tell(&full());
    assert!(guest.path("var/lib/ocivisor/start-script").exists() && !guest.path("run").exists());
}
