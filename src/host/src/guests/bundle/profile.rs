//! Profiles of confinement: what a guest is, and how much it was granted.
//!
//! | | `strict` | `default` | `nested` | `privileged` |
//! |---|---|---|---|---|
//! | kinds | applications | both | both | both |
//! | capabilities | [`capabilities::STRICT`] | of the kind | of a system, and what engines give on | all |
//! | system calls | fewer | list of the kind | of a system, and namespaces | all |
//! | `/proc`, `/sys` | masked, read-only | masked, read-only | the same, and whole ones aside | whole |
//! | new privileges | no | systems only | yes | yes |
//!
//! Common to all, and not for sale: a user namespace with ids of its own, so that no profile makes a
//! guest's root the host's; own namespaces of every sort; control groups with limits and the list of
//! devices; no device of the host but character devices without memory.
//!
//! [`capabilities::STRICT`]: super::capabilities::STRICT

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::Isolation;
use ocivisor_core::state::GuestKind;

/// A profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// What the guest is.
    pub kind: GuestKind,
    /// What it was granted.
    pub isolation: Isolation,
}

impl Profile {
    /// The profile of a guest of that kind.
    ///
    /// # Errors
    /// `Invalid`: systems cannot work under `strict`.
    pub fn new(kind: GuestKind, isolation: Isolation) -> Result<Self> {
        if kind == GuestKind::System && isolation == Isolation::Strict {
            let what = "isolation strict is for applications, and this image has an init";
            let hint = "take isolation default, or boot.init application with a command";
            return Err(Error::new(ErrorKind::Invalid, what).hint(hint));
        }
        Ok(Self { kind, isolation })
    }

    /// Whether it may mount, enter namespaces and have its own control groups: an init does, and so
    /// does an engine of containers.
    #[must_use]
    pub fn administers(self) -> bool {
        self.kind == GuestKind::System || self.isolation >= Isolation::Nested
    }

    /// Whether set-id programs and file capabilities give rights: `sudo` and `ping` in a system need it.
    #[must_use]
    pub fn gains_privileges(self) -> bool {
        self.administers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_is_for_applications() {
        assert!(Profile::new(GuestKind::Application, Isolation::Strict).is_ok());
        let why = Profile::new(GuestKind::System, Isolation::Strict).unwrap_err();
        assert_eq!(why.message, "isolation strict is for applications, and this image has an init");
    }

    #[test]
    fn who_administers_may_gain_privileges_and_no_application_does_by_itself() {
        use Isolation::{Default, Nested, Privileged, Strict};
        for (kind, isolation, want) in [
            (GuestKind::Application, Strict, false),
            (GuestKind::Application, Default, false),
            (GuestKind::Application, Nested, true),
            (GuestKind::Application, Privileged, true),
            (GuestKind::System, Default, true),
        ] {
            let profile = Profile::new(kind, isolation).unwrap();
            assert_eq!(profile.administers(), want, "{kind:?} {isolation:?}");
            assert_eq!(profile.gains_privileges(), want, "{kind:?} {isolation:?}");
        }
    }
}
