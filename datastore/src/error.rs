//! What can go wrong, as values.
//!
//! Three kinds meet here. [`Refusal`]: bytes of an archive or layer broke a rule; nothing of them is kept.
//! [`DocumentFault`]: a JSON document is not what it must be. [`Error`]: everything the store says, with the
//! object it is about. Text from an image appears in messages only through [`escape`].

use std::io;
use std::path::PathBuf;

use crate::digest::{DiffId, Digest};

/// Result of every operation of the store.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {op} {object}")]
    Io {
        /// The attempt, as a verb.
        op: &'static str,
        /// The path or tar entry, escaped.
        object: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The directory has content and no `format.json`.
    #[error(
        "{root} is not an image store: it is not empty and has no format.json; name an empty directory"
    )]
    NotAStore {
        /// The directory.
        root: PathBuf,
    },
    /// The store was written in a format this program does not know.
    #[error("image store {root} needs {what}; use a newer version of this program")]
    Format {
        /// The store.
        root: PathBuf,
        /// Version or feature that is not known.
        what: String,
    },
    /// The store is for another kind of machine: a front-end's keeps images packed, a host's unpacks them.
    #[error("image store {root} {is}; name {wanted}")]
    OtherKind {
        /// The store.
        root: PathBuf,
        /// What it does with layers.
        is: &'static str,
        /// What is needed.
        wanted: &'static str,
    },
    /// The store has a feature that lets this program only read.
    #[error("image store {root} may only be read by this version: it uses feature {feature:?}")]
    ReadOnly {
        /// The store.
        root: PathBuf,
        /// The feature that is not known.
        feature: String,
    },
    /// Imports are running, or another process prunes.
    #[error("image store {root} is in use by an import or another prune; try again later")]
    Busy {
        /// The store.
        root: PathBuf,
    },
    /// No such image.
    #[error("no image {reference} in the store; import it first")]
    NotFound {
        /// Name or digest asked for.
        reference: String,
    },
    /// The store contradicts itself.
    #[error("image store is damaged at {object}: {why}; run fsck, then import the image again")]
    Damaged {
        /// File, layer or blob.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// Not a digest the store accepts.
    #[error("bad digest \"{text}\": {why}")]
    BadDigest {
        /// The text, escaped.
        text: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// Not a name the store accepts.
    #[error("bad image name \"{text}\": {why}")]
    BadName {
        /// The text, escaped.
        text: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The user may not point the name there.
    #[error("name {name} cannot be set: {why}; choose another, or ask an admin")]
    NotYours {
        /// The name.
        name: String,
        /// The rule.
        why: &'static str,
    },
    /// The source cannot be used as given.
    #[error("cannot import {from}: {why}")]
    Source {
        /// The source as the caller wrote it, escaped.
        from: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The image is not for this host.
    #[error(
        "image {image} is for {image_platform}, this host runs {host}; choose an image for the host"
    )]
    Platform {
        /// Manifest or config, by digest or path.
        image: String,
        /// `os/architecture` of the image, escaped.
        image_platform: String,
        /// `os/architecture` wanted.
        host: String,
    },
    /// A JSON document was refused.
    #[error("{document} refused: {why}")]
    Document {
        /// Which document.
        document: String,
        /// The rule it breaks.
        why: DocumentFault,
    },
    /// The host's policy does not let the image in.
    #[error("image from {from} is not trusted: {why}")]
    Untrusted {
        /// The source, escaped.
        from: String,
        /// The rule it does not satisfy.
        why: crate::trust::Distrust,
    },
    /// Bytes of an archive, blob or layer were refused.
    #[error("{object} refused: {why}")]
    Refused {
        /// Blob, layer or archive, with the tar entry where there is one.
        object: String,
        /// The rule they break.
        why: Refusal,
    },
    /// A disk image was refused.
    #[error("disk image {file} refused: {why}")]
    Disk {
        /// The file.
        file: String,
        /// The rule it breaks.
        why: crate::diskimage::DiskFault,
    },
    /// A file was not written; nothing of it is left.
    #[error("cannot export to {to}: {why}")]
    Export {
        /// The file.
        to: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// A file would have to be replaced, and none is.
    #[error("{file} exists; name a new file, or remove that one")]
    Exists {
        /// The file.
        file: String,
    },
    /// A registry did not give or take something.
    #[error("{object}: {why}")]
    Registry {
        /// Reference, manifest or layer.
        object: String,
        /// What happened.
        why: crate::registry::RegistryFault,
    },
    /// The work was ended from outside ([`crate::Cancel`]); nothing of it is visible. What was fetched is kept, and
    /// the next attempt goes on from there.
    #[error("cancelled")]
    Cancelled,
    /// The confined process that unpacks did not do its work; nothing of the layer is kept.
    #[error("cannot unpack {object}: worker {why}")]
    Worker {
        /// Blob, layer or archive.
        object: String,
        /// What became of it, and what to do where that is known.
        why: String,
    },
}

impl Error {
    pub(crate) fn io(
        op: &'static str,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        let source = source.into();
        // How work that is to end tells so through readers and writers: see `cancel`.
        if source.raw_os_error() == Some(rustix::io::Errno::CANCELED.raw_os_error()) {
            return Self::Cancelled;
        }
        Self::Io { op, object: object.into(), source }
    }

    pub(crate) fn document(document: impl Into<String>, why: DocumentFault) -> Self {
        Self::Document { document: document.into(), why }
    }

    pub(crate) fn damaged(object: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), why: why.into() }
    }

    /// The refusal inside, if bytes were refused.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { why, .. } => Some(why),
            _ => None,
        }
    }
}

/// A bound that was exceeded; the fields of [`crate::Limits`] by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Limit {
    /// [`crate::Limits::image_bytes`]
    ImageBytes,
    /// [`crate::Limits::ratio`]
    Ratio,
    /// [`crate::Limits::entries`]
    Entries,
    /// [`crate::Limits::depth`]
    Depth,
    /// [`crate::Limits::name_bytes`]
    NameBytes,
    /// [`crate::Limits::path_bytes`]
    PathBytes,
    /// [`crate::Limits::pax_bytes`]
    PaxBytes,
    /// [`crate::Limits::layers`]
    Layers,
    /// [`crate::Limits::document_bytes`]
    DocumentBytes,
    /// [`crate::Limits::index_entries`]
    IndexEntries,
    /// [`crate::Limits::index_nesting`]
    IndexNesting,
    /// [`crate::Limits::archive_entries`]
    ArchiveEntries,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ImageBytes => "bytes per image",
            Self::Ratio => "compression ratio",
            Self::Entries => "entries per image",
            Self::Depth => "depth of directories",
            Self::NameBytes => "bytes in a file name",
            Self::PathBytes => "bytes in a path",
            Self::PaxBytes => "bytes in a PAX header",
            Self::Layers => "layers per image",
            Self::DocumentBytes => "bytes in a document",
            Self::IndexEntries => "entries in an index",
            Self::IndexNesting => "nested indexes",
            Self::ArchiveEntries => "files in an archive",
        })
    }
}

/// The rule that bytes of an archive or layer broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A bound of [`crate::Limits`].
    #[error("more than {max} {limit}; raise the limit only for an image you trust")]
    Limit {
        /// Which bound.
        limit: Limit,
        /// Its value.
        max: u64,
    },
    /// A path with a `..` component.
    #[error("path climbs with '..'")]
    ParentTraversal,
    /// A path or link target with a NUL byte, which the kernel would cut there.
    #[error("NUL byte in a path")]
    Nul,
    /// The archive's root is described as something else than a directory.
    #[error("root is not a directory")]
    Root,
    /// A tar header that breaks POSIX or GNU rules, or that two readers would read differently.
    #[error("bad tar header: {0}")]
    Header(&'static str),
    /// A bad PAX extended header.
    #[error("bad PAX header: {0}")]
    Pax(&'static str),
    /// A type of entry that is not handled.
    #[error("unknown entry type {0:#04x}")]
    EntryType(u8),
    /// A sparse file, in any of the GNU encodings.
    #[error("sparse file; pack without --sparse")]
    Sparse,
    /// An owner outside the 65,536 ids that a guest has.
    #[error("{field} {id} is above 65535")]
    Id {
        /// `uid` or `gid`.
        field: &'static str,
        /// The number found.
        id: u64,
    },
    /// A name in the `.wh.` space that is no whiteout.
    #[error("bad whiteout: {0}")]
    Whiteout(&'static str),
    /// A hard link to what may not be linked.
    #[error("bad hard link: {0}")]
    HardLink(&'static str),
    /// A symbolic link that cannot exist.
    #[error("bad symbolic link: {0}")]
    Symlink(&'static str),
    /// A parent of the path is no directory of this layer.
    #[error("bad parent: {0}")]
    Parent(&'static str),
    /// An extended attribute that cannot be stored.
    #[error("bad extended attribute: {0}")]
    Xattr(&'static str),
    /// The compressed stream is damaged, or is not what the media type says.
    #[error("bad compressed stream: {0}")]
    Stream(String),
    /// The tar ends in the middle, or without its end marker.
    #[error("tar is cut off")]
    Truncated,
    /// A root file system without a single entry.
    #[error("tar holds no files")]
    NoFiles,
    /// The blob's bytes are not the ones its name promises.
    #[error("digest is {got}, should be {expected}")]
    Digest {
        /// From the descriptor.
        expected: Digest,
        /// Of the bytes read.
        got: Digest,
    },
    /// The blob's length is not the promised one.
    #[error("size is {got} bytes or more, should be {expected}")]
    Size {
        /// From the descriptor.
        expected: u64,
        /// Bytes read.
        got: u64,
    },
    /// The uncompressed layer is not the one the config lists.
    #[error("uncompressed digest is {got}, the config says {expected}")]
    DiffId {
        /// From the config.
        expected: DiffId,
        /// Of the bytes read.
        got: DiffId,
    },
    /// The image archive names a file twice.
    #[error("archive holds two files of this name")]
    Twice,
    /// A VM's file belongs to nobody of the VM.
    #[error("{field} {id} is not one of the VM's ids")]
    Unmapped {
        /// `uid` or `gid`.
        field: &'static str,
        /// The host's number.
        id: u32,
    },
    /// A VM's file that a layer cannot express.
    #[error("not to be written as a layer: {0}")]
    Upper(&'static str),
    /// A file is not what it was a moment ago.
    #[error("changed while it was read; stop or freeze who writes to it")]
    Changed,
}

impl Refusal {
    pub(crate) fn limit(limit: Limit, max: impl TryInto<u64>) -> Self {
        Self::Limit { limit, max: max.try_into().unwrap_or(u64::MAX) }
    }
}

/// The rule that a JSON document broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentFault {
    /// Not JSON, or not of the shape required.
    #[error("{0}")]
    Json(String),
    /// A bound of [`crate::Limits`].
    #[error("more than {max} {limit}; raise the limit only for an image you trust")]
    Limit {
        /// Which bound.
        limit: Limit,
        /// Its value.
        max: u64,
    },
    /// A media type that is not handled here.
    #[error("media type {0} is not supported")]
    MediaType(String),
    /// It could be read as an index and as a manifest (CVE-2021-41190), or says another type than its parent.
    #[error("ambiguous: {0}")]
    Ambiguous(&'static str),
    /// A field of the image config is out of bounds or would be dangerous.
    #[error("{field} {why}")]
    Config {
        /// The field.
        field: &'static str,
        /// The rule.
        why: &'static str,
    },
    /// The numbers of layers in manifest and config differ.
    #[error("manifest has {manifest} layers, config has {config}")]
    LayerCount {
        /// In the manifest.
        manifest: usize,
        /// In the config.
        config: usize,
    },
    /// Nothing to run.
    #[error("has no layers")]
    NoLayers,
    /// Nothing, or more than one thing, matches what was asked.
    #[error("{0}")]
    Choice(String),
}

impl DocumentFault {
    pub(crate) fn limit(limit: Limit, max: impl TryInto<u64>) -> Self {
        Self::Limit { limit, max: max.try_into().unwrap_or(u64::MAX) }
    }
}

/// Carries a failed write through a reader that copies what it reads.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the copy")]
pub(crate) struct CopyFailed(#[source] pub io::Error);

/// Carries what became of a worker through a reader of what it writes.
#[derive(Debug, thiserror::Error)]
#[error("worker {0}")]
pub(crate) struct WorkerFailed(pub String);

/// What the readers and the unpacker say before the object is known: a broken rule or a failed system call.
#[derive(Debug)]
pub(crate) enum Fault {
    Refused(Refusal),
    Io(&'static str, io::Error),
    /// The worker, not the layer: its end, or its answer.
    Worker(String),
}

impl Fault {
    /// Sorts an error of a reader: ours carry a [`Refusal`] inside, the kernel's an errno, and what is left
    /// is a decoder that does not like its input.
    pub(crate) fn from_read(error: io::Error) -> Self {
        if error.raw_os_error().is_some() {
            return Self::Io("read", error);
        }
        let error = match error.downcast::<CopyFailed>() {
            Ok(CopyFailed(source)) => return Self::Io("store a copy of", source),
            Err(error) => error,
        };
        let error = match error.downcast::<WorkerFailed>() {
            Ok(WorkerFailed(why)) => return Self::Worker(why),
            Err(error) => error,
        };
        match error.downcast::<Refusal>() {
            Ok(refusal) => Self::Refused(refusal),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Self::Io("read", error),
            Err(error) => Self::Refused(Refusal::Stream(escape(error.to_string().as_bytes()))),
        }
    }

    /// Names the object, and the tar entry in it, which is escaped.
    pub(crate) fn about_entry(self, object: &str, entry: Option<String>) -> Error {
        match entry {
            Some(entry) => self.about(format!("{object} entry \"{entry}\"")),
            None => self.about(object),
        }
    }

    /// The way back: what a reader gives that met it.
    pub(crate) fn into_read(self) -> io::Error {
        match self {
            Self::Refused(refusal) => io::Error::other(refusal),
            Self::Io(_, error) => error,
            Self::Worker(why) => io::Error::other(WorkerFailed(why)),
        }
    }

    /// Names the object.
    pub(crate) fn about(self, object: impl Into<String>) -> Error {
        match self {
            Self::Refused(why) => Error::Refused { object: object.into(), why },
            Self::Io(op, source) => Error::io(op, object, source),
            Self::Worker(why) => Error::Worker { object: object.into(), why },
        }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Attaches a verb to a failed system call.
pub(crate) trait Doing<T> {
    fn doing(self, op: &'static str) -> std::result::Result<T, Fault>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, op: &'static str) -> std::result::Result<T, Fault> {
        self.map_err(|e| Fault::Io(op, e.into()))
    }
}

/// Foreign bytes, fit for a log line or a terminal: printable ASCII, the rest as escapes, at most 200 bytes.
pub(crate) fn escape(bytes: &[u8]) -> String {
    const MAX: usize = 200;
    let cut = &bytes[..bytes.len().min(MAX)];
    let mut text = cut.escape_ascii().to_string();
    if bytes.len() > MAX {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_bytes_cannot_forge_a_line_or_reach_the_terminal() {
        assert_eq!(escape(b"a\n<3>root: \x1b]52;\xff"), "a\\n<3>root: \\x1b]52;\\xff");
        assert_eq!(escape(&[b'x'; 300]).len(), 203);
    }

    #[test]
    fn a_refusal_survives_the_way_through_a_reader() {
        let error = io::Error::other(Refusal::Truncated);
        assert!(matches!(Fault::from_read(error), Fault::Refused(Refusal::Truncated)));
        let error = io::Error::from_raw_os_error(5);
        assert!(matches!(Fault::from_read(error), Fault::Io("read", _)));
    }
}
