//! The scripts of OpenNebula's transfer manager, on the front-end: what a call asks for.
//!
//! Calls get no XML, only words: machines and paths ([`place`]), sizes in MB, and last the VM and a datastore, which is
//! the image's for disks of images and the system's for all else. A script may be called by its name with the name of
//! the system datastore's driver behind a dot (`clone.ssh`); it is the same call.
//!
//! | scripts | words |
//! |---|---|
//! | `clone` `ln` | SOURCE, disk, VM, datastore |
//! | `mv` | from, to, VM, datastore |
//! | `mvds` | disk, SOURCE, VM, datastore |
//! | `cpds` | disk, SOURCE, snapshot or -1, VM, datastore |
//! | `mkimage` | MB, format, disk, VM, datastore |
//! | `mkswap` | MB, disk, VM, datastore |
//! | `delete` | disk or directory, VM, datastore |
//! | `context` | files, disk, VM, datastore |
//! | `resize` | disk, MB, VM, datastore |
//! | `monitor` | datastore; the message on standard input |
//! | `monitor_ds` | the datastore's directory, on a host |
//!
//! `postbackup`, `postbackup_live` and `failmigrate` clean up after what never began here: they have nothing to do, and
//! say so by success. The others that are not carried out yet are refused.

pub mod disk;
pub mod place;

use std::ffi::OsStr;
use std::path::PathBuf;

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::spec::normal_path;

use self::place::{DatastorePlace, DiskPlace, Machine, On, Target};
use crate::source::ImageSource;
use crate::{Answer, OneId, clip, decimal, invalid};

/// Most MB of a disk: 16 EiB would be more than offsets hold.
const MAX_MB: u64 = 1 << 33;
/// Most files on a context disk.
const MAX_FILES: usize = 256;

/// The scripts that oned's driver process may call, and the one that a host's agent calls.
pub const ACTIONS: [&str; 24] = [
    "clone",
    "ln",
    "mv",
    "mvds",
    "cpds",
    "mkimage",
    "mkswap",
    "delete",
    "context",
    "resize",
    "monitor",
    "monitor_ds",
    "snap_create",
    "snap_create_live",
    "snap_delete",
    "snap_revert",
    "premigrate",
    "postmigrate",
    "failmigrate",
    "prebackup",
    "prebackup_live",
    "postbackup",
    "postbackup_live",
    "restore",
];

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TmCall {
    /// Name of the script, without what is behind a dot.
    pub action: &'static str,
    /// What was behind the dot: the driver of the system datastore, where it is another than the image's.
    pub system: Option<String>,
    /// The VM, for the log; none where a call is about no VM.
    pub vm: Option<OneId>,
    /// What is to be done.
    pub order: TmOrder,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TmOrder {
    /// A disk of its own, of an image.
    Clone(Placed),
    /// An image itself, or a copy that `mvds` brings back.
    Link(Placed),
    /// To another machine, or another datastore.
    Move {
        /// From where.
        from: On<Target>,
        /// To where.
        to: On<Target>,
        /// The datastore: the image's for a disk of an image.
        datastore: u32,
    },
    /// Back into its image, and away.
    WriteBack(Placed),
    /// A copy into an image.
    SaveAs {
        /// Disk and image.
        placed: Placed,
        /// Which state; none is the present one.
        snapshot: Option<u32>,
    },
    /// An empty disk.
    MakeImage {
        /// Bytes.
        size: u64,
        /// Its format.
        format: String,
        /// Where.
        disk: On<DiskPlace>,
    },
    /// Swap space.
    MakeSwap {
        /// Bytes.
        size: u64,
        /// Where.
        disk: On<DiskPlace>,
    },
    /// Away with it.
    Delete(On<Target>),
    /// A disk with what the guest is to know.
    Context {
        /// What is on it.
        files: Vec<ContextFile>,
        /// Where.
        disk: On<DiskPlace>,
    },
    /// A bigger disk.
    Resize {
        /// Which.
        disk: On<DiskPlace>,
        /// Bytes.
        size: u64,
    },
    /// How full a shared system datastore is; its directory is in the message.
    Monitor,
    /// How much of a host's disk its VMs take.
    MonitorHost(DatastorePlace),
    /// Nothing.
    Nothing,
}

/// A disk and its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The image.
    pub source: ImageSource,
    /// The disk.
    pub disk: On<DiskPlace>,
    /// Number of the image's datastore.
    pub datastore: u32,
}

/// A file for a context disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextFile {
    /// Where it is on the front-end.
    pub path: PathBuf,
    /// What it is called on the disk.
    pub name: String,
}

/// Reads a call.
///
/// # Errors
/// The answer: a script that is not known or not carried out, or words that are not those of the contract.
pub fn plan<A: AsRef<OsStr>>(script: &str, argv: &[A]) -> Result<TmCall, Answer> {
    let (name, system) = match script.split_once('.') {
        Some((name, system)) => (name, Some(system.to_owned())),
        None => (script, None),
    };
    let Some(action) = ACTIONS.into_iter().find(|action| *action == name) else {
        return Err(Answer::sentence(&format!("There is no transfer script {:?}", clip(script))));
    };
    let words: Option<Vec<&str>> = argv.iter().map(|word| word.as_ref().to_str()).collect();
    let read = match words {
        Some(words) => parse(action, &words),
        None => Err(invalid("an argument is not UTF-8")),
    };
    let read = read.map(|(order, vm)| TmCall { action, system, vm, order });
    read.map_err(|error| failure(action, vm_of(action, argv), &error))
}

/// The answer to a failed call.
#[must_use]
pub fn failure(action: &str, vm: Option<OneId>, error: &Error) -> Answer {
    let whom = vm.map_or_else(String::new, |vm| format!(" of VM {vm}"));
    let hint = error.hint.as_deref().map_or_else(String::new, |hint| format!("; {hint}"));
    let text = format!("Transfer {action}{whom}: {}{hint}", error.message.trim_end_matches('.'));
    Answer::sentence(&ocivisor_core::error::one_line(&text))
}

/// The VM is the last word but one.
fn vm_of<A: AsRef<OsStr>>(action: &str, argv: &[A]) -> Option<OneId> {
    let at = if action == "restore" { 1 } else { argv.len().checked_sub(2)? };
    if action.starts_with("monitor") { None } else { argv.get(at)?.as_ref().to_str()?.parse().ok() }
}

fn parse(action: &'static str, words: &[&str]) -> Result<(TmOrder, Option<OneId>), Error> {
    let count = |wanted: &str| invalid(format!("{} arguments, but it takes {wanted}", words.len()));
    let unfinished = || {
        Err(Error::new(ErrorKind::Unsupported, "this version of ocivisor cannot do that yet")
            .hint("nothing was touched"))
    };
    let placed = |source: &str, disk: &str, datastore: &str| -> Result<Placed, Error> {
        Ok(Placed { source: source_of(source)?, disk: disk.parse()?, datastore: id(datastore)? })
    };
    let mut vm = None;
    let mut of = |word: &str| -> Result<(), Error> {
        vm = Some(word.parse()?);
        Ok(())
    };
    let order = match (action, words) {
        ("clone" | "ln", [source, disk, vm, datastore]) => {
            of(vm)?;
            let placed = placed(source, disk, datastore)?;
            if action == "clone" { TmOrder::Clone(placed) } else { TmOrder::Link(placed) }
        }
        ("mv", [from, to, vm, datastore]) => {
            of(vm)?;
            let (from, to): (On<Target>, On<Target>) = (from.parse()?, to.parse()?);
            if matches!(from.what, Target::Disk(_)) != matches!(to.what, Target::Disk(_)) {
                return Err(invalid("a disk and a directory cannot become each other"));
            }
            TmOrder::Move { from, to, datastore: id(datastore)? }
        }
        ("mvds", [disk, source, vm, datastore]) => {
            of(vm)?;
            TmOrder::WriteBack(placed(source, disk, datastore)?)
        }
        ("cpds", [disk, source, snapshot, vm, datastore]) => {
            of(vm)?;
            let snapshot = if *snapshot == "-1" { None } else { Some(id(snapshot)?) };
            TmOrder::SaveAs { placed: placed(source, disk, datastore)?, snapshot }
        }
        ("mkimage", [size, format, disk, vm, _]) => {
            of(vm)?;
            TmOrder::MakeImage {
                size: megabytes(size)?,
                format: (*format).to_owned(),
                disk: disk.parse()?,
            }
        }
        ("mkswap", [size, disk, vm, _]) => {
            of(vm)?;
            TmOrder::MakeSwap { size: megabytes(size)?, disk: disk.parse()? }
        }
        ("delete", [what, vm, _]) => {
            of(vm)?;
            TmOrder::Delete(what.parse()?)
        }
        ("context", [files @ .., disk, vm, _]) => {
            of(vm)?;
            TmOrder::Context { files: context_files(files)?, disk: disk.parse()? }
        }
        ("resize", [disk, size, vm, _]) => {
            of(vm)?;
            TmOrder::Resize { disk: disk.parse()?, size: megabytes(size)? }
        }
        ("monitor", [datastore]) => {
            id(datastore)?;
            TmOrder::Monitor
        }
        ("monitor_ds", [dir]) => TmOrder::MonitorHost(dir.parse()?),
        ("postbackup" | "postbackup_live" | "failmigrate", _) => TmOrder::Nothing,
        ("clone" | "ln", _) => return Err(count("SOURCE, disk, VM, datastore")),
        ("mv", _) => return Err(count("from, to, VM, datastore")),
        ("mvds", _) => return Err(count("disk, SOURCE, VM, datastore")),
        ("cpds", _) => return Err(count("disk, SOURCE, snapshot, VM, datastore")),
        ("mkimage", _) => return Err(count("MB, format, disk, VM, datastore")),
        ("mkswap", _) => return Err(count("MB, disk, VM, datastore")),
        ("delete", _) => return Err(count("disk or directory, VM, datastore")),
        ("context", _) => return Err(count("files, disk, VM, datastore")),
        ("resize", _) => return Err(count("disk, MB, VM, datastore")),
        ("monitor" | "monitor_ds", _) => return Err(count("a datastore")),
        (_, _) => return unfinished(),
    };
    Ok((order, vm))
}

/// `SOURCE`: with a colon as it is, else behind the front-end's name.
fn source_of(text: &str) -> Result<ImageSource, Error> {
    let path = text.split_once(':').filter(|(machine, path)| {
        path.starts_with('/') && !path.starts_with("//") && machine.parse::<Machine>().is_ok()
    });
    path.map_or(text, |(_, path)| path).parse()
}

fn id(word: &str) -> Result<u32, Error> {
    decimal(word).ok_or_else(|| invalid(format!("{:?} is no number", clip(word))))
}

/// Bytes of a size in MB, as oned counts: 2^20.
pub(crate) fn megabytes(word: &str) -> Result<u64, Error> {
    let plain = word.bytes().all(|c| c.is_ascii_digit());
    let mb = word.parse::<u64>().ok().filter(|mb| plain && (1..MAX_MB).contains(mb));
    mb.map(|mb| mb << 20).ok_or_else(|| invalid(format!("{:?} is no size in MB", clip(word))))
}

/// A word is a path, or for an image of a datastore for files `<path>:'<name>'`, with these very quotes.
fn context_files(words: &[&str]) -> Result<Vec<ContextFile>, Error> {
    if words.len() > MAX_FILES {
        return Err(invalid(format!("more than {MAX_FILES} files for a context disk")));
    }
    let mut files: Vec<ContextFile> = Vec::with_capacity(words.len());
    for word in words {
        let named = word.strip_suffix('\'').and_then(|word| word.split_once(":'"));
        let bad = || invalid(format!("{:?} is no file for a context disk", clip(word)));
        let path = normal_path(named.map_or(*word, |(path, _)| path).as_ref()).ok_or_else(bad)?;
        let own = path.file_name().and_then(OsStr::to_str).ok_or_else(bad)?;
        let name = named.map_or(own, |(_, name)| name).to_owned();
        let plain = !name.is_empty()
            && name.len() <= 200
            && !name.starts_with('.')
            && !name.chars().any(|c| c == '/' || c.is_control());
        if !plain {
            return Err(bad());
        }
        if files.iter().any(|file| file.name == name) {
            return Err(invalid(format!(
                "two files for a context disk are called {:?}",
                clip(&name)
            )));
        }
        files.push(ContextFile { path, name });
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
