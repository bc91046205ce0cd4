//! `docker run -d` against a daemon of our own on a private socket: overlay, veth on its bridge,
//! limits, its default profile; no user namespace and no disk limit, which is in its favour.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Contender, GUESTS, Life, stamp, tarball, wall};
use crate::cmd::{output, program, run, wait_until};
use crate::quickstart::Places;
use crate::quickstart::undo::Undo;

const BRIDGE: &str = "ocvbench1";
const GROUP: &str = "ocvbench-docker";
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
        let said = places.cache.join("dockerd.log");
        let log = std::fs::File::create(&said)?;
        let mut command = program("dockerd");
        command.args(["--host", &socket, "--bridge", BRIDGE, "--iptables=false"]);
        command.args(["--ip-masq=false", "--ip-forward=false", "--data-root"]).arg(&dir);
        command
            .args(["--cgroup-parent", GROUP, "--exec-root"])
            .arg(&run_dir)
            .arg("--pidfile")
            .arg(run_dir.join("pid"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.process_group(0).spawn().context("start dockerd")?;
        let docker = Self { socket };
        let come_up = wait_until("the start of dockerd", Duration::from_secs(60), || {
            if let Some(status) = child.try_wait()? {
                bail!("dockerd ended with {status}");
            }
            Ok(crate::cmd::succeeds(&mut docker.command(&["version"])))
        });
        let data = dir.clone();
        undo.add("stop dockerd", move || end(&mut child, &run_dir, &data));
        come_up.with_context(|| last_line(&said))?;
        let tar = tarball(rootfs);
        let tar = tar.to_string_lossy();
        run(&mut docker.command(&["import", &tar, IMAGE]))?;
        Ok(docker)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program("docker");
        command.args(["--host", &self.socket]).args(args).process_group(0);
        command
    }
}

/// The last that a daemon wrote: why it ended.
fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().next_back().unwrap_or("it wrote nothing").to_owned()
}

/// Ends the daemon, which ends its containers, and removes all that it had.
fn end(child: &mut Child, run_dir: &Path, data: &Path) -> Result<()> {
    if child.try_wait()?.is_none() {
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
        let ended = wait_until("the end of dockerd", Duration::from_secs(30), || {
            Ok(child.try_wait()?.is_some())
        });
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended?;
    }
    crate::quickstart::daemon::remove_groups(GROUP)?;
    std::fs::remove_dir_all(run_dir)?;
    Ok(std::fs::remove_dir_all(data)?)
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

    /// The shims (containerd-shim).
    fn memory(&mut self) -> Result<Vec<u64>> {
        let names: Vec<String> = (0..GUESTS).map(|n| format!("ocvbenchmem{n}")).collect();
        for name in &names {
            output(&mut self.command(&["run", "-d", "--name", name, IMAGE, "/first"]))?;
        }
        let mut all = Vec::new();
        for name in &names {
            let pid = output(&mut self.command(&["inspect", "-f", "{{.State.Pid}}", name]))?;
            let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim()))?;
            let shim = status.lines().find_map(|l| l.strip_prefix("PPid:")).context("no parent")?;
            all.push(super::ours::pss(shim.trim().parse()?)?);
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        output(&mut self.command(&[&["rm", "-f"][..], &names].concat()))?;
        Ok(all)
    }
}
