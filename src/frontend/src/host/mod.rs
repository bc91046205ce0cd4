//! The other side: what `ocivisor one host` does on a host, and on the front-end for its own directories.
//!
//! It runs as the platform's user, without privilege. What needs the daemon (images, root disks) goes through
//! [`Daemon`]. Every order may come twice, and after any break: what is not whole has a name of its own
//! ([`crate::files::dir::temporary`]), and is made anew.

mod disk;
mod image;
mod lock;
mod make;
mod remove;
pub mod usage;

pub(crate) use image::gone;

use std::fs::File;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::tm::place::{DatastorePlace, DiskPlace, Target, VmPlace};

use crate::files::dir::{self, Dir};
use crate::files::{garbled, tree};
use crate::wire::{self, Message, Order, Reply};

/// The host's daemon, as far as disks need it.
pub trait Daemon: Send {
    /// Digests of the layers' blobs that an import of this OCI layout would read.
    ///
    /// # Errors
    /// It cannot be asked, or the layout is no image.
    fn lacking(&mut self, layout: &Path) -> Result<Vec<String>>;

    /// Brings an image in, from `oci:DIR` or a registry, under that name. Blobs in `DIR` may be FIFOs.
    ///
    /// # Errors
    /// It did not come in. `Cancelled`: the daemon ended before that, and has kept what was whole.
    fn import(&mut self, source: &str, name: &str) -> Result<()>;

    /// Makes a root disk; the same one again is success.
    ///
    /// # Errors
    /// `Conflict`: another has the name.
    fn create_disk(&mut self, image: &str, size: u64, path: &Path) -> Result<()>;

    /// Tells of a disk that was brought here.
    ///
    /// # Errors
    /// One of its layers is not here.
    fn adopt(&mut self, path: &Path) -> Result<()>;

    /// Whether there is one: a front-end may be a host, too.
    fn is_there(&mut self) -> bool;

    /// Ends the guest of the VM whose root disk is in that directory, also one that is only being made, and forgets the VM;
    /// none is fine. On return nothing of it runs or is mounted.
    ///
    /// # Errors
    /// Something of it is left. `Conflict`: the VM of that number has its disk elsewhere; nothing is done.
    fn end(&mut self, vm: u32, dir: &Path) -> Result<()>;
}

/// Serves orders until the other side is gone.
///
/// # Errors
/// The connection is at fault. What an order asked for and could not be done was answered.
pub fn serve(from: &mut impl BufRead, to: &mut impl Write, daemon: &mut dyn Daemon) -> Result<()> {
    while let Some(message) = wire::try_line::<Message>(from)? {
        let done = if message.v == wire::VERSION {
            obey(&message.order, from, to, daemon)
        } else {
            let what =
                format!("messages of version {}, this host knows {}", message.v, wire::VERSION);
            Err(Error::new(ErrorKind::Unsupported, what)
                .hint("install the same version of ocivisor on front-end and hosts"))
        };
        match done {
            Ok(reply) => reply.map_or(Ok(()), |reply| wire::write_line(to, &reply))?,
            Err(error) => {
                wire::write_line(to, &Reply::of(&error))?;
                return to.flush().map_err(crate::files::broken);
            }
        }
        to.flush().map_err(crate::files::broken)?;
    }
    Ok(())
}

/// The answer, if it is not given yet.
fn obey(
    order: &Order,
    from: &mut impl BufRead,
    to: &mut impl Write,
    daemon: &mut dyn Daemon,
) -> Result<Option<Reply>> {
    // A caller that was given up may still be at work on this VM.
    let _alone = alone(order)?;
    match order {
        Order::MakeDir { dir, tm } => make_dir(&dir.parse()?, tm)?,
        Order::Image { datastore, manifest, config } => {
            let place: DatastorePlace = datastore.parse()?;
            image::bring(&place, (manifest, config), from, to, daemon)?;
        }
        Order::Blob { .. } => return Err(garbled("a blob that nobody asked for")),
        Order::Pull { source, digest } => image::pull(source, digest, to, daemon)?,
        Order::CreateDisk { disk, image, size } => {
            disk::create(&disk.parse()?, image, *size, daemon)?;
        }
        Order::Adopt { dir } => disk::adopt(&dir.parse()?, daemon)?,
        Order::Look { disk } => return Ok(Some(Reply::Disk(disk::look(&disk.parse()?)?))),
        Order::Has { dir } => {
            let place: VmPlace = dir.parse()?;
            return Ok(Some(Reply::There(vm_dir(&place)?.is_some())));
        }
        Order::PutDisk { disk, manifest } => disk::put(&disk.parse()?, *manifest, from)?,
        Order::GetDisk { disk } => {
            disk::get(&disk.parse()?, to)?;
            return Ok(None);
        }
        Order::PutDir { dir } => put_dir(&dir.parse()?, from)?,
        Order::GetDir { dir } => {
            let dir = present(&dir.parse()?)?;
            let _held = remove::hold_all(&dir)?;
            wire::write_line(to, &Reply::Done)?;
            tree::send(&dir, to)?;
            return Ok(None);
        }
        Order::MakeImage { disk, size, format, fs } => {
            make::image(&disk.parse()?, *size, format, fs.as_deref())?;
        }
        Order::MakeSwap { disk, size } => make::swap(&disk.parse()?, *size)?,
        Order::Grow { disk, size, qcow2 } => make::grow(&disk.parse()?, *size, *qcow2)?,
        Order::Remove { path } => remove::remove(&path.parse::<Target>()?)?,
        Order::IsHost => return Ok(Some(Reply::There(daemon.is_there()))),
        Order::End { dir } => {
            let place: VmPlace = dir.parse()?;
            daemon.end(place.vm, &place.path())?;
        }
        Order::Mark { datastore, mark, set } => {
            let dir = Dir::open(&datastore.parse::<DatastorePlace>()?.path())?;
            let name = mark_name(mark)?;
            if *set {
                sweep_marks(&dir)?;
                dir.replace(&name, b"")?;
            } else {
                dir.unlink(&name)?;
            }
        }
        Order::Sees { datastore, mark } => {
            let name = mark_name(mark)?;
            let seen = match Dir::open(&datastore.parse::<DatastorePlace>()?.path()) {
                Ok(dir) => dir.stat(&name)?.is_some(),
                Err(e) if e.kind == ErrorKind::NotFound => false,
                Err(e) => return Err(e),
            };
            return Ok(Some(Reply::There(seen)));
        }
    }
    Ok(Some(Reply::Done))
}

/// The lock of the VM that an order is about, if it is about one.
fn alone(order: &Order) -> Result<Option<File>> {
    let disk = |disk: &str| disk.parse().map(|disk: DiskPlace| disk.dir);
    let place = match order {
        Order::MakeDir { dir, .. } | Order::PutDir { dir } => {
            let place: VmPlace = dir.parse()?;
            Dir::ensure(&place.datastore.path())?;
            place
        }
        Order::Adopt { dir } | Order::GetDir { dir } => dir.parse()?,
        Order::CreateDisk { disk: path, .. }
        | Order::PutDisk { disk: path, .. }
        | Order::GetDisk { disk: path }
        | Order::MakeImage { disk: path, .. }
        | Order::MakeSwap { disk: path, .. }
        | Order::Grow { disk: path, .. } => disk(path)?,
        Order::Remove { path } => match path.parse()? {
            Target::Directory(place) => place,
            Target::Disk(disk) => disk.dir,
        },
        Order::Image { .. }
        | Order::Blob { .. }
        | Order::Pull { .. }
        | Order::Look { .. }
        | Order::Has { .. }
        | Order::End { .. }
        | Order::IsHost
        | Order::Mark { .. }
        | Order::Sees { .. } => return Ok(None),
    };
    lock::take(&place)
}

/// Whether the datastore is one directory on two machines is found out by a file of this name.
fn mark_name(mark: &str) -> Result<String> {
    let plain = (1..=64).contains(&mark.len()) && mark.bytes().all(|c| c.is_ascii_alphanumeric());
    if plain { Ok(format!("{SHARE_MARK}{mark}")) } else { Err(garbled("a mark that is none")) }
}

/// What begins the name of such a file.
pub(crate) const SHARE_MARK: &str = ".ocivisor-mark-";
/// How long such a file may be needed; it is for moments.
const MARKED: Duration = Duration::from_secs(3600);

/// Removes what was left by calls that were killed.
pub(crate) fn sweep_marks(datastore: &Dir) -> Result<()> {
    for name in datastore.names()?.into_iter().filter(|name| name.contains(SHARE_MARK)) {
        let Some(stat) = datastore.stat(&name)? else { continue };
        let made = UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        if SystemTime::now().duration_since(made).is_ok_and(|age| age > MARKED) {
            datastore.unlink(&name)?;
        }
    }
    Ok(())
}

/// The mark's file.
const MARK: &str = ".monitor";
/// Stock drivers whose datastores are shared, as oned.conf comes (`SHARED = "YES"`). oned asks the front-end how full those are;
/// with a mark each host would tell it as well, and of VMs that are not its own.
const SHARED: [&str; 6] = ["shared", "qcow2", "fs_lvm", "fs_lvm_ssh", "ceph", "iscsi_libvirt"];

/// The VM's directory, and the mark by which OpenNebula's probes know a datastore that is not shared as one of this driver's.
fn make_dir(place: &VmPlace, tm: &str) -> Result<()> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    if tm.is_empty() || tm.len() > 64 || !tm.bytes().all(plain) || tm.starts_with('.') {
        return Err(garbled("a driver's name that is none"));
    }
    let datastore = Dir::ensure(&place.datastore.path())?;
    let own = datastore.make(&place.name(), 0o755)?;
    let marked = datastore.read(MARK, 4096)?.as_deref() == Some(tm.as_bytes());
    if SHARED.contains(&tm) {
        // Ours, of earlier versions.
        if marked {
            datastore.unlink(MARK)?;
        }
    } else if !marked {
        // Several VMs may be the first here at once, on several hosts of a share even: each writes in its own directory.
        own.replace(MARK, tm.as_bytes())?;
        own.give(MARK, &datastore)?;
    }
    datastore.sync()
}

/// The directory of a VM, if it is there.
fn vm_dir(place: &VmPlace) -> Result<Option<Dir>> {
    match Dir::open(&place.datastore.path()) {
        Ok(datastore) => datastore.sub(&place.name()),
        Err(e) if e.kind == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn present(place: &VmPlace) -> Result<Dir> {
    vm_dir(place)?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("{} does not exist", place.path().display()))
    })
}

/// Takes a directory in the place of what is there.
fn put_dir(place: &VmPlace, from: &mut impl BufRead) -> Result<()> {
    let datastore = Dir::ensure(&place.datastore.path())?;
    let coming = dir::temporary(&place.name());
    datastore.remove(&coming)?;
    let new = datastore.make(&coming, 0o755)?;
    let put = tree::receive(from, &new).and_then(|_| {
        let _held = replaceable(&datastore, place, &new)?;
        datastore.put_in_place(&coming, &place.name())?;
        datastore.sync()
    });
    // What it was exchanged for, or what came of it; the next try removes what cannot be removed now.
    let removed = datastore.remove(&coming);
    put.and(removed)
}

/// Whether what is there may go for that: no guest runs on it, and it is not exchanged for something without disks. Its
/// disks are locked as long as the result lives.
fn replaceable(datastore: &Dir, place: &VmPlace, by: &Dir) -> Result<Vec<File>> {
    let Some(now) = datastore.sub(&place.name())? else { return Ok(Vec::new()) };
    let held = remove::hold_all(&now)?;
    let is_disk = |name: &String| name.starts_with("disk.");
    if now.names()?.iter().any(is_disk) && !by.names()?.iter().any(is_disk) {
        let what = format!("{} has disks, and what came has none", place.path().display());
        let hint = "find out where the VM's disks are, then remove the other directory";
        return Err(Error::new(ErrorKind::Conflict, what).hint(hint));
    }
    Ok(held)
}

/// The name of a disk's manifest.
fn manifest_of(disk: &DiskPlace) -> String {
    format!("{}{}", disk.name(), crate::MANIFEST_SUFFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_vms_of_a_datastore_may_come_at_once() {
        let root = tempfile::tempdir().unwrap();
        for store in 100..120 {
            let place = |vm: u32| -> VmPlace {
                format!("{}/{store}/{vm}", root.path().display()).parse().unwrap()
            };
            std::thread::scope(|scope| {
                let calls: Vec<_> = (0..8)
                    .map(|vm| scope.spawn(move || make_dir(&place(vm), "ocivisor")))
                    .collect();
                for call in calls {
                    call.join().unwrap().unwrap();
                }
            });
            let datastore = Dir::open(&root.path().join(store.to_string())).unwrap();
            assert_eq!(datastore.read(MARK, 10).unwrap().unwrap(), b"ocivisor");
            let mut names: Vec<String> = (0..8).map(|vm| vm.to_string()).collect();
            names.insert(0, MARK.to_owned());
            assert_eq!(datastore.names().unwrap(), names);
            assert_eq!(vm_dir(&place(0)).unwrap().unwrap().names().unwrap(), Vec::<String>::new());
        }
    }

    #[test]
    fn datastores_that_oned_takes_for_shared_have_no_mark() {
        let root = tempfile::tempdir().unwrap();
        let place: VmPlace = format!("{}/100/7", root.path().display()).parse().unwrap();
        let mark = || Dir::open(&place.datastore.path()).unwrap().read(MARK, 100).unwrap();
        for tm in SHARED {
            make_dir(&place, tm).unwrap();
            assert_eq!(mark(), None, "{tm}");
        }
        for tm in ["ssh", "local", "ocivisor"] {
            make_dir(&place, tm).unwrap();
            assert_eq!(mark().unwrap(), tm.as_bytes());
        }
        // One of our own from before goes, somebody else's does not.
        make_dir(&place, "shared").unwrap();
        assert_eq!(mark().unwrap(), b"ocivisor");
        Dir::open(&place.datastore.path()).unwrap().replace(MARK, b"shared").unwrap();
        make_dir(&place, "shared").unwrap();
        assert_eq!(mark(), None);
    }

    /// What comes of a directory with that file.
    fn comes(place: &VmPlace, file: &str) -> Result<()> {
        let from = tempfile::tempdir().unwrap();
        let from = Dir::open(from.path()).unwrap();
        from.replace(file, b"new").unwrap();
        let mut wire = Vec::new();
        tree::send(&from, &mut wire).unwrap();
        put_dir(place, &mut &wire[..])
    }

    #[test]
    fn disks_that_a_guest_runs_on_or_that_would_be_lost_are_not_exchanged() {
        let root = tempfile::tempdir().unwrap();
        let place: VmPlace = format!("{}/101/7", root.path().display()).parse().unwrap();
        comes(&place, "disk.0").unwrap();
        let dir = vm_dir(&place).unwrap().unwrap();
        let guest = dir.file("disk.0", true).unwrap().unwrap();
        rustix::fs::flock(&guest, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let error = comes(&place, "disk.0").unwrap_err();
        assert!(error.kind == ErrorKind::Conflict && error.message.ends_with("is in use"));
        drop(guest);
        let error = comes(&place, "vm.xml").unwrap_err();
        assert!(error.message.ends_with("7 has disks, and what came has none"), "{error}");
        assert_eq!(dir.names().unwrap(), ["disk.0"]);
        comes(&place, "disk.1").unwrap();
        let dir = vm_dir(&place).unwrap().unwrap();
        assert_eq!(dir.names().unwrap(), ["disk.1"]);
        let datastore = Dir::open(&place.datastore.path()).unwrap();
        assert_eq!(datastore.names().unwrap(), ["7"], "nothing is left of what was refused");
    }

    #[test]
    fn marks_of_killed_calls_go_when_they_are_old() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dir::open(root.path()).unwrap();
        let names =
            [".ocivisor-mark-1x2", "..ocivisor-mark-1x2.coming", "disk.0", ".ocivisor-mark-3x4"];
        for name in names {
            dir.replace(name, b"").unwrap();
            if name != names[3] {
                let file = dir.file(name, true).unwrap().unwrap();
                file.set_modified(SystemTime::now() - 2 * MARKED).unwrap();
            }
        }
        sweep_marks(&dir).unwrap();
        assert_eq!(dir.names().unwrap(), [".ocivisor-mark-3x4", "disk.0"]);
    }
}
