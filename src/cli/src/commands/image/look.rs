//! Images are looked at.

use ocivisor_schema::image::HistoryV1;
use ocivisor_schema::reply::ImageInfo;
use serde::Serialize;

use super::human;
use crate::connect::Context;
use crate::failure::Failure;
use crate::output::{Table, fields};

#[derive(Debug, Serialize)]
struct Images {
    images: Vec<ImageInfo>,
}

#[derive(Debug, Serialize)]
struct History {
    history: Vec<HistoryV1>,
}

/// Runs `list`.
///
/// # Errors
/// See [`Context::ask`].
pub async fn list(context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let report = Images { images: context.ask(client.image_list()).await? };
    let ids = || report.images.iter().map(|i| i.name.clone()).collect();
    context.output.list(&report, ids, || {
        let mut table = Table::new(&["NAME", "DIGEST", "PLATFORM", "LAYERS", "SIZE", "IMPORTED"]);
        for image in &report.images {
            table.row([
                image.name.clone(),
                short(&image.digest),
                image.platform.clone(),
                image.layers.to_string(),
                human(image.size_bytes),
                image.imported.to_string(),
            ]);
        }
        table.render()
    })
}

/// Runs `inspect`.
///
/// # Errors
/// See [`Context::ask`].
pub async fn inspect(image: &str, context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let found = context.ask(client.image_inspect(image.to_owned())).await?;
    let ids = || vec![found.info.digest.clone()];
    context.output.list(&found, ids, || {
        let mut rows = vec![
            ("names", found.names.join(", ")),
            ("digest", found.info.digest.clone()),
            ("platform", found.info.platform.clone()),
            ("imported", found.info.imported.to_string()),
            ("size", human(found.info.size_bytes)),
        ];
        // Whose the name is that was asked for.
        rows.extend(found.info.owner_uid.map(|uid| ("name set by uid", uid.to_string())));
        for layer in &found.layer_details {
            rows.push(("layer", format!("{} {}", layer.digest, human(layer.size_bytes))));
        }
        let config = &found.config["config"];
        for (label, key) in [
            ("entrypoint", "Entrypoint"),
            ("cmd", "Cmd"),
            ("env", "Env"),
            ("user", "User"),
            ("workdir", "WorkingDir"),
            ("stop signal", "StopSignal"),
            ("labels", "Labels"),
        ] {
            let value = &config[key];
            if !value.is_null() {
                rows.push((label, value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
            }
        }
        fields(&rows)
    })
}

/// Runs `history`.
///
/// # Errors
/// See [`Context::ask`].
pub async fn history(image: &str, context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let report = History { history: context.ask(client.image_history(image.to_owned())).await? };
    let ids = || report.history.iter().map(|step| step.created_by.clone()).collect();
    context.output.list(&report, ids, || {
        let mut table = Table::new(&["CREATED", "SIZE", "BY", "COMMENT"]);
        for step in &report.history {
            table.row([
                step.created.clone().unwrap_or_default(),
                step.size_bytes.map(human).unwrap_or_default(),
                step.created_by.chars().take(60).collect(),
                step.comment.chars().take(40).collect(),
            ]);
        }
        table.render()
    })
}

/// Runs `df`.
///
/// # Errors
/// See [`Context::ask`].
pub async fn df(context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let found = context.ask(client.image_df()).await?;
    let ids = || found.images.iter().map(|image| image.digest.clone()).collect();
    context.output.list(&found, ids, || {
        let mut table = Table::new(&["IMAGE", "DIGEST", "UNIQUE", "SHARED"]);
        for image in &found.images {
            table.row([
                image.names.join(", "),
                short(&image.digest),
                human(image.unique_bytes),
                human(image.shared_bytes),
            ]);
        }
        let totals = fields(&[
            ("blobs", human(found.blob_bytes)),
            ("layers", human(found.layer_bytes)),
            ("partial", human(found.partial_bytes)),
            ("staging", human(found.staging_bytes)),
            ("quarantine", human(found.quarantine_bytes)),
            ("total", human(found.total_bytes)),
            ("reclaimable", human(found.reclaimable_bytes)),
        ]);
        format!("{}\n{totals}", table.render())
    })
}

fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}
