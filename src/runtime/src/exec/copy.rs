//! Copies files from and to a guest: instead of a program of the guest, a process of ours that is inside.
//!
//! It is in the guest's control groups, user and mount namespace, with the capabilities that files need and no
//! other, and walks the guest's paths as the guest's root would; whatever a link in there says, it leads to the
//! guest's own files. A tar stream goes out by its standard output or comes in by its standard input. What it
//! has to say goes to its standard error, a line each: `note TEXT`, and at last, if it failed, `error KIND TEXT`.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::{AsRawFd, RawFd};

use ocivisor_copy::Notes;
use ocivisor_copy::pack::{Source, pack};
use ocivisor_copy::unpack::{Naming, Rules, Trust, unpack};
use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

use super::relay::Streams;
use super::request::{CopyRequest, Direction};
use crate::guest::Guest;
use crate::{status, sys};

/// By number in linux/capability.h: `CHOWN`, `DAC_OVERRIDE`, `FOWNER`, `FSETID`.
const CAPABILITIES: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 4;
/// Bytes that are gathered before they are passed on.
const BUFFER: usize = 64 * 1024;

/// Makes the process. It is a child of this one.
///
/// # Errors
/// The kernel refuses.
pub fn begin(wish: &CopyRequest, guest: &Guest) -> io::Result<(Pid, Streams)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let ((input, stdin), (stdout, output), (stderr, report)) = (pipe()?, pipe()?, pipe()?);
    let own = rustix::process::getpid();
    match sys::fork()? {
        sys::Fork::Child => {
            drop((stdin, stdout, stderr));
            let mut notes = Notes::default();
            let keep = [&input, &output, &report, &guest.init].map(AsRawFd::as_raw_fd);
            let done = enter(guest, own, &keep)
                .and_then(|()| copy(wish, File::from(input), File::from(output), &mut notes));
            let mut said: String = notes.lines().map(|line| format!("note {line}\n")).collect();
            if let Err(error) = &done {
                said += &status::line(error);
                said.push('\n');
            }
            // Who does not listen any more is not there any more.
            let _ = File::from(report).write_all(said.as_bytes());
            sys::exit_now(u8::from(done.is_err()));
        }
        sys::Fork::Parent(child) => Ok((child, Streams::Pipes { stdin, stdout, stderr })),
    }
}

fn enter(guest: &Guest, parent: Pid, keep: &[RawFd]) -> Result<()> {
    // Not the session's: it would hold its client's connection open, and there is nothing of it in the guest.
    sys::close_all_but(keep)
        .map_err(|e| Error::new(ErrorKind::Host, format!("close descriptors: {e}")))?;
    // Killed as programs are: by session and group.
    rustix::process::setsid()
        .map_err(|e| Error::new(ErrorKind::Host, format!("begin a session: {e}")))?;
    guest.enter_for_files(parent, CAPABILITIES)
}

fn copy(wish: &CopyRequest, input: File, output: File, notes: &mut Notes) -> Result<()> {
    let path = wish.path.as_bytes();
    match wish.direction {
        Direction::Out => {
            drop(input);
            let source = Source { path, follow: wish.follow };
            pack(source, BufWriter::with_capacity(BUFFER, output), notes)
        }
        Direction::In => {
            drop(output);
            // Who sends says as well where it goes, so any name is the one that was asked for.
            let naming = if wish.archive { Naming::Own } else { Naming::One { expect: None } };
            let rules = Rules { trust: Trust::Inside, naming, owners: wish.owners };
            unpack(BufReader::with_capacity(BUFFER, input), path, rules, notes)
        }
    }
}
