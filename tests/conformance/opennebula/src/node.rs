//! Hosts with a real daemon: a mount namespace, a network namespace, directories and control groups of their own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use ocivisor_tests::{PATIENCE, bin_dir, wait_for_option};

use crate::drivers::lock;
use crate::place::Place;
use crate::sshd::{OPERATORS, give};

/// A host.
#[derive(Debug)]
pub struct Node {
    /// Its name, as oned knows it.
    pub name: String,
    dir: PathBuf,
    root: PathBuf,
    cgroup: String,
    /// Datastores that it has in common with all.
    shared: &'static [u32],
    /// Holds its namespaces while it waits for its input to end.
    holder: Mutex<Child>,
    daemon: Mutex<Option<Child>>,
    boots: AtomicU32,
}

/// Somebody who is where nobody should be.
#[derive(Debug)]
pub struct Occupant(Child);

impl Drop for Occupant {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _gone = self.0.wait();
    }
}

/// What a host has of datastores.
#[derive(Debug, Clone, Copy)]
pub struct Stores {
    /// System datastores of its own.
    pub own: &'static [u32],
    /// Those that all hosts and the front-end see.
    pub shared: &'static [u32],
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
    pub fn start(place: &Place, name: &str, stores: Stores) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = place.host(name);
        for sub in ["one", "s", "r", "home", "db"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        // System datastores are there before the first VM comes.
        for store in stores.own.iter().chain(stores.shared) {
            fs::create_dir_all(dir.join(format!("datastores/{store}"))).unwrap();
        }
        let cgroup = format!("ocvc{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let settle = std::env::var("OCIVISOR_TEST_SETTLE_MS").unwrap_or_else(|_| "50".to_owned());
        let config = format!(
            "cgroup_base = \"{cgroup}\"\nlibexec_dir = \"{}\"\nlog_level = \"info\"\n\
             [access]\noperate_gid = {OPERATORS}\noperate_dirs = [\"{}\"]\n[images]\npolicy = \"{}\"\n[guests]\nsettle_ms = {settle}\nlxcfs_dir = \"{}\"\n",
            bin_dir().display(),
            place.root().join("var/lib/one/datastores").display(),
            dir.join("policy.json").display(),
            dir.join("lxcfs").display()
        );
        fs::write(dir.join("c.toml"), config).unwrap();
        configure(&dir, PATIENT);
        let environment = format!(
            "OCIVISOR_SUDO={} {name}\nOCIVISOR_BIN={}\nOCIVISOR_SOCKET={}\nOCIVISOR_OPENNEBULA_CONFIG={}\n",
            place.root().join("bin/sudo").display(),
            bin_dir().join("ocivisor").display(),
            dir.join("r/ocivisord.sock").display(),
            dir.join("opennebula.toml").display()
        );
        fs::write(dir.join("environment"), environment).unwrap();
        // What is the platform's user's.
        ["datastores", "one", "home", "db"].iter().for_each(|sub| give(&dir.join(sub)));
        let root = place.root().to_owned();
        let holder = Mutex::new(hold(&dir, &root, stores.shared));
        let (name_of_it, daemon, boots) = (name.to_owned(), Mutex::default(), AtomicU32::new(0));
        let shared = stores.shared;
        let node = Self { name: name_of_it, dir, root, cgroup, shared, holder, daemon, boots };
        node.write_entrance();
        place.sync(name);
        node.start_daemon();
        node
    }

    /// What its admin wants of drivers: these lines, or what all hosts have.
    pub fn configure(&self, lines: Option<&str>) {
        configure(&self.dir, lines.unwrap_or(PATIENT));
    }

    fn write_entrance(&self) {
        let enter: String = self.enter().iter().map(|word| format!("{word}\n")).collect();
        fs::write(self.dir.join("enter"), enter).unwrap();
    }

    /// The words that run a command on it.
    fn enter(&self) -> Vec<String> {
        let pid = self.process().to_string();
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
    pub fn start_daemon(&self) {
        self.start_daemon_with(&[]);
    }

    /// The same with these variables: faults, another boot.
    ///
    /// # Panics
    /// It does not answer.
    pub fn start_daemon_with(&self, environment: &[(&str, &str)]) {
        let path = self.dir.join("daemon.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        let program = bin_dir().join("ocivisord").display().to_string();
        let mut command = self.command(&[&program]);
        // From the first pretended boot on, all daemons believe it.
        let boots = self.boots.load(Ordering::Relaxed);
        let boot = (boots > 0).then(|| format!("{}-{boots}", self.cgroup));
        command
            .arg("--state-dir")
            .arg(self.dir.join("s"))
            .arg("--run-dir")
            .arg(self.dir.join("r"))
            .arg("--config")
            .arg(self.dir.join("c.toml"))
            .envs(environment.iter().copied())
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
        *lock(&self.daemon) = Some(daemon);
    }

    /// Kills the daemon as `kill -9` does.
    pub fn kill_daemon(&self) {
        if let Some(mut daemon) = lock(&self.daemon).take() {
            let _gone = daemon.kill();
            let _gone = daemon.wait();
        }
    }

    /// Waits until the daemon died by itself.
    ///
    /// # Panics
    /// It lives on.
    pub fn outlive_daemon(&self) {
        let mut daemon = lock(&self.daemon).take().expect("a daemon");
        let died = wait_for_option(PATIENCE, || daemon.try_wait().unwrap());
        assert!(died.is_some(), "the daemon of {} lives on\n{}", self.name, self.log());
    }

    /// Sends the daemon a signal: it stops for a while, or goes on.
    pub fn signal_daemon(&self, name: &str) {
        let pid = lock(&self.daemon).as_ref().expect("a daemon").id();
        ocivisor_tests::tool(&["kill", &format!("-{name}"), &pid.to_string()]);
    }

    /// What a boot of the machine is to a host: nothing runs or is mounted, the run directory is empty.
    ///
    /// # Panics
    /// It cannot be made anew.
    pub fn reboot(&self) {
        self.kill_daemon();
        self.clear();
        fs::remove_dir_all(self.dir.join("r")).unwrap();
        fs::create_dir(self.dir.join("r")).unwrap();
        *lock(&self.holder) = hold(&self.dir, &self.root, self.shared);
        self.boots.fetch_add(1, Ordering::Relaxed);
        self.write_entrance();
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
        lock(&self.holder).id()
    }

    /// Kills a guest's first process, as the kernel does that is short of memory.
    ///
    /// # Panics
    /// It has none.
    pub fn kill_guest(&self, vm: &str) {
        self.signal_guest(vm, "KILL");
    }

    /// Sends a guest's first process a signal: stopped, it ends only by force.
    ///
    /// # Panics
    /// It has none.
    pub fn signal_guest(&self, vm: &str, name: &str) {
        let info = self.cli(&["info", vm, "-o", "json"]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let pid = info["guest"]["init"]["pid"].to_string();
        ocivisor_tests::tool(&["kill", &format!("-{name}"), &pid]);
    }

    /// Somebody has a shell in the root disk of a VM on it: nobody can unmount that, till this is gone.
    ///
    /// # Panics
    /// It is not mounted.
    #[must_use]
    pub fn occupy(&self, vm: &str) -> Occupant {
        let point = self.dir.join("r/vms").join(vm).join("disk").display().to_string();
        let mountinfo = fs::read_to_string(format!("/proc/{}/mountinfo", self.process())).unwrap();
        assert!(mountinfo.contains(&format!(" {point} ")), "{point}: {mountinfo}");
        let mut shell = self
            .command(&["sh", "-c", "cd \"$1\" && echo ready && exec cat", "sh", &point])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{point}");
        Occupant(shell)
    }

    /// The host loses what its daemon remembers of a VM.
    ///
    /// # Panics
    /// It remembers nothing.
    pub fn lose(&self, vm: &str) {
        self.kill_daemon();
        fs::rename(self.dir.join("s/vms").join(vm), self.dir.join("s/lost")).unwrap();
        self.start_daemon();
    }

    /// It is found again.
    ///
    /// # Panics
    /// Nothing is lost.
    pub fn find(&self, vm: &str) {
        self.kill_daemon();
        fs::rename(self.dir.join("s/lost"), self.dir.join("s/vms").join(vm)).unwrap();
        self.start_daemon();
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
        let here = own(self.process()).filter(|here| Some(here) != outside.as_ref());
        let all = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| here.is_some() && own(*pid) == here).collect()
    }

    /// What it holds now.
    #[must_use]
    pub fn holdings(&self) -> Holdings {
        let mountinfo = fs::read_to_string(format!("/proc/{}/mountinfo", self.process()));
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
    fn clear(&self) {
        let holder = self.process();
        for pid in self.inhabitants().into_iter().filter(|pid| *pid != holder) {
            let _gone = Command::new("kill").args(["-9", &pid.to_string()]).output();
        }
        for _ in 0..3 {
            for pid in processes(&cgroups(&self.cgroup)) {
                let _gone = Command::new("kill").args(["-9", &pid.to_string()]).output();
            }
        }
        let mut holder = lock(&self.holder);
        drop(holder.stdin.take());
        let _gone = holder.wait();
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

/// How long drivers wait for guests that are to end, and for a daemon that is away.
const PATIENT: &str = "shutdown_timeout = 5\ndaemon_timeout = 4\n";

/// Writes the drivers' configuration on a host.
fn configure(dir: &Path, lines: &str) {
    let state_dir = dir.join("db/ocivisor");
    let text = format!("{lines}[monitoring]\nstate_dir = {state_dir:?}\n");
    fs::write(dir.join("opennebula.toml"), text).unwrap();
}

/// A process that has the host's namespaces. What other tests mounted is not kept: their disks would be in use.
fn hold(dir: &Path, root: &Path, shared: &[u32]) -> Child {
    let script = "set -e; dir=$1 root=$2 others=$3; shift 3; mount --make-rprivate /
        while read -r _ _ _ _ point _; do
            case $point in \"$dir\"*|\"$root\"*) ;; \"$others\"/*) umount --lazy \"$point\" 2>/dev/null || :;; esac
        done < /proc/self/mountinfo
        for store; do mount --bind \"$root/var/lib/one/datastores/$store\" \"$dir/datastores/$store\"; done
        mount --rbind \"$dir/datastores\" \"$root/var/lib/one/datastores\"
        mount --bind \"$dir/one\" \"$root/var/tmp/one\"
        ip link set lo up; ip link add br0 type bridge; ip link add br1 type bridge; echo ready; exec cat";
    let mut holder = Command::new("unshare")
        .args(["--mount", "--net", "sh", "-c", script, "sh"])
        .args([dir, root, &std::env::temp_dir()])
        .args(shared.iter().map(u32::to_string))
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
