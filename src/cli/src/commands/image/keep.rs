//! Images are kept, or not.

use std::time::Duration;

use clap::Args;
use ocivisor_schema::Text;
use ocivisor_schema::image::{FindingsV1, PrunedV1};

use super::{human, show_image, show_made};
use crate::connect::Context;
use crate::failure::{Exit, Failure};
use crate::output::fields;
use crate::units;

/// Options of `tag`.
#[derive(Debug, Args)]
pub struct Tag {
    /// Name or digest of the image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Its other name; taken from the image that has it
    #[arg(value_name = "NAME")]
    name: String,
}

/// Options of `rm`.
#[derive(Debug, Args)]
pub struct Remove {
    /// Its name
    #[arg(value_name = "NAME")]
    name: String,
}

/// Options of `prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// Only count what would be given back
    #[arg(long)]
    dry_run: bool,
    /// Also what repairs set aside, but for layers that a virtual machine has; it is gone for good
    #[arg(long)]
    quarantine: bool,
    /// How long ago that must have been
    #[arg(long, value_name = "TIME", value_parser = units::duration, default_value = "7d",
          requires = "quarantine")]
    older_than: Duration,
}

/// Options of `fsck`.
#[derive(Debug, Args)]
pub struct Fsck {
    /// Mend what can be mended; what cannot is moved aside
    #[arg(long)]
    repair: bool,
}

/// Runs `tag`.
///
/// # Errors
/// See [`Context::ask`].
pub async fn tag(options: &Tag, context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let tagged = client.image_tag(options.image.clone(), options.name.clone());
    show_image(&context.ask(tagged).await?, context)
}

/// Runs `rm`.
///
/// # Errors
/// See [`Context::ask`]; [`Exit::NotFound`].
pub async fn remove(options: &Remove, context: &Context) -> Result<(), Failure> {
    let name = &options.name;
    let client = context.daemon().await?;
    let reply = context.ask(client.image_remove(name.clone())).await?;
    if !reply.removed {
        let what = format!("no image {name:?}");
        return Err(Failure::new(Exit::NotFound, what).hint("ocivisor image list"));
    }
    context.output.emit(&reply, || format!("{name}: removed\n"))
}

/// Runs `prune`.
///
/// # Errors
/// See [`Context::run_image_operation`].
pub async fn prune(options: &Prune, context: &Context) -> Result<(), Failure> {
    let send = async |client: &ocivisor_rpc::Client, id: Text<_>| {
        let age = options.quarantine.then_some(options.older_than.as_secs());
        client.image_prune(id, options.dry_run, age).await
    };
    show_made(context.run_image_operation(&send).await?.as_ref(), context)
}

/// Runs `fsck`.
///
/// # Errors
/// See [`Context::run_image_operation`]; [`Exit::Integrity`] if damage was found and is still there.
pub async fn fsck(options: &Fsck, context: &Context) -> Result<(), Failure> {
    let send = async |client: &ocivisor_rpc::Client, id: Text<_>| {
        client.image_fsck(id, options.repair).await
    };
    show_made(context.run_image_operation(&send).await?.as_ref(), context)
}

/// Prints findings.
///
/// # Errors
/// [`Exit::Integrity`] if one of them is an error that was not mended.
pub fn show_findings(found: &FindingsV1, context: &Context) -> Result<(), Failure> {
    context.output.emit(found, || {
        let mut text = String::new();
        for finding in &found.findings {
            let mended = finding.repair.as_ref().map(|what| format!("; {what}"));
            let line = format!(
                "{}: {}: {}{}",
                finding.severity,
                finding.object,
                finding.message,
                mended.unwrap_or_default()
            );
            text.push_str(&(ocivisor_core::error::one_line(&line) + "\n"));
        }
        text + &format!(
            "{} findings, {} compared\n",
            found.findings.len(),
            human(found.checked_bytes)
        )
    })?;
    let left =
        found.findings.iter().filter(|f| f.severity == "error" && f.repair.is_none()).count();
    if left == 0 {
        return Ok(());
    }
    let what = format!("the datastore has {left} damages");
    Err(Failure::new(Exit::Integrity, what).hint("ocivisor image fsck --repair"))
}

/// Prints what was given back.
///
/// # Errors
/// Standard output cannot be written.
pub fn show_pruned(pruned: &PrunedV1, context: &Context) -> Result<(), Failure> {
    context.output.emit(pruned, || {
        let freed = if pruned.dry_run { "would free" } else { "freed" };
        fields(&[
            ("images", pruned.images.to_string()),
            ("layers", pruned.layers.to_string()),
            ("blobs", pruned.blobs.to_string()),
            ("quarantined", pruned.quarantined.to_string()),
            (freed, human(pruned.freed_bytes)),
        ])
    })
}
