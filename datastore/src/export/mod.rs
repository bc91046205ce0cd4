//! A root file system back on a disk: raw ext4 or qcow2.
//!
//! ```text
//! layers, upper ─► merged tar ─► unpacked in staging (confined, as any layer) ─► mke2fs -d ─► [qemu-img] ─► link
//! ```
//!
//! What the tar cannot say, the disk does not have; so an image, a VM and a disk hold the same files. No file of a
//! tenant is opened by name: mke2fs sees a tree that our own unpacker made. The tools are confined as the unpacker is:
//! the tree's content is a tenant's still, and a disk that one of them wrote is read by the next.
//!
//! The disk is one ext4 file system without a partition table. It is data for another hypervisor, not a promise that
//! it boots: there is no boot loader, and no kernel unless the image has one.
//!
//! The file appears under its name when it is whole ([`Target`]).
//!
//! Times are whole seconds between 1901 and 2038: more is not copied by mke2fs 1.47.

mod make;
mod size;
mod tool;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

use crate::disk;
use crate::diskimage::DiskFormat;
use crate::error::{Error, Result};
use crate::ingest::{self, Budget, Promise};
use crate::limits::Limits;
use crate::name::Reference;
use crate::out::{Exported, Merging, Upper};
use crate::staging::Staged;
use crate::store::Store;
use crate::tarball::Trailer;
use crate::target::Target;
use make::Make;
use tool::Tools;

/// What a disk is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskExport {
    /// How its bytes lie in the file.
    pub format: DiskFormat,
    /// Bytes of the disk, rounded down to 4096; what the files need and a fifth more, if none is said.
    pub size: Option<u64>,
    /// Label of the file system, at most 16 bytes; `root` if none is said.
    pub label: Option<String>,
}

/// What [`Store::export_disk`] wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedDisk {
    /// Bytes that the disk shows to a machine.
    pub size: u64,
    /// Bytes that its file takes on the host.
    pub allocated: u64,
    /// What was put on it, and what was left out.
    pub content: Exported,
}

/// Far above what the tools take for a disk of 64 GiB.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);

impl Store {
    /// Writes what a VM of the image sees as its root file system, `upper` on top if given, to a new disk image: the
    /// three steps of [`Store::begin_disk`] in a row.
    pub fn export_disk(
        &self,
        image: &Reference,
        upper: Option<Upper<'_>>,
        to: &Path,
        options: &DiskExport,
        limits: &Limits,
    ) -> Result<ExportedDisk> {
        self.begin_disk(image, to, options, limits)?.read(upper)?.finish()
    }

    /// Begins to make a disk image: does all that may have to wait for others before anything of a VM is touched.
    ///
    /// The file is root's, mode 0600: it holds the secrets and the set-user-ID programs of the guest.
    pub fn begin_disk(
        &self,
        image: &Reference,
        to: &Path,
        options: &DiskExport,
        limits: &Limits,
    ) -> Result<BegunDisk> {
        let label = options.label.as_deref().unwrap_or("root");
        if label.len() > 16 || !label.bytes().all(|b| b.is_ascii_graphic()) {
            let why = "the label has more than 16 bytes or characters that are not printable ASCII";
            return Err(refuse(to, why));
        }
        let target = Target::create(to)?;
        let merging = Merging::begin(self, image, limits)?;
        let staged = Staged::create(&self.staging, "export")
            .map_err(|e| self.io("make a directory in", "staging", e))?;
        Ok(BegunDisk { merging, staged, target, to: to.to_owned(), options: options.clone() })
    }
}

/// A disk in the making that needs nothing any more but the VM's files. It keeps prunes away.
#[derive(Debug)]
pub struct BegunDisk {
    merging: Merging,
    staged: Staged,
    target: Target,
    to: PathBuf,
    options: DiskExport,
}

impl BegunDisk {
    /// Copies the files of image and VM into staging; only for this long has the VM to stand still.
    pub fn read(self, upper: Option<Upper<'_>>) -> Result<ReadDisk> {
        let Self { merging, staged, target, to, options } = self;
        let (tree, content) = stage(&merging, upper, &staged)?;
        Ok(ReadDisk { store: merging.store, staged, target, to, options, tree, content })
    }
}

/// The merged files of image and VM, unpacked in staging. Neither of them is needed any more.
#[derive(Debug)]
pub struct ReadDisk {
    store: Store,
    staged: Staged,
    target: Target,
    to: PathBuf,
    options: DiskExport,
    tree: File,
    content: Exported,
}

impl ReadDisk {
    /// Makes the disk and gives it its name.
    pub fn finish(self) -> Result<ExportedDisk> {
        let Self { store, staged, target, to, options, tree, content } = self;
        let needs = size::prepare(&tree, content.entries)
            .map_err(|e| Error::io("export", "merged files", e))?;
        let cancel = &store.cancel;
        let tools = Tools { unpacker: &store.unpacker, cancel, patience: PATIENCE };
        let make = Make { tools, staged: &staged, to: &to };
        let out = make.lend(&target)?;
        let label = options.label.as_deref().unwrap_or("root");
        let size = match options.format {
            DiskFormat::Raw => make.format(&tree, needs, out.file(), label, options.size),
            DiskFormat::Qcow2 => make.staged("raw").and_then(|raw| {
                let size = make.format(&tree, needs, &raw, label, options.size)?;
                make.convert(&raw, out.file(), size)?;
                Ok(size)
            }),
        };
        let size = cancel.told(size)?;
        cancel.told(out.give_back(cancel, &to))?;
        let allocated = target.publish()?;
        Ok(ExportedDisk { size, allocated, content })
    }
}

/// Unpacks the merged files of image and VM into a directory of ours.
fn stage(merging: &Merging, upper: Option<Upper<'_>>, staged: &Staged) -> Result<(File, Exported)> {
    let store = &merging.store;
    let failed = |e| store.io("make files in", "staging", e);
    rustix::fs::mkdirat(&staged.dir, "fs", Mode::RWXU).map_err(|e| failed(e.into()))?;
    let tree = disk::open_dir(&staged.dir, "fs").map_err(failed)?;
    let (mut reader, writer) = io::pipe().map_err(failed)?;
    let (read, wrote) = std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let mut writer = BufWriter::with_capacity(128 * 1024, writer);
            let content = merging.write(upper, &mut writer, &mut |_| {})?;
            writer.flush().map_err(|e| Error::io("write", "tar", e))?;
            Ok(content)
        });
        let budget = Budget::new(&merging.limits);
        let mut budget = budget.unpacked_by(&store.unpacker).until(&store.cancel);
        let into = (&tree, Trailer::Required);
        let promise = Promise::default();
        let read = ingest::ingest(&mut reader, None, &promise, into, &mut budget, &mut |_| {});
        // A writer that still has something to say must not wait for us.
        drop(reader);
        let wrote = writing.join();
        (read, wrote)
    });
    let wrote: Result<Exported> =
        wrote.unwrap_or_else(|_| Err(Error::io("write", "tar", io::Error::other("thread died"))));
    // Of two errors the reader's came first unless it was only cut off by the writer's.
    match (read, wrote) {
        (Ok(_), Ok(content)) => Ok((tree, content)),
        (Ok(_), Err(error)) => Err(error),
        (Err((fault, at)), wrote) => match wrote {
            Err(error) if !is_broken_pipe(&error) => Err(error),
            Ok(_) | Err(_) => {
                Err(fault.about(at.map_or("merged files".into(), |at| format!("file \"{at}\""))))
            }
        },
    }
}

fn is_broken_pipe(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
}

fn refuse(to: &Path, why: impl Into<String>) -> Error {
    Error::Export { to: to.display().to_string(), why: why.into() }
}
