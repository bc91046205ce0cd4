//! What the admin wants of the drivers, on this machine.

use std::io;
use std::path::{Path, PathBuf};

use ocivisor_agent::host::PciFilter;
use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_frontend::{ImagesConfig, RegistriesConfig, Transfer};
use serde::Deserialize;

use crate::args::DEFAULT_SOCKET;

/// The host's policy.
const CONFIG: &str = "/etc/ocivisor/opennebula.toml";
/// Another place for it, for tests and for several daemons on one host.
const CONFIG_VARIABLE: &str = "OCIVISOR_OPENNEBULA_CONFIG";

/// What the host's admin wants; every field may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The daemon's socket.
    pub socket: Option<PathBuf>,
    /// Seconds that every guest may take to end on `shutdown` and `reboot`; else what its template
    /// says, else what the daemon gives.
    pub shutdown_timeout: Option<u64>,
    /// Whether `shutdown` then ends it by force; else the action fails and the guest runs on.
    pub force_shutdown: bool,
    /// Seconds that a call waits for a daemon that is away, as during an upgrade.
    pub daemon_timeout: u64,
    /// How the front-end reaches hosts and oned.
    pub transfer: Transfer,
    /// How images come into datastores, on the front-end.
    pub images: ImagesConfig,
    /// How the front-end reaches registries; as in the daemon's configuration.
    pub registries: RegistriesConfig,
    /// What OpenNebula's monitor is told.
    pub monitoring: Monitoring,
}

/// Section `[monitoring]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Monitoring {
    /// What the host's hypervisor is called, `HYPERVISOR` of the host.
    pub hypervisor: String,
    /// Where the agent, and commands in guests, keep what they must remember.
    pub state_dir: PathBuf,
    /// Which PCI devices of the host are told.
    pub pci: PciFilter,
}

impl Default for Monitoring {
    fn default() -> Self {
        Self {
            hypervisor: "ocivisor".to_owned(),
            state_dir: "/var/tmp/one_db/ocivisor".into(),
            pci: PciFilter::default(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: None,
            shutdown_timeout: None,
            force_shutdown: true,
            daemon_timeout: 20,
            transfer: Transfer::default(),
            images: ImagesConfig::default(),
            registries: RegistriesConfig::default(),
            monitoring: Monitoring::default(),
        }
    }
}

impl Config {
    /// What is the front-end's of it.
    pub fn frontend(&self) -> ocivisor_frontend::Config {
        ocivisor_frontend::Config {
            images: self.images.clone(),
            registries: self.registries.clone(),
            // `super::builder`.
            builder: std::env::current_exe().map_or_else(
                |_| Vec::new(),
                |own| vec![own.into(), "one".into(), super::BUILDER.into()],
            ),
        }
    }

    /// An absent file is the defaults.
    ///
    /// # Errors
    /// `Invalid`: it cannot be read, or says what is not known.
    pub fn load() -> Result<Self, Error> {
        let path = std::env::var_os(CONFIG_VARIABLE).map_or(PathBuf::from(CONFIG), PathBuf::from);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(bad_config(&path, &e)),
        };
        toml::from_str(&text).map_err(|e| bad_config(&path, &e.message()))
    }

    /// The daemon's socket: what the caller was told goes first.
    pub fn socket(&self, told: Option<PathBuf>) -> PathBuf {
        told.or_else(|| self.socket.clone()).unwrap_or_else(|| DEFAULT_SOCKET.into())
    }
}

fn bad_config(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("{}: {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use ocivisor_core::spec::Boot;

    use super::*;

    #[test]
    fn the_configuration_has_defaults_and_refuses_typos() {
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
        let config: Config =
            toml::from_str("shutdown_timeout = 5\nforce_shutdown = false").unwrap();
        assert_eq!((config.shutdown_timeout, config.force_shutdown), (Some(5), false));
        assert!(toml::from_str::<Config>("shutdown_timout = 5").is_err());
    }

    #[test]
    fn the_documented_configuration_is_the_default() {
        let document = include_str!("../../../../docs/cli.md");
        let (_, block) = document.split_once("all keys are optional:\n").unwrap();
        let config: Config = toml::from_str(&block.replace("\n    ", "\n")).unwrap();
        let socket = Some(DEFAULT_SOCKET.into());
        let shutdown_timeout = Some(Boot::STOP_TIMEOUT.as_secs());
        assert_eq!(config, Config { socket, shutdown_timeout, ..Config::default() });
    }
}
