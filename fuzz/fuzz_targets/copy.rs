//! The tar stream of a copy out of a guest, read by its client.
#![no_main]

use std::os::unix::ffi::OsStrExt;

use ocivisor_copy::Notes;
use ocivisor_copy::unpack::{Naming, Rules, Trust, unpack};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    std::fs::create_dir(&to).unwrap();
    let rules = Rules { trust: Trust::Stranger, naming: Naming::Own, owners: false };
    let _ = unpack(bytes, to.as_os_str().as_bytes(), rules, &mut Notes::default());
    let beside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert_eq!(beside.len(), 1);
});
