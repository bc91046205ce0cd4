//! Registries: `docker://` sources by the OCI distribution protocol (distribution-spec v1.1), and pushing to them.
//!
//! ```text
//! Session ─ Endpoint (mirror) ─┐
//!         └ Endpoint (origin) ─┴ Net: an agent per origin, addresses guarded
//!    │         login, redirects
//!    ├─ manifest, config: documents, verified
//!    └─ Fetcher: threads ─► partial/<hex> ─► importer reads behind them, hashing
//! ```
//!
//! A registry is hostile until its bytes have the right digest, and it stays hostile in all that it says about where to go
//! and whom to tell our password: see `endpoint` for credentials and redirects, `address` for networks,
//! `challenge` for headers, `download` for broken and slow connections.
//!
//! Deliberately absent: HTTP other than 1.1; foreign layers' `urls`, which are never fetched; schema 1; a search over
//! several registries for a short name; async. Why this client is our own: docs/adr/0006.

mod address;
mod brief;
mod challenge;
mod config;
mod credentials;
mod download;
mod endpoint;
mod fault;
mod fetch;
mod helper;
mod https;
mod net;
mod part;
mod pull;
mod push;
mod reference;
mod secret;
mod session;
mod url;
mod web;

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

pub use config::{Patience, RegistriesConfig, RegistryConfig};
pub use fault::RegistryFault;
pub use https::HttpsUrl;
pub(crate) use https::{HttpsFile, SCHEME as HTTPS};
pub(crate) use part::Part;
pub(crate) use pull::Registry;
pub use pull::Remote;
pub use push::{PushProgress, Pushed};
pub use reference::{RegistryHost, RegistryReference};
pub(crate) use reference::{SCHEME, looks_like_host};

use self::address::Hosts;
use self::url::Origin;

/// How registries are reached: configuration, shared by all operations. Cheap to clone.
///
/// The default knows no logins, no exceptions from TLS, and the environment's proxy.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    config: RegistriesConfig,
    patience: Patience,
    hosts: Option<Hosts>,
}

impl Registries {
    /// Takes the configuration as it is; what is wrong with a host's part of it is told when that host is used.
    #[must_use]
    pub fn new(config: RegistriesConfig) -> Self {
        Self { inner: Arc::new(Inner { config, ..Inner::default() }) }
    }

    /// The same with other waits.
    #[must_use]
    pub fn with_patience(&self, patience: Patience) -> Self {
        let Inner { config, hosts, .. } = &*self.inner;
        let inner = Inner { config: config.clone(), patience, hosts: hosts.clone() };
        Self { inner: Arc::new(inner) }
    }

    /// The same with addresses that are not looked up, as in a hosts file. A name that is there several times has
    /// each address for one lookup, and the last from then on.
    #[doc(hidden)]
    #[must_use]
    pub fn with_fixed_addresses(&self, addresses: Vec<(String, IpAddr)>) -> Self {
        let Inner { config, patience, .. } = &*self.inner;
        let hosts = Some(Arc::new(Mutex::new(addresses)));
        let inner = Inner { config: config.clone(), patience: patience.clone(), hosts };
        Self { inner: Arc::new(inner) }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &RegistriesConfig {
        &self.inner.config
    }

    pub(crate) fn patience(&self) -> &Patience {
        &self.inner.patience
    }

    fn fixed_addresses(&self) -> Option<Hosts> {
        self.inner.hosts.clone()
    }

    /// What is said of the host of an origin.
    fn host(&self, origin: &Origin) -> Option<&RegistryConfig> {
        let name: RegistryHost = origin.authority().parse().ok()?;
        self.config().hosts.get(&name)
    }

    fn is_plain(&self, origin: &Origin) -> bool {
        self.host(origin).is_some_and(|host| host.plain_http)
    }
}

impl PartialEq for Registries {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
            || (self.inner.config == other.inner.config
                && self.inner.patience == other.inner.patience)
    }
}

impl Eq for Registries {}

/// What a registry says in headers: where to go, how to log in, which bytes these are.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz_header(bytes: &[u8]) {
    drop(challenge::parse(bytes.split(|byte| *byte == b'\n')));
    let _ = challenge::ContentRange::parse(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (first, second) = text.split_once('\n').unwrap_or((text, ""));
    if let Ok(url) = url::Url::parse(first) {
        assert_eq!(url::Url::parse(&url.to_string()), Ok(url.clone()));
        if let Ok(joined) = url.join(second) {
            assert_eq!(url::Url::parse(&joined.to_string()), Ok(joined));
        }
    }
}
