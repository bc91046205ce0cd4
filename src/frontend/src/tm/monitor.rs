//! How full a shared system datastore is, as the front-end sees it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::DatastorePlace;
use ocivisor_opennebula::xml;
use rustix::fs::fstatvfs;

use crate::files::{Dir, failed};

/// The answer to a message of the datastore's driver process.
///
/// # Errors
/// The message is none, or the datastore cannot be seen.
pub(super) fn shared(stdin: &[u8]) -> Result<String> {
    let invalid = |what: &str| Error::new(ErrorKind::Invalid, what);
    let text: Vec<u8> = stdin.iter().copied().filter(|c| !c.is_ascii_whitespace()).collect();
    let message = STANDARD.decode(text).map_err(|_| invalid("standard input is no base64"))?;
    let root = xml::read(&message)?;
    let base = root.only("DATASTORE")?.map(|ds| ds.value("BASE_PATH")).transpose()?.flatten();
    let place: DatastorePlace = base.ok_or_else(|| invalid("no BASE_PATH"))?.parse()?;
    let dir = Dir::ensure(&place.path())?;
    let found = fstatvfs(&dir).map_err(|e| failed("look at", dir.path(), e))?;
    let mb = |blocks: u64| blocks.saturating_mul(found.f_frsize) >> 20;
    let (used, total) = (found.f_blocks.saturating_sub(found.f_bfree), found.f_blocks);
    Ok(format!("USED_MB={}\nTOTAL_MB={}\nFREE_MB={}\n", mb(used), mb(total), mb(found.f_bavail)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_message_is_answered_with_three_lines() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("103");
        let xml = format!(
            "<DS_DRIVER_ACTION_DATA><DATASTORE><ID>103</ID><BASE_PATH><![CDATA[{}]]></BASE_PATH>\
             </DATASTORE><MONITOR_VM_DISKS>1</MONITOR_VM_DISKS></DS_DRIVER_ACTION_DATA>",
            base.display().to_string().replace("/103", "//103")
        );
        let answer = shared(format!("{}\n", STANDARD.encode(xml)).as_bytes()).unwrap();
        let number = |line: Option<&str>, key: &str| -> u64 {
            line.and_then(|line| line.strip_prefix(key)).unwrap().parse().unwrap()
        };
        let mut lines = answer.lines();
        let used = number(lines.next(), "USED_MB=");
        let total = number(lines.next(), "TOTAL_MB=");
        let free = number(lines.next(), "FREE_MB=");
        assert!(total > 0 && used <= total && free <= total);
        assert_eq!(lines.next(), None);
        for bad in ["", "x y", "PHg+", &STANDARD.encode("<A><DATASTORE/></A>")] {
            assert!(shared(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
