//! What a VM runs first.

use std::time::Duration;

/// Which kind of first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InitKind {
    /// Look at the image: an init there makes a system, else an application.
    Auto,
    /// The image's own init (systemd, sysvinit, busybox, OpenRC).
    System,
    /// Entrypoint and command of the image's configuration.
    Application,
}

/// What overrides the image's configuration; `None` leaves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Kind of the first process.
    pub init: InitKind,
    /// Replaces the image's entrypoint, and drops its command, as Docker does.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub cmd: Option<Vec<String>>,
    /// Added to the image's environment, later ones win.
    pub env: Vec<(String, String)>,
    /// `user[:group]`, names or numbers, resolved inside the guest.
    pub user: Option<String>,
    /// Absolute path inside the guest.
    pub workdir: Option<String>,
    /// Signal that asks the first process to end, 1 to 64.
    pub stop_signal: Option<u8>,
    /// How long it may take to end when nobody says how long; whole milliseconds, at most a day.
    pub stop_timeout: Option<Duration>,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            init: InitKind::Auto,
            entrypoint: None,
            cmd: None,
            env: Vec::new(),
            user: None,
            workdir: None,
            stop_signal: None,
            stop_timeout: None,
        }
    }
}

impl Boot {
    /// What a guest may take to end if neither its spec nor the request says; OpenNebula's default for KVM.
    pub const STOP_TIMEOUT: Duration = Duration::from_secs(120);

    /// How long the guest may take to end when a request does not say.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.stop_timeout.unwrap_or(Self::STOP_TIMEOUT)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        const MAX_STRINGS: usize = 4096;
        const MAX_BYTES: usize = 128 * 1024;
        const MAX_STOP: Duration = Duration::from_secs(24 * 3600);
        let boot = self;
        let argv = boot.entrypoint.iter().chain(&boot.cmd).flatten().map(String::as_str);
        let env = boot.env.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]);
        let rest = [&boot.user, &boot.workdir].into_iter().flatten().map(String::as_str);
        let all: Vec<&str> = argv.chain(env).chain(rest).collect();
        if all.iter().any(|text| text.contains('\0')) {
            return Err("boot settings must not hold NUL bytes".into());
        }
        if all.len() > MAX_STRINGS || all.iter().map(|t| t.len()).sum::<usize>() > MAX_BYTES {
            return Err("boot settings must be at most 4096 strings and 128 KiB".into());
        }
        if let Some((name, _)) = boot.env.iter().find(|(k, _)| k.is_empty() || k.contains('=')) {
            return Err(format!("environment variable name {name:?} is empty or holds ="));
        }
        if boot.entrypoint.as_ref().is_some_and(Vec::is_empty) {
            return Err("entrypoint is given but empty".into());
        }
        if boot.workdir.as_ref().is_some_and(|dir| !dir.starts_with('/')) {
            return Err("working directory is not absolute".into());
        }
        if boot.stop_signal.is_some_and(|signal| signal == 0 || signal > 64) {
            return Err("stop signal must be 1 to 64".into());
        }
        if boot
            .stop_timeout
            .is_some_and(|timeout| timeout > MAX_STOP || timeout.subsec_nanos() % 1_000_000 != 0)
        {
            return Err("stop timeout must be whole milliseconds, at most a day".into());
        }
        Ok(())
    }
}
