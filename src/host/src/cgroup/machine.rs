//! What this machine has that a wish can be about: processors, memory nodes, sizes of huge pages.
//!
//! Read anew for each wish: processors come and go (hotplug), and reading takes microseconds.

use std::fs;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::units::{Bytes, NumberSet};

use super::{Hierarchies, file};

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    /// Processors that guests may run on.
    pub cpus: NumberSet,
    /// Memory nodes that they may use.
    pub nodes: NumberSet,
    /// Sizes of huge pages, largest last.
    pub pages: Vec<Bytes>,
}

impl Machine {
    /// Looks. Of processors and nodes only those count that the group `base`, relative to the
    /// hierarchies' roots, may use: it has all of the host's, unless somebody set it otherwise.
    pub(super) fn look(hierarchies: &Hierarchies, base: &str) -> Result<Self> {
        let allowed = |kind: &str| -> Option<NumberSet> {
            // Without their groups, and with old kernels, what is online is what there is.
            let v1 = hierarchies.v1("cpuset").map(|root| (root, format!("effective_{kind}")));
            let v2 = hierarchies.v2("cpuset").map(|root| (root, format!("{kind}.effective")));
            let (root, name) = v1.or(v2)?;
            file::read(&root.join(base).join(format!("cpuset.{name}"))).ok()?.parse().ok()
        };
        let cpus = allowed("cpus").map_or_else(|| online("/sys/devices/system/cpu/online"), Ok);
        let node = Path::new("/sys/devices/system/node/online");
        let nodes = match allowed("mems") {
            Some(nodes) => Ok(nodes),
            // A kernel without NUMA has no such files, and one node.
            None if !node.exists() => "0".parse().map_err(|why| unreadable(node, why)),
            None => online("/sys/devices/system/node/online"),
        };
        Ok(Self { cpus: cpus?, nodes: nodes?, pages: page_sizes() })
    }

    /// Refuses processors and nodes that guests cannot have here.
    pub(super) fn check(
        what: &str,
        field: &str,
        wanted: Option<&NumberSet>,
        there: &NumberSet,
    ) -> Result<()> {
        let absent = wanted.and_then(|wanted| wanted.iter().find(|n| !there.contains(*n)));
        absent.map_or(Ok(()), |absent| {
            let what = format!("this host has no {what} {absent} for guests");
            Err(Error::new(ErrorKind::NotFound, what)
                .hint(format!("it has {there}: change resources.{field}")))
        })
    }
}

fn online(path: &str) -> Result<NumberSet> {
    let path = Path::new(path);
    file::read(path)?.parse().map_err(|why| unreadable(path, why))
}

fn unreadable(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Host, format!("{} {why}", path.display()))
}

/// From the names in /sys/kernel/mm/hugepages, `hugepages-2048kB`; none if the kernel has none.
fn page_sizes() -> Vec<Bytes> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let size = |name: &str| {
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(Bytes(kib.checked_mul(1024)?))
    };
    let mut sizes: Vec<Bytes> =
        entries.filter_map(|entry| size(entry.file_name().to_str()?)).collect();
    sizes.sort_unstable();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_processor_and_a_node() {
        let machine = Machine::look(&Hierarchies::of_this_host().unwrap(), "nonexistent").unwrap();
        assert!(machine.cpus.contains(0) || machine.cpus.count() > 0);
        assert!(machine.nodes.count() > 0);
        assert!(machine.pages.is_sorted());
    }

    #[test]
    fn what_is_not_there_is_refused_by_its_number() {
        let there: NumberSet = "0-3".parse().unwrap();
        let check = |wanted: &str| {
            let wanted: NumberSet = wanted.parse().unwrap();
            Machine::check("processor", "cpus", Some(&wanted), &there)
        };
        check("0,3").unwrap();
        Machine::check("processor", "cpus", None, &there).unwrap();
        let error = check("2-5").unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.message, "this host has no processor 4 for guests");
        assert_eq!(error.hint.as_deref(), Some("it has 0-3: change resources.cpus"));
    }
}
