//! Pushing: a stored image's blobs and manifest to a registry.
//!
//! Bytes go out as they came in, so the image has the same digest there. A blob that is there is not sent, one
//! that another repository of the registry has is mounted. A big one goes in one stream that is gone on with where it
//! broke, by what the registry says of the upload; a small one in one request, begun anew. The manifest is last: until
//! then nothing is visible. Blobs are read where they lie; if one is damaged the registry refuses it by its digest.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::FlockOperation;
use ureq::Body;
use ureq::http::{HeaderMap, Method, Response};

use super::Registries;
use super::challenge::number;
use super::endpoint::{Call, Endpoint, Payload, Purpose, text};
use super::fault::RegistryFault as Fault;
use super::reference::{RegistryReference, Wanted};
use super::session::Session;
use super::url::Url;
use crate::digest::Digest;
use crate::disk;
use crate::document::{self, Manifest};
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::name::Reference;
use crate::record::ImageRecord;
use crate::staging::{Kept, Staged};
use crate::store::Store;

/// Blobs up to this size are sent in one request, and whole again if it breaks.
const SMALL: u64 = 4 << 20;

/// What a push is doing; for people, not for decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PushProgress {
    /// So many blobs are to be there before the manifest.
    Started {
        /// Layers and config, each once.
        blobs: usize,
    },
    /// The registry has the blob.
    Present {
        /// Which.
        blob: Digest,
    },
    /// The registry took the blob from another of its repositories.
    Mounted {
        /// Which.
        blob: Digest,
    },
    /// The blob goes out from here on; again with a higher number where an upload is gone on with.
    Sending {
        /// Which.
        blob: Digest,
        /// Bytes the registry has.
        from: u64,
        /// Bytes of the blob.
        size: u64,
    },
    /// The registry has taken the blob.
    Sent {
        /// Which.
        blob: Digest,
    },
    /// The manifest is there.
    Done,
}

/// What a push came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Blobs sent, and their bytes.
    pub sent: u64,
    /// Bytes of the blobs sent.
    pub sent_bytes: u64,
    /// Blobs taken from another repository.
    pub mounted: u64,
    /// Blobs that were there.
    pub present: u64,
}

impl Store {
    /// Sends an image to a registry under the reference's tag (`latest` if it has none).
    ///
    /// `mount_from` are repositories of the same registry that may have its blobs, such as the one the image was
    /// pulled from. Mirrors are not asked. Fails without a visible change there, but for blobs without a name.
    pub fn push(
        &self,
        image: &Reference,
        to: &RegistryReference,
        registries: &Registries,
        mount_from: &[String],
        tell: &mut dyn FnMut(PushProgress),
    ) -> Result<Pushed> {
        // Nothing may be pruned from under it.
        let staged = Staged::create(&self.staging, "push")
            .map_err(|e| self.io("make a directory in", "staging", e))?;
        let record = self.kept(image, &staged)?;
        let session = Arc::new(Session::new(registries, to, Purpose::Push)?);
        self.cancel.interrupts(&session);
        let push = Push { store: self, to, session: &session, mount_from };
        self.cancel.told(push.image(&record, tell))
    }
}

impl Store {
    /// An image whose blobs stay as long as `staged` is there.
    fn kept(&self, image: &Reference, staged: &Staged) -> Result<ImageRecord> {
        let _shared = self.lock(FlockOperation::LockShared)?;
        let manifest_digest = self.resolve(image)?.manifest_digest;
        let record = self
            .record(&manifest_digest)?
            .ok_or_else(|| Error::NotFound { reference: image.to_string() })?;
        let blobs = record.blobs().map(|(digest, _)| digest).collect();
        let kept = Kept { blobs, ..Kept::default() };
        staged.keep(&kept).map_err(|e| self.io("write a file in", "staging", e))?;
        Ok(record)
    }
}

struct Push<'a> {
    store: &'a Store,
    to: &'a RegistryReference,
    session: &'a Session,
    mount_from: &'a [String],
}

enum Arrived {
    Present,
    Mounted,
    Sent,
}

impl Push<'_> {
    fn image(&self, record: &ImageRecord, tell: &mut dyn FnMut(PushProgress)) -> Result<Pushed> {
        let unfit = |why: String| Fault::NotPushable(why).about(self.to.to_string());
        if self.to.digest().is_some_and(|digest| *digest != record.manifest) {
            return Err(unfit(format!("the image is {}, not the digest named", record.manifest)));
        }
        let bytes = self.manifest(record)?;
        let limits = Limits { layers: usize::MAX, ..Limits::default() };
        let media_type = document::media_type_inside(&bytes);
        let parsed = match &media_type {
            Some(media_type) => Manifest::parse(&bytes, media_type, &limits),
            None => Manifest::parse(&bytes, document::OCI_MANIFEST, &limits),
        };
        let about = |why| Error::document(format!("manifest {}", record.manifest), why);
        // A layer under the store's own type is refused here: no other program knows it.
        let parsed = parsed.map_err(|why| {
            let private = record.layers.iter().find(|l| l.media_type.contains("ocivisor"));
            private.map_or_else(
                || about(why),
                |l| {
                    unfit(format!(
                        "layer {} has a compression that images do not have (xz)",
                        l.blob
                    ))
                },
            )
        })?;
        let media_type = document::manifest_media_type(&bytes, &parsed);

        let mut seen = BTreeSet::new();
        let layers = record.layers.iter().map(|l| (l.blob, l.size));
        let blobs: Vec<_> = layers
            .chain([(record.config, record.config_size)])
            .filter(|(digest, _)| seen.insert(*digest))
            .collect();
        tell(PushProgress::Started { blobs: blobs.len() });
        let endpoint = self.endpoint()?;
        let mut pushed = Pushed::default();
        for (blob, size) in blobs {
            match self.blob(endpoint, &blob, size, tell)? {
                Arrived::Present => {
                    pushed.present += 1;
                    tell(PushProgress::Present { blob });
                }
                Arrived::Mounted => {
                    pushed.mounted += 1;
                    tell(PushProgress::Mounted { blob });
                }
                Arrived::Sent => {
                    pushed.sent += 1;
                    pushed.sent_bytes += size;
                    tell(PushProgress::Sent { blob });
                }
            }
        }
        self.put_manifest(endpoint, &bytes, &media_type, &record.manifest)?;
        tell(PushProgress::Done);
        Ok(pushed)
    }

    fn endpoint(&self) -> Result<&Endpoint> {
        let none = || Fault::Config("no registry".into()).about(self.to.to_string());
        self.session.origin().ok_or_else(none)
    }

    fn manifest(&self, record: &ImageRecord) -> Result<Vec<u8>> {
        let (digest, hex) = (record.manifest, record.manifest.hex());
        let damaged = |why: &str| Error::damaged(format!("blob {digest}"), why);
        let bytes = disk::read_file(&self.store.blobs, &hex, record.manifest_size)
            .map_err(|e| self.store.io("read", &format!("blobs/sha256/{hex}"), e))?
            .ok_or_else(|| damaged("is absent"))?;
        if Digest::of(&bytes) == digest { Ok(bytes) } else { Err(damaged("has another digest")) }
    }

    fn object(&self, blob: &Digest) -> String {
        format!("{} blob {blob}", self.session.place())
    }

    fn call(&self, endpoint: &Endpoint, object: &str, call: &Call<'_>) -> Result<Response<Body>> {
        self.session.check_time().map_err(|why| why.about(object))?;
        endpoint.call(call).map_err(|why| why.about(object))
    }

    fn blob(
        &self,
        endpoint: &Endpoint,
        blob: &Digest,
        size: u64,
        tell: &mut dyn FnMut(PushProgress),
    ) -> Result<Arrived> {
        let object = self.object(blob);
        let there = self.session.patiently(endpoint, |_| {
            let call = Call {
                method: Method::HEAD,
                url: endpoint.url(&format!("blobs/{blob}")),
                headers: Vec::new(),
                payload: Payload::None,
                expect: &[200, 404],
            };
            Ok(self.call(endpoint, &object, &call)?.status() == 200)
        })?;
        if there {
            return Ok(Arrived::Present);
        }
        for repository in self.mount_from.iter().filter(|r| *r != self.to.repository()) {
            if self.mount(endpoint, blob, repository)? {
                return Ok(Arrived::Mounted);
            }
        }
        let hex = blob.hex();
        let io = |e| self.store.io("open", &format!("blobs/sha256/{hex}"), e);
        let file = disk::open_file(&self.store.blobs, &hex)
            .map_err(io)?
            .ok_or_else(|| Error::damaged(format!("blob {blob}"), "is absent"))?;
        if size <= SMALL {
            self.send_whole(endpoint, blob, &file, size, tell)?;
        } else {
            self.send_on(endpoint, blob, &file, size, tell)?;
        }
        Ok(Arrived::Sent)
    }

    /// Asks the registry to take a blob from another repository; says whether it did.
    fn mount(&self, endpoint: &Endpoint, blob: &Digest, repository: &str) -> Result<bool> {
        let object = self.object(blob);
        endpoint.also_from(repository);
        self.session.patiently(endpoint, |_| {
            let text = blob.to_string();
            let query = [("mount", text.as_str()), ("from", repository)];
            let call = Call {
                method: Method::POST,
                url: endpoint.url("blobs/uploads/").with_query(&query),
                headers: Vec::new(),
                payload: Payload::Bytes(&[]),
                // A refusal is no fault: the repository may not exist, or not be ours to read.
                expect: &[201, 202, 400, 403, 404, 405],
            };
            let response = self.call(endpoint, &object, &call)?;
            if response.status() == 202 {
                // An upload began instead, which nobody will go on with.
                if let Ok(upload) = self.upload_at(&call.url, response.headers()) {
                    let call = Call {
                        method: Method::DELETE,
                        url: upload,
                        headers: Vec::new(),
                        payload: Payload::None,
                        expect: &[200, 202, 204, 404, 405],
                    };
                    // The registry forgets uploads by itself too.
                    drop(endpoint.call(&call));
                }
            }
            Ok(response.status() == 201)
        })
    }

    /// The address of an upload. It gets our login and our bytes, so it is the registry's own.
    fn upload_at(&self, at: &Url, headers: &HeaderMap) -> std::result::Result<Url, Fault> {
        let location = text(headers, "location")
            .ok_or_else(|| Fault::protocol("an upload without a Location"))?;
        let url = at
            .join(location)
            .map_err(|why| Fault::Protocol(format!("the Location of an upload {why}")))?;
        if url.origin == at.origin {
            Ok(url)
        } else {
            Err(Fault::Redirect { to: url.shown(), why: "leads an upload to another server" })
        }
    }

    fn begin(&self, endpoint: &Endpoint, object: &str) -> Result<Url> {
        let call = Call {
            method: Method::POST,
            url: endpoint.url("blobs/uploads/"),
            headers: Vec::new(),
            payload: Payload::Bytes(&[]),
            expect: &[202],
        };
        let response = self.call(endpoint, object, &call)?;
        self.upload_at(&call.url, response.headers()).map_err(|why| why.about(object))
    }

    fn send_whole(
        &self,
        endpoint: &Endpoint,
        blob: &Digest,
        file: &File,
        size: u64,
        tell: &mut dyn FnMut(PushProgress),
    ) -> Result<()> {
        let object = self.object(blob);
        self.session.patiently(endpoint, |_| {
            let upload = self.begin(endpoint, &object)?;
            tell(PushProgress::Sending { blob: *blob, from: 0, size });
            self.finish(endpoint, &object, &upload, blob, Payload::File(file, 0, size))
        })
    }

    fn send_on(
        &self,
        endpoint: &Endpoint,
        blob: &Digest,
        file: &File,
        size: u64,
        tell: &mut dyn FnMut(PushProgress),
    ) -> Result<()> {
        let object = self.object(blob);
        let mut upload = None;
        let mut best = 0;
        self.session.patiently(endpoint, |failures| {
            let (at, from) = match upload.take() {
                None => (self.begin(endpoint, &object)?, 0),
                Some(at) => match self.status(endpoint, &object, &at, size) {
                    Ok(known) => known,
                    // The registry forgot it, or cannot tell.
                    Err(Error::Registry { why, .. }) if !why.is_passing() => {
                        (self.begin(endpoint, &object)?, 0)
                    }
                    Err(error) => {
                        upload = Some(at);
                        return Err(error);
                    }
                },
            };
            upload = Some(at.clone());
            if from > best {
                (best, *failures) = (from, 0);
            }
            tell(PushProgress::Sending { blob: *blob, from, size });
            let mut at = at;
            if from < size {
                let call = Call {
                    method: Method::PATCH,
                    url: at,
                    headers: vec![
                        ("content-type", "application/octet-stream".into()),
                        ("content-range", format!("{from}-{}", size - 1)),
                    ],
                    payload: Payload::File(file, from, size - from),
                    expect: &[202, 204],
                };
                let response = self.call(endpoint, &object, &call)?;
                at = self
                    .upload_at(&call.url, response.headers())
                    .map_err(|why| why.about(&*object))?;
                upload = Some(at.clone());
            }
            self.finish(endpoint, &object, &at, blob, Payload::Bytes(&[]))
        })
    }

    /// How far an upload got, and where it goes on.
    fn status(
        &self,
        endpoint: &Endpoint,
        object: &str,
        upload: &Url,
        size: u64,
    ) -> Result<(Url, u64)> {
        let call = Call {
            method: Method::GET,
            url: upload.clone(),
            headers: Vec::new(),
            payload: Payload::None,
            expect: &[204],
        };
        let response = self.call(endpoint, object, &call)?;
        let next = self.upload_at(upload, response.headers()).map_err(|why| why.about(object))?;
        // `0-N`, the last byte that is there; registries write `0-0` for none and for one.
        let range = text(response.headers(), "range").unwrap_or_default();
        let last = range.trim_start_matches("bytes=").strip_prefix("0-").and_then(number);
        let from = match last {
            Some(0) => 0,
            Some(last) if last < size => last + 1,
            Some(_) | None => {
                return Err(Fault::protocol("an upload of unknown length").about(object));
            }
        };
        Ok((next, from))
    }

    fn finish(
        &self,
        endpoint: &Endpoint,
        object: &str,
        upload: &Url,
        blob: &Digest,
        payload: Payload<'_>,
    ) -> Result<()> {
        let text = blob.to_string();
        let call = Call {
            method: Method::PUT,
            url: upload.with_query(&[("digest", &text)]),
            headers: vec![("content-type", "application/octet-stream".into())],
            payload,
            expect: &[201, 204],
        };
        let response = self.call(endpoint, object, &call)?;
        check_claim(response.headers(), blob).map_err(|why| why.about(object))
    }

    fn put_manifest(
        &self,
        endpoint: &Endpoint,
        bytes: &[u8],
        media_type: &str,
        digest: &Digest,
    ) -> Result<()> {
        // With tag and digest the tag is what is to be written.
        let wanted = match (self.to.tag(), self.to.wanted()) {
            (Some(tag), _) => Wanted::Tag(tag.to_owned()),
            (None, wanted) => wanted,
        };
        let object = format!("{} manifest {wanted}", self.session.place());
        self.session.patiently(endpoint, |_| {
            let call = Call {
                method: Method::PUT,
                url: endpoint.url(&format!("manifests/{wanted}")),
                headers: vec![("content-type", media_type.to_owned())],
                payload: Payload::Bytes(bytes),
                expect: &[200, 201],
            };
            let response = self.call(endpoint, &object, &call)?;
            check_claim(response.headers(), digest).map_err(|why| why.about(&*object))
        })
    }
}

/// The registry may say what it understood.
fn check_claim(headers: &HeaderMap, digest: &Digest) -> std::result::Result<(), Fault> {
    let claimed = text(headers, "docker-content-digest").and_then(|c| c.parse::<Digest>().ok());
    match claimed.filter(|claimed| claimed != digest) {
        None => Ok(()),
        Some(claimed) => Err(Fault::Protocol(format!("the registry took {digest} for {claimed}"))),
    }
}

/// Reads a piece of a file, wherever others read it.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub file: &'a File,
    pub at: u64,
    pub left: u64,
}

impl Read for Piece<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let n = self.file.read_at(&mut buf[..want], self.at)?;
        (self.at, self.left) = (self.at + n as u64, self.left - n as u64);
        Ok(n)
    }
}
