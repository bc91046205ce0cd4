//! How long an image takes to be there, beside others: `cargo xtask bench image`.
//!
//! One gzip layer of about 250 MB, made from a Debian root, in an OCI layout. Every round imports it once with
//! each, into an empty place on the same file system, each beginning with another one. The file system is an ext4 of
//! the bench's own, with its defaults, on a loop device: on one without a journal ext4 does not reuse an inode for
//! minutes after its deletion, and looks for others one by one, so that each round would be slower for what the
//! one before removed. What each does:
//!
//! | who | keeps the blob | checks digests | layer usable by many | on the disk when it answers |
//! |---|---|---|---|---|
//! | ours | yes | both | yes | yes |
//! | skopeo to containers-storage, podman load | no (diff data to rebuild it) | both | yes | no |
//! | docker load | no | diff id | yes | no |
//! | umoci unpack | it is there | both | no, one copy | no |
//! | GNU tar | it is there | none | no | no |
//!
//! `image-import` is the time until all is on the disk: a `sync -f` follows each of the others, and ours for fairness.
//! `image-import-answer` is the time until the program has ended, with which the others promise nothing.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::stats::{Figures, milliseconds};
use super::{Options, commit};
use crate::binaries::{What, build, example};
use crate::cmd::{installed, output, program, run as run_command, say, step, wait_until, write};
use crate::packages::{FOR_IMAGE_BENCH, FOR_QUICKSTART, Package, TO_BUILD, ensure};
use crate::quickstart::Places;
use crate::quickstart::daemon::Daemon;
use crate::quickstart::undo::Undo;

/// What the root holds beside Debian's standard system: with these its tar.gz has about 250 MB.
const PACKAGES: &str = "build-essential,git,vim,python3-dev,gdb,perl-doc";
const SUITE: &str = "bookworm";

/// Whom ours is compared with: in imports the first five, in commits those of [`commit::PEERS`].
const PEERS: [&str; 6] = ["skopeo", "podman", "umoci", "docker", "tar", "buildah"];

const FIGURES: [(&str, &str); 6] = [
    ("image-import", "ms"),
    ("image-import-answer", "ms"),
    ("root-disk", "ms"),
    ("fsck", "ms/GiB"),
    ("image-commit", "ms"),
    ("image-commit-answer", "ms"),
];

/// What can be measured alone.
const PARTS: [&str; 2] = ["import", "commit"];

/// How often disks are made and the store is checked, per round of imports.
const DISKS: u32 = 10;

/// Runs it.
///
/// # Errors
/// Ours does not work, or a peer that was named.
pub fn run(options: &Options) -> Result<()> {
    let wanted = Wanted::new(&options.names[1..])?;
    let contenders: &[Package] = if options.install { &FOR_IMAGE_BENCH } else { &[] };
    ensure(&[&TO_BUILD, &FOR_QUICKSTART, contenders])?;
    let what = if options.debug_build { What::Tried } else { What::Optimised };
    let programs = build(what)?;
    let store = example("ocivisor-unpack", "store", what)?;
    let places = Places::new("bench-image", programs)?;
    let mut undo = Undo::new()?;
    let table = measure(options, &wanted, &places, &store, &mut undo);
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

/// What was asked for by name.
struct Wanted {
    parts: Vec<String>,
    peers: Vec<String>,
}

impl Wanted {
    fn new(names: &[String]) -> Result<Self> {
        let is_part = |name: &String| PARTS.contains(&name.as_str());
        let (parts, peers): (Vec<_>, Vec<_>) = names.iter().cloned().partition(is_part);
        if let Some(other) = peers.iter().find(|name| !PEERS.contains(&name.as_str())) {
            let (parts, peers) = (PARTS.join(", "), PEERS.join(", "));
            bail!("{other} is no part ({parts}) and no contender ({peers})");
        }
        Ok(Self { parts, peers })
    }

    fn part(&self, name: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|own| own == name)
    }

    /// Those of `all` that are to be measured.
    fn of(&self, all: &[&'static str]) -> Vec<&'static str> {
        let wanted =
            |peer: &&'static str| self.peers.is_empty() || self.peers.iter().any(|own| own == peer);
        all.iter().copied().filter(wanted).collect()
    }

    /// Whether one that does not work is left out.
    fn may_fail(&self) -> bool {
        self.peers.is_empty()
    }
}

fn measure(
    options: &Options,
    wanted: &Wanted,
    places: &Places,
    store: &Path,
    undo: &mut Undo,
) -> Result<Figures> {
    let disk = disk(&places.cache, "disk", undo)?;
    let mut table = Figures::of_others(&FIGURES, &PEERS);
    let rounds = options.rounds.min(10);
    if wanted.part("commit") {
        let peers = (&wanted.of(&commit::PEERS)[..], !wanted.may_fail());
        commit::measure(rounds, peers, (places, store), &disk, undo, &mut table)?;
    }
    if wanted.part("import") {
        imports(rounds, wanted, (places, store), &disk, undo, &mut table)?;
    }
    Ok(table)
}

fn imports(
    rounds: u32,
    wanted: &Wanted,
    (places, store): (&Places, &Path),
    disk: &Path,
    undo: &mut Undo,
    table: &mut Figures,
) -> Result<()> {
    let inputs = Inputs::make(&places.cache)?;
    let place = disk.join("place");
    let unpack = places.programs.join("ocivisor-unpack");
    let ours = Ours { store: store.to_owned(), unpack };
    let mut all: Vec<(&'static str, Box<dyn Import>)> = vec![("ours", Box::new(ours))];
    for peer in wanted.of(&PEERS[..5]) {
        match contender(peer, &inputs, &place, undo) {
            Ok(made) => all.push((peer, made)),
            Err(error) if !wanted.may_fail() => return Err(error),
            Err(error) => {
                say(&format!("left out: {peer}: {error:#}"));
                table.left_out(peer, format!("{error:#}"));
            }
        }
    }
    step(&format!("{rounds} rounds of imports"));
    for round in 0..rounds as usize {
        for turn in 0..all.len() {
            undo.check()?;
            let next = (turn + round) % all.len();
            let (name, who) = &mut all[next];
            who.prepare(&place)?;
            // What others left unwritten is not to be this one's.
            sync(disk)?;
            let began = Instant::now();
            who.import(&inputs, &place).with_context(|| (*name).to_owned())?;
            table.add("image-import-answer", name, milliseconds(began.elapsed()));
            sync(disk)?;
            table.add("image-import", name, milliseconds(began.elapsed()));
            if *name == "ours" {
                let began = Instant::now();
                let unpack = places.programs.join("ocivisor-unpack");
                output(program(store).arg("fsck").arg(place.join("store")).arg(unpack))?;
                let gibibytes = inputs.bytes()? as f64 / f64::from(1 << 30);
                table.add("fsck", "ours", milliseconds(began.elapsed()) / gibibytes);
            }
            who.clear(&place)?;
        }
    }
    root_disks(rounds * DISKS, &inputs, places, undo, table)
}

/// A file system of the bench's own, mounted at that name.
pub fn disk(cache: &Path, name: &str, undo: &mut Undo) -> Result<PathBuf> {
    let (file, dir) = (cache.join(name).with_extension("ext4"), cache.join(name));
    run_command(program("truncate").args(["--size", "32G"]).arg(&file))?;
    let left = file.clone();
    undo.add("remove the bench's file system", move || Ok(std::fs::remove_file(left)?));
    run_command(program("mkfs.ext4").args(["-q", "-F"]).arg(&file))?;
    std::fs::create_dir_all(&dir).context("make a mount point")?;
    run_command(program("mount").args(["-o", "loop"]).arg(&file).arg(&dir))?;
    let mounted = dir.clone();
    undo.add("unmount the bench's file system", move || {
        run_command(program("umount").arg(mounted))
    });
    Ok(dir)
}

/// Root disks of new VMs from an image that is there, by the command that users give.
fn root_disks(
    count: u32,
    inputs: &Inputs,
    places: &Places,
    undo: &mut Undo,
    table: &mut Figures,
) -> Result<()> {
    step("root disks of 10 GiB");
    let daemon = Daemon::start(places, "", undo)?;
    daemon.cli(&["image", "import", &inputs.layout.to_string_lossy(), "bench"])?;
    let dir = places.cache.join("disks");
    let disk = dir.join("disk.0");
    for _ in 0..count {
        undo.check()?;
        std::fs::create_dir_all(&dir)?;
        let path = disk.to_string_lossy();
        let began = Instant::now();
        daemon.cli_output(&["disk", "create", "--image", "bench", "--size", "10GiB", &path])?;
        table.add("root-disk", "ours", milliseconds(began.elapsed()));
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

/// What is imported, in the forms that the contenders take.
pub struct Inputs {
    tar_gz: PathBuf,
    /// An OCI layout with one image, `bench`, of one layer.
    pub layout: PathBuf,
    /// As `docker save` writes it.
    archive: PathBuf,
}

impl Inputs {
    /// Made once and kept.
    pub fn make(cache: &Path) -> Result<Self> {
        let of = |name: &str| cache.join(name);
        let made =
            Self { tar_gz: of("root.tar.gz"), layout: of("layout"), archive: of("archive.tar") };
        if made.archive.is_file() {
            return Ok(made);
        }
        step("making a Debian root of about 250 MB (once; it is kept)");
        let tar = of("root.tar");
        let include = format!("--include={PACKAGES}");
        let without = ["--aptopt=Acquire::Languages \"none\"", "--format=tar"];
        let mut command = program("mmdebstrap");
        command.arg("--variant=standard").arg(include).args(without).arg(SUITE).arg(&tar);
        run_command(&mut command).context("make a Debian system (the net is needed for this)")?;
        run_command(program("gzip").args(["--force", "--keep", "-6"]).arg(&tar))?;
        drop(std::fs::remove_dir_all(of("bundle")));
        layout_and_archive(&tar, &made.layout, &made.archive)?;
        std::fs::remove_file(&tar).context("remove the tar")?;
        Ok(made)
    }

    /// Of the blob.
    fn bytes(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.tar_gz).context("inspect the layer")?.len())
    }
}

/// The image `bench` of one layer, in two forms. umoci makes the layout, skopeo the archive: neither is ours.
pub fn layout_and_archive(tar: &Path, layout: &Path, archive: &Path) -> Result<()> {
    drop(std::fs::remove_dir_all(layout));
    let layout = layout.to_string_lossy().into_owned();
    let image = format!("{layout}:bench");
    run_command(program("umoci").args(["init", "--layout", &layout]))?;
    run_command(program("umoci").args(["new", "--image", &image]))?;
    run_command(program("umoci").args(["raw", "add-layer", "--image", &image]).arg(tar))?;
    let to = format!("docker-archive:{}:bench:latest", archive.display());
    run_command(program("skopeo").args(["copy", &format!("oci:{image}"), &to]))
}

/// Who brings an image in, into an empty place.
trait Import {
    /// What is not part of it.
    fn prepare(&mut self, place: &Path) -> Result<()> {
        Ok(std::fs::create_dir_all(place)?)
    }

    fn import(&mut self, inputs: &Inputs, place: &Path) -> Result<()>;

    fn clear(&mut self, place: &Path) -> Result<()> {
        run_command(program("rm").args(["-rf", "--"]).arg(place))
    }
}

fn contender(
    name: &'static str,
    inputs: &Inputs,
    place: &Path,
    undo: &mut Undo,
) -> Result<Box<dyn Import>> {
    let needs = if name == "docker" { "dockerd" } else { name };
    if !installed(needs) {
        bail!("not installed; --install does it");
    }
    let mut made: Box<dyn Import> = match name {
        "docker" => Box::new(Docker::start(place, undo)?),
        _ => Box::new(Once(name)),
    };
    made.prepare(place)?;
    made.import(inputs, place).with_context(|| format!("{name} does not work here"))?;
    made.clear(place)?;
    Ok(made)
}

struct Ours {
    store: PathBuf,
    unpack: PathBuf,
}

impl Import for Ours {
    fn import(&mut self, inputs: &Inputs, place: &Path) -> Result<()> {
        let mut command = program(&self.store);
        command.arg("import").arg(place.join("store")).arg(&inputs.layout).arg(&self.unpack);
        output(&mut command).map(drop)
    }
}

/// A program that does it and ends.
struct Once(&'static str);

impl Import for Once {
    fn import(&mut self, inputs: &Inputs, place: &Path) -> Result<()> {
        let mut command = program(self.0);
        let at = place.display();
        let storage = format!("[overlay@{at}/root+{at}/run]bench:latest");
        match self.0 {
            "skopeo" => command
                .args(["copy", "--quiet", &format!("oci:{}:bench", inputs.layout.display())])
                .arg(format!("containers-storage:{storage}")),
            "podman" => command
                .args(["--root", &format!("{at}/root"), "--runroot", &format!("{at}/run")])
                .args(["--storage-driver", "overlay", "load", "--quiet", "--input"])
                .arg(&inputs.archive),
            "umoci" => command
                .args(["unpack", "--image", &format!("{}:bench", inputs.layout.display())])
                .arg(place.join("bundle")),
            _ => command.arg("-C").arg(place).arg("-xzf").arg(&inputs.tar_gz),
        };
        output(&mut command).map(drop)
    }

    fn clear(&mut self, place: &Path) -> Result<()> {
        if self.0 == "podman" || self.0 == "skopeo" {
            // It leaves its directory mounted over itself.
            let mounted = place.join("root/overlay");
            let mut unmount = program("umount");
            unmount.arg(&mounted).stderr(Stdio::null());
            drop(unmount.status());
        }
        run_command(program("rm").args(["-rf", "--"]).arg(place))
    }
}

/// A daemon of our own, on a private socket, without a network.
pub struct Docker {
    socket: String,
}

impl Docker {
    /// `place` names where its data goes, beside it.
    pub fn start(place: &Path, undo: &mut Undo) -> Result<Self> {
        let data = place.with_file_name("docker");
        let run_dir = PathBuf::from("/run/ocvbench-image");
        for dir in [&data, &run_dir] {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let socket = format!("unix://{}/docker.sock", run_dir.display());
        let log = std::fs::File::create(place.with_file_name("dockerd.log"))?;
        let mut command = program("dockerd");
        command.args(["--host", &socket, "--bridge=none", "--iptables=false", "--ip-masq=false"]);
        command.arg("--data-root").arg(&data).arg("--exec-root").arg(&run_dir);
        command.arg("--pidfile").arg(run_dir.join("pid"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.process_group(0).spawn().context("start dockerd")?;
        undo.add("stop dockerd", move || end(child, &[data, run_dir]));
        let docker = Self { socket };
        wait_until("the start of dockerd", Duration::from_secs(60), || {
            Ok(crate::cmd::succeeds(&mut docker.command(&["version"])))
        })?;
        Ok(docker)
    }

    /// The client, as it reaches that daemon.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = program("docker");
        command.args(["--host", &self.socket]).args(args);
        command
    }
}

impl Import for Docker {
    fn import(&mut self, inputs: &Inputs, _: &Path) -> Result<()> {
        output(self.command(&["load", "--quiet", "--input"]).arg(&inputs.archive)).map(drop)
    }

    fn clear(&mut self, _: &Path) -> Result<()> {
        output(&mut self.command(&["image", "rm", "--force", "bench:latest"])).map(drop)
    }
}

fn end(mut child: Child, dirs: &[PathBuf]) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    if child.try_wait()?.is_none() {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let ended = wait_until("the end of dockerd", Duration::from_secs(30), || {
            Ok(child.try_wait()?.is_some())
        });
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended?;
    }
    dirs.iter().try_for_each(|dir| Ok(std::fs::remove_dir_all(dir)?))
}

/// Until the file system holds all of it.
pub fn sync(dir: &Path) -> Result<()> {
    output(program("sync").arg("-f").arg(dir)).map(drop)
}
