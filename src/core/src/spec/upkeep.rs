//! What this host does of its own accord for a VM that no platform owns.

use std::time::Duration;

use super::Platform;

/// Upkeep.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Upkeep {
    /// Whether it is started again after its end.
    pub restart: Restart,
    /// How it is asked whether it works.
    pub health: Option<HealthCheck>,
    /// Whether it is started with the host, and when: smaller numbers first, equal ones at once.
    pub autostart: Option<u16>,
}

/// When a guest that ended is started again, as Docker's policies say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// If it failed: another code than 0, or a signal.
    OnFailure {
        /// So often in a row; `None` is always.
        most: Option<u32>,
    },
    /// Whatever its end, unless somebody asked for it.
    UnlessStopped,
    /// The same, and when the host is booted, also if somebody asked for its end before.
    Always,
}

/// A command in the guest that succeeds while it works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Command line.
    pub command: Vec<String>,
    /// Between two checks.
    pub interval: Duration,
    /// For one check.
    pub timeout: Duration,
    /// Failures in a row that make the guest unhealthy.
    pub retries: u32,
    /// After its start, for so long failures do not count.
    pub start_period: Duration,
    /// Whether a guest that becomes unhealthy is ended, as failed; its policy may start it again.
    pub end: bool,
}

impl Upkeep {
    pub(super) fn check(&self, platform: Platform) -> Result<(), String> {
        if platform != Platform::Local && *self != Self::default() {
            return Err("a guest of a platform is started and judged by the platform alone".into());
        }
        let Some(health) = &self.health else { return Ok(()) };
        let bytes: usize = health.command.iter().map(String::len).sum();
        if health.command.first().is_none_or(String::is_empty) || bytes > 64 * 1024 {
            return Err("the command of the health check is empty or too long".into());
        }
        if health.command.iter().any(|word| word.contains('\0')) {
            return Err("the command of the health check holds a NUL byte".into());
        }
        let sane =
            |time: Duration| (Duration::from_millis(100)..=DAY).contains(&time) && whole(time);
        if !sane(health.interval)
            || !sane(health.timeout)
            || health.start_period > DAY
            || !whole(health.start_period)
        {
            return Err(
                "times of the health check must be whole milliseconds, 100 ms to a day".into()
            );
        }
        if health.retries == 0 || health.retries > 1000 {
            return Err("retries of the health check must be 1 to 1000".into());
        }
        Ok(())
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn whole(time: Duration) -> bool {
    time.subsec_nanos().is_multiple_of(1_000_000)
}
