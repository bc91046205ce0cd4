//! Datastores.

use super::vm::permissions;
use super::{Model, TransferConf};
use crate::template::Template;
use crate::xml::Element;

/// `TYPE` of a datastore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "OpenNebula's own names")]
pub enum StoreKind {
    Image = 0,
    System = 1,
    File = 2,
    Backup = 3,
}

/// A datastore.
#[derive(Debug, Clone)]
pub struct Datastore {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: StoreKind,
    /// Its datastore driver, `-` if it has none.
    pub ds_mad: String,
    /// Its transfer driver.
    pub tm_mad: String,
    /// Where it is.
    pub base: String,
    /// Total, free and used space in MB.
    pub space: [u64; 3],
    /// Further attributes.
    pub template: Template,
}

impl Datastore {
    /// Makes one of a template, with what `TM_MAD_CONF` gives it.
    #[must_use]
    pub fn of(id: u32, text: &str, model: &Model) -> Self {
        let mut template = Template::read(text);
        let text = |t: &Template, key: &str, other: &str| t.text(key).unwrap_or(other).to_owned();
        let kind = match template.text("TYPE") {
            Some("SYSTEM_DS") => StoreKind::System,
            Some("FILE_DS") => StoreKind::File,
            Some("BACKUP_DS") => StoreKind::Backup,
            _ => StoreKind::Image,
        };
        let name = text(&template, "NAME", "");
        template.take("NAME");
        let (ds_mad, tm_mad) = (text(&template, "DS_MAD", "-"), text(&template, "TM_MAD", "-"));
        template.set("RESTRICTED_DIRS", text(&template, "RESTRICTED_DIRS", "/"));
        template.set("SAFE_DIRS", text(&template, "SAFE_DIRS", "/var/tmp"));
        if let Some(conf) = model.transfers.get(&tm_mad) {
            inherit(&mut template, kind, conf);
        }
        let base = format!("{}/{id}", model.location);
        Self { id, name, kind, ds_mad, tm_mad, base, space: [0; 3], template }
    }

    /// Whether it is on all hosts.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.template.text("SHARED") == Some("YES")
    }

    /// Whether disks of its images can be in a system datastore of that transfer driver.
    #[must_use]
    pub fn goes_with(&self, tm: &str) -> bool {
        let more = self.template.text("TM_MAD_SYSTEM").unwrap_or_default();
        self.tm_mad == tm || more.split(',').any(|other| other == tm)
    }

    /// The document.
    #[must_use]
    pub fn document(&self, images: &[u32]) -> Element {
        Element::of(
            "DATASTORE",
            vec![
                Element::plain("ID", self.id),
                Element::plain("UID", 0),
                Element::plain("GID", 0),
                Element::plain("UNAME", "oneadmin"),
                Element::plain("GNAME", "oneadmin"),
                Element::plain("NAME", &self.name),
                permissions(true),
                Element::quoted("DS_MAD", &self.ds_mad),
                Element::quoted("TM_MAD", &self.tm_mad),
                Element::quoted("BASE_PATH", &self.base),
                Element::plain("TYPE", self.kind as u8),
                Element::plain("DISK_TYPE", 0),
                Element::plain("STATE", 0),
                Element::of("CLUSTERS", vec![Element::plain("ID", 0)]),
                Element::plain("TOTAL_MB", self.space[0]),
                Element::plain("FREE_MB", self.space[1]),
                Element::plain("USED_MB", self.space[2]),
                Element::of("IMAGES", images.iter().map(|id| Element::plain("ID", id)).collect()),
                Element::of("TEMPLATE", self.template.elements()),
            ],
        )
    }
}

fn inherit(template: &mut Template, kind: StoreKind, conf: &TransferConf) {
    let yes = |condition: bool| if condition { "YES" } else { "NO" };
    template.set("ALLOW_ORPHANS", "YES");
    template.set("PERSISTENT_SNAPSHOTS", "YES");
    if kind != StoreKind::File {
        template.set("DISK_TYPE", "FILE");
    }
    if kind == StoreKind::System {
        template.set("SHARED", yes(conf.shared));
        for key in ["DS_LIVE_MIGRATE", "DS_MIGRATE", "DS_MIGRATE_SNAP"] {
            template.set(key, "YES");
        }
        return;
    }
    template.set("CLONE_TARGET", conf.clone_target);
    template.set("LN_TARGET", conf.ln_target);
    if !conf.systems.is_empty() {
        template.set("TM_MAD_SYSTEM", conf.systems.join(","));
    }
    for system in &conf.systems {
        let name = system.to_uppercase();
        template.set(&format!("CLONE_TARGET_{name}"), "SYSTEM");
        template.set(&format!("LN_TARGET_{name}"), "SYSTEM");
        template.set(&format!("DISK_TYPE_{name}"), "FILE");
    }
}
