//! Where everything is: one directory, below it what is at `/` of a front-end and of its hosts.
//!
//! oned has one name for the place of datastores, on all machines. So each host is a mount namespace in which its own
//! directories are at that place, and a network namespace; processes, users and control groups are the machine's.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The front-end's name, as oned gives it to transfer drivers.
pub const FRONTEND: &str = "frontend";

/// A directory with all of a cloud.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
    /// Variables that scripts get besides those of OpenNebula's own, on the front-end.
    pub environment: Vec<(String, String)>,
    /// Whose scripts are: number of the user, and of its group; else of who runs the test.
    pub user: Option<u32>,
}

impl Place {
    /// A front-end with the drivers of that tree, which reaches hosts and oned by `program` (this crate's own).
    ///
    /// # Panics
    /// The directory cannot be made.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("ocv").tempdir_in("/tmp").unwrap();
        let place = Self { dir, environment: Vec::new(), user: None };
        for sub in
            ["var/lib/one/vms", "var/lib/one/datastores", "var/lib/one/remotes", "bin", "hosts"]
        {
            fs::create_dir_all(place.root().join(sub)).unwrap();
        }
        fs::create_dir_all(place.root().join("var/tmp/one")).unwrap();
        place.write_programs(program);
        place
    }

    fn write_programs(&self, program: &Path) {
        for name in ["ssh", "scp", "sudo", "onevm", "oneimage", "onedatastore"] {
            let path = self.root().join("bin").join(name);
            let (program, root) = (program.display(), self.root().display());
            let text = format!("#!/bin/sh\nexec {program} {name} {root} \"$@\"\n");
            write_script(&path, &text);
        }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// `/var/lib/one/vms`.
    #[must_use]
    pub fn vms(&self) -> PathBuf {
        self.root().join("var/lib/one/vms")
    }

    /// Where datastores are, as oned writes it.
    #[must_use]
    pub fn location(&self) -> String {
        format!("{}/var/lib/one//datastores", self.root().display())
    }

    /// Drivers on the front-end.
    #[must_use]
    pub fn remotes(&self) -> PathBuf {
        self.root().join("var/lib/one/remotes")
    }

    /// Drivers on a host.
    #[must_use]
    pub fn remotes_of_hosts(&self) -> PathBuf {
        self.root().join("var/tmp/one")
    }

    /// What a host has of its own.
    #[must_use]
    pub fn host(&self, name: &str) -> PathBuf {
        self.root().join("hosts").join(name)
    }

    /// Copies the front-end's drivers to a host, links followed, as each start of its monitoring does.
    ///
    /// # Panics
    /// They cannot be copied.
    pub fn sync(&self, host: &str) {
        // A host with directories of its own sees them at the common place.
        let own = self.host(host).join("enter").exists();
        let to = if own { self.host(host).join("one") } else { self.remotes_of_hosts() };
        fs::create_dir_all(&to).unwrap();
        // The directory itself stays: it is mounted.
        for old in fs::read_dir(&to).unwrap().filter_map(Result::ok) {
            let path = old.path();
            fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)).unwrap();
        }
        let from = format!("{}/.", self.remotes().display());
        ocivisor_tests::tool(&["cp", "-rL", &from, &to.display().to_string()]);
        if self.user.is_some() {
            crate::sshd::give(&to);
        }
    }

    /// From here on scripts are the platform's user's, on all machines: what is its own there is given to it, and root
    /// answers its ssh. The stand-in's program, if that user cannot reach it, is copied.
    ///
    /// # Panics
    /// It cannot be done.
    pub fn become_user(&mut self, program: &Path) {
        self.user = Some(crate::sshd::ONEADMIN);
        write_mode(self.root(), 0o755);
        let copy = self.root().join("stand-in");
        fs::hard_link(program, &copy).or_else(|_| fs::copy(program, &copy).map(drop)).unwrap();
        write_mode(&copy, 0o755);
        self.write_programs(&copy);
        crate::sshd::give(&self.root().join("var"));
        crate::sshd::open(self.root());
    }

    /// A text without this directory's name: paths as they would be in a real installation.
    #[must_use]
    pub fn plain(&self, text: &str) -> String {
        text.replace(&self.root().display().to_string(), "")
    }
}

/// Writes a script.
///
/// # Panics
/// It cannot be written.
pub fn write_script(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    write_mode(path, 0o755);
}

fn write_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
