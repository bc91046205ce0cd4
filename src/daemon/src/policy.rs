//! What this host grants of a wish. The one place that says no to a well-formed spec.

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::spec::{
    Change, Context, IoLimits, Isolation, Placement, Resources, Upkeep, VmSpec,
};

/// Refuses what this version does not do: a wish is carried out whole or not at all.
///
/// # Errors
/// `Invalid`, naming the field.
pub fn check(spec: &VmSpec) -> Result<()> {
    refuse(
        &spec.id,
        &[
            (spec.isolation != Isolation::Default, "isolation"),
            (spec.graphics.is_some(), "graphics"),
            (spec.upkeep != Upkeep::default(), "upkeep"),
            (spec.root.io != IoLimits::default(), "root.io"),
            (spec.boot.stop_timeout.is_some(), "boot.stop_timeout_ms"),
            (spec.nics.iter().any(|nic| !nic.dns.is_empty() || !nic.search.is_empty()), "nics.dns"),
        ],
    )?;
    check_context(&spec.id, &spec.context)?;
    check_resources(&spec.id, &spec.resources)
}

/// The same of a change.
///
/// # Errors
/// `Invalid`, naming the field.
pub fn check_change(id: &VmId, change: &Change) -> Result<()> {
    change.context.as_ref().map_or(Ok(()), |context| check_context(id, context))?;
    change.resources.as_ref().map_or(Ok(()), |resources| check_resources(id, resources))
}

fn check_context(id: &VmId, context: &Context) -> Result<()> {
    refuse(id, &[(*context != Context::default(), "context")])
}

fn check_resources(id: &VmId, resources: &Resources) -> Result<()> {
    let Resources { placement, io_weight, hugepages, .. } = resources;
    refuse(
        id,
        &[
            (*placement != Placement::default(), "resources.cpus and resources.nodes"),
            (io_weight.is_some(), "resources.io_weight"),
            (!hugepages.is_empty(), "resources.hugepages"),
        ],
    )
}

fn refuse(id: &VmId, absent: &[(bool, &str)]) -> Result<()> {
    match absent.iter().find(|(wanted, _)| *wanted) {
        Some((_, field)) => {
            let what = format!("vm {id}: {field} is not supported by this version");
            Err(Error::new(ErrorKind::Invalid, what).hint("leave it out"))
        }
        None => Ok(()),
    }
}
