//! What leaves the store: a VM's changes as a layer, images as archives, root file systems as tars.
//!
//! ```text
//! upper directory ─► merge::Walk ─► tar ─► pack ─► blob ─► ingest ─► layer, config, manifest, name   (commit)
//! layers, upper ───► merge::Walk ─► tar                                                              (export_tar)
//! blobs ───────────► verified, unpacked where a reader needs it ─► archive or layout                 (save)
//! ```
//!
//! An upper directory is a tenant's, down to its xattrs, and may change while it is read: every step is relative
//! to a descriptor and never through a link (`merge`), sizes are bounded by [`crate::Limits`], and the layer made
//! from it goes through the same reader and unpacker as a stranger's image before it is one of ours.
//!
//! What is written depends on content alone: entries sorted by name, no time of writing, no names of owners. The
//! same changes on the same base give the same layer.
//!
//! Deliberately absent: sparse encodings of tar (half of the readers differ on them; zeros compress well), device
//! nodes, sockets, POSIX ACLs, `security.*` but for capabilities.

mod archive;
mod changes;
mod commit;
mod export;
mod ids;
mod inode;
mod inspect;
mod layer;
pub(crate) mod merge;
mod pack;
mod save;
mod tar;

pub use changes::CommitChanges;
pub use commit::{BegunCommit, CommitOptions, Committed, Packing, ReadCommit};
pub(crate) use export::Merging;
pub use export::{BegunTar, Exported, ReadTar};
pub use ids::{IdMap, Upper};
pub use inspect::{HistoryRow, Inspection, LayerInfo};
pub use layer::Omitted;
pub use save::Archive;
