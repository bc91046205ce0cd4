//! Reading foreign bytes in a process that can do nothing else.
//!
//! Decompressors and the tar reader meet bytes that anybody may have written. [`Worker`] names the program that
//! does this work confined; the importing process feeds it and judges its answer. One worker does one [`Job`]:
//!
//! ```text
//! importing process                          worker program, root of the host for its first milliseconds
//!   source ─► hash, copy ─► pipe, fd 0 ────────► decompress, hash, unpack     own user, mount, net, pid, ipc
//!             answer ◄───── pipe, fd 1 ◄──────── one JSON document            and uts namespace; no way out
//!             layer directory, fd 2 ───────────► seen through an idmapped mount, as its root
//!                                                   │ marks, one at a time
//!                                                   ▼
//!                                                broker: the program's first process, sets the two xattrs
//!                                                that a user namespace may not, below the layer directory
//! ```
//!
//! That is [`Job::Layer`]. [`Job::Expand`] has a pipe in the place of the directory, by which the plain bytes come back
//! (`stream`); it can reach no file, and its broker has no right. A job that needs open files gets them by a socket
//! (`request`): [`Job::Disk`] the files of a disk, whose root file system comes back as a packed tar, which is then a
//! layer like any other, for another worker (`disk`).
//! [`Job::Tool`] becomes another program (`tool`).
//!
//! What a worker that was taken over by a layer can do: write what it likes into that layer's directory, which a
//! layer can say in plain tar as well; claim a diff id that its files do not have; use processor and disk until
//! its deadline or its control group ends it. It cannot reach the host's files, the network, another process,
//! or another layer. The blob is hashed outside of it, so that what is kept as blob is always proven. A claimed diff id is
//! its own image's affair: before such a directory is used with another blob, it is proven by that (`work`, `proof`).
//!
//! One that was taken over by a stream can give other bytes. They are hashed, or compared, where they arrive. One taken
//! over by a disk can give other files than those of the disk, which the disk could have had as well, and a refusal in
//! words of its own.
//!
//! The protocol is private to one build of library and program; its version guards against mixing two.

mod answer;
mod broker;
pub(crate) mod client;
mod disk;
mod process;
mod request;
mod serve;
mod stream;
mod tool;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::diskimage::DiskReading;
pub use answer::{Answer, Unusable};
pub use broker::attend;
pub(crate) use disk::DiskStream;
pub(crate) use request::FILES_MAX;
pub use request::{Ending, Job, Request};
pub use serve::{Hands, serve};
pub(crate) use stream::Stream;
pub(crate) use tool::{Confined, Tool, file};
pub use tool::{FILES, FIRST_FILE, TREE};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use answer::fuzz_answer;

/// Who unpacks layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Unpacker {
    /// The importing process itself, with all its rights. For tools that run without rights, and for tests.
    #[default]
    InProcess,
    /// A confined process per layer or stream.
    Worker(Worker),
}

/// How workers are started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    program: PathBuf,
    id_base: u32,
    cgroup_procs: Vec<PathBuf>,
    patience: Duration,
}

/// Ids that a worker has: those an image may hold.
pub const IDS: u32 = 65_536;

impl Worker {
    /// How long a worker may take nothing and say nothing. A mebibyte of gzip can hold a gibibyte, so slow disks need
    /// some of it.
    pub const PATIENCE: Duration = Duration::from_secs(120);

    /// `program` is the absolute path of `ocivisor-unpack`. `id_base` is the first of [`IDS`] host ids that no user,
    /// guest or other service has; all workers may share them.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, id_base: u32) -> Self {
        Self {
            program: program.into(),
            id_base,
            cgroup_procs: Vec::new(),
            patience: Self::PATIENCE,
        }
    }

    /// Files `cgroup.procs` of the control groups that each worker joins before it reads a byte of a layer: one with
    /// version 2, one per hierarchy with version 1.
    #[must_use]
    pub fn with_cgroups(mut self, cgroup_procs: Vec<PathBuf>) -> Self {
        self.cgroup_procs = cgroup_procs;
        self
    }

    /// Another time than [`Self::PATIENCE`].
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Whose files a confined tool may write: the host's id of the worker's own root, user and group.
    pub(crate) fn root(&self) -> u32 {
        self.id_base
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }
}
