use std::io::Write;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

/// An image that a tool of the platforms makes: `xorriso` in newer releases of OpenNebula, `genisoimage` in older.
#[expect(clippy::disallowed_methods, reason = "tests run the tools")]
fn made(tool: &[&str], options: &[&str], from: &Path) -> File {
    let out = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(tool[0])
        .args(&tool[1..])
        .args(["-o", out.path().to_str().unwrap(), "-V", "CONTEXT"])
        .args(options)
        .arg(from)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    File::open(out.path()).unwrap()
}

const TOOLS: [&[&str]; 2] = [&["xorriso", "-as", "mkisofs"], &["genisoimage", "-quiet"]];

#[expect(clippy::disallowed_methods, reason = "tests write files")]
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("context.sh"), "A='1'\n").unwrap();
    std::fs::write(dir.path().join("token.txt"), "").unwrap();
    let long = format!("{}.ä", "long-Name".repeat(24));
    std::fs::write(dir.path().join(long), vec![7; 5000]).unwrap();
    std::fs::create_dir_all(dir.path().join("openstack/latest")).unwrap();
    std::fs::write(dir.path().join("openstack/latest/meta_data.json"), "{}").unwrap();
    std::os::unix::fs::symlink("/etc/shadow", dir.path().join("link")).unwrap();
    for n in 0..100 {
        std::fs::write(dir.path().join(format!("file-{n}")), n.to_string()).unwrap();
    }
    dir
}

fn find(entries: &[Entry], name: &str) -> Entry {
    entries
        .iter()
        .find(|e| e.name == name)
        .unwrap_or_else(|| panic!("{name} in {entries:?}"))
        .clone()
}

#[test]
fn images_of_both_tools_are_read_by_each_kind_of_name() {
    let dir = tree();
    for tool in TOOLS {
        for (options, rock) in
            [(&["-J", "-R"][..], true), (&["-R"], true), (&["-J", "-joliet-long"], false)]
        {
            let file = made(tool, options, dir.path());
            let iso = Iso::open(&file).unwrap();
            let root = iso.root().unwrap();
            assert_eq!(iso.read(&find(&root, "context.sh"), 99).unwrap(), b"A='1'\n");
            assert_eq!(iso.read(&find(&root, "token.txt"), 99).unwrap(), b"");
            assert_eq!(iso.read(&find(&root, "file-99"), 99).unwrap(), b"99");
            if rock {
                assert!(root.iter().all(|e| e.name != "link"), "{tool:?} {options:?}");
                let long = find(&root, &format!("{}.ä", "long-Name".repeat(24)));
                assert_eq!(iso.read(&long, 5000).unwrap(), vec![7; 5000]);
                assert!(iso.read(&long, 4999).is_err());
                let mut copy = Vec::new();
                iso.content(&long).write_to(&mut copy).unwrap();
                assert_eq!(copy, vec![7; 5000]);
            }
            let openstack = find(&root, "openstack");
            assert!(openstack.directory);
            let latest = find(&iso.directory(&openstack).unwrap(), "latest");
            let meta = find(&iso.directory(&latest).unwrap(), "meta_data.json");
            assert_eq!(iso.read(&meta, 99).unwrap(), b"{}");
        }
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tests write files")]
fn plain_names_are_lower_case_and_without_version() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("context.sh"), "x").unwrap();
    let file = made(TOOLS[1], &["-iso-level", "1"], dir.path());
    let iso = Iso::open(&file).unwrap();
    assert_eq!(iso.names, Names::Plain);
    assert_eq!(
        iso.root().unwrap().iter().map(|e| e.name.as_str()).collect::<Vec<_>>(),
        ["context.sh"]
    );
}

#[test]
fn what_is_no_image_is_refused() {
    for bytes in [vec![], vec![0; 100], vec![0; 1 << 20], b"CD001".repeat(9000)] {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        assert_eq!(Iso::open(&file).unwrap_err().kind, ErrorKind::Invalid);
    }
}

#[test]
fn what_is_read_of_one_image_has_an_end() {
    let file = made(TOOLS[0], &["-R"], tree().path());
    let iso = Iso::open(&file).unwrap();
    // As directories that contain each other would have it.
    let error = (0..=MAX_READ / SECTOR).find_map(|_| iso.root().err()).unwrap();
    assert_eq!(error.message, "context disk: its directories are too large");
}

/// Reads everything that there is, as far as it goes.
fn read_all(file: &File) {
    let Ok(iso) = Iso::open(file) else { return };
    let Ok(mut entries) = iso.root() else { return };
    for _ in 0..50 {
        let Some(entry) = entries.pop() else { break };
        if entry.directory {
            entries.extend(iso.directory(&entry).into_iter().flatten().take(20));
        } else {
            let _ = iso.read(&entry, 10_000);
        }
    }
}

#[test]
fn damaged_images_end_in_errors_and_never_hang() {
    let dir = tree();
    let mut whole = Vec::new();
    let original = made(TOOLS[0], &["-J", "-R"], dir.path());
    std::io::copy(&mut &original, &mut whole).unwrap();
    // What matters is in the descriptors and the directories.
    let end = whole.len().min(80 * SECTOR as usize);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    let changes = prop::collection::vec((32_768..end, any::<u8>()), 1..20);
    runner
        .run(&(changes, 0..whole.len()), |(changes, cut)| {
            let mut bytes = whole.clone();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            if cut % 3 == 0 {
                bytes.truncate(cut);
            }
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            read_all(&file);
            Ok(())
        })
        .unwrap();
}
