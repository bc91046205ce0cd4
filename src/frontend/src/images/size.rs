//! `stat`: how many MiB an image will count, without bringing it in.
//!
//! The answer becomes the size of a VM's disk where the VM's template says nothing. So a container image has at least
//! `images.disk_mb`: its layers are shared and take nothing of that disk, what the guest writes does. A machine's disk has
//! the size that the machine saw.
//!
//! Quotas and the room in the datastore are counted by the answer, so what a user says (`SIZE`) can make it larger and never
//! smaller than what there is. What cannot be known before it is here is taken as it was told, and `cp` refuses more.
//!
//! A user waits for the answer, so servers get little time, and so does counting what is compressed.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{
    Cancel, HttpsUrl, Limit, Limits, Patience, Refusal, Registries, RegistriesConfig,
    RegistryReference, Source, expand,
};
use ocivisor_opennebula::ds::Place;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, ResolveFlags};

use super::{Driver, bring, build, data};
use crate::fault::{clip, failed, from_store};

/// Bytes of a file on a web server by which it is judged: what holds the first bytes of any compressed stream.
const HEAD: u64 = 512 * 1024;

/// What was found out.
enum Found {
    /// A container image: bytes of its layers as they come.
    Image(u64),
    /// A disk: bytes that a machine sees.
    Disk(u64),
    /// It is compressed, and does not say.
    Unknown,
}

/// What a file of the front-end is, by what becomes of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Here {
    /// Its files become layers as they are in it. If it is compressed as a whole, they were not.
    Archive,
    /// It becomes a layer as it is.
    Layer,
    /// It is unpacked.
    Disk,
}

impl Driver<'_> {
    pub(super) fn stat(&mut self) -> Result<String> {
        let place = Place::parse(&self.call.image.path)?;
        // Of `oneimage create --size`.
        let own = self.call.image.size_mb.filter(|mb| *mb > 0);
        let (told, found) = match place {
            Place::Registry { reference, size_mb, .. } => {
                let reference: RegistryReference = reference.parse().map_err(|e| from_store(&e))?;
                let found = self.hasty().inspect(&reference, &Limits::default(), &Cancel::new());
                let found = found.map_err(|e| from_store(&e))?;
                (size_mb.or(own), Found::Image(found.size))
            }
            Place::Web { url } => (own, self.on_the_web(&url, own)?),
            Place::Dockerfile { path, size_mb, .. } => {
                self.context(&path)?;
                (size_mb.or(own), Found::Image(0))
            }
            Place::Local { scheme, path } => {
                let (path, _) = self.resolve(&path, scheme.is_some())?;
                (own, self.here(scheme, &path)?)
            }
        };
        let (least, unsaid) = match found {
            Found::Image(packed) => (mib(packed), Some(self.config.images.disk_mb)),
            Found::Disk(bytes) => (mib(bytes), Some(0)),
            Found::Unknown => (0, None),
        };
        let Some(size) = told.or(unsaid) else {
            let shown = clip(&self.call.image.path);
            let text = format!("{shown:?} is compressed and does not say how much is in it");
            return Err(Error::new(ErrorKind::Image, text)
                .hint("say it by SIZE (oneimage create --size), in MiB"));
        };
        if size < least && told.is_some() {
            self.log(&format!("SIZE is {size} MiB, but the image has {least} MiB and counts them"));
        }
        Ok(size.max(least).to_string())
    }

    /// A file or directory of the front-end.
    fn here(&self, scheme: Option<&str>, path: &Path) -> Result<Found> {
        if path.is_dir() {
            match scheme {
                None if build::has_dockerfile(path) => self.context(path).map(drop)?,
                _ => bring::check_layout(path)?,
            }
            return directory(path).map(Found::Image);
        }
        let file = bring::open(path)?;
        let length = file.metadata().map_err(|e| failed("inspect", path, &e))?.len();
        if self.call.datastore.files {
            return Ok(Found::Disk(length));
        }
        let sort = match scheme {
            Some("disk" | "raw" | "qcow2") => Here::Disk,
            Some("rootfs") => Here::Layer,
            Some(_) => Here::Archive,
            None => match Source::detect(path) {
                Ok(Source::OciArchive { .. } | Source::DockerArchive { .. }) => Here::Archive,
                Ok(Source::RootfsTar { .. }) => Here::Layer,
                _ => Here::Disk,
            },
        };
        let shown = path.display().to_string();
        let plain = match sort {
            Here::Layer => return Ok(Found::Image(length)),
            Here::Archive => plain(&file, &shown)?,
            Here::Disk if self.call.datastore.no_decompress => None,
            Here::Disk => plain(&file, &shown)?,
        };
        if let Some(plain) = plain {
            let deadline = Instant::now() + Duration::from_secs(self.config.images.stat_timeout);
            return match count(plain, deadline).map_err(|e| failed("read", path, &e))? {
                Found::Disk(bytes) if sort == Here::Archive => Ok(Found::Image(bytes)),
                found => Ok(found),
            };
        }
        if sort == Here::Archive {
            return Ok(Found::Image(length));
        }
        data::inspect(&file, &shown).map(|disk| Found::Disk(disk.counted(length)))
    }

    /// A file of a web server.
    fn on_the_web(&self, url: &str, told: Option<u64>) -> Result<Found> {
        let registries = self.hasty();
        let address = HttpsUrl::of(url, &registries).map_err(|e| from_store(&e))?;
        let length = registries.length(&address, &Cancel::new()).map_err(|e| from_store(&e))?;
        let Some(length) = length else {
            if told.is_some() {
                return Ok(Found::Unknown);
            }
            let text = format!("{:?}: the server does not say how long it is", clip(url));
            return Err(Error::new(ErrorKind::Image, text)
                .hint("say it by SIZE (oneimage create --size), in MiB"));
        };
        if self.call.datastore.files {
            return Ok(Found::Disk(length));
        }
        let head = head(&registries, &address)?;
        let io = |e| failed("read", Path::new(&clip(url)), &e);
        let mut start = Vec::new();
        let packed = if self.call.datastore.no_decompress { None } else { plain(&head, url)? };
        match packed {
            // Cut off as it is, its end is an error.
            Some(plain) => {
                let _ = plain.take(512).read_to_end(&mut start);
                Ok(judge(&start).map_or(Found::Unknown, |sort| sort.of(length)))
            }
            None => {
                std::io::Seek::rewind(&mut &head).map_err(io)?;
                head.take(512).read_to_end(&mut start).map_err(io)?;
                data::check_known(&start, &clip(url))?;
                Ok(judge(&start).map_or(Found::Disk(length), |sort| sort.of(length)))
            }
        }
    }

    /// Registries with as much patience as a user has.
    fn hasty(&self) -> Registries {
        let most = self.config.images.stat_timeout.max(1);
        let config = RegistriesConfig {
            attempts: 2,
            deadline_seconds: most,
            ..self.config.registries.clone()
        };
        let half = Duration::from_millis(most * 500);
        let patience = Patience { connect: half, answer: half, ..Patience::default() };
        Registries::new(config).with_patience(patience)
    }
}

/// What is in a file that is compressed.
fn plain(file: &File, shown: &str) -> Result<Option<Box<dyn Read>>> {
    let again = || {
        std::io::Seek::rewind(&mut &*file)?;
        file.try_clone()
    };
    let file = again().map_err(|e| failed("open", Path::new(shown), &e))?;
    expand(file, shown, &Limits::default()).map_err(|e| from_store(&e))
}

/// What the first plain bytes of a file tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// A tar, whatever of.
    Tar,
    /// A qcow2 disk and the size that a machine sees.
    Qcow2(u64),
}

impl Sort {
    fn of(self, length: u64) -> Found {
        match self {
            Self::Tar => Found::Image(length),
            Self::Qcow2(size) => Found::Disk(data::Disk { format: "qcow2", size }.counted(length)),
        }
    }
}

fn judge(start: &[u8]) -> Option<Sort> {
    if start.get(257..262) == Some(b"ustar") {
        return Some(Sort::Tar);
    }
    let size = start.get(24..32)?.try_into().ok().map(u64::from_be_bytes)?;
    start.starts_with(b"QFI\xfb").then_some(Sort::Qcow2(size))
}

/// The first bytes of a file on a web server.
fn head(registries: &Registries, address: &HttpsUrl) -> Result<File> {
    let head = tempfile::tempfile().map_err(|e| failed("make", &std::env::temp_dir(), &e))?;
    let enough = Cancel::new();
    let came = registries.download(address, &head, u64::MAX, &enough, &mut |came| {
        if came >= HEAD {
            enough.cancel();
        }
    });
    match came {
        Err(error) if !enough.is_cancelled() => Err(from_store(&error)),
        _ => Ok(head),
    }
}

/// How much is in a disk that is compressed as a whole.
fn count(mut plain: Box<dyn Read>, deadline: Instant) -> std::io::Result<Found> {
    let mut start = Vec::new();
    plain.by_ref().take(512).read_to_end(&mut start)?;
    if let Some(Sort::Qcow2(size)) = judge(&start) {
        return Ok(Found::Disk(size));
    }
    let (mut buf, mut total) = (vec![0; 256 * 1024], start.len() as u64);
    loop {
        match plain.read(&mut buf) {
            Ok(0) => return Ok(Found::Disk(total)),
            Ok(n) => total += n as u64,
            // More than is counted here; how much may come says who brings it in.
            Err(e) if is_too_much(&e) => return Ok(Found::Unknown),
            Err(e) => return Err(e),
        }
        if Instant::now() >= deadline {
            return Ok(Found::Unknown);
        }
    }
}

fn is_too_much(e: &std::io::Error) -> bool {
    let refusal = e.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>());
    matches!(refusal, Some(Refusal::Limit { limit: Limit::ImageBytes, .. }))
}

/// Rounded up, and never 0: that would count as no size at all.
pub(super) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20).max(1)
}

/// Bytes of the blobs of an image layout; no link is followed.
fn directory(path: &Path) -> Result<u64> {
    let blobs = path.join("blobs/sha256");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let Ok(dir) = rustix::fs::openat2(CWD, &blobs, flags, Mode::empty(), resolve) else {
        return Ok(0);
    };
    let failed = |e: rustix::io::Errno| failed("list", &blobs, &e.into());
    let mut space = Vec::with_capacity(16 * 1024);
    let mut entries = RawDir::new(&dir, space.spare_capacity_mut());
    let mut total: u64 = 0;
    for _ in 0..100_000 {
        let Some(entry) = entries.next() else { break };
        let entry = entry.map_err(failed)?;
        let meta = rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
        let size = meta.ok().filter(|meta| {
            rustix::fs::FileType::from_raw_mode(meta.st_mode) == rustix::fs::FileType::RegularFile
        });
        total = total.saturating_add(size.map_or(0, |meta| meta.st_size.cast_unsigned()));
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_up() {
        assert_eq!([0, 1, 1 << 20, (1 << 20) + 1].map(mib), [1, 1, 1, 2]);
    }

    #[test]
    fn the_first_bytes_tell_archives_and_disks() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let mut qcow2 = b"QFI\xfb\0\0\0\x03".to_vec();
        qcow2.resize(24, 0);
        qcow2.extend((5_u64 << 30).to_be_bytes());
        assert_eq!(judge(&tar), Some(Sort::Tar));
        assert_eq!(judge(&qcow2), Some(Sort::Qcow2(5 << 30)));
        for start in [&tar[..261], &qcow2[..31], &[7; 512], b""] {
            assert_eq!(judge(start), None);
        }
    }

    #[test]
    fn a_layout_is_as_large_as_its_own_files() {
        let top = tempfile::tempdir().unwrap();
        let make = |name: &str, size| {
            let path = top.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap().set_len(size).unwrap();
        };
        make("secret/x", 1000);
        make("whole/blobs/sha256/a", 5);
        std::fs::create_dir_all(top.path().join("led/blobs")).unwrap();
        let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, top.path().join(at));
        link("../../../../secret/x", "whole/blobs/sha256/b").unwrap();
        link("../../secret", "led/blobs/sha256").unwrap();
        let top = top.path().canonicalize().unwrap();
        assert_eq!(directory(&top.join("led")).unwrap(), 0);
        // The link in it counts nothing, whatever it leads to.
        assert_eq!(directory(&top.join("whole")).unwrap(), 5);
    }

    #[test]
    fn what_is_compressed_is_counted_as_long_as_there_is_time() {
        let plain = || Box::new(&[7; 1000][..]);
        let later = Instant::now() + Duration::from_secs(60);
        assert!(matches!(count(plain(), later), Ok(Found::Disk(1000))));
        assert!(matches!(count(plain(), Instant::now()), Ok(Found::Unknown)));
        // So is what is more than anything may be.
        let mut file = tempfile::tempfile().unwrap();
        let noise: Vec<u8> =
            (0..1000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
        std::io::Write::write_all(&mut file, &zstd::encode_all(&*noise, 1).unwrap()).unwrap();
        let counted = |image_bytes| {
            std::io::Seek::rewind(&mut &file).unwrap();
            let limits = Limits { image_bytes, ..Limits::default() };
            let plain = expand(file.try_clone().unwrap(), "it", &limits).unwrap().unwrap();
            count(plain, later)
        };
        assert!(matches!(counted(4000), Ok(Found::Disk(4000))));
        assert!(matches!(counted(3999), Ok(Found::Unknown)));
    }
}
