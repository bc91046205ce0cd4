//! What OpenNebula's configuration must say, and what of it is missing. Pure.
//!
//! The files are the admin's: we tell what to write and never write it. What the keys mean is in OpenNebula's
//! reference of `oned.conf`; why ours have their values, in `docs/opennebula/install.md`.

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
    let mut all = vec![hypervisor(oned, name)];
    all.push(listed(
        oned,
        "TM_MAD",
        &["-d"],
        "TM_MAD = [ …, ARGUMENTS = \"-t 15 -d …,ocivisor\" ]",
    ));
    all.push(block(oned, ONED, "TM_MAD_CONF", NAME, TM));
    let datastores = "DATASTORE_MAD = [ …, ARGUMENTS = \"-t 15 -d …,ocivisor -s …,ocivisor\" ]";
    all.push(listed(oned, "DATASTORE_MAD", &["-d", "-s"], datastores));
    all.push(block(oned, ONED, "DS_MAD_CONF", NAME, DS));
    all.push(listed(
        oned,
        "MARKET_MAD",
        &["-m"],
        "MARKET_MAD = [ …, ARGUMENTS = \"-t 15 -m …,ocivisor\" ]",
    ));
    all.push(block(oned, ONED, "MARKET_MAD_CONF", NAME, MARKET));
    for attribute in INHERITED {
        let write = format!("INHERIT_IMAGE_ATTR = \"{attribute}\"");
        let said = oned.says("INHERIT_IMAGE_ATTR", attribute);
        all.push(Wanted { file: ONED, what: write.clone(), write: (!said).then_some(write) });
    }
    all.push(block(monitord, MONITORD, "IM_MAD", NAME, IM));
    all.push(live_snapshots(execrc, name));
    all
}

const TM: &str = r#"TM_MAD_CONF = [
    NAME = "ocivisor", SHARED = "NO", LN_TARGET = "SYSTEM", CLONE_TARGET = "SYSTEM",
    DS_MIGRATE = "YES", DS_LIVE_MIGRATE = "NO", ALLOW_ORPHANS = "YES",
    TM_MAD_SYSTEM = "ssh,shared",
    LN_TARGET_SSH = "SYSTEM", CLONE_TARGET_SSH = "SYSTEM", DISK_TYPE_SSH = "FILE",
    LN_TARGET_SHARED = "SYSTEM", CLONE_TARGET_SHARED = "SYSTEM", DISK_TYPE_SHARED = "FILE"
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

fn block(conf: &Conf, file: &'static str, key: &str, name: &str, text: &str) -> Wanted {
    let there = conf.named(key, name).is_some();
    Wanted { file, what: format!("{key} {name}"), write: (!there).then(|| text.to_owned()) }
}

/// Two blocks of one name keep oned from starting: an alias takes the place of the block that has the name.
fn hypervisor(oned: &Conf, name: &str) -> Wanted {
    let ours = |arguments: &String| arguments.split_whitespace().next_back() == Some(NAME);
    let known = oned.named("VM_MAD", name);
    let there = known.and_then(|block| block.get("ARGUMENTS")).is_some_and(ours);
    let instead = if known.is_some() {
        format!("# in the place of the block VM_MAD \"{name}\"\n")
    } else {
        String::new()
    };
    let shown =
        if name == NAME { "OCI container".to_owned() } else { format!("OCI container ({name})") };
    let text = format!(
        r#"{instead}VM_MAD = [
    NAME = "{name}", SUNSTONE_NAME = "{shown}", EXECUTABLE = "one_vmm_exec",
    ARGUMENTS = "-t 15 -r 0 -p {NAME}", TYPE = "xml", KEEP_SNAPSHOTS = "yes",
    LIVE_RESIZE = "yes", SUPPORT_SHAREABLE = "no", COLD_NIC_ATTACH = "no"
]"#
    );
    Wanted { file: ONED, what: format!("VM_MAD {name}"), write: (!there).then_some(text) }
}

/// The one block of that key with our name in its lists; where the block is found, its own line changed.
fn listed(oned: &Conf, key: &str, options: &[&str], unknown: &str) -> Wanted {
    let what = format!("{key} {} {NAME}", options.join(" "));
    let arguments = oned.blocks(key).find_map(|block| block.get("ARGUMENTS"));
    let there = |arguments: &String| options.iter().all(|option| lists(arguments, option, NAME));
    let write = match arguments {
        Some(arguments) if there(arguments) => None,
        Some(arguments) => {
            let more =
                |text: String, option: &&str| with_listed(&text, option, NAME).unwrap_or(text);
            let changed = options.iter().fold(arguments.clone(), more);
            Some(format!("# in the block {key}\nARGUMENTS = \"{changed}\""))
        }
        None => Some(unknown.to_owned()),
    };
    Wanted { file: ONED, what, write }
}

/// A file of sh: the last assignment counts.
fn live_snapshots(execrc: &str, name: &str) -> Wanted {
    let pair = format!("{name}-{NAME}");
    let mut lines =
        execrc.lines().filter_map(|line| line.trim().strip_prefix("LIVE_DISK_SNAPSHOTS="));
    let value = lines.next_back().map(|value| value.trim_matches('"'));
    let there = value.is_some_and(|value| value.split_whitespace().any(|known| known == pair));
    let list = value.map_or_else(|| pair.clone(), |value| format!("{value} {pair}"));
    let write = (!there).then(|| format!("LIVE_DISK_SNAPSHOTS=\"{list}\""));
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
            assert_eq!(execrc, format!("LIVE_DISK_SNAPSHOTS=\"kvm-qcow2 {name}-ocivisor\"\n"));
        }
    }

    #[test]
    fn an_alias_takes_the_place_of_the_stock_driver() {
        let stock = "VM_MAD = [ NAME = \"lxc\", ARGUMENTS = \"-t 15 -r 0 lxc\" ]";
        let first = missing(stock, "", "", "lxc").remove(0);
        assert!(first.starts_with("# in the place of the block VM_MAD \"lxc\"\n"), "{first}");
        assert!(first.contains("ARGUMENTS = \"-t 15 -r 0 -p ocivisor\""), "{first}");
    }
}
