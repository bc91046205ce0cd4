//! Records as files: `vms/<id>/vm.json`, written by temporary file, fsync, rename, fsync.

use std::fs;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::ports::{Loaded, Records};
use ocivisor_core::state::Record;
use ocivisor_host::fs::{
    drop_dir_all, drop_file, ensure_dir, io_error, read_bounded, replace, sync_dir,
};
use ocivisor_host::layout::Layout;
use ocivisor_schema::codec::{decode, encode};

/// Most bytes of a record.
const MAX_BYTES: u64 = 4 << 20;

/// Records below a state directory.
#[derive(Debug)]
pub struct FileRecords {
    layout: Layout,
}

impl FileRecords {
    /// Records of this layout.
    pub fn new(layout: Layout) -> Self {
        Self { layout }
    }

    fn load(&self, id: VmId) -> Result<Option<Loaded>> {
        let path = self.layout.record(&id);
        let bytes = match read_bounded(&path, MAX_BYTES) {
            Ok(Some(bytes)) => bytes,
            // A directory without a record: a define that a crash cut off, or a forgotten VM.
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(Loaded::Damaged(id, error.to_string()))),
        };
        Ok(Some(match decode(&bytes) {
            Ok(record) if *record.id() == id => Loaded::Record(Box::new(record)),
            Ok(record) => {
                let what = format!("it is the record of vm {}", record.id());
                Loaded::Damaged(id, what)
            }
            Err(error) => Loaded::Damaged(id, error.to_string()),
        }))
    }

    /// Moves a damaged record aside, so that its VM can be made anew. Returns where it is.
    pub fn set_aside(&self, id: &VmId) -> Result<std::path::PathBuf> {
        let (from, to) = (self.layout.record(id), self.layout.vm(id).join("vm.json.damaged"));
        let bytes = read_bounded(&from, u64::MAX - 1)?.unwrap_or_default();
        replace(&to, &bytes)?;
        drop_file(&from)?;
        sync_dir(&self.layout.vm(id))?;
        Ok(to)
    }
}

impl Records for FileRecords {
    fn load_all(&self) -> Result<Vec<Loaded>> {
        let dir = self.layout.vms();
        let entries = fs::read_dir(&dir).map_err(|e| io_error("list", &dir, &e))?;
        let mut loaded = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| io_error("list", &dir, &e))?;
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(id) = id {
                loaded.extend(self.load(id)?);
            }
        }
        Ok(loaded)
    }

    fn save(&self, record: &Record) -> Result<()> {
        ensure_dir(&self.layout.vm(record.id()), true)?;
        let bytes = encode(record).map_err(|e| {
            Error::new(ErrorKind::Invalid, format!("record of vm {}: {e}", record.id()))
        })?;
        replace(&self.layout.record(record.id()), &bytes)
    }

    fn remove(&self, id: &VmId) -> Result<()> {
        let dir = self.layout.vm(id);
        drop_file(&self.layout.record(id))?;
        if dir.is_dir() {
            // The record is gone for good before anything else of the VM is.
            sync_dir(&dir)?;
            drop_dir_all(&dir)?;
            sync_dir(&self.layout.vms())?;
        }
        Ok(())
    }
}
