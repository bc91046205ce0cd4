//! What a VM may use of the host.

use crate::units::{Bytes, CentiCores, NumberSet};

/// Limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// Share under contention, in hundredths of a core: becomes cpu.weight / cpu.shares.
    pub cpu_share: CentiCores,
    /// Processors the guest may use at once: the hard quota is this many cores.
    pub vcpus: u32,
    /// A lower hard quota, if the host's policy or the caller wants one.
    pub cpu_quota: Option<CentiCores>,
    /// Memory limit.
    pub memory: Bytes,
    /// Swap beyond memory; zero is none.
    pub swap: Bytes,
    /// Most processes and threads.
    pub pids: u32,
    /// Share of the disks' time under contention, 1 to 10000; 100 is what everybody has (io.weight).
    pub io_weight: Option<u16>,
    /// Where it runs, if not anywhere.
    pub placement: Placement,
    /// Huge pages it may use; of sizes not listed it may use none.
    pub hugepages: Vec<Hugepages>,
}

/// Processors and memory nodes of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// Processors that it runs on; `None` is all.
    pub cpus: Option<NumberSet>,
    /// NUMA nodes that its memory comes from; `None` is all.
    pub nodes: Option<NumberSet>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hugepages {
    /// Size of a page; the host decides which there are.
    pub page: Bytes,
    /// Most bytes in such pages.
    pub limit: Bytes,
}

impl Resources {
    /// Least memory that a guest can be started with.
    pub const MIN_MEMORY: Bytes = Bytes::mib(4);
    /// Processes and threads a guest gets if nothing is said.
    pub const DEFAULT_PIDS: u32 = 4096;

    pub(super) fn check(&self) -> Result<(), String> {
        let r = self;
        if r.vcpus == 0 || r.vcpus > 4096 {
            return Err(format!("vcpus is {}, must be 1 to 4096", r.vcpus));
        }
        if r.cpu_share.0 == 0 || r.cpu_share.0 > 409_600 {
            return Err(format!("cpu share is {}, must be 0.01 to 4096 cores", r.cpu_share));
        }
        if r.cpu_quota.is_some_and(|quota| quota.0 == 0) {
            return Err("cpu quota is 0, must be at least 0.01 cores".into());
        }
        if r.memory < Self::MIN_MEMORY {
            return Err(format!(
                "memory is {}, a guest needs at least {}",
                r.memory,
                Self::MIN_MEMORY
            ));
        }
        if r.memory.0 > 1 << 50 || r.swap.0 > 1 << 50 {
            return Err("memory and swap must be at most 1024 TiB".into());
        }
        if r.pids < 16 {
            return Err(format!("pids limit is {}, must be at least 16", r.pids));
        }
        if r.io_weight.is_some_and(|weight| weight == 0 || weight > 10_000) {
            return Err("io weight must be 1 to 10000".into());
        }
        for (at, pages) in r.hugepages.iter().enumerate() {
            if pages.page.0 < 4096 || !pages.page.0.is_power_of_two() || pages.limit.0 > 1 << 50 {
                return Err(format!("huge pages of {} are no huge pages", pages.page));
            }
            if r.hugepages[..at].iter().any(|other| other.page == pages.page) {
                return Err(format!("huge pages of {} are limited twice", pages.page));
            }
        }
        Ok(())
    }

    /// The hard quota that results: the explicit one, never more than the processors.
    #[must_use]
    pub fn effective_quota(&self) -> CentiCores {
        let all = CentiCores(self.vcpus.saturating_mul(100));
        self.cpu_quota.map_or(all, |quota| quota.min(all))
    }
}
