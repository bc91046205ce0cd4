//! Snapshots: of whole VMs, of disks, of images.

use super::actions::unavailable;
use super::{Oned, Reply, transfer};
use crate::drivers::{Answer, Job};
use crate::model::{Action, Snapshots};
use crate::state::{Lcm, State, shown};
use crate::template::{Vector, vector_of};

/// What is done with a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Revert,
    Delete,
}

impl Oned {
    /// Whether the VM's driver keeps snapshots of the whole VM when its guest ends.
    pub(super) fn keeps_snapshots(&self, id: u32) -> bool {
        let model = self.model();
        let place = model.vms[&id].history.last();
        place.is_some_and(|place| model.keepers.contains(&place.vm_mad))
    }

    /// A VM that runs is busy with snapshots of it.
    fn snapshot_begins(&self, id: u32, action: &str) -> Reply {
        self.with(id, |vm, _| match vm.lcm {
            Lcm::Running => {
                vm.go(State::Active, Lcm::HotplugSnapshot);
                Ok(String::new())
            }
            _ => Err(unavailable(action, vm, "one.vm.action")),
        })
    }

    /// `onevm snapshot-create`.
    ///
    /// # Errors
    /// The VM does not run.
    pub fn create_snapshot(&self, id: u32, name: &str) -> Reply {
        self.snapshot_begins(id, "snapshot-create")?;
        let number = self.with(id, |vm, now| {
            let ids = vm.template.vectors("SNAPSHOT");
            let ids = ids.filter_map(|snapshot| snapshot["SNAPSHOT_ID"].parse::<u32>().ok());
            let number = ids.max().map_or(0, |most| most + 1).to_string();
            let size = vm.template.text("MEMORY").unwrap_or_default().to_owned();
            let snapshot = vector_of(&[
                ("ACTION", "CREATE"),
                ("ACTIVE", "YES"),
                ("HYPERVISOR_ID", ""),
                ("NAME", name),
                ("SNAPSHOT_ID", &number),
                ("SYSTEM_DISK_SIZE", &size),
                ("TIME", &now.to_string()),
            ]);
            vm.template.add_vector("SNAPSHOT", snapshot);
            number
        });
        let job = Job { word: number.clone(), ..self.plain_job(id) };
        let answer = self.drivers.act("SNAPSHOTCREATE", &job);
        self.with(id, |vm, _| match &answer {
            Answer::Success(text) => {
                let named = text.split_whitespace().next().unwrap_or_default().to_owned();
                let found = vm.template.vectors_mut("SNAPSHOT");
                for snapshot in found.filter(|snapshot| snapshot["SNAPSHOT_ID"] == number) {
                    snapshot.insert("HYPERVISOR_ID".into(), named.clone());
                    settle(snapshot);
                }
            }
            _ => vm.template.drop_vectors("SNAPSHOT", |found| found["SNAPSHOT_ID"] == number),
        });
        self.back_to_running(id, "SNAPSHOTCREATE", &answer);
        Ok(String::new())
    }

    /// `onevm snapshot-revert`.
    ///
    /// # Errors
    /// The VM does not run, or there is no such snapshot.
    pub fn revert_snapshot(&self, id: u32, number: &str) -> Reply {
        self.use_snapshot(id, number, Act::Revert)
    }

    /// `onevm snapshot-delete`.
    ///
    /// # Errors
    /// The VM does not run, or there is no such snapshot.
    pub fn delete_snapshot(&self, id: u32, number: &str) -> Reply {
        self.use_snapshot(id, number, Act::Delete)
    }

    fn use_snapshot(&self, id: u32, number: &str, act: Act) -> Reply {
        let (action, word, mark) = match act {
            Act::Revert => ("snapshot-revert", "SNAPSHOTREVERT", "REVERT"),
            Act::Delete => ("snapshot-delete", "SNAPSHOTDELETE", "DELETE"),
        };
        let named = {
            let model = self.model();
            let mut all = model.vms.get(&id).ok_or("no VM")?.template.vectors("SNAPSHOT");
            let found = all.find(|snapshot| snapshot["SNAPSHOT_ID"] == number);
            found.ok_or("no such snapshot")?["HYPERVISOR_ID"].clone()
        };
        self.snapshot_begins(id, action)?;
        let each = |change: &dyn Fn(&mut Vector)| {
            self.with(id, |vm, _| {
                let all = vm.template.vectors_mut("SNAPSHOT");
                all.filter(|snapshot| snapshot["SNAPSHOT_ID"] == number).for_each(change);
            });
        };
        each(&|snapshot| {
            snapshot.extend([("ACTION".into(), mark.into()), ("ACTIVE".into(), "YES".into())]);
        });
        let answer = self.drivers.act(word, &Job { word: named, ..self.plain_job(id) });
        each(&settle);
        if act == Act::Delete && matches!(answer, Answer::Success(_)) {
            let drop = |found: &Vector| found["SNAPSHOT_ID"] == number;
            self.with(id, |vm, _| vm.template.drop_vectors("SNAPSHOT", drop));
        }
        self.back_to_running(id, word, &answer);
        Ok(String::new())
    }

    /// `onevm disk-snapshot-create`. While the VM runs the VMM driver hears of it, but calls the transfer driver alone.
    ///
    /// # Errors
    /// The VM's state or the disk does not allow it.
    pub fn create_disk_snapshot(&self, id: u32, disk: &str, name: &str) -> Reply {
        let call = "one.vm.disksnapshotcreate";
        let state = self.with(id, |vm, _| vm.state);
        let lcm = match (state, self.with(id, |vm, _| vm.lcm)) {
            (State::Active, Lcm::Running) => Lcm::DiskSnapshot,
            (State::Poweroff, _) => Lcm::DiskSnapshotPoweroff,
            (State::Suspended, _) => Lcm::DiskSnapshotSuspended,
            _ => return Err(unavailable("disk-snapshot-create", &self.model().vms[&id], call)),
        };
        let number = self.with(id, |vm, now| {
            let found = vm.disk(disk).ok_or("no such disk")?.clone();
            if !found.contains_key("IMAGE_ID") {
                let kind = &found["TYPE"];
                return Err(format!("[{call}] Cannot make snapshots on disks of type: {kind}"));
            }
            vm.turn(Action::DiskSnapshotCreate, now);
            vm.go(State::Active, lcm);
            Ok(vm.snapshots.entry(disk.to_owned()).or_default().add(name, &found["SIZE"], now))
        })?;
        self.count_snapshots(id, disk);
        let (job, seq) = self.disk_job(id, disk, |model, vm, disk| {
            let line = match lcm {
                Lcm::DiskSnapshot => transfer::snapshot_live(model, vm, disk, number),
                _ => transfer::done(model, vm, disk, "SNAP_CREATE", &number.to_string()),
            };
            (line, String::new())
        });
        let (word, answer) = match lcm {
            Lcm::DiskSnapshot => {
                ("DISKSNAPSHOTCREATE", self.drivers.act("DISKSNAPSHOTCREATE", &job))
            }
            _ => ("", self.transfer_file(id, seq, "disk_snapshot", &job.transfer)),
        };
        if matches!(answer, Answer::Failure(_)) {
            self.with_snapshots(id, disk, |all| all.remove(number));
        }
        self.rest_in(id, state, word, &answer);
        Ok(String::new())
    }

    /// `onevm disk-snapshot-revert`.
    ///
    /// # Errors
    /// The VM's state does not allow it, or there is no such snapshot.
    pub fn revert_disk_snapshot(&self, id: u32, disk: &str, number: &str) -> Reply {
        let (state, lcm) = self.with(id, |vm, _| (vm.state, vm.lcm));
        if state != State::Poweroff {
            let state = shown(state, lcm);
            let why =
                format!("Could not revert to disk snapshot for VM {id}, wrong state {state}.");
            return Err(format!("[one.vm.disksnapshotrevert] {why}"));
        }
        self.use_disk_snapshot(id, disk, number, (Act::Revert, Lcm::DiskSnapshotRevertPoweroff))
    }

    /// `onevm disk-snapshot-delete`.
    ///
    /// # Errors
    /// The VM's state does not allow it, or there is no such snapshot.
    pub fn delete_disk_snapshot(&self, id: u32, disk: &str, number: &str) -> Reply {
        let lcm = match self.with(id, |vm, _| (vm.state, vm.lcm)) {
            (State::Active, Lcm::Running) => Lcm::DiskSnapshotDelete,
            (State::Poweroff, _) => Lcm::DiskSnapshotDeletePoweroff,
            (State::Suspended, _) => Lcm::DiskSnapshotDeleteSuspended,
            _ => {
                let call = "one.vm.disksnapshotdelete";
                return Err(unavailable("disk-snapshot-delete", &self.model().vms[&id], call));
            }
        };
        self.use_disk_snapshot(id, disk, number, (Act::Delete, lcm))
    }

    fn use_disk_snapshot(
        &self,
        id: u32,
        disk: &str,
        number: &str,
        (act, lcm): (Act, Lcm),
    ) -> Reply {
        let number: u32 = number.parse().map_err(|_| "no such snapshot")?;
        let (action, command) = match act {
            Act::Revert => (Action::DiskSnapshotRevert, "SNAP_REVERT"),
            Act::Delete => (Action::DiskSnapshotDelete, "SNAP_DELETE"),
        };
        let state = self.with(id, |vm, now| {
            let all = vm.snapshots.get(disk).into_iter().flat_map(|all| &all.all);
            if !all.into_iter().any(|snapshot| snapshot.id == number) {
                return Err("no such snapshot".to_owned());
            }
            let state = vm.state;
            vm.turn(action, now);
            vm.go(State::Active, lcm);
            Ok(state)
        })?;
        let (job, seq) = self.disk_job(id, disk, |model, vm, disk| {
            (transfer::done(model, vm, disk, command, &number.to_string()), String::new())
        });
        let answer = self.transfer_file(id, seq, "disk_snapshot", &job.transfer);
        if matches!(answer, Answer::Success(_)) {
            self.with_snapshots(id, disk, |all| match act {
                Act::Revert => all.activate(number),
                Act::Delete => all.remove(number),
            });
        }
        self.rest_in(id, state, "", &answer);
        Ok(String::new())
    }

    fn with_snapshots(&self, id: u32, disk: &str, change: impl FnMut(&mut Snapshots)) {
        self.with(id, |vm, _| vm.snapshots.get_mut(disk).into_iter().for_each(change));
        self.count_snapshots(id, disk);
    }

    fn count_snapshots(&self, id: u32, disk: &str) {
        self.with(id, |vm, _| {
            let size = vm.snapshots.get(disk).map_or(0, Snapshots::size).to_string();
            if let Some(found) = vm.disk_mut(disk) {
                found.insert("DISK_SNAPSHOT_TOTAL_SIZE".into(), size);
            }
        });
    }

    /// `oneimage snapshot-revert`, `snapshot-delete`, `snapshot-flatten`.
    ///
    /// # Errors
    /// There is no such image or snapshot.
    pub fn image_snapshot(&self, name: &str, action: &str, number: &str) -> Reply {
        let number: u32 = number.parse().map_err(|_| "no such snapshot")?;
        let (image, driver) = {
            let mut model = self.model();
            let id = model.image(name).ok_or(format!("no image {name}"))?.id;
            let image = model.images.get_mut(&id).ok_or("no image")?;
            if !image.snapshots.all.iter().any(|snapshot| snapshot.id == number) {
                return Err("no such snapshot".to_owned());
            }
            image.snapshot = Some(number);
            let image = image.clone();
            let driver = model.stores[&image.store].ds_mad.clone();
            (image, driver)
        };
        let document = self.image_document(image.document(), image.store, Vec::new());
        let word = action.to_uppercase().replace("SNAPSHOT-", "SNAP_");
        let answer = self.drivers.datastore(&word, &driver, image.id, &document);
        let mut model = self.model();
        let image = model.images.get_mut(&image.id).ok_or("no image")?;
        image.snapshot = None;
        image.error = None;
        match answer {
            Answer::Success(_) => match action {
                "snapshot-revert" => image.snapshots.activate(number),
                "snapshot-delete" => image.snapshots.remove(number),
                _ => image.snapshots.all.clear(),
            },
            Answer::Failure(text) => image.error = Some(text),
            Answer::Cancelled => {}
        }
        Ok(String::new())
    }
}

/// Nothing is done with it any more.
fn settle(snapshot: &mut Vector) {
    snapshot.remove("ACTION");
    snapshot.remove("ACTIVE");
}
