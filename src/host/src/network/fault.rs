//! Places where tests break or kill the adapter; nothing in other builds.

#[cfg(not(test))]
use ocivisor_core::error::Result;

/// A place between two effects.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "tests make it fail")]
pub(super) fn point() -> Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use injected::*;

#[cfg(test)]
mod injected {
    use std::cell::Cell;

    use ocivisor_core::error::{Error, ErrorKind, Result};

    /// What happens at the chosen place.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(in super::super) enum Fault {
        Fail,
        Kill,
    }

    thread_local! {
        static PASSED: Cell<u32> = const { Cell::new(0) };
        static ARMED: Cell<Option<(u32, Fault)>> = const { Cell::new(None) };
    }

    /// Runs `work` of this thread with a fault at the `at`th place that it passes, from 0; also
    /// tells how many it passed.
    pub(in super::super) fn with<T>(at: u32, fault: Fault, work: impl FnOnce() -> T) -> (T, u32) {
        PASSED.set(0);
        ARMED.set(Some((at, fault)));
        let result = work();
        ARMED.set(None);
        (result, PASSED.get())
    }

    /// A place between two effects.
    pub(in super::super) fn point() -> Result<()> {
        let here = PASSED.get();
        PASSED.set(here + 1);
        match ARMED.get() {
            Some((at, Fault::Fail)) if at == here => {
                Err(Error::new(ErrorKind::Host, "injected failure"))
            }
            Some((at, Fault::Kill)) if at == here => {
                let me = rustix::process::getpid();
                rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
                unreachable!("killed")
            }
            _ => Ok(()),
        }
    }
}
