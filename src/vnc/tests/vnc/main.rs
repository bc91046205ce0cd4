//! The whole program, between a shim of these tests' making and real clients.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

mod clients;
mod hostile;
mod life;
mod program;
mod shim;
mod viewer;

use std::time::{Duration, Instant};

/// No test waits longer for anything.
const LONG: Duration = Duration::from_secs(20);

/// Looks again and again until it is there.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::yield_now();
        pause();
    }
}

/// Leaves the processor to others for a moment; nothing depends on how long.
fn pause() {
    let mut none: [rustix::event::PollFd<'_>; 0] = [];
    let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    let _ = rustix::event::poll(&mut none, Some(&moment));
}
