//! The guest: made and ended by the driver scripts, looked at by the command line.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ocivisor_tests::context_disk;

use super::daemon::Daemon;
use super::network::{Net, Recorded};
use super::recording::{Call, Recording, VM};
use super::undo::Undo;
use crate::cmd::{program, root, say};

/// Size of the root disk. The recorded one is for a smaller image than Debian.
const DISK: &str = "2GiB";
/// Where the driver scripts are.
const SCRIPTS: &str = "driver-scripts/opennebula/remotes/vmm/ocivisor";

/// A VM to be.
#[derive(Debug)]
pub struct Guest<'a> {
    daemon: &'a Daemon,
    recording: Recording,
}

impl<'a> Guest<'a> {
    /// The recorded VM at this daemon.
    pub fn new(daemon: &'a Daemon, recording: Recording) -> Self {
        Self { daemon, recording }
    }

    /// Removes what an earlier run left.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn clear_leftovers(&self) -> Result<()> {
        for vm in self.daemon.cli_output(&["list", "--quiet"])?.lines() {
            say(&format!("removing {vm} of an earlier run"));
            self.daemon.cli(&["destroy", "--forget", vm])?;
        }
        let dir = &self.daemon.places.datastores;
        if dir.exists() {
            std::fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        Ok(())
    }

    /// What the recording says of the network.
    ///
    /// # Errors
    /// It lacks something.
    pub fn recorded_network(&self) -> Result<Recorded> {
        let value = |name: &str| {
            let text = self.recording.value(name);
            text.with_context(|| format!("the recording has no {name}"))
        };
        Ok(Recorded {
            bridge: value("BRIDGE")?.to_owned(),
            gateway: value("ETH0_GATEWAY")?.parse().context("ETH0_GATEWAY")?,
            guest: value("ETH0_IP")?.parse().context("ETH0_IP")?,
        })
    }

    /// The VM's directory, as the recorded call names it.
    fn directory(&self) -> Result<PathBuf> {
        let mut replace = super::recording::Replacements::default();
        replace.datastores(&self.daemon.places.datastores);
        let call = replace.apply(&self.recording.deploy);
        let file = call.args.first().map(PathBuf::from).unwrap_or_default();
        Ok(file.parent().context("the recorded path has no directory")?.to_owned())
    }

    /// What OpenNebula's transfer driver does before a deployment: the root disk in its place, and the
    /// context disk with what the template tells the guest.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_disk(&self, image: &str, undo: &mut Undo) -> Result<()> {
        let dir = self.directory()?;
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let all = self.daemon.places.datastores.clone();
        undo.add("remove the VM's directory", move || {
            std::fs::remove_dir_all(&all).with_context(|| format!("remove {}", all.display()))
        });
        let disk = dir.join("disk.0");
        let disk = disk.to_string_lossy();
        self.daemon.cli(&["disk", "create", "--image", image, "--size", DISK, &disk])?;
        let context = context_disk::variables(&self.recording.deploy.stdin);
        let id = context.iter().find(|(name, _)| name == "DISK_ID");
        let (_, id) = id.context("the recorded context has no disk")?;
        context_disk::make(&context, &dir.join(format!("disk.{id}")));
        Ok(())
    }

    /// Deploys and returns how long that took.
    ///
    /// # Errors
    /// The script fails or says something else than the contract wants.
    pub fn deploy(&self, net: &Net, system: bool, undo: &mut Undo) -> Result<Duration> {
        let mut replace = net.replace.clone();
        say(&replace.datastores(&self.daemon.places.datastores));
        // The recorded console is open to the network, and the port may be in use here.
        let port = free_port()?;
        say(&replace.add("<LISTEN><![CDATA[0.0.0.0]]>", "<LISTEN><![CDATA[127.0.0.1]]>"));
        say(&replace.add("<PORT><![CDATA[5900]]>", &format!("<PORT><![CDATA[{port}]]>")));
        let mut call = replace.apply(&self.recording.deploy);
        if system {
            call.stdin = without_command(&call.stdin)?;
            say("  the recorded command -> the image's own init");
        }
        let args = ["destroy", "--forget", "--quiet", VM];
        let mut remove = self.daemon.command(&args);
        // A second Ctrl-C shall not end the clearing.
        remove.process_group(0);
        undo.add(format!("remove {VM}"), move || {
            let status = remove.status()?;
            // 3: it is gone already, as it should be.
            if !status.success() && status.code() != Some(3) {
                bail!("ocivisor {}: {status}", args.join(" "));
            }
            Ok(())
        });
        let began = Instant::now();
        let answer = self.script("deploy", &call)?;
        let took = began.elapsed();
        if answer != format!("{VM}\n") {
            bail!("deploy answered {answer:?}, oned wants {VM}");
        }
        Ok(took)
    }

    /// Ends it.
    ///
    /// # Errors
    /// The script fails, or the VM is still known.
    pub fn shutdown(&self, net: &Net) -> Result<()> {
        let call = net.replace.apply(&self.recording.shutdown);
        self.script("shutdown", &call)?;
        let known = self.daemon.cli_output(&["list", "--quiet"])?;
        if known.lines().any(|vm| vm == VM) {
            bail!("after the shutdown there is still {VM}");
        }
        say("the guest is gone");
        Ok(())
    }

    /// Runs a driver script as oned's ssh session does: input through a pipe, no terminal.
    fn script(&self, name: &str, call: &Call) -> Result<String> {
        let path = root().join(SCRIPTS).join(name);
        say(&format!("$ {SCRIPTS}/{name} '{}' < recorded XML", call.args.join("' '")));
        let mut command = program(&path);
        command
            .args(&call.args)
            .env("OCIVISOR_BIN", self.daemon.places.programs.join("ocivisor"))
            .env("OCIVISOR_SOCKET", self.daemon.socket())
            .env("OCIVISOR_OPENNEBULA_CONFIG", self.daemon.opennebula_config())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {}", path.display()))?;
        let mut stdin = child.stdin.take().context("the script has no input")?;
        stdin.write_all(call.stdin.as_bytes()).context("write to the script")?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        if !answer.is_empty() {
            say(&format!("answer on standard output: {}", answer.trim_end()));
        }
        if !output.status.success() {
            bail!("the script {name} ended with {}", output.status);
        }
        Ok(answer)
    }

    /// List and details.
    ///
    /// # Errors
    /// They cannot be had.
    pub fn show(&self) -> Result<()> {
        self.daemon.cli(&["list"])?;
        self.daemon.cli(&["info", VM])
    }

    /// What it wrote to its console.
    pub fn show_log(&self) {
        if let Err(error) = self.daemon.cli(&["logs", "--lines", "30", VM]) {
            say(&format!("({error:#})"));
        }
    }

    /// Runs commands in it. An image of one's own may lack any of them.
    ///
    /// # Errors
    /// None of them runs: then it is not the image.
    pub fn look_inside(&self) -> Result<()> {
        let commands: [&[&str]; 6] = [
            &["hostname"],
            &["cat", "/etc/resolv.conf"],
            &["cat", "/proc/self/uid_map"],
            &["ip", "-brief", "address"],
            &["df", "-h", "/"],
            &["ps", "-ef"],
        ];
        let mut ran = 0;
        for command in commands {
            match self.daemon.cli(&[&["exec", VM, "--"], command].concat()) {
                Ok(()) => ran += 1,
                Err(error) => say(&format!("({error:#})")),
            }
        }
        if ran == 0 {
            bail!("no command runs in the guest");
        }
        Ok(())
    }
}

/// A port of the loopback that nobody uses now.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// A deployment without the user's `OCI` section, which names the command.
fn without_command(xml: &str) -> Result<String> {
    let (before, rest) = xml.split_once("<OCI>").context("the recording has no command")?;
    let (_, after) = rest.split_once("</OCI>").context("the recording has no command")?;
    Ok(format!("{before}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_command_can_be_left_out() {
        let recording = Recording::load().unwrap();
        let without = without_command(&recording.deploy.stdin).unwrap();
        assert!(!without.contains("sleep 1000") && without.contains("<HYPERVISOR>"));
    }
}
