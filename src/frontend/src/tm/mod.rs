//! The transfer manager: disks between image datastores, hosts and the front-end.
//!
//! Every action may be called again after a break anywhere and then ends as if it had been called once: what is made has
//! its name when it is whole; what is moved is removed when it has arrived.

mod clone;
mod context;
mod delete;
mod known;
mod link;
mod monitor;
mod mv;
mod shared;
mod writeback;

use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::ImageSource;
use ocivisor_opennebula::tm::place::{DiskPlace, Machine, On, VmPlace};
use ocivisor_opennebula::tm::{Placed, TmCall, TmOrder};

use crate::config::Transfer;
use crate::files::{Dir, sparse};
use crate::host::usage;
use crate::ssh::Link;
use crate::wire::Order;

/// Smallest root disk: less has hardly room beside its journal.
const MIN_ROOT: u64 = 64 << 20;

/// What an action is done with.
pub struct Front<'a> {
    /// What the admin said.
    pub config: &'a Transfer,
    /// The driver's name, which is that of the scripts' directory.
    pub driver: &'a str,
    /// Takes a line for the VM's log.
    pub note: &'a mut dyn FnMut(&str),
    /// Standard input of the call.
    pub stdin: &'a [u8],
}

impl std::fmt::Debug for Front<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").field("config", self.config).field("driver", &self.driver).finish()
    }
}

/// Carries a call out; gives its standard output.
///
/// # Errors
/// Why it could not be done.
pub fn carry_out(call: &TmCall, front: &mut Front<'_>) -> Result<String> {
    match &call.order {
        TmOrder::Clone(placed) => clone::clone(call, placed, front)?,
        TmOrder::Link(placed) => link::link(call, placed, front)?,
        TmOrder::Move { from, to, datastore } => mv::mv(call, from, to, *datastore, front)?,
        TmOrder::WriteBack(placed) => writeback::back(call, placed, front)?,
        TmOrder::SaveAs { placed, snapshot } => writeback::save_as(call, placed, *snapshot, front)?,
        TmOrder::MakeImage { size, format, disk } => {
            let fs = match known::disk(call, &disk.what, front) {
                Ok(known) => known.fs,
                Err(error) => {
                    (front.note)(&format!("the disk gets no file system: {}", error.message));
                    None
                }
            };
            let mut host = front.ready(call, disk)?;
            host.done(&Order::MakeImage {
                disk: text(&disk.what.path()),
                size: *size,
                format: format.to_ascii_lowercase(),
                fs,
            })?;
        }
        TmOrder::MakeSwap { size, disk } => {
            let mut host = front.ready(call, disk)?;
            host.done(&Order::MakeSwap { disk: text(&disk.what.path()), size: *size })?;
        }
        TmOrder::Delete(what) => delete::delete(what, front)?,
        TmOrder::Context { files, disk } => context::make(call, files, disk, front)?,
        TmOrder::Resize { disk, size } => clone::resize(call, disk, *size, front)?,
        TmOrder::Monitor => return monitor::shared(front.stdin),
        TmOrder::MonitorHost(place) => return usage::lines(place),
        TmOrder::Nothing => {}
    }
    Ok(String::new())
}

impl Front<'_> {
    fn reach(&self, machine: &Machine) -> Result<Link> {
        Link::open(self.config, machine)
    }

    /// A host with the VM's directory.
    fn ready(&self, call: &TmCall, disk: &On<DiskPlace>) -> Result<Link> {
        let mut host = self.reach(&disk.machine)?;
        self.make_dir(call, &mut host, &disk.what.dir)?;
        Ok(host)
    }

    fn make_dir(&self, call: &TmCall, host: &mut Link, dir: &VmPlace) -> Result<()> {
        // The datastore is its own driver's, which is another where the script has a name behind the dot.
        let tm = call.system.as_deref().unwrap_or(self.driver).to_owned();
        host.done(&Order::MakeDir { dir: text(&dir.path()), tm })
    }
}

/// Paths of places are text: they were read from it.
fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Where the image's datastore is: beside the system's.
fn image_datastore(placed: &Placed) -> std::path::PathBuf {
    placed.disk.what.dir.datastore.beside(placed.datastore).path()
}

/// The directory of a data disk and its name in it: a file right in its datastore.
fn data_disk(placed: &Placed) -> Result<(Dir, String)> {
    let base = image_datastore(placed);
    let ImageSource::File(path) = &placed.source else {
        return Err(Error::new(ErrorKind::Invalid, "the SOURCE is no data disk"));
    };
    let name = path.strip_prefix(&base).ok().and_then(Path::to_str);
    let name =
        name.filter(|name| !name.is_empty() && !name.contains('/') && !name.starts_with('.'));
    let name = name.ok_or_else(|| {
        let what = format!("SOURCE {} is no file of datastore {}", path.display(), base.display());
        Error::new(ErrorKind::Invalid, what)
    })?;
    Ok((Dir::open(&base)?, name.to_owned()))
}

/// Sends a file of the front-end as a disk of a VM.
fn put(
    host: &mut Link,
    disk: &DiskPlace,
    file: &std::fs::File,
    shown: &Path,
    manifest: Option<&[u8]>,
) -> Result<u64> {
    let order = Order::PutDisk {
        disk: text(&disk.path()),
        manifest: manifest.map(|bytes| bytes.len() as u64),
    };
    host.tell(&order)?;
    let sent = host.write(|to| {
        use std::io::Write;
        to.write_all(manifest.unwrap_or_default()).map_err(crate::files::broken)?;
        sparse::send(file, shown, to)
    })?;
    host.is_done()?;
    Ok(sent)
}
