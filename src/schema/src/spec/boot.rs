//! What a VM runs first.

use std::time::Duration;

use ocivisor_core::error::Error;
use ocivisor_core::spec::{Boot, InitKind};
use serde::{Deserialize, Serialize};

use super::fields::{Fields, millis};

/// See [`InitKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitKindV1 {
    /// `auto`
    #[default]
    Auto,
    /// `system`
    System,
    /// `application`
    Application,
}

/// See [`Boot`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BootV1 {
    /// Kind of the first process; else `auto`.
    #[serde(default)]
    pub init: InitKindV1,
    /// Replaces the image's entrypoint.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    #[serde(default)]
    pub cmd: Option<Vec<String>>,
    /// `NAME=value`, later ones win.
    #[serde(default)]
    pub env: Vec<String>,
    /// `user[:group]`.
    #[serde(default)]
    pub user: Option<String>,
    /// Absolute path.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Signal number that asks the first process to end.
    #[serde(default)]
    pub stop_signal: Option<u8>,
    /// Milliseconds it may take to end when nobody says how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout_ms: Option<u64>,
}

impl Fields<'_> {
    pub(super) fn boot(&self, boot: BootV1) -> Result<Boot, Error> {
        let pair = |text: &String| {
            text.split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .ok_or_else(|| {
                    let short: String = text.chars().take(80).collect();
                    self.bad("boot.env", &format!("{short:?} is not NAME=value"))
                })
        };
        Ok(Boot {
            init: match boot.init {
                InitKindV1::Auto => InitKind::Auto,
                InitKindV1::System => InitKind::System,
                InitKindV1::Application => InitKind::Application,
            },
            env: boot.env.iter().map(pair).collect::<Result<_, _>>()?,
            entrypoint: boot.entrypoint,
            cmd: boot.cmd,
            user: boot.user,
            workdir: boot.workdir,
            stop_signal: boot.stop_signal,
            stop_timeout: boot.stop_timeout_ms.map(Duration::from_millis),
        })
    }
}

impl From<&Boot> for BootV1 {
    fn from(boot: &Boot) -> Self {
        Self {
            init: match boot.init {
                InitKind::Auto => InitKindV1::Auto,
                InitKind::System => InitKindV1::System,
                InitKind::Application => InitKindV1::Application,
            },
            entrypoint: boot.entrypoint.clone(),
            cmd: boot.cmd.clone(),
            env: boot.env.iter().map(|(k, v)| format!("{k}={v}")).collect(),
            user: boot.user.clone(),
            workdir: boot.workdir.clone(),
            stop_signal: boot.stop_signal,
            stop_timeout_ms: boot.stop_timeout.map(millis),
        }
    }
}
