//! What front-end and host say to each other over ssh.
//!
//! A message is a line of JSON, in both directions; where a body follows, the message says so. The host answers each
//! order. After a failure it says why and ends: what is still on the way to it has no meaning then. Nothing of it is
//! ever part of a command line.

use std::io::{BufRead, Read, Write};

use ocivisor_core::error::{Error, ErrorKind, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::files::{broken, garbled};

/// Version of the messages. A host of another one refuses.
pub const VERSION: u32 = 2;
/// Most bytes of a line: the digests of an image's 4096 layers.
const MAX_LINE: u64 = 1 << 20;
/// Most bytes of an image's manifest or configuration.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// What begins each message to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// [`VERSION`].
    pub v: u32,
    /// What is asked for.
    pub order: Order,
}

/// What a host is asked for. Paths are those of `ocivisor_opennebula::tm::place`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Makes the VM's directory, and marks the datastore as one of the driver `tm`: `Done`.
    MakeDir {
        /// The directory.
        dir: String,
        /// The driver's name.
        tm: String,
    },
    /// Has an image on this host: the bodies of both documents follow. Answered by `Lacking`, then the blobs in that
    /// order are sent with [`Order::Blob`], until it is `Done`.
    Image {
        /// The system datastore's directory; what is on its way is kept there.
        datastore: String,
        /// The image's manifest.
        manifest: Document,
        /// Its configuration.
        config: Document,
    },
    /// The body of a blob that was said to be lacking. Not answered.
    Blob {
        /// Which.
        digest: String,
        /// Bytes that follow.
        size: u64,
    },
    /// Has the daemon fetch an image from a registry: `Done`.
    Pull {
        /// `docker://…@sha256:…`
        source: String,
        /// The manifest's digest.
        digest: String,
    },
    /// Has the daemon make a root disk: `Done`.
    CreateDisk {
        /// The disk.
        disk: String,
        /// Digest of the image's manifest.
        image: String,
        /// Bytes.
        size: u64,
    },
    /// Tells the daemon of the disks in a VM's directory: `Done`.
    Adopt {
        /// The directory.
        dir: String,
    },
    /// What a disk is: `Disk`.
    Look {
        /// The disk.
        disk: String,
    },
    /// Whether a VM's directory is there: `There`.
    Has {
        /// The directory.
        dir: String,
    },
    /// Takes a disk: its manifest, if it has one, then its pieces follow: `Done`.
    PutDisk {
        /// The disk.
        disk: String,
        /// Bytes of the manifest.
        manifest: Option<u64>,
    },
    /// Gives a disk: `Disk`, then the manifest and the pieces.
    GetDisk {
        /// The disk.
        disk: String,
    },
    /// Takes a VM's directory in place of what is there: its entries follow: `Done`.
    PutDir {
        /// The directory.
        dir: String,
    },
    /// Gives a VM's directory: `Done`, then its entries.
    GetDir {
        /// The directory.
        dir: String,
    },
    /// Makes an empty disk: `Done`.
    MakeImage {
        /// The disk.
        disk: String,
        /// Bytes.
        size: u64,
        /// `raw` or `qcow2`.
        format: String,
        /// A file system on it.
        fs: Option<String>,
    },
    /// Makes swap space: `Done`.
    MakeSwap {
        /// The disk.
        disk: String,
        /// Bytes.
        size: u64,
    },
    /// Makes a disk larger, never smaller: `Done`.
    Grow {
        /// The disk.
        disk: String,
        /// Bytes.
        size: u64,
        /// Whether it is qcow2.
        qcow2: bool,
    },
    /// Removes a disk and what belongs to it, or a VM's directory: `Done`.
    Remove {
        /// Which.
        path: String,
    },
    /// Whether guests run on this machine: `There`.
    IsHost,
    /// Has the daemon end the VM's guest, or whatever it is being made into, and forget it: `Done`.
    End {
        /// The VM's directory.
        dir: String,
    },
    /// Puts a mark into a datastore's directory, or takes it away: `Done`.
    Mark {
        /// The datastore's directory.
        datastore: String,
        /// The mark.
        mark: String,
        /// Whether it is to be there.
        set: bool,
    },
    /// Whether a mark is in a datastore's directory: `There`.
    Sees {
        /// The datastore's directory.
        datastore: String,
        /// The mark.
        mark: String,
    },
}

/// A document of an image, by what describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Its media type.
    pub media_type: String,
    /// `sha256:…`
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// What a host answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// It is so.
    Done,
    /// It is not; the host ends.
    Failed {
        /// Why.
        why: String,
        /// What could be done.
        hint: Option<String>,
        /// Whether something is in use, and this may work when it is not.
        busy: bool,
    },
    /// Nothing yet: it waits for another's work. The answer follows.
    Waiting,
    /// These blobs are not here.
    Lacking {
        /// Their digests.
        blobs: Vec<String>,
    },
    /// A disk; none if it is not there.
    Disk(Option<DiskFacts>),
    /// Whether something is there.
    There(bool),
}

/// What a disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskFacts {
    /// Bytes of the file.
    pub size: u64,
    /// Bytes of the manifest beside it.
    pub manifest: Option<u64>,
    /// Digest of the image's manifest, if it is a root disk.
    pub image: Option<String>,
}

/// Writes a message.
///
/// # Errors
/// The other side is gone.
pub fn write_line(to: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message).map_err(garbled)?;
    line.push(b'\n');
    to.write_all(&line).map_err(broken)
}

/// Reads a message; none at the end.
///
/// # Errors
/// It is no message, or breaks off.
pub fn try_line<T: DeserializeOwned>(from: &mut impl BufRead) -> Result<Option<T>> {
    let mut line = Vec::new();
    from.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line).map_err(broken)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => serde_json::from_slice(&line).map(Some).map_err(|e| {
            let text: String = String::from_utf8_lossy(&line).chars().take(80).collect();
            garbled(format!("{text:?} is no message: {e}"))
        }),
        Some(_) if line.len() as u64 >= MAX_LINE => Err(garbled("a message is too long")),
        Some(_) => Err(broken("a message is cut")),
    }
}

/// Reads a message that must come.
///
/// # Errors
/// It is no message, or the other side is gone.
pub fn read_line<T: DeserializeOwned>(from: &mut impl BufRead) -> Result<T> {
    try_line(from)?.ok_or_else(|| broken("the other side is gone"))
}

/// Reads a small body.
///
/// # Errors
/// It is too large, or breaks off.
pub fn read_body(from: &mut impl Read, size: u64) -> Result<Vec<u8>> {
    if size > MAX_DOCUMENT {
        return Err(garbled(format!("a document of {size} bytes")));
    }
    let mut bytes = Vec::new();
    from.take(size).read_to_end(&mut bytes).map_err(broken)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(broken("a document is cut")) }
}

impl Reply {
    /// A failure as an answer.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        Self::Failed {
            why: error.message.clone(),
            hint: error.hint.clone(),
            busy: error.kind == ErrorKind::Conflict,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_bounded_whole_and_known() {
        let order = Order::Has { dir: "/d/1/2".into() };
        let mut line = Vec::new();
        write_line(&mut line, &Message { v: VERSION, order: order.clone() }).unwrap();
        assert_eq!(line, b"{\"v\":2,\"order\":{\"has\":{\"dir\":\"/d/1/2\"}}}\n");
        assert_eq!(read_line::<Message>(&mut &line[..]).unwrap().order, order);
        assert_eq!(try_line::<Message>(&mut &b""[..]).unwrap(), None);
        for bad in [&line[..line.len() - 1], b"Welcome!\n", b"{\"v\":1}\n", b"\n"] {
            assert!(try_line::<Message>(&mut &bad[..]).is_err());
        }
        let endless = vec![b' '; (MAX_LINE + 10) as usize];
        assert!(try_line::<Message>(&mut &endless[..]).unwrap_err().message.contains("too long"));
        assert!(read_body(&mut &b"ab"[..], 3).is_err());
        assert!(read_body(&mut &b"ab"[..], MAX_DOCUMENT + 1).is_err());
    }
}
