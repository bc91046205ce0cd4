//! A daemon of our own, and the command line that talks to it.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Places;
use super::undo::Undo;
use crate::cmd::{self, program, say, wait_until, write};

/// How long a daemon may take to come up or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a running daemon is.
#[derive(Debug)]
pub struct Daemon {
    /// Its places.
    pub places: Places,
}

impl Daemon {
    /// Starts it and waits until it answers; ends one that an earlier run left. `more` is added to
    /// its configuration.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(places: &Places, more: &str, undo: &mut Undo) -> Result<Self> {
        end_old(places)?;
        let daemon = Self { places: places.clone() };
        let config = places.cache.join("ocivisor.toml");
        write(
            &config,
            &format!(
                "state_dir = {:?}\nrun_dir = {:?}\ncgroup_base = {:?}\nlibexec_dir = {:?}\n{more}",
                places.state,
                places.run,
                places.run.file_name().unwrap_or_default(),
                places.programs
            ),
        )?;
        let group = places.run.file_name().unwrap_or_default().to_string_lossy().into_owned();
        undo.add("remove the control groups", move || remove_groups(&group));
        // What OpenNebula's scripts shall do here: not wait two minutes for a guest.
        write(&daemon.opennebula_config(), "shutdown_timeout = 2\n")?;
        for dir in [&places.state, &places.run] {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let log =
            File::create(&places.log).with_context(|| format!("make {}", places.log.display()))?;
        let mut command = program(places.programs.join("ocivisord"));
        command.arg("--config").arg(&config).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        // Ctrl-C is for us: the guest is to be ended first.
        let mut child = command.process_group(0).spawn().context("start ocivisord")?;
        write(&pid_file(places), &format!("{}\n", child.id()))?;
        let come_up = wait_until("the start of ocivisord", PATIENCE, || {
            if let Some(status) = child.try_wait()? {
                bail!("ocivisord ended with {status}\n{}", daemon.log_tail());
            }
            Ok(UnixStream::connect(daemon.socket()).is_ok())
        });
        if let Err(error) = come_up {
            end(&mut child, places)?;
            return Err(error);
        }
        say(&format!("ocivisord runs, pid {}, socket {}", child.id(), daemon.socket().display()));
        let places = places.clone();
        undo.add("stop ocivisord", move || end(&mut child, &places));
        Ok(daemon)
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.places.run.join("ocivisord.sock")
    }

    /// Its process.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<u32> {
        let text = std::fs::read_to_string(pid_file(&self.places)).context("read the pid")?;
        text.trim().parse().context("read the pid")
    }

    /// Policy for OpenNebula's scripts.
    #[must_use]
    pub fn opennebula_config(&self) -> PathBuf {
        self.places.cache.join("opennebula.toml")
    }

    /// The command line with these arguments.
    #[must_use]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = program(self.places.programs.join("ocivisor"));
        command.args(args).env("OCIVISOR_SOCKET", self.socket()).stdin(Stdio::null());
        command
    }

    /// Runs it, showing a short form of the command.
    ///
    /// # Errors
    /// It fails.
    pub fn cli(&self, args: &[&str]) -> Result<()> {
        say(&format!("$ ocivisor {}", args.join(" ")));
        let status = self.command(args).status().context("start ocivisor")?;
        if !status.success() {
            bail!("ocivisor {}: {status}", args.join(" "));
        }
        Ok(())
    }

    /// Runs it for its output.
    ///
    /// # Errors
    /// It fails.
    pub fn cli_output(&self, args: &[&str]) -> Result<String> {
        cmd::output(&mut self.command(args))
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.places.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

fn pid_file(places: &Places) -> PathBuf {
    places.cache.join("ocivisord.pid")
}

/// Asks it to end and collects it.
fn end(child: &mut Child, places: &Places) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    // It may have ended already.
    let _ = kill(pid, Signal::SIGTERM);
    let ended = wait_until("the end of ocivisord", PATIENCE, || Ok(child.try_wait()?.is_some()));
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let _absent_is_fine = std::fs::remove_file(pid_file(places));
    ended?;
    // Nothing of a guest may be mounted there any more; never remove through a mount.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let run = places.run.to_string_lossy();
    if mounts.contains(run.as_ref()) {
        bail!("something is still mounted below {run}");
    }
    std::fs::remove_dir_all(&places.run).with_context(|| format!("remove {run}"))
}

/// Ends the daemon of a run with --keep, if it is still the program that we started.
fn end_old(places: &Places) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(pid_file(places)) else {
        return Ok(());
    };
    let number: i32 = text.trim().parse().context("read the pid of an earlier run")?;
    let name = std::fs::read_to_string(format!("/proc/{number}/comm")).unwrap_or_default();
    if name.trim() == "ocivisord" {
        say(&format!("ending the daemon of an earlier run, pid {number}"));
        kill(Pid::from_raw(number), Signal::SIGTERM).context("end the earlier daemon")?;
        wait_until("the end of the earlier daemon", PATIENCE, || {
            Ok(!std::path::Path::new(&format!("/proc/{number}")).exists())
        })?;
    }
    let _absent_is_fine = std::fs::remove_file(pid_file(places));
    Ok(())
}

/// Removes control groups of this name, of all hierarchies, that have no processes any more.
///
/// # Errors
/// One of them cannot be removed.
pub fn remove_groups(name: &str) -> Result<()> {
    let base = Path::new("/sys/fs/cgroup");
    let mut hierarchies = vec![base.to_owned()];
    for entry in std::fs::read_dir(base).context("read the hierarchies")? {
        hierarchies.push(entry?.path());
    }
    for hierarchy in hierarchies {
        // The daemon's helpers, displays and servers of disks have one of their own below.
        let own = hierarchy.join(name);
        for group in [own.join("+unpack"), own.join("+vnc"), own.join("+disks"), own] {
            match std::fs::remove_dir(&group) {
                Err(error) if group.exists() => {
                    return Err(error).with_context(|| format!("remove {}", group.display()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
