//! The files that a qcow2 file stands on.
//!
//! An image names its backing file, by any path; who wrote the image may be a tenant. So a name is followed only to
//! where the *spec* says that this disk's files are (`DataDisk::backing`): a file that is named there, or one directly in
//! a directory that is named there, links resolved on both sides. Else an image of one tenant would show another's.
//!
//! Formats are those that the images tell, never looked for: a raw file that a guest made look like qcow2 stays raw. Each
//! file is opened here, once, to be read, and locked among readers; who serves it gets it open.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::{DataDisk, DiskFormat, View};
use ocivisor_datastore::{BackingName, DiskFault, Qcow2File};

use super::super::claim::{self, Claim};
use super::super::name;

/// Most files below one; a platform's snapshots are one each.
pub(super) const MOST: usize = 32;

/// A file below another.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) file: File,
    pub(super) format: DiskFormat,
}

/// Opens all that `top` stands on, the nearest first.
pub(super) fn below(wish: &DataDisk, top: &Claim) -> Result<Vec<Link>> {
    let mut path = wish.path.clone();
    let mut seen = vec![top.id];
    let mut links = Vec::new();
    let mut header = look(wish, &path, &top.file)?;
    while let Some(named) = header.backing {
        if links.len() == MOST {
            let what = format!("{} stands on more than {MOST} files", name(wish));
            return Err(
                Error::new(ErrorKind::Unsupported, what).hint("flatten it: qemu-img convert")
            );
        }
        let format = format_of(wish, &path, &named)?;
        let real = find(wish, &path, &named)?;
        // A device is refused below, whoever's it is.
        let Claim { file, id, device } = claim::open(&reading(wish, &real), &|_| false)?;
        if device.is_some() {
            return Err(refused(wish, &path, &named, "it is a device"));
        }
        if seen.contains(&id) {
            return Err(refused(wish, &path, &named, "it stands on itself"));
        }
        seen.push(id);
        header = match format {
            DiskFormat::Qcow2 => look(wish, &real, &file)?,
            DiskFormat::Raw => Qcow2File { size: 0, backing: None },
        };
        links.push(Link { file, format });
        path = real;
    }
    Ok(links)
}

/// The file that is only read, as a disk of its own would be.
fn reading(wish: &DataDisk, path: &Path) -> DataDisk {
    DataDisk {
        number: wish.number,
        path: path.to_owned(),
        format: DiskFormat::Raw,
        backing: Vec::new(),
        read_only: true,
        io: wish.io,
        view: View::Mount(PathBuf::new()),
        make: None,
    }
}

fn look(wish: &DataDisk, path: &Path, file: &File) -> Result<Qcow2File> {
    Qcow2File::look(file).map_err(|fault| {
        let kind = match fault {
            DiskFault::Read { .. } => ErrorKind::Host,
            DiskFault::Feature { .. } | DiskFault::DataFile | DiskFault::Encrypted { .. } => {
                ErrorKind::Unsupported
            }
            _ => ErrorKind::Invalid,
        };
        let of = if path == wish.path { String::new() } else { format!(": {}", path.display()) };
        let what = match fault {
            DiskFault::NotQcow2 => {
                "it is no qcow2 file, though its format is said to be".to_owned()
            }
            DiskFault::DataFile => "it keeps its data in another file".to_owned(),
            fault => fault.to_string(),
        };
        Error::new(kind, format!("{}{of}: {what}", name(wish)))
    })
}

fn format_of(wish: &DataDisk, path: &Path, named: &BackingName) -> Result<DiskFormat> {
    let hint = "name it: qemu-img rebase -u -f qcow2 -F FORMAT -b BACKING FILE";
    match named.format.as_deref() {
        None => Err(refused(wish, path, named, "its format is not told").hint(hint)),
        Some(format) => DiskFormat::from_name(format).ok_or_else(|| {
            refused(wish, path, named, &format!("its format {format:?} is neither raw nor qcow2"))
        }),
    }
}

/// Where the name leads, if the spec lets it.
fn find(wish: &DataDisk, path: &Path, named: &BackingName) -> Result<PathBuf> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    // A URL or QEMU's `json:` is a path like any other here, to nothing.
    let found = fs::canonicalize(dir.join(OsStr::from_bytes(&named.name)));
    let bases = wish.backing.iter().filter_map(|base| fs::canonicalize(base).ok());
    let within =
        |real: &Path| bases.into_iter().any(|base| real == base || real.parent() == Some(&base));
    // Nobody learns what is where he may not be led.
    match found {
        Ok(real) if within(&real) => Ok(real),
        Ok(_) | Err(_) => {
            let why = "it is not there, or not among the files that belong to this disk";
            Err(refused(wish, path, named, why))
        }
    }
}

fn refused(wish: &DataDisk, path: &Path, named: &BackingName, why: &str) -> Error {
    let of = if path == wish.path { String::new() } else { format!(" {}", path.display()) };
    let shown = named.name.escape_ascii().to_string();
    let shown: String = shown.chars().take(200).collect();
    let what = format!("{}: its file{of} stands on \"{shown}\": {why}", name(wish));
    Error::new(ErrorKind::Invalid, what)
}
