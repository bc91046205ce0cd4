//! The second disk: what is tested, and how.
//!
//! ```text
//!   /task/inside.sh        what the VM's unit runs
//!        /selection        a line for each test binary: its name, then parts of names of tests
//!        /repository.path  where the tests look for the next one
//!        /repository/      driver scripts and fixtures
//!        /systems         variables that name root file systems, as a script
//!        /programs/ /tests/ /*.tar
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Chosen;
use crate::cmd::{program, root, run, write};

/// The script that runs the tests.
const INSIDE: &str = include_str!("inside.sh");
/// Parts of the repository that tests read.
const READ_BY_TESTS: [&str; 4] =
    ["src/daemon/apparmor", "src/daemon/udev", "driver-scripts", "tests/fixtures"];

/// Makes the disk; returns its path.
///
/// # Errors
/// It does not fit on this host's disk.
pub fn make(
    cache: &Path,
    programs: &Path,
    systems: &[(&str, PathBuf)],
    suites: &BTreeMap<String, PathBuf>,
    chosen: &[Chosen],
) -> Result<PathBuf> {
    let (tree, disk) = (cache.join("load"), cache.join("load.img"));
    let _absent_is_fine = (fs::remove_dir_all(&tree), fs::remove_file(&disk));
    let mut bytes = 0;
    for dir in ["programs", "tests", "repository/src/daemon", "repository/tests"] {
        fs::create_dir_all(tree.join(dir)).with_context(|| format!("make {}", tree.display()))?;
    }
    for entry in fs::read_dir(programs).with_context(|| format!("read {}", programs.display()))? {
        let entry = entry?;
        bytes += place(&entry.path(), &tree.join("programs").join(entry.file_name()))?;
    }
    for (suite, _) in chosen {
        let from = suites.get(suite).with_context(|| format!("there is no suite {suite}"))?;
        bytes += place(from, &tree.join("tests").join(suite))?;
    }
    let mut variables = String::new();
    for (variable, tar) in systems {
        let name = tar.file_name().context("a tarball without a name")?;
        bytes += place(tar, &tree.join(name))?;
        variables += &format!("export {variable}=/task/{}\n", name.to_string_lossy());
    }
    write(&tree.join("systems"), &variables)?;
    for part in READ_BY_TESTS {
        let to = tree.join("repository").join(part);
        run(program("cp").args(["-r", "--"]).arg(root().join(part)).arg(to))?;
    }
    let line = |(suite, parts): &Chosen| format!("{suite} {}\n", parts.join(" "));
    write(&tree.join("selection"), &chosen.iter().map(line).collect::<String>())?;
    write(&tree.join("repository.path"), &root().to_string_lossy())?;
    write(&tree.join("inside.sh"), INSIDE)?;
    fs::set_permissions(tree.join("inside.sh"), fs::Permissions::from_mode(0o755))?;
    // A tenth for the filesystem's own, and room for the small files.
    let mib = (bytes + bytes / 10) / (1 << 20) + 64;
    let mut command = program("mke2fs");
    command.args(["-q", "-t", "ext4", "-L", "task", "-O", "^has_journal", "-d"]);
    run(command.arg(&tree).arg(&disk).arg(format!("{mib}M")))?;
    fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    Ok(disk)
}

/// A link where that is possible, else a copy; returns its size.
fn place(from: &Path, to: &Path) -> Result<u64> {
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(drop))
        .and_then(|()| Ok(fs::metadata(to)?.len()))
        .with_context(|| format!("put {} into {}", from.display(), to.display()))
}
