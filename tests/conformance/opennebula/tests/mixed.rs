//! Our images on system datastores of drivers that know nothing of containers (`TM_MAD_SYSTEM`): theirs are volatile disks,
//! contexts and directories, ours are disks of images.

#![allow(clippy::unwrap_used, reason = "tests look at what is on hosts")]

use std::path::Path;

use ocivisor_conformance::Cloud;

/// A cloud with a persistent data disk, and a template of all kinds of disks.
fn cloud() -> Cloud {
    let cloud = Cloud::start(Path::new(env!("CARGO_BIN_EXE_ocivisor-conformance")));
    for (name, tm) in [("102", "ssh"), ("103", "shared")] {
        let text = format!("NAME={tm}\nTYPE=SYSTEM_DS\nTM_MAD={tm}");
        assert_eq!(
            cloud.oned.command("onedatastore create", &text).unwrap(),
            format!("ID: {name}")
        );
    }
    let data = "NAME=data\nTYPE=DATABLOCK\nSIZE=16\nFS=ext4\nFORMAT=raw\nPERSISTENT=YES";
    cloud.oned.command("oneimage create -d images", data).unwrap();
    cloud.add_template(
        "all",
        "DISK=[IMAGE=busybox]\nDISK=[IMAGE=data]\nDISK=[TYPE=fs,SIZE=16,FORMAT=raw,FS=ext4]\n\
         DISK=[TYPE=swap,SIZE=16]",
    );
    cloud
}

/// Transfer scripts that were called since this was last asked: driver and command.
fn transfers(cloud: &Cloud) -> Vec<String> {
    let calls = cloud.oned.drivers.take_calls();
    let scripts = calls.iter().filter_map(|call| call.script.split_once("/remotes/tm/"));
    scripts.map(|(_, name)| name.to_owned()).collect()
}

#[track_caller]
fn lives(store: &str, tm: &str) {
    let cloud = cloud();
    let before = cloud.holdings();
    let asks = |command: &str, state: &str| {
        let _earlier = cloud.oned.drivers.take_calls();
        cloud.ask(command);
        assert_eq!(cloud.state(0), (state.to_owned(), None), "{command}");
        transfers(&cloud)
    };
    let inside = |host: &str, script: &str| {
        cloud.node(host).cli(&["exec", "one-0", "--", "sh", "-c", script])
    };
    let own = |command: &str| format!("ocivisor/{command}");
    let other = |command: &str| format!("{tm}/{command}");
    cloud.ask("onetemplate instantiate all --name mixed --hold");
    assert_eq!(
        asks(&format!("onevm deploy 0 host01 {store}"), "RUNNING"),
        [own("clone"), own("ln"), other("mkimage"), other("mkswap"), other("context")]
    );
    let dirs = "/root /media/one-disk.1 /media/one-disk.2";
    inside("host01", &format!("for dir in {dirs}; do echo $dir > $dir/mine; done; sync"));
    let kept = |host: &str| {
        let seen = inside(host, &format!("hostname; for dir in {dirs}; do cat $dir/mine; done"));
        assert_eq!(seen, format!("mixed\n{}\n", dirs.replace(' ', "\n")));
    };
    assert_eq!(asks("onevm poweroff 0", "POWEROFF"), [""; 0]);
    assert_eq!(asks("onevm resume 0", "RUNNING"), [other("context")]);
    kept("host01");
    let moved = [own("mv"), own("mv"), other("mv"), other("mv"), other("mv")];
    assert_eq!(asks("onevm undeploy 0", "UNDEPLOYED"), moved);
    if tm == "ssh" {
        assert_eq!(cloud.node("host01").holdings(), before.0[0], "nothing is left where it was");
    }
    cloud.ask("onevm resume 0");
    let back = [&moved[..], &[other("context")]].concat();
    assert_eq!(asks(&format!("onevm deploy 0 host02 {store}"), "RUNNING"), back);
    kept("host02");
    assert_eq!(asks("onevm migrate --poff 0 host01", "RUNNING"), back);
    kept("host01");
    let ended = [own("delete"), own("mvds"), other("delete"), other("delete"), other("delete")];
    assert_eq!(asks("onevm terminate 0", "DONE"), ended);
    let mut after = cloud.holdings();
    // The front-end's directory stays, and that an image was written back is noted beside it.
    after.1.retain(|file| !file.ends_with("/datastores/102") && !file.ends_with(".written"));
    assert_eq!(after, before);
    // What was written to the persistent disk is in its image.
    cloud.add_template("again", "DISK=[IMAGE=busybox]\nDISK=[IMAGE=data]");
    cloud.ask("onetemplate instantiate again --name again --hold");
    cloud.leads("onevm deploy 1 host02 101", 1, "RUNNING");
    let mine = ["exec", "one-1", "--", "cat", "/media/one-disk.1/mine"];
    assert_eq!(cloud.node("host02").cli(&mine), "/media/one-disk.1\n");
    cloud.leads("onevm terminate 1", 1, "DONE");
}

#[test]
fn vms_live_in_datastores_of_the_driver_ssh() {
    lives("102", "ssh");
}

#[test]
fn vms_live_in_datastores_of_the_driver_shared() {
    lives("103", "shared");
}
