//! Actions of the VMM driver, step by step, with what is undone when one fails (contract §2.3).

mod disks;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use super::stream::{Step, Stream};
use super::{Answer, Drivers, base64, lock};
use crate::template::Vector;
use crate::xml::Element;

/// One request of oned to the VMM driver.
#[derive(Debug, Clone)]
pub struct Job {
    /// The VM.
    pub vm: u32,
    /// The host where it happens.
    pub host: String,
    /// Another host: where to, or where from.
    pub other: String,
    /// What the driver named the VM.
    pub deploy_id: String,
    /// The directory of the VM on hosts.
    pub dir: String,
    /// Number of the deployment file.
    pub seq: u32,
    /// The whole VM.
    pub document: Element,
    /// Its system datastore.
    pub store: Element,
    /// Transfer lines that belong to the action.
    pub transfer: Vec<String>,
    /// The one that takes it back.
    pub rollback: String,
    /// `DISK_TARGET_PATH`.
    pub target: String,
    /// Network drivers of its NICs.
    pub networks: Vec<String>,
    /// `CONTEXT` of the VM.
    pub context: Option<Vector>,
    /// The NIC concerned, if one is; and whether it is an alias.
    pub nic: Option<(Vector, bool)>,
    /// The disk concerned, if one is.
    pub disk: Option<Vector>,
    /// A word more: an image of a command, a number of a network or of a snapshot, a size.
    pub word: String,
    /// Standard input of a command.
    pub input: Option<String>,
}

/// One action under way.
struct Run<'a> {
    drivers: &'a Drivers,
    job: &'a Job,
    token: &'a AtomicBool,
    streams: BTreeMap<String, Stream>,
    /// The action's document.
    document: String,
}

/// Why an action goes no further.
enum Stop {
    Failed(String),
    Cancelled,
}

type Done<T> = Result<T, Stop>;

impl Job {
    /// `<VMM_DRIVER_ACTION_DATA>` (§2.2).
    fn action_document(&self, word: &str) -> Element {
        let boots = matches!(word, "DEPLOY");
        let local = format!("/var/lib/one/vms/{}/deployment.{}", self.vm, self.seq);
        let saves = matches!(word, "SAVE" | "RESTORE");
        let when = |condition: bool, text: String| if condition { text } else { String::new() };
        let lines: String = self.transfer.iter().map(|line| format!("{line}\n")).collect();
        let command = |name: &str, lines: &str| match lines {
            "" => Element::plain(name, ""),
            lines => Element::quoted(name, lines),
        };
        let back = when(!self.rollback.is_empty(), format!("{}\n", self.rollback));
        Element::of(
            "VMM_DRIVER_ACTION_DATA",
            vec![
                Element::plain("HOST", &self.host),
                Element::plain("MIGR_HOST", &self.other),
                Element::plain("DEPLOY_ID", &self.deploy_id),
                Element::plain("LOCAL_DEPLOYMENT_FILE", when(boots, local)),
                Element::plain("REMOTE_DEPLOYMENT_FILE", when(boots, self.deployment_file())),
                Element::plain("CHECKPOINT_FILE", when(saves, self.checkpoint())),
                command("TM_COMMAND", &lines),
                command("TM_COMMAND_ROLLBACK", &back),
                Element::plain("DISK_TARGET_PATH", &self.target),
                self.document.clone(),
                self.store.clone(),
            ],
        )
    }

    fn deployment_file(&self) -> String {
        format!("{}/deployment.{}", self.dir, self.seq)
    }

    fn checkpoint(&self) -> String {
        format!("{}/checkpoint", self.dir)
    }
}

impl Drivers {
    /// Carries an action out.
    pub fn act(&self, word: &str, job: &Job) -> Answer {
        let turn = self.turn(&job.host);
        self.request("one_vmm_exec", word, job.vm, "…", |token| {
            let _mine = lock(&turn);
            let document = job.action_document(word).write();
            let mut run = Run { drivers: self, job, token, streams: BTreeMap::new(), document };
            match run.act(word) {
                Ok(text) => Answer::Success(text),
                Err(Stop::Failed(text)) => Answer::Failure(text),
                Err(Stop::Cancelled) => Answer::Cancelled,
            }
        })
    }
}

impl Run<'_> {
    fn act(&mut self, word: &str) -> Done<String> {
        let job = self.job;
        let (host, id) = (job.host.clone(), job.deploy_id.clone());
        let simple = |name: &str| name.to_lowercase();
        match word {
            "DEPLOY" => self.deploy(),
            "SHUTDOWN" | "CANCEL" => {
                self.vmm(&simple(word), &[&id, &host])?;
                self.vnm("clean", &[&host])?;
                Ok("-".into())
            }
            "REBOOT" | "RESET" => self.vmm(&simple(word), &[&id, &host]),
            "SAVE" => {
                self.vmm("save", &[&id, &job.checkpoint(), &host])?;
                self.vnm("clean", &[&host])?;
                Ok("-".into())
            }
            "RESTORE" => {
                self.context()?;
                self.vnm("pre", &[])?;
                self.vmm("restore", &[&job.checkpoint(), &host, &id])?;
                if let Err(stop) = self.vnm("post", &[&id, &host]) {
                    let _undone = self.vmm("cancel", &[&id, &host]);
                    return Err(stop);
                }
                Ok("-".into())
            }
            "MIGRATE" => self.migrate(),
            "ATTACHNIC" => self.attach_nic(),
            "DETACHNIC" => self.detach_nic(),
            "UPDATECONF" => self.reconfigure(false).map(|()| String::new()),
            "UPDATESG" => self.vnm("update_sg", &[&id]).map(|t| format!("{} {t}", job.word)),
            "UPDATENIC" => {
                let text = self.vnm("update_nic", &[&id, &job.word])?;
                Ok(format!("{} {text}", job.word))
            }
            "RESIZE" => self.single("resize", &[&id, &job.vm.to_string(), &host]),
            "EXEC" => {
                let vm = job.vm.to_string();
                let input = job.input.as_ref().map(|input| base64(input.as_bytes()));
                let mut args: Vec<&str> = vec![&vm, &host, &job.word];
                // The command is one word for the shell of the host; for the one here it is in single quotes,
                // which its own end early.
                args.extend(input.as_deref());
                self.single("exec", &args)
            }
            "EXEC_CANCEL" => self.single("exec_cancel", &[&job.vm.to_string(), &host]),
            "ATTACHDISK" => self.attach_disk(),
            "DETACHDISK" => {
                let words = self.disk_words();
                self.vmm("detach_disk", &words.each_ref().map(String::as_str))?;
                self.transfer(&self.line(), "").map(|_| "-".into())
            }
            "RESIZEDISK" => {
                self.transfer(&self.line(), "")?;
                let (disk, document) = (self.disk("DISK_ID"), base64(self.document.as_bytes()));
                self.vmm("resize_disk", &[&id, &disk, &job.word, &document, &host])
            }
            "SNAPSHOTCREATE" | "SNAPSHOTDELETE" => {
                let script = word.replace("SNAPSHOT", "SNAPSHOT_");
                self.single(&simple(&script), &[&id, &job.word, &job.vm.to_string(), &host])
            }
            "SNAPSHOTREVERT" => {
                self.vmm("snapshot_revert", &[&id, &job.word])?;
                self.vnm("post", &[&id, &host]).map(|_| String::new())
            }
            "BACKUP" => self.back_up(),
            "BACKUPCANCEL" => {
                let vm = job.document.write();
                let words = [self.directory(), id];
                stopped(self.drivers.back_up("backup_cancel", &job.word, &words, &vm, self.token))
            }
            "DISKSNAPSHOTCREATE" => {
                let line = job.transfer.first().cloned().unwrap_or_default();
                self.transfer(&line, "").map(|_| String::new())
            }
            "CLEANUP" => self.clean_up(),
            other => Err(Stop::Failed(format!("the stand-in has no action {other}"))),
        }
    }

    fn deploy(&mut self) -> Done<String> {
        let job = self.job;
        let host = job.host.clone();
        self.context()?;
        self.vnm("pre", &[])?;
        let (dir, vm) = (&job.dir, job.document.write());
        self.command(&format!("/bin/mkdir -p {dir}"), "")?;
        self.command(&format!("/bin/cat - >{dir}/vm.xml"), &vm)?;
        self.command(&format!("/bin/cat - >{dir}/ds.xml"), &job.store.write())?;
        let file = job.deployment_file();
        let (shown, glued) = match self.script(&host, "deploy", &[&file, &host], &vm) {
            Ok(lines) if lines.is_empty() => ("-".to_owned(), "-".to_owned()),
            Ok(lines) => (lines.join("\n"), lines.concat()),
            Err(stop) => {
                self.vnm_after(&stop, "clean", &[&host]);
                return Err(stop);
            }
        };
        if let Err(stop) = self.vnm("post", &[&glued, &host]) {
            if !matches!(stop, Stop::Cancelled) {
                let _undone = self.vmm("cancel", &[&glued, &host]);
            }
            self.vnm_after(&stop, "clean", &[&host]);
            return Err(stop);
        }
        Ok(shown)
    }

    fn migrate(&mut self) -> Done<String> {
        let job = self.job;
        let (from, to, id) = (job.host.clone(), job.other.clone(), job.deploy_id.clone());
        let line = |when: &str| {
            let line = job.transfer.first().cloned().unwrap_or_default();
            format!("{when}{line}")
        };
        let vm = base64(job.document.write().as_bytes());
        if let Err(stop) = self.transfer(&line("PRE"), &vm) {
            let _undone = self.transfer(&line("FAIL"), &vm);
            return Err(stop);
        }
        self.vnm_on(&to, "pre", &[])?;
        if let Err(stop) = self.vmm("migrate", &[&id, &to, &from]) {
            let _undone = self.transfer(&line("FAIL"), &vm);
            return Err(stop);
        }
        // From here on the VM is there, whatever fails.
        let _ignored = self.vnm_on(&from, "clean", &[&from]);
        let _ignored = self.vnm_on(&to, "post", &[&id, &from]);
        let _ignored = self.transfer(&line("POST"), &vm);
        Ok("-".into())
    }

    fn attach_nic(&mut self) -> Done<String> {
        let (host, id) = (self.job.host.clone(), self.job.deploy_id.clone());
        let (nic, alias) = self.job.nic.clone().unwrap_or_default();
        let key = |name: &str| nic.get(name).map_or("-", String::as_str);
        self.vnm("pre", &[])?;
        if alias {
            self.vnm("post", &[&id, &host])?;
            self.reconfigure(false)?;
            return Ok(String::new());
        }
        let words = [key("MAC"), key("BRIDGE"), key("MODEL"), key("VN_MAD"), key("TARGET")];
        self.vmm("attach_nic", &[&[id.as_str()], &words[..]].concat())?;
        if let Err(stop) = self.vnm("post", &[&id, &host]) {
            let _undone = self.vmm("detach_nic", &[&id, key("MAC")]);
            return Err(stop);
        }
        self.reconfigure(true)?;
        Ok("-".into())
    }

    fn detach_nic(&mut self) -> Done<String> {
        let (host, id) = (self.job.host.clone(), self.job.deploy_id.clone());
        let (nic, alias) = self.job.nic.clone().unwrap_or_default();
        if !alias {
            self.vmm("detach_nic", &[&id, nic.get("MAC").map_or("", String::as_str)])?;
        }
        self.vnm("clean", &[&host])?;
        self.reconfigure(false)?;
        Ok(if alias { String::new() } else { "-".into() })
    }

    /// The guest is told anew: `prereconfigure`, the new context disk, `reconfigure`.
    fn reconfigure(&mut self, attached: bool) -> Done<()> {
        let id = self.job.deploy_id.clone();
        let context = self.job.context.as_ref().and_then(|context| context.get("TARGET"));
        let target = context.cloned().unwrap_or_default();
        if let Err(stop) = self.vmm("prereconfigure", &[&id, &target]) {
            if let (true, Some((nic, _))) = (attached, &self.job.nic) {
                let mac = nic.get("MAC").cloned().unwrap_or_default();
                let _undone = self.vmm("detach_nic", &[&id, &mac]);
            }
            return Err(stop);
        }
        self.context()?;
        let path = self.job.target.clone();
        self.vmm("reconfigure", &[&id, &target, &path]).map(|_| ())
    }

    /// Whatever is left of the VM goes; failures are ignored.
    fn clean_up(&mut self) -> Done<String> {
        let job = self.job;
        let id = job.deploy_id.clone();
        for host in [job.host.clone(), job.other.clone()].iter().filter(|host| !host.is_empty()) {
            if !id.is_empty() {
                let args = [id.as_str(), host];
                let done = self.script(host, "cancel", &args, &self.document.clone());
                let _ignored = done.map(|_| ());
            }
            let _ignored = self.vnm_on(host, "clean", &[host]);
        }
        for line in &job.transfer {
            let _ignored = self.transfer(line, "");
        }
        Ok(String::new())
    }

    /// The context disk, if the VM has one.
    fn context(&mut self) -> Done<()> {
        match (&self.job.context, self.job.transfer.first()) {
            (Some(_), Some(line)) => self.transfer(&line.clone(), "").map(|_| ()),
            _ => Ok(()),
        }
    }

    fn transfer(&mut self, line: &str, stdin: &str) -> Done<String> {
        stopped(self.drivers.transfer_line(line, stdin.as_bytes(), self.token))
    }

    fn single(&mut self, action: &str, args: &[&str]) -> Done<String> {
        let script = self.script_path("vmm", &self.drivers.vmm, action);
        let document = self.document.clone();
        let words: Vec<String> = args
            .iter()
            .enumerate()
            .map(|(at, word)| match (action, at) {
                ("exec", 2) => escaped(word),
                _ => (*word).to_owned(),
            })
            .collect();
        let call = (script.as_str(), words.join(" "));
        let answer =
            self.drivers.single(&self.job.host, call, args, document.as_bytes(), self.token);
        stopped(answer)
    }

    fn vmm(&mut self, action: &str, args: &[&str]) -> Done<String> {
        let (host, document) = (self.job.host.clone(), self.document.clone());
        self.script(&host, action, args, &document).map(|_| "-".to_owned())
    }

    /// A script of the hypervisor's; the VM's number and the host follow its words.
    fn script(
        &mut self,
        host: &str,
        action: &str,
        args: &[&str],
        stdin: &str,
    ) -> Done<Vec<String>> {
        let script = self.script_path("vmm", &self.drivers.vmm, action);
        let vm = self.job.vm.to_string();
        let quoted: String = args.iter().map(|arg| format!("'{arg}' ")).collect();
        let args = [args, &[vm.as_str(), host]].concat();
        self.step(host, &script, &format!("{quoted}{vm} {host}"), &args, stdin)
    }

    fn vnm(&mut self, action: &str, args: &[&str]) -> Done<String> {
        let host = self.job.host.clone();
        self.vnm_on(&host, action, args)
    }

    /// A script of each network driver, with the part of the VM that concerns networks.
    fn vnm_on(&mut self, host: &str, action: &str, args: &[&str]) -> Done<String> {
        let mut told = String::new();
        let stdin = if action == "update_nic" {
            let text = base64(self.job.document.write().as_bytes());
            let lines = text.as_bytes().chunks(60).map(|line| String::from_utf8_lossy(line) + "\n");
            lines.collect()
        } else {
            base64(reduced(&self.job.document).write().as_bytes())
        };
        for network in self.job.networks.clone() {
            let script = self.script_path("vnm", &network, action);
            let quoted: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
            match self.step(host, &script, &quoted.join(" "), args, &stdin) {
                Ok(_) => told.push_str(&format!("{network}: -")),
                Err(Stop::Failed(why)) => return Err(Stop::Failed(format!(" {network}: {why}"))),
                Err(stop) => return Err(stop),
            }
        }
        Ok(told)
    }

    fn vnm_after(&mut self, stop: &Stop, action: &str, args: &[&str]) {
        if !matches!(stop, Stop::Cancelled) {
            let _undone = self.vnm(action, args);
        }
    }

    /// A command of the shell's own, which no driver brings.
    fn command(&mut self, command: &str, stdin: &str) -> Done<()> {
        let host = self.job.host.clone();
        self.step(&host, command, "", &[], stdin).map(|_| ())
    }

    fn step(
        &mut self,
        host: &str,
        script: &str,
        quoted: &str,
        args: &[&str],
        stdin: &str,
    ) -> Done<Vec<String>> {
        let drivers = self.drivers;
        let stream = self.streams.entry(host.to_owned()).or_insert_with(|| drivers.stream(host));
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        match drivers.step(stream, script, quoted, &args, stdin, self.token) {
            Step::Ended(0, lines, _) => {
                let text = lines.join("\n").trim().to_owned();
                Ok(text.lines().map(str::to_owned).collect())
            }
            Step::Ended(_, _, err) => Err(Stop::Failed(drivers.message(&err))),
            Step::Cancelled => Err(Stop::Cancelled),
        }
    }

    fn script_path(&self, kind: &str, driver: &str, action: &str) -> String {
        let dir = self.drivers.place.remotes_of_hosts();
        format!("{}/{kind}/{driver}/{action}", dir.display())
    }
}

/// A word for a shell, each odd character behind a backslash.
fn escaped(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.,:+/@\n".contains(c);
    word.chars().map(|c| if plain(c) { c.to_string() } else { format!("\\{c}") }).collect()
}

fn stopped(answer: Answer) -> Done<String> {
    match answer {
        Answer::Success(text) => Ok(text),
        Answer::Failure(text) => Err(Stop::Failed(text)),
        Answer::Cancelled => Err(Stop::Cancelled),
    }
}

/// The part of a VM that network drivers get (§7.1): several elements of one name, as oned leaves them.
fn reduced(vm: &Element) -> Element {
    let mut parts = Vec::new();
    let all = |path: &str| -> Vec<Element> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let above = if above.is_empty() { Some(vm) } else { vm.at(above) };
        let found = above.into_iter().flat_map(|e| e.children().iter().filter(|e| e.name == name));
        found.cloned().collect()
    };
    parts.extend(all("ID"));
    parts.extend(all("DEPLOY_ID"));
    let wrap = |outer: &str, inner: Vec<Element>| Element::of(outer, inner);
    for context in all("TEMPLATE/CONTEXT") {
        parts.push(wrap("TEMPLATE", vec![context]));
    }
    parts.extend(all("USER_TEMPLATE"));
    for rule in all("TEMPLATE/SECURITY_GROUP_RULE") {
        parts.push(wrap("TEMPLATE", vec![rule]));
    }
    for key in ["HOSTNAME", "HID", "DS_ID", "VM_MAD"] {
        for value in all(&format!("HISTORY_RECORDS/HISTORY/{key}")) {
            parts.push(wrap("HISTORY_RECORDS", vec![wrap("HISTORY", vec![value])]));
        }
    }
    for kind in ["NIC", "NIC_ALIAS", "PCI"] {
        for nic in all(&format!("TEMPLATE/{kind}")) {
            if nic.at("VN_MAD").is_some() {
                parts.push(wrap("TEMPLATE", vec![nic]));
            }
        }
    }
    Element::of("VM", parts)
}
