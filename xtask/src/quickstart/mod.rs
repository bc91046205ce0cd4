//! From a checkout to a running guest, as OpenNebula makes one, beside whatever else runs here.
//!
//! ```text
//!   build ─► daemon on directories of its own ─► image (cached) ─► disk ─► bridge
//!         ─► the driver script `deploy` with the arguments and the input that oned sent
//!         ─► look at the guest ─► `shutdown` by its script ─► everything away again
//! ```
//!
//! The deployment is a recording (tests/fixtures/opennebula). Only what belongs to the recorded
//! site is replaced, and that is told: the directory of the datastores, the bridge, and the network
//! if this host uses it already. Whatever goes wrong, Ctrl-C included, is cleared away ([`undo`]).

pub mod daemon;
mod guest;
pub mod image;
mod network;
mod recording;
pub mod undo;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::binaries::{What, build};
use crate::cmd::{root, say, step};
use crate::packages::{FOR_QUICKSTART, TO_BUILD, ensure};

use daemon::Daemon;
use guest::Guest;
use recording::Recording;
use undo::Undo;

/// Options of `quickstart`.
#[derive(Debug, Args)]
pub struct Options {
    /// An image instead of Debian: OCI layout or archive, docker-archive, or root filesystem tarball
    #[arg(long, value_name = "PATH")]
    image: Option<String>,
    /// Leave guest and daemon running, and tell how to use them
    #[arg(long)]
    keep: bool,
    /// Boot the image's own init instead of the recorded command
    #[arg(long)]
    system: bool,
}

/// Where everything of a quickstart is.
#[derive(Debug, Clone)]
pub struct Places {
    /// Kept between runs: images and the daemon's state.
    pub cache: PathBuf,
    /// State directory of the daemon.
    pub state: PathBuf,
    /// Run directory of the daemon; short, because Unix sockets have short names.
    pub run: PathBuf,
    /// The daemon's log.
    pub log: PathBuf,
    /// What OpenNebula calls DATASTORE_LOCATION.
    pub datastores: PathBuf,
    /// The programs.
    pub programs: PathBuf,
}

impl Places {
    /// The places of a daemon of that name.
    ///
    /// # Errors
    /// They cannot be made.
    pub fn new(name: &str, programs: PathBuf) -> Result<Self> {
        let cache = root().join(".cache").join(name);
        std::fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
        Ok(Self {
            state: cache.join("state"),
            run: format!("/run/ocivisor-{name}").into(),
            log: cache.join("ocivisord.log"),
            datastores: cache.join("datastores"),
            programs,
            cache,
        })
    }
}

/// Runs it.
///
/// # Errors
/// Something failed; everything is cleared away.
pub fn run(options: &Options) -> Result<()> {
    let began = Instant::now();
    if !rustix::process::geteuid().is_root() {
        bail!("guests need namespaces, mounts and control groups: run the quickstart as root");
    }
    ensure(&[&TO_BUILD, &FOR_QUICKSTART])?;
    let programs = build(What::Programs)?;
    let places = Places::new("quickstart", programs)?;
    let mut undo = Undo::new()?;
    let result = story(options, &places, &mut undo);
    if result.is_ok() && options.keep {
        undo.forget();
        kept(&places);
    } else {
        step("clearing away");
        if result.is_err() {
            say(&format!("the daemon's log is {}", places.log.display()));
        }
        let cleared = undo.run();
        result?;
        cleared?;
    }
    let seconds = began.elapsed().as_secs_f32();
    say(&format!("\nOK: an OpenNebula deployment became a guest ({seconds:.1} s in all)"));
    Ok(())
}

fn story(options: &Options, places: &Places, undo: &mut Undo) -> Result<()> {
    let tarball = match &options.image {
        Some(source) => source.clone(),
        None => image::tarball(&places.cache, &image::DEBIAN)?.to_string_lossy().into_owned(),
    };
    undo.check()?;
    step("starting ocivisord");
    let daemon = Daemon::start(places, "", undo)?;
    let guest = Guest::new(&daemon, Recording::load()?);
    guest.clear_leftovers()?;
    undo.check()?;
    step("image and disk");
    let name = image::import(&daemon, &tarball, options.image.is_some())?;
    guest.make_disk(&name, undo)?;
    undo.check()?;
    step("network");
    let net = network::make(&guest.recorded_network()?, undo)?;
    step("deploying as oned does");
    let deployed = guest.deploy(&net, options.system, undo)?;
    undo.check()?;
    step("the guest, as the host sees it");
    guest.show()?;
    step("the guest, as it sees itself");
    guest.look_inside().inspect_err(|_| guest.show_log())?;
    step("the guest, over the bridge");
    network::ping(&net)?;
    undo.check()?;
    if !options.keep {
        step("shutting down as oned does");
        guest.shutdown(&net)?;
    }
    say(&format!("\ndeploy took {} ms", deployed.as_millis()));
    places_told(places);
    Ok(())
}

fn places_told(places: &Places) {
    let line = |what: &str, path: &PathBuf| say(&format!("  {what:<18} {}", path.display()));
    say("where everything was:");
    line("programs", &places.programs);
    line("daemon's state", &places.state);
    line("daemon's log", &places.log);
    line("VM's directory", &places.datastores);
    line("images, config", &places.cache);
}

fn kept(places: &Places) {
    let cli = places.programs.join("ocivisor");
    let cli = cli.display();
    let socket = places.run.join("ocivisord.sock");
    let vm = recording::VM;
    say(&format!(
        "\nguest and daemon are left running:\n\
         \x20 export OCIVISOR_SOCKET={}\n\
         \x20 {cli} console {vm}        its console; Ctrl-] leaves it\n\
         \x20 {cli} info {vm}           where its VNC console is, among others\n\
         \x20 {cli} exec -it {vm} sh    a shell in it\n\
         \x20 {cli} destroy --forget {vm}\n\
         to end all of it: cargo xtask quickstart (it clears the old one first)",
        socket.display()
    ));
}
