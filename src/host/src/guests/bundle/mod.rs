//! The OCI bundle of a guest: `config.json`, derived anew for each boot from the wish ([`VmSpec`]),
//! from the image's configuration and from a look into the root filesystem.
//!
//! ```text
//!   VmSpec ────────────┐
//!   <disk>.manifest.json├─► image, init, user ─► process ─┐
//!   root filesystem ───┘       (hostile bytes)            ├─► compose (pure) ─► config.json
//!   isolation profile ─► capabilities, seccomp, mounts ───┘
//! ```
//!
//! Two sources, two trusts: what the caller asks for is policy; every byte that came from an image
//! is hostile. An image decides *what runs inside* (argv, environment, user, directory, stop signal)
//! and nothing else. It can name no mount, no device, no namespace, no capability, no host path:
//! those come from constants of this module and from [`Layout`] alone, and the fields of an image
//! that other engines turn into mounts or host actions (volumes, ports, labels) are not even read.
//!
//! The user and the network namespace are joined by path, because they outlive the guest's boots.
//! The id mappings are written down all the same: runc 1.1 refuses a user namespace without them,
//! runc 1.2 and later want them to equal those of the namespace, libcontainer ignores them.
//!
//! The guest's first process opens the namespaces and its root by path when it is already in its
//! own user namespace, so every directory above them must be traversable for ids of its range:
//! [`way`] sees to that.

pub mod capabilities;
pub mod compose;
pub mod image;
pub mod init;
pub mod mounts;
mod points;
pub mod process;
pub mod profile;
pub mod rootfs;
pub mod seccomp;
mod sockets;
mod syscalls;
pub mod user;
pub mod way;

use std::path::{Path, PathBuf};

use ocivisor_context::Runner;
use ocivisor_context::plan::SCRIPT;
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::IdRange;
use ocivisor_core::spec::VmSpec;
use ocivisor_core::state::GuestKind;

use super::lxcfs::Shown;
use crate::fs;
use crate::labels::Labels;
use crate::layout::Layout;
use crate::storage;
use compose::Inputs;
use process::GuestProcess;
use profile::Profile;
use rootfs::GuestRoot;
use rustix::fs::FileType;

/// What was found out while the bundle was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// What the guest's first process is.
    pub kind: GuestKind,
    /// Signal that asks it to end, 1 to 64.
    pub stop_signal: u8,
}

/// What the host gives a guest.
#[derive(Debug)]
pub struct Given<'a> {
    /// The guest's group, absolute within each hierarchy (`/ocivisor/one-7/guest`). Its limits are set by
    /// others, the bundle holds device rules only.
    pub cgroup_path: &'a str,
    /// Files in place of the kernel's.
    pub shown: &'a [Shown],
    /// Labels of which it gets its own.
    pub labels: &'a Labels,
}

/// Writes the bundle of a guest whose root is mounted and whose namespaces are pinned. Running it again is
/// fine: the bundle is replaced.
///
/// # Errors
/// `Image`: the image has no such entrypoint, user or directory, or its configuration is absurd.
/// `Invalid`: the same of what the caller asked for. `NotFound`: the root is not mounted or the disk
/// has no manifest. `Unsupported`: the host cannot give a label that its admin requires.
pub fn write(layout: &Layout, spec: &VmSpec, ids: IdRange, given: &Given<'_>) -> Result<Facts> {
    let run = layout.run_vm(&spec.id);
    let in_vm = |e: Error| e.context(format_args!("bundle of {}", spec.id));
    let image = image::load(&spec.root.path).map_err(in_vm)?;
    let root = GuestRoot::open(&run.root()).map_err(in_vm)?;
    let found = init::detect(&root).map_err(in_vm)?;
    let kind = init::decide_kind(&spec.boot, &image, found.as_ref().map(|i| i.path.as_path()));
    let profile = Profile::new(kind, spec.isolation).map_err(in_vm)?;
    let labels = given.labels.of(ids, kind, spec.isolation).map_err(in_vm)?;
    let process = match kind {
        GuestKind::System => process::system(&spec.boot, &image, found.as_ref()),
        GuestKind::Application => process::application(&spec.boot, &image, &root, &spec.hostname),
    };
    let mut process = process.map_err(in_vm)?;
    process.cwd = root.ensure_workdir(&process.cwd, ids).map_err(in_vm)?;
    let stop_signal = process.stop_signal;
    let script = match &spec.context.start_script {
        None => None,
        Some(_) => {
            Some(init::script_runner(&root, &spec.boot, kind, found.as_ref()).map_err(in_vm)?)
        }
    };
    let init = own_init(layout, kind, script, &mut process).map_err(in_vm)?;
    let disks = points::settle(&root, storage::given(&run), ids).map_err(in_vm)?;
    let inputs = Inputs {
        run: &run,
        spec,
        ids,
        cgroup_path: given.cgroup_path,
        profile,
        init: init.as_deref(),
        shown: given.shown,
        disks: &disks,
        labels: &labels,
        process,
        device_is_open: open_to_all,
        nofile_limit: host_nofile_limit(),
    };
    let config = compose::compose(&inputs).map_err(in_vm)?;
    let json = serde_json::to_vec_pretty(&config)
        .map_err(|e| Error::new(ErrorKind::Host, format!("bundle of {}: {e}", spec.id)))?;
    way::open(layout, &spec.id, ids)?;
    fs::ensure_dir(&run.bundle(), false)?;
    fs::replace(&run.bundle().join("config.json"), &json)?;
    Ok(Facts { kind, stop_signal })
}

/// Whether every user of the host may open this device node: to a guest its owner is nobody. One that cannot be
/// opened would only lead programs astray.
fn open_to_all(device: &Path) -> bool {
    let mode = rustix::fs::stat(device).map(|stat| stat.st_mode);
    mode.is_ok_and(|mode| {
        FileType::from_raw_mode(mode) == FileType::CharacterDevice && mode & 0o006 == 0o006
    })
}

/// Puts our small init in front of the command line where it is wanted: before applications, and where nothing else
/// can run the start script.
fn own_init(
    layout: &Layout,
    kind: GuestKind,
    script: Option<Runner>,
    first: &mut GuestProcess,
) -> Result<Option<PathBuf>> {
    let options = match (kind, script) {
        (GuestKind::System, None | Some(Runner::Systemd | Runner::Sysvinit | Runner::Busybox)) => {
            return Ok(None);
        }
        (GuestKind::System, Some(Runner::Ours)) => vec!["--beside".to_owned(), SCRIPT.to_owned()],
        (GuestKind::Application, None) => Vec::new(),
        (GuestKind::Application, Some(_)) => {
            // The script is root's, so the user comes after it.
            let user = std::mem::replace(&mut first.user, process::root_user());
            let groups: Vec<String> = user.groups.iter().map(ToString::to_string).collect();
            let ids = format!("{}:{}:{}", user.uid, user.gid, groups.join(","));
            let stop = first.stop_signal.to_string();
            ["--before", SCRIPT, "--stop", &stop, "--user", &ids].map(str::to_owned).to_vec()
        }
    };
    let program = layout.init_program();
    if !program.is_file() {
        if script.is_none() {
            return Ok(None);
        }
        let what = format!("{} is not there to run the start script", program.display());
        let error = Error::new(ErrorKind::Unsupported, what);
        return Err(error.hint("reinstall ocivisor, its programs belong together"));
    }
    let words = [mounts::INIT.to_owned()].into_iter().chain(options).chain(["--".to_owned()]);
    first.argv.splice(0..0, words);
    Ok(Some(program))
}

/// Hard limit of open files here; a guest cannot be given more, because raising it takes
/// `CAP_SYS_RESOURCE` in the first user namespace (setrlimit(2)).
fn host_nofile_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
