//! One registry or mirror, and one repository in it: requests with the login they need.
//!
//! What guards the credentials is here. They are added to requests to the endpoint's own origin and to no other, so
//! a redirect elsewhere goes without them; and they go to a token server only by the rule of `realm`. Redirects are
//! followed by hand, a few, never out of TLS, never to an address that `address` forbids.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde::Deserialize;
use ureq::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use ureq::http::request::Builder;
use ureq::http::{HeaderMap, HeaderValue, Method, Request, Response};
use ureq::{Body, SendBody};

use super::Registries;
use super::brief::Brief;
use super::challenge::{self, Bearer, Challenges};
use super::credentials::{self, Credential};
use super::fault::RegistryFault as Fault;
use super::net::{Net, Trust, io_fault, lock};
use super::push::Piece;
use super::reference::RegistryHost;
use super::secret::Secret;
use super::url::{Origin, Url};
use crate::error::escape;

const MAX_REDIRECTS: usize = 5;

/// Most bytes of a token server's answer, and of an error's body.
const MAX_TOKEN: u64 = 64 * 1024;
const MAX_DETAIL: u64 = 8 * 1024;

/// A token's life where the server does not say, and the longest that is believed, in seconds.
const TOKEN_LIFE: u64 = 60;
const MAX_TOKEN_LIFE: u64 = 3600;

/// Docker Hub's token server, the one foreign host that is known without configuration.
const HUB_TOKENS: &str = "https://auth.docker.io";

/// What a login is to allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Pull,
    Push,
    /// A file that is in no repository: who asks for a token wants another login than it can have.
    File,
}

/// What is sent with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
    /// A file from an offset on, and how many bytes.
    File(&'a File, u64, u64),
}

/// A request.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub method: Method,
    pub url: Url,
    pub headers: Vec<(&'static str, String)>,
    pub payload: Payload<'a>,
    /// Statuses that are an answer; others are faults.
    pub expect: &'a [u16],
}

#[derive(Debug)]
struct Authorization {
    header: Secret,
    until: Option<Instant>,
}

/// A repository at a registry or mirror.
#[derive(Debug)]
pub(crate) struct Endpoint {
    host: RegistryHost,
    origin: Origin,
    repository: String,
    purpose: Purpose,
    registries: Registries,
    net: Net,
    credential: OnceLock<Option<Credential>>,
    authorization: Mutex<Option<Authorization>>,
    /// A second repository that a login is to open: the one to mount blobs from.
    also: Mutex<Option<String>>,
    pause: Mutex<Option<Duration>>,
}

impl Endpoint {
    pub fn new(
        registries: &Registries,
        host: RegistryHost,
        origin: Origin,
        repository: String,
        purpose: Purpose,
    ) -> Self {
        Self {
            host,
            origin,
            repository,
            purpose,
            registries: registries.clone(),
            net: Net::new(registries),
            credential: OnceLock::new(),
            authorization: Mutex::default(),
            also: Mutex::default(),
            pause: Mutex::default(),
        }
    }

    /// An address in the repository.
    pub fn url(&self, rest: &str) -> Url {
        Url { origin: self.origin.clone(), path: format!("/v2/{}/{rest}", self.repository) }
    }

    /// What the registry asked us to wait, once.
    pub fn pause(&self) -> Option<Duration> {
        lock(&self.pause).take()
    }

    /// Lets the next login also pull from another repository of this registry.
    pub fn also_from(&self, repository: &str) {
        *lock(&self.also) = Some(repository.to_owned());
        *lock(&self.authorization) = None;
    }

    pub fn shut_down(&self) {
        self.net.shut_down();
    }

    /// Sends a request, logging in if that is asked for.
    pub fn call(&self, call: &Call<'_>) -> Result<Response<Body>, Fault> {
        let mut fresh = false;
        loop {
            let header = self.header();
            let (response, at) = self.follow(call, header.as_ref())?;
            let status = response.status().as_u16();
            if call.expect.contains(&status) {
                return Ok(response);
            }
            if status == 401 && at == self.origin && !fresh {
                let lines = response.headers().get_all("www-authenticate").iter();
                let challenges =
                    challenge::parse(lines.map(HeaderValue::as_bytes)).map_err(Fault::Challenge)?;
                drop(response);
                self.log_in(&challenges)?;
                fresh = true;
                continue;
            }
            return Err(self.refusal(response, at == self.origin));
        }
    }

    fn header(&self) -> Option<Secret> {
        let authorization = lock(&self.authorization);
        let current = authorization.as_ref()?;
        let alive = current.until.is_none_or(|until| Instant::now() < until);
        alive.then(|| current.header.clone())
    }

    fn follow(
        &self,
        call: &Call<'_>,
        authorization: Option<&Secret>,
    ) -> Result<(Response<Body>, Origin), Fault> {
        let mut at = call.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let own = at.origin == self.origin;
            let mut request = Request::builder().method(call.method.clone()).uri(at.to_string());
            for (name, value) in &call.headers {
                request = request.header(*name, value);
            }
            if let Some(secret) = authorization.filter(|_| own) {
                request = request.header(AUTHORIZATION, sensitive(secret)?);
            }
            let trust = if own { Trust::Named } else { Trust::Foreign };
            let response = self.send(&at, trust, request, call.payload)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((response, at.origin));
            }
            at = self.next(&at, call, response.headers())?;
        }
        Err(Fault::Redirect { to: at.shown(), why: "is one of too many" })
    }

    fn send(
        &self,
        to: &Url,
        trust: Trust,
        request: Builder,
        payload: Payload<'_>,
    ) -> Result<Response<Body>, Fault> {
        let bad = |e: ureq::http::Error| Fault::protocol(e.to_string());
        let (mut reader, size): (Box<dyn Read + '_>, u64) = match payload {
            Payload::None => return self.net.send(to, trust, request.body(()).map_err(bad)?),
            Payload::Bytes(bytes) => (Box::new(bytes), bytes.len() as u64),
            Payload::File(file, at, left) => (Box::new(Piece { file, at, left }), left),
        };
        let body = SendBody::from_reader(&mut reader);
        let request = request.header(CONTENT_LENGTH, size).body(body).map_err(bad)?;
        self.net.send(to, trust, request)
    }

    fn next(&self, at: &Url, call: &Call<'_>, headers: &HeaderMap) -> Result<Url, Fault> {
        let location = text(headers, LOCATION.as_str())
            .ok_or_else(|| Fault::protocol("a redirect without a Location"))?;
        let refuse = |to: String, why| Fault::Redirect { to, why };
        let next = at.join(location).map_err(|why| refuse(escape(location.as_bytes()), why))?;
        if call.method != Method::GET && call.method != Method::HEAD {
            return Err(refuse(next.shown(), "answers an upload"));
        }
        if at.origin.tls && !next.origin.tls {
            return Err(refuse(next.shown(), "leaves TLS"));
        }
        if !next.origin.tls && next.origin != self.origin && !self.registries.is_plain(&next.origin)
        {
            return Err(refuse(next.shown(), "is not secured, and not configured to be so"));
        }
        Ok(next)
    }

    fn credential(&self) -> Result<Option<&Credential>, Fault> {
        if self.credential.get().is_none() {
            let time = self.registries.patience().helper;
            let found =
                credentials::find(self.registries.config(), &self.host, &self.repository, time)?;
            // Another thread may have been faster, with the same result.
            drop(self.credential.set(found));
        }
        Ok(self.credential.get().and_then(Option::as_ref))
    }

    fn log_in(&self, challenges: &Challenges) -> Result<(), Fault> {
        let credential = self.credential()?;
        let bearer = challenges.bearer.as_ref();
        let bearer = bearer.filter(|_| self.purpose != Purpose::File || !challenges.basic);
        let made = match (bearer, challenges.basic, credential) {
            (Some(_), _, Some(Credential::Bearer(token))) => {
                Authorization { header: bearer_header(token), until: None }
            }
            (Some(bearer), _, _) => self.token(bearer, credential)?,
            (None, true, Some(Credential::Basic { user, password })) => {
                Authorization { header: credentials::basic_header(user, password), until: None }
            }
            (None, true, None) => return Err(Fault::LoginRequired),
            (None, true, Some(_)) => {
                return Err(Fault::Credentials(
                    "there is a token, but the registry wants user and password".into(),
                ));
            }
            (None, false, _) => return Err(Fault::Challenge("neither Basic nor Bearer")),
        };
        *lock(&self.authorization) = Some(made);
        Ok(())
    }

    /// Decides whether a token server may be asked, and may be told who we are.
    ///
    /// Its address comes from the registry, so from an attacker. Without credentials any that is secured will do:
    /// the token it gives goes back to the registry that named it. Credentials go to the registry's own origin, to
    /// hosts that configuration lists for this registry, and for Docker Hub to its token server.
    fn realm(&self, text: &str, with_credentials: bool) -> Result<(Url, Trust), Fault> {
        let url = Url::parse(text)
            .map_err(|_| Fault::Challenge("a realm that is no address of http or https"))?;
        if url.origin == self.origin {
            return Ok((url, Trust::Named));
        }
        if !url.origin.tls && !self.registries.is_plain(&url.origin) {
            return Err(Fault::Challenge("a realm that is not secured"));
        }
        let listed = self.registries.config().hosts.get(&self.host).is_some_and(|own| {
            let authority = url.origin.authority();
            own.token_hosts.iter().any(|host| host.as_str() == authority)
        });
        let hub = self.host.is_hub() && url.origin.to_string() == HUB_TOKENS;
        if listed || hub {
            return Ok((url, Trust::Named));
        }
        if with_credentials {
            return Err(Fault::ForeignRealm { realm: url.origin.to_string() });
        }
        Ok((url, Trust::Foreign))
    }

    fn token(
        &self,
        bearer: &Bearer,
        credential: Option<&Credential>,
    ) -> Result<Authorization, Fault> {
        let (realm, trust) = self.realm(&bearer.realm, credential.is_some())?;
        let actions = match self.purpose {
            Purpose::Pull => "pull",
            Purpose::Push => "pull,push",
            Purpose::File => return Err(Fault::LoginRequired),
        };
        let mut scopes = vec![format!("repository:{}:{actions}", self.repository)];
        if let Some(also) = &*lock(&self.also) {
            scopes.push(format!("repository:{also}:pull"));
        }
        let mut query = Vec::new();
        if let Some(service) = &bearer.service {
            query.push(("service", service.as_str()));
        }
        let response = match credential {
            Some(Credential::Identity(secret)) => {
                let all = scopes.join(" ");
                query.push(("grant_type", "refresh_token"));
                query.push(("client_id", "ocivisor"));
                query.push(("scope", &all));
                query.push(("refresh_token", secret.expose()));
                let form = Url { origin: realm.origin.clone(), path: String::new() };
                let form = Secret::new(form.with_query(&query).path);
                let form = form.expose().trim_start_matches('?').as_bytes();
                let request = Request::post(realm.to_string())
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form)
                    .map_err(|e| Fault::protocol(e.to_string()))?;
                self.net.send(&realm, trust, request)?
            }
            other => {
                query.extend(scopes.iter().map(|scope| ("scope", scope.as_str())));
                let mut request = Request::get(realm.with_query(&query).to_string());
                if let Some(Credential::Basic { user, password }) = other {
                    let header = credentials::basic_header(user, password);
                    request = request.header(AUTHORIZATION, sensitive(&header)?);
                }
                let request = request.body(()).map_err(|e| Fault::protocol(e.to_string()))?;
                self.net.send(&realm, trust, request)?
            }
        };
        match response.status().as_u16() {
            200 => token_in(response),
            // It would carry what was sent, or bring a token from somebody else.
            300..=399 => Err(Fault::Token("a redirect")),
            _ => Err(self.refusal(response, true)),
        }
    }

    /// What an answer that is not expected means.
    pub fn refusal(&self, response: Response<Body>, own: bool) -> Fault {
        let status = response.status().as_u16();
        let known = self.credential.get().is_some_and(Option::is_some);
        match status {
            401 | 403 if own && known => return Fault::LoginRefused(status),
            401 | 403 if own => return Fault::LoginRequired,
            404 if own => return Fault::NotFound,
            _ => {}
        }
        let seconds = text(response.headers(), RETRY_AFTER.as_str()).and_then(challenge::number);
        *lock(&self.pause) = seconds.map(Duration::from_secs);
        Fault::Status { status, detail: detail(response) }
    }
}

/// A header's value, if it is there once and is text.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    match (all.next(), all.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

fn sensitive(secret: &Secret) -> Result<HeaderValue, Fault> {
    let mut value = HeaderValue::from_str(secret.expose())
        .map_err(|_| Fault::Credentials("they have characters that no header has".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn bearer_header(token: &Secret) -> Secret {
    Secret::new(format!("Bearer {}", token.expose()))
}

fn token_in(response: Response<Body>) -> Result<Authorization, Fault> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: Option<String>,
        #[serde(default)]
        access_token: Option<String>,
        #[serde(default)]
        expires_in: Option<u64>,
    }
    let bytes = read_some(response, MAX_TOKEN + 1).map_err(|e| io_fault(&e))?;
    if bytes.len() as u64 > MAX_TOKEN {
        return Err(Fault::Token("more than 64 KiB"));
    }
    let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| Fault::Token("no JSON"))?;
    let token = answer.token.filter(|t| !t.is_empty()).or(answer.access_token);
    let token = Secret::new(token.unwrap_or_default());
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    if token.expose().is_empty() || !token.expose().bytes().all(good) {
        return Err(Fault::Token("no token, or one with characters that no token has"));
    }
    let life = answer.expires_in.unwrap_or(TOKEN_LIFE).clamp(1, MAX_TOKEN_LIFE);
    // A little early, for the way there.
    let until = Instant::now() + Duration::from_secs(life) * 4 / 5;
    Ok(Authorization { header: bearer_header(&token), until: Some(until) })
}

/// The first bytes of a body.
fn read_some(response: Response<Body>, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let body = response.into_body().into_reader().take(max);
    Brief::new(body).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The first error in a registry's answer, for people; nothing where there is none that can be read.
///
/// The status is what failed and is told in any case. A text that does not come, is longer than it may be, or is not
/// in the form of the distribution specification (a proxy's page, say) adds nothing that could be relied on, and
/// why it is none would hide what matters.
fn detail(response: Response<Body>) -> String {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Problem>,
    }
    #[derive(Deserialize)]
    struct Problem {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let bytes = read_some(response, MAX_DETAIL).unwrap_or_default();
    let answer = serde_json::from_slice::<Answer>(&bytes).ok();
    answer.and_then(|a| a.errors.into_iter().next()).map_or_else(String::new, |p| {
        format!(" ({}: {})", escape(p.code.as_bytes()), escape(p.message.as_bytes()))
    })
}
