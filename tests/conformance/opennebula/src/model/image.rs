//! Images.

use super::vm::permissions;
use super::{Datastore, Snapshots};
use crate::template::{Template, Vector, vector_of};
use crate::xml::Element;

/// `STATE` of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "OpenNebula's own names")]
pub enum ImageState {
    Ready = 1,
    Used = 2,
    Disabled = 3,
    Locked = 4,
    Error = 5,
    UsedPers = 8,
}

impl ImageState {
    /// As users are shown it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::UsedPers => "USED_PERS".to_owned(),
            state => format!("{state:?}").to_uppercase(),
        }
    }
}

/// An image.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Kind of content by oned's number (§3.9).
    pub kind: u8,
    /// Whether a disk of it is the image itself.
    pub persistent: bool,
    /// What the driver named it.
    pub source: String,
    /// Where it came from.
    pub path: String,
    /// As the driver said.
    pub format: String,
    /// File system of a data block.
    pub fs: String,
    /// In MB, as text: what a driver answered.
    pub size: String,
    /// Its state, and the one before.
    pub state: (ImageState, u8),
    /// The image that it is copied from.
    pub cloning: i64,
    /// Its datastore.
    pub store: u32,
    /// Its name, as documents have it beside the number.
    pub store_name: String,
    /// Further attributes.
    pub template: Template,
    /// What went wrong, without a date.
    pub error: Option<String>,
    /// When it was made.
    pub time: u64,
    /// Its snapshots.
    pub snapshots: Snapshots,
    /// The snapshot that is asked about.
    pub snapshot: Option<u32>,
}

impl Image {
    /// Numbers of kinds by their names.
    #[must_use]
    pub fn kind_of(name: &str) -> u8 {
        match name {
            "CDROM" => 1,
            "DATABLOCK" => 2,
            "KERNEL" => 3,
            "RAMDISK" => 4,
            "CONTEXT" => 5,
            "BACKUP" => 6,
            _ => 0,
        }
    }

    /// A VM takes it.
    pub fn used(&mut self) {
        let state = if self.persistent { ImageState::UsedPers } else { ImageState::Used };
        self.state = (state, self.state.0 as u8);
    }

    /// `DISK` of a VM that has it.
    #[must_use]
    pub fn disk(&self, store: &Datastore) -> Vector {
        let cdrom = self.kind == 1;
        let copy = !self.persistent && !cdrom;
        let yes = |condition: bool| if condition { "YES" } else { "NO" };
        let (id, store_id) = (self.id.to_string(), store.id.to_string());
        let state = (self.state.0 as u8).to_string();
        let target = |key: &str| store.template.text(key).unwrap_or("SYSTEM").to_owned();
        let (clone_target, ln_target) = (target("CLONE_TARGET"), target("LN_TARGET"));
        let mut disk = vector_of(&[
            ("ALLOW_ORPHANS", "YES"),
            ("CLONE", yes(copy)),
            ("CLONE_TARGET", &clone_target),
            ("CLUSTER_ID", "0"),
            ("DATASTORE", &store.name),
            ("DATASTORE_ID", &store_id),
            ("DISK_SNAPSHOT_TOTAL_SIZE", "0"),
            ("DISK_TYPE", "FILE"),
            ("DRIVER", &self.format),
            ("FORMAT", &self.format),
            ("IMAGE", &self.name),
            ("IMAGE_ID", &id),
            ("IMAGE_STATE", &state),
            ("LN_TARGET", &ln_target),
            ("ORIGINAL_SIZE", &self.size),
            ("PERSISTENT_SNAPSHOTS", "YES"),
            ("READONLY", yes(cdrom)),
            ("SAVE", yes(self.persistent)),
            ("SIZE", &self.size),
            ("SOURCE", &self.source),
            ("TM_MAD", &store.tm_mad),
            ("TYPE", if cdrom { "CDROM" } else { "FILE" }),
        ]);
        if !cdrom {
            disk.insert("DEV_PREFIX".into(), "sd".into());
        }
        if self.persistent {
            disk.insert("PERSISTENT".into(), "YES".into());
        }
        disk
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> Element {
        let mut template = self.template.clone();
        if let Some(error) = &self.error {
            template.set("ERROR", format!("Fri Nov 20 12:00:00 2026 : {error}"));
        }
        let none = || Vec::new();
        Element::of(
            "IMAGE",
            vec![
                Element::plain("ID", self.id),
                Element::plain("UID", 0),
                Element::plain("GID", 0),
                Element::plain("UNAME", "oneadmin"),
                Element::plain("GNAME", "oneadmin"),
                Element::plain("NAME", &self.name),
                permissions(false),
                Element::plain("TYPE", self.kind),
                Element::plain("DISK_TYPE", 0),
                Element::plain("PERSISTENT", u8::from(self.persistent)),
                Element::plain("REGTIME", self.time),
                Element::plain("MODTIME", self.time),
                Element::quoted("SOURCE", &self.source),
                Element::quoted("PATH", &self.path),
                Element::quoted("FORMAT", &self.format),
                Element::quoted("FS", &self.fs),
                Element::plain("SIZE", &self.size),
                Element::plain("STATE", self.state.0 as u8),
                Element::plain("PREV_STATE", self.state.1),
                Element::plain("RUNNING_VMS", 0),
                Element::plain("CLONING_OPS", 0),
                Element::plain("CLONING_ID", self.cloning),
                Element::plain("TARGET_SNAPSHOT", self.snapshot.map_or(-1, i64::from)),
                Element::plain("DATASTORE_ID", self.store),
                Element::plain("DATASTORE", &self.store_name),
                Element::of("VMS", none()),
                Element::of("CLONES", none()),
                Element::of("APP_CLONES", none()),
                Element::of("TEMPLATE", template.elements()),
                self.snapshots.document(None),
                Element::of("BACKUP_INCREMENTS", none()),
                Element::of("BACKUP_DISK_IDS", none()),
            ],
        )
    }
}
