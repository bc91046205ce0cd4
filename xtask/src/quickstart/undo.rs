//! What has to be done when all is over, last thing first; also after a failure, also after Ctrl-C.
//!
//! Signals are blocked in every thread of ours and read by one that waits for them, so that none
//! ends us between two steps. Programs that we start do get them (std clears the mask), so Ctrl-C
//! ends what runs in the foreground, that step fails, and everything is undone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

use crate::cmd::say;

type Action = Box<dyn FnOnce() -> Result<()>>;

/// Things to undo.
pub struct Undo {
    actions: Vec<(String, Action)>,
    interrupted: Arc<AtomicBool>,
}

impl Undo {
    /// Nothing yet. From now on signals do not end us.
    ///
    /// # Errors
    /// Signals cannot be blocked.
    pub fn new() -> Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block().context("block signals")?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&interrupted);
        std::thread::spawn(move || {
            while let Ok(signal) = signals.wait() {
                say(&format!("\n{signal}: will stop and clear away"));
                seen.store(true, Ordering::SeqCst);
            }
        });
        Ok(Self { actions: Vec::new(), interrupted })
    }

    /// To be done at the end, before what was added earlier.
    pub fn add(&mut self, what: impl Into<String>, action: impl FnOnce() -> Result<()> + 'static) {
        self.actions.push((what.into(), Box::new(action)));
    }

    /// Between two steps.
    ///
    /// # Errors
    /// A signal came.
    pub fn check(&self) -> Result<()> {
        if self.interrupted.load(Ordering::SeqCst) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Does it. One failure does not keep the others from being done.
    pub fn run(&mut self) {
        while let Some((what, action)) = self.actions.pop() {
            if let Err(error) = action() {
                say(&format!("could not {what}: {error:#}"));
            }
        }
    }

    /// Leaves everything as it is.
    pub fn forget(&mut self) {
        self.actions.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.run();
    }
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.actions.iter().map(|(what, _)| what);
        f.debug_list().entries(names).finish()
    }
}
