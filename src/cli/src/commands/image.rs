//! Images of this host.

use std::path::Path;

use clap::{Args, Subcommand};
use ocivisor_core::units::Bytes;
use ocivisor_schema::Text;
use ocivisor_schema::reply::ImageInfo;
use serde::Serialize;

use super::absolute;
use crate::connect::{Context, progress};
use crate::failure::{Exit, Failure};
use crate::output::{Table, fields};

/// Options of `image`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring an image from a file or directory into the store of this host
    ///
    /// Understands OCI layouts (directories), OCI archives, docker-archives (`docker save`) and
    /// tarballs of a root filesystem, plain or compressed by gzip, xz or zstd.
    Import {
        /// File or directory
        #[arg(value_name = "SOURCE")]
        source: String,
        /// Its name here; else made of the file's name
        #[arg(value_name = "NAME")]
        name: Option<String>,
    },
    /// List images
    #[command(visible_alias = "ls")]
    List,
    /// Forget an image; layers that disks still need stay
    #[command(visible_alias = "remove")]
    Rm {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[derive(Debug, Serialize)]
struct Report {
    images: Vec<ImageInfo>,
}

/// Runs it.
///
/// # Errors
/// See [`Context::ask`]; for `rm` also [`Exit::NotFound`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    match &options.command {
        Command::Import { source, name } => import(source, name.as_deref(), context).await,
        Command::List => list(context).await,
        Command::Rm { name } => {
            let client = context.daemon().await?;
            let reply = context.ask(client.image_remove(name.clone())).await?;
            if !reply.removed {
                let what = format!("no image {name:?}");
                return Err(Failure::new(Exit::NotFound, what).hint("ocivisor image list"));
            }
            context.output.emit(&reply, || format!("{name}: removed\n"))
        }
    }
}

async fn import(source: &str, name: Option<&str>, context: &Context) -> Result<(), Failure> {
    let (scheme, path) = split_scheme(source);
    let path = absolute(Path::new(path))?;
    let name = match name {
        Some(name) => name.to_owned(),
        None => name_of(&path).ok_or_else(|| {
            Failure::new(Exit::Usage, "no name for the image in the file's name")
                .hint("give one: ocivisor image import SOURCE NAME")
        })?,
    };
    let whole = format!("{scheme}{}", path.display());
    progress(context.output, &format!("importing {whole} as {name}"));
    let client = context.daemon().await?;
    let id = Text(context.request_id.clone());
    let image = context.ask(client.image_import(id, whole, name)).await?;
    let ids = || vec![image.digest.clone()];
    context.output.list(&image, ids, || {
        fields(&[
            ("name", image.name.clone()),
            ("digest", image.digest.clone()),
            ("platform", image.platform.clone()),
            ("layers", image.layers.to_string()),
            ("size", human(image.size_bytes)),
        ])
    })
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

async fn list(context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let images = context.ask(client.image_list()).await?;
    let report = Report { images };
    let ids = || report.images.iter().map(|i| i.name.clone()).collect();
    context.output.list(&report, ids, || {
        let mut table = Table::new(&["NAME", "DIGEST", "PLATFORM", "LAYERS", "SIZE", "IMPORTED"]);
        for image in &report.images {
            table.row([
                image.name.clone(),
                image.digest.chars().take("sha256:".len() + 12).collect(),
                image.platform.clone(),
                image.layers.to_string(),
                human(image.size_bytes),
                image.imported.to_string(),
            ]);
        }
        table.render()
    })
}

/// A size that need not be exact: whole MiB, at least one.
fn human(bytes: u64) -> String {
    match bytes {
        0..=0xf_ffff => Bytes(bytes).to_string(),
        _ => format!("{} MiB", bytes >> 20),
    }
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
