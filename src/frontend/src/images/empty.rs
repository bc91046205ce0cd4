//! `mkfs`: disks without content, and places for content that comes later.

use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::ds::ImageType;

use super::Driver;
use crate::depot::{Container, Content, Depot, ImageLock, ImageRecord, Saved};
use crate::fault::{clip, failed};
use crate::tool;

/// How long the tools may take: they write little, whatever the size.
const PATIENCE: Duration = Duration::from_secs(600);

/// Largest disk, in MiB: 64 TiB.
const MAX_MB: u64 = 64 << 20;

/// A file system.
struct Fs {
    name: &'static str,
    /// MiB that its tool wants at least.
    least: u64,
    /// Who brings the tool.
    package: &'static str,
    /// How that is called.
    argv: &'static [&'static str],
}

const fn fs(
    name: &'static str,
    least: u64,
    package: &'static str,
    argv: &'static [&'static str],
) -> Fs {
    Fs { name, least, package, argv }
}

const ALL: [Fs; 7] = [
    fs("ext2", 1, "e2fsprogs", &["mkfs.ext2", "-q", "-F"]),
    fs("ext3", 1, "e2fsprogs", &["mkfs.ext3", "-q", "-F"]),
    fs("ext4", 1, "e2fsprogs", &["mkfs.ext4", "-q", "-F"]),
    // Since xfsprogs 5.19.
    fs("xfs", 300, "xfsprogs", &["mkfs.xfs", "-q", "-f"]),
    fs("btrfs", 110, "btrfs-progs", &["mkfs.btrfs", "-q", "-f"]),
    fs("vfat", 1, "dosfstools", &["mkfs.vfat"]),
    fs("swap", 1, "util-linux", &["mkswap"]),
];

impl Driver<'_> {
    /// `SOURCE`.
    pub(super) fn mkfs(&mut self) -> Result<String> {
        let depot = self.open()?;
        let held = depot.lock(self.call.id)?;
        if let Some(saved) = self.call.image.saved {
            let image = saved.image;
            let container = match image.map(|image| depot.record(image)).transpose()?.flatten() {
                Some(record) => matches!(record.content, Content::Container(_)),
                // Of another datastore, or of a disk without an image: what is to be booted is a container.
                None => self.call.image.kind == ImageType::Os,
            };
            if container {
                let saved = Some(Saved { vm: saved.vm, disk: saved.disk, image });
                let content = Content::Container(Container { saved, ..Container::default() });
                depot.write(&held, &ImageRecord::new(held.image(), content))?;
                return Ok(format!("ocivisor:{}", held.image()));
            }
            return Ok(depot.data_path(held.image()).display().to_string());
        }
        let wanted =
            [self.call.image.format.as_str(), self.call.datastore.driver.as_deref().unwrap_or("")];
        let format = match wanted.into_iter().find(|format| !format.is_empty()).unwrap_or("raw") {
            "raw" => "raw",
            "qcow2" => "qcow2",
            other => {
                let text = format!("FORMAT {:?} is not known", clip(other));
                return Err(Error::new(ErrorKind::Invalid, text).hint("use raw or qcow2"));
            }
        };
        self.empty(&depot, &held, format)?;
        self.keep_data(&held, format, None)?;
        Ok(depot.data_path(held.image()).display().to_string())
    }

    fn empty(&self, depot: &Depot, held: &ImageLock, format: &str) -> Result<()> {
        let size =
            self.call.image.size_mb.filter(|mb| (1..=MAX_MB).contains(mb)).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, format!("SIZE must be 1 to {MAX_MB} MiB"))
            })? << 20;
        let fs = match self.call.image.fs.as_str() {
            "" => None,
            fs => Some(ALL.iter().find(|known| known.name == fs).ok_or_else(|| {
                let known = ALL.each_ref().map(|known| known.name).join(", ");
                Error::new(ErrorKind::Invalid, format!("FS {:?} is not known", clip(fs)))
                    .hint(format!("use one of {known}"))
            })?),
        };
        if let Some(Fs { name, least, .. }) = fs
            && size >> 20 < *least
        {
            let text = format!("{name} needs a disk of at least {least} MiB");
            return Err(Error::new(ErrorKind::Invalid, text).hint("give a larger SIZE"));
        }
        let draft = depot.new_data(held)?;
        let path = depot.draft_path(&draft);
        let raw = if format == "raw" { None } else { Some(depot.scratch(held)?) };
        let (plain, plain_path) = match &raw {
            Some(scratch) => (scratch.file(), depot.draft_path(scratch)),
            None => (draft.file(), path.clone()),
        };
        plain.set_len(size).map_err(|e| failed("size", &path, &e))?;
        if let Some(Fs { package, argv: [program, options @ ..], .. }) = fs {
            let program =
                tool::find(program).map_err(|e| e.hint(format!("install {package} there")))?;
            let mut argv = vec![program.into_os_string()];
            argv.extend(options.iter().map(Into::into));
            argv.push(plain_path.clone().into_os_string());
            tool::run(&argv, PATIENCE)?;
        }
        if raw.is_some() {
            let qemu =
                tool::find("qemu-img").map_err(|e| e.hint("install qemu-utils, or use raw"))?;
            let mut argv = vec![qemu.into_os_string()];
            argv.extend(["convert", "-q", "-f", "raw", "-O", "qcow2"].map(Into::into));
            argv.extend([plain_path.into_os_string(), path.clone().into_os_string()]);
            tool::run(&argv, PATIENCE)?;
        }
        draft.publish().map_err(|e| failed("write", &depot.data_path(held.image()), &e))
    }
}
