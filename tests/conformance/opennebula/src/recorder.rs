//! A driver tree whose scripts do nothing: they tell what they were called with and answer as it was recorded.

use std::path::Path;

use crate::place::{Place, write_script};

/// Scripts of each directory.
const TREE: [(&str, &[&str]); 8] = [
    (
        "vmm/oci",
        &[
            "attach_disk",
            "attach_nic",
            "cancel",
            "deploy",
            "detach_disk",
            "detach_nic",
            "exec",
            "exec_cancel",
            "migrate",
            "prereconfigure",
            "reboot",
            "reconfigure",
            "reset",
            "resize",
            "resize_disk",
            "restore",
            "save",
            "shutdown",
            "snapshot_create",
            "snapshot_delete",
            "snapshot_revert",
        ],
    ),
    ("vnm/bridge", &["clean", "post", "pre", "update_nic", "update_sg", "vnet_create"]),
    ("tm/oci", &TRANSFER),
    ("tm/ocis", &TRANSFER),
    (
        "datastore/oci",
        &[
            "backup",
            "backup_cancel",
            "clone",
            "cp",
            "mkfs",
            "monitor",
            "rm",
            "snap_delete",
            "snap_flatten",
            "snap_revert",
            "stat",
        ],
    ),
    ("im", &["run_monitord_client", "stop_monitord_client"]),
    ("im/oci.d", &[]),
    ("im/oci-probes.d", &[]),
];
const TRANSFER: [&str; 23] = [
    "clone",
    "context",
    "cpds",
    "delete",
    "failmigrate",
    "ln",
    "mkimage",
    "mkswap",
    "monitor",
    "mv",
    "mvds",
    "postbackup",
    "postbackup_live",
    "postmigrate",
    "prebackup",
    "prebackup_live",
    "premigrate",
    "resize",
    "restore",
    "snap_create",
    "snap_create_live",
    "snap_delete",
    "snap_revert",
];

/// Writes the tree to where the front-end's drivers are.
///
/// # Panics
/// It cannot be written.
pub fn write(place: &Place, program: &Path) {
    for (dir, scripts) in TREE {
        let dir = place.remotes().join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        for script in scripts {
            let (program, root) = (program.display(), place.root().display());
            let text = format!("#!/bin/sh\nexec {program} record {root} \"$0\" \"$@\"\n");
            write_script(&dir.join(script), &text);
        }
    }
}
