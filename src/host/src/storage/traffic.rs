//! Traffic of disks: what their block devices count.
//!
//! A device (a loop device, or a block device of the host as data disk) is the guest's alone while it is attached, so its counters are exact, whatever the layout
//! of control groups; those of the groups count what arrives at the disks below as well, and v1 does
//! not know whose pages are written back. The kernel goes on counting when a device's number is used
//! again, so what it had counted before is written down when a disk is attached.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ocivisor_core::error::Result;
use ocivisor_core::ids::VmId;
use serde::{Deserialize, Serialize};

use super::HostStorage;
use super::claim::Attachment;
use crate::fs::io_error;

/// Traffic of a disk (Documentation/admin-guide/iostats.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskTraffic {
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Writes.
    pub write_ops: u64,
}

impl DiskTraffic {
    fn with(self, other: Self) -> Self {
        Self {
            read_bytes: self.read_bytes.saturating_add(other.read_bytes),
            read_ops: self.read_ops.saturating_add(other.read_ops),
            write_bytes: self.write_bytes.saturating_add(other.write_bytes),
            write_ops: self.write_ops.saturating_add(other.write_ops),
        }
    }
}

/// Major and minor number of a block device.
type Device = (u32, u32);

/// Of loop devices (Documentation/admin-guide/devices.txt).
const LOOP: u32 = 7;

/// The device of a disk, and what it had counted for others before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskMeter {
    pub(super) device: Device,
    pub(super) before: DiskTraffic,
}

/// What all block devices have counted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceTraffic(BTreeMap<Device, DiskTraffic>);

impl DeviceTraffic {
    /// Reads /proc/diskstats.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn observe() -> Result<Self> {
        let path = Path::new("/proc/diskstats");
        let text = fs::read_to_string(path).map_err(|e| io_error("read", path, &e))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            // proc_diskstats(5): major, minor, name; then the columns of the file `stat` in sysfs.
            let mut words = line.split_ascii_whitespace();
            let (major, minor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            Some(((major, minor), columns(words.skip(1))?))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// What went through disks since each was attached; `None` of none.
    #[must_use]
    pub fn of_all(&self, meters: &[DiskMeter]) -> Option<DiskTraffic> {
        meters.iter().map(|meter| self.of(*meter)).reduce(DiskTraffic::with)
    }

    fn of(&self, meter: DiskMeter) -> DiskTraffic {
        let now = self.0.get(&meter.device).copied().unwrap_or_default();
        let before = meter.before;
        DiskTraffic {
            read_bytes: now.read_bytes.saturating_sub(before.read_bytes),
            read_ops: now.read_ops.saturating_sub(before.read_ops),
            write_bytes: now.write_bytes.saturating_sub(before.write_bytes),
            write_ops: now.write_ops.saturating_sub(before.write_ops),
        }
    }
}

/// Reads, merged ones, sectors, time; the same of writes; others. A sector is 512 bytes, always.
fn columns<'a>(words: impl Iterator<Item = &'a str>) -> Option<DiskTraffic> {
    let mut all = words.map(|word| word.parse::<u64>().ok());
    let mut next = || all.next().flatten();
    let (read_ops, _, read, _) = (next()?, next()?, next()?, next()?);
    let (write_ops, _, written) = (next()?, next()?, next()?);
    let bytes = |sectors: u64| sectors.saturating_mul(512);
    Some(DiskTraffic { read_bytes: bytes(read), read_ops, write_bytes: bytes(written), write_ops })
}

/// What a loop device has counted so far; nothing if the kernel does not tell.
pub(super) fn of_loop(number: u32) -> DiskTraffic {
    of_device((LOOP, number))
}

/// What a block device has counted so far; nothing if the kernel does not tell.
pub(super) fn of_device((major, minor): Device) -> DiskTraffic {
    let path = format!("/sys/dev/block/{major}:{minor}/stat");
    let text = fs::read_to_string(path).unwrap_or_default();
    columns(text.split_ascii_whitespace()).unwrap_or_default()
}

impl HostStorage {
    /// Where the traffic of a VM's disks is counted: of those that are attached and have a device.
    #[must_use]
    pub fn disk_meters(&self, id: &VmId) -> Vec<DiskMeter> {
        let root = Attachment::load(&self.places(id)).and_then(|root| {
            Some(DiskMeter { device: (LOOP, root.loop_number?), before: root.counted })
        });
        root.into_iter().chain(self.data_disk_meters(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_of_disks_is_what_their_devices_counted_since() {
        let all = DeviceTraffic::parse(
            " 254       0 vda 1 2 3 4 5 6 7 8 9 10 11 0 0 0 0 0 0\n   \
             7       3 loop3 10 1 80 9 20 2 160 9 0 1 2 0 0 0 0 3 4\n   7       4 loop4 x\n",
        );
        let before =
            DiskTraffic { read_bytes: 512 * 30, read_ops: 4, write_bytes: 0, write_ops: 0 };
        let root = DiskMeter { device: (7, 3), before };
        let traffic = all.of(root);
        let want = DiskTraffic {
            read_bytes: 512 * 50,
            read_ops: 6,
            write_bytes: 512 * 160,
            write_ops: 20,
        };
        assert_eq!(traffic, want);
        let unknown = DiskMeter { device: (7, 9), before: DiskTraffic::default() };
        assert_eq!(all.of(unknown), DiskTraffic::default());
        let data = DiskMeter { device: (254, 0), before: DiskTraffic::default() };
        let both = DiskTraffic {
            read_bytes: 512 * (50 + 3),
            read_ops: 6 + 1,
            write_bytes: 512 * (160 + 7),
            write_ops: 20 + 5,
        };
        assert_eq!(all.of_all(&[root, data, unknown]), Some(both));
        assert_eq!(all.of_all(&[]), None);
    }

    #[test]
    fn this_kernel_tells() {
        DeviceTraffic::observe().unwrap();
    }
}
