//! The wish for a VM, as clients send it and records keep it.

mod boot;
mod context;
mod data_disk;
mod disk;
mod fields;
mod graphics;
mod nic;
mod resources;
mod upkeep;

pub use boot::{BootV1, InitKindV1};
pub use context::{ContextV1, GuestFileV1, PasswordV1};
pub use data_disk::{DataDiskV1, DiskFormatV1, FilesystemV1};
pub use disk::{IoLimitsV1, RootDiskV1};
pub use graphics::GraphicsV1;
pub use nic::{BridgeV1, NicV1, RateV1, RouteV1};
use ocivisor_core::error::Error;
use ocivisor_core::ids::Hostname;
use ocivisor_core::spec::{Change, Isolation, Platform, VmSpec};
pub use resources::{HugepagesV1, ResourcesV1};
use serde::{Deserialize, Serialize};
pub use upkeep::{HealthCheckV1, RestartV1, UpkeepV1};

use fields::Fields;

/// See [`VmSpec`]. Only `id`, `resources.memory` and `root.path` must be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpecV1 {
    /// The VM's id.
    pub id: String,
    /// Name for people; else the id.
    #[serde(default)]
    pub name: Option<String>,
    /// Host name inside; else made of the name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Who drives it; else `local`.
    #[serde(default)]
    pub platform: PlatformV1,
    /// Limits.
    pub resources: ResourcesV1,
    /// The first process.
    #[serde(default)]
    pub boot: BootV1,
    /// The root disk.
    pub root: RootDiskV1,
    /// Disks beside it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DataDiskV1>,
    /// Network interfaces.
    #[serde(default)]
    pub nics: Vec<NicV1>,
    /// Profile of confinement; else `default`.
    #[serde(default)]
    pub isolation: IsolationV1,
    /// What it is told about itself.
    #[serde(default, skip_serializing_if = "ContextV1::is_empty")]
    pub context: ContextV1,
    /// Its console as a picture; else there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graphics: Option<GraphicsV1>,
    /// What the host does for it unasked.
    #[serde(default, skip_serializing_if = "UpkeepV1::is_none")]
    pub upkeep: UpkeepV1,
}

/// See [`Change`]: parts that are absent stay as they are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeV1 {
    /// Limits, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesV1>,
    /// What it is told, all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<ContextV1>,
    /// Network interfaces, all of them; one that is in it as it was is not touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<NicV1>>,
}

impl ChangeV1 {
    /// The change; `vm` is for messages.
    ///
    /// # Errors
    /// [`Invalid`](ocivisor_core::error::ErrorKind::Invalid), naming the field.
    pub fn for_vm(self, vm: &str) -> Result<Change, Error> {
        let fields = Fields { vm };
        Ok(Change {
            resources: self.resources.as_ref().map(|r| fields.resources(r)).transpose()?,
            context: self.context.map(|context| fields.context(context)).transpose()?,
            nics: self
                .nics
                .map(|nics| nics.iter().map(|nic| fields.nic(nic)).collect())
                .transpose()?,
        })
    }

    /// For answers: without what only the guest may know.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        if let Some(context) = &mut self.context {
            context.hide();
        }
        self
    }
}

impl From<&Change> for ChangeV1 {
    fn from(change: &Change) -> Self {
        Self {
            resources: change.resources.as_ref().map(ResourcesV1::from),
            context: change.context.as_ref().map(ContextV1::from),
            nics: change.nics.as_ref().map(|nics| nics.iter().map(NicV1::from).collect()),
        }
    }
}

impl VmSpecV1 {
    /// For answers: without what only the guest may know.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        self.context.hide();
        if let Some(graphics) = &mut self.graphics {
            graphics.hide();
        }
        self
    }
}

/// See [`Platform`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlatformV1 {
    /// `local`
    #[default]
    Local,
    /// `opennebula`
    OpenNebula,
    /// `openstack`
    OpenStack,
}

/// See [`Isolation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IsolationV1 {
    /// `strict`
    Strict,
    /// `default`
    #[default]
    Default,
    /// `nested`
    Nested,
    /// `privileged`
    Privileged,
}

impl From<IsolationV1> for Isolation {
    fn from(isolation: IsolationV1) -> Self {
        match isolation {
            IsolationV1::Strict => Self::Strict,
            IsolationV1::Default => Self::Default,
            IsolationV1::Nested => Self::Nested,
            IsolationV1::Privileged => Self::Privileged,
        }
    }
}

impl From<Isolation> for IsolationV1 {
    fn from(isolation: Isolation) -> Self {
        match isolation {
            Isolation::Strict => Self::Strict,
            Isolation::Default => Self::Default,
            Isolation::Nested => Self::Nested,
            Isolation::Privileged => Self::Privileged,
        }
    }
}

impl From<PlatformV1> for Platform {
    fn from(platform: PlatformV1) -> Self {
        match platform {
            PlatformV1::Local => Self::Local,
            PlatformV1::OpenNebula => Self::OpenNebula,
            PlatformV1::OpenStack => Self::OpenStack,
        }
    }
}

impl From<Platform> for PlatformV1 {
    fn from(platform: Platform) -> Self {
        match platform {
            Platform::Local => Self::Local,
            Platform::OpenNebula => Self::OpenNebula,
            Platform::OpenStack => Self::OpenStack,
        }
    }
}

impl TryFrom<VmSpecV1> for VmSpec {
    type Error = Error;

    /// The checked wish.
    fn try_from(spec: VmSpecV1) -> Result<Self, Error> {
        let fields = Fields { vm: &spec.id };
        let id = fields.id("id", &spec.id)?;
        let name = fields.id("name", spec.name.as_ref().unwrap_or(&spec.id))?;
        let hostname = match &spec.hostname {
            Some(text) => fields.id("hostname", text)?,
            None => Hostname::from_display(spec.name.as_ref().unwrap_or(&spec.id), &id),
        };
        let made = Self {
            id,
            name,
            hostname,
            platform: spec.platform.into(),
            resources: fields.resources(&spec.resources)?,
            boot: fields.boot(spec.boot)?,
            root: (&spec.root).into(),
            disks: spec
                .disks
                .iter()
                .map(|disk| fields.data_disk(disk))
                .collect::<Result<_, _>>()?,
            nics: spec.nics.iter().map(|nic| fields.nic(nic)).collect::<Result<_, _>>()?,
            isolation: spec.isolation.into(),
            context: fields.context(spec.context)?,
            graphics: spec.graphics.map(|graphics| fields.graphics(graphics)).transpose()?,
            upkeep: spec.upkeep.into(),
        };
        made.check()?;
        Ok(made)
    }
}

impl From<&VmSpec> for VmSpecV1 {
    /// Exact for every checked spec; a path that is not UTF-8 never passed the check.
    fn from(spec: &VmSpec) -> Self {
        Self {
            id: spec.id.to_string(),
            name: Some(spec.name.to_string()),
            hostname: Some(spec.hostname.to_string()),
            platform: spec.platform.into(),
            resources: (&spec.resources).into(),
            boot: (&spec.boot).into(),
            root: (&spec.root).into(),
            disks: spec.disks.iter().map(DataDiskV1::from).collect(),
            nics: spec.nics.iter().map(NicV1::from).collect(),
            isolation: spec.isolation.into(),
            context: (&spec.context).into(),
            graphics: spec.graphics.as_ref().map(GraphicsV1::from),
            upkeep: (&spec.upkeep).into(),
        }
    }
}
