//! Names that belong to users: who moves what, in a store that several have open.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;
#[path = "common/served.rs"]
mod served;
#[path = "common/wire.rs"]
mod wire;

use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use ocivisor_datastore::{
    CommitChanges, CommitOptions, Error, IdMap, Image, ImageName, Limits, Source, Store, Upper,
};
use serde_json::json;
use served::*;

const ONE: u32 = 1001;
const TWO: u32 = 1002;

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn open(bench: &Bench) -> Store {
    Store::open(&bench.path("store")).unwrap()
}

/// The store as a user has it.
fn of(bench: &Bench, user: u32) -> Store {
    open(bench).naming_for(user)
}

fn bring(store: &Store, source: &Source, as_name: &str) -> Result<Image, Error> {
    store.import(source, &name(as_name), &Limits::default(), &mut |_| {})
}

fn is_not_yours(result: Result<Image, Error>) {
    let error = result.expect_err("a name was moved by somebody else");
    assert!(matches!(error, Error::NotYours { .. }), "{error:?}");
}

/// Two images in layouts.
fn sources(bench: &Bench) -> [Source; 2] {
    ["a", "b"].map(|file| {
        let layout = bench.layout(file);
        layout.image(&[gzipped(&RawTar::new().file(file, b"x").end())], &json!({}));
        layout.source()
    })
}

fn meaning(bench: &Bench, text: &str) -> String {
    bench.store.resolve(&name(text).into()).unwrap().manifest_digest.to_string()
}

#[test]
fn a_name_stays_with_who_set_it_and_the_owner_of_the_store_has_all() {
    let bench = Bench::new();
    let [a, b] = sources(&bench);
    let (one, two) = (of(&bench, ONE), of(&bench, TWO));

    bring(&bench.store, &a, "base").unwrap();
    let base = meaning(&bench, "base");
    is_not_yours(bring(&one, &b, "base"));
    // It points there already: nothing is asked for.
    bring(&one, &a, "base").unwrap();
    assert_eq!((meaning(&bench, "base"), one.owner_of(&name("base")).unwrap()), (base, None));

    // What is known of it only in the end is not to be seen either.
    let tar = bench.path("root.tar");
    put(&tar, &RawTar::new().file("c", b"x").end());
    is_not_yours(bring(&one, &Source::RootfsTar { file: tar }, "base"));
    assert_eq!(bench.store.list().unwrap().len(), 1);

    bring(&one, &a, "mine").unwrap();
    is_not_yours(bring(&two, &b, "mine"));
    bring(&one, &b, "mine").unwrap();
    let digest = one.resolve(&name("base").into()).unwrap().manifest_digest;
    one.tag(&digest.into(), &name("mine")).unwrap();
    is_not_yours(two.tag(&name("base").into(), &name("new")).and_then(|_| bring(&one, &b, "new")));
    // Also for those that open the store later.
    assert_eq!(open(&bench).owner_of(&name("mine")).unwrap(), Some(ONE));
    let file = fs::read_to_string(bench.path("store/refs/mine")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&file).unwrap();
    let want = json!({"version": 1, "name": "mine", "manifest": digest.to_string(), "owner": ONE});
    assert_eq!(record, want);

    bring(&bench.store, &b, "mine").unwrap();
    assert_eq!(bench.store.owner_of(&name("mine")).unwrap(), None);
    is_not_yours(bring(&one, &a, "mine"));
    assert!(bench.store.remove(&name("mine")).unwrap());
    bring(&two, &a, "mine").unwrap();
    assert_eq!(bench.store.owner_of(&name("mine")).unwrap(), Some(TWO));
    assert_eq!(bench.store.fsck().unwrap(), vec![]);
}

#[test]
fn a_commit_moves_no_name_of_others() {
    let bench = Bench::new();
    let [a, b] = sources(&bench);
    bring(&bench.store, &a, "base").unwrap();
    bring(&bench.store, &b, "other").unwrap();
    fs::create_dir(bench.path("upper")).unwrap();
    put(&bench.path("upper/file"), b"changed");
    let commit = |store: &Store, as_name: &str| {
        let dir = File::open(bench.path("upper")).unwrap();
        let upper = Upper { dir: &dir, ids: IdMap::IDENTITY };
        let (changes, options) = (CommitChanges::default(), CommitOptions::default());
        let made = store.commit(
            &name("base").into(),
            upper,
            &changes,
            &name(as_name),
            &options,
            &mut |_| {},
        );
        made.map(|made| made.image)
    };
    let one = of(&bench, ONE);
    is_not_yours(commit(&one, "other"));
    is_not_yours(commit(&one, "host.example/web:1"));
    commit(&one, "mine").unwrap();
    commit(&one, "mine").unwrap();
    is_not_yours(commit(&of(&bench, TWO), "mine"));
    commit(&bench.store, "host.example/web:1").unwrap();
}

#[test]
fn a_name_of_a_registry_is_what_the_registry_says() {
    let (old, new) = (Served::new(), Served::changed(|m| m["annotations"] = json!({"n": "2"})));
    let moved = Arc::new(AtomicBool::new(false));
    let (copy, is_moved) = (new.clone(), Arc::clone(&moved));
    let server =
        server(&old, move |asked| is_moved.load(Ordering::SeqCst).then(|| copy.reply(asked)));
    let setup = plain_setup(&server);
    let text = format!("{}/team/app:1", server.host());
    let tag = setup.source(&text);
    let bench = Bench::new();
    let [a, _] = sources(&bench);
    let (one, two) = (of(&bench, ONE), of(&bench, TWO));

    // Nobody can be first with something else.
    is_not_yours(bring(&one, &a, &text));
    is_not_yours(bring(&one, &tag, &format!("{}/team/other:1", server.host())));
    bring(&bench.store, &tag, &text).unwrap();
    is_not_yours(bring(&one, &a, &text));
    // A digest of it that the tag does not mean, or no more.
    moved.store(true, Ordering::SeqCst);
    let pinned = setup.source(&format!("{text}@{}", new.digest()));
    is_not_yours(bring(&two, &pinned, &text));
    assert_eq!(meaning(&bench, &text), old.digest().to_string());
    // Nothing was fetched for what is refused.
    assert!(
        !server.asked().iter().skip(3).any(|asked| new.is_layer(asked)),
        "{:?}",
        server.asked()
    );

    bring(&two, &tag, &text).unwrap();
    assert_eq!(meaning(&bench, &text), new.digest().to_string());
    // The pinned one has a name made of the digest; under one of his choice a user may have any.
    let short = format!("{}/team/app:sha256-{}", server.host(), &new.digest().hex()[..16]);
    let by_digest = format!("{}/team/app@{}", server.host(), new.digest());
    bring(&one, &setup.source(&by_digest), &short).unwrap();
    bring(&one, &pinned, "app").unwrap();
    assert_eq!(bench.store.owner_of(&name("app")).unwrap(), Some(ONE));
}

#[test]
fn of_many_who_want_a_name_one_gets_it() {
    let bench = Bench::new();
    let sources = sources(&bench);
    let digests: Vec<_> = ["a", "b"]
        .iter()
        .zip(&sources)
        .map(|(as_name, source)| bring(&bench.store, source, as_name).unwrap().manifest_digest)
        .collect();
    for round in 0..20 {
        let wanted = name(&format!("wanted-{round}"));
        let tag = |user: u32| {
            let store = of(&bench, user);
            let digest = digests[usize::from(user == TWO)];
            store.tag(&digest.into(), &wanted).is_ok().then_some(user)
        };
        let got: Vec<u32> = std::thread::scope(|scope| {
            let all = [ONE, TWO].map(|user| scope.spawn(move || tag(user)));
            all.into_iter().filter_map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(got.len(), 1);
        assert_eq!(bench.store.owner_of(&wanted).unwrap(), Some(got[0]));
    }
}
