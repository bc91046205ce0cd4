//! Who on this host looks into disks of guests: udev, and LVM whenever somebody asks it for volumes.
//!
//! A guest makes of its disk what it likes, a volume group by the name of the host's own too. The loop devices behind
//! such disks have numbers of their own, 50000 to 59999, so that both can be told to leave them alone.

use std::fs;
use std::path::Path;

use super::checks::{Check, Status, bad, ok};
use super::facts::text;

/// What of udev and LVM is here, below a root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Onlookers {
    /// Whether udev has our rule; `None` if it does not run.
    pub udev: Option<bool>,
    /// Whether LVM's configuration leaves our devices out; `None` if it is not installed.
    pub lvm: Option<bool>,
}

/// Where udev looks for rules, udev(7).
const RULES: [&str; 5] = [
    "etc/udev/rules.d",
    "run/udev/rules.d",
    "usr/local/lib/udev/rules.d",
    "usr/lib/udev/rules.d",
    "lib/udev/rules.d",
];

impl Onlookers {
    /// Looks for them.
    #[must_use]
    pub fn look(root: &Path) -> Self {
        let there = |path: &str| root.join(path).exists();
        // The first counts, and one that is empty, or a link to /dev/null, takes the place of the others.
        let place = |dir: &str| fs::metadata(root.join(dir).join("60-ocivisor.rules")).ok();
        let rule = RULES.iter().find_map(|dir| place(dir));
        let rule = rule.is_some_and(|meta| meta.is_file() && meta.len() > 0);
        let lvm = ["sbin/lvm", "usr/sbin/lvm"].iter().any(|path| there(path));
        let config = ["etc/lvm/lvm.conf", "etc/lvm/lvmlocal.conf"]
            .map(|path| text(root.join(path)).unwrap_or_default());
        let listed = there("etc/lvm/devices/system.devices");
        Self {
            udev: there("run/udev/control").then_some(rule),
            lvm: lvm.then(|| leaves_out(&config.concat(), listed)),
        }
    }
}

/// Whether LVM with this configuration does not look at our devices, lvm.conf(5): the last assignment counts, and of a
/// filter the first pattern that fits. A list of devices, which newer ones keep, leaves out all that is not in it.
fn leaves_out(config: &str, listed: bool) -> bool {
    let value = |key: &str| {
        let of_key = |line: &str| {
            let (name, value) = line.trim().split_once('=')?;
            (name.trim() == key).then(|| value.trim().to_owned())
        };
        config.lines().filter_map(of_key).next_back()
    };
    if listed && value("use_devicesfile").is_none_or(|used| used != "0") {
        return true;
    }
    let filter = value("global_filter").or_else(|| value("filter")).unwrap_or_default();
    // Patterns are regular expressions; those that people write for this name loop devices, or everything.
    let fits = |pattern: &&str| pattern.contains("loop") || pattern.contains(".*");
    let mut patterns = filter.split('"').skip(1).step_by(2);
    patterns.find(fits).is_some_and(|pattern| pattern.starts_with('r'))
}

pub(super) fn checks(found: Onlookers) -> Vec<Check> {
    let mut checks = Vec::new();
    match found.udev {
        Some(true) => checks.push(ok("udev", "leaves disks of guests alone")),
        Some(false) => checks.push(bad(
            Status::Warn,
            "udev",
            "no rule keeps it off disks of guests: each start of one holds up `udevadm settle` for minutes",
            "`ocivisor one install --host`, or copy src/daemon/udev/60-ocivisor.rules to /etc/udev/rules.d",
        )),
        None => {}
    }
    match found.lvm {
        Some(true) => checks.push(ok("LVM", "leaves disks of guests alone")),
        Some(false) => checks.push(bad(
            Status::Warn,
            "LVM",
            "takes volume groups in disks of guests for the host's",
            r#"in /etc/lvm/lvmlocal.conf: devices { global_filter = [ "r|^/dev/loop5[0-9][0-9][0-9][0-9]|" ] }"#,
        )),
        None => {}
    }
    checks
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests fill directories")]

    use super::*;

    #[test]
    fn a_filter_of_lvm_leaves_loop_devices_out_or_not() {
        for (config, listed, want) in [
            ("", false, false),
            ("# global_filter = [ \"r|loop|\" ]", false, false),
            (
                "devices {\n\tglobal_filter = [ \"r|^/dev/loop5[0-9][0-9][0-9][0-9]|\" ]\n}",
                false,
                true,
            ),
            ("filter=[\"a|^/dev/sda|\",\"r|.*|\"]", false, true),
            ("global_filter = [ \"a|.*|\" ]", false, false),
            ("global_filter = [ \"a|loop|\", \"r|.*|\" ]", false, false),
            ("global_filter = [ \"r|loop|\" ]\nglobal_filter = [ \"a|.*|\" ]", false, false),
            ("", true, true),
            ("use_devicesfile = 0", true, false),
        ] {
            assert_eq!(leaves_out(config, listed), want, "{config}");
        }
    }

    #[test]
    fn a_host_without_them_is_not_warned() {
        let root = tempfile::tempdir().unwrap();
        let found = || Onlookers::look(root.path());
        assert_eq!(found(), Onlookers { udev: None, lvm: None });
        assert_eq!(checks(found()), []);
        for dir in ["run/udev", "usr/sbin", "etc/udev/rules.d", "lib/udev/rules.d", "etc/lvm"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let put = |path: &str, text: &str| fs::write(root.path().join(path), text).unwrap();
        put("run/udev/control", "");
        put("usr/sbin/lvm", "");
        let states = |found| checks(found).iter().map(|c| c.status).collect::<Vec<_>>();
        assert_eq!(states(found()), [Status::Warn, Status::Warn]);
        put("lib/udev/rules.d/60-ocivisor.rules", "# ours");
        put("etc/lvm/lvmlocal.conf", "global_filter = [ \"r|loop|\" ]");
        assert_eq!(states(found()), [Status::Ok, Status::Ok]);
        // So an admin takes a package's rule away.
        put("etc/udev/rules.d/60-ocivisor.rules", "");
        assert_eq!(states(found()), [Status::Warn, Status::Ok]);
        put("etc/udev/rules.d/60-ocivisor.rules", "# ours");
        assert_eq!(states(found()), [Status::Ok, Status::Ok]);
    }
}
