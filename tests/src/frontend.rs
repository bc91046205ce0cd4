//! A front-end of OpenNebula's beside hosts, all on this machine.
//!
//! What tells machines apart is what they see: the front-end runs in a mount namespace in which the hosts' system
//! datastores are empty, and reaches a host by a program in place of ssh, which leaves that namespace, becomes the
//! platform's user and runs the fixed command with the host's socket. Image datastores are the front-end's; to hosts
//! they are not told of.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ocivisor_datastore::{Image, Limits, Source};
use ocivisor_frontend::Depot;
use tempfile::TempDir;

use crate::{Answer, Host, bin_dir, repository, tool, write};

/// Number of the platform's user on hosts, and of his group.
pub const ONEADMIN: u32 = 54_321;
/// What a host's configuration says of him.
pub const ACCESS: &str = "[access]\noperate_gid = 54321\noperate_dirs = [\"@DIR@/ds\"]\n";

/// The front-end.
#[derive(Debug)]
pub struct FrontEnd {
    dir: TempDir,
    hidden: Vec<PathBuf>,
}

impl FrontEnd {
    /// The front-end of these hosts, which are called `host1`, `host2`, … there. Their system datastore is 101.
    #[must_use]
    pub fn of(hosts: &[&Host]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        tool(&["chmod", "755", &dir.path().display().to_string()]);
        let front =
            Self { dir, hidden: hosts.iter().map(|host| host.dir().join("ds/101")).collect() };
        for place in ["ds/100", "ds/101"] {
            std::fs::create_dir_all(front.path(place)).unwrap();
        }
        for host in hosts {
            std::fs::create_dir_all(host.dir().join("ds/101")).unwrap();
            // Beside a host's system datastore the front-end finds the images: there all have one path.
            std::os::unix::fs::symlink(front.path("ds/100"), host.dir().join("ds/100")).unwrap();
            let ds = host.dir().join("ds").display().to_string();
            tool(&["chown", "-hR", "54321:54321", &ds]);
        }
        front.say_disks(7, &[]);
        let cases: String = hosts
            .iter()
            .enumerate()
            .map(|(n, host)| format!("host{}) socket={};;\n", n + 1, host.socket().display()))
            .collect();
        let (place, own) = (front.dir.path().display(), std::process::id());
        let program = bin_dir().join("ocivisor").display().to_string();
        front.program(
            "ssh",
            &format!(
                "while [ \"$1\" = -o ]; do shift 2; done\n\
                 [ $# = 2 ] && [ \"$2\" = '/usr/bin/ocivisor one host' ] || exit 99\n\
                 case $1 in\n{cases}*) echo \"ssh: Could not resolve hostname $1\" >&2; exit 255;;\nesac\n\
                 tee -a {place}/sent.$1 | nsenter --mount=/proc/{own}/ns/mnt \
                 setpriv --reuid 54321 --regid 54321 --clear-groups \
                 env OCIVISOR_SOCKET=$socket {program} one host\n"
            ),
        );
        front.program("onevm", &format!("[ \"$1 $2\" = 'show -x' ] && cat {place}/vm.$3\n"));
        front.program(
            "onedatastore",
            &format!("[ \"$1 $2\" = 'show -x' ] && cat {place}/datastore.$3\n"),
        );
        let path = |name: &str| front.path(name).display().to_string();
        write(
            &front.path("opennebula.toml"),
            &format!(
                "[transfer]\nssh = {:?}\nonevm = {:?}\nonedatastore = {:?}\nfrontend = [\"frontend\"]\n",
                path("ssh"),
                path("onevm"),
                path("onedatastore")
            ),
        );
        front
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.path(name);
        write(&path, &format!("#!/bin/sh\n{text}"));
        tool(&["chmod", "755", &path.display().to_string()]);
    }

    /// From here on it sees the hosts' system datastores, as if they were shares; then the platform's user is one and
    /// the same on both sides, here who runs the test.
    pub fn share(&mut self) {
        self.hidden.clear();
        let ssh = std::fs::read_to_string(self.path("ssh")).unwrap();
        let user = "setpriv --reuid 54321 --regid 54321 --clear-groups";
        assert!(ssh.contains(user));
        write(&self.path("ssh"), &ssh.replace(user, "env"));
    }

    /// Something in its directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Its image datastore.
    #[must_use]
    pub fn depot(&self) -> Depot {
        Depot::open(&self.path("ds/100")).unwrap()
    }

    /// Takes an image into it; gives its SOURCE.
    #[must_use]
    pub fn add_image(&self, number: u32, source: &Source) -> (Image, String) {
        let depot = self.depot();
        let image =
            depot.store().import(source, &Depot::name(number), &Limits::default(), &mut |_| ());
        let image = image.unwrap();
        let source = format!("ocivisor:{number}@{}", image.manifest_digest);
        (image, source)
    }

    /// What oned says of a VM's disks: number, size in MB, more elements.
    pub fn say_disks(&self, vm: u32, disks: &[(u32, u64, &str)]) {
        let disks: String = disks
            .iter()
            .map(|(disk, size, more)| {
                format!("<DISK><DISK_ID>{disk}</DISK_ID><SIZE>{size}</SIZE>{more}</DISK>")
            })
            .collect();
        let text = format!("<VM><ID>{vm}</ID><TEMPLATE>{disks}</TEMPLATE></VM>");
        write(&self.path(&format!("vm.{vm}")), &text);
    }

    /// A call of a transfer script, as the driver process makes it.
    #[must_use]
    pub fn command(&self, script: &str, words: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        let hide: String = self
            .hidden
            .iter()
            .map(|dir| format!("mount -t tmpfs none {} && ", dir.display()))
            .collect();
        let name = script.split('.').next().unwrap_or(script);
        let path = repository().join("driver-scripts/opennebula/remotes/tm/ocivisor").join(name);
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(format!("{hide}exec \"$@\"")).arg("sh");
        if name == script {
            command.arg(path);
        } else {
            // The driver process looks for a script of the whole name first.
            let own = self.path(&format!("tm/ocivisor/{script}"));
            std::fs::create_dir_all(own.parent().unwrap()).unwrap();
            std::fs::copy(path, &own).unwrap();
            command.arg(own);
        }
        command
            .args(words)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("OCIVISOR_BIN", bin_dir().join("ocivisor"))
            .env("OCIVISOR_OPENNEBULA_CONFIG", self.path("opennebula.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Its answer.
    #[must_use]
    pub fn tm(&self, script: &str, words: &[&str]) -> Answer {
        Answer::of(&self.command(script, words).output().unwrap())
    }

    /// Bytes that went to a host since this was last asked.
    #[must_use]
    pub fn sent(&self, host: &str) -> u64 {
        let path = self.path(&format!("sent.{host}"));
        let sent = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        let _ = std::fs::remove_file(path);
        sent
    }
}

/// An image of these layers, each a file of that many bytes that cannot be compressed, upon a root filesystem.
///
/// # Panics
/// A tool is missing.
pub fn layout(dir: &Path, base: &Path, files: &[(&str, usize)]) -> Source {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let path = dir.join("new");
        std::fs::write(&path, bytes).unwrap();
        let sum = tool(&["sha256sum", &path.display().to_string()]);
        let hex = sum.split(' ').next().unwrap().to_owned();
        std::fs::rename(&path, blobs.join(&hex)).unwrap();
        format!("sha256:{hex}")
    };
    let mut layers = vec![std::fs::read(base).unwrap()];
    for (name, size) in files {
        let work = tempfile::tempdir().unwrap();
        // Pseudo-random, and the same for the same name.
        let mut state =
            name.bytes().fold(88_172_645_463_325_252_u64, |h, b| h.rotate_left(7) ^ u64::from(b));
        let bytes: Vec<u8> = (0..*size)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect();
        std::fs::write(work.path().join(name), bytes).unwrap();
        let tar = work.path().join("t");
        let (tar, work) = (tar.display().to_string(), work.path().display().to_string());
        tool(&["tar", "--mtime=@0", "--owner=0", "--group=0", "-C", &work, "-cf", &tar, name]);
        layers.push(std::fs::read(tar).unwrap());
    }
    let described: Vec<(String, usize)> = layers.iter().map(|l| (put(l), l.len())).collect();
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let ids: Vec<&String> = described.iter().map(|(digest, _)| digest).collect();
    let config =
        serde_json::json!({"os": "linux", "architecture": arch, "config": {"Cmd": ["/sbin/init"]},
        "rootfs": {"type": "layers", "diff_ids": ids}})
        .to_string();
    let of = |kind: &str, digest: &str, size: usize| serde_json::json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size});
    let stack: Vec<_> = described.iter().map(|(d, s)| of("layer.v1.tar", d, *s)).collect();
    let manifest = serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": of("config.v1+json", &put(config.as_bytes()), config.len()), "layers": stack})
    .to_string();
    let top = of("manifest.v1+json", &put(manifest.as_bytes()), manifest.len());
    write(
        &dir.join("index.json"),
        &serde_json::json!({"schemaVersion": 2, "manifests": [top]}).to_string(),
    );
    write(&dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
    Source::OciLayout { dir: dir.to_owned(), tag: None }
}
