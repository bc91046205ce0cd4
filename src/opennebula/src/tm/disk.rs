//! What oned knows of a VM's disks: the answer of `onevm show -x`, which transfer scripts must ask for, because their
//! arguments have neither sizes nor formats.

use ocivisor_core::error::Error;

use super::megabytes;
use crate::source::ImageSource;
use crate::xml::{self, Element};
use crate::{decimal, invalid};

/// A disk as oned has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KnownDisk {
    /// `SIZE`, in bytes: what it shall have.
    pub size: Option<u64>,
    /// `ORIGINAL_SIZE`, in bytes: what its image has.
    pub original_size: Option<u64>,
    /// `DRIVER`, else `FORMAT`: `raw`, `qcow2`, `ocivisor`, …
    pub format: Option<String>,
    /// `FS` of a volatile disk.
    pub fs: Option<String>,
    /// `SOURCE` of its image, if it has one of ours.
    pub source: Option<ImageSource>,
}

/// The disk of that number.
///
/// # Errors
/// Not XML within bounds, no VM, no such disk, or a size that is none.
pub fn known_disk(answer: &[u8], disk: u32) -> Result<KnownDisk, Error> {
    let root = xml::read(answer)?;
    let found = root.only("TEMPLATE")?.and_then(|template| {
        let number = |element: &&Element| {
            let id = element.value("DISK_ID").ok().flatten().and_then(decimal);
            id == Some(disk)
        };
        template.all("DISK").find(number)
    });
    let found = found.ok_or_else(|| invalid(format!("oned knows no disk {disk} of the VM")))?;
    let size = |name| found.value(name)?.map(megabytes).transpose();
    let text = |name| Ok::<_, Error>(found.value(name)?.map(str::to_ascii_lowercase));
    Ok(KnownDisk {
        size: size("SIZE")?,
        original_size: size("ORIGINAL_SIZE")?,
        format: text("DRIVER")?.or(text("FORMAT")?),
        fs: text("FS")?,
        source: found.value("SOURCE")?.and_then(|source| source.parse().ok()),
    })
}

/// Bytes that the disks of a VM may have together, and its memory, in case that was saved beside them.
///
/// # Errors
/// Not XML within bounds, no VM, or a size that is none.
pub fn sizes(answer: &[u8]) -> Result<u64, Error> {
    let root = xml::read(answer)?;
    let Some(template) = root.only("TEMPLATE")? else {
        return Err(invalid("oned knows no such VM".to_owned()));
    };
    let mut sum = template.value("MEMORY")?.map(megabytes).transpose()?.unwrap_or_default();
    for disk in template.all("DISK") {
        let size =
            |name| Ok::<_, Error>(disk.value(name)?.map(megabytes).transpose()?.unwrap_or(0));
        sum = sum.saturating_add(size("SIZE")?.max(size("ORIGINAL_SIZE")?));
    }
    Ok(sum)
}

/// `STATE` of a VM that is gone.
const DONE: u32 = 6;
/// `STATE` of one that something is done with.
const ACTIVE: u32 = 3;
/// `LCM_STATE` in which all that a VM had is cleared away: after its end, for a new try, for good.
const CLEARED: [u32; 3] = [11, 15, 23];
/// `LCM_STATE` in which a disk of an undeployed VM is made larger.
const RESIZED_UNDEPLOYED: u32 = 64;

/// Whether that VM does not run any more by what oned knows, and will not unless it is made anew.
///
/// # Errors
/// Not XML within bounds, another VM, or no state.
pub fn is_over(answer: &[u8], vm: u32) -> Result<bool, Error> {
    let (state, lcm) = state(answer, vm)?;
    Ok(state == DONE || state == ACTIVE && CLEARED.contains(&lcm))
}

/// Whether a disk of that VM is being made larger that waits on the front-end, since the VM is undeployed. oned says where
/// the disk was before that.
///
/// # Errors
/// As [`is_over`].
pub fn is_away(answer: &[u8], vm: u32) -> Result<bool, Error> {
    Ok(state(answer, vm)? == (ACTIVE, RESIZED_UNDEPLOYED))
}

/// `STATE` and `LCM_STATE`.
fn state(answer: &[u8], vm: u32) -> Result<(u32, u32), Error> {
    let root = xml::read(answer)?;
    let number = |name| {
        let found = root.value(name)?.and_then(decimal);
        found.ok_or_else(|| invalid(format!("oned does not say the VM's {name}")))
    };
    if number("ID")? != vm {
        return Err(invalid(format!("oned tells of another VM than {vm}")));
    }
    Ok((number("STATE")?, number("LCM_STATE")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_over_when_all_of_it_is_cleared_away_and_not_before() {
        let told = |state: &str, lcm: &str| {
            let xml =
                format!("<VM><ID>7</ID><STATE>{state}</STATE><LCM_STATE>{lcm}</LCM_STATE></VM>");
            is_over(xml.as_bytes(), 7)
        };
        for (state, lcm) in [("6", "0"), ("3", "11"), ("3", "15"), ("3", "23")] {
            assert!(told(state, lcm).unwrap(), "{state} {lcm}");
        }
        // Rests, boots, runs, failed; a number of another state.
        for (state, lcm) in
            [("8", "0"), ("3", "2"), ("3", "3"), ("3", "36"), ("3", "33"), ("1", "11")]
        {
            assert!(!told(state, lcm).unwrap(), "{state} {lcm}");
        }
        assert!(told("", "23").is_err() && told("3", "x").is_err());
        let other = b"<VM><ID>8</ID><STATE>6</STATE><LCM_STATE>0</LCM_STATE></VM>";
        assert!(is_over(other, 7).is_err());
        assert!(is_over(b"", 7).is_err());
    }

    #[test]
    fn a_disk_is_away_while_that_of_an_undeployed_vm_is_made_larger() {
        for (state, lcm, away) in
            [("3", "64", true), ("3", "63", false), ("3", "62", false), ("9", "64", false)]
        {
            let xml =
                format!("<VM><ID>7</ID><STATE>{state}</STATE><LCM_STATE>{lcm}</LCM_STATE></VM>");
            assert_eq!(is_away(xml.as_bytes(), 7).unwrap(), away, "{state} {lcm}");
            assert!(is_away(xml.as_bytes(), 8).is_err());
        }
    }

    #[test]
    fn sizes_and_formats_are_read_of_the_disk_asked_for() {
        let xml = b"<VM><TEMPLATE><DISK><DISK_ID>0</DISK_ID><SIZE>1</SIZE></DISK><DISK><DISK_ID>2</DISK_ID>\
            <SIZE><![CDATA[512]]></SIZE><ORIGINAL_SIZE>200</ORIGINAL_SIZE><FORMAT>QCOW2</FORMAT><FS/>\
            <SOURCE>ocivisor:7</SOURCE></DISK><MEMORY>64</MEMORY></TEMPLATE></VM>";
        assert_eq!(sizes(xml).unwrap(), (1 + 512 + 64) << 20);
        let disk = known_disk(xml, 2).unwrap();
        let mb = |n: u64| Some(n << 20);
        assert_eq!((disk.size, disk.original_size), (mb(512), mb(200)));
        assert_eq!((disk.format.as_deref(), disk.fs), (Some("qcow2"), None));
        assert_eq!(disk.source.unwrap().to_string(), "ocivisor:7");
        assert!(known_disk(xml, 1).is_err());
        assert!(
            known_disk(
                b"<VM><TEMPLATE><DISK><DISK_ID>0</DISK_ID><SIZE>-1</SIZE></DISK></TEMPLATE></VM>",
                0
            )
            .is_err()
        );
        assert!(known_disk(b"", 0).is_err());
    }
}
