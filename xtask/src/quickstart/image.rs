//! Debian systems, each made once and kept.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::daemon::Daemon;
use crate::cmd::{program, run, say, step};

/// A root file system.
#[derive(Debug)]
pub struct System {
    /// The tarball's name, in front of the architecture's.
    name: &'static str,
    /// The release.
    suite: &'static str,
    /// What it has beside the essential packages: an init, and what it takes to be looked at.
    packages: &'static str,
    /// Part of the cached file's name: to be raised when what goes into it changes.
    edition: u32,
}

/// Debian 12, the oldest release of a guest that is tested.
pub const DEBIAN: System = System {
    name: "debian-bookworm",
    suite: "bookworm",
    packages: "systemd-sysv,dbus,procps,iproute2,iputils-ping,ca-certificates,openssh-server",
    edition: 2,
};
/// Debian 13: a systemd that knows nothing of cgroup v1.
pub const TRIXIE: System = System {
    name: "debian-trixie",
    suite: "trixie",
    packages: "systemd-sysv,dbus,procps,iproute2",
    edition: 1,
};
/// Debian with sysvinit and its boot scripts.
pub const SYSVINIT: System = System {
    name: "debian-bookworm-sysvinit",
    suite: "bookworm",
    packages: "sysvinit-core,procps,iproute2",
    edition: 1,
};

/// Name in the store.
const NAME: &str = "quickstart-debian";

/// The tarball of a root file system.
///
/// # Errors
/// mmdebstrap fails.
pub fn tarball(cache: &Path, system: &System) -> Result<PathBuf> {
    let System { name, edition, .. } = system;
    let ready = cache.join(format!("{name}-{}-{edition}.tar", std::env::consts::ARCH));
    if ready.is_file() {
        return Ok(ready);
    }
    step(&format!("making {name} (once; it is kept)"));
    // Half of a tarball must not be taken for a whole one.
    let partial = cache.join("debian.partial.tar");
    let mut command = program("mmdebstrap");
    let include = format!("--include={}", system.packages);
    command.args(["--variant=minbase", "--format=tar", &include]);
    command
        .args(["--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/doc/*"]);
    command.args(["--dpkgopt=path-exclude=/usr/share/man/*", system.suite]).arg(&partial);
    run(&mut command).context("make a Debian system (the net is needed for this)")?;
    #[expect(clippy::disallowed_methods, reason = "a cache: after a crash it is made again")]
    std::fs::rename(&partial, &ready).context("keep the Debian system")?;
    Ok(ready)
}

/// The systems that tests boot, with the variable by which they find each.
///
/// # Errors
/// mmdebstrap fails.
pub fn for_tests(cache: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let systems = [
        ("OCIVISOR_TEST_SYSTEMD_TAR", DEBIAN),
        ("OCIVISOR_TEST_TRIXIE_TAR", TRIXIE),
        ("OCIVISOR_TEST_SYSVINIT_TAR", SYSVINIT),
    ];
    systems.into_iter().map(|(name, system)| Ok((name, tarball(cache, &system)?))).collect()
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
