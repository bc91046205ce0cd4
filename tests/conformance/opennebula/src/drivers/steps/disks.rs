//! Steps about disks and backups.

use super::{Done, Run, stopped};
use crate::drivers::base64;
use crate::xml::Element;

impl Run<'_> {
    /// The action's transfer line.
    pub(super) fn line(&self) -> String {
        self.job.transfer.first().cloned().unwrap_or_default()
    }

    /// A key of the disk concerned.
    pub(super) fn disk(&self, key: &str) -> String {
        self.job.disk.as_ref().and_then(|disk| disk.get(key)).cloned().unwrap_or_default()
    }

    /// How the disk concerned is named to scripts: its path, its name in the guest, that name's last letter as a number.
    pub(super) fn disk_words(&self) -> [String; 4] {
        let target = self.disk("TARGET");
        let number = target.bytes().last().map_or(0, |last| last.saturating_sub(b'a'));
        [self.job.deploy_id.clone(), self.job.target.clone(), target, number.to_string()]
    }

    pub(super) fn attach_disk(&mut self) -> Done<String> {
        self.transfer(&self.line(), "")?;
        let words = self.disk_words();
        let document = base64(self.document.as_bytes());
        let words = words.iter().chain([&document]).map(String::as_str).collect::<Vec<_>>();
        if let Err(stop) = self.vmm("attach_disk", &words) {
            let _undone = self.transfer(&self.job.rollback.clone(), "");
            return Err(stop);
        }
        Ok("-".into())
    }

    /// The VM's directory on its host, as transfer drivers name it.
    pub(super) fn directory(&self) -> String {
        format!("{}:{}", self.job.host, self.job.dir)
    }

    /// What the transfer driver lays out for a backup goes to the datastore's driver. The job's store is where it goes.
    pub(super) fn back_up(&mut self) -> Done<String> {
        let job = self.job;
        let (vm, words) = (job.document.write(), self.line());
        let live = job.document.at("LCM_STATE").is_some_and(|lcm| lcm.text() == "69");
        let end = if live { "_LIVE" } else { "" };
        let done = self.transfer(&format!("PREBACKUP{end} {words}"), &vm).and_then(|_| {
            let parts = vec![job.store.clone(), job.document.clone()];
            let document = Element::of("DS_DRIVER_ACTION_DATA", parts).write();
            let words: Vec<String> = words.split(' ').skip(1).map(str::to_owned).collect();
            stopped(self.drivers.back_up("backup", &job.word, &words, &document, self.token))
        });
        // Whatever came of it, that is cleared.
        let cleared = self.transfer(&format!("POSTBACKUP{end} {words}"), &vm);
        done.and_then(|text| cleared.map(|_| text))
    }
}
