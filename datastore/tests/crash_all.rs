//! SIGKILL at random during all that a host does with images: pull, import, commit, prune and push, a hundred times, on
//! one store and one real registry.
//!
//! After each kill the store is sound, opening it leaves no staging, and each image that was finished is what its source is.
//! A push that was killed is done again and sends nothing that the registry has.
//!
//! A child does one thing after another and says what it begins and what it has done. What it begins with goes round, so
//! that each is killed equally often; when it is killed is chosen within the time that this usually takes, as measured
//! in the rounds before: most are hit in the middle, on any machine.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;
#[path = "common/killed.rs"]
mod killed;
#[path = "common/registry.rs"]
mod registry;

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use common::*;
use killed::{Line, Random, itself, kill_after};
use ocivisor_datastore::{
    Cancel, CommitChanges, CommitOptions, Digest, Error, Finding, IdMap, Image, ImageName, Limits,
    PruneOptions, Source, Store, Upper,
};
use registry::{Auth, Distribution, Setup};
use serde_json::json;

const TOP: &str = "OCIVISOR_TEST_ALL_TOP";
const REGISTRY: &str = "OCIVISOR_TEST_ALL_REGISTRY";
const ROUND: &str = "OCIVISOR_TEST_ALL_ROUND";

/// Another one may be tried by this variable.
const SEED: (&str, u64) = ("OCIVISOR_TEST_ALL_SEED", 42);

const ROUNDS: u32 = 100;
/// Of each kind of image.
const IMAGES: u32 = 3;

fn seed() -> u64 {
    std::env::var(SEED.0).map_or(SEED.1, |text| text.parse().unwrap())
}

const WORK: [Work; 5] = [Work::Pull, Work::Import, Work::Commit, Work::Prune, Work::Push];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Pull,
    Import,
    Commit,
    Prune,
    Push,
}

impl Work {
    /// What a name that it makes begins with.
    fn letter(self) -> char {
        match self {
            Self::Pull => 'p',
            Self::Import => 'i',
            Self::Commit => 'c',
            Self::Prune | Self::Push => panic!("{self:?} makes no image"),
        }
    }

    fn name(self, n: u32) -> ImageName {
        format!("{}{n}", self.letter()).parse().unwrap()
    }
}

/// A store, and how a registry is reached from it.
struct Host<'a> {
    store: Store,
    setup: Setup,
    registry: String,
    top: &'a Path,
}

impl<'a> Host<'a> {
    fn new(store: Store, registry: &str, top: &'a Path) -> Self {
        let mut setup = Setup::new();
        setup.host(registry).plain_http = true;
        Self { store, setup, registry: registry.to_owned(), top }
    }

    /// What a commit is made from, which has the same number.
    fn base(n: u32) -> Work {
        [Work::Pull, Work::Import][n as usize % 2]
    }

    /// Makes an image; one that is committed needs its base.
    fn make(&self, work: Work, n: u32) -> Result<Image, Error> {
        let name = work.name(n);
        let import =
            |source: &Source| self.store.import(source, &name, &Limits::default(), &mut |_| {});
        match work {
            Work::Pull => {
                import(&self.setup.source(&format!("docker://{}/team/p{n}:1", self.registry)))
            }
            Work::Import => import(&layout(self.top, Work::Import, n).source()),
            Work::Commit => {
                let upper = File::open(upper(self.top, n)).unwrap();
                let upper = Upper { dir: &upper, ids: IdMap::IDENTITY };
                let base = Self::base(n).name(n).into();
                let changes = CommitChanges {
                    created: Some(SystemTime::UNIX_EPOCH),
                    ..CommitChanges::default()
                };
                let options = CommitOptions::default();
                let made = self.store.commit(&base, upper, &changes, &name, &options, &mut |_| {});
                made.map(|made| made.image)
            }
            Work::Prune | Work::Push => panic!("{work:?} makes no image"),
        }
    }

    fn push(&self, name: &str, to: &str) -> Result<ocivisor_datastore::Pushed, Error> {
        let name: ImageName = name.parse().unwrap();
        let to = format!("docker://{}/{to}:1", self.registry).parse().unwrap();
        self.store.push(&name.into(), &to, &self.setup.registries(), &[], &mut |_| {})
    }

    fn find(&self, name: &str) -> Option<Image> {
        match self.store.resolve(&name.parse::<ImageName>().unwrap().into()) {
            Ok(image) => Some(image),
            Err(Error::NotFound { .. }) => None,
            Err(e) => panic!("{name}: {e:?}"),
        }
    }
}

fn layout(top: &Path, work: Work, n: u32) -> Layout {
    Layout { dir: top.join(format!("{}{n}", work.letter())) }
}

fn upper(top: &Path, n: u32) -> PathBuf {
    top.join(format!("upper{n}"))
}

/// Images of two layers, one of which others have, too; and what guests changed.
fn make_sources(top: &Path) {
    let layer = |seed: u32, size: usize| {
        let mut tar = RawTar::new().dir("d");
        for file in 0..20u8 {
            let bytes = vec![file; 300 * usize::from(file)];
            tar = tar.file(&format!("d/l{seed}f{file}"), &bytes);
        }
        let noise = registry::big(u64::from(seed) + 1, size);
        // Without the two blocks of zeros that end a tar.
        tar.0.extend(&noise[..noise.len() - 1024]);
        gzipped(&tar.file(".wh.gone", b"").end())
    };
    for n in 0..IMAGES {
        let [pulled, imported] = [Work::Pull, Work::Import].map(|work| {
            let made = layout(top, work, n);
            Layout::new(&made.dir)
        });
        pulled.image(&[layer(0, 60_000), layer(10 + n, 300_000)], &json!({"Cmd": ["p"]}));
        imported.image(&[layer(0, 60_000), layer(20 + n, 30_000)], &json!({"Cmd": ["i"]}));
        let upper = upper(top, n);
        fs::create_dir(&upper).unwrap();
        for file in 0..40u32 {
            let dir = upper.join(format!("d{}", file % 5));
            fs::create_dir_all(&dir).unwrap();
            put(&dir.join(format!("f{file}")), &vec![file as u8; 100 * file as usize]);
        }
    }
}

/// The process that is killed.
struct Victim<'a> {
    host: Host<'a>,
    out: std::io::Stdout,
}

impl Victim<'_> {
    /// One write each, so that a line is there or not.
    fn say(&mut self, line: &str) {
        self.out.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn make(&mut self, work: Work, n: u32) {
        if work == Work::Commit {
            self.need(Host::base(n), n);
        }
        self.say(&format!("begin {work:?} {}", work.name(n)));
        self.host.make(work, n).unwrap();
        self.say("done");
    }

    fn need(&mut self, work: Work, n: u32) {
        if self.host.find(work.name(n).as_str()).is_none() {
            self.make(work, n);
        }
    }

    fn prune(&mut self, name: &ImageName) {
        // So that there is something to prune.
        self.say(&format!("begin Remove {name}"));
        self.host.store.remove(name).unwrap();
        self.say("done");
        self.say("begin Prune");
        self.host.store.prune(&HashSet::new()).unwrap();
        self.say("done");
    }

    fn push(&mut self, name: &ImageName, to: &str) {
        self.say(&format!("begin Push {name} {to}"));
        self.host.push(name.as_str(), to).unwrap();
        self.say("done");
    }
}

/// The child's life. Without the variables there is nothing to do.
#[test]
fn child() {
    let Some(top) = std::env::var_os(TOP) else { return };
    let top = Path::new(&top);
    let round: u32 = std::env::var(ROUND).unwrap().parse().unwrap();
    let mut random = Random(seed() + u64::from(round) * 1000);
    let store = Store::open(&top.join("store")).unwrap();
    let host = Host::new(store, &std::env::var(REGISTRY).unwrap(), top);
    let mut victim = Victim { host, out: std::io::stdout() };
    for count in 0.. {
        let next = if count == 0 { round } else { random.next(5) };
        let (work, n) = (WORK[next as usize % 5], random.next(IMAGES));
        let some = [Work::Pull, Work::Import, Work::Commit][random.next(3) as usize];
        match work {
            Work::Pull | Work::Import | Work::Commit => victim.make(work, n),
            Work::Prune => {
                victim.need(some, n);
                victim.prune(&some.name(n));
            }
            Work::Push => {
                victim.need(some, n);
                victim.push(&some.name(n), &format!("round{round}/{count}"));
            }
        }
    }
}

/// Whether a name is there; both may be after a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Yes,
    No,
    Perhaps,
}

/// What is known of names, and of pushes.
#[derive(Debug, Default)]
struct Known {
    names: BTreeMap<String, There>,
    /// What each work takes.
    times: BTreeMap<String, Duration>,
    /// How often each was killed in the middle.
    killed: BTreeMap<String, u32>,
}

/// Pushes of one child: what, and where to.
#[derive(Debug, Default)]
struct Pushes {
    done: Vec<(String, String)>,
    broken: Option<(String, String)>,
}

impl Known {
    fn follow(&mut self, lines: &[Line]) -> Pushes {
        let mut pushes = Pushes::default();
        let mut begun: Option<(Instant, Vec<&str>)> = None;
        for (at, line) in lines {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["begin", ref of @ ..] => begun = Some((*at, of.to_vec())),
                ["done"] => {
                    let (since, of) = begun.take().unwrap();
                    let took = *at - since;
                    let usual = self.times.entry(of[0].to_owned()).or_insert(took);
                    *usual = (*usual * 3 + took) / 4;
                    match of[..] {
                        ["Push", name, to] => pushes.done.push((name.to_owned(), to.to_owned())),
                        ["Prune"] => {}
                        ["Remove", name] => drop(self.names.insert(name.to_owned(), There::No)),
                        [_, name] => drop(self.names.insert(name.to_owned(), There::Yes)),
                        _ => panic!("{line}"),
                    }
                }
                _ => {}
            }
        }
        let Some((_, of)) = begun else { return pushes };
        *self.killed.entry(of[0].to_owned()).or_default() += 1;
        match of[..] {
            ["Push", name, to] => pushes.broken = Some((name.to_owned(), to.to_owned())),
            ["Prune"] => {}
            [work, name] => {
                let after = if work == "Remove" { There::No } else { There::Yes };
                if self.names[name] != after {
                    self.names.insert(name.to_owned(), There::Perhaps);
                }
            }
            _ => panic!("{of:?}"),
        }
        pushes
    }
}

/// All images in a store of their own, made without haste.
struct Reference {
    bench: Bench,
    images: BTreeMap<String, Image>,
}

impl Reference {
    fn new(top: &Path, registry: &str) -> Self {
        let bench = Bench::new();
        let host = Host::new(Store::open(&bench.path("store")).unwrap(), registry, top);
        let mut images = BTreeMap::new();
        for n in 0..IMAGES {
            // Pulled are what the registry was given.
            let source = layout(top, Work::Pull, n).source();
            let name = Work::Pull.name(n);
            let made = host.store.import(&source, &name, &Limits::default(), &mut |_| {}).unwrap();
            host.push(&name.to_string(), &format!("team/p{n}")).unwrap();
            images.insert(name.to_string(), made);
            for work in [Work::Import, Work::Commit] {
                images.insert(work.name(n).to_string(), host.make(work, n).unwrap());
            }
        }
        Self { bench, images }
    }

    fn assert_same(&self, image: &Image, store: &Store, what: &str) {
        for layer in &image.layers {
            let want = tree(&self.bench.store.layer_path(layer));
            assert_same_tree(&tree(&store.layer_path(layer)), &want, what);
        }
    }
}

/// Blobs of an image that a repository of the registry has, by its own files.
fn linked(server: &Distribution, repository: &str, image: &[(Digest, u64)]) -> Vec<Digest> {
    let top = server.dir.path().join("data/docker/registry/v2/repositories");
    let layers = top.join(repository).join("_layers/sha256");
    let is_there = |digest: &Digest| layers.join(digest.hex()).join("link").exists();
    image.iter().map(|(digest, _)| *digest).filter(is_there).collect()
}

/// Config and layers, each once, with their sizes.
fn blobs(host: &Host<'_>, image: &Image) -> Vec<(Digest, u64)> {
    let inspection = host.store.inspect(&image.manifest_digest.into()).unwrap();
    let mut all: BTreeMap<Digest, u64> =
        inspection.layers.iter().map(|layer| (layer.blob, layer.size)).collect();
    let config = format!("store/blobs/sha256/{}", image.config_digest.hex());
    all.insert(image.config_digest, fs::metadata(host.top.join(config)).unwrap().len());
    all.into_iter().collect()
}

/// Does a push again that was killed. What the registry has is not sent, and the image there is whole.
fn push_again(host: &Host<'_>, server: &Distribution, name: &str, to: &str, want: &Image) {
    let blobs = blobs(host, want);
    let there = linked(server, to, &blobs);
    let missing: u64 =
        blobs.iter().filter(|(digest, _)| !there.contains(digest)).map(|(_, size)| size).sum();
    let pushed = host.push(name, to).unwrap();
    // The registry may have ended what the killed one began meanwhile.
    assert!(pushed.present >= there.len() as u64, "{pushed:?}, {there:?} are there");
    assert!(pushed.sent_bytes <= missing, "{pushed:?}, {missing} bytes were missing");
    assert_eq!(pushed.present + pushed.sent, blobs.len() as u64);
    let again = host.push(name, to).unwrap();
    assert_eq!((again.present, again.sent), (blobs.len() as u64, 0));
    let other = Bench::new();
    let source = host.setup.source(&format!("docker://{}/{to}:1", host.registry));
    assert_eq!(other.import(&source).unwrap(), *want);
}

/// Tells how to repeat what failed.
struct Told {
    round: u32,
    said: String,
}

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { round, said } = self;
            eprintln!("{}={}, round {round}; the child said:\n{said}", SEED.0, seed());
        }
    }
}

#[test]
fn killed_a_hundred_times_in_all_that_it_does_the_store_is_sound_and_finished_images_are_whole() {
    let bench = Bench::new();
    let top = bench.top.path();
    make_sources(top);
    let server = Distribution::start(None, &Auth::Anonymous);
    let reference = Reference::new(top, &server.host());
    let mut known = Known::default();
    for name in reference.images.keys() {
        known.names.insert(name.clone(), There::No);
    }
    let mut random = Random(seed());
    for round in 0..ROUNDS {
        let work = format!("{:?}", WORK[round as usize % 5]);
        // What was never measured gets time to come to its end.
        let usual = known.times.get(&work).copied().unwrap_or(Duration::from_millis(300));
        let time = usual * random.next(1100) / 1000;
        let mut child = itself();
        child.env(TOP, top).env(REGISTRY, server.host()).env(ROUND, round.to_string());
        let begin = format!("begin {work}");
        let lines = kill_after(child.spawn().unwrap(), move |line| line.starts_with(&begin), time);
        let _told = Told { round, said: killed::text(&lines) };
        let pushes = known.follow(&lines);

        // Before anybody cleans: what is visible is whole, and rubbish is in staging only.
        let found = bench.store.fsck().unwrap();
        let rubbish = |f: &Finding| matches!(f, Finding::StagingLeftover { .. });
        assert!(found.iter().all(rubbish), "{found:?}");
        let host = Host::new(Store::open(&bench.path("store")).unwrap(), &server.host(), top);
        assert_eq!(entries(&bench.path("store/staging")), Vec::<String>::new());
        for (name, there) in &mut known.names {
            let image = host.find(name);
            let is = if image.is_some() { There::Yes } else { There::No };
            assert!([is, There::Perhaps].contains(there), "{name} is there: {is:?}, not {there:?}");
            *there = is;
            if let Some(image) = image {
                assert_eq!(image, reference.images[name], "{name}");
                if round % 10 == 0 {
                    reference.assert_same(&image, &host.store, name);
                }
            }
        }
        for (name, to) in &pushes.done {
            let to = format!("docker://{}/{to}:1", server.host()).parse().unwrap();
            let remote =
                host.setup.registries().inspect(&to, &Limits::default(), &Cancel::new()).unwrap();
            assert_eq!(remote.manifest_digest, reference.images[name].manifest_digest);
        }
        if let Some((name, to)) = &pushes.broken {
            push_again(&host, &server, name, to, &reference.images[name]);
        }
    }
    for work in WORK {
        let killed = known.killed.get(&format!("{work:?}")).copied().unwrap_or(0);
        assert!(killed >= 3, "{work:?} was killed {killed} times: {known:?}");
    }
    assert_all_can_be_done(&bench, &server, &reference);
}

/// After all the kills: everything once more, to its end, and nothing left of the rest.
fn assert_all_can_be_done(bench: &Bench, server: &Distribution, reference: &Reference) {
    let store = Store::open(&bench.path("store")).unwrap();
    let host = Host::new(store, &server.host(), bench.top.path());
    for n in 0..IMAGES {
        for work in [Work::Pull, Work::Import, Work::Commit] {
            let name = work.name(n).to_string();
            assert_eq!(host.make(work, n).unwrap(), reference.images[&name]);
            reference.assert_same(&reference.images[&name], &host.store, &name);
            host.push(&name, &format!("end/{name}")).unwrap();
        }
    }
    let (none, partial_age) = (HashSet::new(), Some(Duration::ZERO));
    let options = PruneOptions { in_use: &none, dry_run: false, partial_age, quarantine_age: None };
    host.store.prune_with(&options).unwrap();
    assert_eq!(host.store.fsck().unwrap(), vec![]);
    for dir in ["store/partial", "store/staging"] {
        assert_eq!(entries(&bench.path(dir)), Vec::<String>::new());
    }
}
