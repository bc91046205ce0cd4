//! What guests use.
//!
//! Counters only grow while a guest runs; rates are up to the reader, who knows how far apart two
//! answers are ([`StatsReply::at`]).

use ocivisor_core::ids::VmId;
use serde::{Deserialize, Serialize};

use crate::text::{Text, TimeV1};

/// All guests that run, or the one that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsReply {
    /// When they were looked at.
    pub at: TimeV1,
    /// By id.
    pub vms: Vec<VmStats>,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStats {
    /// Its VM.
    pub id: Text<VmId>,
    /// Processors, since it booted.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes and threads.
    pub pids: PidStats,
    /// Its disks together, since the VM was started; `null` if none is a block device (a root that is a directory). Reading
    /// an image's layers is not among it.
    pub disk: Option<DiskStats>,
    /// Its NICs, since the VM was started.
    pub nics: Vec<NicStats>,
    /// What it waited for, since it booted; `null` if the kernel does not tell.
    pub pressure: Option<PressureStats>,
}

/// Time on processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// Microseconds of all processors together.
    pub usage_us: u64,
    /// Processors that it has.
    pub vcpus: u32,
    /// Periods in which it had something to do.
    pub periods: u64,
    /// Those in which it was stopped because its quota was used up.
    pub throttled_periods: u64,
    /// Microseconds that its processors stood still for that.
    pub throttled_us: u64,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStats {
    /// Charged to it, page cache included.
    pub used: u64,
    /// The most there was; `null` if the kernel does not tell.
    pub peak: Option<u64>,
    /// Its limit.
    pub limit: u64,
    /// Swap; `null` if the kernel does not count it.
    pub swap: Option<u64>,
    /// Limit of that.
    pub swap_limit: u64,
    /// Processes that were killed because memory was full, since it booted.
    pub oom_kills: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidStats {
    /// That there are.
    pub current: u64,
    /// Their limit.
    pub limit: u32,
}

/// Traffic of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads.
    pub read_ops: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Writes.
    pub write_ops: u64,
}

/// Traffic of a NIC, as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicStats {
    /// Number of the NIC: `eth0` is 0.
    pub index: u32,
    /// Bytes that the guest received.
    pub rx_bytes: u64,
    /// Packets that the guest received.
    pub rx_packets: u64,
    /// Bytes that the guest sent.
    pub tx_bytes: u64,
    /// Packets that the guest sent.
    pub tx_packets: u64,
}

/// Pressure stall information.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressureStats {
    /// Waiting for a processor.
    pub cpu: StallStats,
    /// Waiting for memory.
    pub memory: StallStats,
    /// Waiting for disks.
    pub io: StallStats,
}

/// Waiting for one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StallStats {
    /// Somebody in the guest waited.
    pub some: StallTime,
    /// Everybody did.
    pub full: StallTime,
}

/// How much of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StallTime {
    /// Of the last 10 seconds, in hundredths of a percent.
    pub avg10: u32,
    /// Of the last minute, in hundredths of a percent.
    pub avg60: u32,
    /// Of the last 5 minutes, in hundredths of a percent.
    pub avg300: u32,
    /// Microseconds in all.
    pub total_us: u64,
}
