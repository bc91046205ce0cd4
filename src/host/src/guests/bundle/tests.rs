//! The whole configuration against goldens, and hostile images and root filesystems against it.
//!
//! `UPDATE_GOLDEN=1` rewrites the goldens; read the difference before you commit it.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use ocivisor_core::error::ErrorKind;
use ocivisor_core::ids::IdRange;
use ocivisor_core::spec::{
    Boot, Context, InitKind, IoLimits, Isolation, Placement, Platform, Resources, RootDisk, Upkeep,
    VmSpec,
};
use ocivisor_core::state::GuestKind;
use ocivisor_core::units::{Bytes, CentiCores};
use proptest::prelude::*;

use super::super::lxcfs::Shown;
use super::compose::{Inputs, compose};
use super::image::ImageConfig;
use super::init::{Flavour, Init};
use super::process::{self, GuestProcess};
use super::profile::Profile;
use super::rootfs::GuestRoot;
use super::user::User;
use super::{Given, init, write};
use crate::fs;
use crate::labels::{GuestLabels, Labels};
use crate::layout::Layout;

const IDS: IdRange = IdRange { base: 1_000_000 };

fn spec(disk: &Path) -> VmSpec {
    VmSpec {
        id: "one-7".parse().unwrap(),
        name: "one-7".parse().unwrap(),
        hostname: "web1".parse().unwrap(),
        platform: Platform::Local,
        resources: Resources {
            cpu_share: CentiCores(100),
            vcpus: 1,
            cpu_quota: None,
            memory: Bytes::mib(512),
            swap: Bytes(0),
            pids: 1024,
            io_weight: None,
            placement: Placement::default(),
            hugepages: Vec::new(),
        },
        boot: Boot::default(),
        root: RootDisk { path: disk.to_owned(), io: IoLimits::default() },
        disks: Vec::new(),
        nics: Vec::new(),
        isolation: Isolation::Default,
        context: Context::default(),
        graphics: None,
        upkeep: Upkeep::default(),
    }
}

fn composed(kind: GuestKind, isolation: Isolation, process: GuestProcess) -> Spec {
    let layout = Layout::system();
    let spec = spec(Path::new("/disk"));
    let run = layout.run_vm(&spec.id);
    compose(&Inputs {
        init: None,
        disks: &[],
        shown: &[Shown {
            source: "/var/lib/lxcfs/proc/meminfo".into(),
            destination: "/proc/meminfo".into(),
        }],
        run: &run,
        spec: &spec,
        labels: &GuestLabels {
            profile: Some("ocivisor-guest".into()),
            process: Some("system_u:system_r:container_t:s0:c1,c2".into()),
            files: Some("system_u:object_r:container_file_t:s0:c1,c2".into()),
        },
        ids: IDS,
        cgroup_path: "/ocivisor/one-7/guest",
        profile: Profile::new(kind, isolation).unwrap(),
        process,
        device_is_open: |_| true,
        nofile_limit: 524_288,
    })
    .unwrap()
}

/// Sets have no order in memory, so they are sorted before comparison.
fn sorted(spec: &Spec) -> String {
    let mut value = serde_json::to_value(spec).unwrap();
    for set in value["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
        set.as_array_mut().unwrap().sort_by_key(ToString::to_string);
    }
    serde_json::to_string_pretty(&value).unwrap() + "\n"
}

fn check_golden(name: &str, spec: &Spec) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guests/bundle/golden").join(name);
    let got = sorted(spec);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::replace(&path, got.as_bytes()).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap();
    assert!(got == want, "{name} differs; run with UPDATE_GOLDEN=1 and read the difference");
}

#[test]
fn configuration_of_a_system_is_the_golden_one() {
    let found = Init { path: "/sbin/init".into(), flavour: Flavour::Systemd };
    let process = process::system(&Boot::default(), &ImageConfig::default(), Some(&found)).unwrap();
    assert_eq!(process.stop_signal, 37);
    check_golden("system.json", &composed(GuestKind::System, Isolation::Default, process));
}

fn application() -> GuestProcess {
    GuestProcess {
        argv: vec!["/docker-entrypoint.sh".into(), "nginx".into()],
        env: vec![("PATH".into(), "/bin".into()), ("A".into(), "b=c\n".into())],
        cwd: "/srv".into(),
        user: User { uid: 33, gid: 33, groups: vec![34, 40], home: Some("/var/www".into()) },
        stop_signal: 3,
    }
}

#[test]
fn configuration_of_an_application_is_the_golden_one() {
    let spec = composed(GuestKind::Application, Isolation::Default, application());
    check_golden("application.json", &spec);
}

#[test]
fn configurations_of_the_other_profiles_are_the_golden_ones() {
    let found = Init { path: "/sbin/init".into(), flavour: Flavour::Systemd };
    let system = process::system(&Boot::default(), &ImageConfig::default(), Some(&found)).unwrap();
    let of = |isolation| composed(GuestKind::Application, isolation, application());
    check_golden("strict.json", &of(Isolation::Strict));
    check_golden("nested.json", &composed(GuestKind::System, Isolation::Nested, system));
    check_golden("privileged.json", &of(Isolation::Privileged));
}

/// A host with a mounted root (a plain directory here) and a manifest.
struct Host {
    _dir: tempfile::TempDir,
    layout: Layout,
    spec: VmSpec,
    root: PathBuf,
}

impl Host {
    fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let layout = Layout {
            state: dir.path().join("state"),
            run: dir.path().join("run"),
            cgroup_base: "ocivisor".into(),
        };
        let disk = dir.path().join("disk.img");
        let spec = spec(&disk);
        let root = layout.run_vm(&spec.id).root();
        fs::ensure_dir(&root, false).unwrap();
        fs::ensure_dir(layout.run_vm(&spec.id).user_ns().parent().unwrap(), false).unwrap();
        let digest = format!("sha256:{}", "a".repeat(64));
        let manifest = format!(
            r#"{{"version":1,"backend":"directory","size_bytes":0,"layers":["{digest}"],
                "image":{{"reference":"x","manifest_digest":"{digest}","config_digest":"{digest}"}},
                "config":{config}}}"#
        );
        fs::replace(&dir.path().join("disk.img.manifest.json"), manifest.as_bytes()).unwrap();
        Self { _dir: dir, layout, spec, root }
    }

    fn file(&self, path: &str, mode: u32, text: &str) {
        let path = self.root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::replace(&path, text.as_bytes()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn link(&self, path: &str, to: &str) {
        let path = self.root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    fn write(&self) -> Result<(super::Facts, Spec), ocivisor_core::error::Error> {
        let given =
            Given { cgroup_path: "/ocivisor/one-7/guest", shown: &[], labels: &Labels::none() };
        let facts = write(&self.layout, &self.spec, IDS, &given)?;
        let config = self.layout.run_vm(&self.spec.id).bundle().join("config.json");
        Ok((facts, Spec::load(config).unwrap()))
    }
}

#[test]
fn a_root_with_systemd_makes_a_system() {
    let host = Host::new(r#"{"cmd":["bash"]}"#);
    host.file("usr/lib/systemd/systemd", 0o755, "");
    host.link("lib", "/usr/lib");
    host.link("sbin/init", "/lib/systemd/systemd");
    let (facts, spec) = host.write().unwrap();
    assert_eq!((facts.kind, facts.stop_signal), (GuestKind::System, 37));
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.args().as_ref().unwrap(), &["/sbin/init"]);
    assert!(process.env().as_ref().unwrap().contains(&"container=oci".to_owned()));
    // By this the runtime leaves the console to logins.
    assert_eq!(spec.annotations().as_ref().unwrap()["org.ocivisor.kind"], "system");
    // Again is fine, and the way is open to the guest's group alone.
    host.write().unwrap();
    let run = std::fs::metadata(host.layout.run_vm(&host.spec.id).dir()).unwrap();
    assert_eq!((run.mode() & 0o7777, run.uid(), run.gid()), (0o710, 0, IDS.base));
}

#[test]
fn busybox_makes_a_system_only_with_boot_scripts() {
    let host = Host::new(r#"{"cmd":["/bin/sh"]}"#);
    host.file("bin/busybox", 0o755, "");
    host.link("sbin/init", "../bin/busybox");
    assert_eq!(host.write().unwrap().0.kind, GuestKind::Application);
    host.file("sbin/openrc", 0o755, "");
    let (facts, _) = host.write().unwrap();
    assert_eq!((facts.kind, facts.stop_signal), (GuestKind::System, 12));
}

#[test]
fn sysvinit_is_asked_as_its_inittab_says() {
    let host = Host::new(r#"{"cmd":["bash"]}"#);
    host.file("sbin/init", 0o755, "");
    assert_eq!(host.write().unwrap().0.stop_signal, 30);
    host.file("etc/inittab", 0o644, "ca:12345:ctrlaltdel:/sbin/shutdown -r now\n");
    let (facts, _) = host.write().unwrap();
    assert_eq!((facts.kind, facts.stop_signal), (GuestKind::System, 2));
    host.file("etc/inittab", 0o644, "p0::powerfail:/sbin/init 0\n");
    assert_eq!(host.write().unwrap().0.stop_signal, 30);
}

#[test]
fn links_in_the_image_never_leave_the_root() {
    let host = Host::new(r#"{"cmd":["x"],"user":"root"}"#);
    // On the host these lead to real files; inside they lead nowhere.
    host.link("sbin/init", "/bin/busybox");
    host.link("etc", "/../../../../../../etc");
    assert_eq!(init::detect(&GuestRoot::open(&host.root).unwrap()).unwrap(), None);
    assert_eq!(host.write().unwrap_err().kind, ErrorKind::Image);
}

#[test]
fn user_files_that_are_no_files_are_empty_ones() {
    for make in ["fifo", "directory", "link", "device"] {
        let host = Host::new(r#"{"cmd":["x"],"user":"web"}"#);
        let path = host.root.join("etc/passwd");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let node = |kind, dev| {
            let mode = rustix::fs::Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, dev).unwrap();
        };
        match make {
            "fifo" => node(rustix::fs::FileType::Fifo, 0),
            "device" => node(rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 5)),
            "directory" => std::fs::create_dir(&path).unwrap(),
            _ => {
                host.file("etc/real", 0o644, "web:x:33:33::/:/\n");
                symlink("real", &path).unwrap();
            }
        }
        let error = host.write().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Image, "{make}: {error}");
        assert!(error.message.contains("the guest has no user \"web\""), "{make}: {error}");
    }
}

#[test]
fn the_callers_user_is_the_callers_fault() {
    let mut host = Host::new(r#"{"cmd":["x"],"user":"4294967296"}"#);
    assert_eq!(host.write().unwrap_err().kind, ErrorKind::Image);
    host.spec.boot.user = Some("nobody".into());
    assert_eq!(host.write().unwrap_err().kind, ErrorKind::Invalid);
    host.spec.boot.user = Some("33:34".into());
    let (_, spec) = host.write().unwrap();
    let user = spec.process().as_ref().unwrap().user().clone();
    assert_eq!((user.uid(), user.gid()), (33, 34));
}

#[test]
fn working_directories_are_made_inside_and_never_lead_to_kernel_filesystems() {
    let mut host = Host::new(r#"{"cmd":["x"],"working_dir":"srv/app"}"#);
    let (_, spec) = host.write().unwrap();
    assert_eq!(spec.process().as_ref().unwrap().cwd(), Path::new("/srv/app"));
    let made = std::fs::metadata(host.root.join("srv/app")).unwrap();
    assert_eq!((made.uid(), made.gid()), (IDS.base, IDS.base));
    host.write().unwrap();

    host.link("away", "/../proc/self/fd/7");
    host.link("dangling", "/nowhere");
    host.link("loop", "loop");
    host.link("fine", "/srv");
    host.file("file", 0o644, "");
    std::fs::create_dir_all(host.root.join("proc/self/fd/7")).unwrap();
    for bad in [
        "/proc/self/fd/7",
        "/proc/1/root",
        "/sys",
        "/dev/fd/3",
        "/srv/../proc",
        "/away",
        "/dangling",
        "/loop",
        "/file",
        "/file/x",
        "/./proc/x",
    ] {
        host.spec.boot.workdir = Some(bad.into());
        assert_eq!(host.write().unwrap_err().kind, ErrorKind::Image, "{bad}");
    }
    host.spec.boot.workdir = Some("/fine/app".into());
    let (_, spec) = host.write().unwrap();
    assert_eq!(spec.process().as_ref().unwrap().cwd(), Path::new("/srv/app"));
}

#[test]
fn a_closed_directory_above_the_run_directory_is_reported() {
    let host = Host::new(r#"{"cmd":["x"]}"#);
    let above = host.layout.run.parent().unwrap();
    std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o700)).unwrap();
    let error = host.write().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Host);
    assert!(error.hint.unwrap().contains(above.to_str().unwrap()));
}

#[test]
fn missing_things_are_named() {
    let host = Host::new("null");
    assert_eq!(host.write().unwrap_err().kind, ErrorKind::Integrity);
    let mut host = Host::new("{}");
    host.spec.boot.init = InitKind::System;
    assert_eq!(host.write().unwrap_err().kind, ErrorKind::Image);
    host.spec.root.path = "/no/such/disk".into();
    assert_eq!(host.write().unwrap_err().kind, ErrorKind::NotFound);
}

fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("/proc/self/exe".to_owned()),
        Just("/../../etc".to_owned()),
        Just("LD_PRELOAD=/x".to_owned()),
        Just("type=bind,src=/".to_owned()),
        Just("\n\"mounts\": [".to_owned()),
        any::<String>().prop_map(|text| text.replace('\0', "")),
    ]
}

fn profiles() -> impl Strategy<Value = (GuestKind, Isolation)> {
    use Isolation::{Default, Nested, Privileged, Strict};
    let kinds = prop_oneof![Just(GuestKind::System), Just(GuestKind::Application)];
    let grants = prop_oneof![Just(Strict), Just(Default), Just(Nested), Just(Privileged)];
    (kinds, grants).prop_filter("no strict systems", |(k, i)| Profile::new(*k, *i).is_ok())
}

proptest! {
    /// Whatever an image says, only argv, environment, directory and user of the process change.
    #[test]
    fn an_image_changes_nothing_but_the_process(
        entrypoint in prop::collection::vec(hostile(), 1..4),
        cmd in prop::collection::vec(hostile(), 0..4),
        env in prop::collection::vec((hostile(), hostile()), 0..4),
        (kind, isolation) in profiles(),
    ) {
        let process = |argv: Vec<String>, env| GuestProcess {
            argv,
            env,
            cwd: "/".into(),
            user: User { uid: 0, gid: 0, groups: Vec::new(), home: None },
            stop_signal: 15,
        };
        let argv: Vec<String> = entrypoint.into_iter().chain(cmd).collect();
        let tame = composed(kind, isolation, process(vec!["x".into()], Vec::new()));
        let wild = composed(kind, isolation, process(argv.clone(), env));
        // Through the file, as the runtime will read it.
        let wild: Spec = serde_json::from_slice(&serde_json::to_vec(&wild).unwrap()).unwrap();
        prop_assert_eq!(wild.process().as_ref().unwrap().args().as_ref().unwrap(), &argv);
        let strip = |mut spec: Spec| {
            let mut process = spec.process().clone().unwrap();
            process.set_args(None).set_env(None);
            spec.set_process(Some(process));
            spec
        };
        prop_assert_eq!(strip(wild), strip(tame));
    }
}
