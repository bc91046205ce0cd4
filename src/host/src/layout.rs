//! Where things are. Every adapter derives its paths here, from a VM's id alone.

use std::path::{Path, PathBuf};

use ocivisor_core::ids::VmId;
use ocivisor_shim::facts::SOCKET as SHIM_SOCKET;

/// The two directories of a daemon, and the name of its cgroups.
///
/// Several daemons live side by side on one machine if their layouts differ in all three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Survives a reboot of the host; `/var/lib/ocivisor`.
    pub state: PathBuf,
    /// Gone after a reboot of the host; `/run/ocivisor`.
    pub run: PathBuf,
    /// Parent of all VMs' control groups, relative to each hierarchy's root; `ocivisor`.
    pub cgroup_base: String,
}

impl Layout {
    /// The layout of a packaged installation.
    #[must_use]
    pub fn system() -> Self {
        Self {
            state: "/var/lib/ocivisor".into(),
            run: "/run/ocivisor".into(),
            cgroup_base: "ocivisor".into(),
        }
    }

    /// The daemon's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run.join("ocivisord.sock")
    }

    /// Locked exclusively by the daemon, or by an offline command.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// Format version and features of the state directory.
    #[must_use]
    pub fn meta(&self) -> PathBuf {
        self.state.join("meta.json")
    }

    /// The image store.
    #[must_use]
    pub fn datastore(&self) -> PathBuf {
        self.state.join("datastore")
    }

    /// The small init of application guests. Below the state directory, because a run directory is
    /// often mounted noexec, and guests see it where it is.
    #[must_use]
    pub fn init_program(&self) -> PathBuf {
        self.state.join("libexec/ocivisor-init")
    }

    /// Parent of the VMs' durable directories.
    #[must_use]
    pub fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// A VM's durable directory.
    #[must_use]
    pub fn vm(&self, id: &VmId) -> PathBuf {
        self.vms().join(id.as_str())
    }

    /// A VM's record.
    #[must_use]
    pub fn record(&self, id: &VmId) -> PathBuf {
        self.vm(id).join("vm.json")
    }

    /// What the guest wrote to its console, capped.
    #[must_use]
    pub fn console_log(&self, id: &VmId) -> PathBuf {
        self.vm(id).join("console.log")
    }

    /// What is kept of operations that failed, one file per VM; apart from their directories, which go with them.
    #[must_use]
    pub fn failures(&self) -> PathBuf {
        self.state.join("failures")
    }

    /// The last failure of a VM, known or forgotten.
    #[must_use]
    pub fn failure(&self, id: &VmId) -> PathBuf {
        self.failures().join(format!("{id}.json"))
    }

    /// Parent of the VMs' run directories.
    #[must_use]
    pub fn run_vms(&self) -> PathBuf {
        self.run.join("vms")
    }

    /// Everything of a running guest that a reboot of the host may lose.
    #[must_use]
    pub fn run_vm(&self, id: &VmId) -> VmRun {
        let sockets = self.run_sockets().join(id.as_str());
        VmRun { dir: self.run_vms().join(id.as_str()), sockets }
    }

    /// Parent of the VMs' directories of sockets.
    #[must_use]
    pub fn run_sockets(&self) -> PathBuf {
        self.run.join("sock")
    }
}

/// Paths of a VM that runs. Its directory may be passed by the guest's processes and by nobody
/// else; what clients connect to lies elsewhere, in a directory for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRun {
    dir: PathBuf,
    sockets: PathBuf,
}

impl VmRun {
    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where clients find the guest: its shim, and sessions of exec.
    #[must_use]
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// Pinned user namespace.
    #[must_use]
    pub fn user_ns(&self) -> PathBuf {
        self.dir.join("ns/user")
    }

    /// Pinned network namespace, owned by the user namespace.
    #[must_use]
    pub fn net_ns(&self) -> PathBuf {
        self.dir.join("ns/net")
    }

    /// Where the guest's root filesystem is mounted.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Where the writable disk's own filesystem is mounted (`upper/`, `work/` inside).
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// The runtime bundle, made anew for each boot.
    #[must_use]
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// State of the OCI runtime.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.dir.join("runtime")
    }

    /// The shim listens here.
    #[must_use]
    pub fn shim_socket(&self) -> PathBuf {
        self.sockets.join(SHIM_SOCKET)
    }

    /// Who the shim and the guest's first process are.
    #[must_use]
    pub fn shim_facts(&self) -> PathBuf {
        self.dir.join("shim.json")
    }

    /// Who shows the guest's console, and where; written by `ocivisor-vnc`.
    #[must_use]
    pub fn display_record(&self) -> PathBuf {
        self.dir.join("vnc.json")
    }

    /// How the guest ended; written by the shim.
    #[must_use]
    pub fn exit_record(&self) -> PathBuf {
        self.dir.join("exit.json")
    }
}
