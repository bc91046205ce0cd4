//! The root file system of an image, or of a VM, as one plain tar.

use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::ids::{IdMap, Upper};
use super::layer::{self, Omitted};
use super::merge::{Part, Tree, View};
use crate::disk;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::name::Reference;
use crate::store::{Image, Store};

/// What [`Store::export_tar`] wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of the tar.
    pub bytes: u64,
    /// What was there and is not in the tar.
    pub omitted: Omitted,
}

impl Store {
    /// Writes what a VM of the image sees as its root file system: all layers merged, and `upper` on top if given.
    ///
    /// Owners are the guest's. Nothing is mounted. The same files give the same tar. On an error `out` holds
    /// part of a tar without its end.
    pub fn export_tar(
        &self,
        image: &Reference,
        upper: Option<Upper<'_>>,
        out: &mut dyn Write,
        limits: &Limits,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Exported> {
        // Against a prune.
        let _shared = self.lock(FlockOperation::LockShared)?;
        let image = self.resolve(image)?;
        let tree = self.tree(&image, upper, limits)?;
        let (_, written) = layer::write(&tree, self.cancel.watch(out), limits, progress)
            .map_err(|(fault, at)| fault.about(format!("file \"{at}\"")))?;
        Ok(Exported { entries: written.entries, bytes: written.bytes, omitted: written.omitted })
    }

    /// The merged tree of an image and, on top, a VM's upper directory. The caller has the store locked.
    pub(crate) fn tree<'a>(
        &self,
        image: &Image,
        upper: Option<Upper<'_>>,
        limits: &'a Limits,
    ) -> Result<Tree<'a>> {
        let mut parts = Vec::new();
        if let Some(Upper { dir, ids }) = upper {
            let dir = dir.try_clone().map_err(|e| Error::io("open", "upper directory", e))?;
            parts.push(Part { dir: OwnedFd::from(dir), ids });
        }
        for layer in image.overlay_order() {
            let hex = layer.hex();
            let dir = disk::open_dir(&self.layers, &hex)
                .and_then(|dir| disk::open_dir(&dir, "fs"))
                .map_err(|e| self.io("open directory", &format!("layers/{hex}/fs"), e))?;
            parts.push(Part { dir: OwnedFd::from(dir), ids: IdMap::IDENTITY });
        }
        Ok(Tree { parts, view: View::Merged, limits })
    }
}
