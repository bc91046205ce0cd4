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

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::units::Bytes;

use super::turns::{Time, Turn, Turns};
use crate::command::{self, Ended, Wish};
use crate::confine::{self, Confinement, Input};
use crate::fs::io_error;

/// How often those who wait look whether they are still wanted.
const LOOK: Duration = Duration::from_millis(200);

/// Tools for the disks of one VM.
pub(super) struct Tools<'a> {
    turns: &'a Turns,
    time: &'a Time,
    give_up: &'a dyn Fn() -> bool,
    /// Of the VM; none are the daemon's.
    groups: Vec<File>,
    /// What the VM may have.
    memory: Bytes,
}

impl<'a> Tools<'a> {
    pub(super) fn new(
        turns: &'a Turns,
        time: &'a Time,
        groups: Vec<PathBuf>,
        memory: Bytes,
        give_up: &'a dyn Fn() -> bool,
    ) -> Result<Self> {
        let open = |path: PathBuf| {
            let file = OpenOptions::new().write(true).open(&path);
            file.map_err(|e| io_error("open control group", &path, &e))
        };
        let groups = groups.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        Ok(Self { turns, time, give_up, groups, memory })
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
        if self.time.left().is_zero() {
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
        let minutes = self.time.limit().as_millis().div_ceil(60_000);
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
        let (turn, groups) = match input {
            Input::Foreign => (Some(self.turn()?), self.groups.iter().map(AsFd::as_fd).collect()),
            Input::Ours => (None, Vec::new()),
        };
        let to = Confinement { files, largest_file, input, user, groups: &groups };
        let over = Cell::new(None);
        let wish = || {
            let wish = match &turn {
                Some(turn) if !turn.is_on() => self.wait_on().map(|()| Wish::Rest),
                _ => self.go_on().map(|()| Wish::Work),
            };
            wish.unwrap_or_else(|why| {
                over.set(Some(why));
                Wish::End
            })
        };
        command::watch_confined(argv, &to, &wish).map_err(|e| over.take().unwrap_or(e))
    }

    fn turn(&self) -> Result<Turn<'_>> {
        self.go_on()?;
        let turn = Turn::new(self.turns, self.time);
        while !turn.comes_within(LOOK) {
            self.wait_on()?;
        }
        Ok(turn)
    }

    /// Whether to wait on.
    fn wait_on(&self) -> Result<()> {
        self.is_wanted()?;
        if self.time.waited() >= self.turns.most_waiting() {
            return Err(self.crowded());
        }
        Ok(())
    }

    fn crowded(&self) -> Error {
        let minutes = self.turns.most_waiting().as_millis().div_ceil(60_000);
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
    use std::time::Instant;

    use super::super::turns::Checks;
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn turns(limit: Duration, at_once: usize) -> Turns {
        Turns::new(Checks { limit, at_once })
    }

    fn tools<'a>(turns: &'a Turns, time: &'a Time, give_up: &'a dyn Fn() -> bool) -> Tools<'a> {
        Tools::new(turns, time, Vec::new(), Bytes::mib(64), give_up).unwrap()
    }

    /// Runs one for a VM of its own.
    fn tool(
        turns: &Turns,
        argv: &[&str],
        input: Input,
        give_up: &dyn Fn() -> bool,
    ) -> Result<Ended> {
        let time = Time::new(turns.limit());
        tools(turns, &time, give_up).run(argv, &[], 0, as_nobody(input))
    }

    fn sleep(turns: &Turns, give_up: &dyn Fn() -> bool) -> ErrorKind {
        tool(turns, &["sleep", "1000"], Input::Foreign, give_up).unwrap_err().kind
    }

    /// Has one at work until `then` is over.
    fn beside_one(turns: &Turns, then: impl FnOnce()) {
        let ended = AtomicBool::new(false);
        let give_up = || ended.load(Ordering::Relaxed);
        std::thread::scope(|scope| {
            let one = scope.spawn(|| sleep(turns, &give_up));
            while turns.queue().at_work == 0 {
                std::thread::yield_now();
            }
            then();
            ended.store(true, Ordering::Relaxed);
            assert_eq!(one.join().unwrap(), ErrorKind::Cancelled);
        });
        let queue = turns.queue();
        assert_eq!((queue.at_work, queue.waiting.len()), (0, 0));
    }

    #[test]
    fn our_own_fresh_disks_wait_for_nobody() {
        let turns = turns(LONG, 1);
        beside_one(&turns, || {
            let ended = tool(&turns, &["true"], Input::Ours, &|| false).unwrap();
            assert!(ended.status.success());
        });
    }

    #[test]
    fn who_is_long_at_work_makes_room_for_others_and_goes_on() {
        let mut turns = turns(LONG, 1);
        turns.length = Duration::from_millis(100);
        beside_one(&turns, || {
            for _ in 0..2 {
                let ended = tool(&turns, &["true"], Input::Foreign, &|| false).unwrap();
                assert!(ended.status.success());
                let until = Instant::now() + LONG;
                while turns.queue().at_work == 0 && Instant::now() < until {
                    std::thread::yield_now();
                }
                let queue = turns.queue();
                assert_eq!((queue.at_work, queue.waiting.len()), (1, 0), "it goes on");
            }
        });
    }

    #[test]
    fn waiting_for_a_turn_is_not_the_time_of_the_vm() {
        let limit = Duration::from_secs(3);
        let turns = turns(limit, 1);
        // As if somebody had the only turn for longer than all of a VM's checks may take.
        turns.queue().at_work = 1;
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let (since, time) = (Instant::now(), Time::new(limit));
                let tools = tools(&turns, &time, &|| false);
                let ended = tools.run(&["true"], &[], 0, as_nobody(Input::Foreign)).unwrap();
                (ended.status.success(), since.elapsed() > limit, tools.go_on().is_ok())
            });
            let until = Instant::now() + limit * 2;
            while turns.queue().waiting.is_empty() || Instant::now() < until {
                std::thread::yield_now();
            }
            turns.queue().at_work = 0;
            assert_eq!(waits.join().unwrap(), (true, true, true));
        });
    }

    #[test]
    fn who_never_gets_a_turn_is_told_so() {
        let turns = turns(Duration::from_millis(50), 1);
        turns.queue().at_work = 1;
        let error = tool(&turns, &["true"], Input::Foreign, &|| false).unwrap_err();
        let want = "the disks of the vm were not checked: for 1 min this host was checking those of others";
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Timeout, want));
        assert!(turns.queue().waiting.is_empty());
    }

    #[test]
    fn who_ends_the_vm_ends_the_tool_and_the_waiting_for_it() {
        let turns = turns(LONG, 1);
        let ended = AtomicBool::new(false);
        let give_up = || ended.load(Ordering::Relaxed);
        beside_one(&turns, || {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| sleep(&turns, &give_up));
                while turns.queue().waiting.is_empty() {
                    std::thread::yield_now();
                }
                assert_eq!(turns.queue().at_work, 1, "one at once");
                ended.store(true, Ordering::Relaxed);
                assert_eq!(other.join().unwrap(), ErrorKind::Cancelled);
            });
        });
    }

    #[test]
    fn one_deadline_is_for_all_tools_of_a_vm() {
        let turns = turns(Duration::from_millis(300), 1);
        let time = Time::new(turns.limit());
        let tools = tools(&turns, &time, &|| false);
        let want = "the disks of the vm were not checked within 1 min";
        for _ in 0..2 {
            let ended = tools.run(&["sleep", "1000"], &[], 0, as_nobody(Input::Foreign));
            let error = ended.unwrap_err();
            assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Timeout, want));
        }
        assert_eq!(tools.go_on().unwrap_err().kind, ErrorKind::Timeout);
    }

    #[test]
    fn a_killed_tool_says_nothing_about_the_disk() {
        let turns = turns(LONG, 1);
        let ended = tool(&turns, &["sh", "-c", "kill -9 $$"], Input::Ours, &|| false).unwrap();
        assert_eq!(broke_down("e2fsck", &ended).kind, ErrorKind::Exhausted);
    }
}
