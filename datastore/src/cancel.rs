//! Stopping work from outside.
//!
//! A [`Cancel`] belongs to one handle of a store ([`crate::Store::cancelled_by`]), so every operation on that handle
//! heeds it and no signature changes. Work looks at it between blocks of bytes and between entries; what waits
//! (for a connection, for a lock, for a tool) is woken by it, or looks every now and then.
//!
//! Inside, being cancelled is `ECANCELED` in an [`io::Error`], which passes through decoders and archives as any
//! other error of a reader does; no call of ours gets it from the kernel. [`crate::Error::Cancelled`] is made of it.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::error::{Error, Result};

/// Longest wait between two looks, where nothing wakes a waiter.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

/// Ends the work of a store's handle when it is told to. Clones are the same one. It stays cancelled.
#[derive(Clone, Default)]
pub struct Cancel {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    waiters: Mutex<Vec<Weak<dyn Interrupt>>>,
    changed: Condvar,
}

/// What waits for something that [`Cancel`] does not know, and can be made to stop.
pub(crate) trait Interrupt: Send + Sync {
    /// Makes all waits end; called from another thread.
    fn interrupt(&self);
}

impl Cancel {
    /// One that nobody cancelled yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the work, soon. Does not wait for that.
    pub fn cancel(&self) {
        let waiters = {
            let mut waiters = self.waiters();
            self.shared.cancelled.store(true, Ordering::SeqCst);
            self.shared.changed.notify_all();
            std::mem::take(&mut *waiters)
        };
        for waiter in waiters.iter().filter_map(Weak::upgrade) {
            waiter.interrupt();
        }
    }

    /// Whether it was told to.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::SeqCst)
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        if self.is_cancelled() { Err(Errno::CANCELED.into()) } else { Ok(()) }
    }

    /// Interrupts this, too, as long as it lives.
    pub(crate) fn interrupts<T: Interrupt + 'static>(&self, who: &Arc<T>) {
        let mut waiters = self.waiters();
        if self.is_cancelled() {
            drop(waiters);
            return who.interrupt();
        }
        let weak = Arc::downgrade(who);
        waiters.retain(|waiter| waiter.strong_count() > 0);
        waiters.push(weak);
    }

    /// Waits that long; an error if it was told to end the work.
    pub(crate) fn wait(&self, time: Duration) -> io::Result<()> {
        let until = Instant::now() + time;
        let mut waiters = self.waiters();
        while !self.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.changed.wait_timeout(waiters, left);
            waiters = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        self.check()
    }

    /// Tries something until it is done, with growing pauses; an error if it was told to end the work.
    pub(crate) fn until(&self, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
        let mut pause = Duration::from_millis(1);
        while !done()? {
            self.wait(pause)?;
            pause = (pause * 2).min(LOOK);
        }
        Ok(())
    }

    /// Whatever failed after the work was cancelled failed because of that, or does not matter any more.
    pub(crate) fn told<T>(&self, done: Result<T>) -> Result<T> {
        done.map_err(|error| if self.is_cancelled() { Error::Cancelled } else { error })
    }

    /// A reader or writer that fails once it is cancelled.
    pub(crate) fn watch<T>(&self, inner: T) -> Watched<'_, T> {
        Watched { cancel: self, inner }
    }

    fn waiters(&self) -> MutexGuard<'_, Vec<Weak<dyn Interrupt>>> {
        self.shared.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

/// Made by [`Cancel::watch`].
#[derive(Debug)]
pub(crate) struct Watched<'a, T> {
    cancel: &'a Cancel,
    inner: T,
}

impl<T: Read> Read for Watched<'_, T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.cancel.check()?;
        self.inner.read(buf)
    }
}

impl<T: Write> Write for Watched<'_, T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.cancel.check()?;
        self.inner.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Interrupt for Flag {
        fn interrupt(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn those_that_wait_are_woken_whenever_they_began_to() {
        let cancel = Cancel::new();
        let (early, late) = (Arc::new(Flag::default()), Arc::new(Flag::default()));
        cancel.interrupts(&early);
        assert!(cancel.wait(Duration::from_millis(1)).is_ok());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| cancel.wait(Duration::from_secs(3600)));
            cancel.cancel();
            assert!(waiting.join().unwrap().is_err());
        });
        cancel.interrupts(&late);
        assert!(early.0.load(Ordering::SeqCst) && late.0.load(Ordering::SeqCst));
        assert!(cancel.clone().is_cancelled());
    }

    #[test]
    fn what_passes_a_reader_is_known_at_its_end() {
        let cancel = Cancel::new();
        let mut text = Vec::new();
        cancel.watch(&b"abc"[..]).read_to_end(&mut text).unwrap();
        cancel.cancel();
        let error = cancel.watch(&b"abc"[..]).read_to_end(&mut text).unwrap_err();
        let error = crate::error::Fault::from_read(error).about("x");
        assert!(matches!(error, Error::Cancelled));
        assert!(matches!(cancel.told::<()>(Err(Error::damaged("a", "b"))), Err(Error::Cancelled)));
    }
}
