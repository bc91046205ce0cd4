//! What is changed of a VM: disks, snapshots, NICs, capacity, context; commands in it.

use super::super::fault::Fault;
use super::{Known, Play, at};
use crate::model::ImageState;

pub(super) const PLAYS: &[Play] = &[
    Play {
        name: "08-system-snapshots",
        turns: &[
            at(3).refused("snapshot_create"),
            at(4).knows(Known::Snapshot("0", "snap-0")).refused("snapshot_create"),
            at(5).refused("snapshot_revert"),
            at(6).knows(Known::Snapshot("1", "snap-1")).refused("snapshot_delete"),
            at(7).refused("save").then(&["onevm poweroff 8"]),
            at(8).instead(&["onevm resume 8"]),
            at(9).refused("snapshot_create"),
            at(12).refused("snapshot_create"),
            at(13)
                .refused("premigrate")
                .undone("failmigrate")
                .then(&["onevm migrate --poff 8 host02"]),
        ],
    },
    Play {
        name: "09-disk-snapshots",
        turns: &[
            at(3).refused("snap_create_live"),
            at(5).knows(Known::DiskSnapshot(0)).refused("snap_delete"),
            at(7).refused("snap_create").off(),
            at(8).refused("snap_create").off(),
            at(9).knows(Known::DiskSnapshot(1)).refused("snap_revert").off(),
            at(10).knows(Known::DiskSnapshot(2)).refused("snap_delete").off(),
            at(13).refused("save").then(&["onevm poweroff 9"]),
            at(14).refused("snap_create").off(),
            // Of a suspended one oned refuses it itself.
            at(15).instead(&[]),
            at(16).instead(&["onevm resume 9"]),
            at(17).refused("cpds").then(&["oneimage delete saved-snap"]),
            at(22).refused("snap_create").off(),
            at(23).refused("snap_create").off(),
            at(25).knows(Known::ImageSnapshot(0)).refused("snap_revert").image(ImageState::Ready),
            at(26).knows(Known::ImageSnapshot(1)).refused("snap_delete").image(ImageState::Ready),
            at(27).knows(Known::ImageSnapshot(0)).refused("snap_flatten").image(ImageState::Ready),
        ],
    },
    Play {
        name: "10-disk-hotplug",
        turns: &[
            at(3).refused("attach_disk").taken_back("delete"),
            at(4).refused("attach_disk").taken_back("mvds"),
            at(5).refused("attach_disk").taken_back("delete"),
            at(6).refused("resize"),
            // None of those was attached: the same of one that was there at boot.
            at(7)
                .asked(
                    "onevm disk-resize 11 1 700",
                    &["frontend /var/lib/one/remotes/tm/oci/resize \
                       host01:/var/lib/one//datastores/101/11/disk.1 700 11 101"],
                )
                .refused("resize"),
            at(8)
                .asked(
                    "onevm disk-detach 11 1",
                    &["host01 /var/tmp/one/vmm/oci/detach_disk one-11 \
                       /var/lib/one//datastores/101/11/disk.1 sdc 2 11 host01"],
                )
                .refused("detach_disk"),
            at(9).instead(&[]),
            at(10).instead(&[]),
            // Not of a disk that a guest runs on. What was to become an image can go.
            at(11).refused("cpds").then(&["oneimage delete saved-live"]),
            // What is attached to a VM that is off is there when it boots.
            at(14).then(&["onevm resume 11", "onevm poweroff 11"]),
        ],
    },
    Play { name: "11-nic-hotplug", turns: &[] },
    Play { name: "12-resize-updateconf-exec", turns: &[] },
    Play {
        name: "13-backup",
        turns: &[
            at(3).refused("prebackup_live").undone("postbackup_live"),
            at(5).refused("prebackup").undone("postbackup").off(),
            at(6).refused("restore").off(),
            at(9).refused("prebackup_live").undone("postbackup_live"),
            at(10).refused("prebackup_live").undone("postbackup_live"),
            at(11).refused("prebackup_live").undone("postbackup_live"),
            // There is none to be cancelled, and nothing of one to be removed.
            at(12).instead(&[]),
            at(13).instead(&["oneimage delete 16", "oneimage delete 17"]),
        ],
    },
    Play { name: "14-exec", turns: &[at(4).breaks(Fault::DaemonGone)] },
    Play {
        name: "29-keep-snapshots",
        turns: &[
            at(4).refused("snapshot_create"),
            at(5).refused("save").then(&["onevm poweroff 39"]),
            at(6).instead(&["onevm resume 39"]),
            at(9).refused("save").then(&["onevm undeploy 39"]),
            at(11).instead(&["onevm deploy 39 host03 101"]),
            at(12).knows(Known::Snapshot("0", "snap-0")).refused("snapshot_revert"),
        ],
    },
    Play { name: "33-cold-nic-attach-and-exec", turns: &[at(9).output("hello input")] },
];
