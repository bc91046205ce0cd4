//! Images and disks: the datastore as the API shows it.
//!
//! What takes long is told on the way ([`Teller`]); what changes the store is whole or leaves
//! nothing, by the store's own doing.

mod bring;
mod disks;
mod keep;
mod look;
mod named;
mod out;

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::{Placement, Resources};
use ocivisor_core::units::{Bytes, CentiCores};
use ocivisor_datastore as store;
use ocivisor_datastore::trust::Policy;
use ocivisor_datastore::worker::Worker;
use ocivisor_datastore::{DiffId, Patience, Registries, RegistriesConfig, Store};
use ocivisor_host::cgroup::HostCgroups;
use ocivisor_host::fs::{drop_dir_all, ensure_dir};
use ocivisor_host::layout::Layout;
use ocivisor_host::storage::Layers;

pub use bring::{layout, name, source};
pub use out::{Form, Rest};

use crate::caller::Caller;
use crate::config::Config;
use crate::jobs::Teller;

/// Most memory of the processes that unpack layers, together.
const UNPACK_MEMORY: Bytes = Bytes::mib(1024);

/// How long a registry may think about a question that somebody waits for: two attempts are below the
/// deadline of [`crate::asking`], so that mostly the registry's own silence is told.
const ANSWER: Duration = Duration::from_secs(10);

/// The store of this host, and which disks were made from it.
#[derive(Debug)]
pub struct Images {
    store: Arc<Store>,
    registries: Registries,
    /// The same, for questions that somebody waits for.
    asked: Registries,
    disks: PathBuf,
    /// Where builds work; nothing in it outlives one.
    builds: PathBuf,
    /// Which images are let in.
    policy: PathBuf,
    /// Disks are made under the one side, layers are pruned under the other: a disk half made names
    /// no layers yet.
    making: Arc<RwLock<()>>,
}

impl Images {
    /// Opens the store.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(config: &Config, layout: &Layout, cgroups: &HostCgroups) -> Result<Self> {
        let disks = layout.state.join("disks");
        ensure_dir(&disks, true)?;
        let builds = layout.state.join("builds");
        drop_dir_all(&builds)?;
        ensure_dir(&builds, false)?;
        let program = config.libexec().join("ocivisor-unpack");
        let limits = Resources {
            cpu_share: CentiCores(100),
            vcpus: processors(),
            cpu_quota: None,
            memory: UNPACK_MEMORY,
            swap: Bytes(0),
            pids: 64,
            io_weight: None,
            placement: Placement::default(),
            hugepages: Vec::new(),
        };
        let procs = cgroups.helper_procs("unpack", &limits)?;
        let worker = Worker::new(program, config.guests.worker_ids()).with_cgroups(procs);
        let store = Store::open(&layout.datastore()).map_err(|e| ours(&e))?.with_worker(worker);
        let store = match policy(&config.images.policy)? {
            Some(policy) => store.with_policy(policy),
            None => store,
        };
        for exception in exceptions(&config.registries) {
            tracing::warn!("{exception}");
        }
        let registries = Registries::new(config.registries.clone());
        let asked = RegistriesConfig { attempts: 2, ..config.registries.clone() };
        let asked = Registries::new(asked)
            .with_patience(Patience { answer: ANSWER, ..Patience::default() });
        let (store, policy) = (Arc::new(store), config.images.policy.clone());
        Ok(Self { store, registries, asked, disks, builds, policy, making: Arc::default() })
    }

    /// The same, for an operation that can be cancelled; an operator's sets names in his name.
    ///
    /// # Errors
    /// The store cannot be opened once more.
    pub fn heeding(&self, tell: &Teller) -> Result<Self> {
        let store = self.store.cancelled_by(tell.cancel()).map_err(|e| ours(&e))?;
        let store = match tell.caller() {
            Caller::Admin(_) => store,
            Caller::Operator(uid) => store.naming_for(uid),
        };
        Ok(Self {
            store: Arc::new(store),
            registries: self.registries.clone(),
            asked: self.asked.clone(),
            disks: self.disks.clone(),
            builds: self.builds.clone(),
            policy: self.policy.clone(),
            making: Arc::clone(&self.making),
        })
    }

    /// Where layers are, for the storage adapter.
    pub fn layers(&self) -> impl Layers + use<> {
        let store = Arc::clone(&self.store);
        move |diff_id: &str| match diff_id.parse::<DiffId>() {
            Ok(id) => store.layer_path(&id),
            // Manifests are checked when read, so this is none of ours: a path that does not exist.
            Err(_) => PathBuf::from("/nonexistent"),
        }
    }
}

/// Which images are let in; all if there is no such file.
///
/// # Errors
/// `Invalid`: it cannot be read, or says what no policy may say.
pub fn policy(path: &Path) -> Result<Option<Policy>> {
    let loaded = Policy::load(path).map_err(|e| {
        Error::new(ErrorKind::Invalid, format!("images.policy {}: {e}", path.display()))
    })?;
    if loaded.is_none() {
        tracing::warn!("no signature policy {}: every image is let in", path.display());
    }
    Ok(loaded)
}

/// What configuration gives up of the security of connections, a line for each host.
fn exceptions(config: &RegistriesConfig) -> Vec<String> {
    let mut lines = Vec::new();
    for (host, own) in &config.hosts {
        let what = match (own.plain_http, own.insecure_tls) {
            (true, _) => "plain_http, nothing is encrypted",
            (false, true) => "insecure_tls, any certificate will do",
            (false, false) => continue,
        };
        lines.push(format!(
            "registries: {host} has {what}; logins and images can be read and changed on the way"
        ));
    }
    lines
}

fn processors() -> u32 {
    let found = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    u32::try_from(found).unwrap_or(u32::MAX)
}

/// The store's error as ours.
fn ours(error: &store::Error) -> Error {
    let kind = match error {
        store::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            ErrorKind::Exhausted
        }
        store::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            ErrorKind::NotFound
        }
        store::Error::Io { .. } => ErrorKind::Host,
        store::Error::NotFound { .. } => ErrorKind::NotFound,
        store::Error::Busy { .. } | store::Error::Exists { .. } => ErrorKind::Conflict,
        store::Error::NotYours { .. } => ErrorKind::Permission,
        store::Error::Cancelled => ErrorKind::Cancelled,
        store::Error::Damaged { .. } => ErrorKind::Integrity,
        store::Error::Format { .. } | store::Error::ReadOnly { .. } => ErrorKind::Unsupported,
        store::Error::BadDigest { .. }
        | store::Error::BadName { .. }
        | store::Error::NotAStore { .. } => ErrorKind::Invalid,
        _ => ErrorKind::Image,
    };
    let source = std::error::Error::source(error);
    match source {
        Some(source) => Error::new(kind, format!("{error}: {source}")),
        None => Error::new(kind, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_from_security_are_told_by_host() {
        let config: RegistriesConfig = toml::from_str(
            "[hosts.\"fine.example\"]\n[hosts.\"a.example:5000\"]\nplain_http = true\n\
             [hosts.\"b.example\"]\ninsecure_tls = true\n",
        )
        .unwrap();
        let why = "logins and images can be read and changed on the way";
        assert_eq!(
            exceptions(&config),
            [
                format!("registries: a.example:5000 has plain_http, nothing is encrypted; {why}"),
                format!("registries: b.example has insecure_tls, any certificate will do; {why}"),
            ]
        );
    }
}
