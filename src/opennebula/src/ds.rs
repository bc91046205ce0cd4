//! Scripts of the datastore driver: what was asked, and how it is answered.
//!
//! oned's driver process calls `<action> <id>` with base64 of a `<DS_DRIVER_ACTION_DATA>` on standard input. The id is
//! the image's, but for `stat` (a request's) and `monitor` (the datastore's). What a user may choose of it: `PATH`,
//! `NAME`, the keys of `IMAGE/TEMPLATE`, sizes; what is below `DATASTORE` is an admin's.

mod message;
mod place;

use std::ffi::OsStr;

use ocivisor_core::error::{Error, one_line};

pub(crate) use message::decode;
pub use message::{Checksums, Datastore, Image, ImageType, Saved};
pub use place::Place;

use crate::answer::{Answer, visible};
use crate::{clip, decimal, invalid};

macro_rules! actions {
    ($($variant:ident $name:literal $verb:literal),+ $(,)?) => {
        /// The scripts that oned's driver processes may call.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DsAction {
            $(#[doc = concat!("`", $name, "`")] $variant),+
        }

        impl DsAction {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// File name of the script.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }

            /// As in `Cannot <verb> image 7`.
            fn verb(self) -> &'static str {
                match self {
                    $(Self::$variant => $verb),+
                }
            }
        }
    };
}

actions! {
    Cp "cp" "bring in",
    Clone "clone" "clone",
    Rm "rm" "remove",
    Stat "stat" "tell the size of",
    Mkfs "mkfs" "make",
    Monitor "monitor" "measure",
    Export "export" "export",
    SnapDelete "snap_delete" "delete a snapshot of",
    SnapRevert "snap_revert" "revert to a snapshot of",
    SnapFlatten "snap_flatten" "flatten the snapshots of",
    Backup "backup" "take a backup into",
    BackupCancel "backup_cancel" "cancel a backup into",
    Restore "restore" "restore a backup of",
    IncrementFlatten "increment_flatten" "flatten the backups of",
    Ls "ls" "list the backups of",
}

impl DsAction {
    /// The action of that script.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|action| action.name() == name)
    }
}

/// A call of a script, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DsCall {
    /// What is wanted.
    pub action: DsAction,
    /// The number in the arguments.
    pub id: u32,
    /// The image, of which there is none for `monitor` and little for `stat`.
    pub image: Image,
    /// The datastore.
    pub datastore: Datastore,
}

/// Understands a call.
///
/// # Errors
/// The answer to give: the call is none of ours, or cannot be served.
pub fn plan<A: AsRef<OsStr>>(action: &str, argv: &[A], stdin: &[u8]) -> Result<DsCall, Answer> {
    let Some(action) = DsAction::from_name(action) else {
        let text = format!("Script {:?} is none of the datastore driver", clip(action));
        return Err(Answer::sentence(&text));
    };
    let refuse = |error: &Error| failure(action, None, error);
    match action {
        DsAction::Backup
        | DsAction::BackupCancel
        | DsAction::Restore
        | DsAction::IncrementFlatten
        | DsAction::Ls => {
            let error = invalid("ocivisor's datastores hold images, no backups")
                .hint("use a datastore of the drivers rsync or restic for those");
            return Err(refuse(&error));
        }
        _ => {}
    }
    let [id] = argv else {
        let text = format!("the script was called with {} arguments, it takes one", argv.len());
        return Err(refuse(&invalid(text)));
    };
    let id = id.as_ref().to_string_lossy();
    let Some(id) = decimal(&id).filter(|id| i32::try_from(*id).is_ok()) else {
        return Err(refuse(&invalid(format!("{:?} is no number of an image", clip(&id)))));
    };
    let (image, datastore) =
        message::read(action, id, stdin).map_err(|e| failure(action, Some(id), &e))?;
    Ok(DsCall { action, id, image, datastore })
}

impl DsCall {
    /// What standard output gets: exactly one line, or nothing.
    #[must_use]
    pub fn success(&self, stdout: &str) -> Answer {
        Answer::success(if stdout.is_empty() { String::new() } else { format!("{stdout}\n") })
    }

    /// The sentence for oned.
    #[must_use]
    pub fn failure(&self, error: &Error) -> Answer {
        failure(self.action, Some(self.id), error)
    }

    /// A line for oned's log, to be written to standard error at once.
    #[must_use]
    pub fn note(&self, text: &str) -> String {
        // The first number is taken for the object that the line is about.
        format!("INFO: {} {}\n", self.id, visible(&one_line(text)))
    }
}

/// The sentence for a call that could not be understood, or not be carried out.
#[must_use]
pub fn failure(action: DsAction, id: Option<u32>, error: &Error) -> Answer {
    let what = match (action, id) {
        (DsAction::Monitor, Some(id)) => format!("datastore {id}"),
        (DsAction::Monitor | DsAction::Backup | DsAction::BackupCancel, None) => {
            "the datastore".into()
        }
        // The number is a request's.
        (DsAction::Stat, _) | (_, None) => "the image".into(),
        (_, Some(id)) => format!("image {id}"),
    };
    let hint = error.hint.as_deref().map_or_else(String::new, |hint| format!("; {hint}"));
    let message = error.message.trim_end_matches('.');
    Answer::sentence(&one_line(&format!("Cannot {} {what}: {message}{hint}", action.verb())))
}

#[cfg(test)]
mod tests;
