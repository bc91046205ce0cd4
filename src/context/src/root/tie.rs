//! What a process loses by acting as a user, and has again.

use rustix::process::{
    DumpableBehavior, Pid, Signal, dumpable_behavior, getpid, getppid, kill_process,
    parent_process_death_signal, set_dumpable_behavior, set_parent_process_death_signal,
};

/// What ties this process to its parent and hides it: prctl(2) says that each change of the ids on files loosens both.
pub(super) struct Tie {
    signal: Option<Signal>,
    dumpable: Option<DumpableBehavior>,
    parent: Option<Pid>,
}

impl Tie {
    pub(super) fn of_this_process() -> Self {
        Self {
            signal: parent_process_death_signal().ok().flatten(),
            dumpable: dumpable_behavior().ok(),
            parent: getppid(),
        }
    }

    /// As it was; and who lost his parent meanwhile gets the signal now.
    pub(super) fn renew(&self) {
        if let Some(dumpable) = self.dumpable {
            // EINVAL: it was what the kernel alone may set (2), and is that again.
            let _ = set_dumpable_behavior(dumpable);
        }
        let Some(signal) = self.signal else { return };
        let renewed = set_parent_process_death_signal(Some(signal));
        if renewed.is_err() || getppid() != self.parent {
            // ESRCH cannot be.
            let _ = kill_process(getpid(), signal);
        }
    }
}
