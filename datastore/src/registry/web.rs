//! Files of web servers of which nobody stated a digest: fetched whole into a file of the caller's, or only measured.
//!
//! TLS vouches for the server, and nothing for the bytes; whoever asks decides what that is worth. Connections,
//! logins, redirects and addresses are those of registries. What breaks is begun again from the start, for without a
//! digest the second half may be of another file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::Body;
use ureq::http::{Method, Response};

use super::challenge::number;
use super::endpoint::{Call, Endpoint, Payload, text};
use super::fault::RegistryFault as Fault;
use super::https::HttpsUrl;
use super::net::io_fault;
use super::session::{Session, check_encoding};
use super::url::Url;
use super::{Registries, RegistryHost};
use crate::cancel::Cancel;
use crate::error::{Error, Limit, Refusal, Result};

const BUFFER: usize = 256 * 1024;

/// Bytes of a page of a catalog.
const PAGE_MAX: u64 = 4 << 20;

impl Registries {
    /// How many bytes a file has, if its server says so.
    pub fn length(&self, url: &HttpsUrl, cancel: &Cancel) -> Result<Option<u64>> {
        let session = self.opened(&url.0, cancel)?;
        let length = asked(&session, &url.0, &Method::HEAD, |response| {
            Ok(text(response.headers(), "content-length").and_then(number))
        });
        cancel.told(length)
    }

    /// Fetches a file of at most `max` bytes; returns how many it has. `told` hears how many came, and may wait.
    pub fn download(
        &self,
        url: &HttpsUrl,
        to: &File,
        max: u64,
        cancel: &Cancel,
        told: &mut dyn FnMut(u64),
    ) -> Result<u64> {
        let session = self.opened(&url.0, cancel)?;
        let done = asked(&session, &url.0, &Method::GET, |response| {
            copy(&session, response, to, max, told)
        });
        cancel.told(done)
    }

    /// Names of a registry's repositories, sorted as it sorts them, at most so many. Many registries do not tell.
    pub fn catalog(
        &self,
        host: &RegistryHost,
        most: usize,
        cancel: &Cancel,
    ) -> Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Page {
            #[serde(default)]
            repositories: Vec<String>,
        }
        let plain = self.config().hosts.get(host).is_some_and(|own| own.plain_http);
        let origin = host.origin(!plain);
        let place = Url { origin, path: format!("/v2/_catalog?n={}", most.clamp(1, 1000)) };
        let session = self.opened(&place, cancel)?;
        let read = asked(&session, &place, &Method::GET, |response| {
            let object = || session.place().to_owned();
            let mut bytes = Vec::new();
            let mut body = response.into_body().into_reader().take(PAGE_MAX + 1);
            body.read_to_end(&mut bytes).map_err(|e| io_fault(&e).about(object()))?;
            let page: Option<Page> = serde_json::from_slice(&bytes).ok();
            let bad = || Fault::protocol("a catalog that is none").about(object());
            let mut names = page.ok_or_else(bad)?.repositories;
            names.truncate(most);
            Ok(names)
        });
        cancel.told(read)
    }

    fn opened(&self, url: &Url, cancel: &Cancel) -> Result<Arc<Session>> {
        let session = Arc::new(Session::file(self, url)?);
        cancel.interrupts(&session);
        Ok(session)
    }
}

/// Asks until there is an answer that can be used.
fn asked<T>(
    session: &Session,
    url: &Url,
    method: &Method,
    mut take: impl FnMut(Response<Body>) -> Result<T>,
) -> Result<T> {
    let about = |why: Fault| why.about(session.place().to_owned());
    session.anywhere(|endpoint: &Endpoint| {
        session.patiently(endpoint, |_| {
            session.check_time().map_err(about)?;
            let call = Call {
                method: method.clone(),
                url: url.clone(),
                headers: Vec::new(),
                payload: Payload::None,
                expect: &[200],
            };
            let response = endpoint.call(&call).map_err(about)?;
            check_encoding(response.headers()).map_err(about)?;
            take(response)
        })
    })
}

fn copy(
    session: &Session,
    response: Response<Body>,
    mut to: &File,
    max: u64,
    told: &mut dyn FnMut(u64),
) -> Result<u64> {
    let about = |why: Fault| why.about(session.place().to_owned());
    let refused = |why| Error::Refused { object: session.place().to_owned(), why };
    let local = |e: io::Error| Error::io("write", session.place().to_owned(), e);
    let length = text(response.headers(), "content-length").and_then(number);
    if length.is_some_and(|length| length > max) {
        return Err(refused(Refusal::limit(Limit::ImageBytes, max)));
    }
    to.set_len(0).and_then(|()| to.seek(SeekFrom::Start(0))).map_err(local)?;
    let mut body = response.into_body().into_reader();
    let mut buf = vec![0; BUFFER];
    let mut count = 0;
    let patience = session.registries.patience();
    let (mut waited, mut before) = (Duration::ZERO, 0);
    loop {
        session.check_time().map_err(about)?;
        if waited >= patience.window {
            if count - before < patience.window_bytes {
                return Err(about(Fault::Unreachable("the server sends too slowly".into())));
            }
            (waited, before) = (Duration::ZERO, count);
        }
        let began = Instant::now();
        let read = body.read(&mut buf);
        // Not the time that the caller takes.
        waited += began.elapsed();
        let n = match read {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(about(io_fault(&e))),
        };
        if n == 0 {
            break;
        }
        count += n as u64;
        if count > max {
            return Err(refused(Refusal::limit(Limit::ImageBytes, max)));
        }
        to.write_all(&buf[..n]).map_err(local)?;
        told(count);
    }
    match length {
        Some(length) if length != count => {
            Err(about(Fault::Unreachable("the connection ended early".into())))
        }
        _ => Ok(count),
    }
}
