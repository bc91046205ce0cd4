//! How long a guest takes, beside the floor and beside others, in one run on one machine.
//!
//! Every round measures each contender once, so that what disturbs the machine disturbs all; each
//! round begins with another one, because the kernel ends namespaces some time after their last
//! process, and whoever comes next pays for that. Each runs the same static program in a root filesystem that holds nothing else; the program
//! says by the wall clock when it began. What each contender does and leaves out is in
//! `docs/performance.md`.

mod agent;
mod commit;
mod container;
mod crowd;
mod docker;
mod floor;
mod image;
mod opennebula;
mod ours;
mod stats;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::binaries::{What, build};
use crate::cmd::{installed, program, run as run_command, say, step, write};
use crate::packages::{FOR_BENCH, FOR_QUICKSTART, Package, TO_BUILD, ensure};
use crate::quickstart::Places;
use crate::quickstart::undo::Undo;

use stats::{FIGURES, Figures, PEERS};

/// How many guests there are while memory and questions are measured.
const GUESTS: u32 = 10;

/// How many guests there are while their statistics are asked for.
const MANY_GUESTS: u32 = 230;

/// Options of `bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Only these figures (deploy, deploy-answer, delete, driver-script, memory, list, info,
    /// stats, stats-cpu), or only these contenders beside ours (floor, runc, crun, docker). `image`, with or without
    /// contenders (skopeo, podman, umoci, docker, tar, buildah) or one part (import, commit),
    /// measures images instead of guests; `crowd` measures 230 guests at once, 30 of them with systemd; `agent` a pass of
    /// the monitoring agent over 1,000 VMs;
    /// `opennebula`, with or without one way (docker, tarball), measures the way of an image from a registry to a VM
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Write the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 50)]
    rounds: u32,
    /// Install the contenders that are missing (runc, crun, docker.io)
    #[arg(long)]
    install: bool,
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

    /// Memory of what stays resident beside each of [`GUESTS`] idle guests, in bytes; nothing if
    /// nothing does.
    ///
    /// # Errors
    /// It cannot be told.
    fn memory(&mut self) -> Result<Vec<u64>> {
        Ok(Vec::new())
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
    if options.names.first().is_some_and(|name| name == "image") {
        return image::run(options);
    }
    if options.names.first().is_some_and(|name| name == "opennebula") {
        return opennebula::run(options);
    }
    if options.names == ["crowd"] || options.names == ["agent"] {
        let what = if options.debug_build { What::Tried } else { What::Optimised };
        let run = if options.names == ["crowd"] { crowd::run } else { agent::run };
        return run(build(what)?, options.json.as_deref());
    }
    let names = Names::new(&options.names)?;
    let contenders: &[Package] = if options.install { &FOR_BENCH } else { &[] };
    ensure(&[&TO_BUILD, &FOR_QUICKSTART, contenders])?;
    let what = if options.debug_build { What::Tried } else { What::Optimised };
    let programs = build(what)?;
    let places = Places::new("bench", programs)?;
    let mut undo = Undo::new()?;
    let figures = measure(options, &names, &places, &mut undo);
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

/// What was asked for by name.
#[derive(Debug)]
struct Names {
    figures: Vec<String>,
    contenders: Vec<String>,
}

impl Names {
    fn new(names: &[String]) -> Result<Self> {
        let is_figure = |name: &String| FIGURES.iter().any(|(figure, _)| figure == name);
        let (figures, contenders): (Vec<String>, Vec<String>) =
            names.iter().cloned().partition(is_figure);
        if let Some(other) = contenders.iter().find(|name| !PEERS.contains(&name.as_str())) {
            let figures: Vec<&str> = FIGURES.iter().map(|(figure, _)| *figure).collect();
            bail!(
                "{other} is no figure ({}) and no contender ({})",
                figures.join(", "),
                PEERS.join(", ")
            );
        }
        Ok(Self { figures, contenders })
    }

    fn figure(&self, name: &str) -> bool {
        self.figures.is_empty() || self.figures.iter().any(|own| own == name)
    }

    fn contender(&self, name: &str) -> bool {
        self.contenders.is_empty() || self.asked(name)
    }

    fn asked(&self, name: &str) -> bool {
        self.contenders.iter().any(|own| own == name)
    }

    /// Whether guests are to come and go.
    fn lives(&self) -> bool {
        ["deploy", "deploy-answer", "delete"].into_iter().any(|name| self.figure(name))
    }
}

fn measure(options: &Options, names: &Names, places: &Places, undo: &mut Undo) -> Result<Figures> {
    step("root filesystem");
    let rootfs = rootfs(places)?;
    step("contenders");
    let mut figures = Figures::new(&names.figures);
    let mut ours = ours::Ours::start(places, &rootfs, undo)?;
    let mut others: Vec<Box<dyn Contender>> = Vec::new();
    for name in PEERS {
        if !names.contender(name) {
            continue;
        }
        match contender(name, places, &rootfs, undo) {
            Ok(other) => others.push(other),
            Err(error) if names.asked(name) => return Err(error),
            Err(error) => {
                let why = format!("{error:#}");
                say(&format!("left out: {name}: {why}"));
                figures.left_out(name, why);
            }
        }
        undo.check()?;
    }
    ours.live(0)?;
    ours.script()?;
    let rounds = if names.lives() { options.rounds } else { 0 };
    let scripts = if names.figure("driver-script") { options.rounds } else { 0 };
    step(&format!("{} rounds", rounds.max(scripts)));
    for round in 1..=rounds.max(scripts) {
        if round <= scripts {
            undo.check()?;
            figures.script(ours.script()?);
        }
        let turns = if round <= rounds { 1 + others.len() } else { 0 };
        for turn in 0..turns {
            undo.check()?;
            let who: &mut dyn Contender = match (turn + round as usize) % turns {
                0 => &mut ours,
                other => others[other - 1].as_mut(),
            };
            let life = who.live(round);
            figures.life(who.name(), life.with_context(|| who.name())?);
        }
    }
    if ["memory", "list", "info"].into_iter().any(|name| names.figure(name)) {
        step(&format!("{GUESTS} guests"));
        figures.crowd(&ours.crowd()?);
    }
    if names.figure("stats") || names.figure("stats-cpu") {
        step(&format!("{MANY_GUESTS} guests"));
        figures.passes(&ours.passes(undo)?);
    }
    if names.figure("memory") {
        for other in &mut others {
            undo.check()?;
            figures.memory(other.name(), &other.memory()?);
        }
    }
    Ok(figures)
}

/// One that made a guest here.
fn contender(
    name: &'static str,
    places: &Places,
    rootfs: &Path,
    undo: &mut Undo,
) -> Result<Box<dyn Contender>> {
    let needs = if name == "docker" { "dockerd" } else { name };
    if name != "floor" && !installed(needs) {
        bail!("not installed; --install does it");
    }
    let mut made: Box<dyn Contender> = match name {
        "floor" => Box::new(floor::Floor::new(places, rootfs, undo)?),
        "docker" => Box::new(docker::Docker::start(places, rootfs, undo)?),
        _ => Box::new(container::Container::new(name, places, rootfs, undo)?),
    };
    made.live(0).with_context(|| format!("{name} does not work here"))?;
    Ok(made)
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
