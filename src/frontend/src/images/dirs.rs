//! Which files of the front-end a user may name.
//!
//! Whoever may create an image names a path, and the drivers read it as oneadmin, whose home holds the keys of the cloud. So,
//! as stock datastores do: below `SAFE_DIRS` files may be taken, elsewhere below `RESTRICTED_DIRS` they may not, and
//! the latter always has OpenNebula's own directories and the home of the driver's user.
//!
//! Links are resolved first. What comes out has none in it, and everything that opens it later refuses links on the way
//! (`openat2`, `RESOLVE_NO_SYMLINKS`), so a path that is changed after this check leads to an error and nowhere else.
//!
//! Where stock datastores compare bytes, a doubt here goes to the stricter side: `SAFE_DIRS=/srv/a` is not
//! `/srv/ab`, while `RESTRICTED_DIRS=/srv/a` is. One sentence refuses what is forbidden and what is not there, so that
//! nobody learns by it what there is.

use std::path::{Component, Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::ds::Datastore;

use crate::fault::clip;

/// Not read, unless they are safe.
const ALWAYS: [&str; 2] = ["/var/lib/one/", "/etc/one/"];
/// Never read.
const OURS: &str = "/etc/ocivisor";

/// The file or directory that a path leads to, if it may be read, and the tag behind it (`FILE:TAG`).
pub(super) fn resolve(
    path: &Path,
    tagged: bool,
    datastore: &Datastore,
    home: Option<&Path>,
    secrets: &[PathBuf],
) -> Result<(PathBuf, Option<String>)> {
    let refused = || refused(path);
    let (named, tag) = if tagged { cut(path) } else { (path.to_owned(), None) };
    let real = std::fs::canonicalize(named).map_err(|_| refused())?;
    if is_ours(&real, datastore, secrets) || !may_be_read(&real, datastore, home) {
        return Err(refused());
    }
    Ok((real, tag))
}

/// A directory that may be read with all in it.
pub(super) fn resolve_whole(
    dir: &Path,
    datastore: &Datastore,
    home: Option<&Path>,
    secrets: &[PathBuf],
) -> Result<PathBuf> {
    let (real, _) = resolve(dir, false, datastore, home, secrets)?;
    let holds = |path: &Path| ways(path).any(|path| path.starts_with(&real));
    let restricted = || {
        let listed = datastore.restricted_dirs.iter().map(String::as_str).chain(ALWAYS);
        listed.map(Path::new).chain(home).any(holds)
    };
    if closed(datastore, secrets).iter().any(|path| holds(path))
        || !is_safe(&real, datastore) && restricted()
    {
        return Err(refused(dir));
    }
    Ok(real)
}

/// One sentence for all, see above.
fn refused(path: &Path) -> Error {
    let text = format!(
        "{:?} is not there, or in a directory that images may not come from",
        clip(&path.to_string_lossy())
    );
    Error::new(ErrorKind::Permission, text).hint("put it below one of the datastore's SAFE_DIRS")
}

/// What no `SAFE_DIRS` opens: the datastores, in which other users' disks have names that follow from their numbers, and
/// the drivers' own configuration with the files that it names.
fn closed(datastore: &Datastore, secrets: &[PathBuf]) -> Vec<PathBuf> {
    let datastores = datastore.base_path.parent();
    // Each may be a link to another place.
    let beside = datastores.and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten();
    let beside = beside.filter_map(|entry| Some(entry.ok()?.path()));
    let named = datastores.into_iter().chain([&*datastore.base_path, Path::new(OURS)]);
    secrets.iter().cloned().chain(beside).chain(named.map(Path::to_owned)).collect()
}

fn is_ours(real: &Path, datastore: &Datastore, secrets: &[PathBuf]) -> bool {
    closed(datastore, secrets).iter().any(|path| ways(path).any(|path| real.starts_with(path)))
}

/// A path as it is written, and where it leads. One that our user cannot follow leads to nothing that he could read.
fn ways(path: &Path) -> impl Iterator<Item = PathBuf> {
    [Some(path.to_owned()), std::fs::canonicalize(path).ok()].into_iter().flatten()
}

/// Whether it is below one of `SAFE_DIRS`.
fn is_safe(real: &Path, datastore: &Datastore) -> bool {
    datastore.safe_dirs.iter().any(|dir| {
        let dir = Path::new(dir);
        dir.is_absolute()
            && real.starts_with(dir)
            && !dir.components().any(|c| c == Component::ParentDir)
    })
}

/// Whether a path without links may be read.
fn may_be_read(real: &Path, datastore: &Datastore, home: Option<&Path>) -> bool {
    if is_safe(real, datastore) {
        return true;
    }
    // A directory is below itself.
    let text = format!("{}/", real.display());
    let home = home.filter(|home| home.is_absolute()).map(|home| format!("{}/", home.display()));
    let listed = datastore.restricted_dirs.iter().map(String::as_str);
    let mut restricted = listed.chain(ALWAYS).chain(home.as_deref());
    !restricted.any(|dir| {
        let resolved = std::fs::canonicalize(dir).ok();
        text.starts_with(dir) || resolved.is_some_and(|dir| real.starts_with(dir))
    })
}

/// A path that exists as written is never cut; tags have colons, too, so else the first one behind a path that does.
fn cut(path: &Path) -> (PathBuf, Option<String>) {
    let text = path.to_string_lossy();
    if path.symlink_metadata().is_err() {
        for (at, _) in text.match_indices(':') {
            if at + 1 < text.len() && Path::new(&text[..at]).symlink_metadata().is_ok() {
                return (text[..at].into(), Some(text[at + 1..].into()));
            }
        }
    }
    (path.to_owned(), None)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    use super::*;

    fn datastore(safe: &[&Path], restricted: &[&str]) -> Datastore {
        Datastore {
            id: 100,
            base_path: "/var/lib/one/datastores/100".into(),
            files: false,
            free_mb: None,
            safe_dirs: safe.iter().map(|dir| dir.display().to_string()).collect(),
            restricted_dirs: restricted.iter().map(|dir| (*dir).to_owned()).collect(),
            no_decompress: false,
            bandwidth: None,
            driver: None,
        }
    }

    #[test]
    fn safe_directories_go_before_restricted_ones_and_links_are_followed_first() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        for dir in ["safe", "safer", "home"] {
            fs::create_dir(at(dir)).unwrap();
            File::create(at(dir).join("file")).unwrap();
        }
        symlink("../home/file", at("safe/link")).unwrap();
        symlink("../safe/file", at("safer/back")).unwrap();
        symlink("safe", at("way")).unwrap();
        let home = at("home");
        let all = datastore(&[&at("safe")], &["/"]);
        let some = datastore(&[], &[at("safe").to_str().unwrap()]);
        let none = datastore(&[], &[]);
        for (path, all_may, some_may, none_may) in [
            ("safe/file", true, false, true),
            ("safe", true, false, true),
            ("safe/../safe/./file", true, false, true),
            ("way/file", true, false, true),
            ("safer/back", true, false, true),
            ("safe/link", false, false, false),
            ("home/file", false, false, false),
            ("home", false, false, false),
            ("safe/../home/file", false, false, false),
            // Stricter than a comparison of bytes, both ways.
            ("safer/file", false, false, true),
            ("absent", false, false, false),
        ] {
            for (datastore, may) in [(&all, all_may), (&some, some_may), (&none, none_may)] {
                let got = resolve(&at(path), false, datastore, Some(&home), &[]);
                assert_eq!(got.is_ok(), may, "{path} {datastore:?}");
                if let Ok((real, tag)) = got {
                    assert_eq!((real.canonicalize().unwrap(), tag), (real, None));
                }
            }
        }
        assert_eq!(
            resolve(&at("absent"), false, &none, None, &[])
                .unwrap_err()
                .message
                .replace(top.path().to_str().unwrap(), ""),
            "\"/absent\" is not there, or in a directory that images may not come from"
        );
    }

    #[test]
    fn opennebulas_own_directories_are_never_read() {
        let none = datastore(&[], &[]);
        for path in ["/var/lib/one/.one/one_auth", "/var/lib/one", "/etc/one/oned.conf"] {
            assert!(!may_be_read(Path::new(path), &none, None), "{path}");
        }
        let safe = datastore(&[Path::new("/var/lib/one/up")], &[]);
        assert!(may_be_read(Path::new("/var/lib/one/up/x"), &safe, None));
        let dots = datastore(&[Path::new("/srv/..")], &["/"]);
        assert!(!may_be_read(Path::new("/srv/../etc/shadow"), &dots, None));
    }

    #[test]
    fn datastores_are_closed_wherever_their_directories_lead() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        for dir in ["datastores/100", "nfs/101", "nfs/uploads"] {
            fs::create_dir_all(at(dir)).unwrap();
            File::create(at(dir).join("file")).unwrap();
        }
        symlink("../nfs/101", at("datastores/101")).unwrap();
        let own =
            Datastore { base_path: at("datastores/100"), ..datastore(&[Path::new("/")], &[]) };
        let said = |path: &str| resolve(&at(path), false, &own, None, &[]).is_ok();
        assert!(said("nfs/uploads/file"));
        for path in ["datastores/100/file", "datastores/101/file", "nfs/101/file", "datastores"] {
            assert!(!said(path), "{path}");
        }
    }

    #[test]
    fn a_directory_that_holds_a_closed_one_is_not_taken_whole() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let at = |name: &str| top.join(name);
        for dir in ["datastores/100", "app/sub", "srv/one/100", "srv/app", "srv/kept", "home/u"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        symlink("../srv/one/100", at("datastores/101")).unwrap();
        let kept = at("srv/kept");
        let own = |safe: &[&Path]| Datastore {
            base_path: at("datastores/100"),
            ..datastore(safe, &[kept.to_str().unwrap()])
        };
        let secrets = [at("app/sub/password")];
        let home = at("home/u");
        for (dir, safe, other) in [
            ("app", false, false),
            ("srv/app", true, true),
            ("srv/one", false, false),
            ("srv", false, false),
            ("home", true, false),
            ("home/u", true, false),
            ("", false, false),
        ] {
            for (own, may) in [(own(&[&top]), safe), (own(&[]), other)] {
                let got = resolve_whole(&at(dir), &own, Some(&home), &secrets);
                assert_eq!(got.is_ok(), may, "{dir:?} {:?}", own.safe_dirs);
            }
        }
    }

    #[test]
    fn tags_are_cut_from_what_is_not_there() {
        let top = tempfile::tempdir().unwrap();
        File::create(top.path().join("a.tar")).unwrap();
        File::create(top.path().join("b:1")).unwrap();
        let none = datastore(&[], &[]);
        let tag = |name: &str| resolve(&top.path().join(name), true, &none, None, &[]).map(|r| r.1);
        assert_eq!(tag("a.tar").unwrap(), None);
        assert_eq!(tag("a.tar:name:v1").unwrap().as_deref(), Some("name:v1"));
        assert_eq!(tag("b:1").unwrap(), None);
        tag("a.tar:").unwrap_err();
        tag("c:1").unwrap_err();
    }
}
