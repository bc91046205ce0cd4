//! What the host is and what it uses, read from the kernel.
//!
//! Keys and units are those of OpenNebula's own probes. Each source has a reader of its text, which takes any text, and
//! leaves out what it does not find.

mod net;
mod numa;
mod pci;
mod processors;
mod stores;

use std::path::Path;

use ocivisor_core::error::Result;
use ocivisor_opennebula::monitor::Template;
use rustix::system::uname;

use crate::read_text;
pub use pci::PciFilter;
pub use processors::Times;
pub use stores::space;

/// Most bytes of a file of /proc: each processor has about 2 KiB in /proc/cpuinfo.
const MOST: u64 = 8 << 20;
/// Longest version of scripts.
const MAX_VERSION: u64 = 64;

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// What the hypervisor is called.
    pub hypervisor: &'a str,
    /// Which PCI devices are told.
    pub pci: &'a PciFilter,
    /// File of the version of the scripts here.
    pub version_file: &'a Path,
}

/// What the host is (`SYSTEM_HOST`), but for the [`space`] of its datastores.
///
/// # Errors
/// The kernel does not tell.
pub fn system(places: Places<'_>) -> Result<Template> {
    let (names, mut text) = (uname(), Template::default());
    let machine = names.machine().to_string_lossy().into_owned();
    let cpus = processors::read(&read_text(Path::new("/proc/cpuinfo"), MOST)?);
    let times = Times::read(&read_text(Path::new("/proc/stat"), MOST)?);
    let memory = Memory::read(&read_text(Path::new("/proc/meminfo"), MOST)?);
    text.bare("HYPERVISOR", word(places.hypervisor));
    text.bare("TOTALCPU", times.processors * 100);
    if let Some(mhz) = processors::top_speed().or(cpus.mhz) {
        text.bare("CPUSPEED", mhz);
    }
    text.bare("TOTALMEMORY", memory.total);
    text.quoted("ARCH", &machine);
    text.quoted("MODELNAME", cpus.model.as_deref().unwrap_or(&machine));
    text.quoted("HOSTNAME", &names.nodename().to_string_lossy());
    text.quoted("CGROUPS_VERSION", if unified() { "2" } else { "1" });
    // Not there for a moment while the scripts are copied: the last one told stays.
    if let Ok(version) = read_text(places.version_file, MAX_VERSION) {
        text.quoted("VERSION", version.trim());
    }
    numa::add(&mut text, Path::new(numa::ROOT));
    pci::add(&mut text, places.pci, Path::new(pci::ROOT), &pci::NAMES);
    Ok(text)
}

/// What the host uses (`MONITOR_HOST`). Processors: since `before`, which becomes now.
///
/// # Errors
/// The kernel does not tell.
pub fn usage(hypervisor: &str, before: &mut Times) -> Result<Template> {
    let now = times()?;
    let memory = Memory::read(&read_text(Path::new("/proc/meminfo"), MOST)?);
    let links = net::read(&read_text(Path::new("/proc/net/dev"), MOST)?, net::is_device);
    let free = now.free_since(before);
    *before = now;
    let mut text = Template::default();
    text.bare("HYPERVISOR", word(hypervisor));
    text.bare("USEDMEMORY", memory.total.saturating_sub(memory.available));
    text.bare("FREEMEMORY", memory.available);
    text.bare("FREECPU", free).bare("USEDCPU", now.processors * 100 - free);
    text.bare("NETRX", links.received).bare("NETTX", links.sent);
    numa::add_usage(&mut text, Path::new(numa::ROOT));
    Ok(text)
}

/// Times of processors, now.
///
/// # Errors
/// The kernel does not tell.
pub fn times() -> Result<Times> {
    Ok(Times::read(&read_text(Path::new("/proc/stat"), MOST)?))
}

/// Without what could end a value that has no quotes: scheduling policies compare the name with such.
fn word(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')).collect()
}

/// Whether there is one hierarchy of control groups (cgroups(7)).
fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Memory in KiB, of /proc/meminfo.
#[derive(Debug, Default, PartialEq, Eq)]
struct Memory {
    total: u64,
    available: u64,
}

impl Memory {
    fn read(text: &str) -> Self {
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Self { total: of("MemTotal:"), available: of("MemAvailable:") }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests fill directories")]

    use super::*;

    #[test]
    fn memory_is_what_can_be_had() {
        let text = "MemTotal:       16338284 kB\nMemFree:          300000 kB\nMemAvailable:    9000000 kB\n";
        assert_eq!(Memory::read(text), Memory { total: 16_338_284, available: 9_000_000 });
        assert_eq!(Memory::read("MemTotal: lots\n"), Memory::default());
    }

    #[test]
    fn this_host_can_be_told() {
        let dir = tempfile::tempdir().unwrap();
        let version = dir.path().join("VERSION");
        std::fs::write(&version, "7.4.0\n").unwrap();
        let places =
            Places { hypervisor: "oci visor", pci: &PciFilter::default(), version_file: &version };
        let text = system(places).unwrap().into_text();
        for key in [
            "HYPERVISOR=ocivisor\n",
            "VERSION=\"7.4.0\"\n",
            "TOTALCPU=",
            "TOTALMEMORY=",
            "ARCH=\"",
            "MODELNAME=\"",
            "HOSTNAME=\"",
            "CGROUPS_VERSION=\"",
        ] {
            assert!(text.contains(key), "{key} in {text}");
        }
        let mut before = Times::default();
        let used = usage("ocivisor", &mut before).unwrap().into_text();
        for key in ["USEDMEMORY=", "FREEMEMORY=", "FREECPU=", "USEDCPU=", "NETRX=", "NETTX="] {
            assert!(used.contains(key), "{key} in {used}");
        }
        assert!(before.processors > 0);
    }
}
