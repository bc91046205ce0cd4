//! A share whose server is away: a FUSE filesystem that answers nothing but the first question (fuse(4), <linux/fuse.h>). Who
//! asks waits in the kernel, and not even SIGKILL ends that once the question was read, as on other shares (NFS, Gluster).

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};

use crate::{PATIENCE, tool};

/// Bytes of the heads of questions and answers.
const HEADS: (usize, usize) = (40, 16);
/// Bytes of the answer to the first question, and the version of the protocol that it speaks.
const INIT: (usize, [u32; 2]) = (64, [7, 31]);

/// It is unmounted, and who waits there wakes, when this is dropped.
#[derive(Debug)]
pub struct DeadShare {
    path: PathBuf,
    asked: Receiver<()>,
}

impl DeadShare {
    /// Mounts it.
    #[must_use]
    pub fn mount(path: &Path) -> Self {
        let mut device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = "fd=0,rootmode=40000,user_id=0,group_id=0";
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "fuse", "-o", options, "dead"]).arg(path);
        assert!(mount.stdin(device.try_clone().unwrap()).status().unwrap().success());
        let (question, asked) = channel();
        std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 17];
            let n = device.read(&mut bytes).unwrap();
            assert!(n >= HEADS.0);
            let length = HEADS.1 + INIT.0;
            let mut answer = u32::try_from(length).unwrap().to_ne_bytes().to_vec();
            answer.extend([0; 4]);
            answer.extend(&bytes[8..16]);
            answer.extend(INIT.1.iter().flat_map(|n| n.to_ne_bytes()));
            answer.resize(length, 0);
            device.write_all(&answer).unwrap();
            while device.read(&mut bytes).is_ok() {
                let _ = question.send(());
            }
        });
        Self { path: path.to_owned(), asked }
    }

    /// Waits until somebody waits there.
    pub fn is_asked(&self) {
        self.asked.recv_timeout(PATIENCE).unwrap();
    }
}

impl Drop for DeadShare {
    fn drop(&mut self) {
        let path = self.path.display().to_string();
        // By force: who waits is told that it is gone. Without looking at it first.
        tool(&["umount", "-c", "-i", "-n", "-f", "-l", &path]);
    }
}
