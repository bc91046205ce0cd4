//! What an operator says about registries: a table of the daemon's configuration file.
//!
//! Everything is strict unless configuration names the very host: plain HTTP, unverified certificates, token servers
//! elsewhere. Secrets are in files of their own; the table itself can be shown and logged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::reference::RegistryHost;

/// All registries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistriesConfig {
    /// By `host` or `host:port`.
    pub hosts: BTreeMap<RegistryHost, RegistryConfig>,
    /// Credential files to look in, in this order: containers' `auth.json` and Docker's `config.json`. Hosts of
    /// `hosts` with a login of their own are not looked up.
    pub auth_files: Vec<PathBuf>,
    /// File with the CA certificates (PEM) for hosts without a `ca` of their own, in place of the system's.
    pub ca: Option<PathBuf>,
    /// Proxy for hosts without one of their own, as `http://host:port`.
    pub proxy: Option<String>,
    /// Whether `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` of the environment count where no proxy is configured.
    pub proxy_from_environment: bool,
    /// Layers fetched at the same time, 1 to 8.
    pub parallel: u32,
    /// Seconds one pull or push may take in all.
    pub deadline_seconds: u64,
    /// Attempts in a row without progress before an operation fails.
    pub attempts: u32,
}

impl Default for RegistriesConfig {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            auth_files: Vec::new(),
            ca: None,
            proxy: None,
            proxy_from_environment: true,
            parallel: 3,
            deadline_seconds: 6 * 3600,
            attempts: 6,
        }
    }
}

/// One registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Where to pull from first, as `https://host[:port][/prefix]`; the registry itself is asked last. Each is
    /// reached with what `hosts` says of its own host.
    pub mirrors: Vec<String>,
    /// File with the CA certificates (PEM) that vouch for this host, in place of the system's.
    pub ca: Option<PathBuf>,
    /// File with the client certificate and its chain (PEM).
    pub client_cert: Option<PathBuf>,
    /// File with the client certificate's key (PEM).
    pub client_key: Option<PathBuf>,
    /// User to log in as.
    pub username: Option<String>,
    /// File with the password; a newline at the end does not count.
    pub password_file: Option<PathBuf>,
    /// Talk HTTP without TLS to this host: credentials and images can be read and changed on the way.
    pub plain_http: bool,
    /// Accept any certificate of this host: credentials and images can be read and changed on the way.
    pub insecure_tls: bool,
    /// Hosts, as `host` or `host:port`, that may get this registry's credentials as its token server.
    pub token_hosts: Vec<RegistryHost>,
    /// Proxy, as `http://host:port`, or `none`.
    pub proxy: Option<String>,
    /// File with `user:password` for `proxy`.
    pub proxy_credentials_file: Option<PathBuf>,
}

/// How long is waited for what. The defaults are for the Internet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a name to resolve, and again for a connection with its TLS.
    pub connect: Duration,
    /// For the head of an answer.
    pub answer: Duration,
    /// In each such time...
    pub window: Duration,
    /// ...so many bytes must come, or the connection is given up.
    pub window_bytes: u64,
    /// Before the second attempt; doubled each time, and up to half of it added by chance.
    pub backoff: Duration,
    /// Longest wait between two attempts, also if the registry asks for more.
    pub max_backoff: Duration,
    /// For a credential helper.
    pub helper: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            answer: Duration::from_secs(60),
            window: Duration::from_secs(30),
            window_bytes: 32 * 1024,
            backoff: Duration::from_millis(500),
            max_backoff: Duration::from_secs(30),
            helper: Duration::from_secs(15),
        }
    }
}
