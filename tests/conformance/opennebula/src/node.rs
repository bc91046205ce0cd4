//! Hosts with a real daemon: a mount namespace, a network namespace, directories and control groups of their own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use ocivisor_tests::{PATIENCE, bin_dir, wait_for_option};

use crate::place::Place;

/// A host.
#[derive(Debug)]
pub struct Node {
    /// Its name, as oned knows it.
    pub name: String,
    dir: PathBuf,
    root: PathBuf,
    cgroup: String,
    /// Holds its namespaces while it waits for its input to end.
    holder: Child,
    daemon: Option<Child>,
    boots: u32,
}

/// What a host holds that must not be left by anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// Mount points below its directories.
    pub mounts: Vec<String>,
    /// Links of its network namespace.
    pub links: Vec<String>,
    /// Control groups of VMs.
    pub cgroups: Vec<PathBuf>,
    /// Processes in them.
    pub processes: Vec<u32>,
    /// Files of its run directory, of VMs' records and of its datastores.
    pub files: Vec<String>,
}

impl Node {
    /// A host whose daemon answers.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn start(place: &Place, name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = place.host(name);
        // System datastores are there before the first VM comes.
        for sub in ["datastores/101", "datastores/102", "one", "s", "r", "home", "db"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let cgroup = format!("ocvc{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let settle = std::env::var("OCIVISOR_TEST_SETTLE_MS").unwrap_or_else(|_| "50".to_owned());
        let config = format!(
            "cgroup_base = \"{cgroup}\"\nlibexec_dir = \"{}\"\nlog_level = \"info\"\n\
             [images]\npolicy = \"{}\"\n[guests]\nsettle_ms = {settle}\nlxcfs_dir = \"{}\"\n",
            bin_dir().display(),
            dir.join("policy.json").display(),
            dir.join("lxcfs").display()
        );
        fs::write(dir.join("c.toml"), config).unwrap();
        let drivers = format!(
            "shutdown_timeout = 5\n[monitoring]\nstate_dir = \"{}\"\n",
            dir.join("db/ocivisor").display()
        );
        fs::write(dir.join("opennebula.toml"), drivers).unwrap();
        let environment = format!(
            "OCIVISOR_BIN={}\nOCIVISOR_SOCKET={}\nOCIVISOR_OPENNEBULA_CONFIG={}\n",
            bin_dir().join("ocivisor").display(),
            dir.join("r/ocivisord.sock").display(),
            dir.join("opennebula.toml").display()
        );
        fs::write(dir.join("environment"), environment).unwrap();
        let root = place.root().to_owned();
        let holder = hold(&dir, &root);
        let mut node =
            Self { name: name.to_owned(), dir, root, cgroup, holder, daemon: None, boots: 0 };
        node.write_entrance();
        place.sync(name);
        node.start_daemon();
        node
    }

    fn write_entrance(&self) {
        let enter: String = self.enter().iter().map(|word| format!("{word}\n")).collect();
        fs::write(self.dir.join("enter"), enter).unwrap();
    }

    /// The words that run a command on it.
    fn enter(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        ["nsenter", "--target", &pid, "--mount", "--net", "--"].map(str::to_owned).into()
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command on it, to be run as the test wants.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let enter = self.enter();
        let mut command = Command::new(&enter[0]);
        command.args(&enter[1..]).args(words);
        command
    }

    /// What a command on it prints.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{words:?}: {}{}", text(&output.stderr), self.log());
        text(&output.stdout)
    }

    /// The CLI on it.
    #[track_caller]
    pub fn cli(&self, words: &[&str]) -> String {
        let program = bin_dir().join("ocivisor").display().to_string();
        let socket = self.dir.join("r/ocivisord.sock").display().to_string();
        self.run(&[&[program.as_str(), "--socket", &socket], words].concat())
    }

    /// What its daemon wrote.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("daemon.log")).unwrap_or_default()
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Panics
    /// It does not.
    pub fn start_daemon(&mut self) {
        self.start_daemon_in(None);
    }

    /// The same in a boot of the host that it takes for another one.
    fn start_daemon_in(&mut self, boot: Option<String>) {
        let path = self.dir.join("daemon.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        let program = bin_dir().join("ocivisord").display().to_string();
        let mut command = self.command(&[&program]);
        command
            .arg("--state-dir")
            .arg(self.dir.join("s"))
            .arg("--run-dir")
            .arg(self.dir.join("r"))
            .arg("--config")
            .arg(self.dir.join("c.toml"))
            .envs(boot.map(|boot| ("OCIVISOR_FAULT_BOOT", boot)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut daemon = command.spawn().unwrap();
        let socket = self.dir.join("r/ocivisord.sock");
        let begun = wait_for_option(PATIENCE, || {
            if daemon.try_wait().unwrap().is_some() {
                return Some(false);
            }
            std::os::unix::net::UnixStream::connect(&socket).ok().map(|_| true)
        });
        assert_eq!(begun, Some(true), "the daemon of {} did not begin\n{}", self.name, self.log());
        self.daemon = Some(daemon);
    }

    /// Kills the daemon as `kill -9` does.
    pub fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _gone = daemon.kill();
            let _gone = daemon.wait();
        }
    }

    /// Sends the daemon a signal: it stops for a while, or goes on.
    pub fn signal_daemon(&self, name: &str) {
        let pid = self.daemon.as_ref().expect("a daemon").id();
        ocivisor_tests::tool(&["kill", &format!("-{name}"), &pid.to_string()]);
    }

    /// What a boot of the machine is to a host: nothing runs or is mounted, the run directory is empty.
    ///
    /// # Panics
    /// It cannot be made anew.
    pub fn reboot(&mut self) {
        self.kill_daemon();
        self.clear();
        fs::remove_dir_all(self.dir.join("r")).unwrap();
        fs::create_dir(self.dir.join("r")).unwrap();
        self.holder = hold(&self.dir, &self.root);
        self.boots += 1;
        self.write_entrance();
        // Only the first daemon believes it: guests that are made carry the machine's own boot.
        self.start_daemon_in(Some(format!("{}-{}", self.cgroup, self.boots)));
        self.kill_daemon();
        self.start_daemon();
    }

    /// Nobody reaches it, or everybody again.
    pub fn unreachable(&self, away: bool) {
        let file = self.dir.join("down");
        if away {
            fs::write(file, "").unwrap();
        } else {
            let _there = fs::remove_file(file);
        }
    }

    /// Connections to it break once that many bytes went by, or last as long as they like again.
    pub fn cut_after(&self, bytes: Option<u64>) {
        let file = self.dir.join("cut");
        match bytes {
            Some(bytes) => fs::write(file, bytes.to_string()).unwrap(),
            None => drop(fs::remove_file(file)),
        }
    }

    /// A process in its namespaces.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.holder.id()
    }

    /// Its monitoring agent.
    #[must_use]
    pub fn agent(&self) -> Option<u32> {
        let lines = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        self.inhabitants().into_iter().find(|pid| lines(pid) == b"ocivisor\0one\0agent\0")
    }

    /// Processes that see its files: its daemon, scripts, and what scripts left behind; no guests.
    fn inhabitants(&self) -> Vec<u32> {
        let own = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let outside = fs::read_link("/proc/self/ns/mnt").ok();
        let here = own(self.holder.id()).filter(|here| Some(here) != outside.as_ref());
        let all = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| here.is_some() && own(*pid) == here).collect()
    }

    /// What it holds now.
    #[must_use]
    pub fn holdings(&self) -> Holdings {
        let mountinfo = fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id()));
        let points = mountinfo.unwrap_or_default();
        let points = points.lines().filter_map(|line| line.split(' ').nth(4));
        let mounts = points.filter(|point| Path::new(point).starts_with(&self.root));
        let links = self.run(&["ip", "-o", "link"]);
        let link = |line: &str| line.split(": ").nth(1).unwrap_or(line).to_owned();
        let mut links: Vec<String> = links.lines().map(link).collect();
        links.sort();
        let cgroups = cgroups(&self.cgroup);
        let mut files = Vec::new();
        for sub in ["r", "s/vms", "datastores"] {
            files_below(&self.dir.join(sub), &self.dir, &mut files);
        }
        files.sort();
        Holdings {
            mounts: mounts.map(str::to_owned).collect(),
            links,
            processes: processes(&cgroups),
            // Those of the daemon's helpers and of all displays stay with the daemon.
            cgroups: cgroups
                .into_iter()
                .filter(|group| !group.to_string_lossy().contains("/+"))
                .collect(),
            files,
        }
    }

    /// Ends everything on it.
    fn clear(&mut self) {
        let holder = self.holder.id();
        for pid in self.inhabitants().into_iter().filter(|pid| *pid != holder) {
            let _gone = Command::new("kill").args(["-9", &pid.to_string()]).output();
        }
        for _ in 0..3 {
            for pid in processes(&cgroups(&self.cgroup)) {
                let _gone = Command::new("kill").args(["-9", &pid.to_string()]).output();
            }
        }
        drop(self.holder.stdin.take());
        let _gone = self.holder.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- daemon of {} ---\n{}", self.name, self.log());
        }
        self.kill_daemon();
        self.clear();
        // Deepest first; those still busy for a moment have names that nobody else takes.
        let _busy = wait_for_option(PATIENCE / 30, || {
            let groups = cgroups(&self.cgroup);
            groups.iter().rev().for_each(|group| drop(fs::remove_dir(group)));
            groups.is_empty().then_some(())
        });
        for hierarchy in hierarchies() {
            let _none = fs::remove_dir(hierarchy.join(&self.cgroup));
        }
    }
}

/// A process that has the host's namespaces.
fn hold(dir: &Path, root: &Path) -> Child {
    let script = "mount --make-rprivate / && mount --bind \"$1/datastores\" \"$2/var/lib/one/datastores\" \
                  && mount --bind \"$1/one\" \"$2/var/tmp/one\" && ip link set lo up && ip link add br0 type bridge && ip link add br1 type bridge && echo ready && exec cat";
    let mut holder = Command::new("unshare")
        .args(["--mount", "--net", "sh", "-c", script, "sh"])
        .args([dir, root])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "the namespaces of {}", dir.display());
    holder
}

fn hierarchies() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/sys/fs/cgroup")];
    found.extend(fs::read_dir("/sys/fs/cgroup").unwrap().filter_map(|e| Some(e.ok()?.path())));
    found
}

/// Groups below that name in all hierarchies, deepest last.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = hierarchies().iter().map(|root| root.join(name)).collect();
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
                todo.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

fn processes(cgroups: &[PathBuf]) -> Vec<u32> {
    let texts = cgroups.iter().map(|group| fs::read_to_string(group.join("cgroup.procs")));
    let all = texts.filter_map(Result::ok);
    let mut found: Vec<u32> = all
        .flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

pub(crate) fn files_below(dir: &Path, root: &Path, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        // The daemon's own, made once for all guests.
        let name = entry.file_name();
        // Of a datastore: whose it is, and a directory for what is on its way, which is seen if it holds anything.
        let kept = ["ocivisord.sock", "skeleton", ".monitor", ".ocivisor.lock"];
        let locks = dir.ends_with(".ocivisor") && path.extension().is_some_and(|e| e == "lock");
        if locks || kept.iter().any(|kept| name == *kept) {
            continue;
        }
        if name != ".ocivisor" {
            found.push(path.strip_prefix(root).unwrap_or(&path).display().to_string());
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(&path, root, found);
        }
    }
}
