//! XML as a bounded tree.
//!
//! oned's documents are small (8 to 40 KiB), use no attributes, no name spaces and no document
//! type. So everything that makes XML dangerous is refused rather than handled: `<!DOCTYPE>`,
//! entities other than the five predefined ones and character numbers, more than
//! [`MAX_INPUT`] bytes, [`MAX_DEPTH`] levels or [`MAX_ELEMENTS`] elements.
//!
//! A document that ends before its root is closed is an error, whatever was already complete in
//! it: a deployment must never start from half a document. Text after the root is refused for the
//! same reason; the newline that the transport adds is not text.
//!
//! Deliberately absent: attributes are skipped unread; control characters are left to the readers
//! of values, because a stray one in a free-text attribute is no reason to refuse a VM.

use quick_xml::Reader;
use quick_xml::errors::{Error as XmlErrorKind, SyntaxError};
use quick_xml::events::{BytesRef, Event};

/// Most bytes of a document. Who reads standard input need not read more than one byte beyond.
pub const MAX_INPUT: usize = 4 * 1024 * 1024;
/// Most levels of nesting; oned's documents have seven.
pub const MAX_DEPTH: usize = 64;
/// Most elements; a VM with a thousand security group rules has about seven thousand.
pub const MAX_ELEMENTS: usize = 100_000;

/// Why bytes are not a document that we read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XmlError {
    /// Nothing, or only white space.
    #[error("the XML is empty")]
    Empty,
    /// More than [`MAX_INPUT`] bytes.
    #[error("the XML is larger than {MAX_INPUT} bytes")]
    TooLarge,
    /// Deeper than [`MAX_DEPTH`].
    #[error("the XML is nested deeper than {MAX_DEPTH} levels at byte {at}")]
    TooDeep {
        /// Offset.
        at: u64,
    },
    /// More than [`MAX_ELEMENTS`].
    #[error("the XML has more than {MAX_ELEMENTS} elements")]
    TooMany,
    /// Not UTF-8.
    #[error("the XML is not UTF-8 at byte {at}")]
    NotUtf8 {
        /// Offset.
        at: u64,
    },
    /// It ends while elements are open or in the middle of markup.
    #[error("the XML ends too early, at byte {at}")]
    Truncated {
        /// Offset.
        at: u64,
    },
    /// A document type declaration.
    #[error("the XML has a document type declaration at byte {at}, which is refused")]
    DocType {
        /// Offset.
        at: u64,
    },
    /// A reference to an entity that is not predefined, or to no character.
    #[error("the XML refers to the entity {name:?} at byte {at}, which is refused")]
    Entity {
        /// Its name, cut.
        name: String,
        /// Offset.
        at: u64,
    },
    /// Any other breach of the syntax.
    #[error("the XML is malformed at byte {at}: {what}")]
    Malformed {
        /// Offset.
        at: u64,
        /// The parser's words.
        what: String,
    },
    /// An element that may occur once occurs again.
    #[error("the XML has more than one {parent}/{name}")]
    Duplicate {
        /// The element around.
        parent: String,
        /// The repeated element.
        name: String,
    },
}

impl From<XmlError> for ocivisor_core::error::Error {
    fn from(error: XmlError) -> Self {
        crate::invalid(error)
    }
}

/// An element: its name, its own text (references resolved, CDATA taken in), its children.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    /// Tag name.
    pub name: String,
    /// All text directly in it, joined.
    pub text: String,
    /// Elements directly in it, in order.
    pub children: Vec<Element>,
}

impl Element {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// The only child of that name, or none.
    ///
    /// # Errors
    /// [`XmlError::Duplicate`]: which one counts would be a guess.
    pub fn only(&self, name: &str) -> Result<Option<&Element>, XmlError> {
        let mut found = self.all(name);
        let first = found.next();
        if found.next().is_some() {
            return Err(XmlError::Duplicate {
                parent: crate::clip(&self.name),
                name: crate::clip(name),
            });
        }
        Ok(first)
    }

    /// The text of the only child of that name; absent and empty are the same: `None`.
    ///
    /// # Errors
    /// [`XmlError::Duplicate`].
    pub fn value(&self, name: &str) -> Result<Option<&str>, XmlError> {
        let text = self.only(name)?.map(|child| child.text.as_str());
        Ok(text.filter(|text| !text.is_empty()))
    }

    /// The children of that name, in order.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }
}

/// Reads a whole document and gives its root.
///
/// # Errors
/// [`XmlError`], with the byte offset where there is one.
pub fn read(bytes: &[u8]) -> Result<Element, XmlError> {
    if bytes.len() > MAX_INPUT {
        return Err(XmlError::TooLarge);
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| XmlError::NotUtf8 { at: error.valid_up_to() as u64 })?;
    if text.trim().is_empty() {
        return Err(XmlError::Empty);
    }
    let mut reader = Reader::from_str(text);
    let mut tree = Tree::default();
    loop {
        let at = reader.buffer_position();
        let event = reader
            .read_event()
            .map_err(|error| malformed(&error, reader.error_position(), bytes.len()))?;
        if tree.take(event, at)? == Step::End {
            break;
        }
    }
    let end = bytes.len() as u64;
    if !tree.open.is_empty() {
        return Err(XmlError::Truncated { at: end });
    }
    tree.root.ok_or(XmlError::Malformed { at: 0, what: "there is no element".into() })
}

#[derive(PartialEq, Eq)]
enum Step {
    More,
    End,
}

#[derive(Default)]
struct Tree {
    open: Vec<Element>,
    root: Option<Element>,
    elements: usize,
}

impl Tree {
    fn take(&mut self, event: Event<'_>, at: u64) -> Result<Step, XmlError> {
        match event {
            Event::Start(tag) => self.start(tag.name().as_ref(), at)?,
            Event::Empty(tag) => {
                self.start(tag.name().as_ref(), at)?;
                self.end();
            }
            // The reader checks that the names match and that something is open.
            Event::End(_) => self.end(),
            Event::Text(text) => self.text(&text.xml10_content(), at)?,
            Event::CData(text) => {
                if self.open.is_empty() {
                    return Err(outside(at));
                }
                self.text(&text.xml10_content(), at)?;
            }
            Event::GeneralRef(reference) => {
                let resolved = resolve(&reference, at)?;
                if self.open.is_empty() {
                    return Err(outside(at));
                }
                self.text(resolved.encode_utf8(&mut [0; 4]), at)?;
            }
            Event::DocType(_) => return Err(XmlError::DocType { at }),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof => return Ok(Step::End),
        }
        Ok(Step::More)
    }

    fn start(&mut self, name: &str, at: u64) -> Result<(), XmlError> {
        if self.open.is_empty() && self.root.is_some() {
            return Err(outside(at));
        }
        if self.open.len() == MAX_DEPTH {
            return Err(XmlError::TooDeep { at });
        }
        self.elements += 1;
        if self.elements > MAX_ELEMENTS {
            return Err(XmlError::TooMany);
        }
        self.open.push(Element::named(name));
        Ok(())
    }

    fn end(&mut self) {
        if let Some(done) = self.open.pop() {
            match self.open.last_mut() {
                Some(parent) => parent.children.push(done),
                None => self.root = Some(done),
            }
        }
    }

    fn text(&mut self, text: &str, at: u64) -> Result<(), XmlError> {
        match self.open.last_mut() {
            Some(element) => element.text.push_str(text),
            None if text.trim().is_empty() => {}
            None => return Err(outside(at)),
        }
        Ok(())
    }
}

fn outside(at: u64) -> XmlError {
    XmlError::Malformed { at, what: "there is something outside the root element".into() }
}

/// A character by number, or one of the five names of XML 1.0 section 4.6.
fn resolve(reference: &BytesRef<'_>, at: u64) -> Result<char, XmlError> {
    let refused = || XmlError::Entity { name: crate::clip(reference), at };
    if reference.is_char_ref() {
        // Section 2.2: no NUL, no other control characters but these.
        let allowed = |c: &char| !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\u{80}'..);
        let resolved = reference.resolve_char_ref().map_err(|_| refused())?;
        return resolved.filter(allowed).ok_or_else(refused);
    }
    match &**reference {
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "amp" => Ok('&'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        _ => Err(refused()),
    }
}

fn malformed(error: &XmlErrorKind, at: u64, len: usize) -> XmlError {
    match error {
        // Each of these says that the end of input came inside the construct.
        XmlErrorKind::Syntax(
            SyntaxError::UnclosedCData
            | SyntaxError::UnclosedComment
            | SyntaxError::UnclosedDoctype
            | SyntaxError::UnclosedPI
            | SyntaxError::UnclosedXmlDecl
            | SyntaxError::UnclosedTag
            | SyntaxError::UnclosedSingleQuotedAttributeValue
            | SyntaxError::UnclosedDoubleQuotedAttributeValue,
        ) => XmlError::Truncated { at: len as u64 },
        other => XmlError::Malformed { at, what: crate::clip(&other.to_string()) },
    }
}

#[cfg(test)]
mod tests;
