//! Alone in its process: the umask is everybody's.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;

use common::*;

#[test]
fn unpacking_does_not_depend_on_the_umask() {
    let tar = RawTar::new()
        .head(&Head { path: b"tmp", kind: b'5', mode: 0o1777, ..Head::default() }, b"")
        .head(&Head { path: b"bin/su", mode: 0o4755, ..Head::default() }, b"su")
        .head(&Head { path: b"pipe", kind: b'6', mode: 0o622, ..Head::default() }, b"")
        .end();
    for mask in [0o077, 0o000] {
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
        let bench = Bench::new();
        let image = bench.import_tar(tar.clone());
        rustix::process::umask(before);
        let seen = tree(&bench.fs(&image.unwrap()));
        assert_eq!(seen[&b"tmp"[..]].mode, 0o041_777);
        assert_eq!(seen[&b"bin"[..]].mode, 0o040_755);
        assert_eq!(seen[&b"bin/su"[..]].mode, 0o104_755);
        assert_eq!(seen[&b"pipe"[..]].mode, 0o010_622);
        let private = tree(&bench.path("store"));
        for dir in ["blobs", "blobs/sha256", "layers", "images", "refs", "staging"] {
            assert_eq!(private[dir.as_bytes()].mode, 0o040_700, "{dir}");
        }
        for file in ["lock", "format.json"] {
            assert_eq!(private[file.as_bytes()].mode, 0o100_600, "{file}");
        }
    }
}
