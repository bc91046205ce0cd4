//! Images of this host.

mod bring;
mod keep;
mod look;
mod out;

use clap::{Args, Subcommand};
use ocivisor_core::units::Bytes;
use ocivisor_schema::image::MadeV1;
use ocivisor_schema::reply::{ImageInfo, OpStatusReply};

use crate::connect::Context;
use crate::failure::Failure;
use crate::output::fields;

/// Options of `image`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring an image into the store of this host
    ///
    /// Understands registries (docker://HOST/REPOSITORY:TAG or @sha256:…), OCI layouts (oci:DIR), OCI
    /// archives (oci-archive:FILE), docker-archives (docker-archive:FILE), tarballs of a root
    /// filesystem (rootfs:FILE, https://… with --digest), and disk images (disk:FILE). A file's kind
    /// is found out if none is said.
    #[command(visible_alias = "pull")]
    Import(bring::Import),
    /// Show what a source at a registry holds, without bringing it in
    Stat(bring::Stat),
    /// Build an image from a directory with a Dockerfile, by buildah
    Build(bring::Build),
    /// List images
    #[command(visible_alias = "ls")]
    List,
    /// Show an image in full
    Inspect(Image),
    /// Show how an image came to be, newest first
    History(Image),
    /// Show what images take of the disk
    Df,
    /// Give an image another name
    Tag(keep::Tag),
    /// Forget an image; layers that disks still need stay
    #[command(visible_alias = "remove")]
    Rm(keep::Remove),
    /// Give back what no name, no disk and no virtual machine needs
    Prune(keep::Prune),
    /// Compare the store with its digests
    Fsck(keep::Fsck),
    /// Send an image to a registry
    Push(out::Push),
    /// Write images into an archive
    Save(out::Save),
    /// Write a root filesystem into a tarball or disk image
    Export(out::Export),
    /// Make an image of what a virtual machine changed on its root disk
    Commit(out::Commit),
}

/// The image that most commands are about.
#[derive(Debug, Args)]
struct Image {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    image: String,
}

/// Runs it.
///
/// # Errors
/// See [`Context::ask`] and [`Context::run_image_operation`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    match &options.command {
        Command::Import(options) => bring::import(options, context).await,
        Command::Stat(options) => bring::stat(options, context).await,
        Command::Build(options) => bring::build(options, context).await,
        Command::List => look::list(context).await,
        Command::Inspect(of) => look::inspect(&of.image, context).await,
        Command::History(of) => look::history(&of.image, context).await,
        Command::Df => look::df(context).await,
        Command::Tag(options) => keep::tag(options, context).await,
        Command::Rm(options) => keep::remove(options, context).await,
        Command::Prune(options) => keep::prune(options, context).await,
        Command::Fsck(options) => keep::fsck(options, context).await,
        Command::Push(options) => out::push(options, context).await,
        Command::Save(options) => out::save(options, context).await,
        Command::Export(options) => out::export(options, context).await,
        Command::Commit(options) => out::commit(options, context).await,
    }
}

/// Prints what an operation made; nothing is printed of one that was not waited for but its id.
fn show_made(status: Option<&OpStatusReply>, context: &Context) -> Result<(), Failure> {
    let Some(status) = status else { return Ok(()) };
    match &status.made {
        Some(MadeV1::Image(image)) => show_image(image, context),
        Some(MadeV1::File(file)) => {
            let ids = || vec![file.path.clone()];
            context.output.list(file, ids, || {
                let mut rows = vec![("file", file.path.clone()), ("size", human(file.size_bytes))];
                rows.extend(file.notes.iter().map(|note| ("note", note.clone())));
                fields(&rows)
            })
        }
        Some(MadeV1::Pushed(pushed)) => {
            let ids = || vec![pushed.digest.clone()];
            context.output.list(pushed, ids, || {
                fields(&[
                    ("reference", pushed.reference.clone()),
                    ("digest", pushed.digest.clone()),
                    ("sent", human(pushed.sent_bytes)),
                ])
            })
        }
        Some(MadeV1::Findings(found)) => keep::show_findings(found, context),
        Some(MadeV1::Pruned(pruned)) => keep::show_pruned(pruned, context),
        Some(MadeV1::Unknown) | None => context.output.emit(status, String::new),
    }
}

fn show_image(image: &ImageInfo, context: &Context) -> Result<(), Failure> {
    let ids = || vec![image.digest.clone()];
    context.output.list(image, ids, || {
        fields(&[
            ("name", image.name.clone()),
            ("digest", image.digest.clone()),
            ("platform", image.platform.clone()),
            ("layers", image.layers.to_string()),
            ("size", human(image.size_bytes)),
        ])
    })
}

/// A size that need not be exact: whole MiB, at least one.
fn human(bytes: u64) -> String {
    match bytes {
        0..=0xf_ffff => Bytes(bytes).to_string(),
        _ => format!("{} MiB", bytes >> 20),
    }
}
