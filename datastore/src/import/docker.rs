//! From what `docker save` writes.

use super::layer::{From, Wanted};
use super::{Held, Import, Progress, Tell, check_config};
use crate::digest::Digest;
use crate::document;
use crate::error::{Error, Refusal, Result};
use crate::files::Files;
use crate::ingest::{Budget, Promise};
use crate::record::ImageRecord;

impl Import<'_> {
    pub(super) fn docker(
        &self,
        files: &Files,
        tag: Option<&str>,
        held: &Held,
        tell: Tell<'_>,
    ) -> Result<ImageRecord> {
        let bytes = files.document("manifest.json", self.limits)?;
        let saved = document::choose_saved(&bytes, tag, self.limits)
            .map_err(|why| Error::document(format!("{} file manifest.json", files.shown()), why))?;
        let config_bytes = files.document(&saved.config, self.limits)?;
        let got = Digest::of(&config_bytes);
        // The file is named by its digest: `HEX.json`, or `blobs/sha256/HEX`.
        let named = saved
            .config
            .rsplit('/')
            .next()
            .and_then(|f| Digest::from_hex(f.trim_end_matches(".json")));
        if let Some(expected) = named.filter(|d| *d != got) {
            let why = Refusal::Digest { expected, got };
            return Err(Error::Refused { object: format!("config {expected}"), why });
        }
        let (_, diff_ids) = check_config(&config_bytes, &got, saved.layers.len(), self.limits)?;

        tell(Progress::Started { layers: diff_ids.len() });
        let mut budget =
            Budget::new(self.limits).unpacked_by(&self.store.unpacker).until(&self.store.cancel);
        let mut layers = Vec::new();
        for (n, (file, diff_id)) in saved.layers.iter().zip(diff_ids).enumerate() {
            let wanted = Wanted {
                number: n + 1,
                object: format!("layer {diff_id}"),
                promise: Promise { diff_id: Some(diff_id), ..Promise::default() },
                diff_id,
                from: From::Member(files, file),
            };
            layers.push(self.layer(&wanted, &held.known, &mut budget, tell)?.typed());
        }
        let manifest = self.manifest_for(&config_bytes, &layers)?;
        self.commit(&manifest, &config_bytes, layers)
    }
}
