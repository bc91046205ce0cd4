//! A Debian system, made once and kept.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::daemon::Daemon;
use crate::cmd::{program, run, say, step};

/// The release. Its systemd is the last that also runs on cgroup v1 hosts without being told to.
const SUITE: &str = "bookworm";
/// What a guest needs to be looked at, beside the essential packages.
const PACKAGES: &str =
    "systemd-sysv,dbus,procps,iproute2,iputils-ping,ca-certificates,openssh-server";
/// Part of the cached file's name: to be raised when what goes into it changes.
const EDITION: u32 = 2;
/// Name in the store.
const NAME: &str = "quickstart-debian";

/// The tarball of a Debian root filesystem.
///
/// # Errors
/// mmdebstrap fails.
pub fn debian(cache: &Path) -> Result<PathBuf> {
    let ready = cache.join(format!("debian-{SUITE}-{}-{EDITION}.tar", std::env::consts::ARCH));
    if ready.is_file() {
        return Ok(ready);
    }
    step("making a Debian system (once; it is kept)");
    // Half of a tarball must not be taken for a whole one.
    let partial = cache.join("debian.partial.tar");
    let mut command = program("mmdebstrap");
    command.args(["--variant=minbase", "--format=tar", &format!("--include={PACKAGES}")]);
    command
        .args(["--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/doc/*"]);
    command.args(["--dpkgopt=path-exclude=/usr/share/man/*", SUITE]).arg(&partial);
    run(&mut command).context("make a Debian system (the net is needed for this)")?;
    #[expect(clippy::disallowed_methods, reason = "a cache: after a crash it is made again")]
    std::fs::rename(&partial, &ready).context("keep the Debian system")?;
    Ok(ready)
}

/// Imports it into the daemon's store, unless it is there; returns its name.
///
/// # Errors
/// The import fails.
pub fn import(daemon: &Daemon, source: &str, own: bool) -> Result<String> {
    if own {
        let name = "quickstart-own";
        daemon.cli(&["image", "import", source, name])?;
        return Ok(name.to_owned());
    }
    let known = daemon.cli_output(&["image", "list", "--quiet"])?;
    if known.lines().any(|line| line == NAME) {
        say(&format!("image {NAME} is in the store already"));
    } else {
        daemon.cli(&["image", "import", source, NAME])?;
    }
    Ok(NAME.to_owned())
}
