//! A guest on the real kernel: a tiny root filesystem, pinned namespaces, control groups; all of it
//! cleared on drop, whatever happened. Needs root.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

pub mod session;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ocivisor_core::ids::IdRange;
use ocivisor_core::spec::{
    Boot, Context, InitKind, IoLimits, Isolation, Placement, Platform, Resources, RootDisk, Upkeep,
    VmSpec,
};
use ocivisor_core::units::{Bytes, CentiCores};
use ocivisor_host::guests::bundle::{self, Facts};
use ocivisor_host::labels::Labels;
use ocivisor_host::layout::Layout;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// Long enough for a loaded machine; reached only on failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a condition gives a value.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "{what} did not come true in time");
        std::thread::yield_now();
    }
}

pub struct Guest {
    pub dir: tempfile::TempDir,
    pub layout: Layout,
    pub spec: VmSpec,
    pub ids: IdRange,
    pub base: String,
    pub facts: Option<Facts>,
    pub init: Option<u32>,
}

impl Guest {
    /// A guest whose image runs this command; nothing is created yet.
    pub fn new(argv: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = format!("ocivisor-test-{}-{n}", std::process::id());
        let ids = IdRange { base: 1_000_000 + (std::process::id() % 1000 * 8 + n) * IdRange::LEN };
        let dir = tempfile::Builder::new().prefix("ocv").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let layout = Layout {
            state: dir.path().join("s"),
            run: dir.path().join("r"),
            cgroup_base: base.clone(),
        };
        let spec = VmSpec {
            id: "vm-1".parse().unwrap(),
            name: "vm-1".parse().unwrap(),
            hostname: "guest-1".parse().unwrap(),
            platform: Platform::Local,
            resources: Resources {
                cpu_share: CentiCores(100),
                vcpus: 1,
                cpu_quota: None,
                memory: Bytes::mib(64),
                swap: Bytes(0),
                pids: 64,
                io_weight: None,
                placement: Placement::default(),
                hugepages: Vec::new(),
            },
            boot: Boot { init: InitKind::Auto, ..Boot::default() },
            root: RootDisk { path: dir.path().join("disk.img"), io: IoLimits::default() },
            disks: Vec::new(),
            nics: Vec::new(),
            isolation: Isolation::Default,
            context: Context::default(),
            graphics: None,
            upkeep: Upkeep::default(),
        };
        let guest = Self { dir, layout, spec, ids, base, facts: None, init: None };
        let digest = format!("sha256:{}", "a".repeat(64));
        let manifest = serde_json::json!({
            "version": 1, "backend": "directory", "size_bytes": 0, "layers": [digest],
            "image": {"reference": "x", "manifest_digest": digest, "config_digest": digest},
            "config": {"entrypoint": argv, "env": ["FROM=image"]},
        });
        fs::write(guest.dir.path().join("disk.img.manifest.json"), manifest.to_string()).unwrap();
        guest.make_rootfs();
        guest.pin_namespaces();
        guest.make_cgroups();
        guest
    }

    /// One whose shell runs a script.
    pub fn script(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    pub fn vm_dir(&self) -> PathBuf {
        self.layout.run_vm(&self.spec.id).dir().to_owned()
    }

    pub fn root(&self) -> PathBuf {
        self.layout.run_vm(&self.spec.id).root()
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("console.log")
    }

    fn make_rootfs(&self) {
        let root = self.root();
        for dir in ["bin", "sbin", "etc/init.d", "proc", "sys", "dev", "tmp", "run", "root"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for tool in [
            "sh", "cat", "ls", "id", "hostname", "sleep", "readlink", "mount", "stty", "tty",
            "grep", "unshare", "mknod", "head", "wc", "env", "kill", "ps", "echo", "pwd", "touch",
            "find", "true", "setsid",
        ] {
            symlink("busybox", root.join("bin").join(tool)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/tmp:/bin/sh\n",
        )
        .unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nweb:x:34:\nlog:x:35:web\n").unwrap();
        self.shift(&root);
    }

    /// Gives a tree to the guest, as an idmapped mount would.
    pub fn shift(&self, path: &Path) {
        lchown(path, Some(self.ids.base), Some(self.ids.base)).unwrap();
        if fs::symlink_metadata(path).unwrap().is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                self.shift(&entry.unwrap().path());
            }
        }
    }

    /// Replaces the root filesystem by a tar archive's content, ids shifted into the guest's range.
    pub fn unpack(&self, archive: &Path) {
        let root = self.root();
        fs::remove_dir_all(&root).unwrap();
        fs::create_dir(&root).unwrap();
        let mut tar = Command::new("tar");
        tar.arg("--numeric-owner").arg("-xpf").arg(archive).arg("-C").arg(&root);
        assert!(tar.status().unwrap().success());
        self.shift_by(&root);
    }

    fn shift_by(&self, path: &Path) {
        let found = fs::symlink_metadata(path).unwrap();
        let (uid, gid) = (self.ids.base + found.uid(), self.ids.base + found.gid());
        lchown(path, Some(uid), Some(gid)).unwrap();
        if !found.is_symlink() {
            // chown(2) took the set-id bits away.
            fs::set_permissions(path, found.permissions()).unwrap();
        }
        if found.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                self.shift_by(&entry.unwrap().path());
            }
        }
    }

    /// Puts an executable file into the root filesystem.
    pub fn file(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self.shift(&path);
    }

    /// Puts an example of this crate into the root filesystem, with the libraries it needs.
    pub fn program(&self, name: &str) {
        let program = example(name);
        let ldd = Command::new("ldd").arg(&program).output().unwrap();
        let text = String::from_utf8(ldd.stdout).unwrap();
        let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
        for library in libraries.map(Path::new) {
            let to = self.root().join(library.strip_prefix("/").unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(library, to).unwrap();
        }
        fs::copy(&program, self.root().join("bin").join(name)).unwrap();
        self.shift(&self.root());
    }

    fn pin_namespaces(&self) {
        let run = self.layout.run_vm(&self.spec.id);
        fs::create_dir_all(run.user_ns().parent().unwrap()).unwrap();
        let mut maker = Command::new("unshare")
            .args(["--user", "--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let of = |name: &str| PathBuf::from(format!("/proc/{}/ns/{name}", maker.id()));
        let own = fs::read_link("/proc/self/ns/net").unwrap();
        eventually("new namespaces", || fs::read_link(of("net")).ok().filter(|ns| *ns != own));
        for map in ["uid_map", "gid_map"] {
            let map = format!("/proc/{}/{map}", maker.id());
            fs::write(map, format!("0 {} 65536", self.ids.base)).unwrap();
        }
        for (name, pin) in [("user", run.user_ns()), ("net", run.net_ns())] {
            fs::write(&pin, "").unwrap();
            mount_bind(of(name), &pin).unwrap();
        }
        drop(maker.stdin.take());
        maker.wait().unwrap();
    }

    pub fn hierarchies() -> Vec<PathBuf> {
        let all = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        let v1: Vec<_> = all.filter(|path| path.join("cgroup.procs").is_file()).collect();
        if Path::new("/sys/fs/cgroup/cgroup.procs").is_file() {
            return vec!["/sys/fs/cgroup".into()];
        }
        v1
    }

    fn group(&self, hierarchy: &Path, leaf: &str) -> PathBuf {
        hierarchy.join(&self.base).join("vm-1").join(leaf)
    }

    pub fn cgroup_path(&self) -> String {
        format!("/{}/vm-1/guest", self.base)
    }

    fn make_cgroups(&self) {
        for hierarchy in Self::hierarchies() {
            for leaf in ["guest", "shim"] {
                let mut dir = hierarchy.clone();
                for part in [&self.base, "vm-1", leaf] {
                    dir.push(part);
                    if !dir.exists() {
                        fs::create_dir(&dir).unwrap();
                    }
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        let above = fs::read_to_string(dir.parent().unwrap().join(file));
                        if let (Ok(above), "cpuset") = (above, hierarchy_name(&hierarchy)) {
                            fs::write(dir.join(file), above).unwrap();
                        }
                    }
                }
            }
            let guest = self.group(&hierarchy, "guest");
            if hierarchy_name(&hierarchy) == "pids" {
                fs::write(guest.join("pids.max"), "64").unwrap();
            }
        }
    }

    /// Reads a file of the guest's group in a hierarchy.
    pub fn group_file(&self, hierarchy: &str, file: &str) -> String {
        let dir = self.group(&Path::new("/sys/fs/cgroup").join(hierarchy), "guest");
        fs::read_to_string(dir.join(file)).unwrap().trim().to_owned()
    }

    pub fn write_bundle(&mut self) -> Facts {
        let cgroup = self.cgroup_path();
        let given = bundle::Given { cgroup_path: &cgroup, shown: &[], labels: &Labels::none() };
        let facts = bundle::write(&self.layout, &self.spec, self.ids, &given).unwrap();
        self.facts = Some(facts);
        facts
    }

    /// Writes the bundle and runs `create`; the line that came on the status descriptor.
    pub fn create(&mut self, engine: &str) -> String {
        self.write_bundle();
        self.create_only(engine)
    }

    pub fn create_only(&mut self, engine: &str) -> String {
        let run = self.layout.run_vm(&self.spec.id);
        let mut command = runtime(&["create"]);
        command.args(["--id", "vm-1", "--engine", engine, "--log-max", "1048576"]);
        command.arg("--bundle").arg(run.bundle()).arg("--root").arg(run.runtime());
        command.arg("--vm-dir").arg(run.dir()).arg("--socket-dir").arg(run.sockets());
        command.arg("--log").arg(self.log());
        command.arg("--shim").arg(fake_shim()).args(["--status-fd", "3"]);
        for hierarchy in Self::hierarchies() {
            if matches!(hierarchy_name(&hierarchy), "systemd" | "unified" | "cgroup") {
                command.arg("--cgroup-procs");
                command.arg(self.group(&hierarchy, "shim").join("cgroup.procs"));
            }
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.starts_with("ready ") {
            let init = field(&line, "init").parse().unwrap();
            self.init = Some(init);
            // The shim is our child; reaped at the end of the test process.
            std::mem::forget(child);
        } else {
            assert_eq!(child.wait().unwrap().code(), Some(1), "{line}");
        }
        line.trim_end().to_owned()
    }

    /// Lets a created guest run.
    pub fn start(&self, ready: &str) {
        let (how, path) = field(ready, "start").split_once(':').unwrap();
        match how {
            "connect" => {
                let mut socket = UnixStream::connect(path).unwrap();
                std::io::Write::write_all(&mut socket, b"start container").unwrap();
            }
            _ => drop(fs::read(path).unwrap()),
        }
    }

    /// Creates, starts, and waits until the console shows `text`.
    pub fn boot_until(&mut self, engine: &str, text: &str) {
        let ready = self.create(engine);
        assert!(ready.starts_with("ready "), "{ready}");
        self.start(&ready);
        self.console_shows(text);
    }

    pub fn console(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default().replace('\r', "")
    }

    pub fn console_shows(&self, text: &str) -> String {
        eventually(&format!("console showing {text:?}"), || {
            let console = self.console();
            if self.vm_dir().join("exit.txt").exists() && !console.contains(text) {
                panic!("guest ended: {:?}: {console}", self.exit());
            }
            console.contains(text).then_some(console)
        })
    }

    fn exit(&self) -> Option<String> {
        fs::read_to_string(self.vm_dir().join("exit.txt")).ok().filter(|text| !text.is_empty())
    }

    /// How the guest ended.
    pub fn wait_exit(&self) -> String {
        eventually("end of the guest", || self.exit())
    }

    /// Value after `key:` on the console.
    pub fn said(&self, key: &str) -> String {
        let console = self.console();
        let line = console.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
        line.unwrap_or_else(|| panic!("no {key} in {console}")).trim().to_owned()
    }

    /// Processes in any group of this guest.
    pub fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for hierarchy in Self::hierarchies() {
            collect_processes(&hierarchy.join(&self.base), &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let processes = self.processes();
            if processes.is_empty() {
                break;
            }
            for pid in processes {
                if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::KILL);
                    // Shims are children of this process.
                    let _ =
                        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
                }
            }
            std::thread::yield_now();
        }
        let run = self.layout.run_vm(&self.spec.id);
        for pin in [run.user_ns(), run.net_ns()] {
            let _ = unmount(&pin, UnmountFlags::DETACH);
        }
        for hierarchy in Self::hierarchies() {
            remove_groups(&hierarchy.join(&self.base));
        }
    }
}

fn collect_processes(dir: &Path, found: &mut Vec<u32>) {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    found.extend(procs.lines().filter_map(|line| line.parse::<u32>().ok()));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), found);
        }
    }
}

fn remove_groups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    // Zombies of the group are gone a moment after they were reaped.
    let end = Instant::now() + Duration::from_secs(5);
    while dir.exists() && fs::remove_dir(dir).is_err() && Instant::now() < end {
        std::thread::yield_now();
    }
}

fn hierarchy_name(hierarchy: &Path) -> &str {
    hierarchy.file_name().unwrap().to_str().unwrap()
}

/// Value of `name=value` in a line of the shim.
pub fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let start = line.find(&format!("{name}=")).unwrap_or_else(|| panic!("{name} in {line}"));
    let rest = &line[start + name.len() + 1..];
    rest.split(' ').next().unwrap().trim_end()
}

/// The runtime with its standard output as descriptor 3 and nothing else, as the daemon calls it.
pub fn runtime(words: &[&str]) -> Command {
    let mut command = Command::new("/bin/busybox");
    command.args(["sh", "-c", r#"exec "$@" 3>&1 1>/dev/null 4<&0 0</dev/null"#, "sh"]);
    command.arg(env!("CARGO_BIN_EXE_ocivisor-runtime")).args(words).stdin(Stdio::null());
    command
}

fn fake_shim() -> PathBuf {
    example("fake_shim")
}

fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(program.is_file(), "{} is built by cargo test without a filter", program.display());
    program
}

/// Reads one line of a child's output.
pub fn first_line(child: &mut Child) -> (String, BufReader<ChildStdout>) {
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (line.trim_end().to_owned(), reader)
}

/// All that is left of a stream.
pub fn rest(mut reader: impl Read) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}
