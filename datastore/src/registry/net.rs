//! Connections: one agent per origin, each with what configuration says of that host, and a guard on addresses.
//!
//! The HTTP library follows no redirect, keeps no cookie, decompresses nothing, and takes no status for an error:
//! all these decisions are made in `endpoint`. TLS settings belong to the host that is contacted, not to the one
//! that sent us there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::sign::CertifiedKey;
use ureq::Agent;
use ureq::http::{Request, Response};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{AsSendBody, Body, Proxy, ProxyProtocol};

use super::Registries;
use super::address::{Forbidden, Guard, Rule, Seen};
use super::config::RegistryConfig;
use super::credentials::{read_file, read_secret};
use super::fault::RegistryFault;
use super::url::{Origin, Url};
use crate::error::escape;

/// Most bytes in the head of an answer.
const MAX_HEAD: usize = 32 * 1024;

/// Where distributions keep the CA certificates that the system trusts; the first that is there counts.
const SYSTEM_CAS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the data is about stays true when another thread dies.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A flag that ends waits.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub fn set(&self) {
        *lock(&self.stopped) = true;
        self.changed.notify_all();
    }

    pub fn is_set(&self) -> bool {
        *lock(&self.stopped)
    }

    /// Waits that long; says whether it was stopped.
    pub fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut stopped = lock(&self.stopped);
        while !*stopped {
            let Some(left) = until.checked_duration_since(Instant::now()).filter(|l| !l.is_zero())
            else {
                break;
            };
            let waited = self.changed.wait_timeout(stopped, left);
            stopped = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *stopped
    }
}

/// All connections on behalf of one registry.
#[derive(Debug)]
pub(crate) struct Net {
    registries: Registries,
    /// None once they were ended.
    agents: Mutex<Option<HashMap<(Origin, Trust), Agent>>>,
    seen: Seen,
}

/// Who named a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Trust {
    /// The user or the configuration.
    Named,
    /// A registry.
    Foreign,
}

impl Net {
    pub fn new(registries: &Registries) -> Self {
        Self {
            registries: registries.clone(),
            agents: Mutex::new(Some(HashMap::new())),
            seen: Seen::default(),
        }
    }

    /// Sends one request and returns the head of the answer, whatever its status.
    pub fn send(
        &self,
        to: &Url,
        trust: Trust,
        request: Request<impl AsSendBody>,
    ) -> Result<Response<Body>, RegistryFault> {
        let agent = self.agent(&to.origin, trust)?;
        agent.run(request).map_err(|e| fault(e, &to.origin))
    }

    /// Ends all connections, also those that another thread waits on.
    pub fn shut_down(&self) {
        let agents = lock(&self.agents).take();
        for agent in agents.into_iter().flat_map(HashMap::into_values) {
            agent.shutdown();
        }
    }

    fn agent(&self, origin: &Origin, trust: Trust) -> Result<Agent, RegistryFault> {
        let mut agents = lock(&self.agents);
        let ended = || RegistryFault::Unreachable("ended".into());
        let agents = agents.as_mut().ok_or_else(ended)?;
        if let Some(agent) = agents.get(&(origin.clone(), trust)) {
            return Ok(agent.clone());
        }
        let agent = self.make(origin, trust)?;
        agents.insert((origin.clone(), trust), agent.clone());
        Ok(agent)
    }

    fn make(&self, origin: &Origin, trust: Trust) -> Result<Agent, RegistryFault> {
        let own = self.registries.host(origin);
        // Who writes a host into the configuration has named it.
        let rule = match trust {
            Trust::Foreign if own.is_none() => Rule::Foreign(self.seen.clone()),
            Trust::Foreign => Rule::Named(Seen::default()),
            Trust::Named => Rule::Named(self.seen.clone()),
        };
        rule.check(origin.ip()).map_err(|f| forbidden(f, origin))?;
        let none = RegistryConfig::default();
        let own = own.unwrap_or(&none);
        let proxy = self.proxy(own, origin)?;
        let patience = self.registries.patience();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(origin.tls)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("ocivisor/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .max_response_header_size(MAX_HEAD)
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_send_request(Some(patience.answer))
            .timeout_recv_response(Some(patience.answer))
            .timeout_per_read(Some(patience.window.max(patience.answer)))
            .timeout_per_write(Some(patience.window.max(patience.answer)))
            .tls_config(
                tls(own, self.registries.config().ca.as_deref()).map_err(RegistryFault::Config)?,
            )
            .proxy(proxy.clone())
            .build();
        let guard = Guard {
            rule,
            proxy: proxy.map(|p| p.host().to_owned()),
            hosts: self.registries.fixed_addresses(),
        };
        Ok(Agent::with_parts(config, DefaultConnector::default(), guard))
    }

    fn proxy(&self, own: &RegistryConfig, origin: &Origin) -> Result<Option<Proxy>, RegistryFault> {
        let bad = |why: &str| RegistryFault::Config(format!("proxy: {why}"));
        let general = &self.registries.config().proxy;
        let proxy = match own.proxy.as_ref().or(general.as_ref()) {
            Some(none) if none == "none" => return Ok(None),
            Some(text) => {
                let url = Url::parse(text).map_err(|why| bad(&format!("the address {why}")))?;
                let kind = if url.origin.tls { ProxyProtocol::Https } else { ProxyProtocol::Http };
                let mut made = Proxy::builder(kind).host(&url.origin.host).port(url.origin.port);
                if let Some(file) =
                    own.proxy_credentials_file.as_ref().filter(|_| own.proxy.is_some())
                {
                    let pair = read_secret(file).map_err(|why| bad(&why))?;
                    let (user, password) =
                        pair.expose().split_once(':').unwrap_or((pair.expose(), ""));
                    made = made.username(user).password(password);
                }
                made.build().map_err(|_| bad("the address cannot be used"))?
            }
            // The variables know no plain HTTP through CONNECT.
            None if self.registries.config().proxy_from_environment && origin.tls => {
                match Proxy::try_from_env() {
                    Some(proxy) => proxy,
                    None => return Ok(None),
                }
            }
            None => return Ok(None),
        };
        match proxy.protocol() {
            ProxyProtocol::Http | ProxyProtocol::Https => Ok(Some(proxy)),
            // The library would pass it over and connect directly.
            _ => Err(bad("only http and https proxies are supported")),
        }
    }
}

fn tls(own: &RegistryConfig, general: Option<&Path>) -> Result<TlsConfig, String> {
    let builder = TlsConfig::builder().disable_verification(own.insecure_tls);
    let builder = match own.ca.as_deref().or(general) {
        Some(path) => {
            builder.root_certs(certificates(path)?.ok_or_else(|| absent(path))?.into_iter().into())
        }
        None => match system_cas()? {
            Some(certs) => builder.root_certs(certs.into_iter().into()),
            None => builder.root_certs(RootCerts::WebPki),
        },
    };
    let client = match (&own.client_cert, &own.client_key) {
        (Some(cert), Some(key)) => Some(client_cert(cert, key)?),
        (None, None) => None,
        _ => return Err("client_cert and client_key need each other".into()),
    };
    Ok(builder.client_cert(client).build())
}

fn system_cas() -> Result<Option<Vec<Certificate<'static>>>, String> {
    for path in SYSTEM_CAS {
        // The distribution's file may be a link, and may have a broken entry among good ones.
        let Ok(real) = std::fs::canonicalize(path) else { continue };
        if let Some(certs) = certificates(&real)? {
            return Ok(Some(certs));
        }
    }
    Ok(None)
}

fn absent(path: &Path) -> String {
    format!("{}: no such file", path.display())
}

fn certificates(path: &Path) -> Result<Option<Vec<Certificate<'static>>>, String> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    let certs: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(cert)) => Some(cert),
            _ => None,
        })
        .collect();
    if certs.is_empty() {
        return Err(format!("{}: holds no PEM certificate", path.display()));
    }
    Ok(Some(certs))
}

fn client_cert(cert: &Path, key: &Path) -> Result<ClientCert, String> {
    let chain = certificates(cert)?.ok_or_else(|| absent(cert))?;
    let bytes = read_file(key)?.ok_or_else(|| absent(key))?;
    let parsed = PrivateKey::from_pem(&bytes)
        .map_err(|_| format!("{}: holds no PEM private key", key.display()))?;
    // The library takes a bad pair for a bug of ours.
    let ders = chain.iter().map(|c| c.der().to_vec().into()).collect();
    let der = rustls::pki_types::PrivateKeyDer::try_from(parsed.der().to_vec());
    let der = der.map_err(|_| format!("{}: holds no usable key", key.display()))?;
    CertifiedKey::from_der(ders, der, &rustls::crypto::ring::default_provider())
        .map_err(|e| format!("{} and {} do not fit: {e}", cert.display(), key.display()))?;
    Ok(ClientCert::new_with_certs(&chain, parsed))
}

fn forbidden(forbidden: Forbidden, origin: &Origin) -> RegistryFault {
    RegistryFault::Address { host: origin.host.clone(), address: forbidden.0 }
}

/// What an error of the library means here.
pub(crate) fn fault(error: ureq::Error, origin: &Origin) -> RegistryFault {
    match error {
        ureq::Error::Timeout(ureq::Timeout::Resolve) => RegistryFault::Timeout("name lookup"),
        ureq::Error::Timeout(ureq::Timeout::Connect) => RegistryFault::Timeout("connection"),
        ureq::Error::Timeout(_) => RegistryFault::Timeout("answer"),
        ureq::Error::HostNotFound => RegistryFault::Unreachable("no such host".into()),
        ureq::Error::Rustls(e) => RegistryFault::Tls(escape(e.to_string().as_bytes())),
        ureq::Error::Tls(e) => RegistryFault::Tls(e.into()),
        ureq::Error::Io(e) => io_fault(&e),
        ureq::Error::Other(e) => match e.downcast::<Forbidden>() {
            Ok(f) => forbidden(*f, origin),
            Err(e) => RegistryFault::protocol(e.to_string()),
        },
        ureq::Error::ConnectProxyFailed(e) => {
            RegistryFault::Unreachable(format!("proxy: {}", escape(e.as_bytes())))
        }
        ureq::Error::LargeResponseHeader(..) => {
            RegistryFault::protocol("the head has more than 32 KiB")
        }
        other => RegistryFault::protocol(other.to_string()),
    }
}

pub(crate) fn io_fault(error: &std::io::Error) -> RegistryFault {
    let inner = error.get_ref();
    if let Some(tls) = inner.and_then(|e| e.downcast_ref::<rustls::Error>()) {
        return RegistryFault::Tls(escape(tls.to_string().as_bytes()));
    }
    match inner.and_then(|e| e.downcast_ref::<ureq::Error>()) {
        Some(ureq::Error::Timeout(_)) => RegistryFault::Timeout("data"),
        // A body that breaks off inside its framing.
        Some(other) => RegistryFault::Unreachable(escape(other.to_string().as_bytes())),
        None => RegistryFault::Unreachable(escape(error.to_string().as_bytes())),
    }
}
