//! Dockerfiles: built by buildah, without root, of what their owner may read.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

#[path = "common/calls.rs"]
mod calls;
#[path = "../../../datastore/tests/common/mod.rs"]
mod common;

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use calls::{Cloud, Wish};
use common::*;
use tempfile::TempDir;

/// Set in the process that is the builder of a test's driver.
const BUILDER: &str = "OCIVISOR_TEST_BUILDER";

/// `ocivisor one builder`. Without the variable there is nothing to do.
#[test]
#[expect(clippy::disallowed_methods, reason = "the exit code is the program's, not the test's")]
fn builder() {
    if std::env::var_os(BUILDER).is_none() {
        return;
    }
    let code = ocivisor_frontend::images::builder().unwrap_or_else(|error| {
        eprintln!("{error}");
        1
    });
    std::process::exit(code.into());
}

/// As an admin who wants builds.
fn let_build(cloud: &mut Cloud) {
    cloud.config.images.build = true;
    let own = std::env::current_exe().unwrap().into_os_string();
    // crun does not run where control groups are of both versions, as on some machines of builders.
    let env = ["/usr/bin/env", "BUILDAH_RUNTIME=runc", &format!("{BUILDER}=1")].map(OsString::from);
    let test = ["builder", "--exact", "--nocapture"].map(OsString::from);
    cloud.config.builder = env.into_iter().chain([own]).chain(test).collect();
}

fn cloud() -> (TempDir, Cloud) {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir(top.path().join("datastores")).unwrap();
    let cloud = Cloud::new(top.path());
    (top, cloud)
}

#[test]
fn dockerfiles_are_built_where_an_admin_wants_that() {
    let (top, mut cloud) = cloud();
    let dir = top.path().join("app");
    fs::create_dir(&dir).unwrap();
    put(&dir.join("file"), b"content");
    put(&dir.join("Dockerfile"), b"FROM scratch\nCOPY file /file\nCMD [\"/file\"]\n");
    let path = format!("dockerfile://{}?size=9", dir.display());
    for (path, action) in [(&path, "stat"), (&path, "cp"), (&text(&dir).to_owned(), "stat")] {
        let wish = Wish { id: 1, path: path.clone(), ..Wish::default() };
        let error = cloud.call(action, &wish).unwrap_err();
        assert!(error.contains("Dockerfiles are not built on this front-end"), "{error}");
    }
    let_build(&mut cloud);
    let absent = top.path().join("nothing");
    fs::create_dir(&absent).unwrap();
    let error = cloud.cp(1, &format!("dockerfile://{}", absent.display())).unwrap_err();
    assert!(error.contains(" has no Dockerfile or Containerfile"), "{error}");
    let stat = Wish { path: path.clone(), ..Wish::default() };
    assert_eq!(cloud.call("stat", &stat).unwrap(), "9\n");
    for (id, path) in [(1, path), (2, dir.display().to_string())] {
        let answer = cloud.cp(id, &path).unwrap();
        assert!(answer.starts_with(&format!("ocivisor:{id}@sha256:")), "{answer}");
        let name = ocivisor_frontend::Depot::reference(id);
        let image = cloud.depot().store().resolve(&name).unwrap();
        assert_eq!(image.config.cmd, ["/file"]);
    }
    put(&dir.join("Dockerfile"), b"FROM scratch\nCOPY absent /file\n");
    assert!(cloud.cp(3, &dir.display().to_string()).unwrap_err().contains("build "));
    cloud.assert_clean();
}

#[test]
fn nothing_is_built_of_what_a_link_leads_to() {
    let (top, mut cloud) = cloud();
    let_build(&mut cloud);
    cloud.template = format!("<SAFE_DIRS>{}</SAFE_DIRS>", top.path().join("app").display());
    fs::create_dir(top.path().join("app")).unwrap();
    put(&top.path().join("secret"), b"oneadmin:the-password\n");
    symlink("../secret", top.path().join("app/Dockerfile")).unwrap();
    let dir = top.path().join("app").display().to_string();
    for path in [dir.clone(), format!("dockerfile://{dir}")] {
        let error = cloud.cp(1, &path).unwrap_err();
        let want = format!(
            "Cannot bring in image 1: {dir}/Dockerfile is a link, which is not followed; \
             put the file itself there.\n"
        );
        assert_eq!(error, want);
    }
    fs::remove_file(top.path().join("app/Dockerfile")).unwrap();
    put(&top.path().join("app/Dockerfile"), &vec![b'#'; (1 << 20) + 1]);
    let error = cloud.cp(1, &dir).unwrap_err();
    assert!(error.contains("Dockerfile has more than 1024 KiB"), "{error}");
    cloud.assert_clean();
}

#[test]
fn nothing_is_built_upon_but_what_registries_have() {
    // No letter of the path may be a capital, in a reference.
    let name = format!("ocv-policy-{}", std::process::id());
    let top = tempfile::Builder::new().prefix(&name).rand_bytes(0).tempdir().unwrap();
    fs::create_dir(top.path().join("datastores")).unwrap();
    let mut cloud = Cloud::new(top.path());
    let_build(&mut cloud);
    let base = Layout::new(&top.path().join("base"));
    base.image(&[gzipped(&RawTar::new().file("a", b"a").end())], &serde_json::json!({}));
    let answer = cloud.cp(1, text(&base.dir)).unwrap();
    let source = answer.split(' ').next().unwrap().to_owned();
    cloud.call("export", &Wish { id: 1, source, ..Wish::default() }).unwrap();
    let archive = cloud.base.join("export-1.tar").display().to_string();
    let unpacked = top.path().join("dir").display().to_string();
    run("skopeo", &["copy", "-q", &format!("oci-archive:{archive}"), &format!("dir:{unpacked}")]);
    let dir = top.path().join("app");
    fs::create_dir(&dir).unwrap();
    // What the front-end has is not there. What a user brings along is refused by the policy.
    run("cp", &[&archive, text(&dir.join("base.tar"))]);
    run("cp", &["-r", text(&base.dir), &unpacked, text(&dir)]);
    let places = [
        format!("oci-archive:{archive}"),
        format!("oci:{}", base.dir.display()),
        format!("dir:{unpacked}"),
        "oci-archive:/build/context/base.tar".to_owned(),
        "oci:/build/context/base".to_owned(),
        "dir:/build/context/dir".to_owned(),
    ];
    let policy = cloud.config.images.policy.clone();
    let all = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
    let ours = r#"{"default": [{"type": "reject"}], "transports":
        {"oci": {"": [{"type": "insecureAcceptAnything"}]},
         "oci-archive": {"": [{"type": "insecureAcceptAnything"}]}}}"#;
    for rules in [None, Some(all), Some(ours)] {
        if let Some(rules) = rules {
            put(&policy, rules.as_bytes());
        }
        // What is not there is not there whatever the rules are.
        for place in &places[if rules == Some(all) { 0 } else { 3 }..] {
            let own = place.contains(":/build/");
            for script in [
                format!("FROM {place}\n"),
                format!("FROM scratch\nCOPY --from={place} /a /a\n"),
                format!("FROM scratch\nRUN --mount=type=bind,from={place},target=/m [\"/m/a\"]\n"),
            ]
            .iter()
            .take(if own { 3 } else { 1 })
            {
                put(&dir.join("Dockerfile"), script.as_bytes());
                let error = cloud.cp(2, &dir.display().to_string()).unwrap_err();
                let refused = ["rejected by policy", "no stage or image found"];
                let absent = !own && error.contains("no such file");
                assert!(absent || refused.iter().any(|why| error.contains(why)), "{script}{error}");
            }
        }
    }
    // Stages of its own are none of anybody's.
    fs::remove_file(&policy).unwrap();
    put(&dir.join("file"), b"content");
    let stages = "FROM scratch AS one\nCOPY file /a\nFROM one\nCOPY --from=one /a /b\n";
    put(&dir.join("Dockerfile"), stages.as_bytes());
    cloud.cp(2, &dir.display().to_string()).unwrap();
    fs::remove_file(archive).unwrap();
    cloud.assert_clean();
}

/// Set in the process that builds while its context is taken away.
const MOVED: &str = "OCIVISOR_TEST_BUILD_MOVED";

/// The process of the program that waits so long.
fn waits(seconds: &str) -> Option<i32> {
    fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        line.ends_with(format!("sleep\0{seconds}\0").as_bytes()).then_some(pid)
    })
}

/// Builds of a context in whose place a link is put while they run. Without the variable there is nothing to do.
#[test]
fn taken_away() {
    let Some(top) = std::env::var_os(MOVED) else { return };
    let top = Path::new(&top);
    let at = |name: &str| top.join(name);
    let mut cloud = Cloud::new(top);
    let_build(&mut cloud);
    let mark = format!("86{:07}.25", std::process::id());
    for (id, wanted) in [(1, "file"), (2, "one_auth")] {
        fs::create_dir(at("app")).unwrap();
        put(&at("app/file"), b"content");
        fs::copy("/bin/busybox", at("app/busybox")).unwrap();
        let script = format!(
            "FROM scratch\nCOPY busybox /bin/busybox\n\
             RUN [\"/bin/busybox\", \"sh\", \"-c\", \"sleep {mark}; true\"]\nCOPY {wanted} /got/\n"
        );
        put(&at("app/Dockerfile"), script.as_bytes());
        let built = std::thread::scope(|scope| {
            let build = scope.spawn(|| cloud.cp(id, text(&at("app"))));
            let sleeper = loop {
                match waits(&mark) {
                    Some(pid) => break Some(pid),
                    None if build.is_finished() => break None,
                    None => std::thread::park_timeout(Duration::from_millis(5)),
                }
            };
            run("mv", &[text(&at("app")), text(&at(&format!("moved-{id}")))]);
            symlink("secret", at("app")).unwrap();
            if let Some(pid) = sleeper {
                run("kill", &["-KILL", &pid.to_string()]);
            }
            (sleeper.is_some(), build.join().unwrap())
        });
        fs::remove_file(at("app")).unwrap();
        match built {
            (true, Ok(_)) if id == 1 => {}
            (true, Err(error)) if id == 2 => assert!(error.contains("one_auth"), "{error}"),
            other => panic!("{wanted}: {other:?}"),
        }
    }
    cloud.assert_clean();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test runs itself with another environment")]
fn a_context_that_is_taken_away_while_it_is_built_leads_nowhere_else() {
    let (top, _) = cloud();
    fs::create_dir(top.path().join("secret")).unwrap();
    put(&top.path().join("secret/one_auth"), b"oneadmin:the-password\n");
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["taken_away", "--exact"])
        .env(MOVED, top.path().canonicalize().unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

/// Whether a layer of the datastore has these bytes.
fn is_in_a_layer(cloud: &Cloud, bytes: &[u8]) -> bool {
    let blobs = fs::read_dir(cloud.base.join("store/blobs/sha256")).unwrap();
    blobs.map(|blob| fs::read(blob.unwrap().path()).unwrap()).any(|blob| {
        let mut plain = Vec::new();
        let gzipped = flate2::read::MultiGzDecoder::new(&*blob).read_to_end(&mut plain).is_ok();
        (if gzipped { plain } else { blob }).windows(bytes.len()).any(|part| part == bytes)
    })
}

/// A context with links to the root directory and to a secret of the front-end's.
fn with_links(top: &Path) -> std::path::PathBuf {
    put(&top.join("one_auth"), b"oneadmin:the-password\n");
    let dir = top.join("app");
    fs::create_dir_all(dir.join("links")).unwrap();
    symlink("/", dir.join("links/root")).unwrap();
    symlink(top.join("one_auth"), dir.join("links/secret")).unwrap();
    symlink(top, dir.join("links/top")).unwrap();
    fs::copy("/bin/busybox", dir.join("busybox")).unwrap();
    dir
}

/// CVE-2024-1753: up to 1.35.0 buildah follows a link in the source of a mount to the machine's own files.
#[test]
fn a_mount_from_a_stage_leads_to_nothing_of_the_front_ends() {
    let (top, mut cloud) = cloud();
    let_build(&mut cloud);
    let top = top.path().canonicalize().unwrap();
    let dir = with_links(&top);
    let secret = format!("/m{}", top.join("one_auth").display());
    let all = format!("{secret} /m/etc/shadow /m/proc/1/environ");
    for (id, source, paths) in
        [(1, "/links/root", &*all), (2, "/links/top", "/m/one_auth"), (3, "/links/secret", "/m")]
    {
        let script = format!(
            "FROM scratch AS led\nCOPY links /links\nFROM scratch\nCOPY busybox /bin/busybox\n\
             RUN --mount=type=bind,from=led,source={source},target=/m,rw \
             [\"/bin/busybox\", \"sh\", \"-c\", \"echo that ran > /seen; cat {paths} >> /seen; true\"]\n"
        );
        put(&dir.join("Dockerfile"), script.as_bytes());
        // A buildah that is mended, or has nothing to mount, says that there is nothing.
        let ended = cloud.cp(id, text(&dir));
        assert_eq!(ended.is_ok(), is_in_a_layer(&cloud, b"that ran\n"), "{ended:?}");
        for part in ["the-password", "root:*", "root:!", "CARGO"] {
            assert!(!is_in_a_layer(&cloud, part.as_bytes()), "{source}: {part}");
        }
        assert!(!format!("{ended:?}").contains("the-password"), "{ended:?}");
        cloud.rm(id, "").unwrap();
    }
    cloud.assert_clean();
}

#[test]
fn a_copy_from_a_stage_leads_to_nothing_of_the_front_ends() {
    let (top, mut cloud) = cloud();
    let_build(&mut cloud);
    let top = top.path().canonicalize().unwrap();
    let dir = with_links(&top);
    let secret = format!("/links/root{}", top.join("one_auth").display());
    for source in [&*secret, "/links/secret", "/links/top/one_auth", "/links/root/etc/shadow"] {
        for stage in [
            format!(
                "FROM scratch AS led\nCOPY links /links\nFROM scratch\nCOPY --from=led {source} /got\n"
            ),
            format!("FROM scratch\nCOPY {source} /got\n"),
            format!("FROM scratch\nADD .{source} /got\n"),
        ] {
            put(&dir.join("Dockerfile"), stage.as_bytes());
            let error = cloud.cp(1, text(&dir)).unwrap_err();
            assert!(!error.contains("the-password"), "{error}");
            assert_eq!(cloud.blobs(), 0, "{stage}");
        }
    }
    // As links they are what anybody may write.
    put(&dir.join("Dockerfile"), b"FROM scratch\nCOPY links /links\n");
    cloud.cp(1, text(&dir)).unwrap();
    assert!(!is_in_a_layer(&cloud, b"the-password"));
    cloud.assert_clean();
}

#[test]
fn what_is_built_may_not_be_more_than_was_counted() {
    let (top, mut cloud) = cloud();
    let_build(&mut cloud);
    let dir = top.path().join("app");
    fs::create_dir(&dir).unwrap();
    let noise: Vec<u8> = (0..300_000_u64)
        .flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes())
        .collect();
    put(&dir.join("noise"), &noise);
    put(&dir.join("Dockerfile"), b"FROM scratch\nCOPY noise /noise\n");
    let path = format!("dockerfile://{}", dir.display());
    let wish =
        |size: &str| Wish { id: 1, path: path.clone(), size: size.into(), ..Wish::default() };
    let error = cloud.call("cp", &wish("1")).unwrap_err();
    let want = "Cannot bring in image 1: it has more than the 1 MiB that its SIZE says; \
                create it again with a larger SIZE (oneimage create --size).\n";
    assert_eq!(error, want);
    cloud.rm(1, "").unwrap();
    assert_eq!(cloud.blobs(), 0);
    cloud.call("cp", &wish("3")).unwrap();
    cloud.assert_clean();
}

/// Directory of the test; set in the process that builds as somebody.
const TOP: &str = "OCIVISOR_TEST_BUILD_TOP";
const SOMEBODY: u32 = 65_533;
/// First of its ids of other users, as in `/etc/subuid`.
const OTHERS: u32 = 0x6000_0000;

/// Somebody's build: one that ends, and one that a kill leaves half done. Without the variable there is nothing to do.
#[test]
fn somebody() {
    let Some(top) = std::env::var_os(TOP) else { return };
    let top = Path::new(&top);
    let mut cloud = Cloud::new(top);
    let_build(&mut cloud);
    let path = format!("dockerfile://{}", top.join("app").display());
    // In a container of somebody's, with a network of its own; what he may read himself is not there.
    fs::read(top.join("running/one_auth")).unwrap();
    cloud.cp(1, &format!("dockerfile://{}", top.join("running/app").display())).unwrap();
    assert!(is_in_a_layer(&cloud, b"that ran\n0\n"));
    assert!(!is_in_a_layer(&cloud, b"the-password"));
    let works = |cloud: &Cloud| {
        let names = fs::read_dir(&cloud.base).unwrap();
        names
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".work"))
            .count()
    };
    cloud.cp(1, &path).unwrap();
    assert_eq!(works(&cloud), 0, "a build leaves nothing");
    // Of one that was killed.
    for id in [1, 2, 3] {
        let work = cloud.base.join(format!(".work-{id}"));
        fs::create_dir(&work).unwrap();
        let private = work.join("private");
        fs::create_dir(&private).unwrap();
        put(&private.join("file"), b"of another user");
        let argv = ["unshare", "chown", "-R", "100:100", text(&private)];
        run("buildah", &argv);
        run("buildah", &["unshare", "chmod", "700", text(&private)]);
        assert_eq!(private.metadata().unwrap().uid(), OTHERS + 99);
        fs::remove_dir_all(&work).unwrap_err();
    }
    cloud.cp(2, &path).unwrap();
    cloud.rm(1, "").unwrap();
    cloud.rm(3, "").unwrap();
    assert_eq!(works(&cloud), 0, "it is built again, and removed");
    cloud.rm(2, "").unwrap();
    assert_eq!(cloud.blobs(), 0);
    cloud.assert_clean();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test runs itself as somebody")]
fn files_of_other_users_that_a_build_makes_are_in_nobodys_way() {
    let top = tempfile::tempdir().unwrap();
    let at = |name: &str| top.path().join(name);
    for dir in ["datastores", "app", "home", "home/run"] {
        fs::create_dir(at(dir)).unwrap();
    }
    // As of distributions: directories that only a service's user may enter.
    let partial =
        Head { path: b"cache/partial", kind: b'5', mode: 0o700, uid: 100, ..Head::default() };
    let own = Head { path: b"cache/partial/a", mode: 0o600, uid: 100, ..Head::default() };
    let root = RawTar::new().dir("cache").head(&partial, b"").head(&own, b"a").end();
    put(&at("app/root.tar"), &root);
    let text = b"FROM scratch\nADD root.tar /\nCOPY --chown=100:65534 root.tar /private/\n";
    put(&at("app/Dockerfile"), text);
    fs::create_dir(at("running")).unwrap();
    let running = with_links(&at("running"));
    let script = format!(
        "FROM scratch AS led\nCOPY links /links\nFROM scratch\nCOPY busybox /bin/busybox\n\
         RUN --mount=type=bind,from=led,source=/links/root,target=/m [\"/bin/busybox\", \"sh\", \"-c\", \
         \"echo that ran > /seen; id -u >> /seen; cat /m{}/one_auth >> /seen; true\"]\n",
        at("running").canonicalize().unwrap().display()
    );
    put(&running.join("Dockerfile"), script.as_bytes());
    for (dir, mode) in [("", 0o755), ("home", 0o700), ("home/run", 0o700)] {
        fs::set_permissions(at(dir), fs::Permissions::from_mode(mode)).unwrap();
    }
    for dir in ["datastores", "home", "home/run"] {
        chown(at(dir), Some(SOMEBODY), Some(SOMEBODY)).unwrap();
    }
    // Somebody is known, and has ids of other users, in this process's view of /etc alone.
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let home = at("home").display().to_string();
    put(
        &at("passwd"),
        format!("{passwd}ocvsomebody:x:{SOMEBODY}:{SOMEBODY}::{home}:/bin/sh\n").as_bytes(),
    );
    put(&at("ids"), format!("ocvsomebody:{OTHERS}:65536\n").as_bytes());
    for name in ["passwd", "ids"] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let script = r#"set -e
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/ids" /etc/subuid
mount --bind "$1/ids" /etc/subgid
mknod --mode=666 "$1/tun" c 10 200
mount --bind "$1/tun" /dev/net/tun
exec setpriv --reuid="$2" --regid="$2" --clear-groups "$3" somebody --exact"#;
    let exe = std::env::current_exe().unwrap();
    let child = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .args([top.path(), Path::new(&SOMEBODY.to_string()), &exe])
        .env(TOP, top.path())
        .env("HOME", &home)
        .env("XDG_RUNTIME_DIR", at("home/run"))
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}
