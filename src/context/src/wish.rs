//! What shall be in the guest: files, directories and blocks, each with how much it matters.

use ocivisor_core::error::{Error, ErrorKind, Result};

use crate::content::Content;
use crate::root::{Access, Node, Root};
use crate::state::{is_still, print_of_file, print_of_link};
use crate::{block, plan};

/// Whether somebody asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// The context says so: what cannot be done is a failure.
    Asked,
    /// We think it useful: an image that does not let it be done is not refused for that.
    Useful,
}

/// A thing that shall be there.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// Where, absolute in the guest.
    pub path: String,
    /// What.
    pub thing: Thing<'a>,
    /// How much it matters.
    pub weight: Weight,
}

/// Kinds of things.
#[derive(Debug, Clone)]
pub enum Thing<'a> {
    /// A whole file.
    File(Content<'a>, Access),
    /// A link, by its target.
    Link(Vec<u8>),
    /// Lines in a file; the file, if it is new, with this access. In a directory of the access's owner.
    Block(String, Access),
    /// The last line of a file that is there: [`crate::plan::with_line`].
    Line(String),
}

impl<'a> Wish<'a> {
    /// A file of root's.
    #[must_use]
    pub fn file(path: &str, text: impl Into<Vec<u8>>, mode: u32, weight: Weight) -> Self {
        let thing = Thing::File(Content::Bytes(text.into()), Access::root(mode));
        Self { path: path.to_owned(), thing, weight }
    }

    /// A link.
    #[must_use]
    pub fn link(path: &str, target: &str, weight: Weight) -> Self {
        Self { path: path.to_owned(), thing: Thing::Link(target.into()), weight }
    }

    /// How it is recognised once it is there; `None` for a block or line.
    ///
    /// # Errors
    /// The context disk cannot be read.
    pub fn print(&self) -> Result<Option<String>> {
        Ok(match &self.thing {
            Thing::File(content, _) => {
                let digest = content.digest().map_err(|e| crate::disk_error(&e))?;
                Some(print_of_file(content.size(), &digest))
            }
            Thing::Link(target) => Some(print_of_link(target)),
            Thing::Block(..) | Thing::Line(_) => None,
        })
    }

    /// Whether it is so already.
    ///
    /// # Errors
    /// The guest's files cannot be read.
    pub fn is_so(&self, root: &Root) -> Result<bool> {
        match (&self.thing, self.print()?) {
            (Thing::Block(lines, access), _) => root.acting_as(access.uid, access.gid, |root| {
                Ok(match root.read(&self.path, MAX_BLOCK_FILE)? {
                    Node::File(_, Some(bytes)) => block::set(&bytes, lines) == bytes,
                    _ => false,
                })
            }),
            (Thing::File(content, access), _) => {
                let print = content.digest().map_err(|e| crate::disk_error(&e))?;
                let found = root.digest(&self.path, content.size())?;
                Ok(found.is_some_and(|found| found == (*access, print)))
            }
            (Thing::Line(line), _) => Ok(match root.read(&self.path, MAX_LINE_FILE)? {
                Node::File(_, Some(bytes)) => plan::with_line(&bytes, line) == bytes,
                _ => false,
            }),
            (_, Some(print)) => is_still(root, &self.path, &print),
            (_, None) => Ok(false),
        }
    }

    /// Makes it so.
    ///
    /// # Errors
    /// The guest's files do not let themselves be written.
    pub fn write(&self, root: &Root) -> Result<()> {
        match &self.thing {
            Thing::File(content, access) => root.write(&self.path, content, *access),
            Thing::Link(target) => root.link(&self.path, target),
            Thing::Block(lines, access) => set_block(root, &self.path, lines, *access),
            Thing::Line(line) => set_line(root, &self.path, line),
        }
    }
}

/// Most bytes of a file that we put lines into.
const MAX_BLOCK_FILE: u64 = 1 << 20;
/// Most bytes of a file that gets a line.
pub const MAX_LINE_FILE: u64 = 256 << 10;

/// Makes our line the last one of a file, or takes it out if it is empty. Where there is no such file it is left so.
///
/// # Errors
/// The file does not let itself be written.
pub fn set_line(root: &Root, path: &str, line: &str) -> Result<()> {
    let Node::File(access, Some(old)) = root.read(path, MAX_LINE_FILE)? else { return Ok(()) };
    let new = plan::with_line(&old, line);
    if new == old { Ok(()) } else { root.write(path, &Content::Bytes(new), access) }
}

/// Puts our lines into a file, or takes them out if there are none; what is no regular file is replaced.
///
/// # Errors
/// `Image`: the file is too large, or does not let itself be written.
pub fn set_block(root: &Root, path: &str, lines: &str, access: Access) -> Result<()> {
    root.acting_as(access.uid, access.gid, |root| {
        let (old, own) = match root.read(path, MAX_BLOCK_FILE)? {
            Node::File(own, Some(bytes)) => (bytes, Some(own)),
            Node::File(_, None) => {
                let what = format!("the guest's {path} has more than {MAX_BLOCK_FILE} bytes");
                return Err(Error::new(ErrorKind::Image, what));
            }
            Node::Absent | Node::Link(_) | Node::Directory | Node::Odd => (Vec::new(), None),
        };
        let new = block::set(&old, lines);
        match own {
            // Nothing of ours is there, nor shall be.
            None if lines.is_empty() => Ok(()),
            Some(_) if new == old => Ok(()),
            _ if new.is_empty() => root.remove(path),
            // A user's file is his, also if it was root's: he could not give it back.
            Some(own) if access.uid != 0 => {
                root.write(path, &Content::Bytes(new), Access { mode: own.mode, ..access })
            }
            own => root.write(path, &Content::Bytes(new), own.unwrap_or(access)),
        }
    })
}
