//! How the tools that look into disks are run: so many at once on a host, in the control group of the VM whose disk it
//! is, until one deadline for all of its disks, and only as long as somebody wants them.
//!
//! How long a check takes is up to whoever filled the disk. It holds up the VM's operation, and with that one of the few
//! threads that a platform has for all VMs of its cloud; its memory is what the filesystem makes it. So the time is
//! bounded for the whole VM; memory and processors are those of the VM, which pays for its owner's files; and whoever ends
//! the VM ends the tool. Waiting for a turn is not the VM's time, or one with slow disks would have others fail; it has a
//! bound of its own, for what comes when all turns are taken by such VMs.
//!
//! Tools that *make* a filesystem read nothing that is a tenant's, what they use is bounded by us, and a guest of a few
//! megabytes shall get its disk formatted: they stay in the daemon's group, and wait for nobody.
//!
//! Deliberately absent: turns by owner. Nothing tells a host whose a VM is.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::units::Bytes;

use crate::command::{self, Ended};
use crate::confine::{self, Confinement, Input};
use crate::fs::io_error;

/// Bounds on checks of tenants' filesystems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checks {
    /// What those of all disks of a VM may take, each time that it is started, waiting for a turn aside.
    pub limit: Duration,
    /// How many run at once on this host; at least 1.
    pub at_once: usize,
}

impl Default for Checks {
    /// As many at once as there are processors: what else they take is their VMs'.
    fn default() -> Self {
        let at_once = std::thread::available_parallelism().map_or(2, NonZero::get).max(2);
        Self { limit: Duration::from_mins(10), at_once }
    }
}

/// How many times the limit a VM waits for its turns, all together.
const WAITING: u32 = 6;

/// How often those who wait look whether they are still wanted.
const LOOK: Duration = Duration::from_millis(200);

/// Who is at work on this host, and who is next.
#[derive(Debug, Default)]
pub(in super::super) struct Turns {
    checks: Checks,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// First come, first served.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeSet<u64>,
    running: usize,
}

impl Turns {
    pub(in super::super) fn new(checks: Checks) -> Self {
        Self { checks, ..Self::default() }
    }

    /// What all disks of a VM may take.
    pub(in super::super) fn limit(&self) -> Duration {
        self.checks.limit
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of those at work, until this is dropped.
struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.queue().running -= 1;
        self.0.changed.notify_all();
    }
}

/// Tools for the disks of one VM.
pub(super) struct Tools<'a> {
    turns: &'a Turns,
    /// It moves on by what is waited for turns.
    deadline: Cell<Instant>,
    waited: Cell<Duration>,
    give_up: &'a dyn Fn() -> bool,
    /// Of the VM; none are the daemon's.
    groups: Vec<File>,
    /// What the VM may have.
    memory: Bytes,
}

impl<'a> Tools<'a> {
    pub(super) fn new(
        turns: &'a Turns,
        groups: Vec<PathBuf>,
        memory: Bytes,
        give_up: &'a dyn Fn() -> bool,
    ) -> Result<Self> {
        let open = |path: PathBuf| {
            let file = OpenOptions::new().write(true).open(&path);
            file.map_err(|e| io_error("open control group", &path, &e))
        };
        let groups = groups.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        let deadline = Cell::new(Instant::now() + turns.checks.limit);
        Ok(Self { turns, deadline, waited: Cell::default(), give_up, groups, memory })
    }

    /// MiB of memory that a tool may plan with, if it asks.
    pub(super) fn memory_mib(&self) -> u64 {
        (self.memory.0 >> 20).clamp(64, 2048)
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// `Cancelled`: nobody wants it. `Timeout`.
    pub(super) fn go_on(&self) -> Result<()> {
        self.is_wanted()?;
        if Instant::now() >= self.deadline.get() {
            return Err(self.late());
        }
        Ok(())
    }

    fn is_wanted(&self) -> Result<()> {
        if (self.give_up)() {
            return Err(Error::new(ErrorKind::Cancelled, "the check was broken off"));
        }
        Ok(())
    }

    fn late(&self) -> Error {
        let minutes = self.turns.checks.limit.as_millis().div_ceil(60_000);
        let what = format!("the disks of the vm were not checked within {minutes} min");
        Error::new(ErrorKind::Timeout, what).hint(
            "ask for large ones as block devices, or let disks.check_minutes in ocivisor.toml be more",
        )
    }

    /// Runs a tool as nobody to its end, whatever that is.
    ///
    /// # Errors
    /// As [`Tools::go_on`]; `Unsupported`: there is no such tool; `Host`.
    pub(super) fn run(
        &self,
        argv: &[&str],
        files: &[BorrowedFd<'_>],
        largest_file: u64,
        (input, user): (Input, u32),
    ) -> Result<Ended> {
        let (_turn, groups) = match input {
            Input::Foreign => (Some(self.turn()?), self.groups.iter().map(AsFd::as_fd).collect()),
            Input::Ours => (None, Vec::new()),
        };
        let to = Confinement { files, largest_file, input, user, groups: &groups };
        let left = self.deadline.get().saturating_duration_since(Instant::now());
        command::watch_confined(argv, &to, left, self.give_up).map_err(|e| match e.kind {
            ErrorKind::Timeout => self.late(),
            _ => e,
        })
    }

    fn turn(&self) -> Result<Turn<'_>> {
        self.go_on()?;
        let since = Instant::now();
        let most = (self.turns.checks.limit * WAITING).saturating_sub(self.waited.get());
        let mut queue = self.turns.queue();
        let own = queue.next;
        queue.next += 1;
        queue.waiting.insert(own);
        let got = loop {
            let first = queue.waiting.first() == Some(&own);
            if first && queue.running < self.turns.checks.at_once.max(1) {
                queue.running += 1;
                break Ok(Turn(self.turns));
            }
            if let Err(error) = self.is_wanted() {
                break Err(error);
            }
            if since.elapsed() >= most {
                break Err(self.crowded());
            }
            let waited = self.turns.changed.wait_timeout(queue, LOOK.min(most));
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        queue.waiting.remove(&own);
        drop(queue);
        // Who is first now may not be who was told last.
        self.turns.changed.notify_all();
        let waited = since.elapsed();
        self.waited.set(self.waited.get() + waited);
        self.deadline.set(self.deadline.get() + waited);
        got
    }

    fn crowded(&self) -> Error {
        let minutes = (self.turns.checks.limit * WAITING).as_millis().div_ceil(60_000);
        let what = format!(
            "the disks of the vm were not checked: for {minutes} min this host was checking those of others"
        );
        Error::new(ErrorKind::Timeout, what)
            .hint("try again, or let disks.checks_at_once in ocivisor.toml be more")
    }
}

/// A user for one run, which owns what the tool works on.
pub(super) fn as_nobody(input: Input) -> (Input, u32) {
    (input, confine::user())
}

/// What is said of a tool that did not get to say anything about the disk.
pub(super) fn broke_down(tool: &str, ended: &Ended) -> Error {
    use std::os::unix::process::ExitStatusExt;
    if ended.status.signal() == Some(libc::SIGKILL) {
        let what = format!("{tool} was killed, as where it needs more memory than the vm has");
        let hint = "give the vm more memory, or ask for the disk as a block device";
        return Error::new(ErrorKind::Exhausted, what).hint(hint);
    }
    let what = format!("{tool} failed ({}): {}", ended.status, ended.last_words());
    Error::new(ErrorKind::Host, what)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn turns(limit: Duration, at_once: usize) -> Turns {
        Turns::new(Checks { limit, at_once })
    }

    fn tools<'a>(turns: &'a Turns, give_up: &'a dyn Fn() -> bool) -> Tools<'a> {
        Tools::new(turns, Vec::new(), Bytes::mib(64), give_up).unwrap()
    }

    fn sleep(tools: &Tools<'_>) -> Result<Ended> {
        tools.run(&["sleep", "1000"], &[], 0, as_nobody(Input::Foreign))
    }

    /// Has one at work until `ended`, for as long as this takes.
    fn beside_one(turns: &Turns, then: impl FnOnce()) {
        let ended = AtomicBool::new(false);
        let give_up = || ended.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            let one = scope.spawn(|| sleep(&tools(turns, &give_up)).unwrap_err().kind);
            while turns.queue().running == 0 {
                std::thread::yield_now();
            }
            then();
            ended.store(true, Ordering::Relaxed);
            assert_eq!(one.join().unwrap(), ErrorKind::Cancelled);
        });
    }

    #[test]
    fn our_own_fresh_disks_wait_for_nobody() {
        let turns = turns(LONG, 1);
        beside_one(&turns, || {
            let tools = tools(&turns, &|| false);
            let ended = tools.run(&["true"], &[], 0, as_nobody(Input::Ours)).unwrap();
            assert!(ended.status.success());
        });
    }

    #[test]
    fn waiting_for_a_turn_is_not_the_time_of_the_vm() {
        let limit = Duration::from_millis(500);
        let turns = turns(limit, 1);
        // As if somebody had the only turn for longer than all of a VM's checks may take.
        turns.queue().running = 1;
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let tools = tools(&turns, &|| false);
                let since = Instant::now();
                let ended = tools.run(&["true"], &[], 0, as_nobody(Input::Foreign)).unwrap();
                (ended.status.success(), since.elapsed() > limit, tools.go_on().is_ok())
            });
            let until = Instant::now() + limit * 2;
            while turns.queue().waiting.is_empty() || Instant::now() < until {
                std::thread::yield_now();
            }
            drop(Turn(&turns));
            assert_eq!(waits.join().unwrap(), (true, true, true));
        });
    }

    #[test]
    fn who_never_gets_a_turn_is_told_so() {
        let turns = turns(Duration::from_millis(50), 1);
        turns.queue().running = 1;
        let tools = tools(&turns, &|| false);
        let error = sleep(&tools).unwrap_err();
        let want = "the disks of the vm were not checked: for 1 min this host was checking those of others";
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Timeout, want));
        assert!(turns.queue().waiting.is_empty());
    }

    #[test]
    fn who_ends_the_vm_ends_the_tool_and_the_waiting_for_it() {
        let turns = turns(LONG, 1);
        let ended = AtomicBool::new(false);
        let give_up = || ended.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            let one = scope.spawn(|| sleep(&tools(&turns, &give_up)).unwrap_err().kind);
            while turns.queue().running == 0 {
                std::thread::yield_now();
            }
            let other = scope.spawn(|| sleep(&tools(&turns, &give_up)).unwrap_err().kind);
            while turns.queue().waiting.is_empty() {
                std::thread::yield_now();
            }
            assert_eq!(turns.queue().running, 1, "one at once");
            ended.store(true, Ordering::Relaxed);
            assert_eq!(one.join().unwrap(), ErrorKind::Cancelled);
            assert_eq!(other.join().unwrap(), ErrorKind::Cancelled);
        });
        let queue = turns.queue();
        assert_eq!((queue.running, queue.waiting.len()), (0, 0));
    }

    #[test]
    fn one_deadline_is_for_all_tools_of_a_vm() {
        let turns = turns(Duration::from_millis(300), 1);
        let tools = tools(&turns, &|| false);
        let want = "the disks of the vm were not checked within 1 min";
        for _ in 0..2 {
            let error = sleep(&tools).unwrap_err();
            assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Timeout, want));
        }
        assert_eq!(tools.go_on().unwrap_err().kind, ErrorKind::Timeout);
    }

    #[test]
    fn a_killed_tool_says_nothing_about_the_disk() {
        let turns = turns(LONG, 1);
        let tools = tools(&turns, &|| false);
        let argv = ["sh", "-c", "kill -9 $$"];
        let ended = tools.run(&argv, &[], 0, as_nobody(Input::Ours)).unwrap();
        assert_eq!(broke_down("e2fsck", &ended).kind, ErrorKind::Exhausted);
    }
}
