//! The importing side: has a worker unpack a layer, judges what it says.
//!
//! The worker is an enemy from its first byte of the blob on. It may stop reading, say too much or nothing, lie, or
//! live on: each wait has a deadline, the answer a bound, and whatever happens the worker has ended when [`read`]
//! returns, so that nothing writes into staging any more when staging is removed.

use std::io::Read;
use std::process::Stdio;

use super::Worker;
use super::process::{Clock, Running, lie};
use super::request::Request;
use crate::content::{Content, Fallible, Into, Task};
use crate::error::{Doing, Fault};

/// Reads the blob to its end through a worker.
pub(crate) fn read(
    worker: &Worker,
    blob: &mut dyn Read,
    task: &Task<'_>,
    (directory, trailer): Into<'_>,
) -> Fallible<Content> {
    let plain = |fault: Fault| (fault, None);
    let request = Request::layer(worker, task, trailer);
    let directory = directory.try_clone().doing("duplicate descriptor of").map_err(plain)?;
    let mut running =
        Running::start(worker, Stdio::from(directory), &[], Clock::Patience).map_err(plain)?;
    let took_all = running.feed(&request, blob).map_err(plain)?;
    let answer = running.answer().map_err(plain)?;
    match answer.judge(task) {
        Ok(Ok(_)) if !took_all => Err(plain(lie("done, without having read the whole blob"))),
        Ok(said) => said,
        Err(why) => Err(plain(lie(why))),
    }
}
