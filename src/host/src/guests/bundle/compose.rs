//! Puts the OCI configuration together. Pure: all that it needs was looked up before.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    LinuxBuilder, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType as Ns, LinuxResourcesBuilder, Mount, PosixRlimitBuilder, PosixRlimitType,
    Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::IdRange;
use ocivisor_core::spec::{Isolation, VmSpec};
use ocivisor_core::state::GuestKind;

use super::super::lxcfs::Shown;
use super::process::GuestProcess;
use super::profile::Profile;
use super::{capabilities, mounts, seccomp};
use crate::labels::GuestLabels;
use crate::layout::VmRun;
use crate::storage::ForGuest;

/// Open files a process of the guest gets at first; more on its own request. systemd's default,
/// because select(2) breaks above.
const NOFILE_SOFT_SYSTEM: u64 = 1024;
/// The same for applications, which rarely raise it themselves.
const NOFILE_SOFT_APPLICATION: u64 = 65_536;
/// Open files a process of the guest may have.
const NOFILE_HARD: u64 = 1_048_576;

/// Annotation with the profile's name, for whoever enters the guest later: what has no filter must be known to
/// need none.
const ISOLATION: &str = "org.ocivisor.isolation";

/// Annotation with the kind of guest: the runtime makes the console nobody's where a system's own programs log in.
const KIND: &str = "org.ocivisor.kind";

/// All that a configuration is made of.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// Where the VM's namespaces and root are.
    pub run: &'a VmRun,
    /// The wish.
    pub spec: &'a VmSpec,
    /// Ids of the guest.
    pub ids: IdRange,
    /// Control group, absolute within each hierarchy.
    pub cgroup_path: &'a str,
    /// How it is confined.
    pub profile: Profile,
    /// The host's small init, to be mounted at [`mounts::INIT`].
    pub init: Option<&'a Path>,
    /// Files that show the guest its own limits, in place of the kernel's.
    pub shown: &'a [Shown],
    /// Its data disks, those further up in its tree first.
    pub disks: &'a [ForGuest],
    /// What keeps it from the host beside namespaces.
    pub labels: &'a GuestLabels,
    /// The first process.
    pub process: GuestProcess,
    /// Whether the host has this device node, and every user may open it.
    pub device_is_open: fn(&Path) -> bool,
    /// Most open files that this host can grant.
    pub nofile_limit: u64,
}

/// The configuration.
///
/// # Errors
/// Never for checked inputs; the builders of the format are fallible.
pub fn compose(inputs: &Inputs<'_>) -> Result<Spec> {
    let bad = |e: OciSpecError| Error::new(ErrorKind::Host, format!("OCI configuration: {e}"));
    let profile = inputs.profile;
    let (mut masked, mut readonly) =
        (mounts::MASKED_PATHS.to_vec(), mounts::READONLY_PATHS.to_vec());
    readonly.extend(if profile.administers() {
        &mounts::READONLY_PATHS_SYSTEM[..]
    } else {
        &mounts::READONLY_PATHS_APPLICATION[..]
    });
    if profile.isolation == Isolation::Privileged {
        (masked, readonly) = (Vec::new(), Vec::new());
    }
    let owned = |paths: Vec<&str>| paths.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let mut rules = mounts::device_rules(profile.isolation).map_err(bad)?;
    rules.extend(mounts::disk_rules(inputs.disks).map_err(bad)?);
    let resources = LinuxResourcesBuilder::default().devices(rules).build().map_err(bad)?;
    let mut linux = LinuxBuilder::default()
        .uid_mappings(mapping(inputs.ids).map_err(bad)?)
        .gid_mappings(mapping(inputs.ids).map_err(bad)?)
        .namespaces(namespaces(inputs.run).map_err(bad)?)
        .cgroups_path(inputs.cgroup_path)
        .resources(resources)
        .devices(Vec::new())
        .masked_paths(owned(masked))
        .readonly_paths(owned(readonly))
        .build()
        .map_err(bad)?;
    linux.set_mount_label(inputs.labels.files.clone());
    linux.set_seccomp(seccomp::filter(profile).map_err(bad)?);
    let root = RootBuilder::default().path(inputs.run.root()).readonly(false).build();
    SpecBuilder::default()
        .version("1.0.2")
        .root(root.map_err(bad)?)
        .hostname(inputs.spec.hostname.as_str())
        .mounts(all_mounts(inputs).map_err(bad)?)
        .process(process(inputs)?)
        .linux(linux)
        .annotations(annotations(profile))
        .build()
        .map_err(bad)
}

fn annotations(profile: Profile) -> HashMap<String, String> {
    let kind = match profile.kind {
        GuestKind::System => "system",
        GuestKind::Application => "application",
    };
    let all = [(ISOLATION, profile.isolation.name()), (KIND, kind)];
    all.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn all_mounts(inputs: &Inputs<'_>) -> std::result::Result<Vec<Mount>, OciSpecError> {
    let mut all = mounts::mounts(inputs.profile, inputs.spec.resources.memory)?;
    if inputs.profile.isolation >= Isolation::Nested {
        all.extend(mounts::nested_devices(inputs.device_is_open)?);
    }
    if let Some(init) = inputs.init {
        all.push(mounts::init(init)?);
    }
    for shown in inputs.shown {
        all.push(mounts::shown(shown)?);
    }
    for disk in inputs.disks {
        all.push(mounts::disk(disk)?);
    }
    Ok(all)
}

fn process(inputs: &Inputs<'_>) -> Result<Process> {
    let bad = |e: OciSpecError| Error::new(ErrorKind::Host, format!("OCI process: {e}"));
    let wanted = &inputs.process;
    let user = UserBuilder::default()
        .uid(wanted.user.uid)
        .gid(wanted.user.gid)
        .additional_gids(wanted.user.groups.clone())
        .build()
        .map_err(bad)?;
    let soft = match inputs.profile.kind {
        GuestKind::Application => NOFILE_SOFT_APPLICATION,
        GuestKind::System => NOFILE_SOFT_SYSTEM,
    };
    let hard = NOFILE_HARD.min(inputs.nofile_limit);
    let nofile = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(soft.min(hard))
        .hard(hard)
        .build()
        .map_err(bad)?;
    let process = ProcessBuilder::default()
        .terminal(true)
        .user(user)
        .args(wanted.argv.clone())
        .env(wanted.env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>())
        .cwd(wanted.cwd.clone())
        .capabilities(capabilities::sets(inputs.profile)?)
        .rlimits(vec![nofile])
        .build()
        .map_err(bad)?;
    let mut process = process;
    // Absent, not false, for systems: libcontainer takes the mere presence as a sign to load the
    // filter after capabilities are dropped, and sudo, ping and su in a system need set-id bits.
    process.set_apparmor_profile(inputs.labels.profile.clone());
    process.set_selinux_label(inputs.labels.process.clone());
    process.set_no_new_privileges((!inputs.profile.gains_privileges()).then_some(true));
    Ok(process)
}

fn mapping(ids: IdRange) -> std::result::Result<Vec<LinuxIdMapping>, OciSpecError> {
    let whole = LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(ids.base)
        .size(IdRange::LEN)
        .build()?;
    Ok(vec![whole])
}

fn namespaces(run: &VmRun) -> std::result::Result<Vec<LinuxNamespace>, OciSpecError> {
    let joined = |typ, path: PathBuf| LinuxNamespaceBuilder::default().typ(typ).path(path).build();
    let fresh = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
    [
        joined(Ns::User, run.user_ns()),
        joined(Ns::Network, run.net_ns()),
        fresh(Ns::Pid),
        fresh(Ns::Ipc),
        fresh(Ns::Uts),
        fresh(Ns::Mount),
        fresh(Ns::Cgroup),
    ]
    .into_iter()
    .collect()
}
