//! Work on the state directory while no daemon runs: check it, print it, mend it.

use std::process::ExitCode;

use ocivisor_core::error::Result;
use ocivisor_core::ports::{Loaded, Records};
use ocivisor_schema::record::RecordV1;

use crate::Offline;
use crate::config::Config;
use crate::host::Host;
use crate::state_dir::StateDir;

/// Runs one offline command under the daemon's lock.
///
/// # Errors
/// A daemon runs, or the directory cannot be used at all.
pub fn run(config: &Config, what: Offline) -> Result<ExitCode> {
    let _locked = StateDir::open(&config.layout())?;
    let host = Host::new(config)?;
    match what {
        Offline::Fsck => fsck(&host),
        Offline::Dump => dump(&host),
        Offline::Recover => recover(&host),
    }
}

/// Exit code of a check that found damage (integrity failure).
const DAMAGED: u8 = 11;

fn fsck(host: &Host) -> Result<ExitCode> {
    let mut findings = 0;
    for loaded in host.records.load_all()? {
        match loaded {
            Loaded::Damaged(id, why) => {
                findings += 1;
                println!("vm {id}: damaged record: {why}");
            }
            Loaded::Record(record) => {
                if let Err(error) = record.spec.check() {
                    findings += 1;
                    println!("{error}");
                }
            }
        }
    }
    for finding in host.images.findings()? {
        findings += 1;
        println!("datastore: {finding}");
    }
    println!("{findings} findings");
    Ok(if findings == 0 { ExitCode::SUCCESS } else { ExitCode::from(DAMAGED) })
}

fn dump(host: &Host) -> Result<ExitCode> {
    for loaded in host.records.load_all()? {
        let line = match loaded {
            Loaded::Record(record) => serde_json::to_string(&RecordV1::from(&*record)),
            Loaded::Damaged(id, why) => {
                serde_json::to_string(&serde_json::json!({"id": id.as_str(), "damaged": why}))
            }
        };
        println!("{}", line.unwrap_or_default());
    }
    Ok(ExitCode::SUCCESS)
}

/// Damaged records are set aside (never deleted), and what is left on the host of VMs that no
/// record knows is cleared. The guests of damaged records end: nobody knows what they are.
fn recover(host: &Host) -> Result<ExitCode> {
    let mut known = Vec::new();
    for loaded in host.records.load_all()? {
        match loaded {
            Loaded::Record(record) => known.push(record.id().clone()),
            Loaded::Damaged(id, why) => {
                let kept = host.records.set_aside(&id)?;
                println!("vm {id}: {why}; the record is now {}", kept.display());
            }
        }
    }
    for id in host.observe_all()?.iter().filter(|id| !known.contains(id)) {
        host.engine().clear_orphan(id)?;
        println!("vm {id}: cleared what was left of it on this host");
    }
    println!("done; start ocivisord");
    Ok(ExitCode::SUCCESS)
}
