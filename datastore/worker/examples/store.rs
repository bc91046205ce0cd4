//! Imports one image into a store, or checks the store, and nothing else: for benchmarks.
//!
//! `store import STORE SOURCE [WORKER]`, `store fsck STORE [WORKER]`; without a worker the process itself unpacks.

use std::path::Path;

use ocivisor_datastore::worker::Worker;
use ocivisor_datastore::{Limits, Source, Store};

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
        ["fsck", store, ref worker @ ..] => match open(store, worker)?.fsck()?.first() {
            None => Ok(()),
            Some(finding) => Err(format!("{finding:?}").into()),
        },
        _ => Err("usage: store import STORE SOURCE [WORKER] | store fsck STORE [WORKER]".into()),
    }
}

fn open(root: &str, worker: &[&str]) -> ocivisor_datastore::Result<Store> {
    let store = Store::open(Path::new(root))?;
    Ok(match worker.first() {
        Some(program) => store.with_worker(Worker::new(program, BASE)),
        None => store,
    })
}
