//! Where an image's documents and layers are read from, by digest: a directory or archive, or a registry.

use std::fs::File;
use std::io::Read;

use crate::document::Descriptor;
use crate::error::{Error, Result};
use crate::limits::Limits;

/// Bytes, and how many there are said to be.
pub(crate) type Opened<'a> = (Box<dyn Read + 'a>, u64);

/// An image's blobs outside the store.
pub(crate) trait Blobs {
    /// Reads the document a descriptor points at, and verifies it.
    fn described(&self, descriptor: &Descriptor, limits: &Limits) -> Result<Vec<u8>>;

    /// Opens a layer's blob; its digest is the reader's to check.
    fn open_blob(&self, descriptor: &Descriptor) -> Result<Opened<'_>>;

    /// Hears that a layer's blob is not needed, where the others come behind it.
    fn skip(&self, _descriptor: &Descriptor) -> Result<()> {
        Ok(())
    }

    /// Says which layers will be opened, in their order, so that fetching may begin.
    fn announce(&self, _layers: &[&Descriptor], _limits: &Limits) -> Result<()> {
        Ok(())
    }

    /// Whether reading waits for the network.
    fn is_far(&self) -> bool {
        false
    }

    /// Whether opened blobs are files in the store's file system that [`Blobs::settle`] hands over; the reader then
    /// makes no copy.
    fn keeps(&self) -> bool {
        false
    }

    /// Bytes of the announced blobs that are here, and that there will be; for people.
    fn fetched(&self) -> Option<(u64, u64)> {
        None
    }

    /// Puts an opened blob, read to its end and found right, under a name, in place of what has it; synced.
    fn settle(&self, _descriptor: &Descriptor, _to: &File, _name: &str) -> Result<()> {
        Ok(())
    }

    /// Hears that a blob that was settled has its place in the store, durably.
    fn published(&self, _descriptor: &Descriptor) -> Result<()> {
        Ok(())
    }

    /// Hears that a blob could not be used. Returns what is to be said of it, or none if it is to be opened again.
    fn failed(&self, _descriptor: &Descriptor, error: Error) -> Result<Option<Error>> {
        Ok(Some(error))
    }
}
