//! The configuration file. Every key has a default; unknown keys are errors, so that a typo does
//! not silently mean the default. `docs/ocivisor.toml` documents each and is tested against this.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::IdRange;
use ocivisor_core::spec::normal_path;
use ocivisor_datastore::RegistriesConfig;
use ocivisor_host::cgroup::{CpuPolicy, Policy};
use ocivisor_host::fs::read_bounded;
use ocivisor_host::guests::Lxcfs;
use ocivisor_host::labels::{Labels, Use};
use ocivisor_host::layout::Layout;
use ocivisor_host::storage::{Checks, TenantFilesystems};
use ocivisor_schema::spec::IsolationV1;
use serde::{Deserialize, Serialize};

/// Read if no file is named; may be absent.
const SYSTEM_FILE: &str = "/etc/ocivisor/ocivisor.toml";

/// Most bytes of a configuration file.
const MAX_BYTES: u64 = 1 << 20;

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Records and images.
    pub state_dir: PathBuf,
    /// Sockets and mounts.
    pub run_dir: PathBuf,
    /// Parent control group of all guests.
    pub cgroup_base: String,
    /// `error`, `warn`, `info`, `debug`, or a filter of tracing.
    pub log_level: String,
    /// How often records and host are compared, in seconds, beside at every event.
    pub reconcile_seconds: u64,
    /// Where `ocivisor-runtime` and `ocivisor-shim` are; default: beside the daemon, else
    /// /usr/libexec/ocivisor.
    pub libexec_dir: Option<PathBuf>,
    /// Access to the socket.
    pub access: Access,
    /// Guests.
    pub guests: Guests,
    /// Disks beside the root disk.
    pub disks: Disks,
    /// Images.
    pub images: Images,
    /// Registries, by host.
    pub registries: RegistriesConfig,
}

/// Who may do what; root may everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// Group of the socket, whose members may operate VMs: a number. Platforms' users are in it.
    pub operate_gid: Option<u32>,
    /// Groups whose members may look.
    pub read_gids: Vec<u32>,
    /// Users, beside root, that may do everything.
    pub admin_uids: Vec<u32>,
    /// Directories below which those who only operate may name disks and image sources; admins may
    /// name any. What a daemon of root opens for others must not be of their free choice.
    pub operate_dirs: Vec<PathBuf>,
}

/// How guests are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guests {
    /// First host id that guests may have.
    pub first_id: u32,
    /// How many ranges of 65536 ids there are.
    pub id_ranges: u32,
    /// How long a new guest must run before its start counts, in milliseconds.
    pub settle_ms: u64,
    /// Between the turns of guests that are started with the host, in milliseconds.
    pub autostart_pause_ms: u64,
    /// Size at which a console log is rotated; one older one is kept.
    pub console_log_bytes: u64,
    /// `embedded` (libcontainer) or `runc`, whose guests cannot have a getty on the console.
    pub runtime: RuntimeName,
    /// Profiles of confinement that a VM may ask for.
    pub isolation: Vec<IsolationV1>,
    /// What a guest's share of the processors bounds: `weight` or `quota`.
    pub cpu: CpuName,
    /// Whether a guest runs on, and sees, as many processors as it has VCPUs.
    pub spread_cpus: bool,
    /// Whether guests are shown their own limits in /proc: `auto`, `off` or `required`.
    pub lxcfs: UseName,
    /// Where lxcfs is mounted.
    pub lxcfs_dir: PathBuf,
    /// Whether guests run under the AppArmor profile `ocivisor-guest`: `auto`, `off` or `required`.
    pub apparmor: UseName,
    /// Whether guests have SELinux labels: `auto`, `off` or `required`.
    pub selinux: UseName,
}

/// What a guest's share of the processors bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuName {
    /// What it gets when others want them as well.
    Weight,
    /// What it gets at any time.
    Quota,
}

/// Whether guests get something that not every host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UseName {
    /// Where the host has it.
    Auto,
    /// Never.
    Off,
    /// Always: no guest boots without.
    Required,
}

impl From<UseName> for Use {
    fn from(name: UseName) -> Self {
        match name {
            UseName::Auto => Self::Auto,
            UseName::Off => Self::Off,
            UseName::Required => Self::Required,
        }
    }
}

/// What is done with disks beside the root disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Disks {
    /// Whether the host's kernel mounts filesystems that tenants made: `never`, `checked` or `unchecked`.
    pub tenant_filesystems: TenantsName,
    /// How long checking all disks of a VM may take, in minutes.
    pub check_minutes: u32,
    /// How many such checks run at once; 0 is as many as there are processors.
    pub checks_at_once: u32,
}

impl Disks {
    /// Bounds on checks.
    pub fn checks(&self) -> Checks {
        let at_once = match self.checks_at_once {
            0 => Checks::default().at_once,
            some => usize::try_from(some).unwrap_or(usize::MAX),
        };
        Checks { limit: Duration::from_mins(self.check_minutes.into()), at_once }
    }
}

/// Whether the host's kernel mounts filesystems that tenants made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantsName {
    /// Guests get block devices.
    Never,
    /// After a check of all of it, each time a disk is attached.
    Checked,
    /// As they are.
    Unchecked,
}

impl From<TenantsName> for TenantFilesystems {
    fn from(name: TenantsName) -> Self {
        match name {
            TenantsName::Never => Self::Never,
            TenantsName::Checked => Self::Checked,
            TenantsName::Unchecked => Self::Unchecked,
        }
    }
}

impl Default for Disks {
    fn default() -> Self {
        Self { tenant_filesystems: TenantsName::Checked, check_minutes: 10, checks_at_once: 0 }
    }
}

/// Which images are let in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// A containers-policy.json(5): whose signatures an image must have. No such file: every image is
    /// let in.
    pub policy: PathBuf,
    /// Days after which an image that a platform brought here goes, if nobody asked for it and no disk needed it; 0 is never.
    pub unused_days: u32,
}

impl Images {
    /// How long what nobody needs is kept; none is for ever.
    pub fn unused(&self) -> Option<Duration> {
        (self.unused_days > 0).then(|| Duration::from_hours(24 * u64::from(self.unused_days)))
    }
}

impl Default for Images {
    fn default() -> Self {
        Self { policy: "/etc/containers/policy.json".into(), unused_days: 30 }
    }
}

/// OCI runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeName {
    /// libcontainer, in our own process.
    Embedded,
    /// The runc that is installed.
    Runc,
}

impl Default for Config {
    fn default() -> Self {
        let layout = Layout::system();
        Self {
            state_dir: layout.state,
            run_dir: layout.run,
            cgroup_base: layout.cgroup_base,
            log_level: "info".into(),
            reconcile_seconds: 30,
            libexec_dir: None,
            access: Access::default(),
            guests: Guests::default(),
            disks: Disks::default(),
            images: Images::default(),
            registries: RegistriesConfig::default(),
        }
    }
}

impl Default for Access {
    fn default() -> Self {
        let platforms = ["/var/lib/one/datastores", "/var/lib/nova/instances"];
        Self {
            operate_gid: None,
            read_gids: Vec::new(),
            admin_uids: Vec::new(),
            operate_dirs: platforms.map(PathBuf::from).to_vec(),
        }
    }
}

impl Default for Guests {
    fn default() -> Self {
        Self {
            // Between what systemd-nspawn takes for containers (0x00080000 to 0x6FFFFFFF, far above
            // what distributions give to users) and what systemd has for foreign trees
            // (0x7FFE0000); from 2^31 on some tools see negative numbers. One range is left over.
            first_id: 0x7000_0000,
            id_ranges: 4093,
            settle_ms: 50,
            autostart_pause_ms: 1000,
            console_log_bytes: 1 << 20,
            runtime: RuntimeName::Embedded,
            isolation: vec![IsolationV1::Strict, IsolationV1::Default],
            // As KVM's users know it: CPU is a share, VCPU the bound.
            cpu: CpuName::Weight,
            spread_cpus: true,
            lxcfs: UseName::Auto,
            lxcfs_dir: "/var/lib/lxcfs".into(),
            apparmor: UseName::Auto,
            selinux: UseName::Auto,
        }
    }
}

impl Guests {
    /// What limits mean on this host.
    pub fn limits(&self) -> Policy {
        let cpu = match self.cpu {
            CpuName::Weight => CpuPolicy::Weight,
            CpuName::Quota => CpuPolicy::Quota,
        };
        Policy { cpu, spread_cpus: self.spread_cpus }
    }

    /// What shows guests their own limits.
    pub fn lxcfs(&self) -> Lxcfs {
        Lxcfs::new(self.lxcfs_dir.clone(), self.lxcfs.into())
    }

    /// What labels guests.
    pub fn labels(&self) -> Labels {
        Labels::new(self.apparmor.into(), self.selinux.into())
    }

    /// First of the ids that helpers have which unpack layers: right behind those of guests.
    pub fn worker_ids(&self) -> u32 {
        self.first_id + self.id_ranges * IdRange::LEN
    }
}

impl Config {
    /// Reads `file`, or the system's file if it exists, or takes the defaults.
    ///
    /// # Errors
    /// `NotFound` if a named file is not there; `Invalid` with line and column if it cannot be used.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let path = file.unwrap_or(Path::new(SYSTEM_FILE));
        let Some(bytes) = read_bounded(path, MAX_BYTES)? else {
            return match file {
                None => Ok(Self::default()),
                Some(_) => {
                    let what = format!("no configuration file {}", path.display());
                    Err(Error::new(ErrorKind::NotFound, what))
                }
            };
        };
        let text = String::from_utf8_lossy(&bytes);
        toml::from_str(&text).map_err(|e| {
            let before = e.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let what = format!("{}, line {line}: {}", path.display(), e.message());
            Error::new(ErrorKind::Invalid, what).hint("ocivisord --check-config shows all keys")
        })
    }

    /// Checks what types cannot.
    ///
    /// # Errors
    /// `Invalid`, naming the key.
    pub fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::new(ErrorKind::Invalid, what));
        for (key, dir) in [("state_dir", &self.state_dir), ("run_dir", &self.run_dir)] {
            if normal_path(dir).as_deref() != Some(dir) {
                return bad(format!("{key} {} is not an absolute, normal path", dir.display()));
            }
        }
        let lxcfs = &self.guests.lxcfs_dir;
        if normal_path(lxcfs).as_deref() != Some(lxcfs) {
            let shown = lxcfs.display();
            return bad(format!("guests.lxcfs_dir {shown} is not an absolute, normal path"));
        }
        let dirs = &self.access.operate_dirs;
        if let Some(dir) = dirs.iter().find(|dir| normal_path(dir).as_ref() != Some(*dir)) {
            return bad(format!("access.operate_dirs: {} is no absolute path", dir.display()));
        }
        // The path of a socket below the run directory must fit in sun_path (unix(7)): 108 bytes,
        // of which a VM's id and `/vms//exec/….sock` take their share.
        if self.run_dir.as_os_str().len() > 40 {
            let hint = "unix sockets have at most 107 bytes";
            let what = format!("run_dir {} is longer than 40 bytes", self.run_dir.display());
            return Err(Error::new(ErrorKind::Invalid, what).hint(hint));
        }
        for (key, value, least) in [
            ("disks.check_minutes", self.disks.check_minutes, 1),
            ("disks.checks_at_once", self.disks.checks_at_once, 0),
            ("images.unused_days", self.images.unused_days, 0),
        ] {
            if !(least..=10_000).contains(&value) {
                return bad(format!("{key} is {value}, must be {least} to 10000"));
            }
        }
        let guests = &self.guests;
        // One range more is for the helpers that unpack layers.
        let ranges = u64::from(guests.id_ranges) + 1;
        let end = u64::from(guests.first_id) + ranges * u64::from(IdRange::LEN);
        if guests.id_ranges == 0 || guests.first_id < IdRange::LEN || end > u64::from(u32::MAX) {
            return bad(
                "guests.first_id and guests.id_ranges leave no ids from 65536 to 2^32".into()
            );
        }
        if self.reconcile_seconds == 0 || guests.settle_ms > 60_000 {
            return bad("reconcile_seconds must be above 0, guests.settle_ms at most 60000".into());
        }
        if guests.autostart_pause_ms > 3_600_000 {
            return bad("guests.autostart_pause_ms must be at most 3600000".into());
        }
        if !(4096..=1 << 40).contains(&guests.console_log_bytes) {
            return bad("guests.console_log_bytes must be 4096 to 2^40".into());
        }
        Ok(())
    }

    /// What is in force, as a file would say it.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    /// Where things are.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout {
            state: self.state_dir.clone(),
            run: self.run_dir.clone(),
            cgroup_base: self.cgroup_base.clone(),
        }
    }

    /// Directory of the helper binaries.
    #[must_use]
    pub fn libexec(&self) -> PathBuf {
        if let Some(dir) = &self.libexec_dir {
            return dir.clone();
        }
        let exe = std::env::current_exe().ok();
        let beside = exe.as_deref().and_then(Path::parent);
        match beside.filter(|dir| dir.join("ocivisor-runtime").is_file()) {
            Some(dir) => dir.to_owned(),
            None => "/usr/libexec/ocivisor".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        ocivisor_host::fs::replace(&path, text.as_bytes()).unwrap();
        Config::load(Some(&path))
    }

    #[test]
    fn the_defaults_are_valid_and_print_as_they_read() {
        let config = Config::default();
        config.check().unwrap();
        assert_eq!(load(&config.to_toml()).unwrap(), config);
        assert_eq!(load("").unwrap(), config);
    }

    #[test]
    fn the_documented_file_is_the_default() {
        let documented = include_str!("../../../docs/ocivisor.toml");
        assert_eq!(load(documented).unwrap(), Config::default());
    }

    #[test]
    fn a_typo_is_an_error_with_its_line() {
        let error = load("log_level = \"info\"\nreconcile_second = 3\n").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains("line 2: unknown field `reconcile_second`"), "{error}");
    }

    #[test]
    fn id_ranges_must_fit() {
        let mut config = Config::default();
        config.guests.id_ranges = 65_535;
        assert!(config.check().is_err());
        config.guests = Guests { first_id: 0, ..Guests::default() };
        assert!(config.check().is_err());
    }
}
