//! Disks for VMs.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ocivisor_core::units::Bytes;
use ocivisor_schema::reply::DiskBackendV1;

use super::absolute;
use crate::connect::Context;
use crate::failure::{Exit, Failure};
use crate::output::fields;
use crate::units;

/// Options of `disk`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a root disk: a writable disk on top of an image's layers
    Create {
        /// Name or digest of the image
        #[arg(long, value_name = "REF")]
        image: String,
        /// Size of the writable disk, a hard limit; a directory has none
        #[arg(long, value_name = "SIZE", value_parser = units::size)]
        size: Option<Bytes>,
        /// What the writable disk is
        #[arg(long, value_enum, value_name = "KIND", default_value = "ext4")]
        backend: Backend,
        /// Where; its manifest is put beside it
        #[arg(value_name = "PATH")]
        path: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// A sparse file with an ext4 filesystem
    Ext4,
    /// A plain directory without a limit
    Directory,
}

/// Runs it.
///
/// # Errors
/// See [`Context::ask`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let Command::Create { image, size, backend, path } = &options.command;
    let backend = match backend {
        Backend::Ext4 if size.is_none() => {
            let what = "no --size given";
            return Err(Failure::new(Exit::Usage, what).hint("for example --size 2GiB"));
        }
        Backend::Ext4 => DiskBackendV1::Ext4,
        Backend::Directory if size.is_some() => {
            let what = "a directory has no size limit: --size and --backend directory exclude \
                        each other";
            return Err(Failure::new(Exit::Usage, what));
        }
        Backend::Directory => DiskBackendV1::Directory,
    };
    let path = absolute(path)?.to_string_lossy().into_owned();
    let size = size.map_or(0, |size| size.0);
    let client = context.daemon().await?;
    let made = client.disk_create(image.clone(), size, path, backend);
    let disk = context.ask(made).await?;
    let ids = || vec![disk.path.clone()];
    context.output.list(&disk, ids, || {
        fields(&[
            ("disk", disk.path.clone()),
            ("manifest", disk.manifest.clone()),
            ("image", disk.image_digest.clone()),
        ])
    })
}
