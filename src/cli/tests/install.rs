//! `ocivisor one install` on directories that stand for a front-end and a host.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]
#![allow(clippy::disallowed_methods, reason = "tests write files and run the command")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const ONED: &str = "TM_MAD = [ EXECUTABLE = \"one_tm\", ARGUMENTS = \"-t 15 -d dummy,ssh\" ]\n\
    DATASTORE_MAD = [ EXECUTABLE = \"one_datastore\", ARGUMENTS = \"-t 15 -d fs -s ssh\" ]\n\
    MARKET_MAD = [ EXECUTABLE = \"one_market\", ARGUMENTS = \"-t 15 -m http\" ]\n";
const ONEADMIN: u32 = 9869;

/// A machine that has OpenNebula's directories and its user.
fn machine() -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    let kinds = ["vmm/kvm", "tm/ssh", "datastore/fs", "market/http", "im/kvm.d", "vnm/bridge"];
    let kinds = kinds.map(|kind| format!("var/lib/one/remotes/{kind}"));
    for dir in kinds.iter().map(String::as_str).chain(["etc/one/vmm_exec"]) {
        fs::create_dir_all(temp.path().join(dir)).unwrap();
    }
    chown(temp.path().join("var/lib/one/remotes"), Some(ONEADMIN), Some(ONEADMIN)).unwrap();
    fs::write(temp.path().join("etc/one/oned.conf"), ONED).unwrap();
    fs::write(temp.path().join("etc/one/monitord.conf"), "").unwrap();
    fs::write(temp.path().join("etc/one/vmm_exec/vmm_execrc"), "LIVE_DISK_SNAPSHOTS=\"a-b\"\n")
        .unwrap();
    let user = format!("oneadmin:x:{ONEADMIN}:{ONEADMIN}::/var/lib/one:/bin/bash\n");
    fs::write(temp.path().join("etc/passwd"), user).unwrap();
    fs::write(temp.path().join("etc/group"), format!("oneadmin:x:{ONEADMIN}:\n")).unwrap();
    temp
}

fn install(root: &TempDir, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ocivisor"))
        .args(["one", "install", "--root"])
        .arg(root.path())
        .args(args)
        .output()
        .unwrap()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Every file below, with owner, permissions and content.
fn snapshot(dir: &Path) -> Vec<(PathBuf, u32, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
            found.push((path.clone(), meta.uid(), meta.permissions().mode(), content));
            if meta.is_dir() {
                dirs.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_front_end_is_prepared_once_and_given_back_as_it_was() {
    let root = machine();
    let before = snapshot(root.path());
    let told = done(&install(&root, &["--frontend"]));
    for want in [
        "ok       scripts in remotes/vmm/ocivisor",
        "missing  VM_MAD ocivisor",
        "\nVM_MAD = [\n    NAME = \"ocivisor\", ",
        "ARGUMENTS = \"-t 15 -d fs,ocivisor -s ssh,ocivisor\"",
        "LIVE_DISK_SNAPSHOTS=\"$LIVE_DISK_SNAPSHOTS ocivisor-ocivisor\"",
    ] {
        assert!(told.contains(want), "{want} in {told}");
    }
    let deploy = root.path().join("var/lib/one/remotes/vmm/ocivisor/deploy");
    let meta = fs::metadata(&deploy).unwrap();
    assert_eq!((meta.uid(), meta.permissions().mode() & 0o7777), (ONEADMIN, 0o755));
    assert_eq!(fs::metadata(deploy.parent().unwrap()).unwrap().uid(), ONEADMIN);

    let first = snapshot(root.path());
    assert_eq!(done(&install(&root, &["--frontend"])), told);
    assert_eq!(snapshot(root.path()), first, "a second run changes nothing");

    let gone = done(&install(&root, &["--frontend", "--uninstall"]));
    assert!(gone.ends_with(" files taken away\n"), "{gone}");
    assert_eq!(snapshot(root.path()), before);
    let gone = done(&install(&root, &["--frontend", "--uninstall"]));
    assert_eq!(gone, "nothing was there to be taken away\n");
}

/// The configuration with all that was told written into it.
fn follow(told: &str) {
    let (_, blocks) = told.split_once("\n\n").unwrap();
    let mut texts: Vec<(String, String)> = Vec::new();
    for line in blocks.lines() {
        if let Some(path) = line.strip_prefix("# /") {
            texts.push((format!("/{path}"), String::new()));
        } else if let Some((_, text)) = texts.last_mut() {
            text.push_str(line);
            text.push('\n');
        }
    }
    for (path, text) in texts {
        // Lines for a block that is there are put into it, by the key of the comment before.
        let mut old = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if let Some(key) = line.strip_prefix("# in the block ") {
                let new = lines.next().unwrap();
                let at = old.find(&format!("{key} = [")).unwrap();
                let from = at + old[at..].find("ARGUMENTS").unwrap();
                let to = from + old[from..].find(" ]").unwrap();
                old.replace_range(from..to, new);
            } else {
                old.push_str(line);
                old.push('\n');
            }
        }
        fs::write(&path, old).unwrap();
    }
}

#[test]
fn who_does_as_told_passes_the_check_and_is_warned_before_he_uninstalls() {
    for alias in ["ocivisor", "lxc"] {
        let root = machine();
        follow(&done(&install(&root, &["--frontend", "--alias", alias])));
        let said = done(&install(&root, &["--frontend", "--check", "--alias", alias]));
        assert!(!said.contains("missing"), "{said}");
        let output = install(&root, &["--frontend", "--uninstall", "--alias", alias]);
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(&format!("still names ocivisor (VM_MAD {alias})")), "{said}");
        done(&install(&root, &["--frontend", "--uninstall", "--alias", alias, "--force"]));
    }
}

#[test]
fn permissions_owners_and_what_a_crash_left_are_mended() {
    let root = machine();
    done(&install(&root, &["--frontend"]));
    let first = snapshot(root.path());
    let dir = root.path().join("var/lib/one/remotes/vmm/ocivisor");
    fs::set_permissions(dir.join("deploy"), fs::Permissions::from_mode(0o644)).unwrap();
    chown(dir.join("cancel"), Some(0), Some(0)).unwrap();
    fs::remove_file(dir.join("reset")).unwrap();
    fs::write(dir.join(".reset.ocivisor-new"), "#!/bi").unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(install(&root, &["--frontend", "--check"]).status.code(), Some(1));
    done(&install(&root, &["--frontend"]));
    assert_eq!(snapshot(root.path()), first);
}

#[test]
fn a_link_in_the_place_of_a_script_is_a_conflict_that_force_solves() {
    let root = machine();
    done(&install(&root, &["--frontend"]));
    let deploy = root.path().join("var/lib/one/remotes/vmm/ocivisor/deploy");
    fs::remove_file(&deploy).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &deploy).unwrap();
    assert_eq!(install(&root, &["--frontend"]).status.code(), Some(4));
    done(&install(&root, &["--frontend", "--force"]));
    assert!(fs::symlink_metadata(&deploy).unwrap().is_file());
}

#[test]
fn a_check_changes_nothing_and_fails_while_anything_is_missing() {
    let root = machine();
    let before = snapshot(root.path());
    let output = install(&root, &["--frontend", "--check"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("missing  scripts in remotes/vmm/ocivisor"), "{said}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("things are missing"));
    assert_eq!(snapshot(root.path()), before);
}

#[test]
fn what_others_changed_is_neither_replaced_nor_taken_away() {
    let root = machine();
    done(&install(&root, &["--frontend"]));
    let deploy = root.path().join("var/lib/one/remotes/vmm/ocivisor/deploy");
    fs::write(&deploy, "#!/bin/sh\nexit 3\n").unwrap();
    let output = install(&root, &["--frontend"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("vmm/ocivisor/deploy is not as ocivisor left it")
    );
    let told = done(&install(&root, &["--frontend", "--uninstall"]));
    assert!(told.contains("vmm/ocivisor/deploy was changed by others and stays"), "{told}");
    assert!(deploy.exists());
    done(&install(&root, &["--frontend", "--force"]));
    assert!(fs::read_to_string(&deploy).unwrap().contains("ocivisor"));
}

#[test]
fn scripts_of_an_earlier_version_go() {
    let root = machine();
    done(&install(&root, &["--frontend"]));
    let old = root.path().join("var/lib/one/remotes/vmm/ocivisor/bygone");
    fs::write(&old, "x").unwrap();
    let record = root.path().join("var/lib/ocivisor-opennebula/installed.json");
    let hash = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    let text = fs::read_to_string(&record).unwrap().replacen(
        "\"files\": {",
        &format!("\"files\": {{ \"var/lib/one/remotes/vmm/ocivisor/bygone\": [\"{hash}\"],"),
        1,
    );
    fs::write(&record, text).unwrap();
    done(&install(&root, &["--frontend"]));
    assert!(!old.exists());
    assert!(!fs::read_to_string(&record).unwrap().contains("bygone"));
}

#[test]
fn a_host_lets_the_platforms_user_ask_the_daemon() {
    let root = machine();
    let said = done(&install(&root, &["--host"]));
    assert!(!said.contains("missing"), "{said}");
    let group = fs::read_to_string(root.path().join("etc/group")).unwrap();
    let line = group.lines().find(|line| line.starts_with("ocivisor:")).unwrap();
    assert!(line.ends_with(":oneadmin"), "{group}");
    let gid = line.split(':').nth(2).unwrap();
    let config = root.path().join("etc/ocivisor/ocivisor.toml");
    assert!(fs::read_to_string(&config).unwrap().contains(&format!("operate_gid = {gid}\n")));
    let rule = root.path().join("etc/udev/rules.d/60-ocivisor.rules");
    assert!(fs::read_to_string(&rule).unwrap().contains("KERNEL!=\"loop5[0-9]"));
    assert_eq!(fs::metadata(&rule).unwrap().mode() & 0o7777, 0o644);
    let first = snapshot(root.path());
    assert_eq!(done(&install(&root, &["--host"])), said);
    assert_eq!(snapshot(root.path()), first);

    done(&install(&root, &["--host", "--uninstall"]));
    assert!(!config.exists() && !rule.exists());
    let group = fs::read_to_string(root.path().join("etc/group")).unwrap();
    assert!(
        group.lines().any(|line| line.starts_with("ocivisor:") && line.ends_with(':')),
        "{group}"
    );
}

#[test]
fn an_admins_rule_for_udev_stays_and_a_packages_will_do() {
    let root = machine();
    let [own, packaged] = ["etc/udev/rules.d", "usr/lib/udev/rules.d"]
        .map(|dir| root.path().join(dir).join("60-ocivisor.rules"));
    for path in [&own, &packaged] {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
    }
    fs::write(&own, "# nothing\n").unwrap();
    let said = done(&install(&root, &["--host"]));
    assert!(said.contains("missing  udev leaves disks of guests alone"), "{said}");
    assert_eq!(fs::read_to_string(&own).unwrap(), "# nothing\n");
    done(&install(&root, &["--host", "--uninstall"]));
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/../daemon/udev/60-ocivisor.rules"), &packaged)
        .unwrap();
    fs::remove_file(&own).unwrap();
    let said = done(&install(&root, &["--host"]));
    assert!(!said.contains("missing"), "{said}");
    assert!(!own.exists());
}

#[test]
fn an_admins_configuration_of_the_daemon_stays_his() {
    let root = machine();
    fs::create_dir_all(root.path().join("etc/ocivisor")).unwrap();
    let config = root.path().join("etc/ocivisor/ocivisor.toml");
    fs::write(&config, "[access]\nread_gids = [5]\n").unwrap();
    let said = done(&install(&root, &["--host"]));
    assert!(said.contains("missing  ocivisor.toml says which group may operate VMs"), "{said}");
    assert_eq!(fs::read_to_string(&config).unwrap(), "[access]\nread_gids = [5]\n");
    // Another group than ours is fine, if the platform's user is in it.
    fs::write(&config, format!("[access]\noperate_gid = {ONEADMIN}\n")).unwrap();
    done(&install(&root, &["--host", "--check"]));
}

#[test]
fn a_machine_without_opennebula_is_neither_front_end_nor_host() {
    let root = tempfile::tempdir().unwrap();
    for what in ["--frontend", "--host"] {
        let output = install(&root, &[what]);
        assert_eq!(output.status.code(), Some(3));
        assert!(String::from_utf8(output.stderr).unwrap().contains("not installed here"));
    }
    assert!(!root.path().join("etc").exists());
}

#[test]
fn names_of_stock_drivers_that_machines_need_are_refused() {
    let root = machine();
    for name in ["kvm", "qemu", "dummy", "", "A", "a b"] {
        let output = install(&root, &["--frontend", "--alias", name]);
        assert_eq!(output.status.code(), Some(2), "{name}: {output:?}");
    }
}
