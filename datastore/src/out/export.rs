//! The root file system of an image, or of a VM, as one plain tar.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::ids::{IdMap, Upper};
use super::layer::{self, Omitted};
use super::merge::{Part, Tree, View};
use crate::disk;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::name::Reference;
use crate::sparse::Sparse;
use crate::store::{Image, Store};
use crate::target::Target;

/// What an export wrote.
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
        Merging::begin(self, image, limits)?.write(upper, out, progress)
    }

    /// Begins to write the same tar into a new file, mode 0600, that has its name when it is whole: does all that may
    /// have to wait for others before anything of a VM is touched.
    pub fn begin_tar(&self, image: &Reference, to: &Path, limits: &Limits) -> Result<BegunTar> {
        let target = Target::create(to)?;
        Ok(BegunTar { merging: Merging::begin(self, image, limits)?, target })
    }
}

/// A tar in the making that needs nothing any more but the VM's files. It keeps prunes away.
#[derive(Debug)]
pub struct BegunTar {
    merging: Merging,
    target: Target,
}

impl BegunTar {
    /// Reads the files of image and VM; only for this long has it to stand still. `progress` is told the bytes
    /// written so far.
    pub fn read(self, upper: Option<Upper<'_>>, progress: &mut dyn FnMut(u64)) -> Result<ReadTar> {
        let Self { merging, target } = self;
        let mut out = BufWriter::with_capacity(1 << 20, Sparse::new(target.file()));
        let exported = merging.write(upper, &mut out, progress)?;
        let end = out.into_inner().map_err(io::IntoInnerError::into_error).and_then(Sparse::finish);
        end.map_err(|e| Error::io("write", "tar", e))?;
        Ok(ReadTar { exported, target })
    }
}

/// A tar that is whole and has no name yet. Neither VM nor image are needed any more.
#[derive(Debug)]
pub struct ReadTar {
    exported: Exported,
    target: Target,
}

impl ReadTar {
    /// Brings the file to the disk and gives it its name.
    pub fn finish(self) -> Result<Exported> {
        self.target.publish()?;
        Ok(self.exported)
    }
}

/// An image whose files are to be merged. Its lock keeps prunes away.
#[derive(Debug)]
pub(crate) struct Merging {
    pub store: Store,
    _shared: File,
    image: Image,
    pub limits: Limits,
}

impl Merging {
    pub fn begin(store: &Store, image: &Reference, limits: &Limits) -> Result<Self> {
        store.check_unpacked()?;
        let shared = store.lock(FlockOperation::LockShared)?;
        let (image, store) = (store.resolve(image)?, store.again()?);
        Ok(Self { store, _shared: shared, image, limits: limits.clone() })
    }

    pub fn write(
        &self,
        upper: Option<Upper<'_>>,
        out: &mut dyn Write,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Exported> {
        let tree = self.tree(upper)?;
        let out = self.store.cancel.watch(out);
        let (_, written) = layer::write(&tree, out, &self.limits, progress)
            .map_err(|(fault, at)| fault.about(format!("file \"{at}\"")))?;
        Ok(Exported { entries: written.entries, bytes: written.bytes, omitted: written.omitted })
    }

    /// The merged tree of the image and, on top, a VM's upper directory.
    fn tree(&self, upper: Option<Upper<'_>>) -> Result<Tree<'_>> {
        let mut parts = Vec::new();
        if let Some(Upper { dir, ids }) = upper {
            let dir = dir.try_clone().map_err(|e| Error::io("open", "upper directory", e))?;
            parts.push(Part { dir: OwnedFd::from(dir), ids });
        }
        for layer in self.image.overlay_order() {
            let hex = layer.hex();
            let open = || -> io::Result<File> {
                disk::open_dir(&disk::open_dir(&self.store.layers, &hex)?, "fs")
            };
            let dir = open()
                .map_err(|e| self.store.io("open directory", &format!("layers/{hex}/fs"), e))?;
            parts.push(Part { dir: OwnedFd::from(dir), ids: IdMap::IDENTITY });
        }
        Ok(Tree { parts, view: View::Merged, limits: &self.limits })
    }
}
