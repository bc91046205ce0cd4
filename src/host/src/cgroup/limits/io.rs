//! Disks: share of their time, and bounds on the traffic of one.

use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ports::BlockDevice;
use ocivisor_core::spec::{IoLimits, Resources};

use super::{Allow, At, LimitWrite, List};
use crate::cgroup::Hierarchies;

/// What everybody has.
const DEFAULT_WEIGHT: u16 = 100;

/// The share. Who heeds it is up to the kernel: iocost by `io.weight`, where it is switched on for a
/// disk, and the I/O scheduler bfq by a file of its own. v1 has only the latter, since Linux 5.0.
pub(super) fn weigh(list: &mut List<'_>, resources: &Resources) -> Result<()> {
    let weight = resources.io_weight.unwrap_or(DEFAULT_WEIGHT);
    let files: &[(&str, u16)] = match list.at("blkio", "io") {
        Some(At::V2(_)) => &[("io.weight", weight), ("io.bfq.weight", bfq(weight))],
        Some(At::V1(_)) => &[("blkio.bfq.weight", bfq(weight))],
        None => &[],
    };
    let root = list.at("blkio", "io");
    let mut written = false;
    for (file, value) in files {
        if let Some(At::V1(root) | At::V2(root)) = root
            && list.has(root, file)
        {
            list.add(root, file, value);
            written = true;
        }
    }
    match (resources.io_weight, root) {
        (Some(_), None) => Err(list.ground.hierarchies.missing("io", "resources.io_weight")),
        (Some(_), Some(_)) if !written => {
            let what = "resources.io_weight: this kernel shares no disk's time by weights";
            let hint = "load the I/O scheduler bfq (modprobe bfq) and choose it for the disks, or \
                        leave out io_weight";
            Err(Error::new(ErrorKind::Unsupported, what).hint(hint))
        }
        _ => Ok(()),
    }
}

/// bfq has 1 to 1000, 100 in the middle as well: what is above is brought nearer, as systemd does.
fn bfq(weight: u16) -> u16 {
    match weight {
        0..=100 => weight.max(1),
        _ => 100 + u16::try_from(u32::from(weight - 100) * 900 / 9900).unwrap_or(900),
    }
}

/// The writes that bound the traffic with a device: none if there is no bound, for a group that is
/// new has none.
///
/// # Errors
/// `Unsupported`: no such controller, or there is no device that is the guest's alone.
pub(in crate::cgroup) fn disk(
    hierarchies: &Hierarchies,
    disk: &str,
    device: Option<BlockDevice>,
    io: &IoLimits,
) -> Result<Vec<LimitWrite>> {
    let wish = format!("{disk}.io");
    if *io == IoLimits::default() {
        return Ok(Vec::new());
    }
    let Some(device) = device else {
        let what = format!(
            "{wish}: the traffic of a directory cannot be told from that of its filesystem"
        );
        return Err(Error::new(ErrorKind::Unsupported, what)
            .hint("leave it out, or make the disk as an image: ocivisor disk create"));
    };
    // 0 takes a bound away. Operations are a u32 in v1, cut off without a word.
    let ops = |limit: Option<u64>| limit.map(|limit| limit.min(u64::from(u32::MAX)));
    let v1 = [
        ("blkio.throttle.read_bps_device", io.read_bytes),
        ("blkio.throttle.write_bps_device", io.write_bytes),
        ("blkio.throttle.read_iops_device", ops(io.read_ops)),
        ("blkio.throttle.write_iops_device", ops(io.write_ops)),
    ];
    let write = |root: &Path, file: &str, value: String| {
        LimitWrite::new(root, file, &value, Allow::Nothing)
    };
    if let Some(root) = hierarchies.v1("blkio") {
        let line = |limit: Option<u64>| format!("{device} {}", limit.unwrap_or(0));
        return Ok(v1.map(|(file, limit)| write(root, file, line(limit))).to_vec());
    }
    let root = hierarchies.v2("io").ok_or_else(|| hierarchies.missing("io", &wish))?;
    let most = |limit: Option<u64>| limit.map_or("max".to_owned(), |limit| limit.to_string());
    let line = format!(
        "{device} rbps={} wbps={} riops={} wiops={}",
        most(io.read_bytes),
        most(io.write_bytes),
        most(io.read_ops),
        most(io.write_ops)
    );
    Ok(vec![write(root, "io.max", line)])
}

#[cfg(test)]
mod tests {
    use super::bfq;

    #[test]
    fn weights_keep_their_order_for_bfq() {
        for (weight, want) in [(1, 1), (50, 50), (100, 100), (1090, 190), (10_000, 1000)] {
            assert_eq!(bfq(weight), want);
        }
    }
}
