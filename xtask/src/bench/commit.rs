//! How long a commit takes, beside others: part of `cargo xtask bench image`.
//!
//! 100 MB in 5000 files, in 50 directories, were written on top of a small image: for each contender into the upper
//! directory of an overlay of its own, on the bench's file system. Their content compresses to about half. Every round
//! each makes an image of them, beginning with another one, and forgets it again, so that none finds the layer of the
//! round before. What each does:
//!
//! | who | reads the files | compresses | layer ready for guests | proven by reading it again | on the disk when it answers |
//! |---|---|---|---|---|---|
//! | ours | once | gzip, as it goes to a registry | unpacked, by a confined process | yes | yes |
//! | docker commit | once | no | unpacked | no | no |
//! | podman commit, buildah commit | once | no (at push) | unpacked | no | no |
//!
//! `image-commit` is the time until all is on the disk: a `sync -f` follows each of the others, and ours for fairness.
//! `image-commit-answer` is the time until the program has ended.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::image::{Docker, layout_and_archive, sync};
use super::stats::{Figures, milliseconds};
use crate::cmd::{installed, output, program, run as run_command, say, step};
use crate::quickstart::Places;
use crate::quickstart::undo::Undo;

/// Whom ours is compared with.
pub const PEERS: [&str; 3] = ["docker", "podman", "buildah"];

const DIRECTORIES: u32 = 50;
const FILES: u32 = 5000;
const BYTES: usize = 20 * 1024;

/// Measures `rounds` commits of each of `peers` and of ours, on the file system `disk`.
///
/// # Errors
/// Ours does not work, or a peer and it `must` work.
pub fn measure(
    rounds: u32,
    (peers, must): (&[&'static str], bool),
    (places, store): (&Places, &Path),
    disk: &Path,
    undo: &mut Undo,
    table: &mut Figures,
) -> Result<()> {
    step("changes to commit: 100 MB in 5000 files");
    let place = disk.join("commit");
    std::fs::create_dir_all(&place)?;
    let inputs = Inputs::make(places, &place)?;
    let ours = Ours::begin(store, places, &inputs, &place)?;
    let mut all: Vec<(&'static str, Box<dyn Commit>)> = vec![("ours", Box::new(ours))];
    for peer in peers {
        match contender(peer, &inputs, &place, undo) {
            Ok(made) => all.push((peer, made)),
            Err(error) if must => return Err(error),
            Err(error) => {
                say(&format!("left out: {peer}: {error:#}"));
                table.left_out(peer, format!("commit: {error:#}"));
            }
        }
    }
    step(&format!("{rounds} rounds of commits"));
    for round in 0..rounds as usize {
        for turn in 0..all.len() {
            undo.check()?;
            let next = (turn + round) % all.len();
            let (name, who) = &mut all[next];
            // What others left unwritten is not to be this one's.
            sync(disk)?;
            let began = Instant::now();
            who.commit().with_context(|| (*name).to_owned())?;
            table.add("image-commit-answer", name, milliseconds(began.elapsed()));
            sync(disk)?;
            table.add("image-commit", name, milliseconds(began.elapsed()));
            who.forget().with_context(|| (*name).to_owned())?;
        }
    }
    Ok(())
}

/// What is there before.
struct Inputs {
    /// Of the image below.
    layout: PathBuf,
    archive: PathBuf,
    changes: PathBuf,
}

impl Inputs {
    fn make(places: &Places, place: &Path) -> Result<Self> {
        let tar = super::tarball(&super::rootfs(places)?);
        let of = |name: &str| place.join(name);
        let made =
            Self { layout: of("layout"), archive: of("archive.tar"), changes: of("changes") };
        layout_and_archive(&tar, &made.layout, &made.archive)?;
        let mut random = Random(1);
        for n in 0..FILES {
            let dir = made.changes.join(format!("srv/d{}", n % DIRECTORIES));
            std::fs::create_dir_all(&dir)?;
            let path = dir.join(format!("f{n}"));
            let mut file = std::fs::File::create(&path).context("make a file")?;
            file.write_all(&random.text(BYTES))?;
        }
        Ok(made)
    }

    /// Puts the changes where a container has written them.
    fn copy_to(&self, upper: &Path) -> Result<()> {
        std::fs::create_dir_all(upper)?;
        run_command(program("cp").arg("-a").arg(self.changes.join(".")).arg(upper))
    }
}

/// The same every time (xorshift, G. Marsaglia 2003).
struct Random(u64);

impl Random {
    /// Hexadecimal digits: half of each byte is known.
    fn text(&mut self, length: usize) -> Vec<u8> {
        let mut text = String::with_capacity(length + 16);
        while text.len() < length {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            text += &format!("{:016x}", self.0);
        }
        text.truncate(length);
        text.into_bytes()
    }
}

/// Who has the changes on top of the image, and makes an image of them.
trait Commit {
    fn commit(&mut self) -> Result<()>;

    /// Not part of it.
    fn forget(&mut self) -> Result<()>;
}

fn contender(
    name: &'static str,
    inputs: &Inputs,
    place: &Path,
    undo: &mut Undo,
) -> Result<Box<dyn Commit>> {
    let needs = if name == "docker" { "dockerd" } else { name };
    if !installed(needs) {
        bail!("not installed; --install does it");
    }
    let at = place.join(name);
    std::fs::create_dir_all(&at)?;
    let mut made: Box<dyn Commit> = match name {
        "docker" => Box::new(WithDocker::begin(inputs, &at.join("place"), undo)?),
        _ => Box::new(Containers::begin(name, inputs, &at, undo)?),
    };
    made.commit().with_context(|| format!("{name} does not work here"))?;
    made.forget()?;
    Ok(made)
}

struct Ours {
    store: PathBuf,
    unpack: PathBuf,
    place: PathBuf,
}

impl Ours {
    fn begin(store: &Path, places: &Places, inputs: &Inputs, place: &Path) -> Result<Self> {
        let made = Self {
            store: store.to_owned(),
            unpack: places.programs.join("ocivisor-unpack"),
            place: place.join("ours"),
        };
        inputs.copy_to(&made.place.join("upper"))?;
        let mut import = made.command("import");
        output(import.arg(&inputs.layout).arg(&made.unpack))?;
        Ok(made)
    }

    fn command(&self, what: &str) -> Command {
        let mut command = program(&self.store);
        command.arg(what).arg(self.place.join("store"));
        command
    }
}

impl Commit for Ours {
    fn commit(&mut self) -> Result<()> {
        let mut command = self.command("commit");
        output(command.arg(self.place.join("upper")).arg(&self.unpack)).map(drop)
    }

    fn forget(&mut self) -> Result<()> {
        output(&mut self.command("forget")).map(drop)
    }
}

struct WithDocker {
    docker: Docker,
    container: String,
}

impl WithDocker {
    fn begin(inputs: &Inputs, place: &Path, undo: &mut Undo) -> Result<Self> {
        let docker = Docker::start(place, undo)?;
        output(docker.command(&["load", "--quiet", "--input"]).arg(&inputs.archive))?;
        let container = output(&mut docker.command(&["create", "bench:latest", "/first"]))?;
        let container = container.trim().to_owned();
        let where_ = "{{.GraphDriver.Data.UpperDir}}";
        let upper = output(&mut docker.command(&["inspect", "--format", where_, &container]))?;
        inputs.copy_to(Path::new(upper.trim()))?;
        Ok(Self { docker, container })
    }
}

impl Commit for WithDocker {
    fn commit(&mut self) -> Result<()> {
        let commit = ["commit", "--pause=false", &self.container, "made:latest"];
        output(&mut self.docker.command(&commit)).map(drop)
    }

    fn forget(&mut self) -> Result<()> {
        output(&mut self.docker.command(&["image", "rm", "made:latest"])).map(drop)
    }
}

/// podman or buildah, with a storage of its own.
struct Containers {
    name: &'static str,
    root: PathBuf,
    run: PathBuf,
    container: String,
}

impl Containers {
    fn begin(name: &'static str, inputs: &Inputs, at: &Path, undo: &mut Undo) -> Result<Self> {
        // podman takes no longer path.
        let run = PathBuf::from(format!("/run/ocvbench-{name}"));
        let (mounted, left) = (at.join("root/overlay"), run.clone());
        undo.add("unmount a storage of containers", move || {
            // It leaves its directory mounted over itself, unless it never worked.
            let _ = program("umount").arg(mounted).stderr(Stdio::null()).status();
            drop(std::fs::remove_dir_all(left));
            Ok(())
        });
        let mut made = Self { name, root: at.join("root"), run, container: String::new() };
        let from = format!("docker-archive:{}", inputs.archive.display());
        let container = if name == "podman" {
            output(&mut made.command(&["pull", "--quiet", &from]))?;
            output(&mut made.command(&["create", "bench:latest", "/first"]))?
        } else {
            output(&mut made.command(&["from", "--name", "bench", &from]))?
        };
        container.trim().clone_into(&mut made.container);
        let root = output(&mut made.command(&["mount", &made.container]))?;
        inputs.copy_to(Path::new(root.trim()))?;
        output(&mut made.command(&["umount", &made.container]))?;
        Ok(made)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program(self.name);
        command.arg("--root").arg(&self.root).arg("--runroot").arg(&self.run);
        command.args(["--storage-driver", "overlay"]).args(args);
        command
    }
}

impl Commit for Containers {
    fn commit(&mut self) -> Result<()> {
        let name = if self.name == "podman" { "made:latest" } else { "localhost/made:latest" };
        let mut command = self.command(&["commit", "--quiet", &self.container, name]);
        output(&mut command).map(drop)
    }

    fn forget(&mut self) -> Result<()> {
        let remove: &[&str] = if self.name == "podman" { &["image", "rm"] } else { &["rmi"] };
        output(self.command(remove).arg("localhost/made:latest")).map(drop)
    }
}
