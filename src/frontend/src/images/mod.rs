//! The datastore driver: what each action does.
//!
//! One process per call. A call that fails leaves what a later one of the same image clears: half a file goes with its
//! process or the next opening of the depot, an image without a record with `rm` or by being brought in again.

mod bring;
mod build;
mod copies;
pub(crate) mod data;
mod dirs;
mod empty;
mod enclosed;
mod export;
mod size;
mod tell;
mod tree;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{PruneOptions, Registries};
use ocivisor_opennebula::ImageSource;
use ocivisor_opennebula::ds::{DsAction, DsCall, ImageType};

use crate::config::Config;
use crate::depot::Depot;
use crate::fault::{failed, from_store};
use data::Room;

pub use enclosed::builder;

/// Downloads that nobody went on with for so long are of no use to anybody.
const PARTIAL_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Archives that no marketplace's driver removed for so long were left by one that was killed.
const EXPORT_AGE: Duration = Duration::from_secs(24 * 3600);

/// Carries a call out. Returns what standard output gets, without the newline at its end; `log` hears what is worth a line.
///
/// # Errors
/// For the sentence to oned. The same call may be made again.
pub fn carry_out(call: &DsCall, config: &Config, log: &mut dyn FnMut(&str)) -> Result<String> {
    let mut driver = Driver { call, config, log, depot: None };
    match call.action {
        DsAction::Cp => driver.cp(),
        DsAction::Clone => driver.clone(),
        DsAction::Rm => driver.rm(),
        DsAction::Stat => driver.stat(),
        DsAction::Mkfs => driver.mkfs(),
        DsAction::Monitor => driver.monitor(),
        DsAction::Export => driver.export(),
        DsAction::SnapDelete | DsAction::SnapRevert | DsAction::SnapFlatten => {
            let text = "snapshots of images are not supported by this version";
            Err(Error::new(ErrorKind::Unsupported, text))
        }
        DsAction::Backup
        | DsAction::BackupCancel
        | DsAction::Restore
        | DsAction::IncrementFlatten
        | DsAction::Ls => {
            let text = "ocivisor's datastores hold images, no backups";
            Err(Error::new(ErrorKind::Unsupported, text))
        }
    }
}

/// One call under way.
struct Driver<'a> {
    call: &'a DsCall,
    config: &'a Config,
    log: &'a mut dyn FnMut(&str),
    depot: Option<std::rc::Rc<Depot>>,
}

impl Driver<'_> {
    fn log(&mut self, text: &str) {
        (self.log)(text);
    }

    fn ignored(&mut self, names: &[String]) {
        if !names.is_empty() {
            self.log(&format!("{} in PATH has no meaning any more", names.join(", ")));
        }
    }

    /// Opens the datastore, with the policy of what may come in.
    fn open(&mut self) -> Result<std::rc::Rc<Depot>> {
        let policy = self.config.images.load_policy()?;
        let depot = Depot::open(&self.call.datastore.base_path)?.with_policy(policy);
        let depot = std::rc::Rc::new(depot);
        self.depot = Some(depot.clone());
        Ok(depot)
    }

    fn depot(&self) -> Result<&Depot> {
        self.depot
            .as_deref()
            .ok_or_else(|| Error::new(ErrorKind::Host, "the datastore is not open"))
    }

    fn registries(&self) -> Registries {
        Registries::new(self.config.registries.clone())
    }

    fn resolve(&self, path: &Path, tagged: bool) -> Result<(PathBuf, Option<String>)> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let secrets = self.config.secrets();
        dirs::resolve(path, tagged, &self.call.datastore, home.as_deref(), &secrets)
    }

    /// A directory, all in which may be read.
    fn resolve_whole(&self, dir: &Path) -> Result<PathBuf> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let secrets = self.config.secrets();
        dirs::resolve_whole(dir, &self.call.datastore, home.as_deref(), &secrets)
    }

    /// What the datastore may take.
    fn free(&self) -> Result<Room> {
        let base = &self.call.datastore.base_path;
        let there = rustix::fs::statvfs(base).map_err(|e| failed("measure", base, &e.into()))?;
        let free = there.f_bavail.saturating_mul(there.f_frsize);
        // 0 before the first measurement.
        let told = self.call.datastore.free_mb.filter(|mb| *mb > 0);
        let bytes = told.map_or(free, |mb| free.min(mb.saturating_mul(1 << 20)));
        Ok(Room { bytes, size: None })
    }

    /// The same, and not more than the image counts in quotas.
    fn room(&self) -> Result<Room> {
        let free = self.free()?;
        let Some(size) = self.call.image.size_mb.filter(|mb| *mb > 0) else { return Ok(free) };
        let bytes = size.saturating_mul(1 << 20);
        let counted = match self.call.image.kind {
            // Files of disks and directories are packed here, and archives that a web server has compressed are not packed
            // again: both can be more than was counted.
            ImageType::Os => bytes.saturating_mul(2),
            _ => bytes.saturating_add(data::slack(bytes)),
        };
        let size = Some(size);
        Ok(if counted < free.bytes { Room { bytes: counted, size } } else { free })
    }

    /// Removes an image, whole or not, and what then nobody needs.
    fn rm(&mut self) -> Result<String> {
        let depot = self.open()?;
        let held = depot.lock(self.call.id)?;
        let source = &self.call.image.source;
        // Of an image that never became one there is none.
        let foreign = match source.parse() {
            _ if source.is_empty() => false,
            Ok(ImageSource::Container { image, .. }) => image != self.call.id,
            Ok(ImageSource::File(path)) => path != depot.data_path(self.call.id),
            Err(_) => true,
        };
        if foreign {
            // An admin may register anything by its SOURCE, of which we were not told; it goes as it came.
            let source: String = source.chars().take(200).collect();
            self.log(&format!("{source:?} is none of this datastore's and stays"));
        }
        depot.remove(&held, self.call.id)?;
        // The image is gone; what a tool left is in nobody's way.
        if let Err(error) = depot.clear_work(&held) {
            self.log(&error.to_string());
        }
        drop(held);
        let in_use = HashSet::new();
        let options = PruneOptions {
            in_use: &in_use,
            dry_run: false,
            partial_age: Some(PARTIAL_AGE),
            quarantine_age: None,
        };
        match depot.store().prune_with(&options) {
            // Whoever removes an image later takes this along.
            Err(ocivisor_datastore::Error::Busy { .. }) => {
                self.log("its layers stay until nothing is brought in at the same time");
            }
            // The image is gone. Whatever else is wrong with the store must not keep all others.
            Err(error) => {
                let error = from_store(&error);
                self.log(&format!("its layers stay: {error}"));
            }
            Ok(_) => {}
        }
        Ok(String::new())
    }

    /// How much room there is.
    fn monitor(&mut self) -> Result<String> {
        let depot = self.open()?;
        if let Err(error) = depot.sweep_exports(EXPORT_AGE) {
            self.log(&error.to_string());
        }
        let base = &self.call.datastore.base_path;
        let there = rustix::fs::statvfs(base).map_err(|e| failed("measure", base, &e.into()))?;
        let mb = |blocks: u64| blocks.saturating_mul(there.f_frsize) >> 20;
        let (total, free) = (mb(there.f_blocks), mb(there.f_bavail));
        let used = mb(there.f_blocks.saturating_sub(there.f_bfree));
        Ok(format!("USED_MB={used}\nTOTAL_MB={total}\nFREE_MB={free}"))
    }
}
