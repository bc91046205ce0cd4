use super::*;
use crate::unpack::Report;

fn task(limits: &Limits) -> Task<'_> {
    Task { limits, bytes: 1000, entries: 10, compression: Some(Compression::Gzip) }
}

fn done() -> Said {
    Said::Done {
        diff_id: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
        bytes: 1000,
        headers: 10,
        compression: Compression::Gzip,
        report: Report::default(),
    }
}

fn judge(said: Said) -> Result<Fallible<Content>, &'static str> {
    Answer(said).judge(&task(&Limits::default()))
}

#[test]
fn every_refusal_of_unpacking_comes_back_as_it_was() {
    for refusal in [
        Refusal::limit(Limit::Depth, 256u64),
        Refusal::ParentTraversal,
        Refusal::Header("wrong checksum"),
        Refusal::EntryType(b'Z'),
        Refusal::Id { field: "gid", id: 70_000 },
        Refusal::Id { field: "uid", id: 70_000 },
        Refusal::Stream("corrupt deflate stream".into()),
        Refusal::Truncated,
    ] {
        let answer = Answer::content(Err((refusal.clone().into(), Some("a\\nb".into()))));
        let bytes = serde_json::to_vec(&answer).unwrap();
        let limits = Limits::default();
        match Answer::decode(&bytes).unwrap().judge(&task(&limits)) {
            Ok(Err((Fault::Refused(got), Some(at)))) => {
                assert_eq!((got, at.as_str()), (refusal, "a\\nb"));
            }
            other => panic!("{refusal:?}: {other:?}"),
        }
    }
}

#[test]
fn an_answer_that_cannot_be_true_is_not_believed() {
    assert!(matches!(judge(done()), Ok(Ok(_))));
    let spoil = |change: &dyn Fn(&mut u64, &mut u64, &mut Compression, &mut Report)| {
        let mut said = done();
        if let Said::Done { bytes, headers, compression, report, .. } = &mut said {
            change(bytes, headers, compression, report);
        }
        assert_eq!(judge(said).unwrap_err(), "numbers that cannot be");
    };
    spoil(&|bytes, _, _, _| *bytes = 1001);
    spoil(&|_, headers, _, _| *headers = 11);
    spoil(&|_, _, compression, _| *compression = Compression::Xz);
    spoil(&|_, _, _, report| report.entries = 11);
    spoil(&|_, _, _, report| report.bytes = 1001);
    let unescaped = |why| judge(Said::Refused { entry: Some("a\x1b[2J".into()), why });
    assert_eq!(unescaped(Why::Truncated).unwrap_err(), "text that is not escaped");
    let made_up = judge(Said::Refused { entry: None, why: Why::Pax("run rm -rf".into()) });
    assert_eq!(made_up.unwrap_err(), "an unknown reason");
    let foreign = judge(Said::Refused { entry: None, why: Why::Limit(Limit::Layers) });
    assert_eq!(foreign.unwrap_err(), "a foreign limit");
    let op = judge(Said::Failed { entry: None, op: "format".into(), errno: 5 });
    assert_eq!(op.unwrap_err(), "an unknown operation");
}

#[test]
fn a_stream_is_as_long_as_its_answer_says() {
    let expanded = |bytes| Answer(Said::Expanded { bytes });
    assert!(matches!(expanded(7).judge_stream(7), Ok(Ok(()))));
    assert_eq!(expanded(7).judge_stream(6).unwrap_err(), "another length than came");
    assert_eq!(Answer(done()).judge_stream(1000).unwrap_err(), "what another job would");
    assert_eq!(judge(Said::Expanded { bytes: 1000 }).unwrap_err(), "what another job would");
    let failed = Answer(Said::Failed { entry: None, op: "read".into(), errno: 5 });
    match failed.judge_stream(7) {
        Ok(Err((Fault::Worker(why), None))) => {
            assert_eq!(why, "cannot read: Input/output error (os error 5)");
        }
        other => panic!("{other:?}"),
    }
    let cut = Answer(Said::Refused { entry: None, why: Why::Stream("corrupt".into()) });
    assert!(matches!(cut.judge_stream(0), Ok(Err((Fault::Refused(Refusal::Stream(_)), None)))));
}

#[test]
fn what_is_known_of_a_disk_comes_back_as_it_was() {
    let limits = Limits { entries: 10, ..Limits::default() };
    let facts = |xattrs_dropped| DiskFacts {
        system: System::known(Some("/sbin/init"), true, None).unwrap(),
        xattrs_dropped,
    };
    let judge = |sent, seen| {
        let bytes = serde_json::to_vec(&Answer::disk(sent)).unwrap();
        Answer::decode(&bytes).unwrap().judge_disk(seen, &limits)
    };
    assert_eq!(judge(Ok((7, facts(1280))), 7).unwrap().unwrap().unwrap(), facts(1280));
    assert_eq!(judge(Ok((7, facts(1281))), 7).unwrap_err(), "numbers that cannot be");
    assert_eq!(judge(Ok((7, facts(0))), 6).unwrap_err(), "another length than came");
    assert_eq!(judge(Ok((0, facts(0))), 0).unwrap_err(), "numbers that cannot be");
    // The longest that is said of a disk.
    let name = crate::error::escape(&[0xff; 300]);
    let fault = || DiskFault::Backing { name: name.clone() }.at(&[0xfe; 300]);
    let Ok(Ok(Err(got))) = judge(Err(DiskEnd::Refused(fault())), 0) else { panic!() };
    assert_eq!(got.to_string(), fault().to_string());
    let source = io::Error::from_raw_os_error(5);
    let read = DiskFault::Read { at: 9, source };
    let Ok(Ok(Err(got))) = judge(Err(DiskEnd::Refused(read)), 0) else { panic!() };
    assert_eq!(got.to_string(), "cannot read at byte 9: Input/output error (os error 5)");
    let closed = Fault::Io("write", io::Error::from_raw_os_error(32));
    let Ok(Err((Fault::Worker(got), None))) = judge(Err(DiskEnd::Failed(closed)), 0) else {
        panic!()
    };
    assert_eq!(got, "cannot write: Broken pipe (os error 32)");
}

#[test]
fn an_answer_with_more_or_less_fields_is_not_read() {
    for bytes in [
        &b""[..],
        b"{}",
        b"null",
        br#"{"refused":{"entry":null,"why":"truncated","more":1}}"#,
        br#"{"refused":{"why":{"no_such":1}}}"#,
        br#"{"refused":{"entry":null,"why":"truncated"}} {}"#,
    ] {
        assert!(Answer::decode(bytes).is_err(), "{}", bytes.escape_ascii());
    }
}

/// A reason that is missing there would make a good worker's answer nonsense.
#[test]
fn all_reasons_in_the_source_are_on_the_list() {
    let sources = [
        include_str!("../content.rs"),
        include_str!("../compress.rs"),
        include_str!("../tarball/mod.rs"),
        include_str!("../tarball/header.rs"),
        include_str!("../tarball/pax.rs"),
        include_str!("../unpack/mod.rs"),
        include_str!("../unpack/tree.rs"),
        include_str!("../unpack/xattr.rs"),
        include_str!("serve.rs"),
    ];
    let openers = [
        "Refusal::Header(",
        "Refusal::Pax(",
        "Refusal::Whiteout(",
        "Refusal::HardLink(",
        "Refusal::Symlink(",
        "Refusal::Parent(",
        "Refusal::Xattr(",
        "Fault::Io(",
        ".doing(",
    ];
    let mut seen = 0;
    for source in sources {
        let source = source.split("#[cfg(test)]").next().unwrap();
        for opener in openers {
            for rest in source.split(opener).skip(1) {
                let Some(text) = rest.trim_start().strip_prefix('"') else { continue };
                let text = text.split('"').next().unwrap();
                assert!(constant(text).is_some(), "{opener}{text:?} is not in CONSTANTS");
                seen += 1;
            }
        }
    }
    assert!(seen > 60, "only {seen} found");
}
