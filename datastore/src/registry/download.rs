//! One file from its server into its part, whatever breaks on the way.
//!
//! A connection that broke is gone on with by Range, at the same server or the next mirror: the bytes have a digest, so it
//! does not matter whose they are. A 206 must say the very range that was asked for. A server that cannot do ranges
//! answers 200; what is here already is then compared, not trusted. A server that goes on sending, but
//! slower than anybody can mean it, is given up.
//!
//! Whether the bytes are right is not asked here. That is seen by who reads them, by their digest.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::FlockOperation;
use ureq::http::{HeaderMap, Method};

use super::challenge::{ContentRange, number};
use super::endpoint::{Call, Endpoint, Payload, text};
use super::fault::RegistryFault as Fault;
use super::net::io_fault;
use super::part::{Part, Parts, Size, Taken};
use super::session::{Session, check_encoding};
use super::url::Url;
use crate::disk;
use crate::error::{Error, Limit, Refusal, Result};

const BUFFER: usize = 128 * 1024;

/// Hears how many bytes are here, and how many there will be; 0 for that while nobody said.
pub(crate) type Told<'a> = &'a mut dyn FnMut(u64, u64);

/// What is to be fetched, and from where.
pub(crate) struct Download<'a> {
    pub session: &'a Session,
    pub parts: &'a Parts,
    pub part: &'a Part,
    /// Where a server has it.
    pub url: &'a dyn Fn(&Endpoint) -> Url,
    /// For messages.
    pub object: String,
}

impl Download<'_> {
    /// Brings the whole file here. Then it is locked shared: others may read it, nobody writes to it.
    pub fn run(&self, told: Told<'_>) -> Result<()> {
        let Self { session, parts, part, .. } = *self;
        let io = |e| self.io("write", e);
        let wait = |time| session.stop.wait(time) || session.check_time().is_err();
        let file = match parts.take(part, wait).map_err(io)? {
            Some(Taken::Part(file)) => file,
            Some(Taken::Blob(file)) => {
                let length = file.metadata().map_err(io)?.len();
                part.begin(Arc::new(file), length);
                return Ok(());
            }
            None => {
                let ended = Fault::Unreachable("ended".into());
                return Err(self.fault(session.check_time().err().unwrap_or(ended)));
            }
        };
        let mut found = file.metadata().map_err(io)?.len();
        if let Size::Exactly(size) = part.size
            && found > size
        {
            file.set_len(0).map_err(io)?;
            found = 0;
        }
        let file = Arc::new(file);
        part.begin(file.clone(), found);
        if part.size != Size::Exactly(found) {
            let fetched = self.anywhere(&file, told);
            // Neither is anything to go on with.
            let changed = matches!(&fetched, Err(Error::Registry { why: Fault::Changed, .. }));
            if changed || part.length() == 0 {
                parts.discard(part).map_err(|e| self.io("remove", e))?;
            }
            fetched?;
        }
        disk::lock(&file, FlockOperation::LockShared).map_err(io)?;
        Ok(())
    }

    fn anywhere(&self, file: &File, told: Told<'_>) -> Result<()> {
        self.session.anywhere(|endpoint| {
            // Of one server and one file: what a range asked later must still be of.
            let mut etag = None;
            self.session.patiently(endpoint, |failures| {
                let before = self.part.length();
                let result = self.once(endpoint, file, &mut etag, told);
                let came = self.part.length() - before;
                if came >= self.session.registries.patience().window_bytes {
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
        file: &File,
        etag: &mut Option<String>,
        told: Told<'_>,
    ) -> Result<()> {
        let fault = |why| self.fault(why);
        self.session.check_time().map_err(fault)?;
        let (from, wanted) = (self.part.length(), self.part.size);
        let mut headers = Vec::new();
        if from > 0 {
            headers.push(("range", format!("bytes={from}-")));
            if let Some(etag) = etag {
                headers.push(("if-range", etag.clone()));
            }
        }
        let expect: &[u16] = match wanted {
            _ if from == 0 => &[200],
            // What is missing has a first byte, so there is a range.
            Size::Exactly(_) => &[200, 206],
            Size::AtMost(_) => &[200, 206, 416],
        };
        let response = endpoint
            .call(&Call {
                method: Method::GET,
                url: (self.url)(endpoint),
                headers,
                payload: Payload::None,
                expect,
            })
            .map_err(fault)?;
        let headers = response.headers();
        check_encoding(headers).map_err(fault)?;
        let length = text(headers, "content-length").and_then(number);
        let (start, end) = match response.status().as_u16() {
            // There is nothing behind what we have: then it is whole, or it is of something else.
            416 if total_of(headers) == Some(from) => return Ok(()),
            416 => return Err(fault(Fault::Changed)),
            206 => (from, Some(end_of_range(headers, from, wanted).map_err(fault)?)),
            _ => (0, length),
        };
        if let (Some(length), Some(end)) = (length, end)
            && start.saturating_add(length) != end
        {
            let got = start.saturating_add(length);
            return Err(self.refused(Refusal::Size { expected: end, got }));
        }
        let size = match (wanted, end) {
            (Size::Exactly(size), Some(end)) if size != end => {
                return Err(self.refused(Refusal::Size { expected: size, got: end }));
            }
            (Size::Exactly(_), _) => wanted,
            (Size::AtMost(max), Some(end)) if end > max => {
                return Err(self.refused(Refusal::limit(Limit::ImageBytes, max)));
            }
            (Size::AtMost(_), Some(end)) if end < from => return Err(fault(Fault::Changed)),
            (Size::AtMost(_), end) => end.map_or(wanted, Size::Exactly),
        };
        *etag = strong_etag(headers);
        self.copy(&mut response.into_body().into_reader(), file, start, size, told)
    }

    /// Copies a body that begins at the file's byte `start`; what is here already is compared.
    fn copy(
        &self,
        body: &mut impl Read,
        file: &File,
        start: u64,
        size: Size,
        told: Told<'_>,
    ) -> Result<()> {
        let fault = |why| self.fault(why);
        let patience = self.session.registries.patience();
        let total = if let Size::Exactly(size) = size { size } else { 0 };
        let (mut at, here) = (start, self.part.length());
        let mut buf = vec![0; BUFFER];
        let mut known = vec![0; if start < here { BUFFER } else { 0 }];
        let (mut began, mut counted) = (Instant::now(), 0);
        loop {
            // One byte more than is left, to see that there is none.
            let left = usize::try_from(size.most().saturating_sub(at)).unwrap_or(usize::MAX);
            let want = left.saturating_add(1).min(BUFFER);
            let n = match body.read(&mut buf[..want]) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(fault(io_fault(&e))),
            };
            if n == 0 {
                return match (size, left) {
                    (Size::Exactly(_), 1..) => {
                        Err(fault(Fault::Unreachable("the connection ended early".into())))
                    }
                    // The rest of what was here before is not of this.
                    _ if at < here => Err(fault(Fault::Changed)),
                    _ => Ok(()),
                };
            }
            if n > left {
                return Err(self.refused(match size {
                    Size::Exactly(size) => {
                        Refusal::Size { expected: size, got: size.saturating_add(1) }
                    }
                    Size::AtMost(max) => Refusal::limit(Limit::ImageBytes, max),
                }));
            }
            let mut fresh = &buf[..n];
            if at < here {
                let old = usize::try_from(here - at).unwrap_or(usize::MAX).min(n);
                let (again, rest) = fresh.split_at(old);
                file.read_exact_at(&mut known[..old], at).map_err(|e| self.io("read", e))?;
                if *again != known[..old] {
                    return Err(fault(Fault::Changed));
                }
                fresh = rest;
            }
            if !fresh.is_empty() {
                let offset = at + (n - fresh.len()) as u64;
                file.write_all_at(fresh, offset).map_err(|e| self.io("write", e))?;
                self.part.grow(offset + fresh.len() as u64);
                told(self.part.length(), total);
            }
            at += n as u64;
            counted += n as u64;
            self.session.check_time().map_err(fault)?;
            if began.elapsed() >= patience.window {
                if counted < patience.window_bytes && left > n {
                    let (bytes, seconds) = (patience.window_bytes, patience.window.as_secs());
                    return Err(fault(Fault::Stalled { bytes, seconds }));
                }
                (began, counted) = (Instant::now(), 0);
            }
        }
    }

    fn fault(&self, why: Fault) -> Error {
        why.about(&*self.object)
    }

    fn refused(&self, why: Refusal) -> Error {
        Error::Refused { object: self.object.clone(), why }
    }

    fn io(&self, op: &'static str, e: io::Error) -> Error {
        Error::io(op, format!("partial/{}", self.part.digest.hex()), e)
    }
}

/// An ETag that stands for every byte; a weak one says too little to go on by.
fn strong_etag(headers: &HeaderMap) -> Option<String> {
    let etag = text(headers, "etag")?;
    let strong = etag.len() <= 256 && etag.starts_with('"') && etag.ends_with('"');
    strong.then(|| etag.to_owned())
}

/// Of a range that cannot be had: how long the file is.
fn total_of(headers: &HeaderMap) -> Option<u64> {
    text(headers, "content-range")?.strip_prefix("bytes */").and_then(number)
}

/// How long the file is, of an answer that has all of it from an offset on. A part of another place would be found by
/// the digest in the end; here it is seen at once, and by name.
fn end_of_range(headers: &HeaderMap, from: u64, wanted: Size) -> std::result::Result<u64, Fault> {
    let range = headers
        .get("content-range")
        .and_then(|value| ContentRange::parse(value.as_bytes()))
        .ok_or_else(|| Fault::protocol("a partial answer without a sound Content-Range"))?;
    let ContentRange { first, last, total } = range;
    let whole = |end: &u64| match wanted {
        Size::Exactly(size) => *end == size,
        Size::AtMost(_) => true,
    };
    match last.checked_add(1).filter(whole) {
        Some(end) if first == from && total.is_none_or(|total| total == end) => Ok(end),
        _ => {
            let total = total.map_or("*".into(), |t| t.to_string());
            let asked = match wanted {
                Size::Exactly(size) => format!("{}/{size}", size - 1),
                Size::AtMost(_) => " to the end".into(),
            };
            Err(Fault::Protocol(format!(
                "Content-Range {first}-{last}/{total}, asked for {from}-{asked}"
            )))
        }
    }
}
