//! `export`: where a marketplace's driver fetches an image from.
//!
//! A container image leaves as an OCI archive in zstd: OpenNebula's downloader unpacks gzip, bzip2 and xz, and takes
//! tars apart that it finds, which would leave a directory where the marketplace wants a file. zstd it hands on as it
//! is. The file is the marketplace driver's to remove (`DISPOSE_CMD`); what it leaves goes with the image's next export, or
//! after a day.

use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{Archive, Digest, Reference};
use ocivisor_opennebula::ImageSource;

use super::{Driver, bring, data};
use crate::depot::Depot;
use crate::fault::{failed, from_store};

impl Driver<'_> {
    /// `<IMPORT_INFO>`.
    pub(super) fn export(&mut self) -> Result<String> {
        let depot = self.open()?;
        let held = depot.lock(self.call.id)?;
        let size = self.call.image.size_mb.unwrap_or(0);
        match self.call.image.source.parse()? {
            ImageSource::Container { manifest: Some(hex), .. } => {
                if depot.disk_path(held.image()).exists() {
                    let text = "it has a disk that VMs have written, which is no part of its image";
                    return Err(Error::new(ErrorKind::Unsupported, text));
                }
                let digest: Digest = format!("sha256:{hex}").parse().map_err(|e| from_store(&e))?;
                let path = depot.base().join(Depot::export_name(held.image()));
                let path = plain(&path)?;
                let md5 = self.archive(&depot, &held, digest)?;
                Ok(info(&path, &md5, size, "oci", Some(&format!("rm -f {path}"))))
            }
            ImageSource::Container { manifest: None, .. } => {
                let text = "it is a disk that a VM has written, and no image";
                Err(Error::new(ErrorKind::Unsupported, text))
            }
            ImageSource::File(path) => {
                let real = std::fs::canonicalize(&path).map_err(|e| failed("open", &path, &e))?;
                let file = bring::open(&real)?;
                let sums = data::sums(&file).map_err(|e| failed("read", &path, &e))?;
                let format = if self.call.image.format == "qcow2" { "qcow2" } else { "raw" };
                let md5 = sums.md5.unwrap_or_default();
                Ok(info(&path.display().to_string(), &md5, size, format, None))
            }
        }
    }

    fn archive(
        &self,
        depot: &Depot,
        held: &crate::depot::ImageLock,
        digest: Digest,
    ) -> Result<String> {
        let name = Depot::export_name(held.image());
        let path = depot.real_path(&name);
        depot.remove_export(held)?;
        let images = [Reference::Digest(digest)];
        let size = depot.store().resolve(&images[0]).map_err(|e| from_store(&e))?.size;
        let room = self.free()?;
        // The archive as it is and packed, beside each other.
        if size.saturating_mul(2) > room.bytes {
            return Err(room.exceeded());
        }
        depot
            .store()
            .save(&images, Archive::OciArchive, depot.dir(), &name, &mut |_| {})
            .map_err(|e| from_store(&e))?;
        let about = |op| {
            let path = &path;
            move |e: std::io::Error| failed(op, path, &e)
        };
        let draft = depot.new_export(held)?;
        zstd::stream::copy_encode(bring::open(&path)?, draft.file(), 1).map_err(about("pack"))?;
        let sums = data::sums(draft.file()).map_err(about("read"))?;
        draft.publish().map_err(about("write"))?;
        Ok(sums.md5.unwrap_or_default())
    }
}

/// The path for a command that the marketplace's driver has a shell run.
fn plain(path: &Path) -> Result<String> {
    let text = path.to_str().unwrap_or_default();
    let safe = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.starts_with('/') && text.chars().all(safe) {
        return Ok(text.to_owned());
    }
    let text = format!("{} has characters that a shell may not be given", path.display());
    Err(Error::new(ErrorKind::Unsupported, text)
        .hint("have the datastore's path of letters, digits, '.', '_', '-' and '/'"))
}

/// On one line: the answer is a line of a protocol.
fn info(source: &str, md5: &str, size: u64, format: &str, dispose: Option<&str>) -> String {
    let source = source.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let dispose = match dispose {
        Some(command) => format!("<DISPOSE>YES</DISPOSE><DISPOSE_CMD>{command}</DISPOSE_CMD>"),
        None => "<DISPOSE>NO</DISPOSE>".to_owned(),
    };
    format!(
        "<IMPORT_INFO><IMPORT_SOURCE>{source}</IMPORT_SOURCE><MD5>{md5}</MD5><SIZE>{size}</SIZE>\
         <FORMAT>{format}</FORMAT>{dispose}</IMPORT_INFO>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_gets_plain_paths_alone() {
        let said = |path: &str| plain(Path::new(path)).ok();
        let good = "/var/lib/one/datastores/101/export-7.tar";
        assert_eq!(said(good).as_deref(), Some(good));
        for bad in ["/a b/export-7.tar", "/a;b/x", "/$x", "/a'b", "/ä", "a", "/a\n"] {
            assert_eq!(said(bad), None, "{bad:?}");
        }
    }
}
