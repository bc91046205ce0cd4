//! What earlier tellings wrote, and what was there before: `/var/lib/ocivisor/context.json` in the guest.
//!
//! On the guest's own disk, because what it describes is there too: it goes where the disk goes (another host, a
//! copy that becomes another VM), and is lost with it. The guest's root may change it; all that he can reach by that
//! are his own files. It is written before anything else is, with the old claims and the new, so that a telling that
//! is cut off leaves nothing that the next one does not know.

use std::fs::File;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::root::{Access, Node, Root};

/// Our directory in the guest.
pub const DIR: &str = "/var/lib/ocivisor";
/// How long an earlier telling may still be at work: who asked for it is gone, and so is it at its next step.
const EARLIER: Duration = Duration::from_secs(2);
const FILE: &str = "/var/lib/ocivisor/context.json";
const VERSION: u32 = 1;
/// Most bytes of the file.
const MAX_BYTES: u64 = 8 << 20;
/// Most bytes of a file that is kept to be put back.
pub const MAX_KEPT: u64 = 64 << 10;
/// Most bytes of all of them together, in base64: with the rest of it they fit into the file.
pub const MAX_ALL_KEPT: usize = 5 << 20;
/// Most claims that are believed.
const MAX_CLAIMS: usize = 10_000;

/// Everything that is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of the format.
    pub version: u32,
    /// The VM that was told: another one has been made of its disk if this differs.
    pub vm: String,
    /// Whether the last telling came to its end.
    pub whole: bool,
    /// What we wrote.
    pub claims: Vec<Claim>,
    /// What cloud-init was given.
    #[serde(default)]
    pub seed: Option<Seed>,
}

/// A seed for cloud-init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    /// How many different ones there have been.
    pub number: u32,
    /// SHA-256 of what it says.
    pub print: String,
    /// The hash of the password in it, if that was told in clear.
    #[serde(default)]
    pub password: Option<String>,
}

/// Something in the guest that is our doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Claim {
    /// A whole file or link.
    File {
        /// Where.
        path: String,
        /// What was there.
        before: Before,
        /// What we wrote, or were about to: see [`print_of_file`].
        wrote: Vec<String>,
    },
    /// A directory that was not there.
    Dir {
        /// Where.
        path: String,
    },
    /// A block in a file, in a directory of this user.
    Block {
        /// Where.
        path: String,
        /// Whose directory it is in.
        uid: u32,
        /// His group.
        gid: u32,
        /// Base64 of the target of the link that was there.
        #[serde(default)]
        link: Option<String>,
    },
    /// A line in a file.
    Line {
        /// Where.
        path: String,
    },
    /// A password.
    Password {
        /// Whose.
        user: String,
        /// Before us.
        before: Option<String>,
        /// As we wrote it into `shadow`, or were about to.
        wrote: Vec<String>,
    },
}

/// What was in a file's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "was")]
pub enum Before {
    /// Nothing.
    Absent,
    /// A link.
    Link {
        /// Base64 of its target.
        target: String,
    },
    /// A file.
    File {
        /// Base64 of its bytes.
        content: String,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Something that is not put back: too large, or no file.
    Lost,
}

impl Default for State {
    fn default() -> Self {
        Self { version: VERSION, vm: String::new(), whole: false, claims: Vec::new(), seed: None }
    }
}

impl Claim {
    /// What it is about: of each there is one claim.
    #[must_use]
    pub fn subject(&self) -> (u8, &str) {
        match self {
            Self::File { path, .. } => (0, path),
            Self::Dir { path } => (1, path),
            Self::Block { path, .. } => (2, path),
            Self::Password { user, .. } => (3, user),
            Self::Line { path } => (4, path),
        }
    }
}

impl State {
    /// Our directory, made if missing, and nobody else at work in it until this is dropped; `None` where it cannot be
    /// had, which [`Self::write`] tells.
    ///
    /// # Errors
    /// `Conflict`: an earlier telling does not end.
    pub fn hold(root: &Root) -> Result<Option<File>> {
        match ensure_dir(root).and_then(|()| root.hold_dir(DIR, EARLIER)) {
            Err(error) if error.kind != ErrorKind::Conflict => Ok(None),
            held => held,
        }
    }

    /// What is known; nothing if the file is missing or makes no sense, or others than root may write it.
    ///
    /// # Errors
    /// The guest's files cannot be read.
    pub fn read(root: &Root) -> Result<Self> {
        if !root.is_roots_alone(DIR)? {
            return Ok(Self::default());
        }
        let Node::File(_, Some(bytes)) = root.read(FILE, MAX_BYTES)? else {
            return Ok(Self::default());
        };
        let state: Option<Self> = serde_json::from_slice(&bytes).ok();
        let users = |claim: &Claim| match claim {
            Claim::Block { uid, gid, .. } => (*uid).max(*gid) <= 65_535,
            _ => true,
        };
        let sound = |s: &Self| {
            s.version == VERSION && s.claims.len() <= MAX_CLAIMS && s.claims.iter().all(users)
        };
        Ok(state.filter(sound).unwrap_or_default())
    }

    /// Writes it down, for root alone: passwords of before are in it.
    ///
    /// # Errors
    /// `Image`, `Exhausted`: it cannot be written.
    pub fn write(&self, root: &Root) -> Result<()> {
        ensure_dir(root)?;
        if !root.is_roots_alone(DIR)? {
            let what = format!("the guest's {DIR} is not root's alone to write");
            return Err(Error::new(ErrorKind::Image, what));
        }
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::new(ErrorKind::Host, format!("context of the guest: {e}")))?;
        root.write_durably(FILE, bytes, Access::root(0o600))
    }
}

fn ensure_dir(root: &Root) -> Result<()> {
    for dir in root.missing_dirs(DIR)? {
        let mode = if dir == DIR { 0o700 } else { 0o755 };
        root.make_dir(&dir, Access::root(mode))?;
    }
    Ok(())
}

impl Before {
    /// What is there now, to be kept.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(root: &Root, path: &str) -> Result<Self> {
        Ok(match root.read(path, MAX_KEPT)? {
            Node::Absent => Self::Absent,
            Node::Link(target) => Self::Link { target: STANDARD.encode(target) },
            Node::File(Access { mode, uid, gid }, Some(bytes)) => {
                Self::File { content: STANDARD.encode(bytes), mode, uid, gid }
            }
            Node::File(_, None) | Node::Directory | Node::Odd => Self::Lost,
        })
    }

    /// Puts it back in place of what is there.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn restore(&self, root: &Root, path: &str) -> Result<()> {
        let decode = |text: &str| STANDARD.decode(text).unwrap_or_default();
        match self {
            Self::Absent => root.remove(path),
            Self::Lost => Ok(()),
            Self::Link { target } => root.link(path, &decode(target)),
            Self::File { content, mode, uid, gid } => {
                let access = Access { mode: *mode & 0o7777, uid: *uid, gid: *gid };
                root.write(path, &Content::Bytes(decode(content)), access)
            }
        }
    }
}

/// Recognises what we wrote: `file:<size>:<sha-256>` or `link:<target in base64>`.
#[must_use]
pub fn print_of_file(size: u64, digest: &str) -> String {
    format!("file:{size}:{digest}")
}

/// See [`print_of_file`].
#[must_use]
pub fn print_of_link(target: &[u8]) -> String {
    format!("link:{}", STANDARD.encode(target))
}

/// Whether what is at `path` now is what the print is of.
///
/// # Errors
/// It cannot be read.
pub fn is_still(root: &Root, path: &str, print: &str) -> Result<bool> {
    if print.starts_with("link:") {
        // The target is not followed, and small: the file's bytes are not asked for.
        return Ok(
            matches!(root.read(path, 0)?, Node::Link(target) if print_of_link(&target) == print),
        );
    }
    let mut parts = print.split(':').skip(1);
    let size = parts.next().and_then(|size| size.parse().ok());
    let (Some(size), Some(digest)) = (size, parts.next()) else { return Ok(false) };
    Ok(root.digest(path, size)?.is_some_and(|(_, found)| found == digest))
}
