//! Power loss: the changes that the store makes are recorded, and after each of them everything that was not
//! synced is lost, or kept, or torn, in each way the model knows. Whatever is left must open as a sound store: no
//! image half there, none lost that was there, and what a call had returned is so.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "power/model.rs"]
mod model;
#[path = "power/trace.rs"]
mod trace;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::*;
use model::{Loss, Model, State, materialise};
use ocivisor_datastore::{
    CheckOptions, Error, Finding, ImageName, Limits, RepairOptions, Source, Store,
};
use serde_json::json;
use trace::{Op, record};

const STORE: &str = "OCIVISOR_TEST_POWER_STORE";
const DO: &str = "OCIVISOR_TEST_POWER_DO";

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// The child's life: one thing. Without the variables there is nothing to do.
#[test]
fn child() {
    let (Ok(root), Ok(what)) = (std::env::var(STORE), std::env::var(DO)) else { return };
    let store = Store::open(Path::new(&root)).unwrap();
    act(&store, &what);
}

fn act(store: &Store, what: &str) {
    for step in what.split(';').filter(|s| !s.is_empty()) {
        match step.split(' ').collect::<Vec<_>>()[..] {
            ["import", layout, to] => {
                let source = Source::OciLayout { dir: layout.into(), tag: None };
                store.import(&source, &name(to), &Limits::default(), &mut |_| {}).unwrap();
            }
            ["rootfs", file, to] => {
                let source = Source::RootfsTar { file: file.into() };
                store.import(&source, &name(to), &Limits::default(), &mut |_| {}).unwrap();
            }
            ["tag", from, to] => drop(store.tag(&name(from).into(), &name(to)).unwrap()),
            ["remove", what] => drop(store.remove(&name(what)).unwrap()),
            ["prune"] => drop(store.prune(&HashSet::new()).unwrap()),
            ["repair"] => {
                let options = RepairOptions {
                    check: CheckOptions::default(),
                    in_use: &HashSet::new(),
                    refetch: None,
                };
                store.repair(&options).unwrap();
            }
            _ => panic!("{step}"),
        }
    }
}

/// The images of the tests, in a place of their own, and memory for the states to lie in.
struct Images {
    bench: Bench,
    memory: std::path::PathBuf,
}

impl Drop for Images {
    fn drop(&mut self) {
        let gone = rustix::mount::unmount(&self.memory, rustix::mount::UnmountFlags::DETACH);
        assert!(gone.is_ok() || std::thread::panicking(), "{gone:?}");
    }
}

impl Images {
    fn new() -> Self {
        let bench = Bench::new();
        let tar = RawTar::new()
            .dir("etc")
            .head(&Head { path: b"etc/su", mode: 0o4755, uid: 3, ..Head::default() }, b"su")
            .file("etc/motd", b"hello")
            .hardlink("etc/again", "etc/motd")
            .symlink("etc/link", "motd")
            .end();
        let base = gzipped(&tar);
        let layer = |n: u8| {
            gzipped(&RawTar::new().file(&format!("f{n}"), &[n; 50]).file(".wh.x", b"").end())
        };
        bench.layout("one").image(&[base.clone(), layer(1)], &json!({"Cmd": ["1"]}));
        bench.layout("two").image(&[base, layer(2)], &json!({"Cmd": ["2"]}));
        bench.layout("three").image(&[plain(tar), layer(2)], &json!({"Cmd": ["3"]}));
        put(&bench.path("rootfs.tar"), &RawTar::new().file("r", b"root").end());
        let memory = bench.path("memory");
        fs::create_dir(&memory).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &memory, "tmpfs", flags, None).unwrap();
        Self { bench, memory }
    }

    fn path(&self, what: &str) -> String {
        self.bench.path(what).to_str().unwrap().to_owned()
    }

    fn steps(&self, what: &str) -> String {
        what.replace("@one", &self.path("one"))
            .replace("@two", &self.path("two"))
            .replace("@three", &self.path("three"))
            .replace("@rootfs", &self.path("rootfs.tar"))
    }
}

/// What names point at.
type Names = BTreeSet<(String, String)>;

fn names(store: &Store) -> Names {
    let mut names = Names::new();
    for listed in store.list().unwrap() {
        for name in listed.names {
            names.insert((name.to_string(), listed.manifest_digest.to_string()));
        }
    }
    names
}

/// Nothing of staging counts: it is removed when the store is opened.
fn fingerprint(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (path, kept) in state.iter().filter(|(path, _)| !path.starts_with("staging/")) {
        (path, kept).hash(&mut hasher);
    }
    hasher.finish()
}

struct Scenario<'a> {
    /// Done beforehand; all of it on the disk.
    before: &'a str,
    /// Broken by hand then.
    damage: &'a dyn Fn(&Store),
    /// Recorded.
    steps: &'a str,
}

/// A scenario that was played once.
struct Played {
    steps: String,
    before: Model,
    ops: Vec<Op>,
    at_first: Names,
    at_last: Names,
}

fn play(images: &Images, scenario: &Scenario<'_>) -> Played {
    let root = images.bench.path("replayed");
    drop(fs::remove_dir_all(&root));
    fs::create_dir(&root).unwrap();
    let mut at_first = Names::new();
    if !scenario.before.is_empty() {
        let store = Store::open(&root).unwrap();
        act(&store, &images.steps(scenario.before));
        (scenario.damage)(&store);
        at_first = names(&store);
    }
    let before = Model::of(&root);
    let steps = images.steps(scenario.steps);
    let ops = record(&root, "child", &[(STORE, root.to_str().unwrap()), (DO, &steps)]);
    let at_last = names(&Store::open(&root).unwrap());
    Played { steps, before, ops, at_first, at_last }
}

/// Loses power after each operation, in all ways; returns how many different states were good.
fn replay(images: &Images, played: &Played, known: &[&str]) -> Result<usize, String> {
    let Played { steps, before, ops, at_first, at_last } = played;
    let mut model = before.clone();
    let mut seen = HashSet::new();
    for done in 0..=ops.len() {
        if done > 0 {
            model.apply(&ops[done - 1]);
        }
        let random = (0..8).map(|n| Loss::Random(n * 7919 + done as u64));
        let all = [Loss::Kill, Loss::All, Loss::Content, Loss::Names];
        for loss in all.into_iter().chain(random) {
            let state = model.lose(loss);
            let over = done == ops.len();
            if !seen.insert((fingerprint(&state), over)) {
                continue;
            }
            let want = if over { (at_last, at_last) } else { (at_first, at_last) };
            look(images, &state, want, known).map_err(|why| {
                let last = &ops[done.saturating_sub(6)..done];
                format!("{steps}: {loss:?} after {done} of {}: {why}\n{last:?}", ops.len())
            })?;
        }
    }
    Ok(seen.len())
}

/// What must hold after any power loss.
fn look(
    images: &Images,
    state: &State,
    (first, last): (&Names, &Names),
    known: &[&str],
) -> Result<(), String> {
    let top = images.memory.join("after");
    drop(fs::remove_dir_all(&top));
    fs::create_dir(&top).unwrap();
    fs::set_permissions(&top, fs::Permissions::from_mode(0o700)).unwrap();
    materialise(state, &top);
    let store = Store::open(&top).map_err(|e| format!("{e:?}"))?;
    let found = store.fsck().map_err(|e| format!("{e:?}"))?;
    let unexpected: Vec<&Finding> = found.iter().filter(|f| !known.contains(&f.code())).collect();
    if !unexpected.is_empty() {
        return Err(format!("{unexpected:?}"));
    }
    assert_eq!(entries(&top.join("staging")), Vec::<String>::new());
    for listed in store.list().unwrap() {
        match store.resolve(&listed.manifest_digest.into()) {
            Ok(_) => {}
            Err(Error::Damaged { .. }) if !known.is_empty() => {}
            Err(e) => return Err(format!("{e:?}")),
        }
    }
    if !known.is_empty() {
        return Ok(());
    }
    // Names that did not move are there; those that moved are before or after.
    let now = names(&store);
    let kept = first.intersection(last).all(|name| now.contains(name));
    let known = now.iter().all(|name| first.contains(name) || last.contains(name));
    let named = |names: &Names| -> BTreeSet<String> { names.iter().map(|n| n.0.clone()).collect() };
    let (was, will, is) = (named(first), named(last), named(&now));
    let there = was.intersection(&will).all(|name| is.contains(name));
    if kept && known && there && (first != last || now == *last) {
        Ok(())
    } else {
        Err(format!("names are {now:?}, not {first:?} or {last:?}"))
    }
}

fn undamaged(_: &Store) {}

fn sound(before: &str, steps: &str, states: usize) {
    let images = Images::new();
    let played = play(&images, &Scenario { before, damage: &undamaged, steps });
    let seen = replay(&images, &played, &[]).unwrap_or_else(|why| panic!("{why}"));
    assert!(seen >= states, "{seen} different states are too few to mean anything");
    // The recording is complete: it leads to what is there.
    let mut model = played.before.clone();
    played.ops.iter().for_each(|op| model.apply(op));
    let real = Model::of(&images.bench.path("replayed"));
    let paths = |state: State| state.into_keys().collect::<Vec<_>>();
    assert_eq!(paths(model.lose(Loss::Kill)), paths(real.lose(Loss::Kill)));
}

#[test]
fn making_a_store_and_importing_an_image() {
    sound("", "import @one app", 18);
}

#[test]
fn importing_over_a_name_with_a_shared_layer() {
    sound("import @one app;import @one other", "import @two app", 7);
}

#[test]
fn importing_a_root_file_system() {
    sound("import @one app", "rootfs @rootfs root", 7);
}

#[test]
fn tagging_and_removing_names() {
    sound("import @one app;import @two other", "tag app new;tag other app;remove other", 4);
}

#[test]
fn pruning() {
    sound("import @one app;import @two other", "remove other;prune", 10);
}

#[test]
fn repairing() {
    let images = Images::new();
    let damage = |store: &Store| {
        let listed = store.list().unwrap();
        put(&store.layer_path(&listed[0].layers[0]).join("etc/motd"), b"other");
        let root = images.bench.path("replayed");
        let record = format!("images/{}.json", listed[0].manifest_digest.hex());
        fs::remove_file(root.join(record)).unwrap();
        put(&root.join("refs/bad"), b"{");
    };
    let known = ["layer_changed", "dangling_name", "unreadable", "permissions"];
    let before = "import @one app;import @two other";
    let played = play(&images, &Scenario { before, damage: &damage, steps: "repair" });
    let seen = replay(&images, &played, &known).unwrap_or_else(|why| panic!("{why}"));
    assert!(seen > 10, "{seen}");
    let store = Store::open(&images.bench.path("replayed")).unwrap();
    assert_eq!(store.fsck().unwrap(), vec![]);
}

#[test]
fn importing_over_a_layer_whose_files_are_others() {
    let images = Images::new();
    let damage = |store: &Store| {
        let listed = store.list().unwrap();
        put(&store.layer_path(&listed[0].layers[0]).join("etc/motd"), b"other");
    };
    let (before, steps) = ("import @one app", "import @three app");
    let played = play(&images, &Scenario { before, damage: &damage, steps });
    let seen = replay(&images, &played, &["layer_changed"]).unwrap_or_else(|why| panic!("{why}"));
    assert!(seen > 10, "{seen}");
    let store = Store::open(&images.bench.path("replayed")).unwrap();
    assert_eq!(store.fsck().unwrap(), vec![]);
    assert_eq!(entries(&images.bench.path("replayed/quarantine")).len(), 1);
}

/// That the model can tell: a store that did not sync would be caught, and so would one that left out a single
/// sync that matters.
#[test]
fn the_same_operations_without_their_syncs_lose_images() {
    let images = Images::new();
    let before = "import @one app;import @two other";
    for (steps, needed) in
        [("rootfs @rootfs root", 5), ("remove other;prune", 1), ("tag app new", 2)]
    {
        let mut played = play(&images, &Scenario { before, damage: &undamaged, steps });
        let all = played.ops.clone();
        let sync = |op: &Op| matches!(op, Op::Sync(_) | Op::SyncAll);
        played.ops.retain(|op| !sync(op));
        assert!(replay(&images, &played, &[]).is_err(), "{steps}");
        let mut missed = 0;
        for at in (0..all.len()).filter(|at| sync(&all[*at])) {
            played.ops.clone_from(&all);
            played.ops.remove(at);
            missed += usize::from(replay(&images, &played, &[]).is_err());
        }
        assert!(missed >= needed, "{steps}: leaving out a sync was noticed {missed} times");
    }
}
