//! Names that nobody asks for any more.
//!
//! A name is written whenever an image is brought in under it, whether anything of it had to come or not. So the time of its
//! file is when it was last asked for; whoever looks for names that are not needed also notes there that one is.

use std::collections::HashSet;
use std::time::SystemTime;

use rustix::fs::{AtFlags, FlockOperation, Timespec, Timestamps, UTIME_NOW};

use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::error::Result;
use crate::name::ImageName;
use crate::store::Store;

impl Store {
    /// Forgets names that were neither given nor found to be needed since `before`, among those that `is_meant` holds for, and
    /// returns them. A name is needed where all layers of its image are in `in_use`. What only they kept goes with
    /// the next [`Store::prune`].
    ///
    /// What is damaged is left alone.
    pub fn forget_unused(
        &self,
        before: SystemTime,
        in_use: &HashSet<DiffId>,
        is_meant: &dyn Fn(&ImageName, &Digest) -> bool,
    ) -> Result<Vec<ImageName>> {
        self.check_writable()?;
        // Who gives a name holds this, too: none that was given a moment ago goes.
        let refs = disk::open_dir(&self.dir, "refs");
        let refs = refs.map_err(|e| self.io("open directory", "refs", e))?;
        disk::lock(&refs, FlockOperation::LockExclusive).map_err(|e| self.io("lock", "refs", e))?;
        let mut forgotten = Vec::new();
        for found in self.readable_refs()?.into_iter().filter(|r| is_meant(&r.name, &r.manifest)) {
            let Ok(Some(record)) = self.record(&found.manifest) else { continue };
            let file = found.name.file_name().0;
            if record.layers.iter().all(|layer| in_use.contains(&layer.diff_id)) {
                let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
                let times = Timestamps { last_access: now, last_modification: now };
                rustix::fs::utimensat(&refs, &file, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| self.io("note the use of", &format!("refs/{file}"), e))?;
            } else if disk::modified(&refs, &file) < before && self.remove(&found.name)? {
                forgotten.push(found.name);
            }
        }
        Ok(forgotten)
    }
}
