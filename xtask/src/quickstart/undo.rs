//! What has to be done when all is over, last thing first; also after a failure, also after Ctrl-C.
//!
//! Signals only set a mark that is looked at between two steps. Programs that run in the foreground
//! get Ctrl-C too and end by it, so the step fails and everything is undone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

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
    /// Signals cannot be caught.
    pub fn new() -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))
                .context("catch signals")?;
        }
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
    ///
    /// # Errors
    /// Something is left; says what.
    pub fn run(&mut self) -> Result<()> {
        let mut left = Vec::new();
        while let Some((what, action)) = self.actions.pop() {
            if let Err(error) = action() {
                say(&format!("could not {what}: {error:#}"));
                left.push(what);
            }
        }
        if !left.is_empty() {
            bail!("could not {}", left.join(", "));
        }
        Ok(())
    }

    /// Leaves everything as it is.
    pub fn forget(&mut self) {
        self.actions.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // Only a panic gets here with something left, and failures were told one by one.
        let _ = self.run();
    }
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.actions.iter().map(|(what, _)| what);
        f.debug_list().entries(names).finish()
    }
}
