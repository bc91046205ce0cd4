//! The context disk as its platform fills it.

use ocivisor_core::error::{Error, ErrorKind, Result};

use crate::content::Content;
use crate::iso::{Entry, Iso};
use crate::texts;

/// Most bytes of all files together.
const MAX_BYTES: u64 = 256 << 20;
/// Most files.
const MAX_FILES: usize = 1000;
/// Deepest directory; `openstack/2018-08-27/` and the like have two.
const MAX_DEPTH: usize = 4;
/// Most bytes of `context.sh`.
const MAX_VARIABLES: u32 = 1 << 20;

/// Whose disk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Platform {
    /// OpenNebula: `context.sh` and files beside it.
    OpenNebula,
    /// OpenStack's config drive: `openstack/…`.
    OpenStack,
    /// Neither.
    Unknown,
}

/// A context disk.
#[derive(Debug)]
pub struct Disk<'a> {
    /// Whose.
    pub platform: Platform,
    iso: Iso<'a>,
    root: Vec<Entry>,
}

impl<'a> Disk<'a> {
    /// Reads its directory.
    ///
    /// # Errors
    /// `Invalid`: it is no sound image. `Host`: it cannot be read.
    pub fn open(file: &'a std::fs::File) -> Result<Self> {
        let iso = Iso::open(file)?;
        let root = iso.root()?;
        let has = |name: &str, directory: bool| {
            root.iter().any(|e| e.name == name && e.directory == directory)
        };
        let platform = if has("context.sh", false) {
            Platform::OpenNebula
        } else if has("openstack", true) {
            Platform::OpenStack
        } else {
            Platform::Unknown
        };
        Ok(Self { platform, iso, root })
    }

    /// What `context.sh` assigns, if it is there.
    ///
    /// # Errors
    /// `Invalid`: too large. `Host`: it cannot be read.
    pub fn variables(&self) -> Result<Option<Vec<(String, String)>>> {
        let entry = self.root.iter().find(|e| e.name == "context.sh" && !e.directory);
        let Some(entry) = entry else { return Ok(None) };
        let bytes = self.iso.read(entry, MAX_VARIABLES)?;
        Ok(Some(texts::assignments(&String::from_utf8_lossy(&bytes))))
    }

    /// Files of the root directory, by name.
    ///
    /// # Errors
    /// `Invalid`: too many or too large.
    pub fn top_files(&self) -> Result<Vec<(String, Content<'a>)>> {
        let files = self.root.iter().filter(|entry| !entry.directory);
        bounded(files.map(|entry| (entry.name.clone(), self.iso.content(entry))).collect())
    }

    /// All files, by their path from the root.
    ///
    /// # Errors
    /// `Invalid`: too many, too large or too deep. `Host`: it cannot be read.
    pub fn all_files(&self) -> Result<Vec<(String, Content<'a>)>> {
        let mut files = Vec::new();
        let mut todo: Vec<(String, Entry)> =
            self.root.iter().map(|entry| (entry.name.clone(), entry.clone())).collect();
        let mut visited = 0;
        while let Some((path, entry)) = todo.pop() {
            visited += 1;
            if !entry.directory {
                files.push((path, self.iso.content(&entry)));
            } else if path.split('/').count() >= MAX_DEPTH {
                return Err(bad("its directories are too deep"));
            } else {
                let below = self.iso.directory(&entry)?;
                todo.extend(below.into_iter().map(|e| (format!("{path}/{}", e.name), e)));
            }
            // Directories may contain each other: what was visited counts, and what is left to visit.
            if visited + todo.len() > 2 * MAX_FILES {
                return Err(bad("it has too many files"));
            }
        }
        bounded(files)
    }
}

fn bounded<'a>(files: Vec<(String, Content<'a>)>) -> Result<Vec<(String, Content<'a>)>> {
    if files.len() > MAX_FILES {
        return Err(bad("it has too many files"));
    }
    if files.iter().map(|(_, content)| content.size()).sum::<u64>() > MAX_BYTES {
        return Err(bad("its files have more than 256 MiB"));
    }
    Ok(files)
}

fn bad(why: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("context disk: {why}"))
}
