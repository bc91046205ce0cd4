//! The life cycle: what is done in each state, and where success and failure lead (contract §2.4).

use super::{Oned, transfer};
use crate::drivers::{Answer, Job};
use crate::model::Action;
use crate::place::FRONTEND;
use crate::state::{Lcm, State};

/// Where an end leads.
type End = (State, Lcm);

const RUNNING: End = (State::Active, Lcm::Running);

fn active(lcm: Lcm) -> End {
    (State::Active, lcm)
}

/// Where success of what is done in a state leads, and where failure.
fn ends(lcm: Lcm) -> Option<(End, End)> {
    let rest = |state| (state, Lcm::Init);
    Some(match lcm {
        Lcm::Prolog => (active(Lcm::Boot), active(Lcm::PrologFailure)),
        Lcm::Boot => (RUNNING, active(Lcm::BootFailure)),
        Lcm::BootPoweroff => (RUNNING, rest(State::Poweroff)),
        Lcm::BootSuspended => (RUNNING, rest(State::Suspended)),
        Lcm::BootStopped => (RUNNING, active(Lcm::BootStoppedFailure)),
        Lcm::BootUndeploy => (RUNNING, active(Lcm::BootUndeployFailure)),
        Lcm::BootMigrate => (RUNNING, active(Lcm::BootMigrateFailure)),
        Lcm::Migrate => (RUNNING, RUNNING),
        Lcm::SaveSuspend => (rest(State::Suspended), RUNNING),
        Lcm::SaveStop => (active(Lcm::EpilogStop), RUNNING),
        Lcm::SaveMigrate => (active(Lcm::PrologMigrate), RUNNING),
        Lcm::Shutdown => (active(Lcm::Epilog), RUNNING),
        Lcm::ShutdownPoweroff => (rest(State::Poweroff), RUNNING),
        Lcm::ShutdownUndeploy => (active(Lcm::EpilogUndeploy), RUNNING),
        Lcm::Epilog => (rest(State::Done), active(Lcm::EpilogFailure)),
        Lcm::EpilogStop => (rest(State::Stopped), active(Lcm::EpilogStopFailure)),
        Lcm::EpilogUndeploy => (rest(State::Undeployed), active(Lcm::EpilogUndeployFailure)),
        Lcm::PrologResume => (active(Lcm::BootStopped), active(Lcm::PrologResumeFailure)),
        Lcm::PrologUndeploy => (active(Lcm::BootUndeploy), active(Lcm::PrologUndeployFailure)),
        Lcm::PrologMigrate => (active(Lcm::BootMigrate), active(Lcm::PrologMigrateFailure)),
        Lcm::PrologMigratePoweroff => {
            (rest(State::Poweroff), active(Lcm::PrologMigratePoweroffFailure))
        }
        Lcm::PrologMigrateSuspend => {
            (rest(State::Suspended), active(Lcm::PrologMigrateSuspendFailure))
        }
        Lcm::CleanupDelete => (rest(State::Done), rest(State::Done)),
        Lcm::CleanupResubmit => (rest(State::Pending), rest(State::Pending)),
        _ => return None,
    })
}

impl Oned {
    /// Carries a VM on until it rests.
    pub(super) fn carry_on(&self, id: u32) {
        loop {
            let lcm = self.model().vms[&id].lcm;
            let Some(_) = ends(lcm) else { return };
            let (word, answer) = self.drive(id, lcm);
            // What was taken back, or overtaken by a recover, changes nothing more (§2.4).
            if answer == Answer::Cancelled || self.model().vms[&id].lcm != lcm {
                return;
            }
            self.conclude(id, lcm, word, &answer);
            if self.rests(id) {
                return;
            }
        }
    }

    fn rests(&self, id: u32) -> bool {
        let state = self.model().vms[&id].state;
        match state {
            State::Pending => {
                self.schedule(id);
                true
            }
            State::Active => false,
            _ => true,
        }
    }

    /// What is done in a state: the request's word, none for a transfer, and its answer.
    fn drive(&self, id: u32, lcm: Lcm) -> (&'static str, Answer) {
        if lcm.is_transfer() {
            return ("", self.drive_transfer(id, lcm));
        }
        let (hard, by_poweroff) = self.with(id, |vm, _| (vm.hard, vm.by_poweroff));
        let end = if hard { "CANCEL" } else { "SHUTDOWN" };
        let (word, job) = match lcm {
            Lcm::Boot | Lcm::BootPoweroff | Lcm::BootUndeploy => ("DEPLOY", self.boot(id, true)),
            Lcm::BootSuspended | Lcm::BootStopped | Lcm::BootMigrate => {
                ("RESTORE", self.boot(id, false))
            }
            Lcm::SaveSuspend | Lcm::SaveStop => ("SAVE", self.plain_job(id)),
            Lcm::SaveMigrate if by_poweroff => (end, self.before_move(id)),
            Lcm::SaveMigrate => ("SAVE", self.before_move(id)),
            Lcm::Shutdown | Lcm::ShutdownPoweroff | Lcm::ShutdownUndeploy => {
                (end, self.plain_job(id))
            }
            Lcm::Migrate => {
                let mut job = self.before_move(id);
                let model = self.model();
                let vm = &model.vms[&id];
                job.other.clone_from(&vm.place().host);
                job.transfer = vec![transfer::live(&model, vm, &job.host)];
                job.target = model.vm_dir(vm.place().store, id);
                ("MIGRATE", job)
            }
            _ => {
                let mut job = self.plain_job(id);
                let model = self.model();
                job.transfer = transfer::epilog(&model, &model.vms[&id], &job.host, false);
                ("CLEANUP", job)
            }
        };
        (word, self.drivers.act(word, &job))
    }

    /// What is told to the machine that a VM leaves.
    fn before_move(&self, id: u32) -> Job {
        let mut job = self.plain_job(id);
        let model = self.model();
        let vm = &model.vms[&id];
        let Some(old) = vm.history.iter().rev().nth(1) else { return job };
        job.host.clone_from(&old.host);
        job.dir = model.vm_dir(old.store, id);
        job.store = model.stores[&old.store].document(&[]);
        // The document tells already where it goes.
        job.seq = old.seq;
        job
    }

    /// What a boot is told; its files are written.
    fn boot(&self, id: u32, deploy: bool) -> Job {
        let (script, document, seq) = {
            let model = self.model();
            let vm = &model.vms[&id];
            let context = vm.template.vectors("CONTEXT").next();
            let script = context.map(crate::model::context_script);
            (script, vm.document().write(), vm.place().seq)
        };
        if let Some(script) = script {
            if script.contains("\nTOKEN='YES'\n") {
                self.write_file(id, "token.txt", "DtSE9V7Uz1aNCqRmGqs91Q==\n");
            }
            self.write_file(id, "context.sh", &script);
        }
        if deploy {
            self.write_file(id, &format!("deployment.{seq}"), &document);
        }
        self.job(id)
    }

    fn drive_transfer(&self, id: u32, lcm: Lcm) -> Answer {
        let (kind, lines, seq) = {
            let model = self.model();
            let vm = &model.vms[&id];
            let place = vm.place();
            let here = (place.host.as_str(), place.store);
            let fe = (FRONTEND, place.store);
            let before = vm.history.iter().rev().nth(1);
            let there = before.map_or(here, |old| (old.host.as_str(), old.store));
            let machine = vm.left_at.as_ref().unwrap_or(&place.host);
            let (kind, lines) = match lcm {
                Lcm::Prolog => ("prolog", transfer::prolog(&model, vm)),
                Lcm::EpilogStop | Lcm::EpilogUndeploy => {
                    ("stop", transfer::moving(&model, vm, here, fe))
                }
                Lcm::PrologResume | Lcm::PrologUndeploy => {
                    ("resume", transfer::moving(&model, vm, fe, here))
                }
                Lcm::PrologMigrate | Lcm::PrologMigratePoweroff | Lcm::PrologMigrateSuspend => {
                    ("migrate", transfer::moving(&model, vm, there, here))
                }
                _ => ("epilog", transfer::epilog(&model, vm, machine, true)),
            };
            (kind, lines, place.seq)
        };
        self.transfer_file(id, seq, kind, &lines)
    }

    /// Writes a transfer file and has it carried out.
    pub(super) fn transfer_file(&self, id: u32, seq: u32, kind: &str, lines: &[String]) -> Answer {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        let path = self.write_file(id, &format!("transfer.{seq}.{kind}"), &text);
        self.drivers.transfer(id, &path, lines)
    }

    /// Takes an answer down.
    pub(super) fn conclude(&self, id: u32, lcm: Lcm, word: &str, answer: &Answer) {
        let Some((good, bad)) = ends(lcm) else { return };
        let done = matches!(answer, Answer::Success(_));
        // After a power-off it is booted as for the first time.
        let boots = lcm == Lcm::PrologMigrate && self.with(id, |vm, _| vm.by_poweroff);
        let good = if boots { active(Lcm::Boot) } else { good };
        let end = if done { good } else { bad };
        let keeps = self.keeps_snapshots(id);
        self.with(id, |vm, now| {
            match answer {
                Answer::Failure(text) if word != "CLEANUP" => vm.fails(word, text),
                Answer::Success(text) if lcm.is_boot() => vm.booted(word, text, now),
                _ => {}
            }
            let moves = matches!(lcm, Lcm::SaveMigrate | Lcm::Migrate);
            if !done && moves {
                vm.turn_back(now);
            }
            let place = vm.place_mut();
            if end == RUNNING {
                place.action = Action::None;
            }
            if !done && moves {
                (place.etime, place.retime) = (0, 0);
            }
            if done && lcm.is_transfer() && end.0 == State::Active {
                (place.petime, place.rstime) = (now, now);
            }
            if done && matches!(lcm, Lcm::ShutdownPoweroff | Lcm::SaveSuspend | Lcm::SaveStop) {
                place.retime = now;
            }
            // Of a guest that is not there any more its driver has no snapshots, if it keeps none.
            if done && !keeps && (lcm.ends_guest() || lcm == Lcm::Migrate) {
                vm.template.take("SNAPSHOT");
            }
            if end.0 != State::Active || end == RUNNING {
                (vm.hard, vm.by_poweroff) = (false, false);
            }
            vm.go(end.0, end.1);
            if end.0 == State::Done {
                vm.etime = now;
            }
        });
        if end.0 == State::Done {
            self.release(id);
        }
    }

    /// A VM that waits is placed, if the test said where.
    pub(super) fn schedule(&self, id: u32) {
        let waits = self.model().vms[&id].state == State::Pending;
        let placement = if waits { crate::drivers::lock(&self.placement).take() } else { None };
        if let Some((host, store)) = placement
            && let Err(why) = self.deploy(id, &host, Some(&store))
        {
            self.with(id, |vm, _| vm.error = Some(why));
        }
    }

    /// What a VM that is done held is free again.
    fn release(&self, id: u32) {
        let mut model = self.model();
        let vm = model.vms[&id].clone();
        for nic in vm.template.vectors("NIC").chain(vm.template.vectors("NIC_ALIAS")) {
            if let Some(network) = model.network(&nic["NETWORK"]).map(|network| network.id)
                && let Some(network) = model.networks.get_mut(&network)
            {
                network.release(&nic["IP"]);
            }
        }
        for disk in vm.template.vectors("DISK") {
            let number = disk.get("IMAGE_ID").and_then(|id| id.parse().ok());
            let Some(number) = number else { continue };
            // A persistent image keeps what was made of its disk.
            if disk["SAVE"] == "YES"
                && let Some(all) = vm.snapshots.get(&disk["DISK_ID"])
                && let Some(image) = model.images.get_mut(&number)
            {
                image.snapshots = all.clone();
            }
            model.free_image(number);
        }
    }
}
