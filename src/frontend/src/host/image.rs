//! An image comes to a host: what is lacking, and nothing else.
//!
//! Its documents lie below the system datastore for that time, as a directory in OCI image layout. The blobs of lacking
//! layers are FIFOs in it, through which the daemon reads as they come what it imports: so they are written once, to its
//! store, and unpacked while they are sent. Of two calls for one image on one host the second waits, and finds nothing lacking;
//! hosts that share the datastore do not meet. What was whole when a call broke off, or the daemon ended, is in its store, and
//! is not asked for again.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::DatastorePlace;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Daemon;
use crate::files::{Dir, broken, garbled};
use crate::manifest::hex_of;
use crate::ofd;
use crate::wire::{self, Document, Message, Order, Reply};

/// Directory of the system datastore where images are on their way.
const STAGING: &str = ".ocivisor";
/// How often who waits for another's work says so.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);
/// How often a layer may be taken away by a prune before the import, or the daemon be replaced during it.
const TRIES: usize = 3;
/// Bytes between us and the daemon.
const ROOM: usize = 1 << 20;

/// What an image is called on hosts: by its content, so that nobody's name is moved.
fn name_of(hex: &str) -> String {
    format!("opennebula/{hex}")
}

/// Has an image of a registry here.
pub(super) fn pull(
    source: &str,
    digest: &str,
    to: &mut impl Write,
    daemon: &mut dyn Daemon,
) -> Result<()> {
    let hex = hex_of(digest)?;
    if !source.starts_with("docker://") || !source.ends_with(&format!("@{digest}")) {
        return Err(garbled("a registry's image without its digest"));
    }
    std::thread::scope(|scope| {
        let importing = scope.spawn(|| daemon.import(source, &name_of(hex)));
        let told = waiting(to, &|| Ok(importing.is_finished()));
        // Whoever asked may be gone: the image comes in all the same, for the next one.
        ended(importing)?.and(told)
    })
}

/// Waits, and says so now and then.
fn waiting(to: &mut impl Write, is_over: &dyn Fn() -> Result<bool>) -> Result<()> {
    let mut signs = Signs::new(to, SIGN_OF_LIFE);
    while !is_over()? {
        signs.give()?;
        std::thread::park_timeout(Duration::from_millis(20));
    }
    Ok(())
}

/// What who waits for us hears while we wait for another.
struct Signs<'a, W> {
    to: &'a mut W,
    every: Duration,
    last: Instant,
}

impl<'a, W: Write> Signs<'a, W> {
    fn new(to: &'a mut W, every: Duration) -> Self {
        Self { to, every, last: Instant::now() }
    }

    /// Says that we wait, if that was not said for some time.
    fn give(&mut self) -> Result<()> {
        if self.last.elapsed() > self.every {
            wire::write_line(self.to, &Reply::Waiting)?;
            self.to.flush().map_err(broken)?;
            self.last = Instant::now();
        }
        Ok(())
    }
}

fn ended(importing: ScopedJoinHandle<'_, Result<()>>) -> Result<Result<()>> {
    importing.join().map_err(|_| Error::new(ErrorKind::Host, "the import panicked"))
}

/// Has an image here whose blobs the other side sends.
pub(super) fn bring(
    place: &DatastorePlace,
    (manifest, config): (&Document, &Document),
    from: &mut impl BufRead,
    to: &mut impl Write,
    daemon: &mut dyn Daemon,
) -> Result<()> {
    let mut document = |said: &Document| -> Result<Vec<u8>> {
        hex_of(&said.digest)?;
        wire::read_body(from, said.size)
    };
    let documents = [(manifest, document(manifest)?), (config, document(config)?)];
    let hex = hex_of(&manifest.digest)?.to_owned();
    let staging = Staging::open(&Dir::ensure(&place.path())?)?;
    let _alone = staging.alone(&hex, to)?;
    staging.sweep()?;
    let name = staging.name(&hex);
    staging.dir.remove(&name)?;
    let brought = (|| {
        let layout = staging.dir.make(&name, 0o700)?;
        let blobs = layout.make("blobs", 0o700)?.make("sha256", 0o700)?;
        for (document, bytes) in &documents {
            blobs.replace(hex_of(&document.digest)?, bytes)?;
        }
        layout.replace("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        layout.replace("index.json", &index(manifest)?)?;
        let mut tries = 0;
        loop {
            tries += 1;
            let (imported, rest) = import(&layout, &blobs, &hex, from, to, daemon)?;
            let again = imported.as_ref().is_err_and(may_go_on) && tries < TRIES;
            // Another call brought the same image, or the next try asks for what then is lacking.
            if imported.is_ok() || again {
                rest.skip(from)?;
            }
            if !again {
                return imported;
            }
        }
    })();
    let removed = staging.dir.remove(&name);
    brought.and(removed)
}

/// Whether a prune took what was here a moment ago, or the daemon ended before it was done.
fn may_go_on(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::NotFound | ErrorKind::Cancelled)
}

/// What is on its way that nobody reads.
struct Rest {
    /// Bytes of a blob that has begun.
    within: Option<u64>,
    /// Blobs that follow.
    blobs: Vec<String>,
}

impl Rest {
    fn skip(self, from: &mut impl BufRead) -> Result<()> {
        skip(from, self.within)?;
        for digest in &self.blobs {
            let size = header(digest, from)?;
            skip(from, Some(size))?;
        }
        Ok(())
    }
}

/// Asks for what is lacking and has it imported as it comes. The inner error is the import's: the connection is as it was, but for
/// what is left to be skipped.
fn import(
    layout: &Dir,
    blobs: &Dir,
    hex: &str,
    from: &mut impl BufRead,
    to: &mut impl Write,
    daemon: &mut dyn Daemon,
) -> Result<(Result<()>, Rest)> {
    let lacking = daemon.lacking(layout.path())?;
    let mut coming = VecDeque::new();
    many_files();
    for digest in &lacking {
        // Open before the import begins: it takes a FIFO that nobody writes to for one at its end.
        coming.push_back((digest.as_str(), blobs.fifo(hex_of(digest)?)?));
    }
    if !lacking.is_empty() {
        wire::write_line(to, &Reply::Lacking { blobs: lacking.clone() })?;
        to.flush().map_err(broken)?;
    }
    let (source, name) = (format!("oci:{}", layout.path().display()), name_of(hex));
    std::thread::scope(|scope| {
        let importing = scope.spawn(|| daemon.import(&source, &name));
        let mut signs = Signs::new(to, SIGN_OF_LIFE);
        let fed = feed(&mut coming, from, &mut signs, &|| importing.is_finished());
        // What will not come must not be waited for: the names go first, then who has opened one sees its end.
        for (digest, _) in &coming {
            blobs.unlink(hex_of(digest)?)?;
        }
        let left: Vec<&str> = coming.drain(..).map(|(digest, _)| digest).collect();
        let told = if fed.is_ok() { waiting(to, &|| Ok(importing.is_finished())) } else { Ok(()) };
        let imported = ended(importing)?;
        let within = fed?;
        told?;
        let blobs = left.into_iter().skip(usize::from(within.is_some())).map(str::to_owned);
        Ok((imported, Rest { within, blobs: blobs.collect() }))
    })
}

/// Hands blobs on until all have come, or nobody reads them any more: then says how many bytes of the first that is left
/// are still to come, if it began. Who sends them hears that we wait for the reader: it may be at work on another image.
fn feed(
    coming: &mut VecDeque<(&str, File)>,
    from: &mut impl BufRead,
    signs: &mut Signs<'_, impl Write>,
    is_over: &dyn Fn() -> bool,
) -> Result<Option<u64>> {
    while let Some((digest, fifo)) = coming.front() {
        // More room means fewer changes between the two; not all that is wanted may be had.
        let _ = rustix::pipe::fcntl_setpipe_size(fifo, ROOM);
        let mut left = header(digest, from)?;
        while left > 0 {
            let there = from.fill_buf().map_err(broken)?;
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(there.len());
            if most == 0 {
                return Err(broken("a blob is cut"));
            }
            match rustix::io::write(fifo, &there[..most]) {
                Ok(written) => {
                    from.consume(written);
                    left -= written as u64;
                }
                Err(Errno::AGAIN) if is_over() => return Ok(Some(left)),
                Err(Errno::AGAIN) => {
                    signs.give()?;
                    let pause = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                    match poll(&mut [PollFd::new(fifo, PollFlags::OUT)], Some(&pause)) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(e) => return Err(failed("wait for", digest, e)),
                    }
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(failed("hand on", digest, e)),
            }
        }
        // What nobody has read when it is closed is lost.
        while rustix::io::ioctl_fionread(fifo).map_err(|e| failed("hand on", digest, e))? > 0 {
            if is_over() {
                return Ok(Some(0));
            }
            signs.give()?;
            std::thread::park_timeout(Duration::from_millis(2));
        }
        coming.pop_front();
    }
    Ok(None)
}

fn failed(what: &str, digest: &str, e: Errno) -> Error {
    Error::new(ErrorKind::Host, format!("{what} blob {digest}: {}", std::io::Error::from(e)))
}

/// Says how many bytes of a blob follow. Whether they are what its name says, the daemon finds out.
fn header(wanted: &str, from: &mut impl BufRead) -> Result<u64> {
    let message: Message = wire::read_line(from)?;
    match message.order {
        Order::Blob { digest, size } if digest == wanted => Ok(size),
        Order::Blob { .. } => Err(garbled("another blob than the one asked for")),
        _ => Err(garbled("another order than a blob")),
    }
}

fn skip(from: &mut impl BufRead, bytes: Option<u64>) -> Result<()> {
    let Some(bytes) = bytes else { return Ok(()) };
    let skipped = std::io::copy(&mut from.take(bytes), &mut std::io::sink()).map_err(broken)?;
    if skipped == bytes { Ok(()) } else { Err(broken("a blob is cut")) }
}

/// One is open for each layer, of which an image may have more than a process has files by default.
fn many_files() {
    let now = getrlimit(Resource::Nofile);
    // If it cannot be had, the FIFO that is one too many says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: now.maximum, ..now });
}

fn index(manifest: &Document) -> Result<Vec<u8>> {
    let text = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size,
        }],
    });
    serde_json::to_vec(&text).map_err(garbled)
}

/// Where images are on their way to this host. The datastore may be another host's as well.
struct Staging {
    dir: Dir,
    host: String,
}

impl Staging {
    fn open(datastore: &Dir) -> Result<Self> {
        let own = rustix::system::uname();
        let own = own.nodename().to_string_lossy();
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let host = own.chars().take(64).map(plain).collect();
        Ok(Self { dir: datastore.make(STAGING, 0o700)?, host })
    }

    /// Of that image, on this host.
    fn name(&self, hex: &str) -> String {
        format!("{hex}.{}", self.host)
    }

    /// A file, not a directory: those cannot be locked on NFS.
    fn locks(&self) -> Result<File> {
        self.dir.lock_file(&format!("{}.lock", self.host))
    }

    fn try_lock(&self, locks: &File, hex: &str) -> Result<bool> {
        // Two images that share a number wait for each other without need.
        let number = u32::from_str_radix(hex.get(..8).unwrap_or_default(), 16);
        let number = number.map_err(garbled)?;
        ofd::try_lock(locks, number).map_err(|e| self.dir.failed("lock", &self.name(hex), e))
    }

    /// Waits until nobody else on this host brings that image; the other side hears that we do.
    fn alone(&self, hex: &str, to: &mut impl Write) -> Result<File> {
        let locks = self.locks()?;
        waiting(to, &|| self.try_lock(&locks, hex))?;
        Ok(locks)
    }

    /// Removes what was killed and nobody works on: documents, and FIFOs, which hold nothing.
    fn sweep(&self) -> Result<()> {
        let locks = self.locks()?;
        for name in self.dir.names()? {
            let own = name.strip_suffix(&self.host).and_then(|name| name.strip_suffix('.'));
            let Some(hex) = own.filter(|hex| hex.len() == 64) else { continue };
            if self.try_lock(&locks, hex)? {
                self.dir.remove(&name)?;
            }
        }
        Ok(())
    }
}

/// An image that is not in a datastore any more.
pub(crate) fn gone(what: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{what} is not in its image datastore"))
}

#[cfg(test)]
mod tests;
