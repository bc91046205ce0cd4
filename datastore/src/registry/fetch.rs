//! Fetching an image's blobs into parts, several at a time, in the order in which they are unpacked.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::download::Download;
use super::fault::RegistryFault as Fault;
use super::net::lock;
use super::part::{Part, Parts, Size};
use super::session::Session;
use crate::digest::Digest;
use crate::document::Descriptor;
use crate::error::{Error, Result};
use crate::store::Store;

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
        if let Some(part) = self.parts.get(&digest).filter(|p| p.size == Size::Exactly(size)) {
            return part.clone();
        }
        let part = Arc::new(Part::new(digest, Size::Exactly(size)));
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
        self.parts.values().fold((0, 0), |(here, all), p| (here + p.length(), all + p.size.most()))
    }

    /// Forgets a part that turned out wrong, so that the next [`Fetcher::want`] fetches it from its start.
    pub fn discard(&mut self, part: &Part) -> std::io::Result<()> {
        self.parts.remove(&part.digest);
        self.shared.parts.discard(part)
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
        let download = Download {
            session: &self.session,
            parts: &self.parts,
            part,
            url: &|endpoint| endpoint.url(&format!("blobs/{}", part.digest)),
            object: self.object(part),
        };
        download.run(&mut |_, _| {})
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
