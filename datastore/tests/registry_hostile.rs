//! Registries that want something else than to serve images: each attack has its exact error, and leaves nothing
//! visible.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;
#[path = "common/served.rs"]
mod served;
#[path = "common/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use ocivisor_datastore::{Digest, DocumentFault, Limit, Limits, Refusal, RegistryFault as Fault};
use registry::*;
use serde_json::{Value, json};
use served::*;
use wire::*;

#[test]
fn the_honest_image_of_these_tests_is_pulled() {
    let served = Served::new();
    let server = server(&served, |_| None);
    let bench = Bench::new();
    let image = pull(&bench, &plain_setup(&server), &server).unwrap();
    assert_eq!(image.manifest_digest, served.digest());
    server.assert_no_credentials();
}

// Item 11.

#[test]
fn digests_that_are_none_are_refused() {
    let hex = Served::new().layer_digest().hex();
    for (digest, why) in [
        (format!("sha512:{hex}{hex}"), "only sha256 is supported"),
        ("sha256:../../x".into(), "not 64 lower-case hex digits"),
    ] {
        let served = Served::changed(|m| m["layers"][0]["digest"] = digest.clone().into());
        let got = why_document(refused(&served)).to_string();
        assert!(got.contains(&format!("{digest}\\\": {why}")), "{got}");
    }
}

#[test]
fn right_size_and_wrong_bytes_or_the_reverse_are_refused() {
    let served = Served::new();
    let (digest, size) = (served.layer_digest(), served.layer.len() as u64);
    let other = vec![1; served.layer.len()];
    let got = Digest::of(&other);
    let copy = served.clone();
    let error =
        answering(&served, move |a| copy.is_layer(a).then(|| Reply::new(200, other.clone())));
    // The tar reader may see it before the digest is known.
    match error.refusal().unwrap() {
        Refusal::Digest { expected, got: found } => assert_eq!((*expected, *found), (digest, got)),
        Refusal::Header(_) => {}
        other => panic!("{other:?}"),
    }

    for (claimed, said) in [(size - 512, size), (size + 512, size)] {
        let served = Served::changed(|m| m["layers"][0]["size"] = claimed.into());
        let want = Refusal::Size { expected: claimed, got: said };
        assert_eq!(*refused(&served).refusal().unwrap(), want);
    }
}

#[test]
fn a_manifest_that_is_not_the_one_named_is_refused() {
    let served = Served::new();
    let wrong = Digest::of(b"other");
    let copy = served.clone();
    let scripted = server(&served, move |asked| {
        let bytes = copy.manifest.clone();
        asked
            .path
            .contains("/manifests/")
            .then(|| Reply::new(200, bytes).with("content-type", MANIFEST))
    });
    let setup = plain_setup(&scripted);
    let bench = Bench::new();
    let reference = format!("{}/team/app@{wrong}", scripted.host());
    let error = bench.import(&setup.source(&reference)).unwrap_err();
    let want = Refusal::Digest { expected: wrong, got: served.digest() };
    assert_eq!(*error.refusal().unwrap(), want);
    bench.assert_nothing_happened();

    // The header contradicts the body.
    let copy = served.clone();
    let error = answering(&served, move |asked| {
        let reply = copy.reply(asked);
        asked
            .path
            .contains("/manifests/")
            .then(|| reply.with("docker-content-digest", wrong.to_string()))
    });
    assert_eq!(*error.refusal().unwrap(), want);
}

#[test]
fn a_blob_that_changes_between_two_requests_is_refused() {
    let served = Served::new();
    for with_ranges in [true, false] {
        let (copy, count) = (served.clone(), AtomicUsize::new(0));
        let error = answering(&served, move |asked| {
            if !copy.is_layer(asked) {
                return None;
            }
            if count.fetch_add(1, Ordering::SeqCst) == 0 {
                return Some(copy.reply(asked).how(How::Reset(20_000)));
            }
            let mut other = copy.clone();
            other.blobs.insert(copy.layer_digest().to_string(), vec![9; copy.layer.len()]);
            let ignored = Asked { headers: BTreeMap::new(), ..asked.clone() };
            Some(other.reply(if with_ranges { asked } else { &ignored }))
        });
        match (with_ranges, error) {
            (true, error) => assert!(error.refusal().is_some(), "{error:?}"),
            (false, error) => assert_eq!(fault(error), Fault::Changed),
        }
    }
}

// Item 12.

#[test]
fn indexes_are_bounded_in_depth_and_width() {
    let served = Served::new();
    let mut deep = served.clone();
    let mut below = (MANIFEST, served.manifest.clone());
    for _ in 0..10 {
        let entry = json!({"mediaType": below.0, "digest": Digest::of(&below.1).to_string(), "size": below.1.len()});
        deep.blobs.insert(Digest::of(&below.1).to_string(), below.1);
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        below = (INDEX, index.to_string().into_bytes());
    }
    let entry = json!({"mediaType": MANIFEST, "digest": served.digest().to_string(), "size": 1});
    let wide = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": vec![entry; 20_000]});
    for (top, limit, max) in [
        (below.1, Limit::IndexNesting, 4),
        (wide.to_string().into_bytes(), Limit::IndexEntries, 1024),
    ] {
        let copy = deep.clone();
        let error = answering(&served, move |asked| {
            let (kind, name) = asked.path.rsplit_once('/').unwrap();
            let body = match name {
                "1" => top.clone(),
                name if kind.ends_with("manifests") => copy.blobs.get(name)?.clone(),
                _ => return None,
            };
            let typed = serde_json::from_slice::<Value>(&body).unwrap()["mediaType"].clone();
            Some(Reply::new(200, body).with("content-type", typed.as_str().unwrap()))
        });
        assert_eq!(why_document(error), DocumentFault::Limit { limit, max });
    }
}

#[test]
fn a_document_without_end_is_cut_off() {
    let served = Served::new();
    let error = answering(&served, |asked| {
        asked
            .path
            .contains("/manifests/")
            .then(|| Reply::new(200, "").with("content-type", MANIFEST).how(How::Endless))
    });
    let limit = DocumentFault::Limit { limit: Limit::DocumentBytes, max: 4 << 20 };
    assert_eq!(why_document(error), limit);
}

// Item 13.

#[test]
fn a_document_under_two_types_is_refused() {
    let served = Served::new();
    let copy = served.manifest.clone();
    let error = answering(&served, move |asked| {
        let reply = || {
            Reply::new(200, copy.clone()).with("content-type", format!("{INDEX}; charset=utf-8"))
        };
        asked.path.contains("/manifests/").then(reply)
    });
    assert_eq!(fault(error), Fault::MediaType { header: INDEX.into(), body: MANIFEST.into() });

    // Without a type inside, the shape has to fit.
    let untyped = Served::changed(|m| drop(m.as_object_mut().unwrap().remove("mediaType")));
    let copy = untyped.manifest.clone();
    let error = answering(&untyped, move |asked| {
        let reply = || Reply::new(200, copy.clone()).with("content-type", INDEX);
        asked.path.contains("/manifests/").then(reply)
    });
    assert!(matches!(why_document(error), DocumentFault::Json(_)));

    for (header, why) in [
        (Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), None),
        (Some("text/html"), None),
        (None, Some("a manifest without a Content-Type")),
    ] {
        let copy = served.manifest.clone();
        let error = answering(&served, move |asked| {
            let reply = Reply::new(200, copy.clone());
            let reply = match header {
                Some(header) => reply.with("content-type", header),
                None => reply,
            };
            asked.path.contains("/manifests/").then_some(reply)
        });
        match why {
            Some(why) => assert_eq!(fault(error), Fault::Protocol(why.into())),
            None => {
                assert_eq!(why_document(error), DocumentFault::MediaType(header.unwrap().into()));
            }
        }
    }
}

// Item 16.

#[test]
fn a_broken_layer_is_gone_on_with() {
    let served = Served::new();
    let (copy, count) = (served.clone(), AtomicUsize::new(0));
    let server = server(&served, move |asked| {
        if !copy.is_layer(asked) {
            return None;
        }
        Some(match count.fetch_add(1, Ordering::SeqCst) {
            0 => copy.reply(asked).with("etag", "\"one\"").how(How::Reset(10_000)),
            1 => Reply::new(503, "busy").with("retry-after", "0"),
            2 => copy.reply(asked).how(How::Reset(10_000)),
            _ => copy.reply(asked),
        })
    });
    let mut setup = plain_setup(&server);
    setup.patience.window_bytes = 1;
    let bench = Bench::new();
    pull(&bench, &setup, &server).unwrap();
    let asked: Vec<_> = server.asked().into_iter().filter(|a| served.is_layer(a)).collect();
    let ranges: Vec<_> = asked.iter().map(|a| a.headers.get("range").map(String::as_str)).collect();
    // A reset may lose bytes that were sent, so the second offset is only bounded.
    assert_eq!(asked.len(), 4);
    assert_eq!(ranges[0], None);
    assert_eq!(asked[1].headers.get("if-range").map(String::as_str), ranges[1].map(|_| "\"one\""));
    assert_eq!(ranges[1], ranges[2]);
}

#[test]
fn a_registry_that_fails_every_other_time_is_borne() {
    let served = Served::new();
    let count = AtomicUsize::new(0);
    let server = server(&served, move |_| {
        count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2).then(|| Reply::new(500, "no"))
    });
    let mut setup = plain_setup(&server);
    setup.config.parallel = 1;
    pull(&Bench::new(), &setup, &server).unwrap();
    assert_eq!(server.asked().len(), 6);
}

#[test]
fn a_registry_that_always_fails_is_given_up_and_quoted_escaped() {
    let served = Served::new();
    let body = "{\"errors\":[{\"code\":\"BUSY\",\"message\":\"\\u001b[2J\\nroot\"}]}";
    let server = server(&served, move |_| Some(Reply::new(502, body)));
    let want = Fault::Status { status: 502, detail: " (BUSY: \\x1b[2J\\nroot)".into() };
    assert_eq!(fault(refuse(&plain_setup(&server), &server)), want);
    assert_eq!(server.asked().len(), 3);
}

#[test]
fn an_error_whose_text_breaks_off_or_is_none_is_told_by_its_status() {
    let served = Served::new();
    let whole = "{\"errors\":[{\"code\":\"NO\"}]}";
    for (body, how) in [(whole, How::Reset(5)), ("<html>no</html>", How::Whole)] {
        let how = std::sync::Mutex::new(Some(how));
        let server = server(&served, move |_| {
            let how = how.lock().unwrap().take().unwrap_or(How::Whole);
            Some(Reply::new(418, body).how(how))
        });
        let want = Fault::Status { status: 418, detail: String::new() };
        assert_eq!(fault(refuse(&plain_setup(&server), &server)), want, "{body}");
    }
}

#[test]
fn a_token_that_breaks_off_is_told_as_the_broken_connection_that_it_is() {
    let served = Served::new();
    let server = server(&served, |asked| {
        if asked.path.starts_with("/token") {
            return Some(Reply::new(200, "{\"token\":\"abc\"}").how(How::Reset(5)));
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", asked.headers["host"]);
        Some(Reply::new(401, "").with("www-authenticate", realm))
    });
    let fault = fault(refuse(&plain_setup(&server), &server));
    assert!(matches!(fault, Fault::Unreachable(_)), "{fault}");
}

#[test]
fn a_range_that_was_not_asked_for_is_refused() {
    let served = Served::new();
    let size = served.layer.len();
    for range in ["bytes 0-9/10", "bytes 1-2", "", "bytes */5"] {
        let (copy, count) = (served.clone(), AtomicUsize::new(0));
        let server = server(&served, move |asked| {
            copy.is_layer(asked).then(|| match count.fetch_add(1, Ordering::SeqCst) {
                0 => Reply::new(200, copy.layer.clone()).how(How::Stall(10_000)),
                _ => Reply::new(206, "x").with("content-range", range),
            })
        });
        let mut setup = plain_setup(&server);
        setup.patience.window = Duration::from_millis(300);
        setup.patience.answer = Duration::from_millis(300);
        let got = fault(refuse(&setup, &server)).to_string();
        let want = if range == "bytes 0-9/10" {
            format!("bad answer: Content-Range 0-9/10, asked for 10000-{}/{size}", size - 1)
        } else {
            "bad answer: a partial answer without a sound Content-Range".to_owned()
        };
        assert_eq!(got, want);
    }
}

#[test]
fn silence_and_dripping_end_in_time() {
    let served = Served::new();
    for (drip, want) in
        [(false, Fault::Timeout("data")), (true, Fault::Stalled { bytes: 1_000_000, seconds: 0 })]
    {
        let copy = served.clone();
        let server = server(&served, move |asked| {
            let how = if drip { How::Drip(Duration::from_millis(5)) } else { How::Stall(1) };
            copy.is_layer(asked).then(|| copy.reply(asked).how(how))
        });
        let mut setup = plain_setup(&server);
        setup.config.attempts = 2;
        setup.patience.window = Duration::from_millis(200);
        setup.patience.answer = Duration::from_millis(200);
        setup.patience.window_bytes = 1_000_000;
        assert_eq!(fault(refuse(&setup, &server)), want);
    }
}

#[test]
fn everything_together_has_a_deadline() {
    let served = Served::new();
    let copy = served.clone();
    let server = server(&served, move |asked| {
        copy.is_layer(asked).then(|| copy.reply(asked).how(How::Drip(Duration::from_millis(5))))
    });
    let mut setup = plain_setup(&server);
    setup.config.deadline_seconds = 1;
    setup.patience.window_bytes = 0;
    assert_eq!(fault(refuse(&setup, &server)), Fault::Deadline(1));
}

#[test]
fn a_certificate_that_is_not_the_hosts_is_refused() {
    let served = Served::new();
    let ca = Ca::new();
    let past = rcgen::date_time_ymd(2000, 1, 1);
    for (signed, trusted, want) in [
        (ca.sign("other", &["other.example"]), true, "not valid for"),
        (
            ca.sign_as("old", &["127.0.0.1"], |p| {
                p.not_before = rcgen::date_time_ymd(1999, 1, 1);
                p.not_after = past;
            }),
            true,
            "expired",
        ),
        (ca.sign("mitm", &["127.0.0.1"]), false, "UnknownIssuer"),
    ] {
        let copy = served.clone();
        let server = Scripted::start_tls(&signed, move |asked| copy.reply(asked));
        let mut setup = Setup::new();
        setup.login(&server.host());
        if trusted {
            setup.host(&server.host()).ca = Some(ca.path());
        }
        match fault(refuse(&setup, &server)) {
            Fault::Tls(why) => assert!(why.contains(want), "{why}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(server.asked().len(), 0);

        // Only configuration that names the host opens this door.
        setup.host(&server.host()).insecure_tls = true;
        pull(&Bench::new(), &setup, &server).unwrap();
    }
}

#[test]
fn a_host_without_tls_must_be_named() {
    let served = Served::new();
    let server = server(&served, |_| None);
    let mut setup = Setup::new();
    setup.login(&server.host());
    // What exactly is said to a greeting of TLS is the server's choice.
    let error = fault(refuse(&setup, &server));
    assert!(matches!(error, Fault::Tls(_) | Fault::Unreachable(_)), "{error:?}");
    assert_eq!(server.asked().iter().filter(|a| a.method == "GET").count(), 0);
}

#[test]
fn answers_that_are_no_image_are_refused() {
    let served = Served::new();
    let copy = served.clone();
    let encoded = answering(&served, move |asked| {
        copy.is_layer(asked).then(|| copy.reply(asked).with("content-encoding", "gzip"))
    });
    let want = Fault::Protocol("Content-Encoding gzip was not asked for".into());
    assert_eq!(fault(encoded), want);

    let copy = served.clone();
    let longer = answering(&served, move |asked| {
        copy.is_layer(asked).then(|| Reply::new(200, "").how(How::Endless))
    });
    assert!(longer.refusal().is_some(), "{longer:?}");

    let head = answering(&served, |_| Some(Reply::new(200, "").with("x", "y".repeat(40_000))));
    assert_eq!(fault(head), Fault::Protocol("the head has more than 32 KiB".into()));
}

#[test]
fn layers_that_would_fill_the_disk_are_not_begun() {
    let served = Served::changed(|m| m["layers"][0]["size"] = (1u64 << 40).into());
    let server = server(&served, |_| None);
    let error = refuse(&plain_setup(&server), &server);
    let want = Refusal::Limit { limit: Limit::ImageBytes, max: Limits::default().image_bytes };
    assert_eq!(*error.refusal().unwrap(), want);
    assert_eq!(server.asked().iter().filter(|a| served.is_layer(a)).count(), 0);
}
