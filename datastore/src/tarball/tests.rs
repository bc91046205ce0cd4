use std::io::Cursor;

use proptest::prelude::*;

use super::*;

/// Path, kind, size, content: enough to see two readers disagree.
type Seen = Vec<(Vec<u8>, Kind, u64, Vec<u8>)>;

fn read_all<R: Skip>(from: R, read_data: bool) -> Result<Seen, String> {
    let limits = Limits::default();
    let mut budget = limits.entries;
    let mut tarball = Tarball::new(from, &limits, &mut budget, Trailer::Optional);
    let mut seen = Vec::new();
    loop {
        let entry = match tarball.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(seen),
            Err(fault) => return Err(format!("{fault:?}")),
        };
        let mut content = Vec::new();
        let mut buf = [0; 333];
        let mut more = read_data;
        while more {
            let n = tarball.read(&mut buf).map_err(|fault| format!("{fault:?}"))?;
            content.extend(&buf[..n]);
            more = n > 0;
        }
        seen.push((entry.path, entry.kind, entry.size, content));
    }
}

fn built(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn data_that_nobody_reads_is_passed_over() {
    let tar =
        built(&[("a".into(), vec![1; 1000]), ("b".into(), vec![]), ("c".into(), vec![2; 512])]);
    let paths = |seen: Seen| seen.into_iter().map(|e| e.0).collect::<Vec<_>>();
    let want = [b"a", b"b", b"c"].map(|p| p.to_vec());
    assert_eq!(paths(read_all(Streaming(&tar[..]), false).unwrap()), want);
    assert_eq!(paths(read_all(Seeking(Cursor::new(&tar)), false).unwrap()), want);
}

#[test]
fn data_that_ends_early_is_noticed_by_both_readers() {
    let tar = built(&[("a".into(), vec![1; 5000])]);
    let cut = &tar[..2000];
    assert_eq!(read_all(Streaming(cut), false).unwrap_err(), "Refused(Truncated)");
    assert_eq!(read_all(Seeking(Cursor::new(cut)), false).unwrap_err(), "Refused(Truncated)");
}

proptest! {
    #[test]
    fn we_read_what_the_tar_crate_writes(
        files in prop::collection::vec(("[a-z]{1,90}(/[a-z]{1,90}){0,3}", prop::collection::vec(any::<u8>(), 0..1500)), 0..8)
    ) {
        let tar = built(&files);
        let want: Seen = files
            .iter()
            .map(|(path, data)| (path.clone().into_bytes(), Kind::File, data.len() as u64, data.clone()))
            .collect();
        prop_assert_eq!(read_all(Streaming(&tar[..]), true).unwrap(), want.clone());
        prop_assert_eq!(read_all(Seeking(Cursor::new(&tar)), true).unwrap(), want);
    }

    #[test]
    fn seeking_and_streaming_agree_on_damaged_tars(
        files in prop::collection::vec(("[a-z]{1,150}", prop::collection::vec(any::<u8>(), 0..900)), 1..4),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut tar = built(&files);
        for (at, byte) in damage {
            let at = at.index(tar.len());
            tar[at] = byte;
        }
        tar.truncate(cut.index(tar.len() + 1));
        prop_assert_eq!(
            read_all(Streaming(&tar[..]), false),
            read_all(Seeking(Cursor::new(&tar)), false)
        );
    }
}
