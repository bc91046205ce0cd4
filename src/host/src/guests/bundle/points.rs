//! Where the disks of a guest are mounted: the directories behind the paths that were asked for.
//!
//! An image may have links on the way, and a disk may lie below another one's mount point. Each path is followed as it
//! will be when those are mounted that come before it: in the image, up to where another disk lies over it; from there
//! on in that disk, where a tenant chose every name, so that no link is followed at all. What is bound to a path that
//! went through one would be resolved again by the runtime, and could land in `/proc`, before labels and masks are set.
//!
//! Two disks at one directory, or one over another, are refused: the guest would write to the wrong one.

use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::IdRange;
use rustix::fs::FileType;

use super::rootfs::GuestRoot;
use crate::storage::ForGuest;

/// The disks with the directories that their mount points lead to, in the order in which they are to be mounted.
///
/// # Errors
/// `Image`: a path leads to no directory of the image. `Invalid`: two are one, one hides another, or there is a link on
/// another disk.
pub(super) fn settle(
    root: &GuestRoot,
    disks: Vec<ForGuest>,
    ids: IdRange,
) -> Result<Vec<ForGuest>> {
    let (nodes, mut mounts): (Vec<_>, Vec<_>) =
        disks.into_iter().partition(|disk| disk.device.is_some());
    mounts.sort_by_key(|disk| depth(&disk.at));
    // Where they would be in the image alone, or in the one whose path theirs begins with.
    let mut leads: Vec<(PathBuf, ForGuest)> = Vec::new();
    for disk in mounts {
        let outer = leads.iter().rev().find(|(_, outer)| disk.at.starts_with(&outer.at));
        let lead = match outer
            .and_then(|(lead, outer)| Some(lead.join(disk.at.strip_prefix(&outer.at).ok()?)))
        {
            Some(lead) => lead,
            None => root.lead(&disk.at)?,
        };
        leads.push((lead, disk));
    }
    leads.sort_by_key(|(lead, disk)| (depth(lead), depth(&disk.at)));
    let mut placed: Vec<Placed> = Vec::new();
    for (_, disk) in leads {
        let at = place(root, &placed, &disk.at, ids)?;
        if let Some(other) = placed.iter().find(|other| other.disk.at.starts_with(&at)) {
            let (one, two) = (other.asked.display(), disk.at.display());
            let what = if other.disk.at == at {
                format!("mount points {one} and {two} are one directory, {}", at.display())
            } else {
                format!("mount point {two} would hide mount point {one}")
            };
            return Err(
                Error::new(ErrorKind::Invalid, what).hint("mount one of the disks elsewhere")
            );
        }
        let asked = disk.at.clone();
        placed.push(Placed { asked, disk: ForGuest { at, ..disk } });
    }
    placed.sort_by_key(|placed| depth(&placed.disk.at));
    Ok(placed.into_iter().map(|placed| placed.disk).chain(nodes).collect())
}

struct Placed {
    asked: PathBuf,
    /// Its mount point without links.
    disk: ForGuest,
}

fn depth(path: &Path) -> usize {
    path.components().count()
}

/// What a path leads to with these mounted.
fn place(root: &GuestRoot, placed: &[Placed], asked: &Path, ids: IdRange) -> Result<PathBuf> {
    let mut sofar = PathBuf::from("/");
    let mut rest = asked.strip_prefix("/").unwrap_or(asked).components();
    while let Some(name) = rest.next() {
        let whole = root.lead(&sofar.join(name))?;
        let whole: PathBuf = whole.components().chain(rest.clone()).collect();
        let over = placed.iter().filter(|other| whole.starts_with(&other.disk.at));
        let over = over.max_by_key(|other| depth(&other.disk.at));
        if let Some(other) = over.filter(|other| whole != other.disk.at) {
            let within = whole.strip_prefix(&other.disk.at).unwrap_or(&whole);
            no_links(other, within, asked)?;
            return Ok(whole);
        }
        sofar = root.ensure_mount_point(&sofar.join(name), ids)?;
    }
    if sofar == Path::new("/") {
        let what = format!("mount point {} is the root directory", asked.display());
        return Err(Error::new(ErrorKind::Image, what));
    }
    Ok(sofar)
}

/// Refuses anything but directories on the way; what is missing is made by the runtime.
fn no_links(outer: &Placed, within: &Path, asked: &Path) -> Result<()> {
    let tree = GuestRoot::open(&outer.disk.source)?;
    let mut sofar = PathBuf::from("/");
    for name in within.components() {
        sofar.push(name);
        match tree.kind(&sofar)? {
            None => return Ok(()),
            Some(FileType::Directory) => {}
            Some(_) => {
                let what = format!(
                    "mount point {}: {} on the disk at {} is not a directory",
                    asked.display(),
                    sofar.display(),
                    outer.asked.display()
                );
                return Err(Error::new(ErrorKind::Invalid, what)
                    .hint("mount the disk elsewhere, or make that a directory"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    const IDS: IdRange = IdRange { base: 1_000_000 };

    /// An image with links, and disks beside it.
    struct Ground(TempDir);

    impl Ground {
        fn new(links: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("root/srv")).unwrap();
            for (to, at) in links {
                let at = dir.path().join("root").join(at);
                fs::create_dir_all(at.parent().unwrap()).unwrap();
                symlink(to, at).unwrap();
            }
            Self(dir)
        }

        fn disk(&self, name: &str) -> PathBuf {
            let path = self.0.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        }

        /// Where disks with these mount points come.
        fn settle(&self, asked: &[&str]) -> Result<Vec<(String, String)>> {
            let disks = asked.iter().enumerate().map(|(n, at)| ForGuest {
                source: self.disk(&n.to_string()),
                at: at.into(),
                read_only: false,
                device: None,
            });
            let root = GuestRoot::open(&self.0.path().join("root")).unwrap();
            let shown = |disk: ForGuest| {
                let name = disk.source.file_name().unwrap().to_string_lossy().into_owned();
                (name, disk.at.display().to_string())
            };
            Ok(settle(&root, disks.collect(), IDS)?.into_iter().map(shown).collect())
        }
    }

    fn come(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, at)| ((*name).to_owned(), (*at).to_owned())).collect()
    }

    #[test]
    fn disks_are_mounted_in_the_order_of_where_they_really_are() {
        let ground = Ground::new(&[("/srv/a", "data")]);
        fs::create_dir(ground.0.path().join("root/srv/a")).unwrap();
        assert_eq!(
            ground.settle(&["/data", "/srv"]).unwrap(),
            come(&[("1", "/srv"), ("0", "/srv/a")])
        );
        assert_eq!(
            ground.settle(&["/data/deep/er", "/data"]).unwrap(),
            come(&[("1", "/srv/a"), ("0", "/srv/a/deep/er")])
        );
    }

    #[test]
    fn below_another_disk_the_image_counts_for_nothing_and_links_are_refused() {
        let ground = Ground::new(&[("/proc/self", "data/inner")]);
        let both = ["/data", "/data/inner"];
        assert_eq!(ground.settle(&both).unwrap(), come(&[("0", "/data"), ("1", "/data/inner")]));
        symlink("/proc/self/attr", ground.disk("0").join("inner")).unwrap();
        let error = ground.settle(&both).unwrap_err();
        let want = "mount point /data/inner: /inner on the disk at /data is not a directory";
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Invalid, want));
    }

    #[test]
    fn two_disks_at_one_directory_are_refused() {
        let ground = Ground::new(&[("/srv/a", "data"), ("/srv/a", "alias")]);
        fs::create_dir(ground.0.path().join("root/srv/a")).unwrap();
        let error = ground.settle(&["/data", "/alias"]).unwrap_err();
        let want = "mount points /data and /alias are one directory, /srv/a";
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Invalid, want));
    }

    #[test]
    fn the_root_directory_is_no_mount_point() {
        let ground = Ground::new(&[("/", "top")]);
        let error = ground.settle(&["/top"]).unwrap_err();
        assert_eq!(error.message, "mount point /top is the root directory");
    }
}
