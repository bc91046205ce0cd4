//! What OpenNebula says about a VM: the parts of its XML that a driver needs, as they stand.
//!
//! Two documents carry a VM: the deployment file is a bare `<VM>` (on standard input of `deploy`),
//! every other script gets `<VMM_DRIVER_ACTION_DATA>` with a `<VM>` in it. Values are CDATA or
//! plain; an empty element and an absent one mean the same; unknown elements are ignored, so that
//! other releases of OpenNebula are readable. What may occur once and occurs twice is refused:
//! which of two ids counts would be a guess.
//!
//! Ids are parsed here. Everything else stays text until [`crate::to_spec`] needs it, so that a
//! VM with a strange CPU can still be stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ocivisor_core::error::Error;

use crate::xml::{self, Element};
use crate::{OneId, clip, decimal, invalid};

/// The keys of a vector attribute such as `CONTEXT`; empty values are left out.
pub type Vector = BTreeMap<String, String>;

/// A VM as oned describes it.
///
/// `CONTEXT` and `GRAPHICS` hold passwords and tokens: `Debug` shows their keys alone.
#[derive(Clone, PartialEq, Eq)]
pub struct DriverVm {
    /// `ID`.
    pub id: OneId,
    /// `NAME`; may be empty and hold anything.
    pub name: String,
    /// `DEPLOY_ID`: what `deploy` printed last time, empty before.
    pub deploy_id: Option<String>,
    /// `TEMPLATE/CPU`: a decimal fraction of cores.
    pub cpu: Option<String>,
    /// `TEMPLATE/VCPU`: processors.
    pub vcpu: Option<String>,
    /// `TEMPLATE/MEMORY`: MiB.
    pub memory: Option<String>,
    /// `TEMPLATE/OS`: `BOOT`, `UUID`, …
    pub os: Vector,
    /// `TEMPLATE/DISK`, in template order; the context disk is not among them.
    pub disks: Vec<Disk>,
    /// `TEMPLATE/NIC`, in template order.
    pub nics: Vec<Nic>,
    /// `TEMPLATE/PCI`: passed-through devices.
    pub pci: Vec<Vector>,
    /// `TEMPLATE/CONTEXT`; `None` if there is no such section.
    pub context: Option<Vector>,
    /// `TEMPLATE/GRAPHICS`.
    pub graphics: Option<Vector>,
    /// `TEMPLATE/TOPOLOGY`: what was asked of the scheduler.
    pub topology: Vector,
    /// `TEMPLATE/NUMA_NODE`: what the scheduler chose.
    pub numa: Vec<Vector>,
    /// `USER_TEMPLATE/LXC_SWAP`, as the LXC driver has it: MB of swap. Editable by the tenant.
    pub lxc_swap: Option<String>,
    /// `TEMPLATE/RAW` is there.
    pub raw: bool,
    /// `USER_TEMPLATE/OCI`: what the guest runs. Editable by the tenant at any time.
    pub oci: Option<Vector>,
    /// `DS_ID` of the last history record: the system datastore.
    pub ds_id: Option<u32>,
}

/// What a disk is, as far as a driver cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskKind {
    /// A copy of an image or the image itself.
    Image,
    /// An empty disk that lives with the VM.
    Volatile,
    /// Swap space.
    Swap,
    /// A CD-ROM image.
    Cdrom,
    /// A shared directory (OpenNebula 7.2 and later).
    Filesystem,
}

/// A `DISK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// `DISK_ID`; its file is `disk.<id>` in the VM's directory. Ids can have gaps.
    pub id: u32,
    /// From `TYPE`.
    pub kind: DiskKind,
    /// `IMAGE`: the image's name.
    pub image: Option<String>,
    /// `READONLY` without `CLONE`: writing to it would change the image.
    pub shared_read_only: bool,
    /// `READONLY`: a copy too is only read.
    pub read_only: bool,
    /// `SIZE`: MB.
    pub size: Option<String>,
    /// `SOURCE` of its image, which oned writes; a user's own counts for nothing.
    pub source: Option<String>,
    /// `DRIVER`, else `FORMAT`: how its content is kept.
    pub format: Option<String>,
    /// `FS`: what a volatile disk is formatted with.
    pub filesystem: Option<String>,
    /// `TARGET`: a device's name, or a path.
    pub target: Option<String>,
    /// `OCI_MOUNT`: where it is mounted; `none` is nowhere.
    pub oci_mount: Option<String>,
    /// The keys with `_SEC` in their name: limits on its traffic.
    pub throttle: Vector,
}

/// A `NIC`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// `NIC_ID`.
    pub id: u32,
    /// `MAC`.
    pub mac: Option<String>,
    /// `TARGET`: name of the host's end.
    pub target: Option<String>,
    /// `BRIDGE`.
    pub bridge: Option<String>,
    /// `BRIDGE_TYPE`.
    pub bridge_type: Option<String>,
    /// `MTU`.
    pub mtu: Option<String>,
    /// `NETWORK_MASK`, which oned passes on only if its admin says so.
    pub network_mask: Option<String>,
    /// The keys `INBOUND_…` and `OUTBOUND_…`: bounds of its traffic.
    pub bandwidth: Vector,
    /// `ATTACH`: the call is about this one, which comes or goes.
    pub moving: bool,
}

impl fmt::Debug for DriverVm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = |vector: &Option<Vector>| -> Option<Vec<String>> {
            vector.as_ref().map(|keys| keys.keys().cloned().collect())
        };
        f.debug_struct("DriverVm")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("deploy_id", &self.deploy_id)
            .field("cpu", &self.cpu)
            .field("vcpu", &self.vcpu)
            .field("memory", &self.memory)
            .field("os", &self.os)
            .field("disks", &self.disks)
            .field("nics", &self.nics)
            .field("pci", &self.pci)
            .field("context", &keys(&self.context))
            .field("graphics", &keys(&self.graphics))
            .field("topology", &self.topology)
            .field("numa", &self.numa)
            .field("lxc_swap", &self.lxc_swap)
            .field("raw", &self.raw)
            .field("oci", &keys(&self.oci))
            .field("ds_id", &self.ds_id)
            .finish()
    }
}

/// Reads either document.
///
/// # Errors
/// Not XML within bounds, another root, or a VM without or with a doubtful id.
pub fn parse(bytes: &[u8]) -> Result<DriverVm, Error> {
    let root = xml::read(bytes)?;
    DriverVm::from_element(vm_element(&root)?)
}

/// The VM's id alone; `None` if the document names no VM or no id in it.
pub(crate) fn parse_id(bytes: &[u8]) -> Result<Option<OneId>, Error> {
    let root = xml::read(bytes)?;
    let vm = vm_element(&root)?;
    vm.value("ID")?.map(str::parse).transpose()
}

fn vm_element(root: &Element) -> Result<&Element, Error> {
    match root.name.as_str() {
        "VM" => Ok(root),
        "VMM_DRIVER_ACTION_DATA" => {
            root.only("VM")?.ok_or_else(|| invalid("VMM_DRIVER_ACTION_DATA holds no VM"))
        }
        other => Err(invalid(format!(
            "the XML's root is {:?}, not VM or VMM_DRIVER_ACTION_DATA",
            clip(other)
        ))),
    }
}

impl DriverVm {
    fn from_element(vm: &Element) -> Result<Self, Error> {
        let empty = Element::default();
        let id = vm.value("ID")?.ok_or_else(|| invalid("VM has no ID"))?;
        let template = vm.only("TEMPLATE")?;
        let template = template.ok_or_else(|| invalid("VM has no TEMPLATE"))?;
        let user = vm.only("USER_TEMPLATE")?.unwrap_or(&empty);
        Ok(Self {
            id: id.parse().map_err(|e: Error| e.context("VM/ID"))?,
            name: owned(vm, "NAME")?.unwrap_or_default(),
            deploy_id: owned(vm, "DEPLOY_ID")?,
            cpu: owned(template, "CPU")?,
            vcpu: owned(template, "VCPU")?,
            memory: owned(template, "MEMORY")?,
            os: optional_vector(template, "OS")?.unwrap_or_default(),
            disks: unique(template.all("DISK").map(disk), "DISK_ID", |disk| disk.id)?,
            nics: unique(template.all("NIC").map(nic), "NIC_ID", |nic| nic.id)?,
            pci: template.all("PCI").map(vector).collect::<Result<_, _>>()?,
            context: optional_vector(template, "CONTEXT")?,
            graphics: optional_vector(template, "GRAPHICS")?,
            topology: optional_vector(template, "TOPOLOGY")?.unwrap_or_default(),
            numa: template.all("NUMA_NODE").map(vector).collect::<Result<_, _>>()?,
            lxc_swap: owned(user, "LXC_SWAP")?,
            raw: template.all("RAW").next().is_some(),
            oci: oci(user)?,
            ds_id: datastore(vm)?,
        })
    }
}

fn owned(parent: &Element, key: &str) -> Result<Option<String>, Error> {
    Ok(parent.value(key)?.map(str::to_owned))
}

fn optional_vector(parent: &Element, key: &str) -> Result<Option<Vector>, Error> {
    parent.only(key)?.map(vector).transpose()
}

fn vector(element: &Element) -> Result<Vector, Error> {
    let mut keys = BTreeSet::new();
    let mut vector = Vector::new();
    for child in &element.children {
        if !keys.insert(&child.name) {
            return Err(invalid(format!(
                "{} has more than one {:?}",
                clip(&element.name),
                clip(&child.name)
            )));
        }
        if !child.text.is_empty() {
            vector.insert(child.name.clone(), child.text.clone());
        }
    }
    Ok(vector)
}

fn unique<T>(
    items: impl Iterator<Item = Result<T, Error>>,
    what: &str,
    id: impl Fn(&T) -> u32,
) -> Result<Vec<T>, Error> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for item in items {
        let item = item?;
        if !seen.insert(id(&item)) {
            return Err(invalid(format!("{what} {} occurs twice", id(&item))));
        }
        all.push(item);
    }
    Ok(all)
}

fn number(vector: &Vector, what: &str, key: &str) -> Result<u32, Error> {
    let text = vector.get(key);
    let text = text.ok_or_else(|| invalid(format!("a {what} has no {key}")))?;
    decimal(text).ok_or_else(|| invalid(format!("{key} is {:?}, not a number", clip(text))))
}

pub(crate) fn is_yes(vector: &Vector, key: &str) -> bool {
    vector.get(key).is_some_and(|value| value.eq_ignore_ascii_case("yes"))
}

fn disk(element: &Element) -> Result<Disk, Error> {
    let mut keys = vector(element)?;
    let kind = keys.get("TYPE").map(|kind| kind.to_ascii_uppercase());
    // oned writes the storage types in capitals, `fs` and `swap` as the user spelt them.
    let kind = match kind.as_deref() {
        Some("SWAP") => DiskKind::Swap,
        Some("FS") => DiskKind::Volatile,
        Some("FILESYSTEM") => DiskKind::Filesystem,
        Some(cdrom) if cdrom.ends_with("CDROM") => DiskKind::Cdrom,
        _ => DiskKind::Image,
    };
    Ok(Disk {
        id: number(&keys, "DISK", "DISK_ID")?,
        kind,
        shared_read_only: is_yes(&keys, "READONLY") && !is_yes(&keys, "CLONE"),
        read_only: is_yes(&keys, "READONLY"),
        image: keys.remove("IMAGE"),
        format: keys.remove("DRIVER").or_else(|| keys.remove("FORMAT")),
        filesystem: keys.remove("FS"),
        target: keys.remove("TARGET"),
        oci_mount: keys.remove("OCI_MOUNT"),
        size: keys.remove("SIZE"),
        source: keys.remove("SOURCE").filter(|_| keys.contains_key("IMAGE_ID")),
        throttle: keys.into_iter().filter(|(key, _)| key.contains("_SEC")).collect(),
    })
}

fn nic(element: &Element) -> Result<Nic, Error> {
    let mut keys = vector(element)?;
    let bandwidth = |key: &str| key.starts_with("INBOUND_") || key.starts_with("OUTBOUND_");
    Ok(Nic {
        id: number(&keys, "NIC", "NIC_ID")?,
        moving: is_yes(&keys, "ATTACH"),
        mac: keys.remove("MAC"),
        target: keys.remove("TARGET"),
        bridge: keys.remove("BRIDGE"),
        bridge_type: keys.remove("BRIDGE_TYPE"),
        mtu: keys.remove("MTU"),
        network_mask: keys.remove("NETWORK_MASK"),
        bandwidth: keys.into_iter().filter(|(key, _)| bandwidth(key)).collect(),
    })
}

fn oci(user: &Element) -> Result<Option<Vector>, Error> {
    let Some(element) = user.only("OCI")? else {
        return Ok(None);
    };
    if element.children.is_empty() && !element.text.trim().is_empty() {
        return Err(invalid("the template's OCI is a single value")
            .hint("write it as a vector: OCI=[ENTRYPOINT=\"…\", CMD=\"…\"]"));
    }
    vector(element).map(Some)
}

fn datastore(vm: &Element) -> Result<Option<u32>, Error> {
    let Some(records) = vm.only("HISTORY_RECORDS")? else {
        return Ok(None);
    };
    // Drivers get the last record alone; of several the last is the current one.
    let Some(last) = records.all("HISTORY").last() else {
        return Ok(None);
    };
    Ok(last.value("DS_ID")?.and_then(decimal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_documents_give_the_same_vm() {
        let vm = "<VM><ID>7</ID><NAME><![CDATA[a&b]]></NAME><DEPLOY_ID/>\
                  <TEMPLATE><CPU><![CDATA[1]]></CPU><NEW><X/></NEW></TEMPLATE></VM>";
        let bare = parse(vm.as_bytes()).unwrap();
        let action = format!(
            "<VMM_DRIVER_ACTION_DATA><HOST>h</HOST><DEPLOY_ID>one-7</DEPLOY_ID>{vm}\
             <DATASTORE><ID>0</ID></DATASTORE></VMM_DRIVER_ACTION_DATA>\n"
        );
        assert_eq!(parse(action.as_bytes()).unwrap(), bare);
        assert_eq!(bare.name, "a&b");
        assert_eq!(bare.deploy_id, None);
        assert_eq!(bare.cpu.as_deref(), Some("1"));
        assert_eq!(bare.context, None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let vm = "<VM><ID>7</ID><TEMPLATE><CONTEXT><PASSWORD>hush</PASSWORD></CONTEXT>\
                  <GRAPHICS><PASSWD>hush</PASSWD></GRAPHICS></TEMPLATE>\
                  <USER_TEMPLATE><OCI><ENV>KEY=hush</ENV></OCI></USER_TEMPLATE></VM>";
        let shown = format!("{:?}", parse(vm.as_bytes()).unwrap());
        assert!(!shown.contains("hush") && shown.contains("PASSWORD"), "{shown}");
    }

    #[test]
    fn doubtful_documents_are_refused() {
        for (body, want) in [
            ("<A/>", "root is \"A\""),
            ("<VMM_DRIVER_ACTION_DATA/>", "holds no VM"),
            ("<VM/>", "VM has no ID"),
            ("<VM><ID>7</ID></VM>", "no TEMPLATE"),
            ("<VM><ID>7</ID><ID>7</ID><TEMPLATE/></VM>", "more than one VM/ID"),
            ("<VM><ID>-1</ID><TEMPLATE/></VM>", "not the number of a VM"),
            ("<VM><ID>7\n</ID><TEMPLATE/></VM>", "not the number of a VM"),
            ("<VM><ID>7</ID><TEMPLATE><DISK/></TEMPLATE></VM>", "no DISK_ID"),
            (
                "<VM><ID>7</ID><TEMPLATE><DISK><DISK_ID>-1</DISK_ID></DISK></TEMPLATE></VM>",
                "DISK_ID is \"-1\"",
            ),
            (
                "<VM><ID>7</ID><TEMPLATE><DISK><DISK_ID>1</DISK_ID></DISK>\
                 <DISK><DISK_ID>1</DISK_ID></DISK></TEMPLATE></VM>",
                "DISK_ID 1 occurs twice",
            ),
            (
                "<VM><ID>7</ID><TEMPLATE/><USER_TEMPLATE><OCI>x</OCI></USER_TEMPLATE></VM>",
                "single value",
            ),
            (
                "<VMM_DRIVER_ACTION_DATA><VM><ID>7</ID></VM><VM><ID>8</ID></VM>\
                 </VMM_DRIVER_ACTION_DATA>",
                "more than one VMM_DRIVER_ACTION_DATA/VM",
            ),
        ] {
            let error = parse(body.as_bytes()).unwrap_err();
            assert!(error.message.contains(want), "{body}: {error}");
        }
    }
}
