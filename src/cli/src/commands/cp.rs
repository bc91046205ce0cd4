//! Copies files between a guest and here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use clap::Args;
use ocivisor_copy::place::Parts;
use ocivisor_core::ids::VmId;
use ocivisor_schema::Text;

use crate::attach::Signals;
use crate::connect::{Context, block_on};
use crate::copy::{Here, Job, run as work};
use crate::failure::{Exit, Failure};
use crate::session::connect;

/// Options of `cp`.
#[derive(Debug, Args)]
#[command(
    after_help = "A path of a guest is VM:PATH; it begins at the guest's root. - is a tar stream.\n\
    A file with a colon in its name is ./NAME here.\n\n\
    A directory is copied into one that is there, or becomes DEST; SRC/. is what is in it."
)]
pub struct Options {
    /// Keep owners and set-id bits; else all belongs to who makes it
    #[arg(short, long)]
    archive: bool,
    /// Follow a symbolic link that SRC names
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// What to copy
    #[arg(value_name = "SRC", allow_hyphen_values = true)]
    source: OsString,
    /// Where to
    #[arg(value_name = "DEST", allow_hyphen_values = true)]
    dest: OsString,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Guest(VmId, String),
    Here(OsString),
    Stream,
}

impl Place {
    fn of(word: &OsStr) -> Result<Self, Failure> {
        // A file here may have any name; what a request says is text.
        let Some(text) = word.to_str() else {
            let bytes = word.as_bytes();
            let colon = bytes.iter().position(|byte| *byte == b':');
            return match colon {
                Some(at)
                    if !bytes.starts_with(b"/")
                        && !bytes.starts_with(b".")
                        && !bytes[..at].contains(&b'/') =>
                {
                    let what = format!("{}: a path in a guest must be UTF-8", word.display());
                    Err(Failure::new(Exit::Usage, what).hint("copy the directory that it is in"))
                }
                _ => Ok(Self::Here(word.to_owned())),
            };
        };
        if text == "-" {
            return Ok(Self::Stream);
        }
        if text.is_empty() {
            return Err(Failure::new(Exit::Usage, "a path is empty"));
        }
        match text.split_once(':') {
            Some((vm, path)) if !text.starts_with(['/', '.']) && !vm.contains('/') => {
                let id = vm.parse().map_err(|e| {
                    Failure::new(Exit::Usage, format!("vm {vm:?}: {e}"))
                        .hint("a file with a colon in its name is ./NAME")
                })?;
                // As of docker: relative to the root.
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                Ok(Self::Guest(id, path))
            }
            _ => Ok(Self::Here(word.to_owned())),
        }
    }
}

/// Copies; a signal ends it with 128 and its number.
///
/// # Errors
/// What failed, here or there.
pub fn main(options: &Options, context: &Context) -> Result<u8, Failure> {
    block_on(run(options, context))
}

async fn run(options: &Options, context: &Context) -> Result<u8, Failure> {
    let usage = |what: &str| Failure::new(Exit::Usage, what);
    let (direction, vm, path, here) = match (Place::of(&options.source)?, Place::of(&options.dest)?)
    {
        (Place::Guest(..), Place::Guest(..)) => {
            return Err(usage("both are in guests")
                .hint("copy to here first, or pipe: ocivisor cp A:X - | ocivisor cp - B:Y"));
        }
        (Place::Guest(vm, path), here) => ("out", vm, path, here),
        (here, Place::Guest(vm, path)) => ("in", vm, path, here),
        _ => return Err(usage("neither is in a guest").hint("a path in a guest is VM:PATH")),
    };
    let here = match here {
        Place::Here(path) => Here::Path(path.into_vec()),
        Place::Stream | Place::Guest(..) => Here::Stream,
    };
    let job = match direction {
        "out" => {
            let expect = Parts::of(path.as_bytes()).top().to_vec();
            Job::Out { to: here, expect, owners: options.archive }
        }
        _ => Job::In { from: here, follow: options.follow_link },
    };
    // Before the guest is troubled.
    job.check()?;
    let archive = matches!(job, Job::In { from: Here::Stream, .. });
    // From here on there is something to end.
    let signals = Signals::catch()?;
    let client = context.daemon().await?;
    let follow = options.follow_link;
    let owners = options.archive;
    let begun = client.vm_copy(Text(vm), direction.into(), path, follow, owners, archive);
    let place = context.ask(begun).await?;
    let stream = connect(Path::new(&place.socket), &place.token).await?;
    work(job, stream, signals, context.output.quiet).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let guest = |vm: &str, path: &str| Place::Guest(vm.parse().unwrap(), path.into());
        let of = |word: &str| Place::of(word.as_ref());
        assert_eq!(of("web:/etc").unwrap(), guest("web", "/etc"));
        assert_eq!(of("web:etc/x:y").unwrap(), guest("web", "/etc/x:y"));
        assert_eq!(of("web:").unwrap(), guest("web", "/"));
        for here in ["./web:x", "/web:x", "a/b:c", "x", "..", "../a:b"] {
            assert_eq!(of(here).unwrap(), Place::Here(here.into()), "{here}");
        }
        assert_eq!(of("-").unwrap(), Place::Stream);
        assert_eq!(of("").unwrap_err().exit, Exit::Usage);
        assert_eq!(of("no way:x").unwrap_err().exit, Exit::Usage);
        // Here names are bytes, in a guest they are text.
        for here in [&b"\xff"[..], b"./\xff:x", b"a/\xff:x"] {
            let here = OsStr::from_bytes(here);
            assert_eq!(Place::of(here).unwrap(), Place::Here(here.to_owned()));
        }
        assert_eq!(Place::of(OsStr::from_bytes(b"web:\xff")).unwrap_err().exit, Exit::Usage);
    }
}
