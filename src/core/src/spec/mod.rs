//! What a VM shall be: the caller's wish, checked once, kept verbatim in the record.

mod boot;
mod context;
mod data_disk;
mod disk;
mod graphics;
mod nic;
mod resources;
mod upkeep;

use std::path::{Component, Path, PathBuf};

pub use boot::{Boot, InitKind};
pub use context::{Context, GuestFile, Password, Secret};
pub use data_disk::{DataDisk, DeviceName, DiskFormat, Filesystem, View};
pub use disk::{IoLimits, RootDisk};
pub use graphics::Graphics;
pub use nic::{Bridge, NicSpec, Rate, Route};
pub use resources::{Hugepages, Placement, Resources};
pub use upkeep::{HealthCheck, Restart, Upkeep};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DisplayName, Hostname, VmId};

/// The whole wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Who it is.
    pub id: VmId,
    /// What people call it.
    pub name: DisplayName,
    /// What it calls itself.
    pub hostname: Hostname,
    /// Who asked for it; guests of a platform are never restarted behind its back.
    pub platform: Platform,
    /// Processor, memory and process limits.
    pub resources: Resources,
    /// What its first process is.
    pub boot: Boot,
    /// The root disk: a writable disk whose manifest names the layers below it.
    pub root: RootDisk,
    /// Disks beside it.
    pub disks: Vec<DataDisk>,
    /// Network interfaces, `eth<index>` inside.
    pub nics: Vec<NicSpec>,
    /// How strictly it is confined.
    pub isolation: Isolation,
    /// What it is told about itself.
    pub context: Context,
    /// Its console as a picture, if wanted.
    pub graphics: Option<Graphics>,
    /// What the host does for it unasked.
    pub upkeep: Upkeep,
}

/// Who drives a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Platform {
    /// An admin of this host.
    Local,
    /// OpenNebula's drivers.
    OpenNebula,
    /// OpenStack Nova.
    OpenStack,
}

/// Profiles of confinement, from the narrowest on. Which ones a caller may ask for is the host's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isolation {
    /// Applications only: as [`Self::Default`], no new privileges, nothing writable below `/proc` and `/sys`, fewer
    /// system calls.
    Strict,
    /// Own user namespace and id range, seccomp list, masked paths, device list.
    Default,
    /// As [`Self::Default`], and container engines work inside.
    Nested,
    /// No seccomp list, all capabilities of its own user namespace, nothing masked.
    Privileged,
}

/// Parts of a wish that are replaced while the VM exists, running or not; `None` leaves a part as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// What it may use.
    pub resources: Option<Resources>,
    /// What it is told.
    pub context: Option<Context>,
    /// Its network interfaces, all of them.
    pub nics: Option<Vec<NicSpec>>,
}

impl Isolation {
    /// All, from the narrowest on.
    pub const ALL: [Self; 4] = [Self::Strict, Self::Default, Self::Nested, Self::Privileged];

    /// Name in configuration, on the wire and on disk.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Default => "default",
            Self::Nested => "nested",
            Self::Privileged => "privileged",
        }
    }

    /// The profile of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isolation| isolation.name() == name)
    }
}

impl VmSpec {
    /// The wish with that change made.
    #[must_use]
    pub fn changed(&self, change: &Change) -> Self {
        let Change { resources, context, nics } = change.clone();
        Self {
            resources: resources.unwrap_or_else(|| self.resources.clone()),
            context: context.unwrap_or_else(|| self.context.clone()),
            nics: nics.unwrap_or_else(|| self.nics.clone()),
            ..self.clone()
        }
    }

    /// Whether a guest of this wish is told something else than one of `other`: files in the guest name its
    /// addresses and its networks' name servers, too.
    pub(crate) fn is_told_apart_from(&self, other: &Self) -> bool {
        self.context != other.context || self.nics != other.nics
    }

    /// Checks what the types cannot: bounds, duplicates and combinations.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], naming the field.
    pub fn check(&self) -> Result<()> {
        let id = &self.id;
        let checks = [
            self.resources.check(),
            self.boot.check(),
            self.root.check(),
            data_disk::check(&self.disks, &self.root.path),
            nic::check(&self.nics),
            self.context.check(),
            self.graphics.as_ref().map_or(Ok(()), Graphics::check),
            self.upkeep.check(self.platform),
        ];
        let all: std::result::Result<(), String> = checks.into_iter().collect();
        all.map_err(|what| Error::new(ErrorKind::Invalid, format!("vm {id}: {what}")))
    }
}

/// An absolute path with doubled slashes and `.` taken out (platforms join by concatenation);
/// `None` if it is relative, has `..`, holds control characters or is over 4095 bytes.
#[must_use]
pub fn normal_path(path: &Path) -> Option<PathBuf> {
    let text = path.to_str()?;
    if !path.is_absolute() || text.len() > 4095 || text.chars().any(char::is_control) {
        return None;
    }
    let mut normal = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => normal.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(normal)
}
