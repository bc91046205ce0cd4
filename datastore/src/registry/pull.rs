//! An image in a registry, as an importer sees it.

use std::fs::File;
use std::sync::{Arc, Mutex};

use super::Registries;
use super::endpoint::Purpose;
use super::fault::RegistryFault as Fault;
use super::fetch::Fetcher;
use super::net::lock;
use super::reference::{RegistryReference, Wanted};
use super::session::{Document, Session};
use crate::blobs::{Blobs, Opened};
use crate::cancel::Cancel;
use crate::config::ImageConfig;
use crate::digest::{DiffId, Digest};
use crate::document::{self, Class, Descriptor, Manifest};
use crate::error::{Error, Limit, Refusal, Result};
use crate::import::{check_config, follow};
use crate::limits::Limits;
use crate::source::RegistrySource;
use crate::store::Store;
use crate::trust::{Signature, SignatureSource, attached_signatures, signature_tag};

/// One image being read.
#[derive(Debug)]
pub(crate) struct Registry {
    session: Arc<Session>,
    reference: RegistryReference,
    /// The document that the reference led to; it need not be fetched twice.
    top: Mutex<Option<Document>>,
    /// None where only documents are read.
    fetcher: Option<Mutex<Fetcher>>,
}

impl Registry {
    pub fn open(source: &RegistrySource, store: Option<&Store>) -> Result<Self> {
        let session = Arc::new(Session::new(&source.registries, &source.reference, Purpose::Pull)?);
        let fetcher = match store {
            Some(store) => {
                store.cancel.interrupts(&session);
                Some(Mutex::new(Fetcher::new(store, session.clone())?))
            }
            None => None,
        };
        let reference = source.reference.clone();
        Ok(Self { session, reference, top: Mutex::default(), fetcher })
    }

    /// The digest, where the reference has one.
    pub fn digest(&self) -> Option<Digest> {
        match self.reference.wanted() {
            Wanted::Digest(digest) => Some(digest),
            Wanted::Tag(_) => None,
        }
    }

    /// Asks what the reference means, and follows indexes down to a manifest.
    pub fn choose(&self, limits: &Limits) -> Result<Descriptor> {
        let top = self.session.manifest(&self.reference.wanted(), None, limits)?;
        let descriptor = Descriptor {
            media_type: top.media_type.clone(),
            digest: top.digest,
            size: top.bytes.len() as u64,
            platform: None,
            annotations: None,
        };
        let object = format!("{} manifest {}", self.session.place(), top.digest);
        let class = Class::of(&top.media_type).map_err(|why| Error::document(&*object, why))?;
        let bytes = top.bytes.clone();
        *lock(&self.top) = Some(top);
        match class {
            Class::Manifest => Ok(descriptor),
            Class::Index => follow(self, object, bytes, Some(descriptor.media_type), None, limits),
        }
    }

    fn fetcher(&self) -> Result<std::sync::MutexGuard<'_, Fetcher>> {
        let none = || Fault::Config("no store".into()).about(self.session.place());
        self.fetcher.as_ref().map(lock).ok_or_else(none)
    }
}

impl Blobs for Registry {
    fn described(&self, descriptor: &Descriptor, limits: &Limits) -> Result<Vec<u8>> {
        let top = lock(&self.top).take_if(|top| top.digest == descriptor.digest);
        let bytes = match top {
            Some(top) => top.bytes,
            None => self.session.described(descriptor, limits)?,
        };
        if Class::of(&descriptor.media_type) == Ok(Class::Manifest)
            && let Some(layer) = document::foreign_layer(&bytes)
        {
            let object = format!("{} manifest {}", self.session.place(), descriptor.digest);
            return Err(Fault::ForeignLayer(layer).about(object));
        }
        Ok(bytes)
    }

    fn announce(&self, layers: &[&Descriptor], limits: &Limits) -> Result<()> {
        // They are on the disk before they are unpacked and counted.
        let mut sum = 0u64;
        for layer in layers {
            sum = sum.saturating_add(layer.size);
        }
        if sum > limits.image_bytes {
            let why = Refusal::limit(Limit::ImageBytes, limits.image_bytes);
            return Err(Error::Refused { object: self.reference.to_string(), why });
        }
        let mut fetcher = self.fetcher()?;
        for layer in layers {
            fetcher.want(layer);
        }
        Ok(())
    }

    fn open_blob(&self, descriptor: &Descriptor) -> Result<Opened<'_>> {
        let part = self.fetcher()?.want(descriptor);
        Ok((Box::new(part.reader()), descriptor.size))
    }

    fn is_far(&self) -> bool {
        true
    }

    fn keeps(&self) -> bool {
        true
    }

    fn fetched(&self) -> Option<(u64, u64)> {
        self.fetcher().ok().map(|fetcher| fetcher.progress())
    }

    fn settle(&self, descriptor: &Descriptor, to: &File, name: &str) -> Result<()> {
        let mut fetcher = self.fetcher()?;
        let part = fetcher.want(descriptor);
        let object = || format!("blobs/sha256/{}", descriptor.digest.hex());
        part.settle(fetcher.folder(), to, name).map_err(|e| Error::io("write", object(), e))
    }

    fn published(&self, descriptor: &Descriptor) -> Result<()> {
        let mut fetcher = self.fetcher()?;
        let part = fetcher.want(descriptor);
        let object = || format!("partial/{}", descriptor.digest.hex());
        fetcher.folder().published(&part).map_err(|e| Error::io("remove", object(), e))
    }

    fn failed(&self, descriptor: &Descriptor, error: Error) -> Result<Option<Error>> {
        let mut fetcher = self.fetcher()?;
        let part = fetcher.want(descriptor);
        // If bytes did not come, that is the cause of whatever the importer saw.
        let error = part.error().unwrap_or(error);
        let wrong = match &error {
            Error::Refused { .. } => true,
            Error::Registry { why, .. } => *why == Fault::Changed,
            _ => false,
        };
        if !wrong {
            return Ok(Some(error));
        }
        let object = || format!("partial/{}", descriptor.digest.hex());
        fetcher.discard(&part).map_err(|e| Error::io("remove", object(), e))?;
        // What an earlier process left may have been cut by a power failure: once more from the start.
        Ok(if part.found() > 0 { None } else { Some(error) })
    }
}

impl Registry {
    /// The manifest, and the document the reference led to if that was an index.
    pub fn chain(&self, manifest: &Digest) -> Vec<Digest> {
        let top = lock(&self.top).as_ref().map(|top| top.digest);
        let mut chain = vec![*manifest];
        chain.extend(top.filter(|top| top != manifest));
        chain
    }
}

impl SignatureSource for Registry {
    fn signatures(&self, manifest: &Digest) -> Result<Vec<Signature>> {
        let limits = Limits::default();
        let wanted = Wanted::Tag(signature_tag(manifest));
        let attached = match self.session.manifest(&wanted, None, &limits) {
            Ok(attached) => attached,
            Err(Error::Registry { why: Fault::NotFound, .. }) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        attached_signatures(&attached.bytes, &mut |digest, size| {
            let media_type = "application/octet-stream".to_owned();
            let blob =
                Descriptor { media_type, digest: *digest, size, platform: None, annotations: None };
            self.session.described(&blob, &limits)
        })
    }
}

/// What a registry says of an image, without its layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The image's identity, of the manifest for this host.
    pub manifest_digest: Digest,
    /// Bytes of the manifest.
    pub manifest_size: u64,
    /// Of the config document.
    pub config_digest: Digest,
    /// What the image says about running it; hostile, but well-formed.
    pub config: ImageConfig,
    /// Digest, diff id and bytes of the layers' blobs, lowest first.
    pub layers: Vec<(Digest, DiffId, u64)>,
    /// Bytes of manifest, config and layers, as they would be fetched.
    pub size: u64,
}

impl Registries {
    /// Reads manifest and config of an image; nothing is stored, layers are not fetched. Fails with
    /// [`Error::Cancelled`], soon, when `cancel` says so.
    pub fn inspect(
        &self,
        reference: &RegistryReference,
        limits: &Limits,
        cancel: &Cancel,
    ) -> Result<Remote> {
        let source = RegistrySource { reference: reference.clone(), registries: self.clone() };
        let registry = Registry::open(&source, None)?;
        cancel.interrupts(&registry.session);
        cancel.told(registry.inspect(limits))
    }
}

impl Registry {
    fn inspect(&self, limits: &Limits) -> Result<Remote> {
        let top = self.choose(limits)?;
        let bytes = self.described(&top, limits)?;
        let manifest = Manifest::parse(&bytes, &top.media_type, limits)
            .map_err(|why| Error::document(format!("manifest {}", top.digest), why))?;
        let config = self.described(&manifest.config, limits)?;
        let (parsed, diff_ids) =
            check_config(&config, &manifest.config.digest, manifest.layers.len(), limits)?;
        let layers: Vec<_> =
            manifest.layers.iter().zip(diff_ids).map(|(l, id)| (l.digest, id, l.size)).collect();
        let documents = (bytes.len() + config.len()) as u64;
        Ok(Remote {
            manifest_digest: top.digest,
            manifest_size: bytes.len() as u64,
            config_digest: manifest.config.digest,
            config: parsed,
            size: layers.iter().fold(documents, |sum, l| sum.saturating_add(l.2)),
            layers,
        })
    }
}
