//! Names that nobody asks for any more go, and those that are needed do not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::collections::HashSet;
use std::fs::File;
use std::time::{Duration, SystemTime};

use common::*;
use ocivisor_datastore::{Digest, Image, ImageName, Limits};
use serde_json::json;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn import(bench: &Bench, file: &str) -> (Image, ImageName) {
    let layout = bench.layout(&format!("layout-{file}"));
    layout.image(
        &[gzipped(&RawTar::new().file(file, file.as_bytes()).end())],
        &json!({"Cmd": [file]}),
    );
    let first = format!("first/{file}").parse().unwrap();
    let image = bench.store.import(&layout.source(), &first, &Limits::default(), &mut |_| {});
    let image = image.unwrap();
    let name: ImageName = format!("cloud/{}", image.manifest_digest.hex()).parse().unwrap();
    bench.store.tag(&image.manifest_digest.into(), &name).unwrap();
    bench.store.remove(&first).unwrap();
    (image, name)
}

fn last_given(bench: &Bench, name: &ImageName, ago: Duration) {
    let file = name.as_str().replace('/', "=s").replace(':', "=c");
    let file = File::open(bench.path("store/refs").join(file)).unwrap();
    file.set_modified(SystemTime::now() - ago).unwrap();
}

#[test]
fn what_nobody_asked_for_in_so_long_goes_and_what_is_needed_stays() {
    let bench = Bench::new();
    let [old, used, new, other] = ["old", "used", "new", "other"].map(|file| import(&bench, file));
    let renamed: ImageName = "web:1".parse().unwrap();
    bench.store.tag(&other.0.manifest_digest.into(), &renamed).unwrap();
    bench.store.remove(&other.1).unwrap();
    for name in [&old.1, &used.1, &renamed] {
        last_given(&bench, name, 31 * DAY);
    }
    last_given(&bench, &new.1, 29 * DAY);
    let by_digest =
        |name: &ImageName, digest: &Digest| name.as_str().ends_with(&format!("/{}", digest.hex()));
    let forget = |in_use: &HashSet<_>| {
        let before = SystemTime::now() - 30 * DAY;
        bench.store.forget_unused(before, in_use, &by_digest).unwrap()
    };
    let in_use: HashSet<_> = used.0.layers.iter().copied().collect();
    assert_eq!(forget(&in_use), [old.1]);
    assert_eq!(bench.store.prune(&in_use).unwrap().images, [old.0.manifest_digest]);
    // It was needed until now, so that its time begins now.
    assert_eq!(forget(&HashSet::new()), []);
    last_given(&bench, &used.1, 31 * DAY);
    // Asked for once more.
    last_given(&bench, &new.1, 31 * DAY);
    bench.store.tag(&new.0.manifest_digest.into(), &new.1).unwrap();
    assert_eq!(forget(&HashSet::new()), [used.1]);
    let left: Vec<_> = bench.store.list().unwrap().into_iter().flat_map(|l| l.names).collect();
    assert_eq!(left.into_iter().collect::<HashSet<_>>(), HashSet::from([new.1, renamed]));
}
