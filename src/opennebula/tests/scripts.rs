//! The scripts that OpenNebula calls.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use ocivisor_opennebula::ds::DsAction;
use ocivisor_opennebula::{Action, tm};

fn remotes() -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../driver-scripts/opennebula");
    Path::new(root).join("remotes")
}

fn dir() -> PathBuf {
    remotes().join("vmm/ocivisor")
}

/// Every script of the tree. What is not one is a file of Ruby that the network drivers load.
fn scripts() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![remotes()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                dirs.push(path);
            } else if path.extension().is_none_or(|extension| extension != "rb") {
                found.push(path);
            }
        }
    }
    found
}

/// One child at a time: a child that is born while another test writes its program keeps that file
/// open for writing for a moment, and the kernel then refuses to run it (ETXTBSY).
static SPAWN: Mutex<()> = Mutex::new(());

#[expect(clippy::disallowed_methods, reason = "a test of the scripts has to run them")]
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

fn names(dir: &str) -> Vec<String> {
    let names = fs::read_dir(remotes().join(dir)).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn there_is_one_for_every_action_and_nothing_else() {
    let sorted = |mut wanted: Vec<&'static str>| {
        wanted.sort_unstable();
        wanted
    };
    assert_eq!(names("vmm/ocivisor"), sorted(Action::ALL.map(Action::name).to_vec()));
    assert_eq!(names("tm/ocivisor"), sorted(tm::ACTIONS.to_vec()));
    let actions = DsAction::ALL.iter().map(|action| action.name()).collect();
    assert_eq!(names("datastore/ocivisor"), sorted(actions));
    assert_eq!(names("market/ocivisor"), ["delete", "import", "monitor"]);
    assert_eq!(names("im/ocivisor.d"), ["ocivisor_control.sh"]);
}

#[test]
fn all_are_the_same_executable_file() {
    let want = "#!/bin/sh\nexec \"${OCIVISOR_BIN:-/usr/bin/ocivisor}\" one script \"$0\" \"$@\"\n";
    for path in scripts() {
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(meta.is_file(), "{path:?}");
        assert_eq!(meta.permissions().mode() & 0o777, 0o755, "{path:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), want, "{path:?}");
    }
}

#[test]
fn shellcheck_has_nothing_to_say() {
    let _alone = SPAWN.lock();
    let mut shellcheck = command("shellcheck");
    shellcheck.args(scripts());
    match shellcheck.output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) if std::env::var_os("CI").is_none() => {
            eprintln!("skipped: shellcheck cannot be run: {error}");
        }
        Err(error) => panic!("shellcheck cannot be run: {error}"),
    }
}

/// Name, arguments (empty ones, blanks, dashes), input and exit code go through unchanged.
#[test]
fn a_script_passes_everything_on() {
    let _alone = SPAWN.lock();
    let temp = tempfile::tempdir().unwrap();
    let fake = temp.path().join("fake binary");
    let mut file = File::create(&fake).unwrap();
    file.write_all(b"#!/bin/sh\nprintf '<%s>' \"$@\"\ncat\nexit 3\n").unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o755)).unwrap();
    drop(file);
    for (action, argv) in [
        ("cancel", &["", "node 1", "7", "$(id) 'x'"][..]),
        ("deploy", &["-", "--help", "*", "a\nb"]),
        ("exec", &[]),
    ] {
        let mut child = command(dir().join(action))
            .args(argv)
            .env("OCIVISOR_BIN", &fake)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"<VM/>\n").unwrap();
        let output = child.wait_with_output().unwrap();
        let place = dir().join(action);
        let words = [&["one", "script", place.to_str().unwrap()], argv].concat();
        let shown: String = words.iter().map(|word| format!("<{word}>")).collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), shown + "<VM/>\n");
        assert_eq!(output.status.code(), Some(3));
    }
}
