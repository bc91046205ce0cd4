//! Recorded scenarios, played with our drivers in the place of the recorder's scripts: real daemons, hosts, guests, faults.

use std::path::Path;

use ocivisor_conformance::Live;

#[track_caller]
fn plays(names: &[&str]) {
    let mut live = Live::new(Path::new(env!("CARGO_BIN_EXE_ocivisor-conformance")));
    live.play_all(names);
    live.end();
}

#[test]
fn vms_are_placed_powered_moved_and_ended() {
    plays(&["03-deploy-by-scheduler", "05-power", "06-terminate-from-states", "07-migrate"]);
}

#[test]
fn disks_are_plugged_and_copied() {
    plays(&["10-disk-hotplug"]);
}

#[test]
fn snapshots_are_refused_and_touch_nothing() {
    plays(&["08-system-snapshots", "09-disk-snapshots", "29-keep-snapshots"]);
}

#[test]
fn backups_are_refused_and_touch_nothing() {
    plays(&["13-backup"]);
}

#[test]
fn vms_are_changed_while_they_run() {
    plays(&[
        "11-nic-hotplug",
        "12-resize-updateconf-exec",
        "14-exec",
        "33-cold-nic-attach-and-exec",
    ]);
}

#[test]
fn deploys_and_images_fail_for_real_reasons() {
    plays(&["20-fail-deploy", "24-fail-images", "35-odd-image-sources"]);
}

#[test]
fn ends_and_moves_fail_for_real_reasons() {
    plays(&["21-fail-stop-save-restore", "22-fail-migrate"]);
}

#[test]
fn hosts_tell_what_becomes_of_guests() {
    plays(&[
        "25-hosts",
        "26-monitor-driven-states",
        "32-monitor-driven-states-after-30s",
        "36-host-probe-failure",
    ]);
}

#[test]
fn disks_are_in_datastores_that_are_shared_or_mixed() {
    plays(&["28-datastores-shared-and-mixed", "30-two-datastores-full"]);
}
