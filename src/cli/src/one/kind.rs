//! Kinds of drivers, and whose a script is.

use std::path::Path;

/// A kind of driver that OpenNebula calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Virtual machine manager.
    Vmm,
    /// Transfer manager.
    Tm,
    /// Datastores.
    Datastore,
    /// Marketplaces.
    Market,
    /// Information manager: monitoring.
    Im,
}

impl Kind {
    /// Each with the name of its directory below `remotes`.
    const ALL: [(Self, &'static str); 5] = [
        (Self::Vmm, "vmm"),
        (Self::Tm, "tm"),
        (Self::Datastore, "datastore"),
        (Self::Market, "market"),
        (Self::Im, "im"),
    ];

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known)| *known == name).map(|(kind, _)| kind)
    }

    /// The kind of a script by its place, `…/<kind>/<name of the driver>/<action>`. The driver's name is the
    /// admin's choice.
    pub fn of_script(path: &Path) -> Option<Self> {
        let whole = std::path::absolute(path).ok()?;
        let mut parts = whole.components().rev().skip(2);
        Self::from_name(parts.next()?.as_os_str().to_str()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_belongs_to_the_directory_two_above() {
        for path in ["/var/tmp/one/vmm/ocivisor/deploy", "/x//vmm/./lxc/deploy", "vmm/oci/deploy"] {
            assert_eq!(Kind::of_script(Path::new(path)), Some(Kind::Vmm), "{path}");
        }
        assert_eq!(Kind::of_script(Path::new("/r/tm/ssh/clone.ssh")), Some(Kind::Tm));
        for path in ["/var/tmp/one/im/ocivisor.d/ocivisor_control.sh", "/x/im/lxc.d/./a_control.sh"]
        {
            assert_eq!(Kind::of_script(Path::new(path)), Some(Kind::Im), "{path}");
        }
        for path in
            ["", "/", "/deploy", "/vmm/deploy", "/vmm/a/b/deploy", "/var/tmp/one/xmm/a/deploy"]
        {
            assert_eq!(Kind::of_script(Path::new(path)), None, "{path}");
        }
    }
}
