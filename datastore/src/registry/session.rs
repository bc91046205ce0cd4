//! One pull or push: the places to ask, in their order, and how often.
//!
//! Mirrors come first and the registry last; what one cannot give, the next is asked for. Content is named by digest and
//! checked, so a mirror can withhold but not change it; of a tag it says what it likes, which is why only
//! configuration names mirrors. The error told is the registry's own.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ureq::http::{Method, Response};
use ureq::{Body, http::HeaderMap};

use super::Registries;
use super::brief::Brief;
use super::endpoint::{Call, Endpoint, Payload, Purpose, text};
use super::fault::RegistryFault as Fault;
use super::net::{Stop, io_fault};
use super::reference::{RegistryReference, Wanted, is_component};
use super::url::Url;
use crate::cancel::Interrupt;
use crate::digest::Digest;
use crate::document::{ACCEPT, Class, Descriptor};
use crate::error::{DocumentFault, Error, Limit, Refusal, Result, escape};
use crate::limits::Limits;

/// A manifest or index as a registry gave it, its digest checked.
#[derive(Debug)]
pub(crate) struct Document {
    pub bytes: Vec<u8>,
    pub media_type: String,
    pub digest: Digest,
}

/// Work with one repository, or with one file.
#[derive(Debug)]
pub(crate) struct Session {
    pub registries: Registries,
    pub stop: Stop,
    /// For messages.
    place: String,
    endpoints: Vec<Endpoint>,
    /// Where the last answer came from.
    good: AtomicUsize,
    deadline: Instant,
}

impl Session {
    pub fn new(
        registries: &Registries,
        reference: &RegistryReference,
        purpose: Purpose,
    ) -> Result<Self> {
        let about = |why: String| Fault::Config(why).about(reference.to_string());
        let config = registries.config();
        let host = reference.host();
        let own = config.hosts.get(host);
        let mut endpoints = Vec::new();
        for mirror in own.iter().filter(|_| purpose == Purpose::Pull).flat_map(|o| &o.mirrors) {
            let shown = escape(mirror.as_bytes());
            let url = Url::parse(mirror).map_err(|why| about(format!("mirror {shown} {why}")))?;
            if !url.origin.tls && !registries.is_plain(&url.origin) {
                return Err(about(format!(
                    "mirror {shown} is not https, and its host not plain_http"
                )));
            }
            let prefix = url.path.trim_matches('/');
            if !prefix.is_empty() && !prefix.split('/').all(is_component) {
                return Err(about(format!("mirror {shown} has a path that is no repository's")));
            }
            let repository = format!("{prefix}/{}", reference.repository());
            let repository = repository.trim_start_matches('/').to_owned();
            let name = url.origin.authority().parse()?;
            endpoints.push(Endpoint::new(registries, name, url.origin, repository, purpose));
        }
        let origin = host.origin(!own.is_some_and(|o| o.plain_http));
        let repository = reference.repository().to_owned();
        endpoints.push(Endpoint::new(registries, host.clone(), origin, repository, purpose));
        let place = format!("docker://{}/{}", reference.host(), reference.repository());
        Ok(Self::at(registries, place, endpoints))
    }

    /// Work with a file that is not in a registry. Mirrors are of registries: none is asked.
    pub fn file(registries: &Registries, url: &Url) -> Result<Self> {
        let host = url.origin.authority().parse()?;
        let endpoint =
            Endpoint::new(registries, host, url.origin.clone(), String::new(), Purpose::File);
        Ok(Self::at(registries, url.shown(), vec![endpoint]))
    }

    fn at(registries: &Registries, place: String, endpoints: Vec<Endpoint>) -> Self {
        let time = Duration::from_secs(registries.config().deadline_seconds);
        Self {
            registries: registries.clone(),
            stop: Stop::default(),
            place,
            endpoints,
            good: AtomicUsize::new(0),
            deadline: Instant::now() + time,
        }
    }

    /// Ends all that is under way.
    pub fn end(&self) {
        self.stop.set();
        for endpoint in &self.endpoints {
            endpoint.shut_down();
        }
    }

    /// The registry itself.
    pub fn origin(&self) -> Option<&Endpoint> {
        self.endpoints.last()
    }

    /// An error if the time is over or the work was ended.
    pub fn check_time(&self) -> std::result::Result<(), Fault> {
        if self.stop.is_set() {
            return Err(Fault::Unreachable("ended".into()));
        }
        if Instant::now() >= self.deadline {
            return Err(Fault::Deadline(self.registries.config().deadline_seconds));
        }
        Ok(())
    }

    /// Does something at one place after the other until it is done, beginning where the last thing was.
    pub fn anywhere<T>(&self, mut work: impl FnMut(&Endpoint) -> Result<T>) -> Result<T> {
        let n = self.endpoints.len();
        let first = self.good.load(Ordering::Relaxed);
        let mut told = None;
        for at in (first..n).chain(0..first) {
            match work(&self.endpoints[at]) {
                Ok(done) => {
                    self.good.store(at, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(error) if told.is_none() || at + 1 == n => told = Some(error),
                Err(_) => {}
            }
        }
        Err(told.unwrap_or_else(|| Fault::Config("no registry".into()).about(self.place())))
    }

    /// Does something until it succeeds or fails for good, with growing waits in between. `work` gets the number
    /// of failures so far and may set it back when it got ahead.
    pub fn patiently<T>(
        &self,
        endpoint: &Endpoint,
        mut work: impl FnMut(&mut u32) -> Result<T>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            let error = match work(&mut failures) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            failures += 1;
            let Error::Registry { object, why } = &error else { return Err(error) };
            if !why.is_passing() || failures >= self.registries.config().attempts.max(1) {
                return Err(error);
            }
            self.check_time().map_err(|why| why.about(object.clone()))?;
            let asked = endpoint.pause().unwrap_or_default();
            self.stop.wait(
                self.backoff(failures).max(asked.min(self.registries.patience().max_backoff)),
            );
        }
    }

    fn backoff(&self, failures: u32) -> Duration {
        let patience = self.registries.patience();
        let base = patience.backoff.saturating_mul(1 << (failures - 1).min(16));
        let base = base.min(patience.max_backoff);
        // Hosts that failed together should not come back together.
        let chance = RandomState::new().build_hasher().finish() % 1000;
        base + base.mul_f64(f64::from(u32::try_from(chance).unwrap_or(0)) / 2000.0)
    }

    /// Gets a manifest or index and checks that it is what was asked for.
    pub fn manifest(
        &self,
        wanted: &Wanted,
        media_type: Option<&str>,
        limits: &Limits,
    ) -> Result<Document> {
        let object = || format!("{} manifest {wanted}", self.place());
        self.anywhere(|endpoint| {
            self.patiently(endpoint, |_| {
                let response = endpoint
                    .call(&Call {
                        method: Method::GET,
                        url: endpoint.url(&format!("manifests/{wanted}")),
                        headers: vec![("accept", ACCEPT.join(", "))],
                        payload: Payload::None,
                        expect: &[200],
                    })
                    .map_err(|why| why.about(object()))?;
                let header = content_type(response.headers());
                let claimed = text(response.headers(), "docker-content-digest").map(str::to_owned);
                let bytes = read_document(response, limits, object)?;
                let digest = Digest::of(&bytes);
                let refused = |expected| Error::Refused {
                    object: object(),
                    why: Refusal::Digest { expected, got: digest },
                };
                if let Wanted::Digest(expected) = wanted
                    && *expected != digest
                {
                    return Err(refused(*expected));
                }
                // Said of the same bytes; another algorithm is not ours to check.
                if let Some(claimed) = claimed.and_then(|c| c.parse::<Digest>().ok())
                    && claimed != digest
                {
                    return Err(refused(claimed));
                }
                let fault = |why: Fault| why.about(object());
                let header = header
                    .ok_or_else(|| fault(Fault::protocol("a manifest without a Content-Type")))?;
                if let Some(described) = media_type.filter(|m| *m != header) {
                    let body = described.to_owned();
                    return Err(fault(Fault::MediaType {
                        header: escape(header.as_bytes()),
                        body,
                    }));
                }
                Class::of(&header).map_err(|why| Error::document(object(), why))?;
                let inside = crate::document::media_type_inside(&bytes);
                if let Some(inside) = inside.filter(|inside| *inside != header) {
                    let body = escape(inside.as_bytes());
                    return Err(fault(Fault::MediaType { header, body }));
                }
                Ok(Document { bytes, media_type: header, digest })
            })
        })
    }

    /// Gets the document a descriptor points at, and verifies it.
    pub fn described(&self, descriptor: &Descriptor, limits: &Limits) -> Result<Vec<u8>> {
        let Descriptor { digest, size: expected, media_type, .. } = descriptor;
        let object = || format!("{} blob {digest}", self.place());
        if *expected > limits.document_bytes {
            let why = DocumentFault::limit(Limit::DocumentBytes, limits.document_bytes);
            return Err(Error::document(object(), why));
        }
        let bytes = if Class::of(media_type).is_ok() {
            self.manifest(&Wanted::Digest(*digest), Some(media_type), limits)?.bytes
        } else {
            self.anywhere(|endpoint| {
                self.patiently(endpoint, |_| {
                    let response = endpoint
                        .call(&Call {
                            method: Method::GET,
                            url: endpoint.url(&format!("blobs/{digest}")),
                            headers: Vec::new(),
                            payload: Payload::None,
                            expect: &[200],
                        })
                        .map_err(|why| why.about(object()))?;
                    let bytes = read_document(response, limits, object)?;
                    match Digest::of(&bytes) {
                        got if got != *digest => Err(Error::Refused {
                            object: object(),
                            why: Refusal::Digest { expected: *digest, got },
                        }),
                        _ => Ok(bytes),
                    }
                })
            })?
        };
        let got = bytes.len() as u64;
        if got == *expected {
            Ok(bytes)
        } else {
            let why = Refusal::Size { expected: *expected, got };
            Err(Error::Refused { object: object(), why })
        }
    }

    /// The repository or file, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }
}

impl Interrupt for Session {
    fn interrupt(&self) {
        self.end();
    }
}

/// Content-Type without parameters, in lower case.
fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = text(headers, "content-type")?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// Content-Encoding would make the bytes others than the digest's.
pub(crate) fn check_encoding(headers: &HeaderMap) -> std::result::Result<(), Fault> {
    match headers.get("content-encoding").map(|v| v.as_bytes()) {
        None | Some(b"identity") => Ok(()),
        Some(other) => {
            Err(Fault::Protocol(format!("Content-Encoding {} was not asked for", escape(other))))
        }
    }
}

fn read_document(
    response: Response<Body>,
    limits: &Limits,
    object: impl Fn() -> String,
) -> Result<Vec<u8>> {
    check_encoding(response.headers()).map_err(|why| why.about(object()))?;
    let max = limits.document_bytes;
    let too_long = || Error::document(object(), DocumentFault::limit(Limit::DocumentBytes, max));
    if response.body().content_length().is_some_and(|n| n > max) {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    let mut body = Brief::new(response.into_body().into_reader().take(max + 1));
    body.read_to_end(&mut bytes).map_err(|e| io_fault(&e).about(object()))?;
    if bytes.len() as u64 > max {
        return Err(too_long());
    }
    Ok(bytes)
}
