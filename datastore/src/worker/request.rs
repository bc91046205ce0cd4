//! What goes to a worker.
//!
//! It is trusted, for it comes from whoever started the worker: length in four bytes, little endian, then JSON. The
//! stream that is to be read follows in the same descriptor, 0.
//!
//! That descriptor is a pipe, the fastest way for a stream. Where a job needs files as well, it is a stream socket, and
//! a byte comes before all else, whose message has the descriptors with it (`SCM_RIGHTS`, unix(7)). So nothing has to
//! be inherited: the importing process has many threads, and a descriptor that one of them made inheritable for a moment
//! might go along with a child that another starts in this moment.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use super::{Tool, Worker};
use crate::compress::Compression;
use crate::content::Task;
use crate::diskimage::DiskReading;
use crate::limits::Limits;
use crate::tarball::Trailer;

/// Rises with each change of requests and answers.
const VERSION: u32 = 2;

const REQUEST_MAX: u32 = 64 * 1024;

/// Files beside a request.
pub(crate) const FILES_MAX: usize = 32;

/// What stands for them in the stream.
const FILES: u8 = b'f';

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Job {
    /// Reads a layer and fills the directory on descriptor 2.
    Layer {
        /// How its tar must end.
        ending: Ending,
    },
    /// Decompresses a stream; the plain bytes go to the pipe on descriptor 2. What they are is judged by whoever reads
    /// them.
    Expand,
    /// Becomes another program, whose words go to the pipe on descriptor 2.
    Tool {
        /// Whether the first of the files beside the request is a tree to read; the others are to be written.
        tree: bool,
    },
    /// Reads a disk from the files beside the request; its root file system goes to the pipe on descriptor 2, as a tar
    /// in zstd.
    Disk(DiskReading),
}

/// Whether a tar must have its end marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The end of the stream is enough.
    Optional,
    /// It must.
    Required,
}

impl From<Ending> for Trailer {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Optional => Self::Optional,
            Ending::Required => Self::Required,
        }
    }
}

/// A job, and what it may use.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    version: u32,
    job: Job,
    /// How many files come beside it.
    files: usize,
    limits: Limits,
    bytes: u64,
    entries: u64,
    compression: Option<Compression>,
    id_base: u32,
    cgroup_procs: Vec<PathBuf>,
    /// To become, if any.
    program: PathBuf,
    argv: Vec<String>,
}

impl Request {
    /// To unpack a layer.
    pub(super) fn layer(worker: &Worker, task: &Task<'_>, trailer: Trailer) -> Self {
        let ending = match trailer {
            Trailer::Optional => Ending::Optional,
            Trailer::Required => Ending::Required,
        };
        Self {
            limits: task.limits.clone(),
            bytes: task.bytes,
            entries: task.entries,
            compression: task.compression,
            ..Self::of(worker, Job::Layer { ending })
        }
    }

    /// To decompress a stream.
    pub(super) fn expand(worker: &Worker, compression: Option<Compression>) -> Self {
        Self { compression, ..Self::of(worker, Job::Expand) }
    }

    /// To become another program.
    pub(super) fn tool(worker: &Worker, tool: &Tool<'_>) -> Self {
        Self {
            program: tool.program.to_owned(),
            argv: tool.argv.to_vec(),
            bytes: tool.largest,
            ..Self::of(worker, Job::Tool { tree: tool.tree.is_some() })
        }
    }

    /// To read a disk.
    pub(super) fn disk(worker: &Worker, reading: DiskReading, limits: &Limits) -> Self {
        Self { limits: limits.clone(), ..Self::of(worker, Job::Disk(reading)) }
    }

    fn of(worker: &Worker, job: Job) -> Self {
        Self {
            version: VERSION,
            job,
            files: 0,
            limits: Limits::default(),
            bytes: 0,
            entries: 0,
            compression: None,
            id_base: worker.id_base,
            cgroup_procs: worker.cgroup_procs.clone(),
            program: PathBuf::new(),
            argv: Vec::new(),
        }
    }

    /// The same, to be sent with so many files.
    pub(super) fn with_files(self, files: usize) -> Self {
        Self { files, ..self }
    }

    pub(super) fn encode(&self) -> io::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        let length = u32::try_from(body.len()).ok().filter(|l| *l <= REQUEST_MAX);
        let length = length.ok_or_else(|| io::Error::other("request is too long"))?;
        Ok([&length.to_le_bytes(), &body[..]].concat())
    }

    /// Reads the request, takes the files that come beside it, and leaves the stream where it is.
    ///
    /// # Errors
    /// It cannot be read, is of another version, or has other files than it says.
    pub fn receive(mut from: &File) -> io::Result<(Self, Vec<File>)> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(from)?.st_mode);
        let files = if kind == FileType::Socket { receive_files(from)? } else { Vec::new() };
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length > REQUEST_MAX {
            return Err(io::Error::other("request is too long"));
        }
        let mut body = vec![0; length as usize];
        from.read_exact(&mut body)?;
        let request: Self = serde_json::from_slice(&body)?;
        if request.version != VERSION {
            let text = format!("request of version {}, not {VERSION}", request.version);
            return Err(io::Error::other(text));
        }
        if request.files != files.len() {
            return Err(io::Error::other("other files than the request says"));
        }
        Ok((request, files))
    }

    pub(super) fn task(&self) -> Task<'_> {
        Task {
            limits: &self.limits,
            bytes: self.bytes,
            entries: self.entries,
            compression: self.compression,
        }
    }

    /// What is to be done.
    #[must_use]
    pub fn job(&self) -> Job {
        self.job
    }

    /// What the stream must be, if that is known.
    pub(super) fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// The program to become.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its name for itself, and its arguments.
    #[must_use]
    pub fn argv(&self) -> &[String] {
        &self.argv
    }

    /// What the work may come to.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// First of the host's ids for the worker.
    #[must_use]
    pub fn id_base(&self) -> u32 {
        self.id_base
    }

    /// Control groups to join, by their `cgroup.procs`.
    pub fn cgroup_procs(&self) -> impl Iterator<Item = &Path> {
        self.cgroup_procs.iter().map(PathBuf::as_path)
    }

    /// No file that a worker makes can be larger.
    #[must_use]
    pub fn largest_file(&self) -> u64 {
        match self.job {
            Job::Layer { .. } | Job::Tool { .. } => self.bytes,
            Job::Expand | Job::Disk(_) => 0,
        }
    }
}

/// Sends files ahead of a request; the socket is new, so this does not block.
pub(super) fn send_files(to: impl AsFd, files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if files.len() > FILES_MAX || !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other(format!("more than {FILES_MAX} files for a worker")));
    }
    rustix::net::sendmsg(to, &[IoSlice::new(&[FILES])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_files(from: &File) -> io::Result<Vec<File>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    let got = rustix::net::recvmsg(from, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            files.extend(fds.map(|fd: OwnedFd| File::from(fd)));
        }
    }
    if got.bytes != 1 || byte != [FILES] || got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("no files before the request"));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn request() -> Request {
        Request::expand(&Worker::new("/x", 7), Some(Compression::Xz))
    }

    /// Both ends of a way to a worker.
    fn socket() -> (File, File) {
        let (a, b) = UnixStream::pair().unwrap();
        (File::from(OwnedFd::from(a)), File::from(OwnedFd::from(b)))
    }

    #[test]
    fn files_come_before_the_request_and_the_stream_after_it() {
        let (mut ours, theirs) = socket();
        let files: Vec<File> = [&b"first"[..], b"second"]
            .iter()
            .map(|text| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(text).unwrap();
                file.rewind().unwrap();
                file
            })
            .collect();
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send_files(&ours, &fds).unwrap();
        ours.write_all(&request().with_files(2).encode().unwrap()).unwrap();
        ours.write_all(b"stream").unwrap();
        drop(ours);
        let (got, files) = Request::receive(&theirs).unwrap();
        assert_eq!((got.job(), got.compression()), (Job::Expand, Some(Compression::Xz)));
        let text = |mut file: &File| {
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(files.iter().map(text).collect::<Vec<_>>(), ["first", "second"]);
        for file in &files {
            let flags = rustix::io::fcntl_getfd(file).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        assert_eq!(text(&theirs), "stream");
    }

    #[test]
    fn a_request_comes_with_the_files_that_it_says() {
        let file = tempfile::tempfile().unwrap();
        for (sent, said) in [(1, 0), (1, 2), (0, 1)] {
            let (mut ours, theirs) = socket();
            send_files(&ours, &vec![file.as_fd(); sent]).unwrap();
            ours.write_all(&request().with_files(said).encode().unwrap()).unwrap();
            let error = Request::receive(&theirs).unwrap_err();
            assert_eq!(error.to_string(), "other files than the request says", "{sent} {said}");
        }
        let (ours, _theirs) = socket();
        let error = send_files(&ours, &[file.as_fd(); FILES_MAX + 1]).unwrap_err();
        assert_eq!(error.to_string(), "more than 32 files for a worker");
    }
}
