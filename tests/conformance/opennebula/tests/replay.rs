//! The stand-in does what a real oned did: the same calls in the same order with the same words, and the same states.

use std::path::Path;

use ocivisor_conformance::Replay;

#[track_caller]
fn replays(names: &[&str]) {
    let program = Path::new(env!("CARGO_BIN_EXE_ocivisor-conformance"));
    let mut replay = Replay::with_infrastructure(program);
    names.iter().for_each(|name| replay.play(name));
    assert!(replay.differences.is_empty(), "{}", replay.differences.join("\n"));
}

macro_rules! scenarios {
    ($($test:ident: $($name:literal)+),* $(,)?) => {
        $(#[test]
        fn $test() {
            replays(&[$($name),+]);
        })*
    };
}

scenarios! {
    a_vm_is_placed_reboots_and_ends: "03-deploy-by-scheduler",
    power: "05-power",
    ends_from_every_state: "06-terminate-from-states",
    moves: "07-migrate",
    snapshots_of_vms: "08-system-snapshots",
    snapshots_of_disks_and_images: "09-disk-snapshots",
    disks_are_plugged_resized_and_saved: "10-disk-hotplug",
    nics_are_plugged_while_it_runs: "11-nic-hotplug",
    capacity_and_context_change_while_it_runs: "12-resize-updateconf-exec",
    backups: "13-backup",
    commands_are_run: "14-exec",
    deploys_that_fail: "20-fail-deploy",
    ends_that_fail: "21-fail-stop-save-restore",
    moves_that_fail: "22-fail-migrate",
    images_that_fail: "24-fail-images",
    hosts: "25-hosts",
    states_that_hosts_report: "26-monitor-driven-states",
    datastores_that_are_shared_or_mixed: "28-datastores-shared-and-mixed",
    snapshots_that_are_kept: "29-keep-snapshots",
    many_disks_and_files: "30-two-datastores-full",
    states_that_hosts_report_later: "32-monitor-driven-states-after-30s",
    nics_are_plugged_while_it_is_off: "33-cold-nic-attach-and-exec",
    odd_images: "24-fail-images" "35-odd-image-sources",
    a_host_that_cannot_be_monitored: "36-host-probe-failure",
}
