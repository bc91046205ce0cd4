//! What breaks off in the middle, really: full disks, registries, hosts and daemons that go away. What was asked for fails
//! with one sentence, leaves nothing that is in the way, and is done by a retry.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests look at what is on hosts"
)]

use std::path::{Path, PathBuf};

use ocivisor_conformance::Cloud;
use ocivisor_conformance::model::ImageState;
use ocivisor_tests::tool;

fn cloud() -> Cloud {
    Cloud::start(Path::new(env!("CARGO_BIN_EXE_ocivisor-conformance")))
}

/// The error of a transfer or action that failed: one sentence.
#[track_caller]
fn why(cloud: &Cloud, vm: u32) -> String {
    let error = cloud.state(vm).1.unwrap();
    assert_eq!(error.matches(". ").count(), 0, "one sentence: {error}");
    assert!(error.trim_end_matches("ExitCode: 1").ends_with('.'), "{error}");
    error
}

/// A small file system in the place of a directory, until this is gone.
struct Small(PathBuf);

impl Small {
    fn on(dir: &Path, size: &str) -> Self {
        let options = format!("size={size},mode=777");
        tool(&["mount", "-t", "tmpfs", "-o", &options, "none", &dir.display().to_string()]);
        Self(dir.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _gone = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_host_without_room_is_told_and_a_retry_makes_the_disk_elsewhere() {
    let cloud = cloud();
    let before = cloud.holdings();
    let node = cloud.node("host01");
    let store = cloud.oned.drivers.place.root().join("var/lib/one/datastores/101");
    let store = store.display().to_string();
    node.run(&["mount", "-t", "tmpfs", "-o", "size=24k,mode=777", "none", &store]);
    cloud.ask("onetemplate instantiate base --name full --hold");
    cloud.leads("onevm deploy 0 host01 101", 0, "PROLOGFAILURE");
    let error = why(&cloud, 0);
    assert!(error.contains("o space left") || error.contains("room"), "{error}");
    // Not of the image, nor of the VM.
    let left = node.run(&[
        "find",
        &store,
        "-name",
        "*.coming",
        "-o",
        "-path",
        "*/0/*",
        "-o",
        "-path",
        "*/sha256/*",
    ]);
    assert_eq!(left, "", "nothing of it takes the room that is left");
    node.run(&["umount", &store]);
    cloud.leads("onevm recover --retry 0", 0, "RUNNING");
    cloud.leads("onevm terminate --hard 0", 0, "DONE");
    assert_eq!(cloud.holdings(), before);
}

/// 6.10 shows users all that a failed script wrote, 7 the sentence alone.
#[test]
fn the_sentence_is_what_users_see_first_in_610_too() {
    let cloud = cloud();
    let text = "NAME=none\nCPU=1\nMEMORY=64\nDISK=[IMAGE=busybox]\nOCI=[ENTRYPOINT=\"/none\"]";
    cloud.oned.command("onevm create --hold", text).unwrap();
    cloud.leads("onevm deploy 0 host01 101", 0, "BOOTFAILURE");
    let error = why(&cloud, 0);
    cloud.become_version("6.10.0");
    cloud.leads("onevm recover --retry 0", 0, "BOOTFAILURE");
    let all = cloud.state(0).1.unwrap();
    let sentence = error.trim_end_matches("ExitCode: 1");
    assert!(all.starts_with(&format!("{sentence} INFO: 0 ")), "{error}\n{all}");
    assert!(all.contains("`ocivisor why one-0`"), "nothing is held back for ever: {all}");
    cloud.leads("onevm recover --delete 0", 0, "DONE");
}

#[test]
fn an_image_datastore_without_room_keeps_nothing_of_what_did_not_fit() {
    let cloud = cloud();
    let root = cloud.oned.drivers.place.root().join("var/lib/one/datastores/102");
    std::fs::create_dir(&root).unwrap();
    let _small = Small::on(&root, "1m");
    cloud.oned.command("onedatastore create", &cloud.store_template("small")).unwrap();
    let create = |name: &str, path: String| {
        let text = format!("NAME={name}\nPATH=\"{path}\"\nSIZE=1");
        // It fits by what the datastore's driver said last.
        cloud.oned.model().stores.get_mut(&102).unwrap().space = [1 << 20, 1 << 20, 0];
        cloud.oned.command("oneimage create -d small", &text).unwrap();
        let model = cloud.oned.model();
        let image = model.image(name).unwrap();
        (image.state.0, image.error.clone().unwrap_or_default())
    };
    let (state, error) =
        create("big", format!("oci-archive:{}", cloud.upload("busybox.oci").display()));
    assert_eq!(state, ImageState::Error, "{error}");
    assert!(error.starts_with("Error copying image in the datastore: "), "{error}");
    cloud.ask("oneimage delete big");
    let size = tool(&["du", "-sk", &root.display().to_string()]);
    let kib: u32 = size.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 100, "{size}");
}

#[test]
fn a_registry_that_goes_away_fails_the_image_and_nothing_is_left_of_it() {
    let cloud = cloud();
    let mut registry = cloud.open_registry(&[]);
    cloud.archive("app", &[("app", 24_000_000)]);
    registry.push(&cloud.upload("app.layout"), "team/app:1");
    let path = format!("docker://{}/team/app:1", registry.host());
    let before = cloud.holdings();
    // It answers what the image is, and is gone before the layers are.
    let blobs = cloud.oned.drivers.place.root().join("registry/data");
    let hidden = blobs.with_extension("away");
    let store = cloud.oned.drivers.place.root().join("var/lib/one/datastores/100/store");
    std::thread::scope(|scope| {
        let create = scope.spawn(|| {
            let text = format!("NAME=app\nPATH=\"{path}\"");
            cloud.oned.command("oneimage create -d images", &text)
        });
        let parts = || std::fs::read_dir(store.join("partial")).map_or(0, Iterator::count);
        let begun = || if parts() > 0 || create.is_finished() { Ok(()) } else { Err("none") };
        ocivisor_tests::wait_for("a blob on its way", begun);
        registry.down();
        std::fs::rename(&blobs, &hidden).unwrap();
        let _said = create.join().unwrap();
    });
    let state = cloud.oned.model().image("app").map(|image| (image.state.0, image.error.clone()));
    let (state, error) = state.expect("its size was known before the registry went");
    std::fs::rename(&hidden, &blobs).unwrap();
    registry.up();
    let error = error.unwrap_or_default();
    assert!(state == ImageState::Error && error.contains(&registry.host()), "{state:?} {error}");
    cloud.ask("oneimage delete app");
    // What had come of a blob is kept for a day: the next try goes on with it.
    cloud.bring("app", &path);
    cloud.ask("oneimage delete app");
    let mut after = cloud.holdings();
    after.1.retain(|file| !file.ends_with("/store/partial"));
    assert_eq!(after, before, "nothing of it is kept");
}

#[test]
fn hosts_that_go_away_in_the_middle_leave_disks_whole_and_retries_finish() {
    let cloud = cloud();
    let _registry = cloud.add_images();
    let before = cloud.holdings();
    let host = |name: &str| cloud.node(name);
    let inside =
        |on: &str, words: &[&str]| host(on).cli(&[&["exec", "one-0", "--"], words].concat());
    cloud.ask("onetemplate instantiate db --name far --hold");
    // While layers go, and then while the data disk does.
    for bytes in [700_000, 20_000] {
        host("host01").cut_after(Some(bytes));
        let command =
            if bytes > 100_000 { "onevm deploy 0 host01 101" } else { "onevm recover --retry 0" };
        cloud.leads(command, 0, "PROLOGFAILURE");
        assert!(why(&cloud, 0).contains("host01"), "{:?}", cloud.state(0).1);
    }
    host("host01").cut_after(None);
    cloud.leads("onevm recover --retry 0", 0, "RUNNING");
    inside(
        "host01",
        &["sh", "-c", "echo kept > /root/file; echo too > /media/one-disk.1/file; sync"],
    );
    // On the way to the front-end, and from there to another host; from host to host.
    host("host01").cut_after(Some(200_000));
    cloud.leads("onevm undeploy --hard 0", 0, "EPILOGUNDEPLOYFAILURE");
    host("host01").cut_after(None);
    cloud.leads("onevm recover --retry 0", 0, "UNDEPLOYED");
    cloud.ask("onevm resume 0");
    host("host02").cut_after(Some(200_000));
    cloud.leads("onevm deploy 0 host02 101", 0, "PROLOGUNDEPLOYFAILURE");
    host("host02").cut_after(None);
    cloud.leads("onevm recover --retry 0", 0, "RUNNING");
    for (source, target) in [("host02", "host01"), ("host01", "host02")] {
        // Once the one that gives is lost, once the one that takes.
        let lost = host("host01");
        lost.cut_after(Some(300_000));
        cloud.ask(&format!("onevm migrate --poff-hard 0 {target}"));
        let (state, error) = cloud.state(0);
        assert!(state.ends_with("FAILURE"), "from {source}: {state} {error:?}");
        lost.cut_after(None);
        cloud.leads("onevm recover --retry 0", 0, "RUNNING");
        assert_eq!(inside(target, &["cat", "/root/file", "/media/one-disk.1/file"]), "kept\ntoo\n");
    }
    cloud.leads("onevm terminate --hard 0", 0, "DONE");
    assert_eq!(cloud.holdings(), before);
}

#[test]
fn a_daemon_that_is_killed_while_it_deploys_finishes_or_undoes_it() {
    let cloud = cloud();
    let before = cloud.holdings();
    for vm in 0..4 {
        cloud.ask(&format!("onetemplate instantiate base --name k{vm} --hold"));
        let node = &cloud.nodes[0];
        let record = node.dir().join(format!("s/vms/one-{vm}/vm.json"));
        std::thread::scope(|scope| {
            let deploy =
                scope.spawn(|| cloud.oned.command(&format!("onevm deploy {vm} host01 101"), ""));
            let begun = || if record.exists() { Ok(()) } else { Err("no record") };
            ocivisor_tests::wait_for("the deploy", begun);
            // A bit later each time.
            let pause = std::time::Duration::from_millis(30 * u64::from(vm));
            std::thread::park_timeout(pause);
            node.kill_daemon();
            node.start_daemon();
            deploy.join().unwrap().unwrap();
        });
        if cloud.state(vm).0 != "RUNNING" {
            why(&cloud, vm);
            cloud.leads(&format!("onevm recover --retry {vm}"), vm, "RUNNING");
        }
        let name = format!("one-{vm}");
        assert_eq!(
            cloud.node("host01").cli(&["exec", &name, "--", "hostname"]),
            format!("k{vm}\n")
        );
        cloud.leads(&format!("onevm terminate --hard {vm}"), vm, "DONE");
    }
    assert_eq!(cloud.holdings(), before);
}

/// The boot is quicker than the delete: the guest runs, and oned, which never heard of it, asks nobody to end it.
#[test]
fn a_guest_that_won_against_the_delete_of_its_vm_is_ended_with_it() {
    let cloud = cloud();
    let before = cloud.holdings();
    let node = cloud.node("host01");
    // The step behind the deploy takes until it is let go: till then oned does not know that there is a guest.
    let post = cloud.oned.drivers.place.host("host01").join("one/vnm/bridge/post");
    let (held, reached) = (node.dir().join("home/held"), node.dir().join("home/reached"));
    let waits = format!("while [ -e {} ]; do sleep 0.05; done", held.display());
    let script = format!("#!/bin/sh\ncat > /dev/null\n: > {}\n{waits}\n", reached.display());
    std::fs::write(&post, script).unwrap();
    std::fs::write(&held, "").unwrap();
    for (vm, how, end) in [(0, "--delete", "DONE"), (1, "--recreate", "PENDING")] {
        cloud.ask(&format!("onetemplate instantiate base --name won{vm} --hold"));
        std::thread::scope(|scope| {
            let deploy = scope.spawn(|| cloud.ask(&format!("onevm deploy {vm} host01 101")));
            let runs = || if reached.exists() { Ok(()) } else { Err("no guest") };
            ocivisor_tests::wait_for("the guest", runs);
            assert_ne!(node.holdings().processes, Vec::<u32>::new());
            cloud.ask(&format!("onevm recover {how} {vm}"));
            assert_eq!(cloud.state(vm).0, end);
            assert_eq!(node.holdings(), before.0[0], "nothing runs on, and nothing is left");
            deploy.join().unwrap();
        });
        std::fs::remove_file(&reached).unwrap();
    }
    std::fs::remove_file(&held).unwrap();
}
