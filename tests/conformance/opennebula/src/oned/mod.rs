//! The part of oned that drivers notice: what users ask, what becomes of it, in which state a VM ends.
//!
//! A request is carried on by whoever asked until the VM rests: tests ask from several threads where they want things at
//! once. The model is locked for moments only, never while a script runs.

mod actions;
mod backup;
mod cli;
mod disks;
mod flow;
mod hotplug;
mod images;
mod monitor;
mod recover;
mod snapshots;
mod transfer;

use std::sync::{Arc, Mutex, MutexGuard};

use crate::drivers::{Drivers, Job, lock};
use crate::model::{Model, Vm};
use crate::place::FRONTEND;

/// What a user is told of a request: what it prints, or why it was refused.
pub type Reply = Result<String, String>;

/// oned.
#[derive(Debug)]
pub struct Oned {
    /// Its driver processes.
    pub drivers: Drivers,
    model: Arc<Mutex<Model>>,
    /// Where the next VM is placed that waits for a scheduler: host and datastore.
    placement: Mutex<Option<(String, String)>>,
}

impl Oned {
    /// With these drivers, over an empty database.
    #[must_use]
    pub fn new(drivers: Drivers) -> Self {
        let place = &drivers.place;
        let vms = place.vms().display().to_string();
        let model = Model::new(&place.location(), &vms);
        Self { drivers, model: Arc::new(Mutex::new(model)), placement: Mutex::default() }
    }

    /// The database, to be looked at or changed while nothing else does.
    pub fn model(&self) -> MutexGuard<'_, Model> {
        lock(&self.model)
    }

    /// The database, for whoever answers `onevm show`.
    #[must_use]
    pub fn shared_model(&self) -> Arc<Mutex<Model>> {
        Arc::clone(&self.model)
    }

    /// Where the scheduler puts whoever comes next.
    pub fn place_next(&self, host: &str, store: &str) {
        *lock(&self.placement) = Some((host.to_owned(), store.to_owned()));
    }

    /// Time goes on.
    pub fn wait(&self, seconds: u64) {
        self.model().now += seconds;
    }

    /// What the drivers are told of a VM where it is now.
    fn job(&self, id: u32) -> Job {
        let model = self.model();
        let vm = &model.vms[&id];
        let place = vm.place();
        let dir = model.vm_dir(place.store, id);
        let context = vm.template.vectors("CONTEXT").next().cloned();
        let target = context.as_ref().map(|c| format!("{dir}/disk.{}", c["DISK_ID"]));
        let transfer = context.as_ref().map(|_| transfer::context_line(&model, vm));
        let store = model.system(vm).document(&[]);
        Job {
            vm: id,
            host: place.host.clone(),
            other: String::new(),
            deploy_id: vm.deploy_id.clone(),
            dir,
            seq: place.seq,
            document: vm.document(),
            store,
            transfer: transfer.into_iter().collect(),
            target: target.unwrap_or_default(),
            rollback: String::new(),
            networks: vm.network_drivers(),
            context,
            nic: None,
            disk: None,
            word: String::new(),
            input: None,
        }
    }

    /// A job that has nothing to do with the VM's context.
    fn plain_job(&self, id: u32) -> Job {
        Job { transfer: Vec::new(), target: String::new(), ..self.job(id) }
    }

    /// Changes a VM.
    fn with<T>(&self, id: u32, change: impl FnOnce(&mut Vm, u64) -> T) -> T {
        let mut model = self.model();
        let now = model.now;
        change(model.vms.get_mut(&id).expect("a VM"), now)
    }

    /// A file of oned's own in the VM's directory on the front-end.
    fn write_file(&self, id: u32, name: &str, text: &str) -> String {
        let dir = self.drivers.place.vms().join(id.to_string());
        std::fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    fn machine_of(vm: &Vm) -> String {
        use crate::state::State;
        match vm.state {
            // Its disks wait on the front-end.
            State::Stopped | State::Undeployed => FRONTEND.to_owned(),
            _ => vm.place().host.clone(),
        }
    }
}
