//! `<DS_DRIVER_ACTION_DATA>`: what a call is about.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::Error;
use ocivisor_core::spec::normal_path;

use super::DsAction;
use crate::xml::{self, Element};
use crate::{clip, decimal, invalid};

/// Longest text of a user's that becomes part of anything.
const TEXT_MAX: usize = 4096;

/// Longest list of directories.
const DIRS_MAX: usize = 1000;

/// An image, as far as it was told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Image {
    /// `TYPE`; an operating system where none is told, as in `stat`.
    pub kind: ImageType,
    /// `NAME`, for people.
    pub name: String,
    /// Whether it is persistent.
    pub persistent: bool,
    /// `PATH`: what the user named. Of a clone, the `SOURCE` of the original.
    pub path: String,
    /// `SOURCE`: what an earlier call printed.
    pub source: String,
    /// `FORMAT`: what is wanted, or what the original has.
    pub format: String,
    /// `FS`: the file system that a new disk is to get.
    pub fs: String,
    /// `SIZE` in MiB.
    pub size_mb: Option<u64>,
    /// `CLONING_ID`.
    pub cloning: Option<u32>,
    /// What the user says that the file is.
    pub checksums: Checksums,
    /// Where the content will come from, if a disk of a VM is saved.
    pub saved: Option<Saved>,
}

/// What an image is used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImageType {
    /// What a VM boots.
    #[default]
    Os,
    /// A disk that cannot be written.
    Cdrom,
    /// A disk for data.
    Datablock,
    /// A file for the boot or the context of a VM.
    File,
    /// A backup, or what is not known.
    Other(u32),
}

/// Digests in `IMAGE/TEMPLATE`, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Checksums {
    /// 32 hexadecimal digits.
    pub md5: Option<String>,
    /// 40.
    pub sha1: Option<String>,
    /// 64; ours, for the other two prove nothing.
    pub sha256: Option<String>,
}

impl Checksums {
    /// Whether nothing is to be checked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A disk of a VM that becomes an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// The VM.
    pub vm: u32,
    /// Its disk.
    pub disk: u32,
    /// The image that the disk was made of.
    pub image: Option<u32>,
}

/// A datastore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datastore {
    /// Its number.
    pub id: u32,
    /// Its directory.
    pub base_path: PathBuf,
    /// Whether it holds files for the boot and the context of VMs alone (`FILE_DS`): of an image that is to be, `stat` is not
    /// told what it is used as.
    pub files: bool,
    /// Free space in MiB, as oned knows it.
    pub free_mb: Option<u64>,
    /// `SAFE_DIRS`: below these files may be taken.
    pub safe_dirs: Vec<String>,
    /// `RESTRICTED_DIRS`: below these not.
    pub restricted_dirs: Vec<String>,
    /// Whether files stay compressed.
    pub no_decompress: bool,
    /// Bytes per second that a download may have.
    pub bandwidth: Option<u64>,
    /// Format of data disks, if one is asked for.
    pub driver: Option<String>,
}

/// Reads the message: base64 of XML.
pub(super) fn read(action: DsAction, id: u32, stdin: &[u8]) -> Result<(Image, Datastore), Error> {
    let root = xml::read(&decode(stdin)?)?;
    if root.name != "DS_DRIVER_ACTION_DATA" {
        let text = format!("standard input holds {:?}, not DS_DRIVER_ACTION_DATA", root.name);
        return Err(invalid(clip(&text)));
    }
    let datastore = root.only("DATASTORE")?.ok_or_else(|| invalid("DATASTORE is missing"))?;
    let datastore = datastore_of(datastore)?;
    let image = match root.only("IMAGE")? {
        Some(image) => image_of(image)?,
        None if action == DsAction::Monitor => Image::default(),
        None => return Err(invalid("IMAGE is missing")),
    };
    let told = root.only("IMAGE")?.map(|image| image.value("ID")).transpose()?.flatten();
    if !matches!(action, DsAction::Stat | DsAction::Monitor) && told != Some(&id.to_string()) {
        return Err(invalid(format!("the message is about image {:?}", clip(told.unwrap_or("")))));
    }
    Ok((image, datastore))
}

pub(crate) fn decode(text: &[u8]) -> Result<Vec<u8>, Error> {
    let packed: Vec<u8> = text.iter().copied().filter(|c| !c.is_ascii_whitespace()).collect();
    if packed.len() / 4 * 3 > xml::MAX_INPUT {
        return Err(xml::XmlError::TooLarge.into());
    }
    STANDARD.decode(packed).map_err(|_| invalid("the message is not base64"))
}

fn text(of: &Element, name: &str) -> Result<String, Error> {
    let text = of.value(name)?.unwrap_or_default().trim();
    if text.len() > TEXT_MAX {
        return Err(invalid(format!("{name} has more than {TEXT_MAX} bytes")));
    }
    Ok(text.to_owned())
}

fn number(of: &Element, name: &str) -> Result<Option<u64>, Error> {
    let text = text(of, name)?;
    if text.is_empty() {
        return Ok(None);
    }
    let plain = text.bytes().all(|c| c.is_ascii_digit());
    let bad = || invalid(format!("{name} {:?} is no number", clip(&text)));
    if plain { text.parse().map(Some).map_err(|_| bad()) } else { Err(bad()) }
}

fn yes(of: &Element, name: &str) -> Result<bool, Error> {
    Ok(matches!(text(of, name)?.to_ascii_uppercase().as_str(), "YES" | "1" | "TRUE"))
}

fn image_of(image: &Element) -> Result<Image, Error> {
    let none = Element::default();
    let template = image.only("TEMPLATE")?.unwrap_or(&none);
    let id = |name| Ok::<_, Error>(decimal(&text(image, name)?));
    let own = |name| Ok::<_, Error>(decimal(&text(template, name)?));
    let saved = match (own("SAVED_VM_ID")?, own("SAVED_DISK_ID")?) {
        (Some(vm), Some(disk)) => Some(Saved { vm, disk, image: own("SAVED_IMAGE_ID")? }),
        _ => None,
    };
    Ok(Image {
        kind: match number(image, "TYPE")? {
            None | Some(0) => ImageType::Os,
            Some(1) => ImageType::Cdrom,
            Some(2) => ImageType::Datablock,
            Some(3..=5) => ImageType::File,
            Some(other) => ImageType::Other(u32::try_from(other).unwrap_or(u32::MAX)),
        },
        name: text(image, "NAME")?,
        persistent: yes(image, "PERSISTENT")?,
        path: text(image, "PATH")?,
        source: text(image, "SOURCE")?,
        format: text(image, "FORMAT")?.to_ascii_lowercase(),
        fs: text(image, "FS")?.to_ascii_lowercase(),
        size_mb: number(image, "SIZE")?,
        // -1 for none.
        cloning: id("CLONING_ID")?,
        checksums: Checksums {
            md5: checksum(template, "MD5", 32)?,
            sha1: checksum(template, "SHA1", 40)?,
            sha256: checksum(template, "SHA256", 64)?,
        },
        saved,
    })
}

fn checksum(template: &Element, name: &str, digits: usize) -> Result<Option<String>, Error> {
    let text = text(template, name)?.to_ascii_lowercase();
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() != digits || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
        let why = format!("{name} {:?} is not {digits} hexadecimal digits", clip(&text));
        return Err(invalid(why));
    }
    Ok(Some(text))
}

fn datastore_of(datastore: &Element) -> Result<Datastore, Error> {
    let none = Element::default();
    let template = datastore.only("TEMPLATE")?.unwrap_or(&none);
    let base = text(datastore, "BASE_PATH")?;
    let base_path = normal_path(Path::new(&base))
        .filter(|path| *path != Path::new("/"))
        .ok_or_else(|| invalid(format!("BASE_PATH {:?} is no absolute path", clip(&base))))?;
    let id = decimal(&text(datastore, "ID")?).ok_or_else(|| invalid("DATASTORE/ID is missing"))?;
    let dirs = |name| {
        let dirs: Vec<String> = text(template, name)?.split_whitespace().map(Into::into).collect();
        let few = dirs.len() <= DIRS_MAX;
        few.then_some(dirs).ok_or_else(|| invalid(format!("{name} lists too many directories")))
    };
    let driver = text(template, "DRIVER")?.to_ascii_lowercase();
    Ok(Datastore {
        id,
        base_path,
        files: number(datastore, "TYPE")? == Some(2),
        free_mb: number(datastore, "FREE_MB")?,
        safe_dirs: dirs("SAFE_DIRS")?,
        restricted_dirs: dirs("RESTRICTED_DIRS")?,
        no_decompress: yes(template, "NO_DECOMPRESS")?,
        bandwidth: bandwidth(&text(template, "LIMIT_TRANSFER_BW")?)?,
        driver: Some(driver).filter(|driver| !driver.is_empty()),
    })
}

/// Bytes, or KiB, MiB, GiB by `K`, `M`, `G`.
fn bandwidth(text: &str) -> Result<Option<u64>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = || invalid(format!("LIMIT_TRANSFER_BW {:?} is no number", clip(text)));
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number = decimal(digits).filter(|n| *n > 0).ok_or_else(bad)?;
    Ok(Some(u64::from(number) << shift))
}
