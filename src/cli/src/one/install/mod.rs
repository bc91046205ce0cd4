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

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use self::record::Record;
use self::root::{Owner, Root};
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
    #[arg(long, value_name = "NAME", default_value = blocks::NAME, value_parser = name)]
    alias: String,
    /// Change nothing, tell what is missing
    #[arg(long, conflicts_with_all = ["uninstall", "force"])]
    check: bool,
    /// Take away what was installed and not changed since
    #[arg(long, conflicts_with = "force")]
    uninstall: bool,
    /// Replace scripts that somebody changed
    #[arg(long)]
    force: bool,
    /// Another root directory, as of an image that is being built
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
}

/// Names of drivers as oned has them.
fn name(text: &str) -> Result<String, String> {
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

/// A machine, or an image of one, as it is below a root directory.
#[derive(Debug)]
struct Site {
    root: Root,
    /// Of the root.
    path: PathBuf,
}

impl Site {
    fn open(path: &Path) -> Result<Self, Failure> {
        let root = Root::open(path).map_err(|e| failed(&format!("open {}", path.display()), &e))?;
        Ok(Self { root, path: path.to_owned() })
    }

    fn shown(&self, path: &str) -> String {
        self.path.join(path).display().to_string()
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Failure> {
        self.root.read(path).map_err(|e| failed(&format!("read {}", self.shown(path)), &e))
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

    fn keep(&self, record: &Record) -> Result<(), Failure> {
        self.write(record::PATH, record.to_text().as_bytes(), 0o644, Owner::ROOT)
    }

    /// Tools of shadow know files below another directory.
    fn tool(&self, tool: &str, args: &[&str]) -> Result<(), Failure> {
        let root = self.path.to_string_lossy();
        let prefix = ["--prefix", &root];
        let prefix = if root == "/" { &[][..] } else { &prefix };
        tool::run(&[&[tool], prefix, args].concat())
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
    if options.uninstall {
        let kept = uninstall(&site, options)?;
        return output.emit(&serde_json::json!({ "kept": kept }), || left(&site, &kept));
    }
    let items = match (options.frontend, options.check) {
        (true, true) => frontend::check(&site, &options.alias)?,
        (true, false) => frontend::install(&site, &options.alias, options.force)?,
        (false, true) => host::check(&site)?,
        (false, false) => host::install(&site)?,
    };
    let missing = items.iter().filter(|item| item.state == State::Missing).count();
    let report = Report { items };
    output.emit(&report, || told(&report.items, options))?;
    if options.check && missing > 0 {
        let what = format!("{missing} of {} things are missing", report.items.len());
        return Err(Failure::new(Exit::Failure, what).hint("what to write is above"));
    }
    Ok(())
}

/// Paths of what stays, because somebody changed it.
fn uninstall(site: &Site, options: &Options) -> Result<Vec<String>, Failure> {
    let Some(mut record) = site.record()? else { return Ok(Vec::new()) };
    if options.host {
        host::uninstall(site, &record)?;
        record.member = None;
    }
    let mut kept = Vec::new();
    let mine = |path: &String| path.starts_with("etc/") == options.host;
    let (take, stay) = record.files.clone().into_iter().partition(|(path, _)| mine(path));
    for path in std::collections::BTreeMap::keys(&take) {
        match site.read(path)? {
            Some(text) if record.wrote(path, &text) => site.remove(path)?,
            Some(_) => kept.push(path.clone()),
            None => {}
        }
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        if !dir.is_empty() && dir.starts_with("var/lib/one/remotes/") {
            site.root.remove_empty(dir).map_err(|e| failed("remove a directory", &e))?;
        }
    }
    record.files = stay;
    if record.files.is_empty() && record.member.is_none() {
        site.remove(record::PATH)?;
    } else {
        site.keep(&record)?;
    }
    Ok(kept)
}

fn left(site: &Site, kept: &[String]) -> String {
    let mut text = String::from("taken away\n");
    for path in kept {
        let _ = writeln!(text, "{} was changed by others and stays", site.shown(path));
    }
    text
}

/// A line for each thing, then what to write, file by file, then the commands.
fn told(items: &[Item], options: &Options) -> String {
    let mut text = String::new();
    for item in items {
        let state = if item.state == State::Ok { "ok     " } else { "missing" };
        let _ = writeln!(text, "{state}  {}", item.what);
    }
    let mut file = "";
    for item in items {
        let Some(write) = &item.write else { continue };
        let (place, block) = write.split_once('\n').unwrap_or(("", write));
        if place != file {
            let _ = writeln!(text, "\n{place}");
            file = place;
        }
        let _ = writeln!(text, "{block}");
    }
    if options.frontend && !file.is_empty() {
        let _ = write!(text, "\n# then\n{}", frontend::commands(&options.alias));
    }
    text
}
