//! Letting go of disks, and what of them is still there.

use std::fs;
use std::time::{Duration, Instant};

use ocivisor_core::error::Result;
use ocivisor_core::ids::VmId;
use rustix::fs::syncfs;

use super::super::claim::Attachment;
use super::super::{HostStorage, PATIENCE, mounts, open_dir};
use super::record::{Attached, Attachments};
use super::{Places, hold};
use crate::fs::{drop_file, io_error};

/// What is waited for servers of disks before they are killed: they may have much to write back.
const WRITING_BACK: Duration = Duration::from_secs(900);

impl HostStorage {
    /// Unmounts and detaches all disks of a VM beside its root disk.
    pub(in super::super) fn detach_disks(&self, id: &VmId) -> Result<()> {
        self.detach_within(id, WRITING_BACK)
    }

    /// The same; servers of disks that take longer are killed.
    pub(super) fn detach_within(&self, id: &VmId, patience: Duration) -> Result<()> {
        let vm = self.places(id);
        let places = Places::of(&vm.dir);
        if !places.exist() {
            return self.end_servers(id, patience);
        }
        let _bounded = self.bounded(id, patience);
        let attached = Attachments::load(&places.record).map(|all| all.disks).unwrap_or_default();
        // What such a one had not written is lost, and is not there to be waited for.
        let lost: Vec<&Attached> = attached.iter().filter(|disk| disk.is_lost()).collect();
        lost.iter().for_each(|disk| {
            tracing::error!(vm = %id, disk = %disk.path.display(), "its server died; what was not written is lost");
        });
        let mut synced = Ok(());
        for mount in mounts::below(&places.mounts)? {
            // An error of writing back is seen here; unmounting would swallow it.
            let done = open_dir(&mount.point).and_then(|dir| {
                syncfs(dir)
                    .map_err(|e| io_error("write back disk mounted at", &mount.point, &e.into()))
            });
            let is_lost = |disk: &&Attached| mount.point.ends_with(disk.number.to_string());
            if !lost.iter().any(is_lost) {
                synced = synced.and(done);
            }
        }
        for disk in &attached {
            let done = disk.let_go();
            synced = synced.and(if disk.is_lost() { Ok(()) } else { done });
        }
        // On a slow disk all of that takes long; what comes now does not.
        let deadline = Instant::now() + PATIENCE;
        mounts::unmount_below(&places.mounts, deadline)?;
        mounts::unmount_below(&places.nodes, deadline)?;
        // One that is stuck is no reason to keep the others; but its number must not be forgotten.
        let mut gone = Ok(());
        for disk in &attached {
            synced = synced.and(disk.write_back());
            gone = gone.and(detach(disk, &places, deadline));
        }
        gone?;
        self.end_servers(id, patience)?;
        drop_file(&places.record)?;
        for dir in [&places.mounts, &places.nodes] {
            mounts::remove_mount_points(dir).map_err(|e| io_error("remove", dir, &e))?;
        }
        // What is left belongs to others.
        let _ = fs::remove_dir(&vm.dir);
        synced
    }

    /// Whether a VM's disk has this loop device, or is held by it.
    pub(super) fn uses(&self, number: u32) -> bool {
        self.vms_with_run_dir().iter().any(|id| {
            let vm = self.places(id);
            let disks = Attachments::load(&Places::of(&vm.dir).record).map(|all| all.disks);
            let root = Attachment::load(&vm).filter(|root| root.loop_number == Some(number));
            disks.unwrap_or_default().iter().any(|disk| disk.uses(number))
                || root.is_some_and(|root| root.holds(&vm))
        })
    }

    /// Whether a VM has a disk attached beside its root disk, or may have.
    pub(in super::super) fn has_disks(&self, id: &VmId) -> bool {
        let vm = self.places(id);
        let places = Places::of(&vm.dir);
        // Written before there is anything else.
        places.exist()
            && Attachments::load(&places.record)
                .is_some_and(|all| all.disks.iter().any(Attached::is_attached))
    }
}

/// Lets go of a disk that nobody is to use any more.
fn detach(disk: &Attached, places: &Places, deadline: Instant) -> Result<()> {
    if let Some(number) = disk.holder {
        hold::release(number, disk.block_device(), deadline)?;
    }
    let gone = mounts::until(deadline, || Ok(!disk.may_be_bound()));
    if gone.map_err(|e| io_error("detach disk", &disk.path, &e))? {
        return Ok(());
    }
    let what = format!("disk {}", disk.path.display());
    Err(mounts::busy(&what, &places.mounts, Some(&disk.block_device().to_string())))
}
