//! Waiting on conditions, never on time.

use std::time::{Duration, Instant};

/// Waits until `condition` holds; panics with `what` and the last state seen if it never does.
#[track_caller]
pub fn wait_for<T: std::fmt::Debug>(what: &str, mut condition: impl FnMut() -> Result<(), T>) {
    let mut last = None;
    let held = wait_for_option(crate::PATIENCE, || match condition() {
        Ok(()) => Some(()),
        Err(seen) => {
            last = Some(seen);
            None
        }
    });
    assert!(held.is_some(), "{what} did not happen; last seen: {last:?}");
}

/// Polls until there is something, at most for `patience`.
pub fn wait_for_option<T>(patience: Duration, mut poll: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = poll() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        // Processes, mounts and files have no common event to wait for; this bounds the polling.
        std::thread::sleep(Duration::from_millis(5));
    }
}
