//! Virtual networks.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::template::{Template, Vector, vector_of};
use crate::xml::Element;

/// A network with one range of addresses.
#[derive(Debug, Clone)]
pub struct Network {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// What it was made of.
    pub template: Template,
    /// First address and their number.
    pub range: (Ipv4Addr, u32),
    /// Where the next free address is looked for.
    pub next: u32,
    /// Addresses in use, counted from the first.
    pub leased: BTreeSet<u32>,
}

impl Network {
    /// Makes one of a template.
    ///
    /// # Panics
    /// The template has no range of IPv4 addresses.
    #[must_use]
    pub fn of(id: u32, text: &str) -> Self {
        let template = Template::read(text);
        let range = template.vectors("AR").next().unwrap();
        let (first, size) = (range["IP"].parse().unwrap(), range["SIZE"].parse().unwrap());
        let name = template.text("NAME").unwrap_or_default().to_owned();
        Self { id, name, template, range: (first, size), next: 0, leased: BTreeSet::new() }
    }

    /// Name of its driver.
    #[must_use]
    pub fn driver(&self) -> String {
        self.template.text("VN_MAD").unwrap_or_default().to_owned()
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> Element {
        let text = |key: &str| Element::quoted(key, self.template.text(key).unwrap_or_default());
        Element::of(
            "VNET",
            vec![
                Element::plain("ID", self.id),
                Element::plain("NAME", &self.name),
                text("BRIDGE"),
                text("VN_MAD"),
                Element::of("TEMPLATE", self.template.elements()),
            ],
        )
    }

    /// Sees to it that the next address given is this one, if it is free.
    pub fn begin_at(&mut self, address: Ipv4Addr) {
        self.next = address.to_bits() - self.range.0.to_bits();
    }

    fn lease(&mut self, wanted: Option<&str>) -> Ipv4Addr {
        let first = self.range.0.to_bits();
        let at = match wanted.and_then(|ip| ip.parse::<Ipv4Addr>().ok()) {
            Some(ip) => ip.to_bits() - first,
            None => {
                let size = self.range.1;
                let free = (0..size).map(|n| (self.next + n) % size);
                let at = free.into_iter().find(|at| !self.leased.contains(at)).unwrap_or(0);
                self.next = at + 1;
                at
            }
        };
        self.leased.insert(at);
        Ipv4Addr::from_bits(first + at)
    }

    /// Gives an address back.
    pub fn release(&mut self, address: &str) {
        if let Ok(address) = address.parse::<Ipv4Addr>() {
            self.leased.remove(&(address.to_bits().wrapping_sub(self.range.0.to_bits())));
        }
    }

    /// `NIC` of a VM in it, with an address of its own.
    pub fn nic(&mut self, wanted: Option<&str>) -> Vector {
        let ip = self.lease(wanted);
        let [a, b, c, d] = ip.octets();
        let (ip, id) = (ip.to_string(), self.id.to_string());
        let mac = format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        let text = |key: &str| self.template.text(key).unwrap_or_default();
        let mut nic = vector_of(&[
            ("AR_ID", "0"),
            ("BRIDGE", text("BRIDGE")),
            ("BRIDGE_TYPE", "linux"),
            ("CLUSTER_ID", "0"),
            ("IP", &ip),
            ("MAC", &mac),
            ("NETWORK", &self.name),
            ("NETWORK_ID", &id),
            ("VN_MAD", text("VN_MAD")),
        ]);
        // Of the list INHERIT_VNET_ATTR.
        for key in ["DNS", "GATEWAY", "MTU", "INBOUND_AVG_BW", "OUTBOUND_AVG_BW"] {
            if let Some(value) = self.template.text(key) {
                nic.insert(key.to_owned(), value.to_owned());
            }
        }
        nic
    }
}
