//! The configuration that OpenNebula's monitor hands to the agent of a host at its start.
//!
//! It is the monitor's whole configuration; what is wanted of it:
//!
//! | element | default |
//! |---|---|
//! | `HOST_ID` | must be there |
//! | `NETWORK/MONITOR_ADDRESS` | `auto`: the address that the front-end's ssh came from |
//! | `NETWORK/PORT` | 4124 |
//! | `NETWORK/PUBKEY` | empty: messages are not encrypted |
//! | `PROBES_PERIOD/…` | those of OpenNebula; 6.10 has no `EXEC_VM` |
//! | `DATASTORE_LOCATION` | `/var/lib/one/datastores` |
//!
//! The root's name does not matter.

use std::path::PathBuf;
use std::time::Duration;

use ocivisor_core::error::Error;
use ocivisor_core::spec::normal_path;

use super::PublicKey;
use crate::xml::{self, Element};
use crate::{clip, invalid};

/// Longest period that is believed, in seconds: a day.
const MAX_PERIOD: u64 = 86_400;

/// How often what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Periods {
    /// That the host is there.
    pub beacon_host: Duration,
    /// What the host is.
    pub system_host: Duration,
    /// What it uses.
    pub monitor_host: Duration,
    /// States of VMs that changed.
    pub state_vm: Duration,
    /// States of all VMs.
    pub sync_state_vm: Duration,
    /// What VMs use.
    pub monitor_vm: Duration,
    /// Results of commands.
    pub exec_vm: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            beacon_host: seconds(30),
            system_host: seconds(600),
            monitor_host: seconds(120),
            state_vm: seconds(5),
            sync_state_vm: seconds(180),
            monitor_vm: seconds(30),
            exec_vm: seconds(5),
        }
    }
}

/// What the agent was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The host's number.
    pub host: u32,
    /// Where the monitor listens; `None`: where the front-end's ssh came from.
    pub address: Option<String>,
    /// Its port, UDP and TCP.
    pub port: u16,
    /// Who alone may read messages, if they are encrypted.
    pub key: Option<PublicKey>,
    /// How often what is sent.
    pub periods: Periods,
    /// Where datastores are on this host.
    pub datastores: PathBuf,
}

impl Configuration {
    /// Reads it; see the module for what may be missing.
    ///
    /// # Errors
    /// No XML, no host's number, a number that is none, a key that is none.
    pub fn read(bytes: &[u8]) -> Result<Self, Error> {
        let root = xml::read(bytes)?;
        let value = |name: &str| root.value(name).map(|text| text.map(str::trim));
        let host = value("HOST_ID")?.ok_or_else(|| invalid("the configuration has no HOST_ID"))?;
        let network = root.only("NETWORK")?.cloned().unwrap_or_default();
        let address = network.value("MONITOR_ADDRESS")?.map(str::trim);
        let key = network.value("PUBKEY")?.map(str::trim).filter(|text| !text.is_empty());
        let location = value("DATASTORE_LOCATION")?.unwrap_or("/var/lib/one/datastores");
        let datastores = normal_path(location.as_ref())
            .ok_or_else(|| bad("DATASTORE_LOCATION", location, "an absolute path"))?;
        Ok(Self {
            host: crate::decimal(host).ok_or_else(|| bad("HOST_ID", host, "a number"))?,
            address: address.filter(|text| !matches!(*text, "" | "auto")).map(str::to_owned),
            port: match network.value("PORT")?.map(str::trim) {
                Some(text) => text.parse().map_err(|_| bad("NETWORK/PORT", text, "a port"))?,
                None => 4124,
            },
            key: key.map(PublicKey::read).transpose()?,
            periods: periods(root.only("PROBES_PERIOD")?)?,
            datastores,
        })
    }
}

fn periods(told: Option<&Element>) -> Result<Periods, Error> {
    let default = Periods::default();
    let of = |name: &str, default: Duration| {
        let text = told.map(|told| told.value(name)).transpose()?.flatten().map(str::trim);
        let Some(text) = text else { return Ok(default) };
        let seconds: Option<u64> = text.parse().ok().filter(|s| (1..=MAX_PERIOD).contains(s));
        let seconds = seconds.ok_or_else(|| bad(name, text, "seconds, 1 to 86400"));
        Ok::<_, Error>(Duration::from_secs(seconds?))
    };
    Ok(Periods {
        beacon_host: of("BEACON_HOST", default.beacon_host)?,
        system_host: of("SYSTEM_HOST", default.system_host)?,
        monitor_host: of("MONITOR_HOST", default.monitor_host)?,
        state_vm: of("STATE_VM", default.state_vm)?,
        sync_state_vm: of("SYNC_STATE_VM", default.sync_state_vm)?,
        monitor_vm: of("MONITOR_VM", default.monitor_vm)?,
        exec_vm: of("EXEC_VM", default.exec_vm)?,
    })
}

fn bad(name: &str, text: &str, must: &str) -> Error {
    invalid(format!("{name} of the configuration is {:?}: must be {must}", clip(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &[u8] = include_bytes!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fixtures/opennebula/monitor-configuration.xml"
    ));

    #[test]
    fn the_recorded_configuration_is_read() {
        let want = Configuration {
            host: 0,
            address: None,
            port: 4124,
            key: None,
            periods: Periods::default(),
            datastores: "/var/lib/one/datastores".into(),
        };
        assert_eq!(Configuration::read(RECORDED), Ok(want));
    }

    #[test]
    fn what_is_missing_has_a_default_and_the_roots_name_does_not_matter() {
        let text = "<X><HOST_ID> 7 </HOST_ID><NETWORK><MONITOR_ADDRESS>fd00::1</MONITOR_ADDRESS>\
                    <PORT>4200</PORT></NETWORK><PROBES_PERIOD><STATE_VM>1</STATE_VM></PROBES_PERIOD></X>";
        let read = Configuration::read(text.as_bytes()).unwrap();
        assert_eq!((read.host, read.address.as_deref(), read.port), (7, Some("fd00::1"), 4200));
        let state_vm = Duration::from_secs(1);
        assert_eq!(read.periods, Periods { state_vm, ..Periods::default() });
        assert_eq!(Configuration::read(b"<X><HOST_ID>7</HOST_ID></X>").unwrap().address, None);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "<X/>",
            "<X><HOST_ID>-1</HOST_ID></X>",
            "<X><HOST_ID>1</HOST_ID><HOST_ID>2</HOST_ID></X>",
            "<X><HOST_ID>1</HOST_ID><NETWORK><PORT>70000</PORT></NETWORK></X>",
            "<X><HOST_ID>1</HOST_ID><NETWORK><PUBKEY>x</PUBKEY></NETWORK></X>",
            "<X><HOST_ID>1</HOST_ID><PROBES_PERIOD><EXEC_VM>0</EXEC_VM></PROBES_PERIOD></X>",
            "<X><HOST_ID>1</HOST_ID><DATASTORE_LOCATION>a/b</DATASTORE_LOCATION></X>",
            "<X><HOST_ID>1</HOST_ID>",
        ] {
            assert!(Configuration::read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
