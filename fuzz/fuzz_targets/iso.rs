//! The context disk: what follows the system area of an ISO 9660 image.
#![no_main]

use std::io::Write;

use ocivisor_context::agent::Disk;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[0; 32_768]).and_then(|()| file.write_all(bytes)).unwrap();
    let Ok(disk) = Disk::open(&file) else { return };
    let _ = (disk.variables(), disk.top_files(), disk.all_files());
});
