//! Backups of VMs, and what is restored of them in place.

use super::actions::unavailable;
use super::{Oned, Reply};
use crate::drivers::{Answer, Job};
use crate::model::{Action, Image, ImageState, Snapshots};
use crate::state::{Lcm, State};
use crate::template::{Template, Value, Vector};

impl Oned {
    /// `onevm backup -d DATASTORE`: a new image there, or one more increment of the last.
    ///
    /// # Errors
    /// The VM's state does not allow it, or there is no such datastore.
    pub fn back_up(&self, id: u32, store: &str) -> Reply {
        let store = self.model().store(store).cloned().ok_or("no datastore")?;
        let (state, lcm) = match self.with(id, |vm, _| (vm.state, vm.lcm)) {
            (State::Active, Lcm::Running) => (State::Active, Lcm::Backup),
            (State::Poweroff, _) => (State::Poweroff, Lcm::BackupPoweroff),
            _ => return Err(unavailable("backup", &self.model().vms[&id], "one.vm.backup")),
        };
        let mut config = self.with(id, |vm, now| {
            vm.turn(Action::Backup, now);
            vm.go(State::Active, lcm);
            backup_config(vm.backup.as_ref())
        });
        config.insert("LAST_DATASTORE_ID".into(), store.id.to_string());
        self.with(id, |vm, _| vm.backup = Some(Value::Vector(config.clone())));
        let increments = config.get("MODE").is_some_and(|mode| mode == "INCREMENT");
        let first = config.get("INCREMENTAL_BACKUP_ID").and_then(|id| id.parse::<u32>().ok());
        let image = match first.filter(|_| increments) {
            Some(image) => image,
            None => self.add_backup(id, &store),
        };
        let job = {
            let model = self.model();
            let vm = &model.vms[&id];
            let disks = vm.template.vectors("DISK").filter(|disk| disk.contains_key("IMAGE_ID"));
            let disks: Vec<&str> = disks.map(|disk| disk["DISK_ID"].as_str()).collect();
            let place = vm.place();
            let line = format!(
                "{} {}:{} {} {} - {id} {}",
                place.tm_mad,
                place.host,
                model.vm_dir(place.store, id),
                disks.join(":"),
                vm.deploy_id,
                place.store
            );
            drop(model);
            let document = store.document(&[]);
            let word = store.ds_mad.clone();
            Job { transfer: vec![line], store: document, word, ..self.plain_job(id) }
        };
        let answer = self.drivers.act("BACKUP", &job);
        self.backed_up(image, &answer);
        self.with(id, |vm, _| {
            config.remove("LAST_DATASTORE_ID");
            if let Answer::Success(_) = answer {
                if first.filter(|_| increments).is_none() {
                    vm.backups.push(image);
                }
                if increments {
                    let last =
                        config.get("LAST_INCREMENT_ID").and_then(|id| id.parse::<i64>().ok());
                    let next = last.unwrap_or(-1) + 1;
                    config.insert("INCREMENTAL_BACKUP_ID".into(), image.to_string());
                    config.insert("LAST_INCREMENT_ID".into(), next.to_string());
                }
            }
            vm.backup = Some(Value::Vector(config));
        });
        self.rest_in(id, state, "BACKUP", &answer);
        Ok(String::new())
    }

    /// The image that a backup becomes.
    fn add_backup(&self, vm: u32, store: &crate::model::Datastore) -> u32 {
        let now = self.model().now;
        self.add_image(Image {
            id: 0,
            name: format!("{vm} backup"),
            kind: Image::kind_of("BACKUP"),
            persistent: true,
            source: String::new(),
            path: String::new(),
            format: "raw".to_owned(),
            fs: String::new(),
            size: "0".to_owned(),
            state: (ImageState::Locked, 0),
            cloning: -1,
            store: store.id,
            store_name: store.name.clone(),
            template: Template::default(),
            error: None,
            time: now,
            snapshots: Snapshots::default(),
            snapshot: None,
        })
    }

    /// `BACKUP_ID SIZE FORMAT`.
    fn backed_up(&self, image: u32, answer: &Answer) {
        let mut model = self.model();
        let Some(image) = model.images.get_mut(&image) else { return };
        match answer {
            Answer::Success(text) => {
                let mut words = text.split_whitespace().map(str::to_owned);
                image.source = words.next().unwrap_or_default();
                image.size = words.next().unwrap_or_default();
                image.format = words.next().unwrap_or_default();
                image.state = (ImageState::Ready, ImageState::Locked as u8);
            }
            Answer::Failure(text) if image.source.is_empty() => {
                image.state = (ImageState::Error, ImageState::Locked as u8);
                image.error = Some(text.clone());
            }
            _ => {}
        }
    }

    /// `onevm backup-cancel`.
    ///
    /// # Errors
    /// No backup is being made.
    pub fn cancel_backup(&self, id: u32) -> Reply {
        let lcm = self.with(id, |vm, _| vm.lcm);
        if !matches!(lcm, Lcm::Backup | Lcm::BackupPoweroff) {
            return Err(unavailable(
                "backup-cancel",
                &self.model().vms[&id],
                "one.vm.backupcancel",
            ));
        }
        let job = {
            let model = self.model();
            let config = backup_config(model.vms[&id].backup.as_ref());
            let store = config.get("LAST_DATASTORE_ID").and_then(|id| model.store(id));
            let word = store.map(|store| store.ds_mad.clone()).unwrap_or_default();
            drop(model);
            Job { word, ..self.plain_job(id) }
        };
        let answer = self.drivers.act("BACKUPCANCEL", &job);
        if let Answer::Failure(text) = answer {
            self.with(id, |vm, _| vm.fails("BACKUPCANCEL", &text));
        }
        Ok(String::new())
    }

    /// `onevm restore`: all disks, of the last increment.
    ///
    /// # Errors
    /// The VM is not powered off.
    pub fn restore(&self, id: u32, image: &str) -> Reply {
        let line = {
            let mut model = self.model();
            let now = model.now;
            let vm = model.vms.get_mut(&id).ok_or("no VM")?;
            if vm.state != State::Poweroff {
                return Err(unavailable("restore", vm, "one.vm.restore"));
            }
            vm.turn(Action::Restore, now);
            vm.go(State::Active, Lcm::Restore);
            let vm = &model.vms[&id];
            let place = vm.place();
            let dir = model.vm_dir(place.store, id);
            format!("RESTORE {} {}:{dir} {id} {image} -1 -1", place.tm_mad, place.host)
        };
        let seq = self.with(id, |vm, _| vm.place().seq);
        let answer = self.transfer_file(id, seq, "restore", &[line]);
        self.rest_in(id, State::Poweroff, "", &answer);
        Ok(String::new())
    }
}

fn backup_config(config: Option<&Value>) -> Vector {
    match config {
        Some(Value::Vector(keys)) => keys.clone(),
        _ => Vector::new(),
    }
}
