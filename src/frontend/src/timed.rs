//! Pipes to another program, which must not keep us for ever: each move of bytes has its time.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, ioctl_fionread};

/// Whether a pipe did not go on in time, for who has to tell that from one that broke.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stalled(Rc<Cell<bool>>);

impl Stalled {
    pub(crate) fn is_so(&self) -> bool {
        self.0.get()
    }
}

/// Our end of a pipe.
#[derive(Debug)]
pub(crate) struct Timed<T> {
    pipe: T,
    patience: Duration,
    stalled: Stalled,
    /// Where the other side says that it waits, and how much it had said when that was last looked at.
    told: Option<(OwnedFd, u64)>,
}

impl<T: AsFd> Timed<T> {
    pub(crate) fn new(pipe: T, patience: Duration, stalled: &Stalled) -> io::Result<Self> {
        // Of our end alone: the other one is an open file of its own.
        ioctl_fionbio(&pipe, true)?;
        Ok(Self { pipe, patience, stalled: stalled.clone(), told: None })
    }

    /// Has more patience where the other side says something meanwhile. Nobody reads that before all is written, so that it is
    /// only counted.
    pub(crate) fn heeding(self, told: OwnedFd) -> Self {
        Self { told: Some((told, 0)), ..self }
    }

    fn is_told(&mut self) -> bool {
        let Some((told, before)) = &mut self.told else { return false };
        let now = ioctl_fionread(&*told).unwrap_or(*before);
        std::mem::replace(before, now) != now
    }

    /// Tries until it works, or nothing moved for too long.
    fn patiently<R>(
        &mut self,
        flags: PollFlags,
        mut go: impl FnMut(&mut T) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut deadline = Instant::now() + self.patience;
        self.is_told();
        loop {
            match go(&mut self.pipe) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&self.pipe, flags)], Some(&left)) {
                Ok(0) if self.is_told() => deadline = Instant::now() + self.patience,
                Ok(0) => {
                    self.stalled.0.set(true);
                    let why = format!("nothing moved for {} s", self.patience.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl<T: AsFd + Read> Timed<T> {
    /// What is there now.
    pub(crate) fn now(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.pipe.read(buf)
    }
}

impl<T: AsFd + Read> Read for Timed<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.patiently(PollFlags::IN, |pipe| pipe.read(buf))
    }
}

impl<T: AsFd + Write> Write for Timed<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.patiently(PollFlags::OUT, |pipe| pipe.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
