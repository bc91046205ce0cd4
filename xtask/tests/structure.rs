//! The shape of the workspace, so that it cannot drift unseen: which crate may know which, where
//! async may be, how long a file may be, under which licences we stand.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What each crate may depend on of ours, tests included (design: `docs/ARCHITECTURE.md`). A crate
/// that is not listed is a failure: somebody has to decide where it stands.
const EDGES: [(&str, &[&str]); 20] = [
    ("ocivisor-core", &[]),
    ("ocivisor-schema", &["ocivisor-core"]),
    ("ocivisor-datastore", &[]),
    ("ocivisor-unpack", &["ocivisor-datastore"]),
    ("ocivisor-frame", &[]),
    ("ocivisor-shim", &["ocivisor-frame"]),
    ("ocivisor-opennebula", &["ocivisor-core", "ocivisor-schema"]),
    (
        "ocivisor-frontend",
        &["ocivisor-core", "ocivisor-datastore", "ocivisor-opennebula", "ocivisor-schema"],
    ),
    ("ocivisor-rpc", &["ocivisor-core", "ocivisor-schema"]),
    (
        "ocivisor-agent",
        &["ocivisor-core", "ocivisor-opennebula", "ocivisor-rpc", "ocivisor-schema"],
    ),
    ("ocivisor-context", &["ocivisor-core", "ocivisor-schema"]),
    ("ocivisor-copy", &["ocivisor-core"]),
    (
        "ocivisor-host",
        &[
            "ocivisor-context",
            "ocivisor-core",
            "ocivisor-datastore",
            "ocivisor-schema",
            "ocivisor-shim",
        ],
    ),
    (
        "ocivisor-runtime",
        &[
            "ocivisor-context",
            "ocivisor-copy",
            "ocivisor-core",
            "ocivisor-frame",
            "ocivisor-host",
            "ocivisor-shim",
        ],
    ),
    ("ocivisor-vnc", &["ocivisor-shim"]),
    (
        "ocivisord",
        &[
            "ocivisor-core",
            "ocivisor-datastore",
            "ocivisor-frame",
            "ocivisor-host",
            "ocivisor-rpc",
            "ocivisor-schema",
        ],
    ),
    (
        "ocivisor",
        &[
            "ocivisor-agent",
            "ocivisor-copy",
            "ocivisor-core",
            "ocivisor-frame",
            "ocivisor-frontend",
            "ocivisor-opennebula",
            "ocivisor-rpc",
            "ocivisor-schema",
            "ocivisor-shim",
        ],
    ),
    ("ocivisor-tests", &["*"]),
    ("ocivisor-conformance", &["ocivisor-tests"]),
    ("xtask", &["*"]),
];

/// Crates that may wait asynchronously.
const ASYNC: [&str; 5] =
    ["ocivisor-rpc", "ocivisor-agent", "ocivisord", "ocivisor", "ocivisor-tests"];
/// Crates that bring an asynchronous runtime.
const RUNTIMES: [&str; 4] = ["tokio", "async-std", "smol", "futures-executor"];

/// Most lines of a file of Rust, the unit tests at its end not counted.
const MAX_LINES: usize = 600;

/// Licences that our users can live with, as SPDX identifiers.
const LICENCES: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];
/// Licences of single packages as their manifests state them; the same ones are in `deny.toml`.
const LICENCE_EXCEPTIONS: [(&str, &str); 2] = [
    // Of libcontainer; used unchanged, and the MPL ends at its own files.
    ("pathrs", "MPL-2.0 OR LGPL-3.0-or-later"),
    // Of libcontainer; its manifest names none, its file LICENSE is the MIT one.
    ("rust-criu", "none"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn metadata() -> Value {
    #[expect(clippy::disallowed_methods, reason = "a test asks cargo")]
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--all-features"])
        .current_dir(root())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo metadata: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn packages(metadata: &Value) -> &[Value] {
    metadata["packages"].as_array().unwrap()
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap()
}

/// Packages of the workspace by name.
fn ours(metadata: &Value) -> BTreeMap<&str, &Value> {
    let members: BTreeSet<&str> = metadata["workspace_members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_str().unwrap())
        .collect();
    let all = packages(metadata).iter();
    all.filter(|p| members.contains(p["id"].as_str().unwrap())).map(|p| (name(p), p)).collect()
}

fn direct_dependencies(package: &Value) -> BTreeSet<&str> {
    let list = package["dependencies"].as_array().unwrap();
    list.iter().map(|d| d["name"].as_str().unwrap()).collect()
}

#[test]
fn crates_know_only_whom_they_may() {
    let metadata = metadata();
    let ours = ours(&metadata);
    let mut wrong = Vec::new();
    for (crate_name, package) in &ours {
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| known == crate_name) else {
            wrong.push(format!("{crate_name} is in no list of EDGES"));
            continue;
        };
        for dependency in direct_dependencies(package) {
            let is_self = dependency == *crate_name;
            let listed = allowed.contains(&dependency) || allowed.contains(&"*");
            if ours.contains_key(dependency) && !is_self && !listed {
                wrong.push(format!("{crate_name} must not depend on {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn async_stays_in_few_crates() {
    let metadata = metadata();
    for (crate_name, package) in ours(&metadata) {
        if ASYNC.contains(&crate_name) {
            continue;
        }
        let dependencies = direct_dependencies(package);
        for runtime in RUNTIMES {
            assert!(!dependencies.contains(runtime), "{crate_name} must not depend on {runtime}");
        }
    }
}

/// What is linked into the program that is resident once per guest stays small.
#[test]
fn the_shim_has_no_dependency_beyond_system_calls() {
    let metadata = metadata();
    let ours = ours(&metadata);
    let list = ours["ocivisor-shim"]["dependencies"].as_array().unwrap();
    for dependency in list.iter().filter(|d| d["kind"].is_null()) {
        let name = dependency["name"].as_str().unwrap();
        let small = ["libc", "rustix", "nix", "ocivisor-frame"].contains(&name);
        assert!(small, "the shim must not depend on {name}");
    }
    assert_eq!(direct_dependencies(ours["ocivisor-frame"]), BTreeSet::new());
}

#[test]
fn every_crate_says_what_it_is() {
    let metadata = metadata();
    for (crate_name, package) in ours(&metadata) {
        let text = package["description"].as_str().unwrap_or_default();
        assert!(text.len() > 10 && text.ends_with('.'), "{crate_name}: description {text:?}");
        assert_eq!(package["license"], "Apache-2.0", "{crate_name}");
    }
}

#[test]
fn dependencies_come_from_the_registry_under_known_licences() {
    let metadata = metadata();
    let ours = ours(&metadata);
    let mut wrong = Vec::new();
    for package in packages(&metadata).iter().filter(|p| !ours.contains_key(name(p))) {
        let name = name(package);
        let source = package["source"].as_str().unwrap_or("a path");
        if source != "registry+https://github.com/rust-lang/crates.io-index" {
            wrong.push(format!("{name} comes from {source}"));
        }
        let licence = package["license"].as_str().unwrap_or("none");
        let excepted = LICENCE_EXCEPTIONS.contains(&(name, licence));
        if !excepted && !permitted(licence) {
            wrong.push(format!("{name} is under {licence}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether an SPDX expression can be satisfied by [`LICENCES`]: of `OR` one side, of `AND` both.
/// The old `/` means `OR`.
fn permitted(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    either(&words, &mut at) && at == words.len()
}

fn either(words: &[&str], at: &mut usize) -> bool {
    let mut good = both(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        good |= both(words, at);
    }
    good
}

fn both(words: &[&str], at: &mut usize) -> bool {
    let mut good = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        good &= one(words, at);
    }
    good
}

fn one(words: &[&str], at: &mut usize) -> bool {
    let word = words.get(*at).copied().unwrap_or_default();
    *at += 1;
    if word == "(" {
        let good = either(words, at);
        *at += 1;
        return good;
    }
    if words.get(*at) == Some(&"WITH") {
        let whole = format!("{word} WITH {}", words.get(*at + 1).copied().unwrap_or_default());
        *at += 2;
        return LICENCES.contains(&whole.as_str()) || LICENCES.contains(&word);
    }
    LICENCES.contains(&word)
}

#[test]
fn licence_expressions_are_read() {
    for good in [
        "MIT",
        "MIT OR Apache-2.0",
        "MIT/Apache-2.0",
        "GPL-3.0 OR MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
    ] {
        assert!(permitted(good), "{good}");
    }
    for bad in ["none", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Zlib) AND LGPL-3.0", "MPL-2.0", ""] {
        assert!(!permitted(bad), "{bad}");
    }
}

/// Of the same major version (or minor, below 1) there is one of each crate that we name ourselves:
/// two would make types of one name that do not fit.
#[test]
fn what_we_depend_on_directly_has_one_version() {
    let metadata = metadata();
    let mut wanted: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in ours(&metadata).values() {
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            wanted.entry(name).or_default().insert(dependency["req"].as_str().unwrap());
        }
    }
    for (name, versions) in wanted {
        assert_eq!(versions.len(), 1, "{name} is wanted in versions {versions:?}");
    }
}

fn files(dir: &Path, wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let hidden = path.file_name().unwrap().to_string_lossy().starts_with('.');
        if path.is_dir() {
            if !hidden && path.file_name().unwrap() != "target" {
                files(&path, wanted, found);
            }
        } else if wanted(&path) {
            found.push(path);
        }
    }
}

fn rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&root(), &|path| path.extension().is_some_and(|e| e == "rs"), &mut found);
    assert!(found.len() > 50, "found only {} files", found.len());
    found
}

#[test]
fn files_can_be_read_in_one_go() {
    let mut long = Vec::new();
    for path in rust_files() {
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines = code.lines().count();
        if lines > MAX_LINES {
            long.push(format!("{} has {lines} lines, at most {MAX_LINES}", path.display()));
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// Tests beside their module, and targets of cargo's.
fn is_test(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.ends_with("tests.rs") || text.contains("/tests/")
}

/// A module's design stands at its top.
#[test]
fn every_module_says_what_it_is_for() {
    let bare: Vec<String> = rust_files()
        .into_iter()
        .filter(|path| !is_test(path))
        .filter(|path| !std::fs::read_to_string(path).unwrap().starts_with("//!"))
        .map(|path| path.display().to_string())
        .collect();
    assert!(bare.is_empty(), "these have no //! at the top:\n{}", bare.join("\n"));
}

/// A link in our documents leads somewhere.
#[test]
fn links_between_documents_hold() {
    let mut documents = Vec::new();
    files(&root(), &|path| path.extension().is_some_and(|e| e == "md"), &mut documents);
    let mut broken = Vec::new();
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or_default();
            if path.is_empty() || link.contains("://") || link.contains(char::is_whitespace) {
                continue;
            }
            if !document.parent().unwrap().join(path).exists() {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
