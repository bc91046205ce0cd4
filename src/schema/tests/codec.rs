//! Damage of every kind is found.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{NOON, full_record, small_spec};
use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::state::Record;
use ocivisor_schema::codec::MAX_RECORD;
use ocivisor_schema::{DecodeError, EncodeError, decode, encode};
use sha2::{Digest, Sha256};

/// A file as `encode` would have written it, of this body.
fn sealed(body: &str) -> Vec<u8> {
    let sum = hex::encode(Sha256::digest(body));
    format!("{body},\n  \"sha256\": \"{sum}\"\n}}\n").into_bytes()
}

#[test]
fn what_was_written_is_read() {
    for record in [Record::new(small_spec(), NOON), full_record()] {
        let bytes = encode(&record).unwrap();
        assert_eq!(decode(&bytes).unwrap(), record);
        // The same bytes for the same record: a write that changes nothing can be told.
        assert_eq!(encode(&record).unwrap(), bytes);
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let mut bytes = encode(&Record::new(small_spec(), NOON)).unwrap();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            let error = decode(&bytes).unwrap_err();
            assert!(
                matches!(error, DecodeError::Checksum { .. } | DecodeError::Torn { .. }),
                "byte {at} bit {bit}: {error}"
            );
            bytes[at] ^= 1 << bit;
        }
    }
}

#[test]
fn every_cut_is_found() {
    let bytes = encode(&full_record()).unwrap();
    for len in 0..bytes.len() {
        let error = decode(&bytes[..len]).unwrap_err();
        assert!(matches!(error, DecodeError::Torn { .. }), "{len}: {error}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(decode(&longer), Err(DecodeError::Torn { .. })));
    let zeros = vec![0; bytes.len()];
    assert!(matches!(decode(&zeros), Err(DecodeError::Torn { .. })));
}

#[test]
fn what_is_whole_but_strange_says_so() {
    let error = decode(&sealed("{\n  \"version\": 2")).unwrap_err();
    assert_eq!(error, DecodeError::Version(2));
    assert_eq!(Error::from(error).kind, ErrorKind::Unsupported);
    assert!(matches!(decode(&sealed("{\n  \"version\": 1")), Err(DecodeError::Json(_))));
    let deep = "[".repeat(100_000);
    assert!(matches!(
        decode(&sealed(&format!("{{\"version\": {deep}"))),
        Err(DecodeError::Json(_))
    ));
    let error = decode(&vec![b' '; MAX_RECORD + 1]).unwrap_err();
    assert_eq!(error, DecodeError::TooLarge { bytes: MAX_RECORD + 1, most: MAX_RECORD });
    assert_eq!(Error::from(error).kind, ErrorKind::Integrity);
}

#[test]
fn a_record_that_could_not_be_read_is_not_written() {
    let mut record = full_record();
    record.losses = vec!["x".repeat(MAX_RECORD)];
    let error = encode(&record).unwrap_err();
    assert!(matches!(error, EncodeError::TooLarge { bytes, .. } if bytes > MAX_RECORD), "{error}");
}
