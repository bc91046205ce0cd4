//! Archives and root file systems that attack the importer, and sources that change under it (34).

use std::fs;
use std::io::Write;

use crate::bombs::zeros;
use crate::common::*;
use crate::confined::bench;
use crate::images::some_tar;
use ocivisor_datastore::{Digest, Error, Limit, Limits, Refusal, Source};
use serde_json::json;

fn archive(bench: &Bench, name: &str, tar: RawTar) -> std::path::PathBuf {
    let path = bench.path(name);
    put(&path, &tar.end());
    path
}

#[test]
fn an_archive_with_a_file_named_twice_is_refused() {
    let bench = bench();
    let tar = RawTar::new().file("manifest.json", b"[]").file("./manifest.json", b"[{}]");
    let file = archive(&bench, "twice.tar", tar);
    let error = bench.import(&Source::DockerArchive { file, tag: None }).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Twice));
    bench.assert_nothing_happened();
}

#[test]
fn names_in_a_docker_archive_lead_nowhere_but_into_it() {
    let bench = bench();
    let probe = format!("{}/shadow", text(&bench.path("probe")));
    for name in [probe.as_str(), "../../../../../etc/shadow", "/etc/shadow", "link"] {
        let manifest = json!([{"Config": name, "Layers": ["a.tar"]}]).to_string();
        let tar =
            RawTar::new().symlink("link", "/etc/shadow").file("manifest.json", manifest.as_bytes());
        let file = archive(&bench, "evil.tar", tar);
        let error = bench.import(&Source::DockerArchive { file, tag: None }).unwrap_err();
        assert!(
            matches!(&error, Error::Source { why, .. } if why.starts_with("it has no file")),
            "{error:?}"
        );
        bench.assert_nothing_happened();
    }
}

#[test]
fn a_docker_config_under_a_false_digest_is_refused() {
    let bench = bench();
    let config = format!("{}.json", "a".repeat(64));
    let manifest = json!([{"Config": config, "Layers": ["l.tar"]}]).to_string();
    let tar = RawTar::new().file("manifest.json", manifest.as_bytes()).file(&config, b"{}");
    let file = archive(&bench, "false.tar", tar);
    let error = bench.import(&Source::DockerArchive { file, tag: None }).unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Digest { .. })), "{error:?}");
    bench.assert_nothing_happened();
}

#[test]
fn an_archive_of_too_many_files_is_refused() {
    let bench = bench();
    let mut tar = RawTar::new();
    for n in 0..20 {
        tar = tar.file(&format!("{n}"), b"");
    }
    let file = archive(&bench, "many.tar", tar);
    let limits = Limits { archive_entries: 19, ..Limits::default() };
    let error = bench.import_with(&Source::OciArchive { file, tag: None }, &limits).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Limit { limit: Limit::ArchiveEntries, max: 19 }));
    bench.assert_nothing_happened();
}

#[test]
fn a_compressed_archive_is_a_bomb_like_any_other() {
    let bench = bench();
    let path = bench.path("bomb.tar.gz");
    put(&path, &zeros(64));
    let limits = Limits { image_bytes: 16 << 20, ..Limits::default() };
    let source = Source::DockerArchive { file: path, tag: None };
    let error = bench.import_with(&source, &limits).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Limit { limit: Limit::ImageBytes, max: 16 << 20 }));
    bench.assert_nothing_happened();
}

#[test]
fn a_member_that_claims_more_than_the_archive_has_is_refused() {
    let bench = bench();
    let head = Head { path: b"oci-layout", size: Some(b"00777777777\0"), ..Head::default() };
    let file = archive(&bench, "short.tar", RawTar::new().head(&head, b""));
    let error = bench.import(&Source::OciArchive { file, tag: None }).unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::Truncated));
    bench.assert_nothing_happened();
}

fn rootfs(bench: &Bench, bytes: &[u8]) -> Error {
    put(&bench.path("rootfs.tar"), bytes);
    let error = bench.import(&Source::RootfsTar { file: bench.path("rootfs.tar") }).unwrap_err();
    bench.assert_nothing_happened();
    error
}

#[test]
fn a_rootfs_that_is_cut_off_or_empty_is_refused() {
    let bench = bench();
    let whole = some_tar();
    let between = &whole[..whole.len() - 1024];
    assert_eq!(rootfs(&bench, between).refusal(), Some(&Refusal::Truncated));
    assert_eq!(rootfs(&bench, b"").refusal(), Some(&Refusal::Truncated));
    assert_eq!(rootfs(&bench, &[0; 10240]).refusal(), Some(&Refusal::NoFiles));
    assert_eq!(rootfs(&bench, &gzip(&[0; 10240])).refusal(), Some(&Refusal::NoFiles));
    let got = rootfs(&bench, &gzip(&whole)[..100]);
    assert!(matches!(got.refusal(), Some(Refusal::Stream(_))), "{got:?}");
    assert_eq!(rootfs(&bench, b"not a tar at all").refusal(), Some(&Refusal::Truncated));
}

#[test]
fn a_source_replaced_while_it_is_read_gives_one_content_or_an_error() {
    let bench = bench();
    let old = RawTar::new().file("a", &vec![1; 9 << 20]).file("b", b"old").end();
    let new = RawTar::new().file("a", &vec![2; 9 << 20]).file("b", b"new").end();
    let (path, next) = (bench.path("rootfs.tar"), bench.path("next.tar"));
    put(&path, &old);
    put(&next, &new);
    let mut replaced = false;
    let source = Source::RootfsTar { file: path.clone() };
    let image =
        bench.store.import(&source, &"test".parse().unwrap(), &Limits::default(), &mut |p| {
            if matches!(p, ocivisor_datastore::Progress::Layer { .. }) && !replaced {
                run("mv", &[text(&next), text(&path)]);
                replaced = true;
            }
        });
    let image = image.unwrap();
    assert!(replaced);
    assert_eq!(image.layers[0].to_string(), Digest::of(&old).to_string());
    assert_eq!(fs::read(bench.fs(&image).join("b")).unwrap(), b"old");
}

#[test]
fn a_source_overwritten_in_place_is_hashed_as_it_was_unpacked() {
    let bench = bench();
    let layer = plain(RawTar::new().file("a", &vec![1; 9 << 20]).file("b", b"old").end());
    let layout = bench.layout("layout");
    layout.image(std::slice::from_ref(&layer), &json!({}));
    let path = layout.blob_path(&layer.diff_id);
    let mut changed = false;
    let result = bench.store.import(
        &layout.source(),
        &"test".parse().unwrap(),
        &Limits::default(),
        &mut |p| {
            if matches!(p, ocivisor_datastore::Progress::Layer { .. }) && !changed {
                let mut file = fs::File::options().write(true).open(&path).unwrap();
                std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(8 << 20)).unwrap();
                file.write_all(&[9; 64]).unwrap();
                changed = true;
            }
        },
    );
    assert!(changed);
    let error = result.unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Digest { .. })), "{error:?}");
    bench.assert_nothing_happened();
}
