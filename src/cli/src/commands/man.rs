//! Writes the man pages: `ocivisor.1` and one per command.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};

use crate::args::Cli;
use crate::connect::Context;
use crate::failure::{Exit, Failure};

/// Options of `man`.
#[derive(Debug, Args)]
pub struct Options {
    /// Where; made if it is not there
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Runs it.
///
/// # Errors
/// A file cannot be written.
pub fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let dir = &options.dir;
    let failed = |path: &Path, e: io::Error| {
        Failure::new(Exit::of_io(&e), format!("write {}: {e}", path.display()))
    };
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    let mut names = Vec::new();
    for (name, page) in pages().map_err(|e| failed(dir, e))? {
        let path = dir.join(&name);
        #[expect(clippy::disallowed_methods, reason = "derived files, no one's state")]
        std::fs::write(&path, page).map_err(|e| failed(&path, e))?;
        names.push(name);
    }
    let report = serde_json::json!({ "dir": dir, "pages": names });
    let count = names.len();
    let text = format!("{count} man pages in {}\n", dir.display());
    context.output.list(&report, || names, || text)
}

/// All pages with their file names.
///
/// # Errors
/// Never in practice: they are made in memory.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut root = Cli::command();
    root.build();
    let mut pages = Vec::new();
    collect(&root, "ocivisor", &mut pages)?;
    Ok(pages)
}

fn collect(
    command: &clap::Command,
    name: &str,
    pages: &mut Vec<(String, Vec<u8>)>,
) -> io::Result<()> {
    let file = format!("{name}.1");
    let mut page = Vec::new();
    let shown = command.clone().display_name(name);
    clap_mangen::Man::new(shown).render(&mut page)?;
    pages.push((file, page));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        collect(sub, &format!("{name}-{}", sub.get_name()), pages)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        insta::assert_snapshot!(names.join("\n"));
        for (name, page) in &pages {
            let page = String::from_utf8_lossy(page);
            assert!(page.contains(".SH SYNOPSIS"), "{name}");
        }
    }
}
