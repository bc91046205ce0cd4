//! A VM's directory over a connection.
//!
//! A line of JSON per entry, parents first; behind that of a file its pieces ([`sparse`]). Links go as links. What is
//! neither file, directory nor link is refused: a socket or a device is nothing that could be moved.

use std::io::{BufRead, Write};
use std::os::unix::fs::PermissionsExt;

use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::dir::Dir;
use super::sparse::{self, Bounded, NewFile, Onward};
use super::{failed, garbled, is_broken};
use crate::wire;

/// Most entries of a directory.
const MAX_ENTRIES: u64 = 100_000;
/// Deepest one.
const MAX_DEPTH: usize = 16;

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case", deny_unknown_fields)]
enum Entry {
    Directory {
        path: Vec<String>,
        mode: u32,
    },
    File {
        path: Vec<String>,
        mode: u32,
    },
    Link {
        path: Vec<String>,
        target: String,
    },
    End {
        entries: u64,
    },
    /// No more comes: why.
    Failed {
        why: String,
    },
}

/// Sends all that is in a directory but what is not whole.
///
/// # Errors
/// Something cannot be read, or the other side is gone.
pub fn send(dir: &Dir, to: &mut impl Write) -> Result<u64> {
    let mut count = 0;
    let sent = send_below(dir, &mut Vec::new(), &mut count, to);
    match &sent {
        Ok(_) => wire::write_line(to, &Entry::End { entries: count })?,
        // If it was within a file, the other side knows already and has stopped to listen.
        Err(error) if !is_broken(error) => {
            wire::write_line(to, &Entry::Failed { why: error.message.clone() })?;
        }
        Err(_) => {}
    }
    sent
}

/// What is left of something that broke off: the same names as [`super::dir::temporary`] makes for disks, and the daemon.
/// Deeper down such names are somebody's data.
fn is_leftover(name: &str, depth: usize) -> bool {
    depth == 0
        && name.starts_with(".disk.")
        && (name.ends_with(".coming") || name.ends_with(".new"))
}

fn send_below(
    dir: &Dir,
    at: &mut Vec<String>,
    count: &mut u64,
    to: &mut impl Write,
) -> Result<u64> {
    if at.len() >= MAX_DEPTH {
        let what = format!("{} is too deep to be moved", dir.path().display());
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let mut sent = 0;
    for name in dir.names()? {
        if is_leftover(&name, at.len()) {
            continue;
        }
        let stat = dir.stat(&name)?.ok_or_else(|| garbled("an entry vanished"))?;
        *count += 1;
        at.push(name.clone());
        let (path, mode) = (at.clone(), stat.st_mode & 0o777);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let sub = dir.sub(&name)?.ok_or_else(|| garbled("a directory vanished"))?;
                wire::write_line(to, &Entry::Directory { path, mode })?;
                sent += send_below(&sub, at, count, to)?;
            }
            FileType::RegularFile => {
                let file = dir.file(&name, false)?.ok_or_else(|| garbled("a file vanished"))?;
                wire::write_line(to, &Entry::File { path, mode })?;
                sent += sparse::send(&file, &dir.path().join(&name), to)?;
            }
            FileType::Symlink => {
                let target = dir.read_link(&name)?;
                wire::write_line(to, &Entry::Link { path, target })?;
            }
            _ => {
                let what = format!("{} cannot be moved", dir.path().join(&name).display());
                return Err(Error::new(ErrorKind::Unsupported, what)
                    .hint("only files, directories and links can"));
            }
        }
        at.pop();
    }
    Ok(sent)
}

/// Receives all that is in a directory into a new one, durable on return.
///
/// # Errors
/// The other side is gone, or sends what is no directory.
pub fn receive(from: &mut impl BufRead, into: &Dir) -> Result<u64> {
    let mut got = 0;
    each(from, |entry, from| {
        let (path, leaf) = split(entry)?;
        let mut above = Vec::new();
        let mut parent = into;
        for name in path {
            above.push(parent.sub(name)?.ok_or_else(|| garbled("an entry without a parent"))?);
            parent = above.last().unwrap_or(into);
        }
        match entry {
            Entry::Directory { mode, .. } => {
                parent.make(leaf, (mode & 0o777) | 0o700)?;
            }
            Entry::Link { target, .. } => parent.make_link(leaf, target)?,
            Entry::File { mode, .. } => {
                let file = parent.create(leaf)?;
                let path = parent.path().join(leaf);
                got += sparse::receive(from, &mut NewFile { file: &file, path: &path })?;
                let mode = std::fs::Permissions::from_mode((mode & 0o777) | 0o600);
                file.set_permissions(mode).map_err(|e| failed("set mode of", &path, e))?;
                file.sync_all().map_err(|e| failed("sync", &path, e))?;
            }
            Entry::End { .. } | Entry::Failed { .. } => {}
        }
        parent.sync()
    })?;
    Ok(got)
}

/// Hands a directory on from one connection to another, looking at each entry; its files have no more than `most` bytes
/// of data.
///
/// # Errors
/// Either side is gone, or one sends what is no directory, or too much.
pub fn relay(from: &mut impl BufRead, to: &mut impl Write, mut most: u64) -> Result<u64> {
    let (mut moved, mut count, largest) = (0, 0, most);
    each(from, |entry, from| {
        count += 1;
        wire::write_line(to, entry)?;
        if matches!(entry, Entry::File { .. }) {
            let mut bounded = Bounded { to: Onward(&mut *to), left: &mut most, largest };
            moved += sparse::receive(from, &mut bounded)?;
        }
        Ok(())
    })?;
    wire::write_line(to, &Entry::End { entries: count })?;
    Ok(moved)
}

fn each<R: BufRead>(
    from: &mut R,
    mut take: impl FnMut(&Entry, &mut R) -> Result<()>,
) -> Result<()> {
    let mut count = 0;
    loop {
        let entry: Entry = wire::read_line(from)?;
        match &entry {
            Entry::End { entries } if *entries == count => return Ok(()),
            Entry::End { entries } => {
                return Err(garbled(format!("{count} of {entries} entries came")));
            }
            Entry::Failed { why } => return Err(Error::new(ErrorKind::Host, why)),
            Entry::Link { target, .. } if target.is_empty() || target.len() > 4095 => {
                return Err(garbled("a link to nothing"));
            }
            _ if count >= MAX_ENTRIES => return Err(garbled("too many entries")),
            _ => {
                split(&entry)?;
                take(&entry, from)?;
            }
        }
        count += 1;
    }
}

/// Names above, and its own.
fn split(entry: &Entry) -> Result<(&[String], &String)> {
    let (Entry::Directory { path, .. } | Entry::File { path, .. } | Entry::Link { path, .. }) =
        entry
    else {
        return Err(garbled("an entry without a name"));
    };
    let plain = |name: &String| {
        !matches!(name.as_str(), "" | "." | "..")
            && name.len() <= 255
            && !name.contains(['/', '\0'])
    };
    match path.split_last() {
        Some((leaf, above)) if path.len() <= MAX_DEPTH && path.iter().all(plain) => {
            Ok((above, leaf))
        }
        _ => Err(garbled("an entry of a bad name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(dir: &Dir, indent: usize) -> Vec<String> {
        let mut all = Vec::new();
        for name in dir.names().unwrap() {
            all.push(format!("{:indent$}{name}", ""));
            if let Ok(Some(sub)) = dir.sub(&name) {
                all.extend(listing(&sub, indent + 1));
            }
        }
        all
    }

    #[test]
    fn a_directory_arrives_whole_by_a_relay() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) = (Dir::open(a.path()).unwrap(), Dir::open(b.path()).unwrap());
        from.replace("disk.0", b"data").unwrap();
        from.make("disk.1.snap", 0o755).unwrap().replace("0", b"snap").unwrap();
        from.make_link("disk.1", "disk.1.snap/0").unwrap();
        from.replace(".disk.2.coming", b"half").unwrap();
        // Of this name only there, where we give such names.
        from.make("disk.1.snap", 0o755).unwrap().replace(".disk.3.new", b"data").unwrap();
        let (mut wire, mut onward) = (Vec::new(), Vec::new());
        assert_eq!(send(&from, &mut wire).unwrap(), 12);
        assert_eq!(relay(&mut &wire[..], &mut onward, 12).unwrap(), 12);
        assert!(relay(&mut &wire[..], &mut Vec::new(), 11).is_err());
        assert_eq!(onward, wire);
        assert_eq!(receive(&mut &wire[..], &to).unwrap(), 12);
        from.unlink(".disk.2.coming").unwrap();
        assert_eq!(listing(&to, 0), listing(&from, 0));
        assert_eq!(to.read_link("disk.1").unwrap(), "disk.1.snap/0");
        // Cut anywhere, it is no directory.
        for cut in [0, 1, wire.len() / 2, wire.len() - 1] {
            let c = tempfile::tempdir().unwrap();
            assert!(receive(&mut &wire[..cut], &Dir::open(c.path()).unwrap()).is_err(), "{cut}");
        }
    }

    #[test]
    fn what_cannot_be_moved_is_named_on_the_other_side() {
        let a = tempfile::tempdir().unwrap();
        let from = Dir::open(a.path()).unwrap();
        let _fifo = from.fifo("disk.1").unwrap();
        let mut wire = Vec::new();
        let error = send(&from, &mut wire).unwrap_err();
        let heard = relay(&mut &wire[..], &mut Vec::new(), 0).unwrap_err();
        assert_eq!(heard.message, error.message);
        assert!(heard.message.ends_with("disk.1 cannot be moved"), "{heard}");
    }

    #[test]
    fn names_lead_nowhere_else() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("in")).unwrap();
        let into = Dir::open(&root.path().join("in")).unwrap();
        let end = r#"{"entry":"end","entries":1}"#;
        let through = r#"{"entry":"link","path":["l"],"target":".."}
{"entry":"link","path":["l","x"],"target":"y"}
{"entry":"end","entries":2}
"#;
        assert!(receive(&mut through.as_bytes(), &into).is_err());
        for path in
            [r#"[]"#, r#"[".."]"#, r#"["a/b"]"#, r#"["..","x"]"#, r#"[""]"#, r#"["none","x"]"#]
        {
            let text = format!("{{\"entry\":\"link\",\"path\":{path},\"target\":\"t\"}}\n{end}\n");
            assert!(receive(&mut text.as_bytes(), &into).is_err(), "{path}");
        }
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
