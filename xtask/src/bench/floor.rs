//! The floor: `floor` in `src/bin/`, one round at a time.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Contender, Life};
use crate::cmd::{output, program, run};
use crate::quickstart::Places;
use crate::quickstart::undo::Undo;

const BRIDGE: &str = "ocvbench0";

/// System calls alone.
#[derive(Debug)]
pub struct Floor {
    program: PathBuf,
    rootfs: PathBuf,
    work: PathBuf,
    bridge: String,
}

impl Floor {
    /// With a bridge of its own.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(places: &Places, rootfs: &Path, undo: &mut Undo) -> Result<Self> {
        run(program("ip").args(["link", "add", BRIDGE, "type", "bridge"]))?;
        undo.add(
            format!("remove {BRIDGE}"),
            || run(program("ip").args(["link", "delete", BRIDGE])),
        );
        run(program("ip").args(["link", "set", BRIDGE, "up"]))?;
        let path = format!("/sys/class/net/{BRIDGE}/ifindex");
        let index = std::fs::read_to_string(path).context("index of the bridge")?;
        let work = places.cache.join("floor");
        let left = work.clone();
        undo.add("remove the floor's directories", move || Ok(std::fs::remove_dir_all(left)?));
        Ok(Self {
            program: places.programs.join("floor"),
            rootfs: rootfs.to_owned(),
            work,
            bridge: index.trim().to_owned(),
        })
    }
}

impl Contender for Floor {
    fn name(&self) -> &'static str {
        "floor"
    }

    fn live(&mut self, _round: u32) -> Result<Life> {
        let mut command = program(&self.program);
        command.arg(&self.rootfs).arg(&self.work).args([&self.bridge, "1"]);
        // Ctrl-C is for us: it takes away what it made.
        command.process_group(0);
        let said = output(&mut command)?;
        let mut numbers = said.split_whitespace().map(|n| n.parse().map(Duration::from_nanos));
        let mut next = || numbers.next().context("the floor said too little")?.context("number");
        Ok(Life { first: next()?, made: next()?, gone: next()? })
    }
}
