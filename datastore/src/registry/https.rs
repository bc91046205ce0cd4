//! A file from a web server, for which the user stated a digest: a root file system as a tar.
//!
//! It comes the way blobs of registries come: into `partial/<hex>`, gone on with by Range where it broke, with the same
//! TLS, logins, redirects, addresses and waits. What differs is that nobody said how long it is, so the server's own
//! word for that is taken up to the limit; whether the bytes are right is said by the digest alone, in the end.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;
use std::sync::Arc;

use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};
use ureq::http::{HeaderMap, Method};

use super::challenge::{ContentRange, number};
use super::endpoint::{Call, Endpoint, Payload, text};
use super::fault::RegistryFault as Fault;
use super::fetch::{Copy, strong_etag};
use super::part::{Part, Parts, Taken};
use super::session::{Session, check_encoding};
use super::url::Url;
use crate::digest::Digest;
use crate::disk;
use crate::error::{Error, Limit, Refusal, Result, escape};
use crate::limits::Limits;
use crate::source::HttpsSource;
use crate::store::Store;

/// How a source starts that is a file on a web server.
pub(crate) const SCHEME: &str = "https://";

/// Where a file is: `https://host[:port]/path[?query]`.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpsUrl(Url);

impl FromStr for HttpsUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: String| Error::Source { from: escape(text.as_bytes()), why };
        let url = Url::parse(text).map_err(|why| bad(format!("the address {why}")))?;
        if !url.origin.tls {
            return Err(bad("http is read and changed on the way by anybody; use https".into()));
        }
        Ok(Self(url))
    }
}

/// Without the query, which may hold a signature.
impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.shown())
    }
}

impl fmt::Debug for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpsUrl").field(&self.0.shown()).finish()
    }
}

/// A file on its way here.
pub(crate) struct HttpsFile {
    session: Arc<Session>,
    url: Url,
    digest: Digest,
    parts: Parts,
    /// Most bytes that it may have.
    max: u64,
}

type Told<'a> = &'a mut dyn FnMut(u64, u64);

impl HttpsFile {
    pub fn open(
        store: &Store,
        source: &HttpsSource,
        digest: Digest,
        limits: &Limits,
    ) -> Result<Self> {
        let url = source.url.0.clone();
        let session = Arc::new(Session::file(&source.registries, &url)?);
        store.cancel.interrupts(&session);
        let parts = Parts::open(store)?;
        parts.clean().map_err(|e| store.io("clean", "partial", e))?;
        Ok(Self { session, url, digest, parts, max: limits.image_bytes })
    }

    /// Brings the whole file here. Its digest is the reader's to check.
    pub fn fetch(&self, told: Told<'_>) -> Result<Arc<Part>> {
        let part = Arc::new(Part::new(self.digest, self.max));
        let hex = self.digest.hex();
        let io = |e: io::Error| Error::io("write", format!("partial/{hex}"), e);
        let wait = |time| self.session.stop.wait(time) || self.session.check_time().is_err();
        let file = match self.parts.take(&hex, None, wait).map_err(io)? {
            Some(Taken::Part(file)) => file,
            Some(Taken::Blob(file)) => {
                let size = file.metadata().map_err(io)?.len();
                part.begin(Arc::new(file), size);
                part.end(Ok(()));
                return Ok(part);
            }
            None => {
                let ended = Fault::Unreachable("ended".into());
                let why = self.session.check_time().err().unwrap_or(ended);
                return Err(why.about(self.session.place()));
            }
        };
        let file = Arc::new(file);
        part.begin(file.clone(), file.metadata().map_err(io)?.len());
        match self.download(&part, &file, told) {
            // An earlier process left something else, or the server has something else now.
            Err(Error::Registry { why: Fault::Changed, .. }) if part.found() > 0 => {
                file.set_len(0).map_err(io)?;
                part.begin(file.clone(), 0);
                self.download(&part, &file, told)?;
            }
            done => done?,
        }
        // From here on others may read it.
        disk::lock(&file, FlockOperation::LockShared).map_err(io)?;
        part.end(Ok(()));
        Ok(part)
    }

    fn download(&self, part: &Part, file: &File, told: Told<'_>) -> Result<()> {
        let fetched = self.session.anywhere(|endpoint| {
            let mut etag = None;
            self.session.patiently(endpoint, |failures| {
                let before = part.length();
                let result = self.once(endpoint, part, file, &mut etag, told);
                let came = part.length().saturating_sub(before);
                if came >= self.session.registries.patience().window_bytes {
                    *failures = 0;
                }
                result
            })
        });
        if part.length() == 0 {
            let hex = self.digest.hex();
            let io = |e| Error::io("remove", format!("partial/{hex}"), e);
            self.parts.remove(&hex).map_err(io)?;
        }
        fetched
    }

    /// One request for what is missing.
    fn once(
        &self,
        endpoint: &Endpoint,
        part: &Part,
        file: &File,
        etag: &mut Option<String>,
        told: Told<'_>,
    ) -> Result<()> {
        let fault = |why: Fault| why.about(self.session.place());
        self.session.check_time().map_err(fault)?;
        let from = part.length();
        let mut headers = Vec::new();
        if from > 0 {
            headers.push(("range", format!("bytes={from}-")));
            if let Some(etag) = etag {
                headers.push(("if-range", etag.clone()));
            }
        }
        let expect: &[u16] = if from > 0 { &[200, 206, 416] } else { &[200] };
        let response = endpoint
            .call(&Call {
                method: Method::GET,
                url: self.url.clone(),
                headers,
                payload: Payload::None,
                expect,
            })
            .map_err(fault)?;
        check_encoding(response.headers()).map_err(fault)?;
        let (start, size) = match response.status().as_u16() {
            // There is nothing behind what we have: then it is whole, or it is of something else.
            416 if total_of(response.headers()) == Some(from) => return Ok(()),
            416 => return Err(fault(Fault::Changed)),
            206 => (from, Some(end_of_range(response.headers(), from).map_err(fault)?)),
            _ => (0, text(response.headers(), "content-length").and_then(number)),
        };
        *etag = strong_etag(response.headers());
        if size.is_some_and(|size| size > self.max) {
            let why = Refusal::limit(Limit::ImageBytes, self.max);
            return Err(Error::Refused { object: self.session.place().into(), why });
        }
        if size.is_some_and(|size| size < from) {
            return Err(fault(Fault::Changed));
        }
        let copy = Copy {
            session: &self.session,
            object: self.session.place(),
            part,
            file,
            size: size.unwrap_or(self.max),
            is_exact: size.is_some(),
        };
        let total = size.unwrap_or(0);
        copy.run(&mut response.into_body().into_reader(), start, &mut |at| told(at, total))
    }

    /// Puts the file, found right, under a name; synced.
    pub fn settle(&self, part: &Arc<Part>, to: &File, name: &str) -> Result<()> {
        let object = || format!("blobs/sha256/{}", self.digest.hex());
        part.settle(&self.parts, to, name).map_err(|e| Error::io("write", object(), e))
    }

    /// Hears that the file could not be used. Returns what is to be said of it, or none if it is to be fetched again.
    pub fn failed(&self, part: &Arc<Part>, error: Error) -> Result<Option<Error>> {
        if !matches!(error, Error::Refused { .. }) {
            return Ok(Some(error));
        }
        let object = format!("partial/{}", self.digest.hex());
        let mut hasher = Sha256::new();
        let (mut reader, mut buf) = (part.reader(), vec![0; 128 * 1024]);
        loop {
            match reader.read(&mut buf).map_err(|e| Error::io("read", &*object, e))? {
                0 => break,
                n => hasher.update(&buf[..n]),
            }
        }
        let got = Digest::finish(hasher);
        self.parts.remove(&self.digest.hex()).map_err(|e| Error::io("remove", object, e))?;
        if got == self.digest {
            return Ok(Some(error));
        }
        // What an earlier process left may have been cut by a power failure: once more from the start.
        if part.found() > 0 {
            return Ok(None);
        }
        // Whatever the unpacker did not like: these are other bytes than were wanted.
        let why = Refusal::Digest { expected: self.digest, got };
        Ok(Some(Error::Refused { object: self.session.place().into(), why }))
    }
}

impl Drop for HttpsFile {
    fn drop(&mut self) {
        self.session.end();
    }
}

/// Of a range that cannot be had: how long the file is.
fn total_of(headers: &HeaderMap) -> Option<u64> {
    text(headers, "content-range")?.strip_prefix("bytes */").and_then(number)
}

/// How long the file is, of an answer that has all of it from an offset on.
fn end_of_range(headers: &HeaderMap, from: u64) -> std::result::Result<u64, Fault> {
    let range = headers
        .get("content-range")
        .and_then(|value| ContentRange::parse(value.as_bytes()))
        .ok_or_else(|| Fault::protocol("a partial answer without a sound Content-Range"))?;
    let ContentRange { first, last, total } = range;
    match last.checked_add(1) {
        Some(end) if first == from && total.is_none_or(|total| total == end) => Ok(end),
        _ => {
            let total = total.map_or("*".into(), |t| t.to_string());
            Err(Fault::Protocol(format!(
                "Content-Range {first}-{last}/{total}, asked for {from}- to the end"
            )))
        }
    }
}
