//! runc and crun by their command line: a bundle on the plain root filesystem, user namespace with
//! ids of its own, limits; no overlay, no disk, no interface, which is in their favour.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Contender, Life, stamp, wall};
use crate::cmd::{program, write};
use crate::quickstart::Places;
use crate::quickstart::undo::Undo;

/// A runtime.
#[derive(Debug)]
pub struct Container {
    name: &'static str,
    bundle: PathBuf,
    state: PathBuf,
}

impl Container {
    /// With a bundle of its own.
    ///
    /// # Errors
    /// The bundle cannot be made.
    pub fn new(
        name: &'static str,
        places: &Places,
        rootfs: &Path,
        undo: &mut Undo,
    ) -> Result<Self> {
        let bundle = places.cache.join(name);
        let left = bundle.clone();
        undo.add(format!("remove the bundle of {name}"), move || {
            Ok(std::fs::remove_dir_all(left)?)
        });
        std::fs::create_dir_all(&bundle).with_context(|| format!("make {}", bundle.display()))?;
        let made = Self { name, state: bundle.join("state"), bundle };
        // runc's own default is the base, so that nothing it wants is missing.
        let spec = made.command(&["spec"]).output().context("make a specification")?;
        if !spec.status.success() {
            bail!("{name} spec: {}", String::from_utf8_lossy(&spec.stderr).trim());
        }
        let [left, state] = [made.bundle.clone(), made.state.clone()];
        undo.add(format!("delete the containers of {name}"), move || {
            delete_all(&Self { name, bundle: left, state })
        });
        let path = made.bundle.join("config.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        adapt(&mut config, rootfs);
        write(&path, &config.to_string())?;
        Ok(made)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program(self.name);
        command.arg("--root").arg(&self.state).args(args).current_dir(&self.bundle);
        // Ctrl-C is for us: a container is whole or not there.
        command.process_group(0);
        command
    }
}

/// Deletes what a failure left.
fn delete_all(container: &Container) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(&container.state) else {
        return Ok(());
    };
    for entry in entries {
        let id = entry?.file_name();
        let gone = container.command(&["delete", "--force", &id.to_string_lossy()]).output()?;
        if !gone.status.success() {
            bail!("delete: {}", String::from_utf8_lossy(&gone.stderr).trim());
        }
    }
    Ok(())
}

fn adapt(config: &mut Value, rootfs: &Path) {
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/first"]);
    config["root"] = json!({"path": rootfs, "readonly": true});
    let map = json!([{"containerID": 0, "hostID": 1_u32 << 30, "size": 65_536}]);
    let linux = &mut config["linux"];
    linux["uidMappings"] = map.clone();
    linux["gidMappings"] = map;
    linux["resources"]["memory"] = json!({"limit": 256_u64 << 20});
    linux["resources"]["cpu"] = json!({"quota": 100_000, "period": 100_000});
    linux["resources"]["pids"] = json!({"limit": 4096});
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        let has = namespaces.iter().any(|n| n["type"] == "user");
        if !has {
            namespaces.push(json!({"type": "user"}));
        }
    }
}

impl Contender for Container {
    fn name(&self) -> &'static str {
        self.name
    }

    fn live(&mut self, round: u32) -> Result<Life> {
        let id = format!("ocvbench{round}");
        let began = Instant::now();
        let start = wall();
        let mut child = self
            .command(&["run", "--detach", &id])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let status = child.wait()?;
        let made = began.elapsed();
        let ending = Instant::now();
        let gone = self.command(&["delete", "--force", &id]).output()?;
        let took = ending.elapsed();
        let Some(at) = stamp(&line) else {
            let mut why = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                std::io::Read::read_to_string(&mut stderr, &mut why)?;
            }
            bail!("run: {status}: {}", why.trim());
        };
        if !gone.status.success() {
            bail!("delete: {}", String::from_utf8_lossy(&gone.stderr).trim());
        }
        Ok(Life { first: at.saturating_sub(start), made, gone: took })
    }
}
