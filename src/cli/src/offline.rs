//! `ocivisor --offline fsck|dump|recover …`: work on a state directory while no daemon runs.
//!
//! The daemon's own program does it, for it alone knows the directory; we only find and become it.
//! What follows `--offline` goes there as it is (`--state-dir`, `--run-dir`, `--config`).

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::failure::{Exit, Failure};

/// Takes over if the first argument is `--offline`; returns only if that failed.
pub fn early() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != "--offline" {
        return None;
    }
    let words: Vec<OsString> = words.collect();
    if words.is_empty() {
        let failure = Failure::new(Exit::Usage, "--offline needs one of fsck, dump, recover");
        return Some(crate::fail(&failure));
    }
    let program = daemon();
    #[expect(clippy::disallowed_methods, reason = "becomes the daemon's program, never returns")]
    let error = Command::new(&program).args(words).exec();
    let what = format!("run {}: {error}", program.display());
    Some(crate::fail(&Failure::new(Exit::Failure, what)))
}

/// The daemon's program: beside ours, else where packages put it.
fn daemon() -> PathBuf {
    let ours = std::env::current_exe().ok();
    let beside = ours.as_deref().and_then(Path::parent).map(|dir| dir.join("ocivisord"));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| "/usr/sbin/ocivisord".into())
}
