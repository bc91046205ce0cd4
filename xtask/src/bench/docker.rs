//! `docker run -d` against a daemon of our own on a private socket: overlay, veth on its bridge,
//! limits, its default profile; no user namespace and no disk limit, which is in its favour.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Contender, Life, stamp, tarball, wall};
use crate::cmd::{output, program, run, wait_until};
use crate::quickstart::Places;
use crate::quickstart::undo::Undo;

const BRIDGE: &str = "ocvbench1";
const IMAGE: &str = "ocvbench";

/// A daemon.
#[derive(Debug)]
pub struct Docker {
    socket: String,
}

impl Docker {
    /// Starts it.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(places: &Places, rootfs: &Path, undo: &mut Undo) -> Result<Self> {
        let dir = places.cache.join("docker");
        let run_dir = PathBuf::from("/run/ocvbench-docker");
        run(program("ip").args(["link", "add", BRIDGE, "type", "bridge"]))?;
        undo.add(
            format!("remove {BRIDGE}"),
            || run(program("ip").args(["link", "delete", BRIDGE])),
        );
        run(program("ip").args(["address", "add", "198.18.77.1/24", "dev", BRIDGE]))?;
        run(program("ip").args(["link", "set", BRIDGE, "up"]))?;
        std::fs::create_dir_all(&dir).context("make docker's directory")?;
        std::fs::create_dir_all(&run_dir).context("make docker's run directory")?;
        let socket = format!("unix://{}/docker.sock", run_dir.display());
        let log = std::fs::File::create(places.cache.join("dockerd.log"))?;
        let mut command = program("dockerd");
        command.args(["--host", &socket, "--bridge", BRIDGE, "--iptables=false"]);
        command.args(["--ip-masq=false", "--ip-forward=false", "--data-root"]).arg(&dir);
        command.arg("--exec-root").arg(&run_dir).arg("--pidfile").arg(run_dir.join("pid"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = std::os::unix::process::CommandExt::process_group(&mut command, 0)
            .spawn()
            .context("start dockerd")?;
        let pid = i32::try_from(child.id())?;
        undo.add("stop dockerd", move || {
            nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGTERM,
            )?;
            child.wait()?;
            std::fs::remove_dir_all(&run_dir)?;
            Ok(())
        });
        let docker = Self { socket };
        wait_until("the start of dockerd", Duration::from_secs(60), || {
            Ok(crate::cmd::succeeds(&mut docker.command(&["version"])))
        })?;
        let tar = tarball(rootfs);
        let tar = tar.to_string_lossy();
        run(&mut docker.command(&["import", &tar, IMAGE]))?;
        Ok(docker)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program("docker");
        command.args(["--host", &self.socket]).args(args);
        command
    }
}

impl Contender for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn live(&mut self, round: u32) -> Result<Life> {
        let name = format!("ocvbench{round}");
        let began = Instant::now();
        let start = wall();
        let limits = ["--memory", "256m", "--cpus", "1", "--pids-limit", "4096"];
        let args = [&["run", "-d", "--name", &name][..], &limits, &[IMAGE, "/first"]].concat();
        let ran = self.command(&args).output()?;
        let made = began.elapsed();
        if !ran.status.success() {
            bail!("run: {}", String::from_utf8_lossy(&ran.stderr).trim());
        }
        let mut at = None;
        wait_until("the guest's first word", Duration::from_secs(20), || {
            at = stamp(&output(&mut self.command(&["logs", &name]))?);
            Ok(at.is_some())
        })?;
        let ending = Instant::now();
        let gone = self.command(&["rm", "-f", &name]).output()?;
        let took = ending.elapsed();
        if !gone.status.success() {
            bail!("rm: {}", String::from_utf8_lossy(&gone.stderr).trim());
        }
        let first = at.unwrap_or_default().saturating_sub(start);
        Ok(Life { first, made, gone: took })
    }

    /// The shim of one guest (containerd-shim).
    fn memory(&mut self) -> Result<Option<u64>> {
        let name = "ocvbenchmem";
        let args = ["run", "-d", "--name", name, IMAGE, "/first"];
        output(&mut self.command(&args))?;
        let pid = output(&mut self.command(&["inspect", "-f", "{{.State.Pid}}", name]))?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim()))?;
        let shim = status.lines().find_map(|l| l.strip_prefix("PPid:")).context("no parent")?;
        let bytes = super::ours::pss(shim.trim().parse()?);
        output(&mut self.command(&["rm", "-f", name]))?;
        bytes.map(Some)
    }
}
