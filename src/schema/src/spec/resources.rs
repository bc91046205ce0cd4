//! What a VM may use of the host.

use ocivisor_core::error::Error;
use ocivisor_core::spec::{Hugepages, Placement, Resources};
use ocivisor_core::units::{Bytes, CentiCores, NumberSet};
use serde::{Deserialize, Serialize};

use super::fields::Fields;

/// See [`Resources`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourcesV1 {
    /// Share under contention in hundredths of a core; else 100.
    #[serde(default = "one_core")]
    pub cpu_share: u32,
    /// Processors; else 1.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// Lower hard quota in hundredths of a core.
    #[serde(default)]
    pub cpu_quota: Option<u32>,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of swap beyond memory; else none.
    #[serde(default)]
    pub swap: u64,
    /// Most processes and threads; else 4096.
    #[serde(default = "default_pids")]
    pub pids: u32,
    /// Share of the disks' time under contention, 1 to 10000; 100 is what everybody has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<u16>,
    /// Processors of the host that it runs on, as in `0-3,8`; else all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// NUMA nodes of the host that its memory comes from; else all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<String>,
    /// Huge pages it may use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hugepages: Vec<HugepagesV1>,
}

/// See [`Hugepages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugepagesV1 {
    /// Bytes of one page.
    pub page: u64,
    /// Most bytes in such pages.
    pub limit: u64,
}

fn one() -> u32 {
    1
}

fn one_core() -> u32 {
    100
}

fn default_pids() -> u32 {
    Resources::DEFAULT_PIDS
}

impl Fields<'_> {
    pub(super) fn resources(&self, r: &ResourcesV1) -> Result<Resources, Error> {
        let numbers = |field: &str, text: &Option<String>| -> Result<Option<NumberSet>, Error> {
            text.as_ref().map(|text| text.parse().map_err(|why| self.bad(field, &why))).transpose()
        };
        let pages = |h: &HugepagesV1| Hugepages { page: Bytes(h.page), limit: Bytes(h.limit) };
        Ok(Resources {
            cpu_share: CentiCores(r.cpu_share),
            vcpus: r.vcpus,
            cpu_quota: r.cpu_quota.map(CentiCores),
            memory: Bytes(r.memory),
            swap: Bytes(r.swap),
            pids: r.pids,
            io_weight: r.io_weight,
            placement: Placement {
                cpus: numbers("resources.cpus", &r.cpus)?,
                nodes: numbers("resources.nodes", &r.nodes)?,
            },
            hugepages: r.hugepages.iter().map(pages).collect(),
        })
    }
}

impl From<&Resources> for ResourcesV1 {
    fn from(r: &Resources) -> Self {
        let text = |set: &Option<NumberSet>| set.as_ref().map(ToString::to_string);
        let pages = |h: &Hugepages| HugepagesV1 { page: h.page.0, limit: h.limit.0 };
        Self {
            cpu_share: r.cpu_share.0,
            vcpus: r.vcpus,
            cpu_quota: r.cpu_quota.map(|quota| quota.0),
            memory: r.memory.0,
            swap: r.swap.0,
            pids: r.pids,
            io_weight: r.io_weight,
            cpus: text(&r.placement.cpus),
            nodes: text(&r.placement.nodes),
            hugepages: r.hugepages.iter().map(pages).collect(),
        }
    }
}
