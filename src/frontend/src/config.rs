//! What the front-end's admin wants of our drivers: parts of `/etc/ocivisor/opennebula.toml`.

use std::ffi::OsString;
use std::path::PathBuf;

use ocivisor_core::error::{Error, ErrorKind, Result};
pub use ocivisor_datastore::RegistriesConfig;
use ocivisor_datastore::trust::Policy;
use serde::Deserialize;

/// What the datastore's and the marketplace's driver need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// `[images]`
    pub images: Images,
    /// `[registries]`, as the daemon has it.
    pub registries: RegistriesConfig,
    /// Program and arguments of a process that calls [`builder`](crate::images::builder) and no more; without them nothing is built.
    pub builder: Vec<OsString>,
}

/// How images come in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// A containers-policy.json(5): whose signatures an image must have. No such file: every image is let in.
    pub policy: PathBuf,
    /// MiB that the disk of a VM gets at least if neither `PATH` nor the VM's template says; the image itself may be larger.
    pub disk_mb: u64,
    /// The command that writes into an image's template what it is; empty for none.
    pub oneimage: PathBuf,
    /// Seconds that a size may take to be found out: the user's call waits for it.
    pub stat_timeout: u64,
    /// Whether users' Dockerfiles are built: their commands run on the front-end.
    pub build: bool,
    /// Seconds that a Dockerfile may take to be built.
    pub build_timeout: u64,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            policy: "/etc/containers/policy.json".into(),
            disk_mb: 1024,
            oneimage: "/usr/bin/oneimage".into(),
            stat_timeout: 20,
            build: false,
            build_timeout: 3600,
        }
    }
}

impl Config {
    /// Files that the configuration names and nobody but the drivers may read.
    pub(crate) fn secrets(&self) -> Vec<PathBuf> {
        let hosts = self.registries.hosts.values();
        let of_host = hosts.flat_map(|host| {
            [&host.password_file, &host.client_key, &host.client_cert, &host.proxy_credentials_file]
        });
        let listed = of_host.flatten().cloned();
        listed.chain(self.registries.auth_files.iter().cloned()).collect()
    }
}

impl Images {
    pub(crate) fn load_policy(&self) -> Result<Option<Policy>> {
        Policy::load(&self.policy).map_err(|e| {
            let text = format!("images.policy {}: {e}", self.policy.display());
            Error::new(ErrorKind::Invalid, text)
        })
    }
}

/// Section `[transfer]` of `opennebula.toml`; every field may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transfer {
    /// The program that reaches hosts, called as ssh is.
    pub ssh: PathBuf,
    /// The program that is asked about VMs.
    pub onevm: PathBuf,
    /// The program that is asked about datastores.
    pub onedatastore: PathBuf,
    /// Names of the front-end; else the one that the machine has. `HOSTNAME` of `oned.conf` belongs here.
    pub frontend: Vec<String>,
    /// Seconds after which a host is given up that neither answers nor takes or sends anything.
    pub answer_timeout: u64,
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            ssh: "ssh".into(),
            onevm: "onevm".into(),
            onedatastore: "onedatastore".into(),
            frontend: Vec::new(),
            answer_timeout: 1800,
        }
    }
}

impl Transfer {
    /// Whether a machine is this one.
    #[must_use]
    pub fn is_here(&self, name: &str) -> bool {
        if self.frontend.is_empty() {
            let own = rustix::system::uname();
            return own.nodename().to_str().is_ok_and(|own| own.eq_ignore_ascii_case(name));
        }
        self.frontend.iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_end_is_who_it_is_said_to_be_else_who_it_is() {
        let own = rustix::system::uname().nodename().to_str().unwrap().to_owned();
        let mut transfer = Transfer::default();
        assert!(transfer.is_here(&own) && !transfer.is_here("other"));
        transfer.frontend = vec!["fe".into()];
        assert!(transfer.is_here("FE") && !transfer.is_here(&own));
    }
}
