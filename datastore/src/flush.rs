//! Writing to the disk while a long layer still comes in.
//!
//! A layer is published only after one `syncfs`, which waits for all of it. The kernel begins to write by itself only
//! when memory is a good part full, so for a large layer processor and disk would work one after the other. Here
//! a thread asks for the same `syncfs` every now and then; the last one, in `work`, finds little left. That took a
//! sixth off the import of a layer of 850 MB (ext4 with a journal, two processors). Nothing relies on these
//! early ones but time. An error of one is kept: the kernel tells it once per open file.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes of the blob between two.
const STEP: u64 = 32 << 20;

/// Flushes a file system from time to time.
#[derive(Debug)]
pub(crate) struct Flusher<'a> {
    /// Something on the file system.
    on: Option<&'a File>,
    next: u64,
    running: Option<(SyncSender<()>, JoinHandle<io::Result<()>>)>,
}

impl<'a> Flusher<'a> {
    pub fn new(on: Option<&'a File>) -> Self {
        Self { on, next: STEP, running: None }
    }

    /// So many bytes have come.
    pub fn at(&mut self, count: u64) {
        if count < self.next {
            return;
        }
        self.next = count + STEP;
        if self.running.is_none() {
            self.running = self.on.and_then(|on| start(on).ok());
        }
        if let Some((tick, _)) = &self.running {
            // One that is still at it will take the new bytes along, or the next one does.
            let _ = tick.try_send(());
        }
    }

    /// Waits until none is under way, and says whether one failed.
    pub fn finish(self) -> io::Result<()> {
        let Some((tick, thread)) = self.running else { return Ok(()) };
        drop(tick);
        thread.join().unwrap_or_else(|_| Err(io::Error::other("thread panicked")))
    }
}

/// Without it all is as good, only later: no thread is no failure.
fn start(on: &File) -> io::Result<(SyncSender<()>, JoinHandle<io::Result<()>>)> {
    let on = on.try_clone()?;
    let (tick, ticks) = sync_channel::<()>(1);
    let thread = std::thread::Builder::new()
        .name("flush".into())
        .spawn(move || ticks.into_iter().try_for_each(|()| Ok(rustix::fs::syncfs(on.as_fd())?)))?;
    Ok((tick, thread))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_layers_start_nothing_and_long_ones_end_well() {
        let file = tempfile::tempfile().unwrap();
        let mut flusher = Flusher::new(Some(&file));
        flusher.at(STEP - 1);
        assert!(flusher.running.is_none());
        flusher.at(STEP);
        assert!(flusher.running.is_some());
        flusher.at(10 * STEP);
        flusher.finish().unwrap();
        Flusher::new(None).finish().unwrap();
    }
}
