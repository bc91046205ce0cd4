//! Labels of Linux security modules: what still stands between a guest and the host when a namespace
//! of the kernel fails.
//!
//! * AppArmor: one profile for all guests, [`PROFILE`], which the host loads at its boot from the
//!   package's file. It keeps guests from processes of the host and, by their paths, from files that
//!   show or steer it.
//! * SELinux: the types that container policies have (container_selinux(8)), and a pair of categories
//!   of the guest's own, so that guests are kept from each other as well. Its files are all labelled by
//!   the mount, not one by one: layers are shared.
//!
//! A kernel has one of the two at most. What can go wrong: the module is on, and what guests need of it
//! was never loaded. Then they run without, or not at all, as the admin chose ([`Use`]).
//!
//! Absent on purpose: loading profiles and policies, which is the host's boot's; labels for guests with
//! isolation `privileged`, whose point is to be without.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::IdRange;
use ocivisor_core::spec::Isolation;
use ocivisor_core::state::GuestKind;

use crate::fs::read_bounded;

/// AppArmor's profile of all guests, `src/daemon/apparmor/ocivisor-guest`.
pub const PROFILE: &str = "ocivisor-guest";
/// Largest list of profiles that is read.
const MAX_PROFILES: u64 = 4 << 20;
/// Categories of SELinux's targeted policies, `c0` to `c1023`.
const CATEGORIES: u32 = 1024;

/// Whether something that a host need not have is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Where the host has it.
    Auto,
    /// Never.
    Off,
    /// Always: without it no guest boots.
    Required,
}

/// The labels that this host can give.
#[derive(Debug, Clone)]
pub struct Labels {
    apparmor: Use,
    selinux: Use,
    /// `/sys`; tests have another.
    sys: PathBuf,
}

/// The labels of one guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestLabels {
    /// Name of an AppArmor profile.
    pub profile: Option<String>,
    /// SELinux context of its processes.
    pub process: Option<String>,
    /// SELinux context of its files.
    pub files: Option<String>,
}

impl Labels {
    /// Labels as the admin wants them.
    #[must_use]
    pub fn new(apparmor: Use, selinux: Use) -> Self {
        Self { apparmor, selinux, sys: "/sys".into() }
    }

    /// None at all.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Use::Off, Use::Off)
    }

    /// What a guest gets that boots now.
    ///
    /// # Errors
    /// `Unsupported`: one is required and this host cannot give it.
    pub fn of(&self, ids: IdRange, kind: GuestKind, isolation: Isolation) -> Result<GuestLabels> {
        if isolation == Isolation::Privileged {
            return Ok(GuestLabels { files: self.files(ids)?, ..GuestLabels::default() });
        }
        Ok(GuestLabels {
            profile: self.profile()?,
            process: self.process(ids, kind)?,
            files: self.files(ids)?,
        })
    }

    /// The SELinux context of a guest's files.
    ///
    /// # Errors
    /// `Unsupported`: it is required and this host cannot give it.
    pub fn files(&self, ids: IdRange) -> Result<Option<String>> {
        self.context(&["object_r:container_file_t"], ids)
    }

    fn process(&self, ids: IdRange, kind: GuestKind) -> Result<Option<String>> {
        let types: &[&str] = match kind {
            GuestKind::Application => &["system_r:container_t"],
            // Older policies have the one for all.
            GuestKind::System => &["system_r:container_init_t", "system_r:container_t"],
        };
        self.context(types, ids)
    }

    /// The first of these that the loaded policy knows.
    fn context(&self, types: &[&str], ids: IdRange) -> Result<Option<String>> {
        let selinux = self.sys.join("fs/selinux");
        let absent = |what: &str, hint: &str| match self.selinux {
            Use::Required => {
                let what = format!("guests.selinux is \"required\", and {what}");
                Err(Error::new(ErrorKind::Unsupported, what).hint(hint.to_owned()))
            }
            Use::Auto | Use::Off => {
                tracing::debug!("{what}: guests have no SELinux labels");
                Ok(None)
            }
        };
        if self.selinux == Use::Off {
            return Ok(None);
        }
        if !selinux.join("enforce").exists() {
            return absent("SELinux is off", "boot the host with SELinux, or make it \"auto\"");
        }
        let level = level(ids);
        for typed in types {
            let context = format!("system_u:{typed}:{level}");
            match is_known(&selinux, &context) {
                Ok(true) => return Ok(Some(context)),
                Ok(false) => {}
                Err(e) => return absent(&format!("SELinux cannot be asked: {e}"), "see dmesg"),
            }
        }
        let what = format!("the SELinux policy does not know {}", types[0]);
        absent(&what, "install the host's container policy (container-selinux)")
    }

    fn profile(&self) -> Result<Option<String>> {
        let why = match self.apparmor {
            Use::Off => return Ok(None),
            Use::Auto | Use::Required => match self.look_for_profile() {
                Ok(()) => return Ok(Some(PROFILE.to_owned())),
                Err(why) => why,
            },
        };
        if self.apparmor == Use::Required {
            let what = format!("guests.apparmor is \"required\", and {why}");
            let hint = format!("apparmor_parser -r /etc/apparmor.d/{PROFILE}, or make it \"auto\"");
            return Err(Error::new(ErrorKind::Unsupported, what).hint(hint));
        }
        tracing::debug!("{why}: guests have no AppArmor profile");
        Ok(None)
    }

    /// # Errors
    /// Why guests cannot have the profile.
    fn look_for_profile(&self) -> std::result::Result<(), String> {
        let enabled = self.sys.join("module/apparmor/parameters/enabled");
        if !fs::read(enabled).is_ok_and(|text| text.starts_with(b"Y")) {
            return Err("AppArmor is off".into());
        }
        let list = self.sys.join("kernel/security/apparmor/profiles");
        let text = read_bounded(&list, MAX_PROFILES).ok().flatten();
        let Some(text) = text else {
            return Err(format!("{} cannot be read", list.display()));
        };
        // `NAME (MODE)` in each line.
        let text = String::from_utf8_lossy(&text);
        let mut names = text.lines().filter_map(|line| Some(line.rsplit_once(" (")?.0));
        match names.any(|name| name == PROFILE) {
            true => Ok(()),
            false => Err(format!("the AppArmor profile {PROFILE} is not loaded")),
        }
    }
}

/// Whether the loaded policy has such a context: the file `context` of selinuxfs takes those alone.
fn is_known(selinux: &Path, context: &str) -> io::Result<bool> {
    let mut file: File = OpenOptions::new().write(true).open(selinux.join("context"))?;
    match file.write_all(context.as_bytes()) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(e) => Err(e),
    }
}

/// A level with two categories that no other range of ids has: pairs are numbered (0,1), (0,2), (1,2),
/// (0,3), …, of which 1,024 categories give eight times as many as there are ranges.
fn level(ids: IdRange) -> String {
    let mut number = ids.base / IdRange::LEN;
    let mut upper = 1;
    while number >= upper {
        number -= upper;
        upper += 1;
    }
    debug_assert!(upper < CATEGORIES, "ranges of 65,536 ids are 65,536 at most");
    format!("s0:c{number},c{upper}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const IDS: IdRange = IdRange { base: 0x7000_0000 };

    fn labels(sys: &Path, apparmor: Use, selinux: Use) -> Labels {
        Labels { apparmor, selinux, sys: sys.to_owned() }
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a fake of sysfs")]
        fs::write(path, text).unwrap();
    }

    fn of(labels: &Labels, isolation: Isolation) -> Result<GuestLabels> {
        labels.of(IDS, GuestKind::Application, isolation)
    }

    #[test]
    fn a_host_without_modules_gives_no_labels_and_refuses_where_they_are_required() {
        let sys = tempfile::tempdir().unwrap();
        let none = Ok(GuestLabels::default());
        assert_eq!(of(&labels(sys.path(), Use::Auto, Use::Auto), Isolation::Default), none);
        assert_eq!(of(&labels(sys.path(), Use::Off, Use::Off), Isolation::Default), none);
        let why = |apparmor, selinux| {
            of(&labels(sys.path(), apparmor, selinux), Isolation::Strict).unwrap_err().message
        };
        assert_eq!(
            why(Use::Required, Use::Auto),
            "guests.apparmor is \"required\", and AppArmor is off"
        );
        assert_eq!(
            why(Use::Auto, Use::Required),
            "guests.selinux is \"required\", and SELinux is off"
        );
    }

    #[test]
    fn the_profile_is_given_once_it_is_loaded() {
        let sys = tempfile::tempdir().unwrap();
        write(&sys.path().join("module/apparmor/parameters/enabled"), "Y\n");
        let list = sys.path().join("kernel/security/apparmor/profiles");
        write(&list, "not-ocivisor-guest (enforce)\nocivisor-guest-2 (enforce)\n");
        let required = labels(sys.path(), Use::Required, Use::Off);
        assert_eq!(
            of(&required, Isolation::Default).unwrap_err().message,
            "guests.apparmor is \"required\", and the AppArmor profile ocivisor-guest is not loaded"
        );
        write(&list, "/usr/bin/man (enforce)\nocivisor-guest (complain)\n");
        let given = of(&required, Isolation::Nested).unwrap();
        assert_eq!(given.profile.as_deref(), Some("ocivisor-guest"));
        assert_eq!((given.process, given.files), (None, None));
        assert_eq!(of(&required, Isolation::Privileged), Ok(GuestLabels::default()));
    }

    #[test]
    fn contexts_hold_the_types_of_container_policies_and_categories_of_the_guests_own() {
        let sys = tempfile::tempdir().unwrap();
        write(&sys.path().join("fs/selinux/enforce"), "0");
        // As the kernel's, it takes what is written; a policy that knows all.
        write(&sys.path().join("fs/selinux/context"), "");
        let labels = labels(sys.path(), Use::Auto, Use::Required);
        let level = "s0:c231,c239";
        assert_eq!(
            labels.of(IDS, GuestKind::System, Isolation::Default),
            Ok(GuestLabels {
                profile: None,
                process: Some(format!("system_u:system_r:container_init_t:{level}")),
                files: Some(format!("system_u:object_r:container_file_t:{level}")),
            })
        );
        let given = of(&labels, Isolation::Strict).unwrap();
        assert_eq!(given.process, Some(format!("system_u:system_r:container_t:{level}")));
        let given = of(&labels, Isolation::Privileged).unwrap();
        assert_eq!(given.process, None, "its files still are nobody else's");
        assert_eq!(given.files, Some(format!("system_u:object_r:container_file_t:{level}")));
    }

    #[test]
    fn no_two_ranges_have_the_same_categories() {
        let all = (0..=u32::MAX >> 16).map(|n| level(IdRange { base: n << 16 }));
        assert_eq!(all.collect::<BTreeSet<_>>().len(), 1 << 16);
        assert_eq!(level(IdRange { base: 0 }), "s0:c0,c1");
        assert_eq!(level(IdRange { base: 3 << 16 }), "s0:c0,c3");
    }
}
