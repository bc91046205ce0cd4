//! The service manager: systemd, or nobody, which is as fine. See `systemd/` of this crate for our units.
//!
//! It may hand over the socket (sd_listen_fds(3)), wants to know when we are ready and when we stop (sd_notify(3)),
//! and may want a sign of life from time to time, without which it takes us for hung and starts another daemon.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};

use ocivisor_core::error::{Error, ErrorKind, Result};
use sd_notify::NotifyState;

/// The socket that was handed over, if one was. To be called once, at the beginning.
///
/// # Errors
/// `Invalid`: there are several, or the variables make no sense.
pub fn socket() -> Result<Option<OwnedFd>> {
    let bad = |why: String| Error::new(ErrorKind::Invalid, format!("socket activation: {why}"));
    let mut fds = sd_notify::listen_fds().map_err(|e| bad(e.to_string()))?;
    if fds.len() > 1 {
        let what = format!("{} sockets were handed over, one is expected", fds.len());
        return Err(bad(what).hint("ocivisord.socket must have one ListenStream="));
    }
    // SAFETY: the descriptor was opened before this program began, for it, and nothing else takes it: this is called
    // once. That it is open was seen when it was marked to be closed on exec.
    Ok(fds.next().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Requests are answered from now on.
pub fn ready() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "systemd was not told that we are ready");
    }
}

/// Requests are not answered any more.
pub fn stopping() {
    // It sees the end of the process anyway.
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
}

/// Signs of life for as long as tasks get to run, twice as often as they are wanted.
pub async fn live() {
    let Some(period) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(period / 2);
    loop {
        ticks.tick().await;
        if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
            tracing::warn!(%error, "systemd was not told that we live");
        }
    }
}
