//! The port itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs as stdfs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{IdRange, VmId};
use ocivisor_core::ports::{Adoption, GuestView, Guests};
use ocivisor_core::spec::VmSpec;
use ocivisor_core::state::{GuestExit, GuestFacts, ProcessRef};
use ocivisor_shim::client::{Client, ClientError};
use ocivisor_shim::{exit, sys};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::exec::cards;
use super::{ExitFds, HostGuests, Settings, bundle, client, words};
use crate::fs::{self, io_error};
use crate::layout::VmRun;
use crate::process;

/// How often `give_up` is asked.
const TICK: Duration = Duration::from_millis(50);
/// A killed process is gone at once, unless it is stuck in the kernel or frozen; one with much memory on a busy host takes
/// seconds.
pub(super) const DEATH: Duration = Duration::from_secs(30);
/// What a shim gets to write down the end of a guest that was killed.
const SHIM_END: Duration = Duration::from_secs(1);
/// What a shim gets to write down the end of a guest that ended by itself.
const EXIT_RECORD: Duration = Duration::from_secs(5);
/// What the new parent of an orphaned guest gets to collect it.
const COLLECT: Duration = Duration::from_secs(2);

impl HostGuests {
    /// The adapter with these settings; nothing is touched.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, masters: Mutex::new(BTreeMap::new()), children: Mutex::new(Vec::new()) }
    }

    /// Reaps shims of ours that ended. To be called now and then (every verb that makes or ends
    /// guests does), else they stay as zombies, which costs a process id each and nothing more.
    pub fn reap(&self) {
        // An error means that it was reaped by somebody else.
        lock(&self.children).retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    /// Descriptors that become readable when the guest's first process ends, and its shim.
    #[must_use]
    pub fn exit_fds(&self, facts: &GuestFacts) -> ExitFds {
        ExitFds { init: process::pidfd(facts.init), shim: process::pidfd(facts.shim) }
    }

    /// The socket for consoles, see [`ocivisor_shim::client`].
    #[must_use]
    pub fn console_socket(&self, id: &VmId) -> PathBuf {
        self.run(id).shim_socket()
    }

    fn run(&self, id: &VmId) -> VmRun {
        self.settings.layout.run_vm(id)
    }

    /// Everything of `create_guest` after the bundle.
    pub(super) fn launch(&self, id: &VmId, bundle: bundle::Facts) -> Result<GuestFacts> {
        let host_boot = self.settings.boot.clone();
        fs::ensure_dir(&self.settings.layout.vm(id), true)?;
        fs::ensure_dir(&self.run(id).runtime(), false)?;
        self.ensure_sockets(id)?;
        let ready = self.spawn_runtime(id)?;
        self.keep_master(id);
        Ok(GuestFacts {
            init: ready.init,
            shim: ready.shim,
            kind: bundle.kind,
            stop_signal: bundle.stop_signal,
            host_boot,
        })
    }

    /// The directory for clients: whoever is of the operators' group may pass it.
    pub(super) fn ensure_sockets(&self, id: &VmId) -> Result<()> {
        let run = self.run(id);
        let dirs = [self.settings.layout.run_sockets(), run.sockets().to_owned()];
        dirs.iter().try_for_each(|dir| fs::ensure_passable(dir, self.settings.console_group))
    }

    /// Clears what an earlier boot left; refuses if that still runs.
    pub(super) fn clear(&self, id: &VmId) -> Result<()> {
        let run = self.run(id);
        if let Some(known) = client::read_facts(&run).unwrap_or_default() {
            for (what, old) in [("its first process", known.init), ("its shim", known.shim)] {
                if process::is_alive(client::process(old)) {
                    let what = format!("guest {id} exists: {what} is {}", old.pid);
                    return Err(Error::new(ErrorKind::Conflict, what));
                }
            }
        }
        lock(&self.masters).remove(id);
        remove_files(&run)
    }

    /// How a guest ended whose first process is gone.
    fn exit_of(
        &self,
        id: &VmId,
        facts: &GuestFacts,
        init: Option<&OwnedFd>,
        patience: Duration,
    ) -> Result<GuestExit> {
        let run = self.run(id);
        let deadline = Instant::now() + patience;
        let shim = client::read_facts(&run).unwrap_or_default();
        let shim = shim.map_or(facts.shim, |known| client::process(known.shim));
        let shim = process::pidfd(shim);
        loop {
            if let Some(exit) = client::read_exit(&run, Some(facts.init))? {
                return Ok(exit);
            }
            // The shim ends as soon as the record is written.
            let left = deadline.saturating_duration_since(Instant::now()).min(TICK);
            let ended = shim.as_ref().is_none_or(|shim| ends_within(shim, left));
            if ended || Instant::now() >= deadline {
                break;
            }
        }
        if let Some(exit) = client::read_exit(&run, Some(facts.init))? {
            return Ok(exit);
        }
        // No room for the record: the shim waits for room and answers. Or there is no shim: the
        // kernel may tell.
        let told = Client::connect(&run.shim_socket(), client::PATIENCE)
            .map_err(ClientError::Io)
            .and_then(|mut shim| shim.wait());
        Ok(match (told, init) {
            (Ok(exit), _) => client::guest_exit(exit),
            (Err(_), Some(init)) => {
                client::guest_exit(exit::ask_until_collected(init.as_fd(), COLLECT))
            }
            (Err(_), None) => GuestExit::Unknown,
        })
    }

    /// Kills what is in the VM's control groups, whoever it is: a runtime that never came so far
    /// as to write down who it is, or what such a one left behind.
    fn kill_members(&self, id: &VmId) -> Result<()> {
        let cgroups = &self.settings.cgroups;
        let mut files = cgroups.shim_procs(id);
        files.extend(cgroups.guest_procs(id));
        for file in files {
            let deadline = Instant::now() + DEATH;
            loop {
                let members = members(&file)?;
                let Some(&first) = members.first() else { break };
                for &pid in &members {
                    // A pid that is reused between the two reads is not a member any more.
                    let member = process::process_ref(pid)
                        .filter(|_| members_now(&file).is_some_and(|now| now.contains(&pid)));
                    if let Some(member) = member {
                        process::kill(member);
                    }
                }
                if Instant::now() >= deadline {
                    return Err(still_runs(id, first));
                }
                if let Some(fd) = process::process_ref(first).and_then(process::pidfd) {
                    ends_within(&fd, TICK);
                }
                self.reap();
            }
        }
        Ok(())
    }
}

impl Guests for HostGuests {
    fn create_guest(&self, spec: &VmSpec, ids: IdRange) -> Result<GuestFacts> {
        let id = &spec.id;
        self.reap();
        self.clear(id)?;
        let cgroup = self.settings.cgroups.guest_path(id);
        let made = self.settings.lxcfs.find().and_then(|shown| {
            let given = bundle::Given {
                cgroup_path: &cgroup,
                shown: &shown,
                labels: &self.settings.labels,
            };
            let bundle = bundle::write(&self.settings.layout, spec, ids, &given)?;
            self.launch(id, bundle)
        });
        made.inspect_err(|_| {
            // The first error is the one to report, and every undo drops the guest again.
            let _ = self.drop_guest(id);
        })
    }

    fn tell_guest(&self, spec: &VmSpec, facts: &GuestFacts) -> Result<()> {
        self.tell(spec, facts)
    }

    fn start_guest(&self, id: &VmId, _facts: &GuestFacts) -> Result<()> {
        let started = client::connect(id, &self.run(id))?.start();
        started.map_err(|e| client::shim_error(id, &e))
    }

    fn signal_guest(&self, id: &VmId, facts: &GuestFacts, signal: u8) -> Result<()> {
        // Straight to the process: works without a shim as well.
        let Some(init) = process::pidfd(facts.init) else {
            return Ok(());
        };
        match sys::send_signal(init.as_fd(), signal) {
            Err(e) if e.raw_os_error() != Some(Errno::SRCH.raw_os_error()) => {
                let what = format!("send signal {signal} to guest {id}: {e}");
                Err(Error::new(ErrorKind::Host, what))
            }
            _ => Ok(()),
        }
    }

    fn wait_exit(
        &self,
        id: &VmId,
        facts: &GuestFacts,
        timeout: Duration,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Option<GuestExit>> {
        let deadline = Instant::now() + timeout;
        let init = process::pidfd(facts.init);
        if let Some(init) = &init {
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                if ends_within(init, left.min(TICK)) {
                    break;
                }
                if left.is_zero() || give_up() {
                    return Ok(None);
                }
            }
        }
        let exit = self.exit_of(id, facts, init.as_ref(), EXIT_RECORD)?;
        self.reap();
        Ok(Some(exit))
    }

    fn drop_guest(&self, id: &VmId) -> Result<()> {
        let run = self.run(id);
        // A damaged file tells nothing; the control groups still know everybody.
        if let Some(known) = client::read_facts(&run).unwrap_or_default() {
            kill_and_wait(client::process(known.init), DEATH)
                .map_err(|e| e.context(format!("guest {id}")))?;
            let shim = client::process(known.shim);
            // It ends by itself, after the last of the console is in the log.
            if let Some(fd) = process::pidfd(shim)
                && !ends_within(&fd, SHIM_END)
            {
                kill_and_wait(shim, DEATH).map_err(|e| e.context(format!("shim of guest {id}")))?;
            }
        }
        for session in cards(run.sockets()).into_iter().filter_map(|(_, process)| process) {
            kill_and_wait(session, DEATH)
                .map_err(|e| e.context(format!("exec session of guest {id}")))?;
        }
        self.kill_members(id)?;
        self.reap();
        lock(&self.masters).remove(id);
        remove_files(&run)?;
        match stdfs::remove_dir(run.dir()) {
            // Others keep things there, or it never was.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(io_error("remove directory", run.dir(), &e)),
            Ok(()) => Ok(()),
        }
    }

    fn observe_guest(&self, id: &VmId, facts: Option<&GuestFacts>) -> Result<GuestView> {
        let run = self.run(id);
        let known = client::read_facts(&run).unwrap_or_default();
        let this_boot = match facts {
            Some(facts) => facts.host_boot == self.settings.boot,
            None => true,
        };
        let facts = facts.filter(|_| this_boot);
        let init = facts.map(|facts| facts.init);
        let init = init.or_else(|| known.as_ref().map(|known| client::process(known.init)));
        let Some(init) = init else {
            return Ok(client::read_exit(&run, None)?.map_or(GuestView::Absent, GuestView::Exited));
        };
        let known = known.filter(|known| client::process(known.init) == init);
        let shim = known.as_ref().map(|known| client::process(known.shim));
        // What counts is the shim on record: one that took its place, and died or was cut off
        // before that was recorded, is to be adopted, or nobody would watch it.
        let recorded = facts.map(|facts| facts.shim);
        let shim_alive = recorded.or(shim).is_some_and(process::is_alive);
        let shim = shim.or(recorded);
        if process::is_alive(init) {
            let started = known.is_none_or(|known| known.started);
            return Ok(if started {
                GuestView::Running { shim_alive }
            } else {
                GuestView::Created
            });
        }
        if let Some(exit) = client::read_exit(&run, Some(init))? {
            return Ok(GuestView::Exited(exit));
        }
        if !run.dir().exists() || (known.is_none() && !shim_alive) {
            return Ok(GuestView::Absent);
        }
        // Ended this moment, or its shim is gone as well.
        let seen = GuestFacts {
            init,
            shim: shim.unwrap_or(init),
            kind: facts.map_or(ocivisor_core::state::GuestKind::Application, |facts| facts.kind),
            stop_signal: 0,
            host_boot: String::new(),
        };
        self.exit_of(id, &seen, None, EXIT_RECORD).map(GuestView::Exited)
    }

    fn adopt_guest(&self, spec: &VmSpec, facts: &GuestFacts) -> Result<Adoption> {
        self.adopt(&spec.id, facts)
    }

    fn observe_guests(&self) -> Result<BTreeSet<VmId>> {
        let layout = &self.settings.layout;
        let mut ids = BTreeSet::new();
        for dir in [layout.run_vms(), layout.run_sockets()] {
            let entries = match stdfs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(io_error("list", &dir, &e)),
            };
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            ids.extend(names.filter_map(|name| name.parse::<VmId>().ok()));
        }
        ids.retain(|id| has_files(&self.run(id)));
        Ok(ids)
    }

    fn last_words(&self, id: &VmId) -> Option<String> {
        words::last_line(&self.settings.layout.console_log(id))
    }

    fn last_lines(&self, id: &VmId) -> Vec<String> {
        words::last_lines(&self.settings.layout.console_log(id))
    }

    fn forget_guest(&self, id: &VmId) -> Result<()> {
        let log = self.settings.layout.console_log(id);
        fs::drop_file(&log)?;
        fs::drop_file(&suffixed(&log, ".1"))
    }
}

/// The lock's content, also after a panic of another holder: what is inside is consistent between
/// any two statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills that very process and waits until it is gone.
pub(super) fn kill_and_wait(victim: ProcessRef, patience: Duration) -> Result<()> {
    let Some(fd) = process::pidfd(victim) else {
        return Ok(());
    };
    process::kill(victim);
    if ends_within(&fd, patience) {
        return Ok(());
    }
    let what = format!("process {} does not end after SIGKILL", victim.pid);
    Err(Error::new(ErrorKind::Timeout, what).hint("it is frozen, or stuck in the kernel on a disk"))
}

fn still_runs(id: &VmId, pid: u32) -> Error {
    Error::new(ErrorKind::Timeout, format!("guest {id}: process {pid} does not end after SIGKILL"))
}

/// Whether the process of a pidfd ends within that time.
fn ends_within(pidfd: &OwnedFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&wait)) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            // Out of memory: as if it had not ended, the callers look again.
            Err(_) => return false,
        }
    }
}

/// The host's boot, as the kernel names it.
pub(super) fn boot_id() -> Result<String> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = stdfs::read_to_string(path).map_err(|e| io_error("read", path, &e))?;
    Ok(text.trim().to_owned())
}

pub(super) fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn files(run: &VmRun) -> Vec<PathBuf> {
    let lasting = [run.shim_facts(), run.exit_record()];
    let half_written = lasting.iter().map(|path| suffixed(path, ".new"));
    // Where the runtime, if it was killed, waited for the terminal.
    let console = run.dir().join("console.sock");
    half_written.chain(lasting.iter().cloned()).chain([console]).collect()
}

fn dirs(run: &VmRun) -> [PathBuf; 3] {
    [run.bundle(), run.runtime(), run.sockets().to_owned()]
}

fn has_files(run: &VmRun) -> bool {
    files(run).iter().chain(&dirs(run)).any(|path| path.symlink_metadata().is_ok())
}

/// The facts go last: as long as they are there, who has to be killed is known.
fn remove_files(run: &VmRun) -> Result<()> {
    for dir in dirs(run) {
        fs::drop_dir_all(&dir)?;
    }
    let facts = run.shim_facts();
    for file in files(run).into_iter().filter(|file| *file != facts) {
        fs::drop_file(&file)?;
    }
    fs::drop_file(&facts)
}

/// Process ids in a `cgroup.procs`; none if the group is not there. Zero stands for a process of
/// another pid namespace, and zombies are listed on v1: neither can be killed by us.
fn members(file: &Path) -> Result<Vec<u32>> {
    let text = match stdfs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        // ENODEV: removed after opening. EOPNOTSUPP: a threaded group, its processes are listed
        // in the group above.
        Err(e)
            if [Errno::NODEV, Errno::OPNOTSUPP]
                .iter()
                .any(|errno| e.raw_os_error() == Some(errno.raw_os_error())) =>
        {
            return Ok(Vec::new());
        }
        Err(e) => return Err(io_error("read", file, &e)),
    };
    let pids = text.lines().filter_map(|line| line.parse().ok());
    let alive = |pid: &u32| process::process_ref(*pid).is_some_and(process::is_alive);
    Ok(pids.filter(alive).collect())
}

fn members_now(file: &Path) -> Option<Vec<u32>> {
    members(file).ok()
}
