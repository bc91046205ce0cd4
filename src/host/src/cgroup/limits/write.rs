//! One file, and a list of them as a whole.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{ErrorKind, Result};

use crate::cgroup::file;

/// One file of a guest's group, and what goes into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cgroup) struct LimitWrite {
    /// The hierarchy.
    pub root: PathBuf,
    /// The file in the group.
    pub file: String,
    /// Its new content.
    pub value: String,
    /// What is fine.
    pub allow: Allow,
}

/// What may happen to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cgroup) enum Allow {
    /// It works.
    Nothing,
    /// It is refused, because another limit has to be moved first; it comes again. That the guest uses
    /// more is final all the same.
    Refusal,
}

impl LimitWrite {
    pub(super) fn new(root: &Path, file: &str, value: &dyn Display, allow: Allow) -> Self {
        Self { root: root.to_owned(), file: file.to_owned(), value: value.to_string(), allow }
    }

    /// Writes it in `group`.
    pub(in crate::cgroup) fn apply(&self, group: &Path) -> Result<()> {
        match file::write(&group.join(&self.file), &self.value) {
            Err(e) if self.allow == Allow::Refusal && e.kind != ErrorKind::Exhausted => Ok(()),
            wrote => wrote,
        }
    }
}

/// Writes all of the list, or takes back what was written.
///
/// # Errors
/// Of the first write that failed. What the files said before is in them again, as far as the kernel
/// lets it be: it did before.
pub(in crate::cgroup) fn change(
    writes: &[LimitWrite],
    group: impl Fn(&Path) -> PathBuf,
) -> Result<()> {
    let mut before: Vec<(PathBuf, String)> = Vec::new();
    for write in writes {
        let group = group(&write.root);
        let path = group.join(&write.file);
        let done = file::read(&path).and_then(|text| {
            before.push((path, text));
            write.apply(&group)
        });
        if let Err(error) = done {
            for (path, text) in before.iter().rev() {
                // Of files with a line per device the first is the one for all (`default 100`). An
                // empty one is a set that says nothing, which is written as an empty line.
                let text = format!("{}\n", text.lines().next().unwrap_or_default());
                // The first error matters; the caller may try to set the old limits once more.
                let _ = file::write(path, &text);
            }
            return Err(error);
        }
    }
    Ok(())
}
