//! The way of an image from a registry to a VM, by our drivers and by OpenNebula's own way of containers:
//! `cargo xtask bench opennebula`.
//!
//! One image of one gzip layer, made from a Debian root, in a registry on loopback. Every round each way registers it
//! in an empty datastore, deploys a VM on a host that never saw it, a second beside it, and after both are gone a third
//! on the host that knows it; each round begins with another way. All VMs have disks of [`DISK_MB`] and a context.
//!
//! | | ours | docker, tarball |
//! |---|---|---|
//! | called as oned calls | scripts `stat`, `cp`, `clone`, `context`, `deploy` | the tools that its scripts run ([`stock`]) |
//! | front-end to host | a plain pipe | a plain pipe |
//! | what deploy ends with | a guest that runs | the disk is mounted |
//! | digests | checked on the front-end and on the host | none |
//! | on the disk when it answers | yes | no |
//!
//! Nobody pays for ssh's connections and cipher: `ssh` is the program `relay`, which counts.
//!
//! `register` is the time until all is on the front-end's disk: a `sync -f` follows, for ours too. `register-answer` is
//! the time until the last script has ended, with which the others promise nothing. `-written` is what the kernel wrote to
//! the device of that file system, journal included; `-moved` what went through the pipe to the host.

mod ours;
mod site;
mod stock;

use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use self::site::Site;
use super::Options;
use super::image::Inputs;
use super::stats::{Figures, milliseconds};
use crate::binaries::{What, build};
use crate::cmd::{root, say, step, write};
use crate::packages::{FOR_OPENNEBULA_BENCH, FOR_QUICKSTART, TO_BUILD, ensure};
use crate::quickstart::Places;
use crate::quickstart::undo::Undo;

/// OpenNebula's own way, up to 6.8 and since 6.10.
const PEERS: [&str; 2] = ["docker", "tarball"];

const FIGURES: [(&str, &str); 13] = [
    ("stat", "ms"),
    ("register", "ms"),
    ("register-answer", "ms"),
    ("register-written", "MiB"),
    ("deploy-new", "ms"),
    ("deploy-new-moved", "MiB"),
    ("deploy-new-written", "MiB"),
    ("deploy-second", "ms"),
    ("deploy-second-moved", "MiB"),
    ("deploy-second-written", "MiB"),
    ("deploy-known", "ms"),
    ("deploy-known-moved", "MiB"),
    ("deploy-known-written", "MiB"),
];

/// One takes minutes.
const MAX_ROUNDS: u32 = 5;

/// Size of each VM's root disk, in MB as oned counts.
const DISK_MB: u32 = 10 * 1024;

/// Name of the context disk in a VM's directory.
const CONTEXT_DISK: &str = "disk.1";

/// Runs it.
///
/// # Errors
/// Ours does not work, or a way that was named.
pub fn run(options: &Options) -> Result<()> {
    let wanted = &options.names[1..];
    if let Some(other) = wanted.iter().find(|name| !PEERS.contains(&name.as_str())) {
        bail!("{other} is no way ({})", PEERS.join(", "));
    }
    ensure(&[&TO_BUILD, &FOR_QUICKSTART, &FOR_OPENNEBULA_BENCH])?;
    let what = if options.debug_build { What::Tried } else { What::Optimised };
    let places = Places::new("bench-opennebula", build(what)?)?;
    let mut undo = Undo::new()?;
    let table = measure(options, places, &mut undo);
    step("clearing away");
    let cleared = undo.run();
    let table = table?;
    // What was measured is of use even where something is left.
    say(&format!("\n{}", table.table()));
    if let Some(path) = &options.json {
        write(path, &table.json())?;
    }
    say("OK: measured");
    cleared
}

/// Who brings an image from a registry to VMs.
trait Way {
    /// Into the datastore, from the first call to the answer.
    fn register(&mut self) -> Result<()>;

    /// A VM on the host, from the first call to the answer.
    fn deploy(&mut self, vm: u32) -> Result<()>;

    /// Nothing is left of the VM.
    fn undeploy(&mut self, vm: u32) -> Result<()>;

    /// Nothing is left of the image, in the datastore and on the host.
    fn forget(&mut self) -> Result<()>;

    /// Asks for the image's size, as oned does while a user waits, before it is registered. None if that way knows no
    /// sizes before it has the image.
    fn stat(&mut self) -> Option<Result<()>> {
        None
    }
}

fn measure(options: &Options, mut places: Places, undo: &mut Undo) -> Result<Figures> {
    let inputs = Inputs::make(&root().join(".cache/bench-image"))?;
    step("front-end, host, registry");
    let site = Rc::new(Site::make(&places, &inputs.layout, undo)?);
    // Ours has all that is on hosts there.
    places.state = site.host.dir.join("state");
    places.datastores = site.host.dir.join("datastores");
    let mut table = Figures::of_others(&FIGURES, &PEERS);
    let ours = ours::Ours::start(&places, &site, undo)?;
    let mut all: Vec<(&'static str, Box<dyn Way>)> = vec![("ours", Box::new(ours))];
    let named = &options.names[1..];
    for name in PEERS {
        if !named.is_empty() && !named.iter().any(|own| own == name) {
            continue;
        }
        match peer(name, &site, undo) {
            Ok(made) => all.push((name, made)),
            Err(error) if !named.is_empty() => return Err(error),
            Err(error) => {
                say(&format!("left out: {name}: {error:#}"));
                table.left_out(name, format!("{error:#}"));
            }
        }
    }
    let rounds = options.rounds.min(MAX_ROUNDS);
    step(&format!("{rounds} rounds"));
    for round in 0..rounds as usize {
        for turn in 0..all.len() {
            undo.check()?;
            let next = (turn + round) % all.len();
            let (name, way) = &mut all[next];
            once(name, way.as_mut(), &site, &mut table).with_context(|| (*name).to_owned())?;
        }
    }
    Ok(table)
}

fn peer(name: &str, site: &Rc<Site>, undo: &mut Undo) -> Result<Box<dyn Way>> {
    let made = match name {
        "docker" => stock::Stock::with_docker(site, undo)?,
        _ => stock::Stock::with_tarball(site)?,
    };
    Ok(Box::new(made))
}

/// One image's life, and three VMs'.
fn once(name: &'static str, way: &mut dyn Way, site: &Site, table: &mut Figures) -> Result<()> {
    // What others left unwritten is not to be this one's.
    site.sync()?;
    let began = Instant::now();
    if let Some(answer) = way.stat() {
        answer?;
        table.add("stat", name, milliseconds(began.elapsed()));
    }
    let (began, before) = (Instant::now(), site.front.written()?);
    way.register()?;
    table.add("register-answer", name, milliseconds(began.elapsed()));
    site.front.sync()?;
    table.add("register", name, milliseconds(began.elapsed()));
    table.add("register-written", name, mebibytes(site.front.written()? - before));
    let mut deploy = |way: &mut dyn Way, vm, figures: [&'static str; 3]| -> Result<()> {
        site.sync()?;
        site.begin_counting()?;
        let (began, before) = (Instant::now(), site.host.written()?);
        way.deploy(vm)?;
        table.add(figures[0], name, milliseconds(began.elapsed()));
        site.host.sync()?;
        table.add(figures[1], name, mebibytes(site.counted()?));
        table.add(figures[2], name, mebibytes(site.host.written()? - before));
        Ok(())
    };
    deploy(way, 1, ["deploy-new", "deploy-new-moved", "deploy-new-written"])?;
    deploy(way, 2, ["deploy-second", "deploy-second-moved", "deploy-second-written"])?;
    way.undeploy(1)?;
    way.undeploy(2)?;
    deploy(way, 3, ["deploy-known", "deploy-known-moved", "deploy-known-written"])?;
    way.undeploy(3)?;
    way.forget()
}

/// Far below 2^52 bytes.
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A VM's directory on the front-end, with the variables that oned puts there for the context disk.
fn context(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let text =
        "# Context variables generated by OpenNebula\nDISK_ID='1'\nHOSTNAME='web1'\nTARGET='sdb'\n";
    write(&dir.join("context.sh"), text)
}
