//! See `fuzz_header` of the datastore.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ocivisor_datastore::fuzz_header(bytes));
