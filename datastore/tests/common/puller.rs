//! A registry with an image in it, and another process that imports what its environment says: to be killed, to be one of
//! several, or to have an environment of its own.
#![allow(dead_code, reason = "each test file uses its part")]

use std::process::{Child, Command, Stdio};

use ocivisor_datastore::{HttpsSource, ImageName, Limits, Source, Store};
use serde_json::{Value, json};

use super::common::*;
use super::registry::*;

pub const CHILD: &str = "OCIVISOR_TEST_REGISTRY_CHILD";

pub fn two_layers() -> [Layer; 2] {
    [gzipped(&big(1, 300_000)), gzipped(&big(2, 3_000_000))]
}

/// A registry with TLS and login that has an image which skopeo pushed.
pub fn filled(bench: &Bench, ca: &Ca, layers: &[Layer]) -> (Distribution, Layout, String) {
    let server = Distribution::start(Some(&ca.sign("server", &["127.0.0.1"])), &Auth::Basic);
    let layout = bench.layout("layout");
    layout.image(layers, &json!({"Env": ["A=b"], "Cmd": ["/bin/sh"]}));
    let reference = format!("docker://{}/team/app:1", server.host());
    skopeo(ca, &format!("oci:{}", layout.dir.display()), &reference);
    (server, layout, reference)
}

pub fn assert_clean(bench: &Bench) {
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
    assert_eq!(entries(&bench.path("store/partial")), Vec::<String>::new());
    assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
}

/// What a pull or a file from a web server is, as a child reads it from its environment.
pub fn source(what: &Value) -> Source {
    let mut setup = Setup::new();
    setup.config = serde_json::from_value(what["config"].clone()).unwrap();
    let text = |key: &str| what[key].as_str();
    match (text("reference"), text("url")) {
        (Some(reference), None) => setup.source(reference),
        (None, Some(url)) => Source::HttpsTar(HttpsSource {
            url: url.parse().unwrap(),
            digest: Some(text("digest").unwrap().parse().unwrap()),
            registries: setup.registries(),
        }),
        _ => panic!("{what}"),
    }
}

#[expect(clippy::disallowed_methods, reason = "the test runs itself as the process to be killed")]
pub fn itself(program: &str, what: &Value) -> Command {
    let mut command = Command::new(program);
    command.env(CHILD, what.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

pub fn this_test() -> String {
    std::env::current_exe().unwrap().display().to_string()
}

pub fn test_name() -> ImageName {
    "test".parse().unwrap()
}

/// It, with other programs to find.
pub fn spawn(what: &Value, path: &str) -> Child {
    itself(&this_test(), what).args(["child", "--exact"]).env("PATH", path).spawn().unwrap()
}

/// The child's life: one import. Without the variable there is nothing to do.
pub fn live() {
    let Some(what) = std::env::var_os(CHILD) else { return };
    let what: Value = serde_json::from_slice(what.as_encoded_bytes()).unwrap();
    let store = Store::open(what["store"].as_str().unwrap().as_ref()).unwrap();
    store.import(&source(&what), &test_name(), &Limits::default(), &mut |_| {}).unwrap();
}
