//! What this host grants of a wish. The one place that says no to a well-formed spec.

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::{Context, IoLimits, Isolation, Placement, Upkeep, VmSpec};

/// Refuses what this version does not do: a wish is carried out whole or not at all.
///
/// # Errors
/// `Invalid`, naming the field.
pub fn check(spec: &VmSpec) -> Result<()> {
    let absent = [
        (spec.isolation != Isolation::Default, "isolation"),
        (spec.context != Context::default(), "context"),
        (spec.graphics.is_some(), "graphics"),
        (spec.upkeep != Upkeep::default(), "upkeep"),
        (spec.root.io != IoLimits::default(), "root.io"),
        (spec.resources.placement != Placement::default(), "resources.cpus and resources.nodes"),
        (spec.resources.io_weight.is_some(), "resources.io_weight"),
        (!spec.resources.hugepages.is_empty(), "resources.hugepages"),
        (spec.boot.stop_timeout.is_some(), "boot.stop_timeout_ms"),
        (spec.nics.iter().any(|nic| !nic.dns.is_empty() || !nic.search.is_empty()), "nics.dns"),
    ];
    match absent.into_iter().find(|(wanted, _)| *wanted) {
        Some((_, field)) => {
            let what = format!("vm {}: {field} is not supported by this version", spec.id);
            Err(Error::new(ErrorKind::Invalid, what).hint("leave it out"))
        }
        None => Ok(()),
    }
}
