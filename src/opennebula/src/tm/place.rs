//! Places that transfer scripts name: `<machine>:<datastores>/<datastore>/<vm>[/disk.<n>]`.
//!
//! oned joins them of strings, so `//` occurs. Nothing else is let through: numbers are numbers, a disk is `disk.<n>`,
//! and a machine is a name that no program takes for an option.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ocivisor_core::error::Error;
use ocivisor_core::spec::normal_path;

use crate::{clip, decimal, invalid};

/// A machine by its name in OpenNebula, which is what ssh knows it by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Machine(String);

impl Machine {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl FromStr for Machine {
    type Err = Error;

    /// Letters, digits, `.`, `_` and `-`, the first a letter or digit: no option, no user, no port.
    fn from_str(text: &str) -> Result<Self, Error> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
        let begins = text.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if begins && text.len() <= 253 && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid(format!("{:?} is no name of a host", clip(text))))
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory of a datastore: `<datastores>/<number>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DatastorePlace {
    /// Where the datastores are.
    pub root: PathBuf,
    /// Its number.
    pub datastore: u32,
}

impl DatastorePlace {
    /// The path, normal.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.root.join(self.datastore.to_string())
    }

    /// Another datastore beside it.
    #[must_use]
    pub fn beside(&self, datastore: u32) -> Self {
        Self { root: self.root.clone(), datastore }
    }

    fn of(path: &Path) -> Option<Self> {
        let root = path.parent().filter(|root| *root != Path::new("/"))?.to_owned();
        Some(Self { root, datastore: number(path)? })
    }
}

impl FromStr for DatastorePlace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = normal_path(Path::new(text)).and_then(|path| Self::of(&path));
        found.ok_or_else(|| invalid(format!("{:?} is no datastore's directory", clip(text))))
    }
}

/// The directory of a VM in a system datastore.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VmPlace {
    /// The datastore.
    pub datastore: DatastorePlace,
    /// The VM's number.
    pub vm: u32,
}

impl VmPlace {
    /// The path, normal.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.datastore.path().join(self.name())
    }

    /// Its name in the datastore.
    #[must_use]
    pub fn name(&self) -> String {
        self.vm.to_string()
    }

    /// A disk in it.
    #[must_use]
    pub fn disk(&self, disk: u32) -> DiskPlace {
        DiskPlace { dir: self.clone(), disk }
    }

    fn of(path: &Path) -> Option<Self> {
        Some(Self { datastore: DatastorePlace::of(path.parent()?)?, vm: number(path)? })
    }
}

impl FromStr for VmPlace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = normal_path(Path::new(text)).and_then(|path| Self::of(&path));
        found.ok_or_else(|| invalid(format!("{:?} is no VM's directory", clip(text))))
    }
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DiskPlace {
    /// The VM's directory.
    pub dir: VmPlace,
    /// The disk's number.
    pub disk: u32,
}

impl DiskPlace {
    /// The path, normal.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join(self.name())
    }

    /// Its name in the directory.
    #[must_use]
    pub fn name(&self) -> String {
        format!("disk.{}", self.disk)
    }
}

impl FromStr for DiskPlace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let find = || {
            let path = normal_path(Path::new(text))?;
            let disk = decimal(path.file_name()?.to_str()?.strip_prefix("disk.")?)?;
            Some(Self { dir: VmPlace::of(path.parent()?)?, disk })
        };
        find().ok_or_else(|| invalid(format!("{:?} is no disk of a VM", clip(text))))
    }
}

fn number(path: &Path) -> Option<u32> {
    decimal(path.file_name()?.to_str()?)
}

/// A disk or the whole directory of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The directory and all in it.
    Directory(VmPlace),
    /// One disk.
    Disk(DiskPlace),
}

impl Target {
    /// The VM's directory.
    #[must_use]
    pub fn dir(&self) -> &VmPlace {
        match self {
            Self::Directory(dir) | Self::Disk(DiskPlace { dir, .. }) => dir,
        }
    }

    /// The path, normal.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Directory(dir) => dir.path(),
            Self::Disk(disk) => disk.path(),
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse().map(Self::Disk).or_else(|_| text.parse().map(Self::Directory))
    }
}

/// Something on a machine: `<machine>:<path>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct On<T> {
    /// Where.
    pub machine: Machine,
    /// What.
    pub what: T,
}

impl<T: FromStr<Err = Error>> FromStr for On<T> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (machine, path) = text
            .split_once(':')
            .ok_or_else(|| invalid(format!("{:?} names no host", clip(text))))?;
        Ok(Self { machine: machine.parse()?, what: path.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_recordings_are_places() {
        let on: On<Target> = "host02:/var/lib/one//datastores/101/0/disk.12".parse().unwrap();
        assert_eq!(on.machine.name(), "host02");
        assert_eq!(on.what.path(), Path::new("/var/lib/one/datastores/101/0/disk.12"));
        assert!(matches!(on.what, Target::Disk(DiskPlace { disk: 12, .. })));
        let on: On<Target> = "frontend:/var/lib/one//datastores/101/7".parse().unwrap();
        assert!(matches!(on.what, Target::Directory(VmPlace { vm: 7, .. })));
        let ds: DatastorePlace = "/var/lib/one//datastores/101".parse().unwrap();
        assert_eq!(ds.beside(100).path(), Path::new("/var/lib/one/datastores/100"));
    }

    #[test]
    fn nothing_else_is() {
        for bad in [
            "",
            "h",
            "h:",
            ":/d/1/2",
            "-oProxyCommand=x:/d/1/2",
            "a b:/d/1/2",
            "u@h:/d/1/2",
            "h:/d/1/2/disk.",
            "h:/d/1/2/disk.x",
            "h:/d/1/2/disk.01",
            "h:/d/1/2/vm.xml",
            "h:/d/1/../2",
            "h:d/1/2",
            "h:/1/2",
            "h:/d/x/2",
            "h:/d/1/+2",
            "h:/d/1/2\n",
            "h:/d/1/2/disk.0/..",
            "h;id:/d/1/2",
            "h:/d/1/99999999999",
        ] {
            assert!(bad.parse::<On<Target>>().is_err(), "{bad:?}");
        }
    }
}
