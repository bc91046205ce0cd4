//! Root file systems from web servers: over TLS, with a stated digest, whatever breaks on the way.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;
#[path = "common/wire.rs"]
mod wire;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use ocivisor_datastore::{
    Digest, Error, HttpsSource, Image, Limits, Refusal, RegistryFault as Fault, Source,
};
use registry::*;
use wire::*;

/// As honest servers of files answer, ranges included.
fn honest(file: &[u8], asked: &Asked) -> Reply {
    let from = asked.headers.get("range").map_or(0, |range| {
        range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap()
    });
    match from {
        0 => Reply::new(200, file),
        from if from >= file.len() => {
            Reply::new(416, "").with("content-range", format!("bytes */{}", file.len()))
        }
        from => {
            let range = format!("bytes {from}-{}/{}", file.len() - 1, file.len());
            Reply::new(206, &file[from..]).with("content-range", range)
        }
    }
}

struct Web {
    ca: Ca,
    server: Scripted,
    setup: Setup,
}

impl Web {
    fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let ca = Ca::new();
        let server = Scripted::start_tls(&ca.sign("server", &["127.0.0.1"]), script);
        let mut setup = Setup::new();
        setup.config.ca = Some(ca.path());
        Self { ca, server, setup }
    }

    fn source(&self, digest: Digest) -> Source {
        self.at(&format!("{}/root.tar", self.server.url()), Some(digest))
    }

    fn at(&self, url: &str, digest: Option<Digest>) -> Source {
        let url = url.parse().unwrap();
        Source::HttpsTar(HttpsSource { url, digest, registries: self.setup.registries() })
    }
}

fn from_file(file: &[u8]) -> Image {
    let bench = Bench::new();
    put(&bench.path("root.tar"), file);
    bench.import(&Source::RootfsTar { file: bench.path("root.tar") }).unwrap()
}

fn assert_clean(bench: &Bench) {
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
    assert_eq!(entries(&bench.path("store/partial")), Vec::<String>::new());
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
}

/// What the part of a file holds.
fn part(bench: &Bench, digest: &Digest) -> Option<Vec<u8>> {
    fs::read(bench.path("store/partial").join(digest.hex())).ok()
}

/// A part as an earlier process had it when it died.
fn leave(bench: &Bench, digest: &Digest, bytes: &[u8]) {
    let dir = bench.path("store/partial");
    fs::DirBuilder::new().mode(0o700).create(&dir).unwrap();
    put(&dir.join(digest.hex()), bytes);
    fs::set_permissions(dir.join(digest.hex()), fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_tarball_from_a_web_server_is_the_image_that_its_file_is() {
    let tar = big(1, 300_000);
    for file in [tar.clone(), gzip(&tar), xz(&tar), zstd(&tar)] {
        let bench = Bench::new();
        let served = file.clone();
        let web = Web::start(move |asked| honest(&served, asked));
        let digest = Digest::of(&file);
        let image = bench.import(&web.source(digest)).unwrap();
        assert_eq!(image, from_file(&file));
        assert_clean(&bench);
        web.server.assert_no_credentials();

        // What is here is not asked for again, whoever has it there now.
        let again = web.at("https://127.0.0.1:1/elsewhere", Some(digest));
        assert_eq!(bench.import(&again).unwrap(), image);
        assert_eq!(web.server.asked().len(), 1);
        assert_clean(&bench);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tests run foreign tools")]
fn a_server_that_others_wrote_serves_us() {
    let (bench, dir, ca) = (Bench::new(), tempfile::tempdir().unwrap(), Ca::new());
    let file = gzip(&big(2, 100_000));
    put(&dir.path().join("root.tar.gz"), &file);
    let signed = ca.sign("server", &["127.0.0.1"]);
    let port = free_port();
    let script = format!(
        "import http.server, ssl, functools\n\
         h = functools.partial(http.server.SimpleHTTPRequestHandler, directory={:?})\n\
         s = http.server.ThreadingHTTPServer(('127.0.0.1', {port}), h)\n\
         c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n\
         c.load_cert_chain({:?}, {:?})\n\
         s.socket = c.wrap_socket(s.socket, server_side=True)\n\
         s.serve_forever()\n",
        dir.path(),
        signed.cert,
        signed.key
    );
    let mut child = std::process::Command::new("python3")
        .args(["-c", &script])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    let up = std::panic::catch_unwind(|| {
        wait_for("the server", || std::net::TcpStream::connect(address).is_ok());
    });
    let mut setup = Setup::new();
    setup.config.ca = Some(ca.path());
    let url = format!("https://{address}/root.tar.gz").parse().unwrap();
    let digest = Some(Digest::of(&file));
    let source = HttpsSource { url, digest, registries: setup.registries() };
    let imported = bench.import(&Source::HttpsTar(source));
    child.kill().unwrap();
    child.wait().unwrap();
    up.unwrap();
    assert_eq!(imported.unwrap(), from_file(&file));
    assert_clean(&bench);
}

#[test]
fn without_the_right_digest_nothing_is_seen_of_a_file() {
    let file = gzip(&big(3, 100_000));
    let wanted = Digest::of(b"another");
    for served in [file.clone(), b"<html>".to_vec(), file[..50_000].to_vec()] {
        let bench = Bench::new();
        let got = Digest::of(&served);
        let web = Web::start(move |asked| honest(&served, asked));
        let Err(Error::Refused { object, why }) = bench.import(&web.source(wanted)) else {
            panic!()
        };
        assert_eq!(object, format!("{}/root.tar", web.server.url()));
        assert_eq!(why, Refusal::Digest { expected: wanted, got });
        bench.assert_nothing_happened();
        assert_eq!(part(&bench, &wanted), None);
    }
}

#[test]
fn a_digest_must_be_stated_and_tls_must_be_there() {
    let bench = Bench::new();
    let web = Web::start(|_| Reply::new(200, ""));
    let url = format!("{}/x?token=1", web.server.url());
    let Err(Error::Source { from, why }) = bench.import(&web.at(&url, None)) else { panic!() };
    assert_eq!(from, format!("{}/x", web.server.url()));
    assert_eq!(why, "state the digest that the file must have, as sha256:HEX");
    assert_eq!(web.server.asked().len(), 0);
    assert!(matches!("http://127.0.0.1/x".parse::<Source>(), Err(Error::Source { .. })));

    let mut stranger = Web::start(|_| Reply::new(200, ""));
    stranger.setup.config.ca = Some(web.ca.path());
    let error = bench.import(&stranger.source(Digest::of(b""))).unwrap_err();
    assert!(matches!(error, Error::Registry { why: Fault::Tls(_), .. }), "{error:?}");
    bench.assert_nothing_happened();
}

#[test]
fn a_transfer_that_breaks_is_gone_on_with() {
    let file = gzip(&big(4, 400_000));
    let bench = Bench::new();
    let (served, count) = (file.clone(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    let web = Web::start(move |asked| match counted.fetch_add(1, Ordering::SeqCst) {
        0 => honest(&served, asked).with("etag", "\"v1\"").how(How::Reset(100_000)),
        1 => Reply::new(503, ""),
        _ => honest(&served, asked),
    });
    assert_eq!(bench.import(&web.source(Digest::of(&file))).unwrap(), from_file(&file));
    let asked = web.server.asked();
    assert_eq!(asked.len(), 3);
    assert!(!asked[0].headers.contains_key("range"));
    for asked in &asked[1..] {
        let from = asked.headers["range"].trim_start_matches("bytes=").trim_end_matches('-');
        // How much got through before the reset is the kernel's choice.
        assert!((1..=100_000).contains(&from.parse::<u32>().unwrap()));
        assert_eq!(asked.headers["if-range"], "\"v1\"");
    }
    assert_clean(&bench);
}

#[test]
fn what_another_process_left_is_gone_on_with_or_thrown_away() {
    let file = gzip(&big(5, 200_000));
    let digest = Digest::of(&file);
    let mut wrong = file[..50_000].to_vec();
    wrong[7] ^= 1;
    for (left, ranges) in [
        (file[..50_000].to_vec(), vec![true]),
        (file.clone(), vec![true]),
        (wrong, vec![true, false]),
        ([&file[..], b"more"].concat(), vec![true, false]),
    ] {
        let bench = Bench::new();
        leave(&bench, &digest, &left);
        let served = file.clone();
        let web = Web::start(move |asked| honest(&served, asked));
        assert_eq!(bench.import(&web.source(digest)).unwrap(), from_file(&file));
        let asked: Vec<bool> =
            web.server.asked().iter().map(|a| a.headers.contains_key("range")).collect();
        assert_eq!(asked, ranges, "{} bytes were left", left.len());
        assert_clean(&bench);
    }
    // A server without ranges sends all again; what is here is compared, not trusted.
    let bench = Bench::new();
    leave(&bench, &digest, &file[..50_000]);
    let served = file.clone();
    let web = Web::start(move |_| Reply::new(200, served.clone()));
    assert_eq!(bench.import(&web.source(digest)).unwrap(), from_file(&file));
    assert_eq!(web.server.asked().len(), 1);
    assert_clean(&bench);
}

#[test]
fn redirects_are_followed_within_tls_and_without_logins() {
    let file = gzip(&big(6, 50_000));
    let served = file.clone();
    let cdn = Web::start(move |asked| honest(&served, asked));
    let (to, plain) = (format!("{}/signed?sig=1", cdn.server.url()), "http://127.0.0.1:1/x");
    let go = move |asked: &Asked, to: &str| {
        if asked.headers.contains_key("authorization") {
            Reply::new(302, "").with("location", to)
        } else {
            Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\"")
        }
    };
    let bench = Bench::new();
    for (to, fine) in [(to.clone(), true), (plain.to_owned(), false)] {
        let target = to.clone();
        let mut web = Web::start(move |asked| go(asked, &target));
        web.setup.login(&web.server.host()).ca = Some(web.ca.path());
        web.setup.host(&cdn.server.host()).ca = Some(cdn.ca.path());
        let imported = bench.import(&web.source(Digest::of(&file)));
        if fine {
            assert_eq!(imported.unwrap(), from_file(&file));
            bench.store.remove(&"test".parse().unwrap()).unwrap();
            bench.store.prune(&std::collections::HashSet::new()).unwrap();
        } else {
            let Err(Error::Registry { why, .. }) = imported else { panic!() };
            assert_eq!(why, Fault::Redirect { to, why: "leaves TLS" });
        }
    }
    cdn.server.assert_no_credentials();
    // A login that is wanted and not there.
    let web = Web::start(move |asked| go(asked, ""));
    let Err(Error::Registry { why, .. }) = bench.import(&web.source(Digest::of(&file))) else {
        panic!()
    };
    assert_eq!(why, Fault::LoginRequired);
    // Into a network where the server itself is not.
    let web = Web::start(|_| Reply::new(302, "").with("location", "https://10.0.0.1/x"));
    let Err(Error::Registry { why, .. }) = bench.import(&web.source(Digest::of(&file))) else {
        panic!()
    };
    assert!(matches!(why, Fault::Address { .. }), "{why:?}");
}

#[test]
fn servers_that_stall_or_never_end_are_given_up() {
    let file = gzip(&big(7, 200_000));
    let digest = Digest::of(&file);
    let served = file.clone();
    let mut web = Web::start(move |asked| honest(&served, asked).how(How::Stall(1000)));
    web.setup.patience.window = Duration::from_millis(100);
    web.setup.patience.answer = Duration::from_millis(200);
    web.setup.config.attempts = 2;
    let bench = Bench::new();
    let Err(Error::Registry { why, .. }) = bench.import(&web.source(digest)) else { panic!() };
    assert_eq!(why, Fault::Timeout("data"));
    bench.assert_nothing_happened();
    assert!(!part(&bench, &digest).unwrap().is_empty(), "the next attempt goes on from there");

    let web = Web::start(|_| Reply::new(200, "").how(How::Endless));
    let bench = Bench::new();
    let limits = Limits { image_bytes: 1 << 20, ..Limits::default() };
    let why = bench.import_with(&web.source(digest), &limits).unwrap_err();
    assert!(matches!(why.refusal(), Some(Refusal::Limit { .. })), "{why:?}");
    let huge = Web::start(|_| Reply::new(200, "x").with("content-length", "1048577"));
    let why = bench.import_with(&huge.source(digest), &limits).unwrap_err();
    assert!(matches!(why.refusal(), Some(Refusal::Limit { .. })), "{why:?}");
    bench.assert_nothing_happened();
}
