//! Documents that a user of the platform can bring about, made by somebody who means harm.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests look at what is on hosts"
)]

use std::path::Path;
use std::time::Duration;

use ocivisor_conformance::Cloud;
use ocivisor_conformance::cloud::Ran;
use ocivisor_conformance::xml::Element;

/// No document takes more of a processor, not even here, where programs are not optimised; `docs/performance.md` has figures.
const SOON: Duration = Duration::from_millis(100);
const ARGUMENTS: [&str; 4] = ["/x//datastores/101/0/deployment.0", "host01", "0", "host01"];

/// A cloud, and the deployment file of its VM 0, whose disk is in its place and which does not run.
fn powered_off() -> (Cloud, String) {
    let cloud = Cloud::start(Path::new(env!("CARGO_BIN_EXE_ocivisor-conformance")));
    cloud.ask("onetemplate instantiate base --name web --hold");
    cloud.leads("onevm deploy 0 host01 101", 0, "RUNNING");
    let document = cloud.oned.model().vm_document(0).write();
    cloud.leads("onevm poweroff 0", 0, "POWEROFF");
    (cloud, document)
}

#[test]
fn documents_that_are_none_are_refused_soon_and_change_nothing() {
    let (cloud, good) = powered_off();
    let before = cloud.holdings();
    let laughs: String = (1..20)
        .map(|n| format!("<!ENTITY l{n} \"{}\">", format!("&l{};", n - 1).repeat(10)))
        .collect();
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from} is not in {good}");
        good.replacen(from, to, 1).into_bytes()
    };
    let mut cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("laughs", format!("<!DOCTYPE VM [<!ENTITY l0 \"ha\">{laughs}]><VM>&l19;</VM>").into()),
        (
            "an entity of a file",
            format!("<!DOCTYPE VM [<!ENTITY f SYSTEM \"file:///etc/passwd\">]>{good}").into(),
        ),
        ("depth", "<A>".repeat(1_000_000).into()),
        ("no end of it", vec![b'a'; 64 << 20]),
        ("no UTF-8", [&good.as_bytes()[..40], b"\xff\xfe", &good.as_bytes()[40..]].concat()),
        ("two numbers", with("<ID>0</ID>", "<ID>0</ID><ID>1</ID>")),
        ("another's number", with("<ID>0</ID>", "<ID>7</ID>")),
        ("a negative disk", with("<DISK_ID><![CDATA[0]]>", "<DISK_ID><![CDATA[-1]]>")),
        ("a newline in a bridge", with("<![CDATA[br0]]>", "<![CDATA[br0\nbr1]]>")),
        ("a path as bridge", with("<![CDATA[br0]]>", "<![CDATA[../br0]]>")),
        ("a newline in a MAC", with("<![CDATA[02:00:c0", "<![CDATA[02:00:c0\n")),
        ("no memory", with("<MEMORY><![CDATA[64]]>", "<MEMORY><![CDATA[0]]>")),
        ("negative memory", with("<MEMORY><![CDATA[64]]>", "<MEMORY><![CDATA[-64]]>")),
        (
            "endless memory",
            with("<MEMORY><![CDATA[64]]>", "<MEMORY><![CDATA[99999999999999999999]]>"),
        ),
        ("no number as CPU", with("<CPU><![CDATA[0.5]]>", "<CPU><![CDATA[NaN]]>")),
    ];
    // What ssh's here-document leaves of a value with its end word in it.
    cases.push(("a cut one", good.as_bytes()[..good.len() / 2].to_vec()));
    for (name, document) in cases {
        let Ran { code, out, err, cpu } = cloud.script("host01", "deploy", &ARGUMENTS, &document);
        eprintln!("{name}: {cpu:?}");
        assert_ne!(code, 0, "{name}: {out}{err}");
        assert_eq!(out, "", "{name}");
        let plain: Vec<&str> = err.lines().filter(|line| !line.starts_with("INFO: ")).collect();
        assert_eq!(plain.len(), 1, "{name}: one sentence: {err}");
        assert!(plain[0].ends_with('.') && plain[0].len() < 1000, "{name}: {err}");
        assert!(cpu < SOON, "{name} took {cpu:?}");
        assert_eq!(cloud.holdings(), before, "{name}");
    }
}

#[test]
fn no_value_of_a_document_is_run() {
    let (cloud, good) = powered_off();
    let root = cloud.oned.drivers.place.root().to_owned();
    let mark = root.join("somebody-ran-it");
    let payload = format!(
        "$(touch {0});`touch {0}`'\";touch {0};|touch {0} %n -oProxyCommand=touch {0}",
        mark.display()
    );
    let whole = Element::read(&good).unwrap();
    let values = whole.clone().texts_mut().len();
    assert!(values > 80, "{values}");
    for at in 0..values {
        let mut document = whole.clone();
        let mut texts = document.texts_mut();
        let before = std::mem::replace(texts[at], payload.clone());
        let text = document.write();
        let Ran { code, out, err, cpu } =
            cloud.script("host01", "deploy", &ARGUMENTS, text.as_bytes());
        eprintln!("{before:?}: {code} {cpu:?}");
        assert!(cpu < SOON, "in place of {before:?}: {cpu:?}");
        let answers = if code == 0 { out == "one-0\n" } else { out.is_empty() };
        assert!(answers, "in place of {before:?}: {code} {out:?} {err}");
        assert!(!mark.exists(), "in place of {before:?}, somebody ran it");
        if code == 0 {
            let cancel = ["one-0", "host01", "0", "host01"];
            let ran = cloud.script("host01", "cancel", &cancel, b"");
            assert_eq!(ran.code, 0, "in place of {before:?}: {}", ran.err);
        }
    }
    assert!(!cloud.node("host01").dir().join("home/somebody-ran-it").exists());
    cloud.leads("onevm terminate 0", 0, "DONE");
    assert_eq!(cloud.node("host01").holdings().processes, Vec::<u32>::new());
}
