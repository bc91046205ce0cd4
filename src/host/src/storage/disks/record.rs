//! `disks.json` in a VM's run directory: what is attached, or was about to be.

use std::fs;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ports::{BlockDevice, GivenDisk};
use ocivisor_core::spec::{DataDisk, DiskFormat, View};
use ocivisor_core::state::ProcessRef;
use serde::{Deserialize, Serialize};

use super::super::loopdev::{self, FileId};
use super::super::traffic::{DiskMeter, DiskTraffic};
use super::claim::resolved;
use super::hold;
use crate::fs::{io_error, read_bounded, replace};
use crate::process;

/// All of a VM.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Attachments {
    pub(super) id_base: u32,
    pub(super) disks: Vec<Attached>,
}

/// One disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Attached {
    pub(super) number: u32,
    pub(super) path: PathBuf,
    pub(super) file: FileId,
    pub(super) read_only: bool,
    /// Who serves it; a raw disk has nobody.
    #[serde(default)]
    pub(super) server: Option<Server>,
    /// Ours; a block device has none.
    pub(super) loop_number: Option<u32>,
    /// Of the loop device that holds it, if one does or is about to.
    pub(super) holder: Option<u32>,
    /// Major and minor number of what the guest uses.
    pub(super) device: (u32, u32),
    pub(super) shown: Shown,
    /// What was asked for: mount point, device.
    pub(super) wish: (Option<PathBuf>, Option<String>),
    pub(super) note: Option<String>,
    /// What its device had counted before.
    #[serde(default)]
    pub(super) counted: DiskTraffic,
}

/// Who serves a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Server {
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
    /// Of the loop device that is bound to what it serves, see [`loopdev::sequence`].
    pub(super) sequence: u64,
}

impl Server {
    /// Whether this loop device has what it serves.
    fn is_behind(self, number: u32) -> bool {
        loopdev::sequence(number).is_ok_and(|found| found == Some(self.sequence))
    }

    pub(super) fn process(self) -> ProcessRef {
        ProcessRef { pid: self.pid, start_ticks: self.start_ticks }
    }
}

/// How the guest has a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Shown {
    /// Mounted there.
    Mount(PathBuf),
    /// As this device of its `/dev`.
    Device(String),
}

impl Attachments {
    /// `None` if there is none or it cannot be read.
    pub(super) fn load(path: &Path) -> Option<Self> {
        let bytes = read_bounded(path, 1 << 20).ok()??;
        serde_json::from_slice(&bytes).ok()
    }

    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::new(ErrorKind::Host, format!("encode attachments: {e}")))?;
        replace(path, &bytes)
    }
}

impl Attached {
    /// Whether it is what is wished for, and its path still leads to it.
    pub(super) fn is_of(&self, wish: &DataDisk) -> bool {
        self.number == wish.number
            && self.path == wish.path
            && self.read_only == wish.read_only
            && self.server.is_some() == (wish.format == DiskFormat::Qcow2)
            && self.wish == asked(&wish.view)
            && fs::metadata(&self.path).is_ok_and(|meta| FileId::of(&meta) == self.file)
    }

    /// Whether its loop device has it; a block device has nothing of that kind.
    pub(super) fn is_bound(&self) -> bool {
        let Some(number) = self.loop_number else { return true };
        match self.server {
            Some(server) => server.is_behind(number),
            None => loopdev::backing(number)
                .is_ok_and(|backing| backing == loopdev::Backing::File(self.file)),
        }
    }

    /// Whether it was served by a process that is gone.
    pub(super) fn is_lost(&self) -> bool {
        self.server.is_some_and(|server| !process::is_alive(server.process()))
    }

    /// Whether a loop device has it, is just letting go of it, or cannot tell.
    pub(super) fn may_be_bound(&self) -> bool {
        let may = |number| match self.server {
            Some(server) => {
                loopdev::sequence(number).map_or(true, |found| found == Some(server.sequence))
            }
            None => loopdev::may_have(number, self.file),
        };
        self.loop_number.is_some_and(may)
    }

    /// Whether a loop device holds it that is to, or may.
    pub(super) fn is_held(&self) -> std::io::Result<bool> {
        self.holder.map_or(Ok(false), |number| hold::holds(number, self.block_device()))
    }

    /// Whether this loop device has it or holds it, or may.
    pub(super) fn uses(&self, number: u32) -> bool {
        (self.loop_number == Some(number) && self.may_be_bound())
            || (self.holder == Some(number) && self.is_held().unwrap_or(true))
    }

    /// Whether anything of it is attached.
    pub(super) fn is_attached(&self) -> bool {
        // Whatever cannot be told may be.
        self.may_be_bound() || self.is_held().unwrap_or(true)
    }

    /// Writes back what a guest wrote to its device, and unbinds it, whatever the guest did to it, when nobody has it
    /// open any more.
    pub(super) fn let_go(&self) -> Result<()> {
        let Some(number) = self.loop_number.filter(|_| self.is_bound()) else { return Ok(()) };
        let path = self.node();
        let flushed = fs::File::open(&path).and_then(|file| file.sync_all());
        let cleared = loopdev::clear(number);
        flushed.and(cleared).map_err(|e| io_error("write back", &path, &e))
    }

    pub(super) fn meter(&self) -> DiskMeter {
        DiskMeter { device: self.device, before: self.counted }
    }

    pub(super) fn block_device(&self) -> BlockDevice {
        BlockDevice { major: self.device.0, minor: self.device.1 }
    }

    /// Sees that what a guest wrote to a block device of the host is on it.
    pub(super) fn write_back(&self) -> Result<()> {
        if self.loop_number.is_some() || self.read_only {
            return Ok(());
        }
        let path = resolved(&self.path);
        match fs::File::open(&path).and_then(|file| file.sync_all()) {
            // Not ours to miss any more.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done.map_err(|e| io_error("write back", &path, &e)),
        }
    }

    /// The path of its device.
    pub(super) fn node(&self) -> PathBuf {
        match self.loop_number {
            Some(number) => format!("/dev/loop{number}").into(),
            None => resolved(&self.path),
        }
    }
}

/// What a wish asks for, as it is kept.
pub(super) fn asked(view: &View) -> (Option<PathBuf>, Option<String>) {
    (view.mount().map(Path::to_owned), view.device().map(ToString::to_string))
}

impl From<Attached> for GivenDisk {
    fn from(disk: Attached) -> Self {
        Self { number: disk.number, device: disk.block_device(), note: disk.note }
    }
}
