//! The datastore driver on what users name: registries, web servers, archives, disks.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "common/calls.rs"]
mod calls;
#[path = "../../../datastore/tests/common/mod.rs"]
mod common;
#[path = "../../../datastore/tests/diskimage/make.rs"]
mod make;
#[path = "../../../datastore/tests/common/registry.rs"]
mod registry;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use calls::{Cloud, Wish};
use common::*;
use ocivisor_datastore::{Archive, Reference};
use ocivisor_frontend::RegistriesConfig;
use registry::{Auth, Ca, Distribution, PASSWORD, USER, big, skopeo};
use serde_json::json;
use tempfile::TempDir;

fn cloud() -> (TempDir, Cloud) {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir(top.path().join("datastores")).unwrap();
    let cloud = Cloud::new(top.path());
    (top, cloud)
}

/// An image layout of one layer of its own and one that all have.
fn layout(dir: &Path, seed: u64) -> Layout {
    let layout = Layout::new(dir);
    let layers = [gzipped(&big(1, 200_000)), gzipped(&big(seed, 50_000))];
    layout.image(&layers, &json!({"Cmd": ["/bin/sh"], "User": "7"}));
    layout
}

/// A registry with TLS and login that has images, and a cloud that may use it.
struct Site {
    top: TempDir,
    cloud: Cloud,
    server: Distribution,
    ca: Ca,
}

impl Site {
    fn new() -> Self {
        let (top, mut cloud) = cloud();
        let ca = Ca::new();
        let server = Distribution::start(Some(&ca.sign("server", &["127.0.0.1"])), &Auth::Basic);
        let password = top.path().join("password");
        put(&password, PASSWORD.as_bytes());
        let mut config = RegistriesConfig {
            proxy_from_environment: false,
            attempts: 2,
            ..RegistriesConfig::default()
        };
        let own = config.hosts.entry(server.host().parse().unwrap()).or_default();
        own.ca = Some(ca.path());
        own.username = Some(USER.into());
        own.password_file = Some(password);
        cloud.config.registries = config;
        Self { top, cloud, server, ca }
    }

    fn push(&self, name: &str, seed: u64) -> (String, Layout) {
        let layout = layout(&self.top.path().join(name), seed);
        let reference = format!("docker://{}/team/{name}:1", self.server.host());
        skopeo(&self.ca, &format!("oci:{}", layout.dir.display()), &reference);
        (reference, layout)
    }
}

#[test]
fn images_of_registries_come_in_pinned_shared_and_leave() {
    let site = Site::new();
    let cloud = &site.cloud;
    let (first, _) = site.push("first", 2);
    let (second, _) = site.push("second", 3);
    let stat = |path: &str| cloud.call("stat", &Wish { path: path.into(), ..Wish::default() });
    assert_eq!(stat(&first).unwrap(), "1024\n");
    assert_eq!(stat(&format!("{first}?size=300&format=raw")).unwrap(), "300\n");
    assert!(
        stat(&first.replace("first:1", "first:2"))
            .unwrap_err()
            .starts_with("Cannot tell the size of the image: ")
    );
    assert!(!cloud.base.exists());

    let answer = cloud.cp(7, &format!("{first}?size=300")).unwrap();
    let manifest = cloud.container(7).manifest.unwrap();
    assert_eq!(answer, format!("ocivisor:7@{manifest} oci\n"));
    let origin = format!("docker://{}/team/first@{manifest}", site.server.host());
    assert_eq!(cloud.container(7).origin, Some(origin));
    // Again, and once more as another image: nothing more is kept.
    assert_eq!(cloud.cp(7, &first).unwrap(), answer);
    assert_eq!(cloud.cp(8, &first).unwrap(), answer.replace(":7@", ":8@"));
    assert_eq!(cloud.blobs(), 4);
    cloud.cp(9, &second).unwrap();
    assert_eq!(cloud.blobs(), 7);
    cloud.assert_clean();

    assert_eq!(cloud.rm(7, answer.split(' ').next().unwrap()).unwrap(), "");
    assert_eq!(cloud.blobs(), 7);
    cloud.rm(8, &answer.replace(":7@", ":8@").replace(" oci\n", "")).unwrap();
    assert_eq!(cloud.blobs(), 4);
    cloud.rm(9, "").unwrap();
    // What is not there is removed.
    cloud.rm(9, "").unwrap();
    assert_eq!(cloud.blobs(), 0);
    assert!(cloud.depot().record(9).unwrap().is_none());
    cloud.assert_clean();
}

#[test]
fn files_of_web_servers_are_what_they_hold() {
    let site = Site::new();
    let cloud = &site.cloud;
    let (_, layout) = site.push("first", 2);
    let manifest = fs::read_dir(layout.dir.join("blobs/sha256")).unwrap().map(|e| e.unwrap());
    let blob = manifest.max_by_key(|e| e.metadata().unwrap().len()).unwrap();
    let (name, bytes) = (blob.file_name().into_string().unwrap(), fs::read(blob.path()).unwrap());
    let url = format!("https://{}/v2/team/first/blobs/sha256:{name}", site.server.host());
    let wish = |kind, template: &str| Wish {
        id: 5,
        kind,
        path: url.clone(),
        template: template.into(),
        ..Wish::default()
    };
    // A tar that is compressed: whatever becomes of it, it is taken for an image.
    assert_eq!(cloud.call("stat", &wish(0, "")).unwrap(), "1024\n");
    // In a datastore of files it is one.
    let files = Cloud { kind: 2, ..cloud.clone() };
    assert_eq!(files.call("stat", &wish(0, "")).unwrap(), "1\n");
    // As what a VM boots, a root file system; as data, its plain bytes, or those as they are.
    let answer = cloud.call("cp", &wish(0, "")).unwrap();
    assert!(answer.starts_with("ocivisor:5@sha256:"), "{answer}");
    assert_eq!(cloud.container(5).origin.as_ref(), Some(&url));
    cloud.rm(5, "").unwrap();
    let data = cloud.call("cp", &wish(2, "")).unwrap();
    let path = data.strip_suffix(" raw\n").unwrap();
    assert_eq!(fs::read(path).unwrap(), big(1, 200_000));
    let kept = Cloud { template: "<NO_DECOMPRESS>YES</NO_DECOMPRESS>".into(), ..cloud.clone() };
    assert_eq!(kept.call("cp", &wish(2, "")).unwrap(), data);
    assert_eq!(fs::read(path).unwrap(), bytes);
    // Whatever is said of the file must hold.
    cloud.call("cp", &wish(2, &format!("<SHA256>{name}</SHA256>"))).unwrap();
    let wrong = format!("<MD5>{}</MD5>", "0".repeat(32));
    for kind in [0, 2] {
        let error = cloud.call("cp", &wish(kind, &wrong)).unwrap_err();
        assert!(error.contains(" has MD5 "), "{error}");
    }
    let plain = cloud.cp(6, &url.replace("https:", "http:")).unwrap_err();
    assert!(plain.contains("use https"), "{plain}");
    cloud.assert_clean();
}

#[test]
fn what_a_file_is_says_its_content() {
    let (top, cloud) = cloud();
    let at = |name: &str| top.path().join(name).display().to_string();
    let layout = layout(&top.path().join("layout"), 2);
    let store = Bench::new();
    let image = store.import(&layout.source()).unwrap();
    let images = [Reference::Digest(image.manifest_digest)];
    let dir = File::open(top.path()).unwrap();
    for (name, form) in [("oci.tar", Archive::OciArchive), ("docker.tar", Archive::DockerArchive)] {
        store.store.save(&images, form, &dir, name, &mut |_| {}).unwrap();
    }
    let root = top.path().join("root");
    make::small_root(&root);
    File::create(at("disk.raw")).unwrap().set_len(40 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-F", "-d", text(&root), &at("disk.raw")]);
    run("qemu-img", &["convert", "-O", "qcow2", &at("disk.raw"), &at("disk.qcow2")]);
    run("tar", &["-C", text(&root), "-cf", &at("root.tar"), "."]);
    run("xz", &["-1", "-k", &at("root.tar")]);
    run("gzip", &["-1", "-k", &at("disk.raw")]);
    let same = format!("@{} oci\n", image.manifest_digest);
    for (id, path, want) in [
        (1, at("layout"), Some(&same)),
        (2, at("oci.tar"), Some(&same)),
        (3, format!("oci-archive:{}", at("oci.tar")), Some(&same)),
        (4, at("docker.tar"), None),
        (5, at("root.tar.xz"), None),
        (6, at("disk.raw"), None),
        (7, at("disk.qcow2"), None),
        (8, at("disk.raw.gz"), None),
        (9, format!("rootfs:{}", at("root.tar")), None),
    ] {
        let answer = cloud.cp(id, &path).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(answer.starts_with(&format!("ocivisor:{id}@sha256:")), "{answer}");
        if let Some(want) = want {
            assert!(answer.ends_with(want), "{path}: {answer}");
        }
    }
    let digest = |id| cloud.container(id).manifest.unwrap();
    assert_eq!((digest(6), digest(7)), (digest(8), digest(8)));
    let stat = |path: &str| cloud.call("stat", &Wish { path: path.into(), ..Wish::default() });
    assert_eq!(stat(&at("disk.raw")).unwrap(), "40\n");
    assert_eq!(stat(&at("disk.qcow2")).unwrap(), "40\n");
    assert_eq!(stat(&at("oci.tar")).unwrap(), "1024\n");
    assert_eq!(stat(&at("layout")).unwrap(), "1024\n");
    cloud.assert_clean();
    put(&top.path().join("nothing"), b"nothing of the kind");
    let error = cloud.cp(10, &at("nothing")).unwrap_err();
    let want = "; images are archives, tars of root file systems and disks with one; \
                data has the type DATABLOCK.\n";
    assert!(error.ends_with(want), "{error}");
    cloud.assert_clean();
}

#[test]
fn nobody_reads_what_is_the_clouds() {
    let (top, mut cloud) = cloud();
    let at = |name: &str| top.path().join(name);
    for dir in ["secret", "uploads"] {
        fs::create_dir(at(dir)).unwrap();
        put(&at(dir).join("file"), &RawTar::new().file("etc/a", b"a").end());
    }
    symlink("../secret/file", at("uploads/link")).unwrap();
    symlink("../secret", at("uploads/dir")).unwrap();
    cloud.template = format!(
        "<SAFE_DIRS>{}</SAFE_DIRS><RESTRICTED_DIRS>/</RESTRICTED_DIRS>",
        at("uploads").display()
    );
    let path = |name: &str| at(name).display().to_string();
    cloud.cp(1, &path("uploads/file")).unwrap();
    let hostile = [
        path("secret/file"),
        path("uploads/link"),
        path("uploads/dir/file"),
        path("uploads/../secret/file"),
        format!("rootfs:{}", path("uploads/link")),
        format!("oci:{}", path("secret")),
        format!("dockerfile://{}", path("secret")),
        format!("dockerfile://{}", path("uploads/dir")),
        "/proc/self/environ".into(),
        "/var/lib/one/.one/one_auth".into(),
        "/etc/one/oned.conf".into(),
        "/dev/zero".into(),
    ];
    for path in &hostile {
        for kind in [0, 2, 5] {
            let wish = Wish { id: 2, kind, path: path.clone(), ..Wish::default() };
            for action in ["cp", "stat"] {
                let error = cloud.call(action, &wish).unwrap_err();
                let data =
                    error.ends_with("a container image is no disk for data; use the type OS.\n");
                let closed =
                    error.contains("is not there, or in a directory that images may not come from");
                assert!(closed || data, "{action} {path}: {error}");
            }
        }
    }
    // A fifo below a safe directory does not hang the driver.
    run("mkfifo", &[&path("uploads/pipe")]);
    for kind in [0, 2] {
        let wish = Wish { id: 2, kind, path: path("uploads/pipe"), ..Wish::default() };
        cloud.call("cp", &wish).unwrap_err();
    }
    assert!(cloud.depot().record(2).unwrap().is_none());
    cloud.assert_clean();
}

#[test]
fn data_disks_are_files_that_lead_nowhere() {
    let (top, cloud) = cloud();
    let at = |name: &str| top.path().join(name).display().to_string();
    put(&top.path().join("a.raw"), b"raw data");
    run("qemu-img", &["create", "-q", "-f", "qcow2", &at("a.qcow2"), "5M"]);
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", &at("a.raw"), "-F", "raw", &at("b.qcow2"), "5M"],
    );
    let data = |id, path: &str| Wish { id, kind: 2, path: path.into(), ..Wish::default() };
    let raw = cloud.call("cp", &data(1, &at("a.raw"))).unwrap();
    let path = PathBuf::from(raw.strip_suffix(" raw\n").unwrap());
    assert_eq!(path.parent(), Some(&*cloud.base));
    assert_eq!(fs::read(&path).unwrap(), b"raw data");
    let qcow2 = cloud.call("cp", &data(2, &at("a.qcow2"))).unwrap();
    assert!(qcow2.ends_with(" qcow2\n"), "{qcow2}");
    assert_eq!(cloud.call("stat", &data(2, &at("a.qcow2"))).unwrap(), "5\n");
    let error = cloud.call("cp", &data(3, &at("b.qcow2"))).unwrap_err();
    assert!(error.contains("is qcow2 with a backing file"), "{error}");
    let error = cloud.call("cp", &data(3, "docker://a.example/b")).unwrap_err();
    assert_eq!(
        error,
        "Cannot bring in image 3: a container image is no disk for data; use the type OS.\n"
    );

    let source = path.display().to_string();
    let clone =
        Wish { id: 4, kind: 2, path: source.clone(), format: "raw".into(), ..Wish::default() };
    let copy = cloud.call("clone", &clone).unwrap();
    assert_eq!(fs::read(copy.strip_suffix(" raw\n").unwrap()).unwrap(), b"raw data");
    for path in ["/etc/passwd", &at("a.raw"), &format!("{}/lock", cloud.base.display())] {
        cloud.call("clone", &Wish { path: (*path).to_owned(), ..clone.clone() }).unwrap_err();
    }
    cloud.rm(1, &source).unwrap();
    assert!(!path.exists());
    cloud.assert_clean();
}

#[test]
fn clones_share_what_never_changes_and_copy_what_does() {
    let (top, cloud) = cloud();
    let layout = layout(&top.path().join("layout"), 2);
    let answer = cloud.cp(1, &layout.dir.display().to_string()).unwrap();
    let source = answer.split(' ').next().unwrap().to_owned();
    let clone = Wish { id: 2, path: source.clone(), format: "oci".into(), ..Wish::default() };
    assert_eq!(cloud.call("clone", &clone).unwrap(), answer.replace(":1@", ":2@"));
    assert_eq!((cloud.container(2), cloud.blobs()), (cloud.container(1), 4));
    cloud.rm(1, &source).unwrap();
    assert_eq!(cloud.blobs(), 4);

    // A disk that a VM has written is the image's own.
    let depot = cloud.depot();
    let held = depot.lock(2).unwrap();
    for (draft, content) in [
        (depot.new_disk_manifest(&held).unwrap(), "manifest"),
        (depot.new_disk(&held).unwrap(), "disk"),
    ] {
        std::io::Write::write_all(&mut draft.file(), content.as_bytes()).unwrap();
        draft.publish().unwrap();
    }
    drop(held);
    let other = cloud.beside(102);
    let source = source.replace(":1@", ":2@");
    let clone = Wish { id: 3, path: source.clone(), ..clone };
    assert_eq!(other.call("clone", &clone).unwrap(), answer.replace(":1@", ":3@"));
    assert_eq!(fs::read(other.depot().disk_path(3)).unwrap(), b"disk");
    assert_eq!(fs::read(other.depot().disk_manifest_path(3)).unwrap(), b"manifest");
    assert_eq!(other.container(3).manifest, cloud.container(2).manifest);
    cloud.rm(2, &source).unwrap();
    cloud.assert_clean();
    other.assert_clean();
    other.rm(3, &source.replace(":2@", ":3@")).unwrap();
    let gone = Wish { id: 4, ..clone };
    assert!(other.call("clone", &gone).unwrap_err().starts_with("Cannot clone image 4: "));
}

#[test]
fn empty_disks_are_made_and_places_for_saved_ones() {
    let (top, cloud) = cloud();
    let make = |id, format: &str, fs: &str, size: &str| {
        let (format, fs, size) = (format.into(), fs.into(), size.into());
        cloud.call("mkfs", &Wish { id, kind: 2, format, fs, size, ..Wish::default() })
    };
    let info = |source: &str| {
        let output = fs::read(source.trim_end()).unwrap();
        (output.len(), output.starts_with(b"QFI\xfb"))
    };
    let raw = make(1, "raw", "", "3").unwrap();
    assert_eq!(info(&raw), (3 << 20, false));
    let ext4 = make(2, "raw", "ext4", "8").unwrap();
    assert_eq!(fs::read(ext4.trim_end()).unwrap()[1080..1082], [0x53, 0xef]);
    let qcow2 = make(3, "qcow2", "ext4", "8").unwrap();
    assert!(info(&qcow2).1);
    run("qemu-img", &["check", "-q", qcow2.trim_end()]);
    for (format, fs, size, why) in [
        ("vmdk", "", "1", "FORMAT \"vmdk\" is not known"),
        ("raw", "ext4; reboot", "1", "FS \"ext4; reboot\" is not known"),
        ("raw", "", "0", "SIZE must be"),
        ("raw", "", "", "SIZE must be"),
    ] {
        let error = make(4, format, fs, size).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    let layout = layout(&top.path().join("layout"), 2);
    cloud.cp(5, &layout.dir.display().to_string()).unwrap();
    let saved = |id, kind, image: &str| {
        let template = format!(
            "<SAVED_VM_ID>9</SAVED_VM_ID><SAVED_DISK_ID>0</SAVED_DISK_ID>\
             <SAVED_IMAGE_ID>{image}</SAVED_IMAGE_ID>"
        );
        let format = "save_as".into();
        cloud.call("mkfs", &Wish { id, kind, format, template, ..Wish::default() })
    };
    assert_eq!(saved(6, 0, "5").unwrap(), "ocivisor:6\n");
    let container = cloud.container(6);
    assert_eq!((container.manifest, container.saved.unwrap().image), (None, Some(5)));
    assert_eq!(saved(7, 0, "").unwrap(), "ocivisor:7\n");
    // Of a data disk a file, which comes later.
    let file = saved(8, 0, "1").unwrap();
    assert!(!Path::new(file.trim_end()).exists());
    assert_eq!(Path::new(file.trim_end()).parent(), Some(&*cloud.base));
    assert_eq!(saved(9, 2, "77").unwrap().trim_end(), cloud.depot().data_path(9).to_str().unwrap());
    cloud.assert_clean();
}

#[test]
fn space_is_told_and_what_a_marketplace_fetches_comes_in_again() {
    let (top, cloud) = cloud();
    let told = cloud.call("monitor", &Wish { id: 101, ..Wish::default() }).unwrap();
    let keys: Vec<&str> = told.lines().map(|line| line.split('=').next().unwrap()).collect();
    assert_eq!(keys, ["USED_MB", "TOTAL_MB", "FREE_MB"]);
    let layout = layout(&top.path().join("layout"), 2);
    let answer = cloud.cp(1, &layout.dir.display().to_string()).unwrap();
    let source = answer.split(' ').next().unwrap().to_owned();
    let wish = Wish { id: 1, source, size: "7".into(), ..Wish::default() };
    let info = cloud.call("export", &wish).unwrap();
    let path = cloud.base.join("export-1.tar");
    let rest = info
        .strip_prefix(&format!(
            "<IMPORT_INFO><IMPORT_SOURCE>{}</IMPORT_SOURCE><MD5>",
            path.display()
        ))
        .unwrap();
    let (md5, rest) = rest.split_at(32);
    assert_eq!(
        rest,
        format!(
            "</MD5><SIZE>7</SIZE><FORMAT>oci</FORMAT><DISPOSE>YES</DISPOSE>\
             <DISPOSE_CMD>rm -f {}</DISPOSE_CMD></IMPORT_INFO>\n",
            path.display()
        )
    );
    let fetched = top.path().join("fetched");
    fs::copy(&path, &fetched).unwrap();
    let again = Wish {
        id: 2,
        path: fetched.display().to_string(),
        template: format!("<MD5>{md5}</MD5>"),
        ..Wish::default()
    };
    assert_eq!(cloud.call("cp", &again).unwrap(), answer.replace(":1@", ":2@"));
    assert_eq!(cloud.call("export", &wish).unwrap(), info);
    // Nobody fetched it: not today's, but yesterday's goes.
    let measure = || cloud.call("monitor", &Wish { id: 101, ..Wish::default() }).unwrap();
    let age = |hours: u64| {
        let then = std::time::SystemTime::now() - std::time::Duration::from_secs(hours * 3600);
        File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        measure();
        path.exists()
    };
    assert!(age(23) && !age(25));
    assert_eq!(cloud.call("export", &wish).unwrap(), info);
    cloud.rm(1, &wish.source).unwrap();
    assert!(!path.exists());
    cloud.assert_clean();
}

#[test]
fn oned_is_told_what_an_image_is_and_need_not_listen() {
    let (top, mut cloud) = cloud();
    let layout = layout(&top.path().join("layout"), 2);
    let path = layout.dir.display().to_string();
    let wish = Wish { id: 3, path, ..Wish::default() };
    let mut told = Vec::new();
    cloud.config.images.oneimage = top.path().join("oneimage");
    let answer = cloud.call_with("cp", &wish, &mut |text| told.push(text.to_owned())).unwrap();
    let absent = cloud.config.images.oneimage.display().to_string();
    assert_eq!(
        told,
        [format!("OCI_DIGEST is not in the image's template: {absent} is not installed")]
    );
    let script = "#!/bin/sh\necho \"$@\" > \"$0.argv\"\ncat \"$4\" > \"$0.file\"\nexit 1\n";
    put(&cloud.config.images.oneimage, script.as_bytes());
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&cloud.config.images.oneimage, mode).unwrap();
    assert_eq!(cloud.call("cp", &wish).unwrap(), answer);
    let said = |end: &str| fs::read_to_string(top.path().join(format!("oneimage.{end}"))).unwrap();
    assert!(said("argv").starts_with("update 3 --append /"), "{}", said("argv"));
    let file = said("file");
    let digest = answer.trim_end().split(['@', ' ']).nth(1).unwrap();
    assert!(file.starts_with(&format!("OCI_DIGEST = \"{digest}\"\nOCI_ARCHITECTURE = ")), "{file}");
    assert!(file.contains("\nOCI_CONFIG = \""), "{file}");
    cloud.assert_clean();
}

#[test]
fn nobody_privileged_is_needed_and_two_may_come_at_once() {
    const SOMEBODY: u32 = 65_534;
    let site = Site::new();
    let (first, _) = site.push("first", 2);
    let (second, _) = site.push("second", 3);
    let cloud = &site.cloud;
    for dir in [site.top.path(), site.ca.dir.path(), &site.ca.dir.path().join("certs")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for path in ["datastores", "password"] {
        chown(site.top.path().join(path), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    }
    std::thread::scope(|scope| {
        for (id, path) in [(1, &first), (2, &first), (3, &second), (1, &first)] {
            scope.spawn(move || {
                let (uid, gid) = (
                    rustix::thread::Uid::from_raw(SOMEBODY),
                    rustix::thread::Gid::from_raw(SOMEBODY),
                );
                rustix::thread::set_thread_groups(&[]).unwrap();
                rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                cloud.cp(id, path).unwrap();
            });
        }
    });
    assert_eq!(cloud.blobs(), 7);
    for (path, seen) in tree(&cloud.base) {
        assert_eq!(seen.owner, (SOMEBODY, SOMEBODY), "{}", path.escape_ascii());
    }
    // Not even root, who would leave files that the owner cannot remove.
    let error = cloud.cp(4, &first).unwrap_err();
    assert!(error.contains("belongs to user 65534, not to user 0"), "{error}");
}

#[test]
fn an_image_that_is_too_large_is_refused() {
    let (top, cloud) = cloud();
    let file = top.path().join("large");
    File::create(&file).unwrap().set_len(3 << 20).unwrap();
    let wish = Wish { id: 1, kind: 2, path: file.display().to_string(), ..Wish::default() };
    let small = Cloud { free_mb: 2, ..cloud.clone() };
    let error = small.call("cp", &wish).unwrap_err();
    assert_eq!(
        error,
        "Cannot bring in image 1: it has more than the 2 MiB that are free in the datastore; \
         free some, or use another datastore.\n"
    );
    cloud.assert_clean();
}

#[test]
fn a_registry_is_a_marketplace() {
    use ocivisor_frontend::market;
    use ocivisor_opennebula::market::plan;
    let site = Site::new();
    site.push("first", 2);
    site.push("second", 3);
    let message = |apps: &str| {
        let message = format!(
            "<MARKET_DRIVER_ACTION_DATA><MARKETPLACE><ID>3</ID><TEMPLATE><REGISTRY>{}</REGISTRY>\
             <APPS>{apps}</APPS></TEMPLATE></MARKETPLACE></MARKET_DRIVER_ACTION_DATA>",
            site.server.host()
        );
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, message)
    };
    let list = |apps: &str| {
        let mut left_out = Vec::new();
        let market = plan("monitor", &[message(apps), "3".into()]).unwrap();
        let apps =
            market::list(&market, &site.cloud.config, &mut |text| left_out.push(text.to_owned()));
        apps.map(|apps| (apps, left_out))
    };
    let (apps, left_out) = list("team/first:1 team/absent:1 Team team/second:1").unwrap();
    let names: Vec<&str> = apps.iter().map(|app| app.name.as_str()).collect();
    assert_eq!((names, left_out.len()), (vec!["team/first:1", "team/second:1"], 2));
    // What is offered can be had, and is what was offered.
    let answer = site.cloud.cp(1, &apps[0].source).unwrap();
    assert_eq!(answer, format!("ocivisor:1@{} oci\n", apps[0].digest));
    // The catalog names repositories; there is nothing tagged "latest" here.
    let error = list("").unwrap_err();
    assert!(error.message.contains("offers no image"), "{error}");
    skopeo(&site.ca, &apps[0].source, &apps[0].source.replace(":1", ":latest"));
    let (apps, left_out) = list("").unwrap();
    assert_eq!((apps[0].name.as_str(), left_out.len()), ("team/first", 1));
    // Nobody waits for a slow one for longer than until it is asked again.
    let market = plan("monitor", &[message("team/first:1 team/second:1"), "3".into()]).unwrap();
    let config = &site.cloud.config;
    let error = market::list_within(&market, config, Duration::ZERO, &mut |_| {}).unwrap_err();
    let want = format!("{} told of 0 of 2 images within 0 s", site.server.host());
    assert_eq!(error.message, want);
}
