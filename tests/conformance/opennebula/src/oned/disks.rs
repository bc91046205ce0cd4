//! What is done with single disks of a VM: attached, detached, made larger, copied into an image.
//!
//! The VMM driver hears of it while the VM runs; else the transfer driver alone.

use super::actions::{placed_disk, unavailable};
use super::{Oned, Reply, transfer};
use crate::drivers::{Answer, Job};
use crate::model::{Action, Model};
use crate::state::{Lcm, State};
use crate::template::Vector;

impl Oned {
    /// `onevm disk-attach`: of an image, or a volatile one.
    ///
    /// # Errors
    /// The VM's state does not allow it, or there is no such image.
    pub fn attach_disk(&self, id: u32, asked: &Vector) -> Reply {
        let runs = self.can(id, "disk-attach")?;
        let disk = {
            let mut model = self.model();
            let now = model.now;
            let mut vm = model.vms[&id].clone();
            let disk = model.add_disk(&mut vm, asked)?.to_string();
            let store = model.system(&vm).clone();
            if let Some(added) = vm.disk_mut(&disk) {
                placed_disk(added, &store);
                added.insert("TM_MAD_SYSTEM".into(), store.tm_mad);
                added.insert("ATTACH".into(), "YES".into());
            }
            vm.turn(Action::DiskAttach, now);
            vm.go(State::Active, if runs { Lcm::Hotplug } else { Lcm::HotplugPrologPoweroff });
            model.vms.insert(id, vm);
            disk
        };
        let (job, file) = self.disk_job(id, &disk, |model, vm, disk| {
            let back = transfer::ended(model, vm, disk, &vm.place().host, true);
            (transfer::made(model, vm, disk), back)
        });
        let answer = self.change_disk(&job, runs.then_some("ATTACHDISK"), (file, "prolog_attach"));
        match answer {
            Answer::Failure(_) => self.drop_disk(id, &disk),
            _ => self.with(id, |vm, _| drop(vm.disk_mut(&disk).map(|disk| disk.remove("ATTACH")))),
        }
        self.rest(id, runs, "ATTACHDISK", &answer);
        Ok(String::new())
    }

    /// `onevm disk-detach`.
    ///
    /// # Errors
    /// The VM's state does not allow it, or there is no such disk.
    pub fn detach_disk(&self, id: u32, disk: &str) -> Reply {
        let runs = self.can(id, "disk-detach")?;
        self.with(id, |vm, now| {
            vm.disk_mut(disk).ok_or("no such disk")?.insert("ATTACH".into(), "YES".into());
            vm.turn(Action::DiskDetach, now);
            vm.go(State::Active, if runs { Lcm::Hotplug } else { Lcm::HotplugEpilogPoweroff });
            Ok::<_, String>(())
        })?;
        let (job, file) = self.disk_job(id, disk, |model, vm, disk| {
            (transfer::ended(model, vm, disk, &vm.place().host, true), String::new())
        });
        let answer = self.change_disk(&job, runs.then_some("DETACHDISK"), (file, "epilog_detach"));
        match answer {
            Answer::Success(_) => self.drop_disk(id, disk),
            _ => self.with(id, |vm, _| drop(vm.disk_mut(disk).map(|disk| disk.remove("ATTACH")))),
        }
        self.rest(id, runs, "DETACHDISK", &answer);
        Ok(String::new())
    }

    /// `onevm disk-resize`, in MB.
    ///
    /// # Errors
    /// The VM's state does not allow it, or there is no such disk.
    pub fn resize_disk(&self, id: u32, disk: &str, size: &str) -> Reply {
        let (state, runs) = self.with(id, |vm, _| (vm.state, vm.lcm == Lcm::Running));
        let lcm = match state {
            State::Active if runs => Lcm::DiskResize,
            State::Poweroff => Lcm::DiskResizePoweroff,
            State::Undeployed => Lcm::DiskResizeUndeployed,
            _ => {
                return Err(unavailable(
                    "disk-resize",
                    &self.model().vms[&id],
                    "one.vm.diskresize",
                ));
            }
        };
        self.with(id, |vm, now| {
            let found = vm.disk_mut(disk).ok_or("no such disk")?;
            let old = found.insert("SIZE".into(), size.to_owned()).unwrap_or_default();
            found.extend([("SIZE_PREV".into(), old), ("RESIZE".into(), "YES".into())]);
            if state != State::Undeployed {
                vm.turn(Action::DiskResize, now);
            }
            vm.go(State::Active, lcm);
            Ok::<_, String>(())
        })?;
        let (job, file) = self.disk_job(id, disk, |model, vm, disk| {
            // The host's name is said also of a disk that waits on the front-end.
            (transfer::done(model, vm, disk, "RESIZE", size), String::new())
        });
        let job = Job { word: size.to_owned(), ..job };
        let answer = self.change_disk(&job, runs.then_some("RESIZEDISK"), (file, "disk_resize"));
        self.with(id, |vm, _| {
            let Some(found) = vm.disk_mut(disk) else { return };
            found.remove("RESIZE");
            let old = found.remove("SIZE_PREV");
            if matches!(answer, Answer::Failure(_)) {
                found.extend(old.map(|old| ("SIZE".to_owned(), old)));
            }
        });
        self.rest_in(id, state, if runs { "RESIZEDISK" } else { "" }, &answer);
        Ok(String::new())
    }

    /// What drivers are told of a disk, and the number of the transfer file: with the line that `lines` gives, and the
    /// one that takes it back.
    pub(super) fn disk_job(
        &self,
        id: u32,
        disk: &str,
        lines: impl FnOnce(&Model, &crate::model::Vm, &Vector) -> (String, String),
    ) -> (Job, u32) {
        let (line, rollback, target, found, seq) = {
            let model = self.model();
            let vm = &model.vms[&id];
            let found = vm.disk(disk).cloned().unwrap_or_default();
            let (line, back) = lines(&model, vm, &found);
            (line, back, transfer::disk_path(&model, vm, &found), found, vm.place().seq)
        };
        let job = self.plain_job(id);
        (Job { transfer: vec![line], rollback, target, disk: Some(found), ..job }, seq)
    }

    /// Has it done: by the VMM driver, or by the transfer driver in a file of that number and kind.
    fn change_disk(&self, job: &Job, word: Option<&str>, (seq, kind): (u32, &str)) -> Answer {
        match word {
            Some(word) => self.drivers.act(word, job),
            None => self.transfer_file(job.vm, seq, kind, &job.transfer),
        }
    }

    /// The VM runs on, or rests on where it is powered off.
    fn rest(&self, id: u32, runs: bool, word: &str, answer: &Answer) {
        match runs {
            true => self.rest_in(id, State::Active, word, answer),
            false => self.rest_in(id, State::Poweroff, "", answer),
        }
    }

    /// The VM is again what it was.
    pub(super) fn rest_in(&self, id: u32, state: State, word: &str, answer: &Answer) {
        self.with(id, |vm, _| {
            if let Answer::Failure(text) = answer {
                vm.fails(word, text);
            }
            match state {
                State::Active => vm.go(State::Active, Lcm::Running),
                state => vm.go(state, Lcm::Init),
            }
        });
    }

    /// The VM has that disk no more.
    fn drop_disk(&self, id: u32, disk: &str) {
        let mut model = self.model();
        let Some(vm) = model.vms.get_mut(&id) else { return };
        let image = vm.disk(disk).and_then(|disk| disk.get("IMAGE_ID")?.parse().ok());
        vm.template.drop_vectors("DISK", |found| found["DISK_ID"] == disk);
        vm.snapshots.remove(disk);
        if let Some(image) = image {
            model.free_image(image);
        }
    }
}
