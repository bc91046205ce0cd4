//! Images leave.

use std::path::PathBuf;

use clap::{ArgGroup, Args};
use ocivisor_core::ids::VmId;
use ocivisor_core::units::Bytes;
use ocivisor_schema::Text;
use ocivisor_schema::image::CommitOptionsV1;

use super::show_made;
use crate::commands::{Vm, absolute};
use crate::connect::Context;
use crate::failure::Failure;
use crate::units;

/// Options of `push`.
#[derive(Debug, Args)]
pub struct Push {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Where to: docker://HOST/REPOSITORY:TAG
    #[arg(value_name = "TARGET")]
    target: String,
}

/// Options of `save`.
#[derive(Debug, Args)]
pub struct Save {
    /// Names or digests of images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// The archive, a new file on the host of the daemon
    #[arg(short = 'f', long, value_name = "FILE")]
    file: PathBuf,
    /// What kind of archive
    #[arg(long, value_name = "FORMAT", default_value = "oci-archive",
          value_parser = ["oci-archive", "docker-archive"])]
    format: String,
}

/// Options of `export`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub struct Export {
    /// Name or digest of an image
    #[arg(value_name = "IMAGE", group = "what")]
    image: Option<String>,
    /// The root filesystem of a virtual machine instead
    #[arg(long, value_name = "VM", group = "what")]
    vm: Option<VmId>,
    /// The file, a new one on the host of the daemon
    #[arg(short = 'f', long, value_name = "FILE")]
    file: PathBuf,
    /// What to make: a tarball, or a disk image with ext4 and no partitions
    #[arg(long, value_name = "FORMAT", default_value = "tar", value_parser = ["tar", "raw", "qcow2"])]
    format: String,
    /// Size of the disk image; else what the files need
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    size: Option<Bytes>,
}

/// Options of `commit`.
#[derive(Debug, Args)]
pub struct Commit {
    #[command(flatten)]
    vm: Vm,
    /// Name of the new image
    #[arg(value_name = "NAME")]
    name: String,
    /// Who made it
    #[arg(short, long, value_name = "TEXT")]
    author: Option<String>,
    /// What was done
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// What the image says, as a line of a Dockerfile: 'CMD ["/bin/sh"]'
    #[arg(short, long = "change", value_name = "LINE")]
    changes: Vec<String>,
}

/// Runs `push`.
///
/// # Errors
/// See [`Context::run_image_operation`].
pub async fn push(options: &Push, context: &Context) -> Result<(), Failure> {
    let send = async |client: &ocivisor_rpc::Client, id: Text<_>| {
        client.image_push(id, options.image.clone(), options.target.clone()).await
    };
    show_made(context.run_image_operation(&send).await?.as_ref(), context)
}

/// Runs `save`.
///
/// # Errors
/// See [`Context::run_image_operation`].
pub async fn save(options: &Save, context: &Context) -> Result<(), Failure> {
    let path = absolute(&options.file)?.display().to_string();
    let send = async |client: &ocivisor_rpc::Client, id: Text<_>| {
        let (images, format) = (options.images.clone(), options.format.clone());
        client.image_save(id, images, format, path.clone()).await
    };
    show_made(context.run_image_operation(&send).await?.as_ref(), context)
}

/// Runs `export`.
///
/// # Errors
/// See [`Context::run_image_operation`].
pub async fn export(options: &Export, context: &Context) -> Result<(), Failure> {
    let path = absolute(&options.file)?.display().to_string();
    let size = options.size.map(|size| size.0);
    let send = async |client: &ocivisor_rpc::Client, id: Text<_>| {
        let (image, vm) = (options.image.clone(), options.vm.clone().map(Text));
        client.image_export(id, image, vm, options.format.clone(), size, path.clone()).await
    };
    show_made(context.run_image_operation(&send).await?.as_ref(), context)
}

/// Runs `commit`.
///
/// # Errors
/// See [`Context::run_image_operation`].
pub async fn commit(options: &Commit, context: &Context) -> Result<(), Failure> {
    let how = CommitOptionsV1 {
        author: options.author.clone(),
        message: options.message.clone(),
        changes: options.changes.clone(),
    };
    let send = async |client: &ocivisor_rpc::Client, id: Text<_>| {
        client.image_commit(id, options.vm.text(), options.name.clone(), Some(how.clone())).await
    };
    show_made(context.run_image_operation(&send).await?.as_ref(), context)
}
