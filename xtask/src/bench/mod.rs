//! How long a guest takes, beside the floor and beside others, in one run on one machine.
//!
//! Every round measures each contender once, in turn, so that what disturbs the machine disturbs
//! all. Each runs the same static program in a root filesystem that holds nothing else; the program
//! says by the wall clock when it began. What each contender does and leaves out is in
//! `docs/performance.md`.

mod container;
mod docker;
mod floor;
mod ours;
mod stats;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::binaries::{What, build};
use crate::cmd::{installed, program, run as run_command, say, step, write};
use crate::packages::{FOR_QUICKSTART, TO_BUILD, ensure};
use crate::quickstart::Places;
use crate::quickstart::undo::Undo;

use stats::Figures;

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Only these contenders beside ours: floor, runc, crun, docker
    contender: Vec<String>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 50)]
    rounds: u32,
    /// Measure the programs of a debug build, to try the bench itself
    #[arg(long)]
    debug_build: bool,
}

/// One life of a guest.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    /// From the request to the guest's first instruction.
    pub first: Duration,
    /// From the request to its answer.
    pub made: Duration,
    /// From the request to delete to its answer.
    pub gone: Duration,
}

/// Who makes guests.
pub trait Contender {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Makes a guest, waits for its word, takes it away.
    ///
    /// # Errors
    /// It does not work here.
    fn live(&mut self, round: u32) -> Result<Life>;

    /// Memory of its own processes for one more idle guest, in bytes; `None` if it has none.
    ///
    /// # Errors
    /// It cannot be told.
    fn memory(&mut self) -> Result<Option<u64>> {
        Ok(None)
    }
}

/// Runs it.
///
/// # Errors
/// Ours, or a contender that was asked for by name, does not work.
pub fn run(options: &Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("guests need namespaces, mounts and control groups: run the bench as root");
    }
    ensure(&[&TO_BUILD, &FOR_QUICKSTART])?;
    let what = if options.debug_build { What::Tried } else { What::Optimised };
    let programs = build(what)?;
    let places = Places::new("bench", programs)?;
    let mut undo = Undo::new()?;
    let figures = measure(options, &places, &mut undo);
    step("clearing away");
    let cleared = undo.run();
    let figures = figures?;
    cleared?;
    say(&format!("\n{}", figures.table()));
    if let Some(path) = &options.json {
        write(path, &figures.json())?;
    }
    say("OK: measured");
    Ok(())
}

fn measure(options: &Options, places: &Places, undo: &mut Undo) -> Result<Figures> {
    step("root filesystem");
    let rootfs = rootfs(places)?;
    step("contenders");
    let wanted = |name: &str| {
        options.contender.is_empty() || options.contender.iter().any(|own| own == name)
    };
    let mut ours = ours::Ours::start(places, &rootfs, undo)?;
    let mut others: Vec<Box<dyn Contender>> = Vec::new();
    if wanted("floor") {
        others.push(Box::new(floor::Floor::new(places, &rootfs, undo)?));
    }
    for name in ["runc", "crun"] {
        if wanted(name) && installed(name) {
            others.push(Box::new(container::Container::new(name, places, &rootfs, undo)?));
        }
    }
    if wanted("docker") && installed("dockerd") {
        others.push(Box::new(docker::Docker::start(places, &rootfs, undo)?));
    }
    for name in ["floor", "runc", "crun", "docker"] {
        if wanted(name) && !others.iter().any(|other| other.name() == name) {
            say(&format!("left out: {name} is not installed"));
        }
    }
    let mut figures = Figures::default();
    tell_first_round(&mut others, options)?;
    step(&format!("{} rounds", options.rounds));
    for round in 1..=options.rounds {
        undo.check()?;
        figures.life("ours", ours.live(round)?);
        for other in &mut others {
            let life = other.live(round);
            figures.life(other.name(), life.with_context(|| other.name())?);
        }
        figures.script(ours.script(round)?);
    }
    if let Some(bytes) = ours.memory()? {
        figures.memory("ours", bytes);
    }
    for other in &mut others {
        if let Some(bytes) = other.memory()? {
            figures.memory(other.name(), bytes);
        }
    }
    Ok(figures)
}

/// A contender that does not work here is left out with its reason, unless it was asked for.
fn tell_first_round(others: &mut Vec<Box<dyn Contender>>, options: &Options) -> Result<()> {
    let mut failed = None;
    others.retain_mut(|other| match other.live(0) {
        Ok(_) => true,
        Err(error) => {
            say(&format!("left out: {} does not work here: {error:#}", other.name()));
            if options.contender.iter().any(|name| name == other.name()) {
                failed = Some(error);
            }
            false
        }
    });
    failed.map_or(Ok(()), Err)
}

/// A directory and a tarball with the program and the mount points that every runtime wants.
fn rootfs(places: &Places) -> Result<PathBuf> {
    let dir = places.cache.join("rootfs");
    for sub in ["proc", "sys", "dev", "etc", "tmp", "run"] {
        std::fs::create_dir_all(dir.join(sub)).with_context(|| format!("make {sub}"))?;
    }
    std::fs::copy(places.programs.join("first"), dir.join("first")).context("copy the guest")?;
    let tar = tarball(&dir);
    let mut command = program("tar");
    command.args(["--owner=0", "--group=0", "--numeric-owner", "-C"]).arg(&dir);
    run_command(command.arg("-cf").arg(&tar).arg("."))?;
    Ok(dir)
}

/// The tarball beside a root filesystem.
fn tarball(rootfs: &Path) -> PathBuf {
    rootfs.with_extension("tar")
}

/// When the guest began, of what it wrote.
fn stamp(said: &str) -> Option<Duration> {
    let (_, rest) = said.split_once("first ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let complete = rest.len() > digits.len();
    digits.parse().ok().filter(|_| complete).map(Duration::from_nanos)
}

/// The wall clock, as the guest reads it.
fn wall() -> Duration {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
