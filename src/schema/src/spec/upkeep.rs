//! What the host does for a VM unasked.

use std::time::Duration;

use ocivisor_core::spec::{HealthCheck, Restart, Upkeep};
use serde::{Deserialize, Serialize};

use super::fields::millis;

/// See [`Upkeep`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UpkeepV1 {
    /// Whether it is started again after its end; else `no`.
    #[serde(default)]
    pub restart: RestartV1,
    /// How it is asked whether it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheckV1>,
    /// Place in the order of starts with the host; else it is not started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autostart: Option<u16>,
}

/// See [`Restart`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "when", rename_all = "snake_case")]
pub enum RestartV1 {
    /// `{"when": "no"}`
    #[default]
    No,
    /// `{"when": "on_failure", "most": 5}`
    OnFailure {
        /// So often in a row; else always.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        most: Option<u32>,
    },
    /// `{"when": "unless_stopped"}`
    UnlessStopped,
    /// `{"when": "always"}`
    Always,
}

/// See [`HealthCheck`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheckV1 {
    /// Command line.
    pub command: Vec<String>,
    /// Milliseconds between two checks; else 30000.
    #[serde(default = "half_a_minute")]
    pub interval_ms: u64,
    /// Milliseconds for one check; else 30000.
    #[serde(default = "half_a_minute")]
    pub timeout_ms: u64,
    /// Failures in a row that make the guest unhealthy; else 3.
    #[serde(default = "three")]
    pub retries: u32,
    /// Milliseconds after its start that failures do not count; else 0.
    #[serde(default)]
    pub start_period_ms: u64,
    /// Whether a guest that becomes unhealthy is ended, as failed; else not.
    #[serde(default)]
    pub end: bool,
}

fn half_a_minute() -> u64 {
    30_000
}

fn three() -> u32 {
    3
}

impl UpkeepV1 {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl From<UpkeepV1> for Upkeep {
    fn from(upkeep: UpkeepV1) -> Self {
        Self {
            restart: match upkeep.restart {
                RestartV1::No => Restart::No,
                RestartV1::OnFailure { most } => Restart::OnFailure { most },
                RestartV1::UnlessStopped => Restart::UnlessStopped,
                RestartV1::Always => Restart::Always,
            },
            health: upkeep.health.map(|health| HealthCheck {
                command: health.command,
                interval: Duration::from_millis(health.interval_ms),
                timeout: Duration::from_millis(health.timeout_ms),
                retries: health.retries,
                start_period: Duration::from_millis(health.start_period_ms),
                end: health.end,
            }),
            autostart: upkeep.autostart,
        }
    }
}

impl From<&Upkeep> for UpkeepV1 {
    fn from(upkeep: &Upkeep) -> Self {
        Self {
            restart: match upkeep.restart {
                Restart::No => RestartV1::No,
                Restart::OnFailure { most } => RestartV1::OnFailure { most },
                Restart::UnlessStopped => RestartV1::UnlessStopped,
                Restart::Always => RestartV1::Always,
            },
            health: upkeep.health.as_ref().map(|health| HealthCheckV1 {
                command: health.command.clone(),
                interval_ms: millis(health.interval),
                timeout_ms: millis(health.timeout),
                retries: health.retries,
                start_period_ms: millis(health.start_period),
                end: health.end,
            }),
            autostart: upkeep.autostart,
        }
    }
}
