//! Registries that send us elsewhere: into our own network, out of TLS, to whom our password is no business. Each has
//! its exact error, and nobody learns what he should not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;
#[path = "common/served.rs"]
mod served;
#[path = "common/wire.rs"]
mod wire;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::*;
use ocivisor_datastore::RegistryFault as Fault;
use registry::*;
use serde_json::json;
use served::*;
use wire::*;

// Item 14.

#[test]
fn foreign_layers_are_never_fetched() {
    let target = Scripted::start(|_| Reply::new(200, ""));
    for url in [
        "http://169.254.169.254/x",
        "http://[::1]/",
        "file:///etc/shadow",
        "gopher://x/",
        &target.url(),
    ] {
        let served = Served::changed(|m| m["layers"][0]["urls"] = json!([url]));
        let digest = served.layer_digest();
        assert_eq!(fault(refused(&served)), Fault::ForeignLayer(digest));
    }
    assert_eq!(target.asked().len(), 0);
}

/// A registry that redirects its layer.
fn redirecting(served: &Served, to: &str) -> Scripted {
    let (copy, to) = (served.clone(), to.to_owned());
    server(served, move |asked| {
        copy.is_layer(asked).then(|| Reply::new(307, "").with("location", to.clone()))
    })
}

#[test]
fn redirects_to_where_no_layer_is_are_refused() {
    let served = Served::new();
    let redirect = |to: &str, why| Fault::Redirect { to: to.into(), why };
    let address =
        |host: &str, ip: &str| Fault::Address { host: host.into(), address: ip.parse().unwrap() };
    let unsecured = "is not secured, and not configured to be so";
    let long = format!("https://a.example/{}", "x".repeat(9000));
    let cut = format!("{}...", &long[..200]);
    for (to, want) in [
        (
            "file:///etc/shadow",
            redirect("file:///etc/shadow", "has a scheme other than http and https"),
        ),
        ("gopher://x/", redirect("gopher://x/", "has a scheme other than http and https")),
        (
            "http://169.254.169.254/latest?sig=1",
            redirect("http://169.254.169.254/latest", unsecured),
        ),
        ("https://169.254.169.254/latest", address("169.254.169.254", "169.254.169.254")),
        (
            "https://[::ffff:169.254.169.254]/",
            address("[::ffff:169.254.169.254]", "::ffff:169.254.169.254"),
        ),
        ("https://[fd00:ec2::254]/", address("[fd00:ec2::254]", "fd00:ec2::254")),
        ("https://[fe80::1]/", address("[fe80::1]", "fe80::1")),
        ("https://10.0.0.1/", address("10.0.0.1", "10.0.0.1")),
        ("https://0.0.0.0/", address("0.0.0.0", "0.0.0.0")),
        // As a libc reads it; the check is behind the lookup.
        ("https://2852039166/", address("2852039166", "169.254.169.254")),
        ("https://metadata.example/", address("metadata.example", "169.254.169.254")),
        (
            "https://user:pw@a.example/",
            redirect("https://user:pw@a.example/", "has user information"),
        ),
        (&long, redirect(&cut, "is too long")),
        ("x", redirect("x", "is no absolute address")),
    ] {
        let server = redirecting(&served, to);
        let mut setup = plain_setup(&server);
        setup.names = vec![("metadata.example".into(), IpAddr::from([169, 254, 169, 254]))];
        assert_eq!(fault(refuse(&setup, &server)), want, "{to}");
    }
}

#[test]
fn a_name_that_has_another_address_the_second_time_is_refused() {
    let served = Served::new();
    let ca = Ca::new();
    let copy = served.clone();
    let cdn = Scripted::start_tls(&ca.sign("cdn", &["cdn.example"]), move |asked| {
        let asked = Asked { path: asked.path.replace("/cdn", ""), ..asked.clone() };
        copy.reply(&asked).how(How::Reset(10_000))
    });
    let to = format!("https://cdn.example:{}/cdn/blobs/{}", cdn.port, served.layer_digest());
    let server = redirecting(&served, &to);
    let mut setup = plain_setup(&server);
    setup.config.ca = Some(ca.path());
    // The registry is on loopback, so it may send us there; the connection breaks, and the name leads elsewhere.
    let metadata = Ipv4Addr::new(169, 254, 169, 254).into();
    setup.names =
        vec![("cdn.example".into(), Ipv4Addr::LOCALHOST.into()), ("cdn.example".into(), metadata)];
    let want = Fault::Address { host: "cdn.example".into(), address: metadata };
    assert_eq!(fault(refuse(&setup, &server)), want);
    assert_eq!(cdn.asked().len(), 1);
    cdn.assert_no_credentials();
}

#[test]
fn redirects_end() {
    let served = Served::new();
    let count = Arc::new(AtomicUsize::new(0));
    let (copy, counted) = (served.clone(), count.clone());
    let server = server(&served, move |asked| {
        let is_blob = asked.path.contains("/loop") || copy.is_layer(asked);
        is_blob.then(|| {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            Reply::new(302, "").with("location", format!("/loop/{n}"))
        })
    });
    let error = fault(refuse(&plain_setup(&server), &server));
    let to = format!("{}/loop/5", server.url());
    assert_eq!(error, Fault::Redirect { to, why: "is one of too many" });
    assert_eq!(count.load(Ordering::SeqCst), 6);
}

/// Asks for a login, then serves.
fn with_login(served: &Served, challenge: &str) -> Scripted {
    let challenge = challenge.to_owned();
    let copy = served.clone();
    Scripted::start(move |asked| {
        if asked.headers.contains_key("authorization") {
            copy.reply(asked)
        } else {
            Reply::new(401, "").with("www-authenticate", challenge.clone())
        }
    })
}

#[test]
fn a_redirect_elsewhere_goes_without_the_login() {
    let served = Served::new();
    let copy = served.clone();
    let cdn = Scripted::start(move |asked| copy.reply(asked));
    let (copy, to) = (served.clone(), cdn.url());
    let server = Scripted::start(move |asked| {
        if !asked.headers.contains_key("authorization") {
            return Reply::new(401, "").with("www-authenticate", "Basic realm=\"x\"");
        }
        if copy.is_layer(asked) {
            return Reply::new(307, "").with("location", format!("{to}{}", asked.path));
        }
        copy.reply(asked)
    });
    let mut setup = plain_setup(&server);
    setup.host(&cdn.host()).plain_http = true;
    let bench = Bench::new();
    pull(&bench, &setup, &server).unwrap();
    assert_eq!(cdn.asked().len(), 1);
    cdn.assert_no_credentials();
    let told = server.asked().iter().filter(|a| a.headers.contains_key("authorization")).count();
    assert_eq!(told, 3);
}

#[test]
fn a_redirect_out_of_tls_is_refused() {
    let served = Served::new();
    let ca = Ca::new();
    let target = Scripted::start(|_| Reply::new(200, ""));
    let (copy, to) = (served.clone(), target.url());
    let server = Scripted::start_tls(&ca.sign("server", &["127.0.0.1"]), move |asked| {
        if copy.is_layer(asked) {
            Reply::new(307, "").with("location", to.clone())
        } else {
            copy.reply(asked)
        }
    });
    let mut setup = Setup::new();
    setup.host(&server.host()).ca = Some(ca.path());
    setup.host(&target.host()).plain_http = true;
    let want = Fault::Redirect { to: format!("{}/", target.url()), why: "leaves TLS" };
    assert_eq!(fault(refuse(&setup, &server)), want);
    assert_eq!(target.asked().len(), 0);
}

// Item 15.

#[test]
fn a_login_is_not_told_to_a_foreign_realm() {
    let served = Served::new();
    let ca = Ca::new();
    let thief = Scripted::start_tls(&ca.sign("thief", &["127.0.0.1"]), |_| {
        Reply::new(200, r#"{"token":"x"}"#)
    });
    let challenge = format!("Bearer realm=\"{}/token\",service=\"x\"", thief.url());
    let server = with_login(&served, &challenge);
    let mut setup = plain_setup(&server);
    setup.host(&thief.host()).ca = Some(ca.path());
    let want = Fault::ForeignRealm { realm: thief.url() };
    assert_eq!(fault(refuse(&setup, &server)), want);
    assert_eq!(thief.asked().len(), 0);

    // Where configuration lists it, it is no thief.
    let listed = thief.host().parse().unwrap();
    setup.host(&server.host()).token_hosts.push(listed);
    let bench = Bench::new();
    pull(&bench, &setup, &server).unwrap();
    assert_eq!(thief.asked().len(), 1);
    let path = "/token?service=x&scope=repository:team/app:pull";
    assert_eq!(thief.asked()[0].path, path);
    assert!(thief.asked()[0].headers["authorization"].starts_with("Basic "));

    // Without a login there is nothing to tell.
    let mut anonymous = Setup::new();
    anonymous.host(&server.host()).plain_http = true;
    anonymous.host(&thief.host()).ca = Some(ca.path());
    let bench = Bench::new();
    pull(&bench, &anonymous, &server).unwrap();
    assert!(!thief.asked()[1].headers.contains_key("authorization"));
}

#[test]
fn challenges_that_could_mislead_are_refused() {
    let served = Served::new();
    let realms = ["Bearer realm=\"https://a.example/\""; 100].join(", ");
    for (challenge, why) in [
        (realms.as_str(), Fault::Challenge("more than one realm for tokens")),
        ("Bearer realm=\"http://a.example/\"", Fault::Challenge("a realm that is not secured")),
        (
            "Bearer realm=\"file:///x\"",
            Fault::Challenge("a realm that is no address of http or https"),
        ),
        (
            "Bearer realm=\"/token\"",
            Fault::Challenge("a realm that is no address of http or https"),
        ),
        ("Digest realm=\"x\"", Fault::Challenge("neither Basic nor Bearer")),
        (
            "Bearer realm=\"https://good.example\", realm=\"https://evil.example\"",
            Fault::Challenge("a parameter twice"),
        ),
        (
            "Bearer realm=\"https://auth.example/\"",
            Fault::ForeignRealm { realm: "https://auth.example".into() },
        ),
    ] {
        let server = with_login(&served, challenge);
        assert_eq!(fault(refuse(&plain_setup(&server), &server)), why, "{challenge}");
        server.assert_no_credentials();
    }
}

#[test]
fn an_anonymous_realm_in_our_own_network_is_not_asked() {
    let served = Served::new();
    let server = with_login(&served, "Bearer realm=\"https://10.0.0.1/token\"");
    let mut setup = Setup::new();
    setup.host(&server.host()).plain_http = true;
    let want = Fault::Address { host: "10.0.0.1".into(), address: [10, 0, 0, 1].into() };
    assert_eq!(fault(refuse(&setup, &server)), want);
}

#[test]
fn token_servers_are_bounded_and_do_not_send_us_on() {
    let served = Served::new();
    let thief = Scripted::start(|_| Reply::new(200, r#"{"token":"x"}"#));
    let location = thief.url();
    let replies: Vec<(Box<dyn Fn() -> Reply + Send + Sync>, Fault)> = vec![
        (Box::new(|| Reply::new(200, "").how(How::Endless)), Fault::Token("more than 64 KiB")),
        (
            Box::new(move || Reply::new(307, "").with("location", location.clone())),
            Fault::Token("a redirect"),
        ),
        (Box::new(|| Reply::new(200, "x")), Fault::Token("no JSON")),
        (
            Box::new(|| Reply::new(200, "{}")),
            Fault::Token("no token, or one with characters that no token has"),
        ),
        (
            Box::new(|| Reply::new(200, r#"{"token":"a\r\nx: y"}"#)),
            Fault::Token("no token, or one with characters that no token has"),
        ),
        (Box::new(|| Reply::new(403, "")), Fault::LoginRefused(403)),
    ];
    for (reply, want) in replies {
        let copy = served.clone();
        let port = Arc::new(Mutex::new(0));
        let own = port.clone();
        let server = Scripted::start(move |asked| {
            if asked.path.starts_with("/token") {
                return reply();
            }
            if asked.headers.contains_key("authorization") {
                return copy.reply(asked);
            }
            let realm = format!("Bearer realm=\"http://127.0.0.1:{}/token\"", own.lock().unwrap());
            Reply::new(401, "").with("www-authenticate", realm)
        });
        *port.lock().unwrap() = server.port;
        let mut setup = plain_setup(&server);
        setup.host(&thief.host()).plain_http = true;
        assert_eq!(fault(refuse(&setup, &server)), want);
    }
    assert_eq!(thief.asked().len(), 0);
}

#[test]
fn a_login_that_is_refused_is_tried_once() {
    let served = Served::new();
    let challenge = "Basic realm=\"x\"";
    let server =
        server(&served, move |_| Some(Reply::new(401, "").with("www-authenticate", challenge)));
    assert_eq!(fault(refuse(&plain_setup(&server), &server)), Fault::LoginRefused(401));
    assert_eq!(server.asked().len(), 2);
    let mut nobody = Setup::new();
    nobody.host(&server.host()).plain_http = true;
    assert_eq!(fault(refuse(&nobody, &server)), Fault::LoginRequired);
}
