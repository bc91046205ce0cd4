//! Images come in.

use std::path::Path;

use clap::Args;
use ocivisor_schema::Text;
use ocivisor_schema::image::ImportOptionsV1;

use super::{human, show_made};
use crate::commands::absolute;
use crate::connect::{Context, progress};
use crate::failure::{Exit, Failure};
use crate::output::fields;

/// Options of `import`.
#[derive(Debug, Args)]
pub struct Import {
    /// Registry reference, file or directory
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Its name here; else the reference, or made of the file's name
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Format of a disk image
    #[arg(long, value_name = "FORMAT", value_parser = ["raw", "qcow2"])]
    format: Option<String>,
    /// Partition of a disk image that holds the root filesystem, from 1
    #[arg(long, value_name = "NUMBER")]
    partition: Option<u32>,
    /// Take kernel and boot loader of a disk image along
    #[arg(long)]
    keep_boot: bool,
    /// What a tarball from https:// must be
    #[arg(long, value_name = "sha256:HEX")]
    digest: Option<String>,
}

/// Options of `stat`.
#[derive(Debug, Args)]
pub struct Stat {
    /// Registry reference
    #[arg(value_name = "SOURCE")]
    source: String,
}

/// Options of `build`.
#[derive(Debug, Args)]
pub struct Build {
    /// Directory with a Dockerfile or Containerfile
    #[arg(value_name = "DIR")]
    dir: std::path::PathBuf,
    /// Name of the image
    #[arg(value_name = "NAME")]
    name: String,
}

/// Runs `import`.
///
/// # Errors
/// See [`Context::run_image_operation`].
pub async fn import(options: &Import, context: &Context) -> Result<(), Failure> {
    let remote = ["docker://", "https://"].iter().any(|scheme| options.source.starts_with(scheme));
    let (source, name) = if remote {
        (options.source.clone(), options.name.clone())
    } else {
        let (scheme, path) = split_scheme(&options.source);
        let path = absolute(Path::new(path))?;
        let name = match &options.name {
            Some(name) => name.clone(),
            None => name_of(&path).ok_or_else(|| {
                Failure::new(Exit::Usage, "no name for the image in the file's name")
                    .hint("give one: ocivisor image import SOURCE NAME")
            })?,
        };
        (format!("{scheme}{}", path.display()), Some(name))
    };
    let named = name.as_ref().map(|name| format!(" as {name}")).unwrap_or_default();
    progress(context.output, &format!("importing {source}{named}"));
    let how = ImportOptionsV1 {
        format: options.format.clone(),
        partition: options.partition,
        keep_boot: options.keep_boot,
        digest: options.digest.clone(),
    };
    let send = async |client: &ocivisor_rpc::Client, id: Text<_>| {
        client.image_import(id, source.clone(), name.clone(), Some(how.clone())).await
    };
    show_made(context.run_image_operation(&send).await?.as_ref(), context)
}

/// Runs `stat`.
///
/// # Errors
/// See [`Context::ask`].
pub async fn stat(options: &Stat, context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let found = context.ask(client.image_stat(options.source.clone())).await?;
    let ids = || vec![found.digest.clone()];
    context.output.list(&found, ids, || {
        fields(&[
            ("reference", found.reference.clone()),
            ("digest", found.digest.clone()),
            ("platform", found.platform.clone()),
            ("layers", found.layers.to_string()),
            ("size", human(found.size_bytes)),
        ])
    })
}

/// Runs `build`.
///
/// # Errors
/// See [`Context::run_image_operation`].
pub async fn build(options: &Build, context: &Context) -> Result<(), Failure> {
    let dir = absolute(&options.dir)?.display().to_string();
    let send = async |client: &ocivisor_rpc::Client, id: Text<_>| {
        client.image_build(id, dir.clone(), options.name.clone()).await
    };
    show_made(context.run_image_operation(&send).await?.as_ref(), context)
}

/// `oci:/path` has the scheme `oci:`; a path has none. A scheme is letters and hyphens, so that
/// `/a:b` and `./a:b` are paths.
fn split_scheme(source: &str) -> (&str, &str) {
    let at = source.find(':').map_or(0, |colon| colon + 1);
    let (scheme, path) = source.split_at(at);
    let word = scheme.trim_end_matches(':');
    let plain = !word.is_empty() && word.bytes().all(|c| c.is_ascii_lowercase() || c == b'-');
    if plain { (scheme, path) } else { ("", source) }
}

/// `/tmp/Debian 12.tar.gz` becomes `debian-12`.
fn name_of(path: &Path) -> Option<String> {
    const ENDINGS: [&str; 11] = [
        ".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2", ".tgz", ".txz", ".tar", ".oci", ".gz", ".xz",
        ".zst",
    ];
    let file = path.file_name()?.to_str()?;
    let stem = ENDINGS.iter().find_map(|ending| file.strip_suffix(ending)).unwrap_or(file);
    let clean = |c: char| match c.to_ascii_lowercase() {
        c @ ('a'..='z' | '0'..='9' | '.' | '_' | '-') => c,
        _ => '-',
    };
    let name: String = stem.chars().map(clean).collect();
    let name = name.trim_matches(['-', '.', '_']);
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_told_from_paths() {
        for (source, want) in [
            ("a.tar", ("", "a.tar")),
            ("/x/a:b.tar", ("", "/x/a:b.tar")),
            ("./a:b", ("", "./a:b")),
            ("oci:layout", ("oci:", "layout")),
            ("docker-archive:/x/a.tar", ("docker-archive:", "/x/a.tar")),
            (":x", ("", ":x")),
        ] {
            assert_eq!(split_scheme(source), want, "{source}");
        }
    }

    #[test]
    fn names_are_made_of_file_names() {
        for (path, want) in [
            ("/x/debian.tar", Some("debian")),
            ("/x/Debian 12.tar.gz", Some("debian-12")),
            ("/x/layout", Some("layout")),
            ("/x/...", None),
            ("/", None),
        ] {
            assert_eq!(name_of(Path::new(path)).as_deref(), want, "{path}");
        }
    }
}
