//! What there is to say about an image: its documents as they are, and its history as rows.
//!
//! All text of it is the image author's. It is given as JSON or strings; who shows it on a terminal escapes it.

use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::document;
use crate::error::{Error, Result};
use crate::name::{ImageName, Reference};
use crate::record;
use crate::store::Store;
use crate::unpack::Report;

/// Everything the store knows of an image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// The image's identity.
    pub manifest_digest: Digest,
    /// Of the config document.
    pub config_digest: Digest,
    /// Its names, sorted.
    pub names: Vec<ImageName>,
    /// When it came in, in seconds since 1970.
    pub imported: u64,
    /// Bytes of manifest, config and layer blobs, as stored.
    pub size: u64,
    /// Bytes of file content in its layers.
    pub content: u64,
    /// Lowest first.
    pub layers: Vec<LayerInfo>,
    /// The manifest document.
    pub manifest: Value,
    /// The config document.
    pub config: Value,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Digest of the uncompressed tar; the layer's name in the store.
    pub diff_id: DiffId,
    /// Digest of the blob.
    pub blob: Digest,
    /// Of the blob.
    pub media_type: String,
    /// Bytes of the blob.
    pub size: u64,
    /// What unpacking counted and left out.
    pub report: Report,
}

/// A step in an image's making.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// Time in the words of the image, RFC 3339 if it keeps to the rules.
    pub created: Option<String>,
    /// Command that made the layer.
    pub created_by: String,
    /// Who made it.
    pub author: String,
    /// A sentence.
    pub comment: String,
    /// It changed the config only.
    pub empty_layer: bool,
    /// The layer it made; none if it made none, or if history and layers do not fit together.
    pub diff_id: Option<DiffId>,
    /// Bytes of file content in that layer.
    pub size: u64,
}

/// A row as the config has it; fields of other types are as good as absent.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawRow {
    created: Value,
    created_by: Value,
    author: Value,
    comment: Value,
    empty_layer: Value,
}

impl Store {
    /// Everything about an image.
    pub fn inspect(&self, reference: &Reference) -> Result<Inspection> {
        let image = self.resolve(reference)?;
        let record = self
            .record(&image.manifest_digest)?
            .ok_or_else(|| Error::NotFound { reference: reference.to_string() })?;
        let value = |digest: &Digest, size| {
            let bytes = self.small_blob(digest, size)?;
            document::parse(&bytes).map_err(|why| Error::document(format!("blob {digest}"), why))
        };
        let mut layers = Vec::new();
        for layer in &record.layers {
            layers.push(LayerInfo {
                diff_id: layer.diff_id,
                blob: layer.blob,
                media_type: layer.media_type.clone(),
                size: layer.size,
                report: if self.is_packed() {
                    Report::default()
                } else {
                    self.layer_record(&layer.diff_id)?.report
                },
            });
        }
        let refs = self.readable_refs()?;
        let modified = disk::modified(&self.images, &record::image_file(&record.manifest));
        Ok(Inspection {
            manifest_digest: record.manifest,
            config_digest: record.config,
            names: refs
                .into_iter()
                .filter(|r| r.manifest == record.manifest)
                .map(|r| r.name)
                .collect(),
            imported: modified.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            size: image.size,
            content: layers.iter().map(|l| l.report.bytes).sum(),
            layers,
            manifest: value(&record.manifest, record.manifest_size)?,
            config: value(&record.config, record.config_size)?,
        })
    }

    /// How an image was made, by its own account; the newest step first.
    pub fn history(&self, reference: &Reference) -> Result<Vec<HistoryRow>> {
        let inspection = self.inspect(reference)?;
        Ok(rows(&inspection.config, &inspection.layers))
    }
}

fn rows(config: &Value, layers: &[LayerInfo]) -> Vec<HistoryRow> {
    let raw: Vec<RawRow> = config
        .get("history")
        .and_then(Value::as_array)
        .map(|rows| rows.iter().map(|r| RawRow::deserialize(r).unwrap_or_default()).collect())
        .unwrap_or_default();
    let is_empty = |row: &RawRow| row.empty_layer.as_bool() == Some(true);
    let fits = raw.iter().filter(|r| !is_empty(r)).count() == layers.len();
    let mut next = layers.iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut rows: Vec<HistoryRow> = raw
        .iter()
        .map(|row| {
            let layer = if fits && !is_empty(row) { next.next() } else { None };
            HistoryRow {
                created: row.created.as_str().map(str::to_owned),
                created_by: text(&row.created_by),
                author: text(&row.author),
                comment: text(&row.comment),
                empty_layer: is_empty(row),
                diff_id: layer.map(|l| l.diff_id),
                size: layer.map_or(0, |l| l.report.bytes),
            }
        })
        .collect();
    if !fits {
        // Layers that no row can be told of still are there.
        rows.extend(layers.iter().map(|l| HistoryRow {
            diff_id: Some(l.diff_id),
            size: l.report.bytes,
            ..HistoryRow::default()
        }));
    }
    rows.reverse();
    rows
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn layer(n: u8) -> LayerInfo {
        LayerInfo {
            diff_id: DiffId(Digest::of(&[n])),
            blob: Digest::of(&[n]),
            media_type: String::new(),
            size: 0,
            report: Report { bytes: n.into(), ..Report::default() },
        }
    }

    #[test]
    fn rows_meet_the_layers_they_made_and_the_newest_is_first() {
        let config = json!({"history": [
            {"created": "2020-01-01T00:00:00Z", "created_by": "ADD", "author": "a"},
            {"created_by": "ENV", "empty_layer": true},
            {"created_by": "RUN", "comment": "c", "empty_layer": "nonsense"}]});
        let rows = rows(&config, &[layer(1), layer(2)]);
        let seen: Vec<_> = rows.iter().map(|r| (r.created_by.as_str(), r.size)).collect();
        assert_eq!(seen, [("RUN", 2), ("ENV", 0), ("ADD", 1)]);
        assert_eq!(rows[2].created.as_deref(), Some("2020-01-01T00:00:00Z"));
        assert_eq!(rows[0].diff_id, Some(DiffId(Digest::of(&[2]))));
    }

    #[test]
    fn a_history_that_does_not_fit_is_shown_beside_the_layers() {
        for config in
            [json!({}), json!({"history": 7}), json!({"history": [{"empty_layer": true}]})]
        {
            let rows = rows(&config, &[layer(1), layer(2)]);
            assert_eq!(rows[0].diff_id, Some(DiffId(Digest::of(&[2]))), "{config}");
            assert_eq!(rows.iter().map(|r| r.size).sum::<u64>(), 3);
        }
    }
}
