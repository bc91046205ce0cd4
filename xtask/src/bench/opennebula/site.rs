//! What both ways have: a front-end, a host, a registry, and something like ssh between them.
//!
//! Front-end and host each have a file system of their own on a loop device, an ext4 with its defaults: what is written
//! to them is what the kernel counts for the device, and what one way left is not in the other's way.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::bench::image;
use crate::cmd::{output, program, run as run_command, say, wait_until, write};
use crate::quickstart::Places;
use crate::quickstart::undo::Undo;

/// The host's name.
pub const HOST: &str = "host01";
/// The image's name in the registry.
const NAME: &str = "bench";

/// A front-end, a host, a registry.
#[derive(Debug)]
pub struct Site {
    /// The file system of the front-end.
    pub front: Disk,
    /// The file system of the host.
    pub host: Disk,
    /// `ADDRESS:PORT` of the registry.
    pub registry: String,
    /// Digest of the image's only layer.
    pub layer: String,
    /// Directory with the programs `ssh`, `onevm`, `onedatastore`.
    pub bin: PathBuf,
    /// Where that program counts.
    pub moved: PathBuf,
}

impl Site {
    /// Makes it, with the image of `layout` in the registry.
    ///
    /// # Errors
    /// Something cannot be made.
    pub fn make(places: &Places, layout: &Path, undo: &mut Undo) -> Result<Self> {
        let bin = places.cache.join("bin");
        std::fs::create_dir_all(&bin).context("make a place for programs")?;
        for name in ["ssh", "onevm", "onedatastore"] {
            let link = bin.join(name);
            let _absent_is_fine = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(places.programs.join("relay"), link).context("link")?;
        }
        let front = Disk::make(&places.cache, "front-end", undo)?;
        let host = Disk::make(&places.cache, "host", undo)?;
        let registry = registry(&places.cache.join("registry"), undo)?;
        let (from, to) =
            (format!("oci:{}:bench", layout.display()), format!("docker://{registry}/{NAME}:1"));
        let mut copy = program("skopeo");
        copy.args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", &from, &to]);
        run_command(&mut copy)?;
        let moved = places.cache.join("moved");
        Ok(Self { front, host, registry, layer: layer(layout)?, bin, moved })
    }

    /// The image, as one names it.
    #[must_use]
    pub fn image(&self) -> String {
        format!("{}/{NAME}:1", self.registry)
    }

    /// Where its layer can be had.
    #[must_use]
    pub fn layer_url(&self) -> String {
        format!("http://{}/v2/{NAME}/blobs/{}", self.registry, self.layer)
    }

    /// A program that finds our `ssh`, which counts.
    #[must_use]
    pub fn program(&self, name: &Path) -> Command {
        let mut command = program(name);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.bin.display()));
        command.env("OCIVISOR_BENCH_MOVED", &self.moved);
        command
    }

    /// A command on the host.
    #[must_use]
    pub fn remote(&self, words: &[&str]) -> Command {
        let mut command = self.program(&self.bin.join("ssh"));
        command.arg(HOST).args(words);
        command
    }

    /// Counts anew.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin_counting(&self) -> Result<()> {
        write(&self.moved, "")
    }

    /// What went to the host since then, in bytes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn counted(&self) -> Result<u64> {
        let text = std::fs::read_to_string(&self.moved).context("read what was counted")?;
        let each = text.lines().map(|line| line.parse::<u64>().context("a count"));
        each.sum()
    }

    /// Both file systems hold all that was written.
    ///
    /// # Errors
    /// One cannot.
    pub fn sync(&self) -> Result<()> {
        self.front.sync()?;
        self.host.sync()
    }
}

/// A file system of its own.
#[derive(Debug)]
pub struct Disk {
    /// Where it is mounted.
    pub dir: PathBuf,
    /// The kernel's counters of its device.
    counters: PathBuf,
}

impl Disk {
    fn make(cache: &Path, name: &str, undo: &mut Undo) -> Result<Self> {
        let dir = image::disk(cache, name, undo)?;
        let device = std::fs::metadata(&dir).context("inspect a file system")?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let counters = format!("/sys/dev/block/{major}:{minor}/stat").into();
        // Added later, so done before it is unmounted.
        let below = dir.clone();
        undo.add(format!("release what is in use of the {name}"), move || release(&below));
        Ok(Self { dir, counters })
    }

    /// Bytes written to the device since it was made (Documentation/block/stat.rst: the seventh number counts
    /// sectors of 512 bytes).
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn written(&self) -> Result<u64> {
        let text = std::fs::read_to_string(&self.counters).context("read a device's counters")?;
        let sectors = text.split_whitespace().nth(6).context("no count of sectors")?;
        Ok(sectors.parse::<u64>()? * 512)
    }

    /// It holds all that was written.
    ///
    /// # Errors
    /// It does not.
    pub fn sync(&self) -> Result<()> {
        image::sync(&self.dir)
    }
}

/// Unmounts what is mounted below a directory, and detaches loop devices of files there.
///
/// # Errors
/// One is in use.
pub fn release(dir: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let below: Vec<&Path> = points.filter(|at| *at != dir && at.starts_with(dir)).collect();
    for point in below.iter().rev() {
        run_command(program("umount").arg(point))?;
    }
    let list = ["--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE"];
    for line in output(program("losetup").args(list))?.lines() {
        let (device, file) = line.split_once(' ').unwrap_or((line, ""));
        if Path::new(file).starts_with(dir) {
            run_command(program("losetup").args(["--detach", device]))?;
        }
    }
    Ok(())
}

/// `ADDRESS:PORT` of a registry on loopback, Debian's docker-registry, without TLS.
fn registry(dir: &Path, undo: &mut Undo) -> Result<String> {
    std::fs::create_dir_all(dir).context("make a place for the registry")?;
    let left = dir.to_owned();
    undo.add("remove the registry", move || Ok(std::fs::remove_dir_all(left)?));
    let free = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    let address = free.local_addr()?;
    drop(free);
    let config = dir.join("config.yml");
    write(
        &config,
        &format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage:\n  filesystem: {{rootdirectory: \"{}\"}}\n\
             http:\n  addr: {address}\n  secret: bench\n",
            dir.join("data").display()
        ),
    )?;
    let log = File::create(dir.join("log"))?;
    let mut command = program("docker-registry");
    command.arg("serve").arg(config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.process_group(0).spawn().context("start docker-registry")?;
    let up = wait_until("the start of docker-registry", Duration::from_secs(30), || {
        if let Some(status) = child.try_wait()? {
            bail!("docker-registry ended with {status}");
        }
        Ok(TcpStream::connect(address).is_ok())
    });
    undo.add("stop docker-registry", move || stop(child));
    up?;
    say(&format!("docker-registry runs at {address}"));
    Ok(address.to_string())
}

fn stop(mut child: Child) -> Result<()> {
    child.kill()?;
    child.wait().map(drop).context("wait for it")
}

/// The digest of the layer of an OCI layout with one image of one layer.
fn layer(layout: &Path) -> Result<String> {
    let read = |path: PathBuf| -> Result<Value> {
        let text = std::fs::read_to_string(path).context("read the layout")?;
        serde_json::from_str(&text).context("read the layout")
    };
    let index = read(layout.join("index.json"))?;
    let manifest = index["manifests"][0]["digest"].as_str().context("no manifest")?;
    let manifest = read(layout.join("blobs").join(manifest.replace(':', "/")))?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    match layers.as_slice() {
        [one] => Ok(one["digest"].as_str().context("no digest")?.to_owned()),
        more => bail!("{} layers instead of one", more.len()),
    }
}

/// Runs one command into another, as a shell's pipe.
///
/// # Errors
/// One of them fails.
pub fn pipe(from: &mut Command, to: &mut Command) -> Result<()> {
    let (first, second) = (crate::cmd::shown(from), crate::cmd::shown(to));
    let mut source = from.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let taken = source.stdout.take().context("no output")?;
    let ended = to.stdin(taken).status();
    // It ends by SIGPIPE if the other could not be started.
    let status = source.wait().with_context(|| first.clone())?;
    let ended = ended.with_context(|| second.clone())?;
    // The pipe's end is in the command still.
    to.stdin(Stdio::null());
    if !ended.success() {
        bail!("{second}: {ended}");
    }
    if !status.success() {
        bail!("{first}: {status}");
    }
    Ok(())
}

/// Runs a program with that input, and returns its output; what it complains of is the error.
///
/// # Errors
/// It fails.
pub fn fed(command: &mut Command, input: &str) -> Result<String> {
    let text = crate::cmd::shown(command);
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.process_group(0).spawn().with_context(|| format!("start {text}"))?;
    let sent = child.stdin.take().context("no input")?.write_all(input.as_bytes());
    let answer = child.wait_with_output().with_context(|| text.clone())?;
    if !answer.status.success() {
        bail!("{text}: {}: {}", answer.status, String::from_utf8_lossy(&answer.stderr).trim());
    }
    sent.with_context(|| format!("{text}: it did not read its input"))?;
    Ok(String::from_utf8_lossy(&answer.stdout).trim().to_owned())
}
