//! The guest's terminal, seen from its master.
//!
//! The shim keeps the other end open as well. Without that the master reports a hang-up whenever
//! the last process inside closes the console (an init opens it for each line it prints), and a
//! poll loop would spin on it; and no shim could tell such a pause from the end. The end is told by
//! the first process's pidfd alone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ocivisor_shim::message::Size;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, read, write};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

/// Typed bytes that wait for the guest to read; more is not taken from the writer meanwhile.
pub const MAX_TYPED: usize = 8192;
/// Pause after a hang-up, where the other end could not be opened.
const PAUSE: Duration = Duration::from_secs(1);

/// The terminal.
#[derive(Debug)]
pub struct Tty {
    master: OwnedFd,
    /// Held, never used.
    _peer: Option<OwnedFd>,
    typed: Vec<u8>,
    paused: Option<Instant>,
}

impl Tty {
    /// Takes the master over.
    ///
    /// # Errors
    /// It is no terminal.
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        tcgetwinsize(&master)?;
        fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let peer = ioctl_tiocgptpeer(&master, flags).ok();
        Ok(Self { master, _peer: peer, typed: Vec::new(), paused: None })
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// Until when polling it makes no sense.
    pub fn paused(&self, now: Instant) -> Option<Instant> {
        self.paused.filter(|until| *until > now)
    }

    /// What the guest printed, 0 if there is nothing now.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        loop {
            match read(&self.master, &mut *into) {
                Ok(n) if n > 0 => return n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return 0,
                Ok(_) | Err(_) => {
                    self.paused = Some(Instant::now() + PAUSE);
                    return 0;
                }
            }
        }
    }

    /// Whether more may be typed.
    pub fn takes_input(&self) -> bool {
        self.typed.is_empty()
    }

    /// Types bytes; those the guest does not take now wait.
    pub fn type_bytes(&mut self, bytes: &[u8]) {
        let room = MAX_TYPED.saturating_sub(self.typed.len());
        self.typed.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.flush();
    }

    /// Passes waiting bytes on as far as the guest takes them.
    pub fn flush(&mut self) {
        while !self.typed.is_empty() {
            match write(&self.master, &self.typed) {
                Ok(n) if n > 0 => {
                    self.typed.drain(..n);
                }
                Err(Errno::INTR) => {}
                Ok(_) | Err(Errno::AGAIN) => return,
                // Nobody will ever read them.
                Err(_) => self.typed.clear(),
            }
        }
        // A viewer that pasted much should not cost memory for the rest of the guest's life.
        self.typed.shrink_to(256);
    }

    /// Sets the size of the terminal; zeros leave it.
    pub fn resize(&self, size: Size) {
        if size.cols == 0 || size.rows == 0 {
            return;
        }
        let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        // It was a terminal when it was taken over, so this cannot fail for a reason of ours.
        let _ = tcsetwinsize(&self.master, size);
    }
}
