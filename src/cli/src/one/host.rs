//! `ocivisor one host`: what transfer scripts run on a host, by ssh.
//!
//! Files are its user's own affair (`ocivisor_frontend::host`); what needs the daemon is asked of it here. On the
//! front-end the same program serves the front-end's own directories, and there is no daemon to ask.

use std::io::{BufReader, BufWriter, stdin, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_frontend::host::{Daemon, serve};
use ocivisor_opennebula::OneId;
use ocivisor_rpc::{Client, ClientError};
use ocivisor_schema::Text;
use ocivisor_schema::reply::DiskBackendV1;

use super::config::Config;
use super::vmm::context;
use crate::args::DEFAULT_SOCKET;
use crate::connect::{Context, block_on, ended_with_daemon};
use crate::failure::{Exit, Failure};
use crate::output::complain;

/// Serves standard input until it ends.
pub fn main(socket: Option<PathBuf>) -> ExitCode {
    let served = Config::load().and_then(|config| {
        let socket =
            socket.or_else(|| config.socket.clone()).unwrap_or_else(|| DEFAULT_SOCKET.into());
        let mut daemon = Asked { socket, away: Duration::from_secs(config.daemon_timeout) };
        let mut from = BufReader::with_capacity(1 << 17, stdin().lock());
        let mut to = BufWriter::with_capacity(1 << 17, stdout().lock());
        serve(&mut from, &mut to, &mut daemon)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error}\n"));
            ExitCode::FAILURE
        }
    }
}

/// The daemon, asked anew each time: it may be replaced between two orders.
struct Asked {
    socket: PathBuf,
    away: Duration,
}

impl Asked {
    /// Asks, for as long as the daemon may be away.
    fn ask<T>(
        &self,
        question: &impl AsyncFn(&Context, &Client) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let context = context(self.socket.clone());
        let began = Instant::now();
        let answer = block_on(async {
            let client = loop {
                match context.daemon().await {
                    Err(e) if e.exit == Exit::Unreachable && began.elapsed() < self.away => {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    other => break other?,
                }
            };
            question(&context, &client).await
        });
        answer.map_err(|failure| {
            let kind = match failure.exit {
                _ if ended_with_daemon(&failure) => ErrorKind::Cancelled,
                Exit::NotFound => ErrorKind::NotFound,
                Exit::Conflict => ErrorKind::Conflict,
                Exit::Permission => ErrorKind::Permission,
                _ => ErrorKind::Host,
            };
            let error = Error::new(kind, &failure.message);
            match failure.hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        })
    }
}

/// Paths of places are text: they were read from it.
fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Numbers are the cloud's, and a host may have had another one; a directory is of one VM.
fn check_place(vm: &str, disk: &Path, dir: &Path) -> Result<(), Failure> {
    // The daemon has resolved what it was told.
    let real = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    match disk.parent() {
        Some(parent) if parent == dir || parent == real => Ok(()),
        _ => {
            let (disk, dir) = (disk.display(), dir.display());
            let text = format!("vm {vm} runs on {disk}, which is not in {dir}");
            let hint = "find out whose it is; it may be another cloud's";
            Err(Error::new(ErrorKind::Conflict, text).hint(hint).into())
        }
    }
}

impl Daemon for Asked {
    fn lacking(&mut self, layout: &Path) -> Result<Vec<String>, Error> {
        let source = format!("oci:{}", text(layout));
        self.ask(&async |context, client| {
            Ok(context.ask(client.image_lacking(source.clone())).await?.blobs)
        })
    }

    fn import(&mut self, source: &str, name: &str) -> Result<(), Error> {
        self.ask(&async |context, _| {
            let send = async |client: &Client, id| -> Result<_, ClientError> {
                client.image_import(id, source.to_owned(), Some(name.to_owned()), None).await
            };
            context.run_image_operation(&send).await.map(|_| ())
        })
    }

    fn create_disk(&mut self, image: &str, size: u64, path: &Path) -> Result<(), Error> {
        self.ask(&async |context, client| {
            let made = client.disk_create(image.to_owned(), size, text(path), DiskBackendV1::Ext4);
            context.ask(made).await.map(|_| ())
        })
    }

    fn adopt(&mut self, path: &Path) -> Result<(), Error> {
        self.ask(&async |context, client| {
            context.ask(client.disk_adopt(text(path))).await.map(|_| ())
        })
    }

    fn is_there(&mut self) -> bool {
        std::os::unix::net::UnixStream::connect(&self.socket).is_ok()
    }

    fn end(&mut self, vm: u32, dir: &Path) -> Result<(), Error> {
        let vm: OneId = vm.to_string().parse()?;
        self.ask(&async |context, client| {
            let info = match client.vm_get(Text(vm.vm_id())).await.map_err(Failure::from) {
                Err(failure) if failure.exit == Exit::NotFound => return Ok(()),
                other => other?,
            };
            check_place(vm.vm_id().as_ref(), Path::new(&info.record.spec.root.path), dir)?;
            let send = async |c: &Client, id| c.vm_destroy(id, Text(vm.vm_id()), true).await;
            context.wishing_absence().run_operation(client, &send).await.map(|_| ())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_known_by_where_its_disk_is() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let at = |name: &str| top.join(name);
        for dir in ["real/7", "other/7"] {
            std::fs::create_dir_all(at(dir)).unwrap();
        }
        std::os::unix::fs::symlink("real", at("led")).unwrap();
        let ends = |disk: &str, dir: &str| check_place("one-7", &at(disk), &at(dir)).is_ok();
        assert!(ends("real/7/disk.0", "real/7"));
        assert!(ends("real/7/disk.0", "led/7"));
        assert!(ends("gone/7/disk.0", "gone/7"));
        assert!(!ends("other/7/disk.0", "real/7"));
        assert!(!ends("real/7/sub/disk.0", "real/7"));
        let failure = check_place("one-7", &at("other/7/disk.0"), &at("led/7")).unwrap_err();
        let want = format!(
            "vm one-7 runs on {0}/other/7/disk.0, which is not in {0}/led/7",
            top.display()
        );
        assert_eq!((failure.exit, failure.message), (Exit::Conflict, want));
    }
}
