//! Entries for fuzzers: readers of foreign bytes, alone. None may panic, hang, or take more memory than its limits say.
//!
//! `fuzz/` feeds them with coverage; the tests below feed them with damage to good input in every run.

use std::io::{BufReader, Read};

use crate::compress::Decoder;
use crate::config::ImageConfig;
use crate::document::{self, Manifest};
use crate::limits::Limits;
use crate::name::{ImageName, Reference};
use crate::registry::RegistryReference;
use crate::source::Source;
use crate::tarball::{Streaming, Tarball, Trailer};
use crate::trust::attached_signatures;

/// A tar, entry by entry, with its content. What looks like a header gets its right checksum, which changes at random
/// would hardly ever leave.
pub fn fuzz_tar(bytes: &[u8]) {
    let mut mended = bytes.to_vec();
    for block in mended.as_chunks_mut::<512>().0 {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    read_tar(bytes);
    read_tar(&mended);
}

fn read_tar(bytes: &[u8]) {
    let limits = Limits { entries: 10_000, ..Limits::default() };
    let mut budget = limits.entries;
    let mut tarball = Tarball::new(Streaming(bytes), &limits, &mut budget, Trailer::Optional);
    while let Ok(Some(_)) = tarball.next() {
        loop {
            match tarball.chunk().map(<[u8]>::len) {
                Ok(0) | Err(_) => break,
                Ok(n) => tarball.consume(n),
            }
        }
    }
}

/// A compressed stream, to its end or a mebibyte.
pub fn fuzz_stream(bytes: &[u8]) {
    if let Ok((decoder, _)) = Decoder::new(BufReader::new(bytes), None) {
        drop(std::io::copy(&mut decoder.take(1 << 20), &mut std::io::sink()));
    }
}

/// A manifest, an index, what `docker save` writes, and what lists an image's signatures.
pub fn fuzz_manifest(bytes: &[u8]) {
    let limits = Limits::default();
    drop(Manifest::parse(bytes, "application/vnd.oci.image.manifest.v1+json", &limits));
    drop(Manifest::parse(bytes, "application/vnd.docker.distribution.manifest.v2+json", &limits));
    if let Ok(entries) = document::parse_index(bytes, None, &limits) {
        drop(document::choose(entries, None, &document::host_platform()));
    }
    drop(document::choose_saved(bytes, None, &limits));
    drop(attached_signatures(bytes, &mut |_, _| Ok(Vec::new())));
}

/// An image config.
pub fn fuzz_config(bytes: &[u8]) {
    drop(ImageConfig::parse(bytes, &Limits::default()));
}

/// What users type: names, digests, sources, registries.
pub fn fuzz_reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(name) = text.parse::<ImageName>() {
        assert_eq!(name.to_string(), text);
    }
    drop(text.parse::<Reference>());
    drop(text.parse::<Source>());
    drop(text.parse::<RegistryReference>());
}

/// What a registry says in its headers.
pub fn fuzz_header(bytes: &[u8]) {
    crate::registry::fuzz_header(bytes);
}

/// What a worker says.
pub fn fuzz_answer(bytes: &[u8]) {
    crate::worker::fuzz_answer(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::diskimage::{fuzz_disk, fuzz_qcow2};
    use crate::document::OCI_CONFIG;

    const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","config":{"User":"1:2","Env":["A=b"],"Cmd":["x"]},"rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#;
    const ANSWER: &[u8] = br#"{"refused":{"entry":"a","why":{"header":"wrong checksum"}}}"#;
    const DISK: &[u8] = br#"{"disk":{"bytes":7,"init":"/sbin/init","systemd":true,"architecture":"amd64","xattrs_dropped":1}}"#;

    fn tar() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for name in ["a", "b/c", &"long".repeat(50)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(5);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, &b"hello"[..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn manifest() -> Vec<u8> {
        let digest = format!("sha256:{}", "a".repeat(64));
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{digest}","size":7}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{digest}","size":9}}],"manifests":[]}}"#
        )
        .into_bytes()
    }

    fn gzip() -> Vec<u8> {
        use std::io::Write;
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(&tar()).unwrap();
        out.finish().unwrap()
    }

    type Entry = fn(&[u8]);

    fn all() -> Vec<(Entry, Vec<u8>)> {
        vec![
            (fuzz_tar, tar()),
            (fuzz_stream, gzip()),
            (fuzz_manifest, manifest()),
            (fuzz_config, CONFIG.to_vec()),
            (fuzz_reference, b"docker://registry.example:5000/a/b:tag@sha256:00".to_vec()),
            (fuzz_header, b"https://a.example/x?y=z\nBearer realm=\"x\",scope=\"y\"".to_vec()),
            (fuzz_answer, ANSWER.to_vec()),
            (fuzz_answer, DISK.to_vec()),
            (fuzz_qcow2, b"QFI\xfb\0\0\0\x03".repeat(20)),
            (fuzz_disk, [&[9; 8][..], &tar()].concat()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn damaged_input_is_refused_without_harm(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
            cut in prop::option::of(any::<prop::sample::Index>()),
            doubled in any::<bool>(),
        ) {
            for (read, mut bytes) in all() {
                for (at, byte) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                if doubled {
                    bytes = bytes.repeat(2);
                }
                bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
                read(&bytes);
            }
        }

        #[test]
        fn any_bytes_are_refused_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            for (read, _) in all() {
                read(&bytes);
            }
        }
    }
}
