//! Whether a datastore's directory is one and the same on two machines.
//!
//! Not believed of a configuration but tried: a mark that one of them sets is seen by the other, or not.

use std::time::{SystemTime, UNIX_EPOCH};

use ocivisor_core::error::Result;
use ocivisor_opennebula::tm::place::DatastorePlace;

use super::text;
use crate::files::Dir;
use crate::host::{SHARE_MARK, sweep_marks};
use crate::ssh::Link;
use crate::wire::Order;

/// Whether a host sees the front-end's directory.
pub(super) fn with_here(place: &DatastorePlace, host: &mut Link) -> Result<bool> {
    let Ok(dir) = Dir::open(&place.path()) else { return Ok(false) };
    let (mark, datastore) = (fresh(), text(&place.path()));
    let name = format!("{SHARE_MARK}{mark}");
    sweep_marks(&dir)?;
    dir.replace(&name, b"")?;
    let seen = host.there(&Order::Sees { datastore, mark });
    let gone = dir.unlink(&name);
    seen.and_then(|seen| gone.map(|()| seen))
}

/// Whether two machines have the same directory.
pub(super) fn between(place: &DatastorePlace, one: &mut Link, other: &mut Link) -> Result<bool> {
    let (mark, datastore) = (fresh(), text(&place.path()));
    let set = |set| Order::Mark { datastore: datastore.clone(), mark: mark.clone(), set };
    one.done(&set(true))?;
    let sees = Order::Sees { datastore: datastore.clone(), mark: mark.clone() };
    let seen = other.there(&sees);
    let gone = one.done(&set(false));
    seen.and_then(|seen| gone.map(|()| seen))
}

/// Nobody else's: this process, now.
fn fresh() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}x{}", std::process::id(), now.as_nanos())
}
