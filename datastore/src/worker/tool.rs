//! A tool of the host's at work on what a tenant made: mke2fs, debugfs, qemu-img.
//!
//! They are large, in C, and an export needs them to look at every file of a VM. So they run like a worker, as nobody:
//! the worker program confines itself and then becomes the tool (`Job::Tool`). The tool's root directory holds the
//! host's programs and libraries, read-only, and what it was given: a tree as [`TREE`], which it may read, and open files
//! in [`FILES`], which it may write.
//!
//! What it was given comes beside the request. Descriptor 2 takes its words, which nobody believes. The answer's pipe
//! closes without a byte when the tool begins; a byte in it tells why it did not. How the tool ended is the code with
//! which the first process ends, as shells tell it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};

use super::Worker;
use super::answer::Answer;
use super::process::{Clock, Running, lie};
use super::request::Request;
use crate::error::{Fault, escape};

/// Where a confined tool sees a tree.
pub const TREE: &str = "/tree";

/// Where it sees the files that it has open.
pub const FILES: &str = "/fd";

/// Number of the first of them that is one of its own.
pub const FIRST_FILE: i32 = 3;

/// Where it sees the one that was given as the n-th, counted from 0.
pub(crate) fn file(n: usize) -> String {
    format!("{FILES}/{}", FIRST_FILE as usize + n)
}

/// What is to be run on what.
#[derive(Debug)]
pub(crate) struct Tool<'a> {
    /// Absolute, and below a directory of programs or libraries.
    pub program: &'a Path,
    /// Its name for itself, and its arguments.
    pub argv: &'a [String],
    /// Read.
    pub tree: Option<&'a File>,
    /// Written; they belong to the first of the worker's ids.
    pub files: &'a [&'a File],
    /// Most bytes that a file may get.
    pub largest: u64,
}

/// A tool that runs, or is about to. Dropping ends it.
pub(crate) struct Confined(Running);

impl Confined {
    pub fn start(worker: &Worker, tool: &Tool<'_>) -> Result<Self, Fault> {
        let beside: Vec<_> = tool.tree.iter().chain(tool.files).map(|file| file.as_fd()).collect();
        let request = Request::tool(worker, tool);
        let mut running = Running::start(worker, Stdio::piped(), &beside, Clock::Patience)?;
        running.feed(&request.with_files(beside.len()), &mut io::empty())?;
        Ok(Self(running))
    }

    /// The worker's first process. It ends with the tool; its standard error is the tool's.
    pub fn child(&mut self) -> &mut Child {
        self.0.child()
    }

    /// How the tool ended; an error if it never began.
    pub fn end(mut self) -> Result<ExitStatus, Fault> {
        let (said, status) = self.0.end()?;
        if !said.is_empty() {
            let answer = Answer::decode(&said).map_err(|why| lie(&escape(why.as_bytes())))?;
            return Err(answer.judge_tool().map_err(lie)?);
        }
        let signal = status.code().filter(|code| *code > 128).map(|code| code - 128);
        Ok(signal.map_or(status, ExitStatus::from_raw))
    }
}
