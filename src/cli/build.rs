//! Puts the tree of OpenNebula's driver scripts into the command, for `ocivisor one install`: what is installed
//! and what the command understands are of one version.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let tree = manifest.join("../../driver-scripts/opennebula/remotes");
    println!("cargo:rerun-if-changed={}", tree.display());
    let mut paths = Vec::new();
    collect(&tree, &mut paths)?;
    paths.sort();
    let mut table = String::from("&[\n");
    for path in &paths {
        let name = path.strip_prefix(&tree).map_err(io::Error::other)?;
        let mode = if path.metadata()?.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
        let _ = writeln!(table, "    ({name:?}, {mode}, include_str!({path:?})),");
    }
    table.push_str("]\n");
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    #[expect(
        clippy::disallowed_methods,
        reason = "a build script's output, made anew after each failure"
    )]
    fs::write(out.join("remotes.rs"), table)
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) -> io::Result<()> {
    println!("cargo:rerun-if-changed={}", dir.display());
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        // What an editor leaves behind is none of it.
        if name.to_str().is_none_or(|name| name.starts_with('.') || name.ends_with('~')) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            collect(&path, into)?;
        } else if entry.file_type()?.is_file() {
            into.push(path);
        }
    }
    Ok(())
}
