//! Image sources as operators name them.
//!
//! The store's own reading of a source looks at the host to tell a path from a tag behind it. It would
//! look as root wherever an operator points it, and its answer would tell him what is there. Here only
//! what he may name is looked at, and no link is followed; what he may not name is not there.

use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{DiskFormat, DiskOptions, Source};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::ours;
use crate::caller::Caller;
use crate::paths::PathPolicy;

/// What an operator's text means; its path is still to be resolved. Kinds must be said, so that no file
/// is opened to find out.
///
/// # Errors
/// `Permission`: it does not say what it is. `Invalid`: it says nothing that could be.
pub(super) fn source(text: &str, caller: Caller, paths: &PathPolicy) -> Result<Source> {
    if ["docker://", "https://"].iter().any(|scheme| text.starts_with(scheme)) {
        return text.parse().map_err(|e| ours(&e));
    }
    let bad = |why: &str| Error::new(ErrorKind::Invalid, format!("image source {text}: {why}"));
    let (scheme, rest) = text.split_once(':').unwrap_or(("", text));
    let cut = || match cut(rest, |path| is_there(caller, paths, path)) {
        (_, Some("")) => Err(bad("nothing follows the last ':'")),
        (path, tag) => Ok((PathBuf::from(path), tag.map(str::to_owned))),
    };
    let disk = |format| {
        let (file, partition) = cut()?;
        let number = partition.map(|number| number.parse()).transpose();
        let partition = number.map_err(|_| bad("the partition after the last ':' is no number"))?;
        let options = DiskOptions { format, partition, ..DiskOptions::default() };
        Ok(Source::DiskImage { file, options })
    };
    match scheme {
        "oci" => cut().map(|(dir, tag)| Source::OciLayout { dir, tag }),
        "oci-archive" => cut().map(|(file, tag)| Source::OciArchive { file, tag }),
        "docker-archive" => cut().map(|(file, tag)| Source::DockerArchive { file, tag }),
        "rootfs" => Ok(Source::RootfsTar { file: rest.into() }),
        "disk" => disk(None),
        "raw" => disk(Some(DiskFormat::Raw)),
        "qcow2" => disk(Some(DiskFormat::Qcow2)),
        _ => {
            let what = format!("image source {text}: operators must say what it is");
            let hint = "put docker://, https://, oci:, oci-archive:, docker-archive:, rootfs: or \
                        disk: in front";
            Err(Error::new(ErrorKind::Permission, what).hint(hint))
        }
    }
}

/// Path and tag, as the store cuts them: what is there as a whole is not cut; else at the first colon
/// that leaves something that is there, for tags have colons, too.
fn cut(rest: &str, is_there: impl Fn(&Path) -> bool) -> (&str, Option<&str>) {
    if is_there(Path::new(rest)) {
        return (rest, None);
    }
    let mut cuts = rest.match_indices(':').map(|(at, _)| rest.split_at(at));
    let found = cuts.find(|(path, _)| is_there(Path::new(path)));
    found.map_or((rest, None), |(path, tag)| (path, Some(&tag[1..])))
}

fn is_there(caller: Caller, paths: &PathPolicy, path: &Path) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = |real: PathBuf| openat2(CWD, &real, flags, Mode::empty(), resolve).is_ok();
    paths.resolve(caller, path).is_ok_and(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Caller = Caller::Operator(1001);

    #[test]
    fn paths_are_told_from_tags_where_an_operator_may_look_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let real = std::fs::canonicalize(dir.path()).unwrap();
        let (open, closed) = (real.join("open"), real.join("closed"));
        for path in [open.join("a.tar"), open.join("b:1"), closed.join("a.tar")] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::os::unix::fs::symlink(&closed, open.join("way")).unwrap();
        std::os::unix::fs::symlink(closed.join("a.tar"), open.join("link")).unwrap();
        std::os::unix::fs::symlink(closed.join("none"), open.join("dangling")).unwrap();
        let paths = PathPolicy::new(std::slice::from_ref(&open));
        let read = |scheme: &str, path: &Path, tag: &str| {
            source(&format!("{scheme}:{}{tag}", path.display()), ONE, &paths)
        };
        let layout = |path: PathBuf, tag: Option<&str>| {
            Ok(Source::OciLayout { dir: path, tag: tag.map(str::to_owned) })
        };
        assert_eq!(read("oci", &open.join("a.tar"), ""), layout(open.join("a.tar"), None));
        let tagged = read("oci", &open.join("a.tar"), ":host/x:1");
        assert_eq!(tagged, layout(open.join("a.tar"), Some("host/x:1")));
        assert_eq!(read("oci", &open.join("b:1"), ":2"), layout(open.join("b:1"), Some("2")));
        let options = DiskOptions { partition: Some(3), ..DiskOptions::default() };
        let disk = Source::DiskImage { file: open.join("a.tar"), options };
        assert_eq!(read("disk", &open.join("a.tar"), ":3"), Ok(disk));
        for bad in [read("disk", &open.join("a.tar"), ":x"), read("oci", &open.join("a.tar"), ":")]
        {
            assert_eq!(bad.unwrap_err().kind, ErrorKind::Invalid);
        }

        // What is there and what is not are alike, by whatever way.
        for path in [
            closed.join("a.tar"),
            closed.join("none"),
            open.join("way/a.tar"),
            open.join("way/none"),
            open.join("link"),
            open.join("dangling"),
        ] {
            let whole = PathBuf::from(format!("{}:x", path.display()));
            assert_eq!(read("oci", &path, ":x"), layout(whole, None), "{}", path.display());
        }
        for text in ["/srv/a.tar", "dir:/srv/a", "http://a.example/x", ""] {
            assert_eq!(
                source(text, ONE, &paths).unwrap_err().kind,
                ErrorKind::Permission,
                "{text}"
            );
        }
    }
}
