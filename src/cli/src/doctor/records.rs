//! Records of VMs: can all be read? The daemon leaves alone what it cannot read, and it reads them when it starts.

use std::fs;
use std::io::Read;
use std::path::Path;

use ocivisor_schema::codec::decode;

use super::checks::{Check, Status, bad, ok};

/// Most bytes of a record.
const MOST: u64 = 4 << 20;

/// What was found in the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Records {
    /// How many there are.
    pub all: usize,
    /// VMs whose records cannot be read.
    pub damaged: Vec<String>,
}

impl Records {
    /// Reads all; `None` if we may not, or there are none.
    #[must_use]
    pub fn read(state_dir: &Path) -> Option<Self> {
        let mut found = Self::default();
        for entry in fs::read_dir(state_dir.join("vms")).ok()?.flatten() {
            // A directory without a record is one that a crash left.
            let Ok(file) = fs::File::open(entry.path().join("vm.json")) else { continue };
            let (name, mut bytes) = (entry.file_name(), Vec::new());
            let whole = file.take(MOST).read_to_end(&mut bytes).is_ok();
            let record = decode(&bytes).ok().filter(|_| whole);
            found.all += 1;
            if record.is_none_or(|record| name != *record.id().as_str()) {
                found.damaged.push(name.to_string_lossy().into_owned());
            }
        }
        found.damaged.sort();
        Some(found)
    }
}

pub(super) fn check(found: &Records) -> Check {
    const NAME: &str = "records of VMs";
    if found.damaged.is_empty() {
        return ok(NAME, format!("{} can be read", found.all));
    }
    bad(
        Status::Warn,
        NAME,
        format!("damaged: {}", found.damaged.join(" ")),
        "`ocivisor why VM` tells what can be done; what was mended is read when ocivisord starts",
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests fill directories")]

    use super::*;

    #[test]
    fn a_record_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Records::read(dir.path()), None);
        for (vm, text) in [("one-2", Some("{")), ("one-1", Some("")), ("one-3", None)] {
            fs::create_dir_all(dir.path().join("vms").join(vm)).unwrap();
            if let Some(text) = text {
                fs::write(dir.path().join("vms").join(vm).join("vm.json"), text).unwrap();
            }
        }
        let found = Records::read(dir.path()).unwrap();
        assert_eq!(found, Records { all: 2, damaged: vec!["one-1".into(), "one-2".into()] });
        assert_eq!(
            (check(&found).status, check(&found).detail.as_str()),
            (Status::Warn, "damaged: one-1 one-2")
        );
        assert_eq!(check(&Records::default()).status, Status::Ok);
    }
}
