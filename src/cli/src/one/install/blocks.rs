//! What OpenNebula's configuration must say, and what of it is missing. Pure.
//!
//! The files are the admin's: we tell what to write and never write it. What the keys mean is in OpenNebula's
//! reference of `oned.conf`; why ours have their values, in `docs/opennebula/install.md`.

use std::collections::BTreeMap;

use super::conf::{Conf, lists, with_listed};

/// Name of our directories below `remotes`, and of the drivers where no alias is wanted.
pub const NAME: &str = "ocivisor";

/// Attributes of images that virtual machines inherit.
pub const INHERITED: [&str; 2] = ["OCI_DIGEST", "OCI_CONFIG"];

/// One thing that a configuration file must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Path of the file, below the root.
    pub file: &'static str,
    /// What, in words.
    pub what: String,
    /// What to write there; none if it is there.
    pub write: Option<String>,
}

/// Paths of the files.
pub const ONED: &str = "etc/one/oned.conf";
/// See [`ONED`].
pub const MONITORD: &str = "etc/one/monitord.conf";
/// See [`ONED`].
pub const EXECRC: &str = "etc/one/vmm_exec/vmm_execrc";

/// All of it, for drivers registered under `name`.
pub fn wanted(oned: &Conf, monitord: &Conf, execrc: &str, name: &str) -> Vec<Wanted> {
    let mut all = vec![
        block(oned, ONED, "VM_MAD", name, &hypervisor(name)),
        listed(oned, "TM_MAD", &["-d"]),
        block(oned, ONED, "TM_MAD_CONF", NAME, TM),
        listed(oned, "DATASTORE_MAD", &["-d", "-s"]),
        block(oned, ONED, "DS_MAD_CONF", NAME, DS),
        listed(oned, "MARKET_MAD", &["-m"]),
        block(oned, ONED, "MARKET_MAD_CONF", NAME, MARKET),
    ];
    for attribute in INHERITED {
        let write = format!("INHERIT_IMAGE_ATTR = \"{attribute}\"");
        let said = oned.says("INHERIT_IMAGE_ATTR", attribute);
        all.push(Wanted { file: ONED, what: write.clone(), write: (!said).then_some(write) });
        // Users can edit attributes of their images; these are the driver's.
        let write = format!("IMAGE_RESTRICTED_ATTR = \"{attribute}\"");
        let said = oned.says("IMAGE_RESTRICTED_ATTR", attribute);
        all.push(Wanted { file: ONED, what: write.clone(), write: (!said).then_some(write) });
    }
    all.push(block(monitord, MONITORD, "IM_MAD", NAME, IM));
    all.push(live_snapshots(execrc, name));
    all
}

const TM: &str = r#"TM_MAD_CONF = [
    NAME = "ocivisor", SHARED = "NO", LN_TARGET = "SYSTEM", CLONE_TARGET = "SYSTEM",
    DS_MIGRATE = "YES", DS_LIVE_MIGRATE = "NO", DS_MIGRATE_SNAP = "NO", ALLOW_ORPHANS = "YES",
    TM_MAD_SYSTEM = "ssh,shared,local",
    LN_TARGET_SSH = "SYSTEM", CLONE_TARGET_SSH = "SYSTEM", DISK_TYPE_SSH = "FILE",
    LN_TARGET_SHARED = "SYSTEM", CLONE_TARGET_SHARED = "SYSTEM", DISK_TYPE_SHARED = "FILE",
    LN_TARGET_LOCAL = "SYSTEM", CLONE_TARGET_LOCAL = "SYSTEM", DISK_TYPE_LOCAL = "FILE"
]"#;

const DS: &str = r#"DS_MAD_CONF = [
    NAME = "ocivisor", REQUIRED_ATTRS = "", PERSISTENT_ONLY = "NO", MARKETPLACE_ACTIONS = "export"
]"#;

const MARKET: &str = r#"MARKET_MAD_CONF = [
    NAME = "ocivisor", SUNSTONE_NAME = "OCI registry", REQUIRED_ATTRS = "", APP_ACTIONS = "monitor", PUBLIC = "yes"
]"#;

const IM: &str = r#"IM_MAD = [
    NAME = "ocivisor", SUNSTONE_NAME = "OCI container", EXECUTABLE = "one_im_ssh",
    ARGUMENTS = "-r 3 -t 15 -w 90 ocivisor", THREADS = 0
]"#;

fn hypervisor(name: &str) -> String {
    let shown =
        if name == NAME { "OCI container".to_owned() } else { format!("OCI container ({name})") };
    format!(
        r#"VM_MAD = [
    NAME = "{name}", SUNSTONE_NAME = "{shown}", EXECUTABLE = "one_vmm_exec",
    ARGUMENTS = "-t 15 -r 0 -p {NAME}", TYPE = "xml", KEEP_SNAPSHOTS = "yes",
    LIVE_RESIZE = "yes", SUPPORT_SHAREABLE = "no", COLD_NIC_ATTACH = "no"
]"#
    )
}

/// The one block of that key and name. Two of one name keep oned from starting, so an alias takes the place of the
/// block that has the name.
fn block(conf: &Conf, file: &'static str, key: &str, name: &str, text: &str) -> Wanted {
    let ours = Conf::parse(text).unwrap_or_default();
    let found = conf.named(key, name);
    let same = found.first().is_some_and(|found| {
        ours.blocks(key).all(|ours| ours.iter().all(|(key, value)| agree(found, key, value)))
    });
    let write = match found.len() {
        1 if same => None,
        0 => Some(text.to_owned()),
        1 => Some(format!("# in the place of the block {key} \"{name}\"\n{text}")),
        _ => Some(format!("# in the place of all blocks {key} \"{name}\"\n{text}")),
    };
    Wanted { file, what: format!("{key} {name}"), write }
}

/// Names for people, and options beside the driver's directory, are the admin's.
fn agree(found: &BTreeMap<String, String>, key: &str, value: &str) -> bool {
    let said = found.get(key).map_or("", String::as_str);
    match key {
        "SUNSTONE_NAME" => true,
        "ARGUMENTS" => said.split_whitespace().any(|word| word == NAME),
        _ => said.eq_ignore_ascii_case(value),
    }
}

/// The one block of that key with our name in its lists: the admin's own line, changed.
fn listed(oned: &Conf, key: &str, options: &[&str]) -> Wanted {
    let what = format!("{key} {} {NAME}", options.join(" "));
    let arguments = oned.blocks(key).find_map(|block| block.get("ARGUMENTS"));
    let there = |arguments: &&String| options.iter().all(|option| lists(arguments, option, NAME));
    let write = match arguments {
        Some(arguments) if there(&arguments) => None,
        Some(arguments) => {
            let more = |text: String, option: &&str| with_listed(&text, option, NAME);
            let changed = options.iter().fold(arguments.clone(), more);
            Some(format!("# in the block {key}\nARGUMENTS = \"{changed}\""))
        }
        None => Some(format!(
            "# there is no block {key}: {NAME} belongs behind its {}",
            options.join(" and ")
        )),
    };
    Wanted { file: ONED, what, write }
}

/// A file of sh, in which a later line may take up an earlier one.
fn live_snapshots(execrc: &str, name: &str) -> Wanted {
    let pair = format!("{name}-{NAME}");
    let words = execrc.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut words =
        words.flat_map(|line| line.split(|c: char| c.is_whitespace() || "\"'=".contains(c)));
    let there = words.any(|word| word == pair);
    let write = (!there).then(|| format!("LIVE_DISK_SNAPSHOTS=\"$LIVE_DISK_SNAPSHOTS {pair}\""));
    Wanted { file: EXECRC, what: format!("LIVE_DISK_SNAPSHOTS {pair}"), write }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(oned: &str, monitord: &str, execrc: &str, name: &str) -> Vec<String> {
        let parse = |text| Conf::parse(text).unwrap();
        let all = wanted(&parse(oned), &parse(monitord), execrc, name);
        all.into_iter().filter_map(|wanted| wanted.write).collect()
    }

    /// The files as an admin would have them who did what we told.
    fn followed(name: &str) -> (String, String, String) {
        let stock = "TM_MAD = [ EXECUTABLE = \"one_tm\", ARGUMENTS = \"-t 15 -d dummy,ssh\" ]\n\
            DATASTORE_MAD = [ EXECUTABLE = \"one_datastore\", ARGUMENTS = \"-t 15 -d fs -s ssh -w 9\" ]\n\
            MARKET_MAD = [ EXECUTABLE = \"one_market\", ARGUMENTS = \"-t 15 -m http\" ]\n";
        let conf = Conf::parse(stock).unwrap();
        let (mut oned, mut monitord, mut execrc) = (String::new(), String::new(), String::new());
        for Wanted { file, write, what } in
            wanted(&conf, &Conf::default(), "LIVE_DISK_SNAPSHOTS=\"kvm-qcow2\"", name)
        {
            let text = write.unwrap();
            let text = match text.strip_prefix("# in the block ") {
                Some(rest) => {
                    let (key, line) = rest.split_once('\n').unwrap();
                    format!("{key} = [ {line} ]")
                }
                None => text,
            };
            let into = match file {
                ONED => &mut oned,
                MONITORD => &mut monitord,
                EXECRC => &mut execrc,
                other => panic!("{other}: {what}"),
            };
            into.push_str(&text);
            into.push('\n');
        }
        (oned, monitord, execrc)
    }

    #[test]
    fn who_does_what_is_told_has_nothing_left_to_do() {
        for name in [NAME, "lxc"] {
            let (oned, monitord, execrc) = followed(name);
            assert_eq!(missing(&oned, &monitord, &execrc, name), Vec::<String>::new(), "{oned}");
            assert!(oned.contains("-d fs,ocivisor -s ssh,ocivisor -w 9"), "{oned}");
        }
    }

    #[test]
    fn an_alias_takes_the_place_of_the_stock_driver() {
        let stock = "VM_MAD = [ NAME = \"lxc\", ARGUMENTS = \"-t 15 -r 0 lxc\" ]\n";
        let first = missing(stock, "", "", "lxc").remove(0);
        assert!(first.starts_with("# in the place of the block VM_MAD \"lxc\"\n"), "{first}");
        assert!(first.contains("ARGUMENTS = \"-t 15 -r 0 -p ocivisor\""), "{first}");
        // Beside it, it would keep oned from starting.
        let both = hypervisor("lxc") + "\n" + stock;
        let first = missing(&both, "", "", "lxc").remove(0);
        assert!(first.starts_with("# in the place of all blocks VM_MAD"), "{first}");
    }

    #[test]
    fn what_a_block_says_otherwise_is_told_and_what_is_the_admins_is_not() {
        let ours = hypervisor(NAME);
        let first = |text: &str| missing(text, "", "", NAME).remove(0);
        for (from, to) in [("\"xml\"", "\"kvm\""), ("one_vmm_exec", "x"), ("-p ocivisor", "-p kvm")]
        {
            let changed = ours.replace(from, to);
            assert!(first(&changed).starts_with("# in the place of the block VM_MAD"), "{to}");
        }
        let theirs =
            ours.replace("OCI container", "Boxes").replace("-r 0 -p ocivisor", "-r 0 ocivisor -p");
        assert!(first(&theirs).starts_with("# there is no block TM_MAD"), "{}", first(&theirs));
    }

    #[test]
    fn every_system_driver_that_images_go_to_has_its_three_keys() {
        let conf = Conf::parse(TM).unwrap();
        let block = conf.named("TM_MAD_CONF", NAME)[0];
        for driver in block["TM_MAD_SYSTEM"].split(',') {
            for key in ["LN_TARGET", "CLONE_TARGET", "DISK_TYPE"] {
                let key = format!("{key}_{}", driver.to_uppercase());
                assert!(block.contains_key(&key), "{key}");
            }
        }
    }

    #[test]
    fn each_driver_that_a_block_names_is_in_the_tree() {
        let scripts = super::super::tree::scripts();
        for place in [
            "vmm/ocivisor/deploy",
            "tm/ocivisor/clone",
            "datastore/ocivisor/cp",
            "market/ocivisor/monitor",
            "im/ocivisor.d/ocivisor_control.sh",
            "vnm/vnmmad-load.d/ocivisor.rb",
        ] {
            assert!(scripts.iter().any(|script| script.path == place), "{place}");
        }
    }

    #[test]
    fn pairs_are_found_however_they_are_written() {
        for there in [
            "LIVE_DISK_SNAPSHOTS=\"a ocivisor-ocivisor\"",
            "LIVE_DISK_SNAPSHOTS='a \\\nocivisor-ocivisor b' # c",
        ] {
            assert_eq!(live_snapshots(there, NAME).write, None, "{there}");
        }
        for other in ["", "# ocivisor-ocivisor", "LIVE_DISK_SNAPSHOTS=\"xocivisor-ocivisor\""] {
            assert!(live_snapshots(other, NAME).write.is_some(), "{other}");
        }
    }
}
