//! Imports one image into a store, commits changes to it or forgets them, or checks the store: for benchmarks.
//!
//! `store import STORE SOURCE [WORKER]`, `store commit STORE UPPER [WORKER]`, `store forget STORE`,
//! `store fsck STORE [WORKER]`; without a worker the process itself unpacks.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;

use ocivisor_datastore::worker::Worker;
use ocivisor_datastore::{CommitChanges, CommitOptions, IdMap, Limits, Source, Store, Upper};

/// Ids of nobody.
const BASE: u32 = 1_879_048_192;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["import", store, source, ref worker @ ..] => {
            let source = Source::detect(Path::new(source))?;
            let name = "bench:1".parse()?;
            let image =
                open(store, worker)?.import(&source, &name, &Limits::default(), &mut |_| {})?;
            println!("{}", image.manifest_digest);
            Ok(())
        }
        ["commit", store, upper, ref worker @ ..] => {
            let (base, name) = ("bench:1".parse()?, "made:1".parse()?);
            let upper = File::open(upper)?;
            let upper = Upper { dir: &upper, ids: IdMap::IDENTITY };
            let (changes, options) = (CommitChanges::default(), CommitOptions::default());
            let store = open(store, worker)?;
            let made = store.commit(&base, upper, &changes, &name, &options, &mut |_| {})?;
            println!("{}", made.image.manifest_digest);
            Ok(())
        }
        ["forget", store] => {
            let store = open(store, &[])?;
            store.remove(&"made:1".parse()?)?;
            store.prune(&HashSet::new())?;
            Ok(())
        }
        ["fsck", store, ref worker @ ..] => match open(store, worker)?.fsck()?.first() {
            None => Ok(()),
            Some(finding) => Err(format!("{finding:?}").into()),
        },
        _ => Err("usage: store import|commit|forget|fsck STORE [SOURCE|UPPER] [WORKER]".into()),
    }
}

fn open(root: &str, worker: &[&str]) -> ocivisor_datastore::Result<Store> {
    let store = Store::open(Path::new(root))?;
    Ok(match worker.first() {
        Some(program) => store.with_worker(Worker::new(program, BASE)),
        None => store,
    })
}
