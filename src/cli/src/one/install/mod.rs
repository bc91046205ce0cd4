//! `ocivisor one install`: our part of an OpenNebula front-end or host, put there, looked at, taken away.
//!
//! OpenNebula's own configuration is never written: what it must say is printed, with the admin's own lines changed
//! where a list gets one more word. What was installed is on record ([`record`]), so a second run does nothing, a
//! later version replaces exactly what an earlier one put there, and `--uninstall` leaves what others changed.

mod blocks;
mod conf;
mod frontend;
mod host;
mod record;
mod root;
mod tool;
mod tree;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use ocivisor_core::error::one_line;
use serde::Serialize;

use self::record::Record;
use self::root::{Owner, Root, There};
use crate::failure::{Exit, Failure};
use crate::output::Output;

/// Options of `one install`.
#[derive(Debug, Args)]
pub struct Options {
    /// Prepare OpenNebula's front-end
    #[arg(long, conflicts_with = "host", required_unless_present = "host")]
    frontend: bool,
    /// Prepare a host of OpenNebula's
    #[arg(long)]
    host: bool,
    /// Name under which OpenNebula knows the hypervisor; `lxc` keeps the buttons of its web interface
    #[arg(long, value_name = "NAME", default_value = blocks::NAME, value_parser = name, conflicts_with = "host")]
    alias: String,
    /// Change nothing, tell what is missing
    #[arg(long, conflicts_with_all = ["uninstall", "force"])]
    check: bool,
    /// Take away what was installed and not changed since
    #[arg(long)]
    uninstall: bool,
    /// Replace scripts that somebody changed; uninstall though the configuration names them
    #[arg(long, conflicts_with = "host")]
    force: bool,
    /// Another root directory, as of an image that is being built
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// Names of drivers as oned has them.
fn name(text: &str) -> Result<String, String> {
    if ["kvm", "qemu", "dummy"].contains(&text) {
        return Err("its machines would be lost: take a name that nobody else needs, or lxc".into());
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if (1..=32).contains(&text.len()) && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 32 lower-case letters, digits, - and _".into())
    }
}

/// One thing that should be so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Item {
    /// Where: a file, a directory, a name.
    name: String,
    /// What.
    what: String,
    state: State,
    /// What an admin would write.
    #[serde(skip_serializing_if = "Option::is_none")]
    write: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    Missing,
}

impl Item {
    fn new(name: impl Into<String>, what: impl Into<String>, there: bool) -> Self {
        let state = if there { State::Ok } else { State::Missing };
        Self { name: name.into(), what: what.into(), state, write: None }
    }
}

/// Where the record is, and the lock of who changes anything.
const STATE: &str = "var/lib/ocivisor-opennebula";

/// A machine, or an image of one, as it is below a root directory.
#[derive(Debug)]
struct Site {
    root: Root,
    /// Of the root; absolute, without links.
    path: PathBuf,
}

impl Site {
    fn open(path: &Path) -> Result<Self, Failure> {
        let what = || format!("open {}", path.display());
        let path = std::fs::canonicalize(path).map_err(|e| failed(&what(), &e))?;
        let root = Root::open(&path).map_err(|e| failed(&what(), &e))?;
        Ok(Self { root, path })
    }

    fn lock(&self) -> Result<std::fs::File, Failure> {
        self.root.lock(STATE).map_err(|e| failed(&format!("lock {}", self.shown(STATE)), &e))
    }

    fn is_machine(&self) -> Result<bool, Failure> {
        self.root.is_machine().map_err(|e| failed("look at the root directory", &e))
    }

    fn shown(&self, path: &str) -> String {
        self.path.join(path).display().to_string()
    }

    /// An admin's file.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Failure> {
        self.root.read(path).map_err(|e| failed(&format!("read {}", self.shown(path)), &e))
    }

    /// The same as text, empty if there is none.
    fn text(&self, path: &str) -> Result<String, Failure> {
        Ok(String::from_utf8_lossy(&self.read(path)?.unwrap_or_default()).into_owned())
    }

    /// A file that oneadmin may have put there.
    fn look(&self, path: &str) -> Result<There, Failure> {
        self.root.look(path).map_err(|e| failed(&format!("read {}", self.shown(path)), &e))
    }

    fn write(&self, path: &str, text: &[u8], mode: u32, owner: Owner) -> Result<(), Failure> {
        let written = self.root.write(path, text, mode, owner);
        written.map_err(|e| failed(&format!("write {}", self.shown(path)), &e))
    }

    fn remove(&self, path: &str) -> Result<(), Failure> {
        self.root.remove(path).map_err(|e| failed(&format!("remove {}", self.shown(path)), &e))
    }

    fn record(&self) -> Result<Option<Record>, Failure> {
        let Some(bytes) = self.read(record::PATH)? else { return Ok(None) };
        let record = Record::parse(&String::from_utf8_lossy(&bytes));
        record.map(Some).map_err(|why| unreadable(self, record::PATH, &why))
    }

    /// Writes the record unless it is there already.
    fn keep(&self, record: &Record) -> Result<(), Failure> {
        if self.record()?.as_ref() == Some(record) {
            return Ok(());
        }
        self.write(record::PATH, record.to_text().as_bytes(), 0o644, Owner::ROOT)
    }

    /// Tools of shadow know files below another directory; that they follow links there is the image's builder's
    /// affair.
    fn tool(&self, tool: &str, args: &[&str]) -> Result<(), Failure> {
        let mut argv = vec![OsStr::new(tool)];
        if !self.is_machine()? {
            argv.extend([OsStr::new("--prefix"), self.path.as_os_str()]);
        }
        argv.extend(args.iter().map(OsStr::new));
        tool::run(&argv)
    }
}

fn failed(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(Exit::of_io(error), format!("{what}: {error}"))
}

fn unreadable(site: &Site, path: &str, why: &str) -> Failure {
    Failure::new(Exit::Integrity, format!("{}: {why}", site.shown(path)))
}

#[derive(Debug, Serialize)]
struct Report {
    items: Vec<Item>,
}

/// Runs it.
///
/// # Errors
/// With `--check`, also if anything is missing.
pub fn run(options: &Options, output: Output) -> Result<(), Failure> {
    let site = Site::open(&options.root)?;
    let _alone = if options.check { None } else { Some(site.lock()?) };
    if options.uninstall {
        let taken = uninstall(&site, options)?;
        return output.emit(&taken, || left(&site, &taken));
    }
    let (items, changed) = match (options.frontend, options.check) {
        (true, true) => (frontend::check(&site, &options.alias)?, false),
        (true, false) => {
            let done = frontend::install(&site, &options.alias, options.force)?;
            (done.items, done.changed)
        }
        (false, true) => (host::check(&site)?, false),
        (false, false) => (host::install(&site)?, false),
    };
    let missing = items.iter().filter(|item| item.state == State::Missing).count();
    let mut commands = String::new();
    if options.frontend && site.is_machine()? {
        commands = frontend::commands(&options.alias, missing > 0, changed);
    }
    let report = Report { items };
    output.emit(&report, || told(&report.items, &commands))?;
    if options.check && missing > 0 {
        let what = format!("{missing} of {} things are missing", report.items.len());
        return Err(Failure::new(Exit::Failure, what).hint("what to write is above"));
    }
    Ok(())
}

/// What an uninstallation did.
#[derive(Debug, Serialize)]
struct Taken {
    /// Files that are gone.
    removed: usize,
    /// Paths of what stays, because somebody changed it.
    kept: Vec<String>,
}

fn uninstall(site: &Site, options: &Options) -> Result<Taken, Failure> {
    let mut taken = Taken { removed: 0, kept: Vec::new() };
    let Some(mut record) = site.record()? else { return Ok(taken) };
    if options.host {
        host::uninstall(site, &record)?;
        record.member = None;
    } else if let (Some(what), false) =
        (frontend::configured(site, &options.alias)?.first(), options.force)
    {
        let what = format!("the configuration of OpenNebula still names ocivisor ({what})");
        return Err(Failure::new(Exit::Conflict, what).hint(
            "take our blocks out and restart OpenNebula first, or it cannot end its VMs; --force goes on",
        ));
    }
    let mine = |path: &String| path.starts_with("etc/") == options.host;
    let (take, stay): (BTreeMap<_, _>, _) =
        record.files.clone().into_iter().partition(|(path, _)| mine(path));
    for path in take.keys() {
        match site.look(path)? {
            There::File { text, .. } if record.wrote(path, &text) => {
                site.remove(path)?;
                taken.removed += 1;
            }
            There::Nothing => site.remove(path)?,
            There::File { .. } | There::Other => taken.kept.push(path.clone()),
        }
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        if dir.contains("/ocivisor") || dir.ends_with("/vnmmad-load.d") {
            site.root.remove_empty(dir).map_err(|e| failed("remove a directory", &e))?;
        }
    }
    record.files = stay;
    if record.files.is_empty() && record.member.is_none() {
        site.remove(record::PATH)?;
        site.root.remove_empty(STATE).map_err(|e| failed("remove a directory", &e))?;
    } else {
        site.keep(&record)?;
    }
    Ok(taken)
}

fn left(site: &Site, taken: &Taken) -> String {
    let mut text = match taken.removed {
        0 => String::from("nothing was there to be taken away\n"),
        files => format!("{files} files taken away\n"),
    };
    for path in &taken.kept {
        let _ = writeln!(text, "{} was changed by others and stays", site.shown(path));
    }
    text
}

/// A line for each thing, then what to write, file by file, then the commands.
fn told(items: &[Item], commands: &str) -> String {
    let mut text = String::new();
    for item in items {
        let state = if item.state == State::Ok { "ok     " } else { "missing" };
        let _ = writeln!(text, "{state}  {}", one_line(&item.what));
    }
    let mut file = "";
    for write in items.iter().filter_map(|item| item.write.as_deref()) {
        let (place, block) = write.split_once('\n').unwrap_or(("", write));
        if place != file {
            let _ = writeln!(text, "\n{}", one_line(place));
            file = place;
        }
        for line in block.lines() {
            let words = line.trim_start_matches(' ');
            let _ = writeln!(text, "{:1$}{2}", "", line.len() - words.len(), one_line(words));
        }
    }
    if !commands.is_empty() {
        let _ = write!(text, "\n# then\n{commands}");
    }
    text
}
