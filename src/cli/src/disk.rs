//! `--data-disk path=/srv/data.img,target=/data`: a disk beside the root disk, on the command line.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use ocivisor_core::spec::{DeviceName, DiskFormat, Filesystem};
use ocivisor_schema::spec::{DataDiskV1, IoLimitsV1};

use crate::failure::Failure;

/// What was said of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskOption {
    path: PathBuf,
    format: Option<DiskFormat>,
    backing: Vec<PathBuf>,
    mount: Option<String>,
    device: Option<DeviceName>,
    make: Option<Filesystem>,
    read_only: bool,
}

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut disk = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = match part.split_once('=') {
                Some(pair) => pair,
                None if part == "ro" => {
                    disk.read_only = true;
                    continue;
                }
                None => return Err(format!("{part:?} is neither KEY=VALUE nor ro")),
            };
            let none_of = |all: &str| format!("{key}: {value:?} is none of {all}");
            match key {
                "path" => disk.path = value.into(),
                "target" if value.starts_with('/') => disk.mount = Some(value.to_owned()),
                "target" => {
                    let bad = |why| {
                        format!("target: {value:?} is no path, and as a device's name it {why}")
                    };
                    disk.device = Some(value.parse().map_err(bad)?);
                }
                "format" => {
                    disk.format =
                        Some(DiskFormat::from_name(value).ok_or_else(|| none_of("raw, qcow2"))?);
                }
                "backing" => disk.backing.push(value.into()),
                "make" => {
                    disk.make =
                        Some(Filesystem::from_name(value).ok_or_else(|| none_of("ext4, xfs"))?);
                }
                _ => {
                    return Err(format!(
                        "key {key:?} is none of path, target, format, backing, make, ro"
                    ));
                }
            }
        }
        match () {
            () if disk.path.as_os_str().is_empty() => Err("no path= is given".to_owned()),
            () if disk.mount.is_none() && disk.device.is_none() => {
                Err("no target= is given: a path of the guest, or the name of a device".to_owned())
            }
            () => Ok(disk),
        }
    }
}

impl DiskOption {
    /// As the daemon is told.
    ///
    /// # Errors
    /// `absolute` says that the path cannot be made absolute.
    pub fn to_spec(
        &self,
        number: u32,
        absolute: impl Fn(&Path) -> Result<PathBuf, Failure>,
    ) -> Result<DataDiskV1, Failure> {
        Ok(DataDiskV1 {
            number,
            path: absolute(&self.path)?.to_string_lossy().into_owned(),
            format: self.format.unwrap_or(DiskFormat::Raw).into(),
            backing: self
                .backing
                .iter()
                .map(|path| Ok(absolute(path)?.to_string_lossy().into_owned()))
                .collect::<Result<_, Failure>>()?,
            read_only: self.read_only,
            mount: self.mount.clone(),
            device: self.device.as_ref().map(ToString::to_string),
            make: self.make.map(Into::into),
            io: IoLimitsV1::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_are_read() {
        let disk: DiskOption = "path=/d/1,target=/data,target=vdb,make=xfs".parse().unwrap();
        let spec = disk.to_spec(3, |path| Ok(path.to_owned())).unwrap();
        assert_eq!((spec.number, spec.path.as_str(), spec.read_only), (3, "/d/1", false));
        assert_eq!((spec.mount.as_deref(), spec.device.as_deref()), (Some("/data"), Some("vdb")));
        assert_eq!(spec.make, Some(Filesystem::Xfs.into()));
        let disk: DiskOption =
            "path=/d/1,format=qcow2,backing=/b,backing=/c,target=vdb,ro".parse().unwrap();
        let spec = disk.to_spec(1, |path| Ok(path.to_owned())).unwrap();
        assert_eq!((spec.format, spec.read_only), (DiskFormat::Qcow2.into(), true));
        assert_eq!(spec.backing, ["/b", "/c"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, want) in [
            ("/d/1", "\"/d/1\" is neither KEY=VALUE nor ro"),
            ("path=/d/1", "no target= is given: a path of the guest, or the name of a device"),
            ("target=/data", "no path= is given"),
            (
                "path=/d,target=vdb,size=1",
                "key \"size\" is none of path, target, format, backing, make, ro",
            ),
            ("path=/d,target=vdb,format=vmdk", "format: \"vmdk\" is none of raw, qcow2"),
            (
                "path=/d,target=null",
                "target: \"null\" is no path, and as a device's name it is the name of something else in /dev",
            ),
        ] {
            assert_eq!(text.parse::<DiskOption>(), Err(want.to_owned()));
        }
    }
}
