//! Images are looked at.

use ocivisor_core::error::Result;
use ocivisor_core::state::Timestamp;
use ocivisor_datastore::{ImageName, Listed, Reference};
use ocivisor_schema::TimeV1;
use ocivisor_schema::image::{HistoryV1, ImageInspect, LayerV1};
use ocivisor_schema::reply::ImageInfo;

use super::{Images, ours};

impl Images {
    /// All images, a line per name.
    pub fn list(&self) -> Result<Vec<ImageInfo>> {
        let mut infos = Vec::new();
        for listed in self.store.list().map_err(|e| ours(&e))? {
            let names = listed.names.iter().map(ImageName::as_str);
            let nameless = listed.names.is_empty().then_some("");
            for name in names.chain(nameless) {
                match self.info(name, &listed) {
                    Ok(info) => infos.push(info),
                    // One that is damaged, or was pruned this moment, does not hide the others.
                    Err(error) => tracing::warn!("image {name} is not listed: {error}"),
                }
            }
        }
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(infos)
    }

    /// The line of one image, under the name that it is asked for by.
    pub(super) fn one(&self, reference: &Reference) -> Result<ImageInfo> {
        let image = self.store.resolve(reference).map_err(|e| ours(&e))?;
        let all = self.store.list().map_err(|e| ours(&e))?;
        let listed = all.iter().find(|l| l.manifest_digest == image.manifest_digest);
        let name = match reference {
            Reference::Name(name) => name.as_str(),
            Reference::Digest(_) => "",
        };
        let gone =
            || ours(&ocivisor_datastore::Error::NotFound { reference: reference.to_string() });
        self.info(name, listed.ok_or_else(gone)?)
    }

    fn info(&self, name: &str, listed: &Listed) -> Result<ImageInfo> {
        let reference = Reference::Digest(listed.manifest_digest);
        let owner_uid = match name.parse::<ImageName>() {
            Ok(name) => self.store.owner_of(&name).map_err(|e| ours(&e))?,
            // Asked for by its digest.
            Err(_) => None,
        };
        let image = self.store.resolve(&reference).map_err(|e| ours(&e))?;
        Ok(ImageInfo {
            name: name.to_owned(),
            digest: listed.manifest_digest.to_string(),
            platform: format!("{}/{}", image.config.os, image.config.architecture),
            layers: u32::try_from(listed.layers.len()).unwrap_or(u32::MAX),
            size_bytes: listed.size,
            imported: since_1970(listed.imported),
            owner_uid,
        })
    }

    /// An image in full.
    pub fn inspect(&self, image: &str) -> Result<ImageInspect> {
        let reference: Reference = image.parse().map_err(|e| ours(&e))?;
        let info = self.one(&reference)?;
        let found = self.store.inspect(&reference).map_err(|e| ours(&e))?;
        let layers = found.layers.iter().map(|layer| LayerV1 {
            diff_id: layer.diff_id.to_string(),
            digest: layer.blob.to_string(),
            media_type: layer.media_type.clone(),
            size_bytes: layer.size,
        });
        Ok(ImageInspect {
            info,
            names: found.names.iter().map(ToString::to_string).collect(),
            layer_details: layers.collect(),
            manifest: found.manifest,
            config: found.config,
        })
    }

    /// How an image came to be, newest first.
    pub fn history(&self, image: &str) -> Result<Vec<HistoryV1>> {
        let reference: Reference = image.parse().map_err(|e| ours(&e))?;
        let rows = self.store.history(&reference).map_err(|e| ours(&e))?;
        let row = |row: ocivisor_datastore::HistoryRow| HistoryV1 {
            created: row.created,
            created_by: row.created_by,
            size_bytes: (!row.empty_layer).then_some(row.size),
            comment: row.comment,
        };
        Ok(rows.into_iter().map(row).collect())
    }
}

pub(super) fn since_1970(time: std::time::SystemTime) -> TimeV1 {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    TimeV1(Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}
