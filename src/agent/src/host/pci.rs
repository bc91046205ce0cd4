//! PCI devices that OpenNebula may hand out: those that the admin selects, none else.
//!
//! Of `/sys/bus/pci/devices/<domain>:<bus>:<slot>.<function>/…`; names of the list that lspci(8) uses (pci.ids(5)), where it is
//! installed.
//!
//! What is told the scheduler hands out, and guests of ours are not given such devices by us yet. So the default selects none, as
//! OpenNebula's own does.

use std::collections::BTreeMap;
use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::monitor::Template;
use serde::{Deserialize, Serialize};

use crate::read_text;

/// Where devices are.
pub(super) const ROOT: &str = "/sys/bus/pci/devices";
/// Where packages put the list of names.
pub(super) const NAMES: [&str; 2] = ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids"];
/// Most bytes of that list: it has 1.5 MiB.
const MOST_NAMES: u64 = 16 << 20;
/// Most bytes of a file of a device.
const MOST: u64 = 64;
/// Most devices.
const MOST_DEVICES: usize = 4096;

/// Which devices are told; as in OpenNebula's `pci.conf`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PciFilter {
    /// `<vendor>:<device>` or `<vendor>:<device>:<class>`, each in hexadecimal, or `*` for any. A device is told if one of them
    /// fits.
    pub filter: Vec<String>,
    /// If not empty: only devices with one of these addresses, as `01:00.0`.
    pub short_address: Vec<String>,
    /// If not empty: only devices whose name holds one of these, in any case.
    pub device_name: Vec<String>,
}

impl PciFilter {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// A filter is none.
    pub fn check(&self) -> Result<()> {
        match self.filter.iter().find(|text| Wanted::read(text).is_none()) {
            None => Ok(()),
            Some(text) => {
                let what = format!("monitoring.pci.filter has {text:?}");
                let hint = "must be <vendor>:<device> or <vendor>:<device>:<class>, each four hexadecimal digits or *";
                Err(Error::new(ErrorKind::Invalid, what).hint(hint))
            }
        }
    }

    fn wants(&self, device: &Device, short: &str, name: &str) -> bool {
        let name = name.to_lowercase();
        self.filter.iter().filter_map(|text| Wanted::read(text)).any(|wanted| wanted.is(device))
            && (self.short_address.is_empty() || self.short_address.iter().any(|is| is == short))
            && (self.device_name.is_empty()
                || self.device_name.iter().any(|part| name.contains(&part.to_lowercase())))
    }
}

/// A filter; `None` is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    parts: [Option<u16>; 3],
}

impl Wanted {
    fn read(text: &str) -> Option<Self> {
        let mut words = text.trim().split(':');
        let mut part = |may_lack: bool| match words.next() {
            None => may_lack.then_some(None),
            Some("*" | "") => Some(None),
            Some(word) if word.len() <= 4 => u16::from_str_radix(word, 16).ok().map(Some),
            Some(_) => None,
        };
        let parts = [part(false)?, part(false)?, part(true)?];
        words.next().is_none().then_some(Self { parts })
    }

    fn is(self, device: &Device) -> bool {
        let of = [device.vendor, device.device, device.class];
        self.parts.iter().zip(of).all(|(wanted, is)| wanted.is_none_or(|wanted| wanted == is))
    }
}

/// What a device says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Device {
    vendor: u16,
    device: u16,
    class: u16,
    /// `None`: the kernel does not know to which node it is nearer.
    node: Option<u32>,
}

impl Device {
    fn read(dir: &Path) -> Option<Self> {
        let number = |name: &str| {
            let text = read_text(&dir.join(name), MOST).ok()?;
            u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
        };
        let node = read_text(&dir.join("numa_node"), MOST).ok();
        Some(Self {
            vendor: u16::try_from(number("vendor")?).ok()?,
            device: u16::try_from(number("device")?).ok()?,
            // The last two digits are the programming interface.
            class: u16::try_from(number("class")? >> 8).ok()?,
            node: node.and_then(|text| text.trim().parse().ok()),
        })
    }
}

/// Adds the devices that are wanted.
pub(super) fn add(text: &mut Template, filter: &PciFilter, root: &Path, names: &[&str]) {
    if filter.filter.is_empty() {
        return;
    }
    let entries = std::fs::read_dir(root).into_iter().flatten().take(MOST_DEVICES);
    let mut addresses: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    addresses.sort();
    let list = names.iter().find_map(|path| read_text(Path::new(path), MOST_NAMES).ok());
    let list = list.unwrap_or_default();
    let names = Names::read(&list);
    for address in addresses {
        let Some((domain, bus, slot, function)) = parts(&address) else { continue };
        let Some(device) = Device::read(&root.join(&address)) else { continue };
        let short = format!("{bus}:{slot}.{function}");
        let name = names.device(device.vendor, device.device);
        if !filter.wants(&device, &short, &name) {
            continue;
        }
        let Device { vendor, device, class, node } = device;
        let [vendor_id, device_id, class_id] = [vendor, device, class].map(|n| format!("{n:04x}"));
        let node = node.map_or_else(|| "-".to_owned(), |node| node.to_string());
        text.vector(
            "PCI",
            &[
                ("TYPE", &format!("{vendor_id}:{device_id}:{class_id}")),
                ("VENDOR", &vendor_id),
                ("VENDOR_NAME", &names.vendor(vendor)),
                ("DEVICE", &device_id),
                ("DEVICE_NAME", &name),
                ("CLASS", &class_id),
                ("CLASS_NAME", &names.class(class)),
                ("ADDRESS", &format!("{domain}:{bus}:{slot}:{function}")),
                ("SHORT_ADDRESS", &short),
                ("DOMAIN", &domain),
                ("BUS", &bus),
                ("SLOT", &slot),
                ("FUNCTION", &function),
                ("NUMA_NODE", &node),
            ],
        );
    }
}

/// `0000:01:00.0`
fn parts(address: &str) -> Option<(&str, &str, &str, &str)> {
    let (rest, function) = address.split_once('.')?;
    let mut words = rest.split(':');
    let (domain, bus, slot) = (words.next()?, words.next()?, words.next()?);
    words.next().is_none().then_some((domain, bus, slot, function))
}

/// Of pci.ids: vendors begin a line, their devices stand below them after a tab; classes are `C <two digits>`, their
/// subclasses below them likewise.
#[derive(Debug, Default)]
struct Names<'a> {
    vendors: BTreeMap<u16, &'a str>,
    devices: BTreeMap<(u16, u16), &'a str>,
    classes: BTreeMap<u16, &'a str>,
}

impl<'a> Names<'a> {
    fn read(text: &'a str) -> Self {
        let mut names = Self::default();
        let entry = |line: &'a str| {
            let (number, name) = line.split_once("  ")?;
            Some((u16::from_str_radix(number, 16).ok()?, name.trim()))
        };
        let (mut vendor, mut class) = (None, None);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some(rest) = line.strip_prefix("C ") {
                (vendor, class) = (None, entry(rest).map(|(number, _)| number));
            } else if let Some(rest) = line.strip_prefix('\t') {
                let Some((number, name)) = entry(rest) else { continue };
                if let Some(vendor) = vendor {
                    names.devices.insert((vendor, number), name);
                } else if let Some(class) = class {
                    names.classes.insert(class << 8 | number, name);
                }
            } else if let Some((number, name)) = entry(line) {
                (vendor, class) = (Some(number), None);
                names.vendors.insert(number, name);
            }
        }
        names
    }

    fn vendor(&self, vendor: u16) -> String {
        self.vendors
            .get(&vendor)
            .map_or_else(|| format!("Vendor {vendor:04x}"), ToString::to_string)
    }

    fn device(&self, vendor: u16, device: u16) -> String {
        let known = self.devices.get(&(vendor, device));
        known.map_or_else(|| format!("Device {device:04x}"), ToString::to_string)
    }

    fn class(&self, class: u16) -> String {
        self.classes.get(&class).map_or_else(|| format!("Class {class:04x}"), ToString::to_string)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests fill directories")]

    use super::*;

    const LIST: &str = "# names\n10de  NVIDIA Corporation\n\t1eb8  TU104GL [Tesla T4]\n\t\t10de 12a2  T4 \"sub\"\n\
        8086  Intel Corporation\n\t1521  I350 Gigabit\n\nC 03  Display controller\n\t02  3D controller\n\
        \t\t00  odd\nC 02  Network controller\n\t00  Ethernet controller\n";

    fn told(filter: &[&str], short: &[&str], name: &[&str], list: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        for (address, vendor, device, class, node) in [
            ("0000:01:00.0", "0x10de", "0x1eb8", "0x030200", "1"),
            ("0000:81:10.1", "0x8086", "0x1521", "0x020000", "-1"),
            ("0000:82:00.0", "0x8086", "bad", "0x020000", "-1"),
            ("odd", "0x8086", "0x1521", "0x020000", "0"),
        ] {
            let dir = dir.path().join(address);
            std::fs::create_dir(&dir).unwrap();
            for (file, text) in
                [("vendor", vendor), ("device", device), ("class", class), ("numa_node", node)]
            {
                std::fs::write(dir.join(file), format!("{text}\n")).unwrap();
            }
        }
        let names = dir.path().join("pci.ids");
        std::fs::write(&names, list).unwrap();
        let own = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
        let filter =
            PciFilter { filter: own(filter), short_address: own(short), device_name: own(name) };
        filter.check().unwrap();
        let mut text = Template::default();
        add(&mut text, &filter, dir.path(), &["/nonexistent", names.to_str().unwrap()]);
        text.into_text()
    }

    const CARD: &str = "PCI=[TYPE=\"10de:1eb8:0302\",VENDOR=\"10de\",VENDOR_NAME=\"NVIDIA Corporation\",DEVICE=\"1eb8\",\
        DEVICE_NAME=\"TU104GL [Tesla T4]\",CLASS=\"0302\",CLASS_NAME=\"3D controller\",ADDRESS=\"0000:01:00:0\",\
        SHORT_ADDRESS=\"01:00.0\",DOMAIN=\"0000\",BUS=\"01\",SLOT=\"00\",FUNCTION=\"0\",NUMA_NODE=\"1\"]\n";
    const NETWORK: &str = "PCI=[TYPE=\"8086:1521:0200\",VENDOR=\"8086\",VENDOR_NAME=\"Intel Corporation\",DEVICE=\"1521\",\
        DEVICE_NAME=\"I350 Gigabit\",CLASS=\"0200\",CLASS_NAME=\"Ethernet controller\",ADDRESS=\"0000:81:10:1\",\
        SHORT_ADDRESS=\"81:10.1\",DOMAIN=\"0000\",BUS=\"81\",SLOT=\"10\",FUNCTION=\"1\",NUMA_NODE=\"-\"]\n";

    #[test]
    fn devices_are_those_that_the_filters_select() {
        let both = format!("{CARD}{NETWORK}");
        assert_eq!(told(&[], &[], &[], LIST), "", "none, if none is asked for");
        assert_eq!(told(&["*:*"], &[], &[], LIST), both);
        assert_eq!(told(&["10de:*"], &[], &[], LIST), CARD);
        assert_eq!(told(&["::0200", "1:2"], &[], &[], LIST), NETWORK);
        assert_eq!(told(&["8086:1522", "8086:1521:0300"], &[], &[], LIST), "");
        assert_eq!(told(&["*:*"], &["01:00.0"], &[], LIST), CARD);
        assert_eq!(told(&["*:*"], &[], &["gigabit"], LIST), NETWORK);
        let unnamed = told(&["10de:*"], &[], &[], "");
        for name in ["\"Vendor 10de\"", "\"Device 1eb8\"", "\"Class 0302\""] {
            assert!(unnamed.contains(name), "{unnamed}");
        }
    }

    #[test]
    fn a_filter_that_is_none_is_refused() {
        for bad in ["", "10de", "10de:xyzw", "10de:*:*:*", "10de:12345"] {
            let filter = PciFilter { filter: vec![bad.into()], ..PciFilter::default() };
            assert!(filter.check().is_err(), "{bad}");
        }
    }
}
