//! What the admin says about transfers, on the front-end.

use std::path::PathBuf;

use serde::Deserialize;

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
}

impl Default for Transfer {
    fn default() -> Self {
        Self {
            ssh: "ssh".into(),
            onevm: "onevm".into(),
            onedatastore: "onedatastore".into(),
            frontend: Vec::new(),
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
