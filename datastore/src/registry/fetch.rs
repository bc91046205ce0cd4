//! Fetching blobs into parts: several at a time, each resumed where it broke.
//!
//! A broken connection is gone on with by Range, at the same registry or the next mirror: bytes are named by
//! their digest, so it does not matter whose they are. A 206 must say the very range that was asked for. A registry
//! that cannot do ranges answers 200; what is here already is then compared, not trusted.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::fs::FlockOperation;
use ureq::http::{HeaderMap, Method};

use super::challenge::{ContentRange, number};
use super::endpoint::{Call, Endpoint, Payload, text};
use super::fault::RegistryFault as Fault;
use super::net::{io_fault, lock};
use super::part::{Part, Parts, Taken};
use super::session::{Session, check_encoding};
use crate::digest::Digest;
use crate::disk;
use crate::document::Descriptor;
use crate::error::{Error, Limit, Refusal, Result};
use crate::store::Store;

const BUFFER: usize = 128 * 1024;

/// Fetches the blobs of one image.
#[derive(Debug)]
pub(crate) struct Fetcher {
    shared: Arc<Shared>,
    parts: HashMap<Digest, Arc<Part>>,
    threads: Vec<JoinHandle<()>>,
    most: usize,
}

#[derive(Debug)]
struct Shared {
    session: Arc<Session>,
    parts: Parts,
    queue: Mutex<VecDeque<Arc<Part>>>,
    more: Condvar,
}

impl Fetcher {
    pub fn new(store: &Store, session: Arc<Session>) -> Result<Self> {
        let parts = Parts::open(store)?;
        parts.clean().map_err(|e| store.io("clean", "partial", e))?;
        let most = session.registries.config().parallel.clamp(1, 8) as usize;
        let shared = Shared { session, parts, queue: Mutex::default(), more: Condvar::new() };
        Ok(Self { shared: Arc::new(shared), parts: HashMap::new(), threads: Vec::new(), most })
    }

    pub fn folder(&self) -> &Parts {
        &self.shared.parts
    }

    /// Begins with a blob unless it was begun; they are fetched in the order of these calls.
    pub fn want(&mut self, descriptor: &Descriptor) -> Arc<Part> {
        let Descriptor { digest, size, .. } = *descriptor;
        if let Some(part) = self.parts.get(&digest).filter(|p| p.size == size) {
            return part.clone();
        }
        let part = Arc::new(Part::new(digest, size));
        self.parts.insert(digest, part.clone());
        let mut queue = lock(&self.shared.queue);
        queue.push_back(part.clone());
        if self.shared.session.stop.is_set() {
            // The threads have ended, or will without another look.
            self.shared.give_up(&mut queue);
            return part;
        }
        drop(queue);
        self.shared.more.notify_one();
        if self.threads.len() < self.most {
            let shared = self.shared.clone();
            self.threads.push(std::thread::spawn(move || shared.work()));
        }
        part
    }

    /// Bytes of the blobs begun that are here, and that there will be.
    pub fn progress(&self) -> (u64, u64) {
        self.parts.values().fold((0, 0), |(here, all), p| (here + p.length(), all + p.size))
    }

    /// Forgets a part that turned out wrong, so that the next [`Fetcher::want`] fetches it from its start.
    pub fn discard(&mut self, part: &Part) -> std::io::Result<()> {
        self.parts.remove(&part.digest);
        self.shared.parts.remove(&part.digest.hex())
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.shared.session.end();
        drop(lock(&self.shared.queue));
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            // A panic there was told as the failure of its part, or ended nothing but the fetching.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let mut queue = lock(&self.queue);
            let part = loop {
                if self.session.stop.is_set() {
                    return self.give_up(&mut queue);
                }
                if let Some(part) = queue.pop_front() {
                    break part;
                }
                queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            let mut ending = Ending { part: &part, result: None };
            ending.result = Some(self.fetch(&part));
        }
    }

    /// Tells those that wait for parts which nobody will fetch.
    fn give_up(&self, queue: &mut VecDeque<Arc<Part>>) {
        for part in queue.drain(..) {
            part.end(Err(Fault::Unreachable("ended".into()).about(self.object(&part))));
        }
    }

    fn object(&self, part: &Part) -> String {
        format!("{} layer {}", self.session.place(), part.digest)
    }

    fn fetch(&self, part: &Part) -> Result<()> {
        let hex = part.digest.hex();
        let io = |e: std::io::Error| Error::io("write", format!("partial/{hex}"), e);
        let session = &self.session;
        let wait = |time| session.stop.wait(time) || session.check_time().is_err();
        let taken = self.parts.take(&hex, part.size, wait).map_err(io)?;
        let file = match taken {
            Some(Taken::Part(file)) => file,
            Some(Taken::Blob(file)) => {
                part.begin(Arc::new(file), part.size);
                return Ok(());
            }
            None => {
                let ended = Fault::Unreachable("ended".into());
                return Err(session.check_time().err().unwrap_or(ended).about(self.object(part)));
            }
        };
        let mut found = file.metadata().map_err(io)?.len();
        if found > part.size {
            file.set_len(0).map_err(io)?;
            found = 0;
        }
        let file = Arc::new(file);
        part.begin(file.clone(), found);
        if found < part.size {
            let fetched = self.download(part, &file);
            if part.length() == 0 {
                self.parts.remove(&hex).map_err(io)?;
            }
            fetched?;
        }
        // From here on others may read it.
        disk::lock(&file, FlockOperation::LockShared).map_err(io)?;
        Ok(())
    }

    fn download(&self, part: &Part, file: &File) -> Result<()> {
        self.session.anywhere(|endpoint| {
            // Of one server and one blob: what a range asked later must still be of.
            let mut etag = None;
            self.session.patiently(endpoint, |failures| {
                let before = part.length();
                let result = self.once(endpoint, part, file, &mut etag);
                if part.length() - before >= self.session.registries.patience().window_bytes {
                    *failures = 0;
                }
                result
            })
        })
    }

    /// One request for what is missing.
    fn once(
        &self,
        endpoint: &Endpoint,
        part: &Part,
        file: &File,
        etag: &mut Option<String>,
    ) -> Result<()> {
        let object = || self.object(part);
        let fault = |why: Fault| why.about(object());
        self.session.check_time().map_err(fault)?;
        let from = part.length();
        let mut headers = Vec::new();
        if from > 0 {
            headers.push(("range", format!("bytes={from}-")));
            if let Some(etag) = etag {
                headers.push(("if-range", etag.clone()));
            }
        }
        let expect: &[u16] = if from > 0 { &[200, 206] } else { &[200] };
        let response = endpoint
            .call(&Call {
                method: Method::GET,
                url: endpoint.url(&format!("blobs/{}", part.digest)),
                headers,
                payload: Payload::None,
                expect,
            })
            .map_err(fault)?;
        check_encoding(response.headers()).map_err(fault)?;
        *etag = strong_etag(response.headers());
        let start = if response.status().as_u16() == 206 {
            check_range(response.headers(), from, part.size).map_err(fault)?;
            from
        } else {
            0
        };
        let length = text(response.headers(), "content-length").and_then(number);
        if let Some(length) = length.filter(|length| start + length != part.size) {
            let why = Refusal::Size { expected: part.size, got: start.saturating_add(length) };
            return Err(Error::Refused { object: object(), why });
        }
        let (session, size) = (&*self.session, part.size);
        let copy = Copy { session, object: &object(), part, file, size, is_exact: true };
        copy.run(&mut response.into_body().into_reader(), start, &mut |_| {})
    }
}

/// The body of an answer on its way into a part.
pub(crate) struct Copy<'a> {
    pub session: &'a Session,
    pub object: &'a str,
    pub part: &'a Part,
    pub file: &'a File,
    /// Bytes that the part will have, or may have at most.
    pub size: u64,
    pub is_exact: bool,
}

impl Copy<'_> {
    /// Copies a body that begins at the part's byte `start`; what is here already is compared. `told` hears of
    /// bytes that are here.
    pub fn run(&self, body: &mut impl Read, start: u64, told: &mut dyn FnMut(u64)) -> Result<()> {
        let Self { session, object, part, file, size, is_exact } = *self;
        let fault = |why: Fault| why.about(object);
        let patience = session.registries.patience();
        let (mut at, here) = (start, part.length());
        let mut buf = vec![0; BUFFER];
        let mut known = vec![0; if start < here { BUFFER } else { 0 }];
        let (mut began, mut counted) = (Instant::now(), 0);
        loop {
            // One byte more than is left, to see that there is none.
            let left = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
            let want = left.saturating_add(1).min(BUFFER);
            let n = match body.read(&mut buf[..want]) {
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(fault(io_fault(&e))),
            };
            if n == 0 {
                return match left {
                    1.. if is_exact => {
                        Err(fault(Fault::Unreachable("the connection ended early".into())))
                    }
                    // The rest of what was here before is not of this.
                    _ if at < here => Err(fault(Fault::Changed)),
                    _ => Ok(()),
                };
            }
            if n > left {
                let why = if is_exact {
                    Refusal::Size { expected: size, got: size.saturating_add(1) }
                } else {
                    Refusal::limit(Limit::ImageBytes, size)
                };
                return Err(Error::Refused { object: object.to_owned(), why });
            }
            let mut fresh = &buf[..n];
            if at < here {
                let old = usize::try_from(here - at).unwrap_or(usize::MAX).min(n);
                let (again, rest) = fresh.split_at(old);
                let io = |e| Error::io("read", format!("partial/{}", part.digest.hex()), e);
                file.read_exact_at(&mut known[..old], at).map_err(io)?;
                if *again != known[..old] {
                    return Err(fault(Fault::Changed));
                }
                fresh = rest;
            }
            if !fresh.is_empty() {
                let offset = at + (n - fresh.len()) as u64;
                let io = |e| Error::io("write", format!("partial/{}", part.digest.hex()), e);
                file.write_all_at(fresh, offset).map_err(io)?;
                part.grow(offset + fresh.len() as u64);
                told(part.length());
            }
            at += n as u64;
            counted += n as u64;
            session.check_time().map_err(fault)?;
            let took = began.elapsed();
            if took >= patience.window {
                if counted < patience.window_bytes && left > n {
                    let (bytes, seconds) = (patience.window_bytes, patience.window.as_secs());
                    return Err(fault(Fault::Stalled { bytes, seconds }));
                }
                (began, counted) = (Instant::now(), 0);
            }
        }
    }
}

/// Tells a part's readers of its end, also when its writer panics.
struct Ending<'a> {
    part: &'a Part,
    result: Option<Result<()>>,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let lost = || Err(Error::damaged(format!("layer {}", self.part.digest), "its fetch died"));
        self.part.end(self.result.take().unwrap_or_else(lost));
    }
}

pub(crate) fn strong_etag(headers: &HeaderMap) -> Option<String> {
    let etag = text(headers, "etag")?;
    let strong = etag.len() <= 256 && etag.starts_with('"') && etag.ends_with('"');
    strong.then(|| etag.to_owned())
}

/// A part of another place would be found by the digest in the end; here it is seen at once, and by name.
fn check_range(headers: &HeaderMap, from: u64, size: u64) -> std::result::Result<(), Fault> {
    let range = headers
        .get("content-range")
        .and_then(|value| ContentRange::parse(value.as_bytes()))
        .ok_or_else(|| Fault::protocol("a partial answer without a sound Content-Range"))?;
    let right = range.first == from
        && range.last.checked_add(1) == Some(size)
        && range.total.is_none_or(|total| total == size);
    if right {
        Ok(())
    } else {
        let ContentRange { first, last, total } = range;
        let total = total.map_or("*".into(), |t| t.to_string());
        Err(Fault::Protocol(format!(
            "Content-Range {first}-{last}/{total}, asked for {from}-{}/{size}",
            size - 1
        )))
    }
}
