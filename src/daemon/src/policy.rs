//! What this host grants of a wish. The one place that says no to a well-formed spec.

use std::collections::BTreeSet;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::{Boot, Isolation, VmSpec};
use ocivisor_core::state::Record;

/// What `[guests]` of the configuration says.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Profiles that guests may have.
    pub isolation: BTreeSet<Isolation>,
}

impl Policy {
    /// Whether a VM of this wish may run here. To be asked at each start as well: the host may have
    /// become stricter.
    ///
    /// # Errors
    /// `Permission`: the host does not grant the profile.
    pub fn grant(&self, spec: &VmSpec) -> Result<()> {
        if self.isolation.contains(&spec.isolation) {
            return Ok(());
        }
        let name = spec.isolation.name();
        let what = format!("vm {}: this host grants no isolation {name}", spec.id);
        let hint = "an admin may add it to guests.isolation in ocivisor.toml";
        Err(Error::new(ErrorKind::Permission, what).hint(hint))
    }
}

/// Milliseconds that a guest may take to end: as asked, else as its spec says. Where the VM is not known, the
/// answer is the engine's and no guest is waited for.
pub fn grace(record: Option<&Record>, asked: Option<u64>) -> u64 {
    asked.unwrap_or_else(|| {
        let patience = record.map_or(Boot::STOP_TIMEOUT, |record| record.spec.boot.patience());
        u64::try_from(patience.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use ocivisor_schema::VmSpecV1;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_profile_that_the_host_does_not_grant_is_refused() {
        let policy = Policy { isolation: [Isolation::Strict, Isolation::Default].into() };
        let spec = |isolation: &str| {
            let spec = json!({
                "id": "web", "resources": {"memory": 64 << 20}, "root": {"path": "/d"},
                "isolation": isolation,
            });
            let spec: VmSpecV1 = serde_json::from_value(spec).unwrap();
            VmSpec::try_from(spec).unwrap()
        };
        for granted in ["strict", "default"] {
            assert_eq!(policy.grant(&spec(granted)), Ok(()));
        }
        for refused in ["nested", "privileged"] {
            let error = policy.grant(&spec(refused)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Permission);
            assert_eq!(error.message, format!("vm web: this host grants no isolation {refused}"));
        }
    }
}
