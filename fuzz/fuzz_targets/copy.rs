//! The tar stream of a copy out of a guest, read by its client.
#![no_main]

use std::os::unix::ffi::OsStrExt;

use ocivisor_copy::Notes;
use ocivisor_copy::unpack::{Naming, Rules, Trust, unpack};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    std::fs::create_dir(&to).unwrap();
    let (first, stream) = bytes.split_first().unwrap_or((&0, &[]));
    let naming = match first % 4 {
        0 => Naming::Own,
        1 => Naming::One { expect: None },
        2 => Naming::One { expect: Some(b".") },
        _ => Naming::One { expect: Some(b"a") },
    };
    let rules = Rules { trust: Trust::Stranger, naming, owners: false };
    let _ = unpack(stream, to.as_os_str().as_bytes(), rules, &mut Notes::default());
    let beside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert_eq!(beside.len(), 1);
});
