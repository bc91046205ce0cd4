//! A front-end and two hosts with real daemons, and the drivers of a tree in place of the recorder's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ocivisor_tests::{bin_dir, frontend, image, repository, tool};

use crate::desk::Desk;
use crate::drivers::Drivers;
use crate::model::{ImageState, TransferConf};
use crate::node::{Holdings, Node, Stores};
use crate::oned::Oned;
use crate::place::{FRONTEND, Place};
use crate::registry::Registry;

/// Another tree of drivers than ours.
const REMOTES: &str = "OCIVISOR_CONFORMANCE_REMOTES";
/// The directory of its VMM scripts, if it is not ours.
pub(crate) const DRIVER: &str = "OCIVISOR_CONFORMANCE_DRIVER";

/// A template that every image boots, but for its disks.
const TEMPLATE: &str = "CPU=0.5\nVCPU=1\nMEMORY=64\nNIC=[NETWORK=net0]\n\
    CONTEXT=[NETWORK=YES,HOSTNAME=\"$NAME\"]\nOCI=[ENTRYPOINT=\"/bin/sh -c\",CMD=\"sleep 1000\"]\n";

/// Bytes of the layer that the images `web` and `db` have both.
const COMMON: usize = 1_500_000;
/// Bytes of the one that `db` has for itself.
const OWN: usize = 400_000;

/// A cloud.
#[derive(Debug)]
pub struct Cloud {
    /// Its hosts.
    pub nodes: Vec<Arc<Node>>,
    /// oned.
    pub oned: Arc<Oned>,
    /// Name of the monitoring driver, and of its directory.
    pub monitoring: String,
    /// What each host has of datastores.
    stores: Stores,
    _desk: Desk,
}

/// What came of a script that was called by itself.
#[derive(Debug)]
pub struct Ran {
    /// Its status.
    pub code: i32,
    /// Its output.
    pub out: String,
    /// Its errors.
    pub err: String,
    /// Time that it and its children had a processor.
    pub cpu: Duration,
}

impl Cloud {
    /// A cloud with hosts `host01` and `host02`, networks `net0` and `net1`, image `busybox`, template `base`.
    /// `program` is this crate's own.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn start(program: &Path) -> Self {
        let driver = std::env::var(DRIVER).unwrap_or_else(|_| "ocivisor".to_owned());
        let stores = Stores { own: &[101, 102], shared: &[103] };
        let cloud = Self::bare(program, &driver, &[], stores, &[100, 101]);
        cloud.register();
        cloud
    }

    /// A cloud with hosts of which oned knows nothing yet. The VMM driver is called `driver`; `more` are directories
    /// of the drivers' tree that are there once more: from, to. `images` are datastores of the front-end's.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn bare(
        program: &Path,
        driver: &str,
        more: &[(String, &str)],
        stores: Stores,
        images: &[u32],
    ) -> Self {
        let mut place = Place::new(program);
        let other = std::env::var_os(REMOTES).map(PathBuf::from);
        let own = repository().join("driver-scripts/opennebula/remotes");
        let stand_ins = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
        let copy = |from: &Path, to: &Path| {
            tool(&["cp", "-rL", &format!("{}/.", from.display()), &to.display().to_string()]);
        };
        for from in [Some(own), other, Some(stand_ins)].into_iter().flatten() {
            copy(&from, &place.remotes());
        }
        for (from, to) in more {
            copy(&place.remotes().join(from), &place.remotes().join(to));
        }
        let ocivisor = bin_dir().join("ocivisor").display().to_string();
        place.environment.push(("OCIVISOR_BIN".to_owned(), ocivisor));
        let config = place.root().join("opennebula.toml").display().to_string();
        place.environment.push(("OCIVISOR_OPENNEBULA_CONFIG".to_owned(), config));
        for store in images.iter().chain(stores.shared) {
            let dir = place.root().join(format!("var/lib/one/datastores/{store}"));
            std::fs::create_dir_all(dir).unwrap();
        }
        std::fs::create_dir(place.root().join("uploads")).unwrap();
        configure(&place, &[]);
        place.become_user(program);
        let nodes = ["host01", "host02"].map(|name| Arc::new(Node::start(&place, name, stores)));
        let oned = Arc::new(Oned::new(Drivers::new(place, driver)));
        let desk = Desk::open(oned.drivers.place.root(), oned.shared_model());
        let monitoring = "ocivisor".to_owned();
        Self { nodes: nodes.into(), oned, monitoring, stores, _desk: desk }
    }

    /// One more host, of which oned knows nothing yet, if there is none of that name.
    pub fn add_node(&mut self, name: &str) {
        if self.nodes.iter().all(|node| node.name != name) {
            let node = Node::start(&self.oned.drivers.place, name, self.stores);
            self.nodes.push(Arc::new(node));
        }
    }

    fn register(&self) {
        let ocivisor = TransferConf {
            shared: false,
            ln_target: "SYSTEM",
            clone_target: "SYSTEM",
            systems: ["ssh", "shared", "local"].map(str::to_owned).into(),
        };
        // Drivers that know nothing of containers.
        let other = |shared, ln_target| TransferConf {
            shared,
            ln_target,
            clone_target: "SYSTEM",
            systems: Vec::new(),
        };
        let all = [
            ("ocivisor", ocivisor),
            ("ssh", other(false, "SYSTEM")),
            ("shared", other(true, "NONE")),
        ];
        self.oned.model().transfers = all.map(|(name, conf)| (name.to_owned(), conf)).into();
        let images = self.store_template("images");
        for (command, given) in [
            ("onehost create host01 -i ocivisor -v ocivisor", ""),
            ("onehost create host02 -i ocivisor -v ocivisor", ""),
            ("onedatastore create", images.as_str()),
            ("onedatastore create", "NAME=system\nTYPE=SYSTEM_DS\nTM_MAD=ocivisor"),
            (
                "onevnet create",
                "NAME=net0\nVN_MAD=bridge\nBRIDGE=br0\nAR=[TYPE=IP4,IP=192.168.100.10,SIZE=100]\n\
                 NETWORK_ADDRESS=192.168.100.0\nNETWORK_MASK=255.255.255.0\nGATEWAY=192.168.100.1",
            ),
            (
                "onevnet create",
                "NAME=net1\nVN_MAD=bridge\nBRIDGE=br1\nAR=[TYPE=IP4,IP=10.10.0.10,SIZE=100]\n\
                 NETWORK_ADDRESS=10.10.0.0\nNETWORK_MASK=255.255.255.0",
            ),
        ] {
            self.oned.command(command, given).expect(command);
        }
        image::busybox(&self.upload("busybox.tar"));
        self.archive("busybox", &[]);
        self.bring("busybox", &format!("oci-archive:{}", self.upload("busybox.oci").display()));
        self.add_template("base", "DISK=[IMAGE=busybox]");
    }

    /// OpenNebula becomes one of that version, on the front-end and on its hosts.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn become_version(&self, version: &str) {
        let place = &self.oned.drivers.place;
        std::fs::write(place.remotes().join("VERSION"), version).unwrap();
        self.nodes.iter().for_each(|node| place.sync(&node.name));
    }

    /// What an image datastore of ours is made of, that takes what was uploaded.
    #[must_use]
    pub fn store_template(&self, name: &str) -> String {
        let safe = self.upload("").display().to_string();
        format!(
            "NAME={name}\nTYPE=IMAGE_DS\nDS_MAD=ocivisor\nTM_MAD=ocivisor\nSAFE_DIRS=\"{safe}\""
        )
    }

    /// A file of a user's on the front-end.
    #[must_use]
    pub fn upload(&self, name: &str) -> PathBuf {
        self.oned.drivers.place.root().join("uploads").join(name)
    }

    /// An image of busybox and these layers as an OCI layout, `NAME.layout`, and as an archive, `NAME.oci`.
    pub fn archive(&self, name: &str, layers: &[(&str, usize)]) {
        let layout = self.upload(&format!("{name}.layout"));
        let _source = frontend::layout(&layout, &self.upload("busybox.tar"), layers);
        let (from, to) = (layout.display(), self.upload(&format!("{name}.oci")));
        tool(&["tar", "-C", &from.to_string(), "-cf", &to.display().to_string(), "."]);
        tool(&["chmod", "-R", "a+rX", &self.upload("").display().to_string()]);
    }

    /// More images: `web` of an archive, `db` of a registry, which have a layer in common and one of `busybox`, `data` a
    /// data block with a file system; templates `web` (with a volatile disk) and `db` (with `data`).
    ///
    /// # Panics
    /// One does not come in.
    pub fn add_images(&self) -> Registry {
        let registry = self.open_registry(&[]);
        self.archive("web", &[("common", COMMON)]);
        self.archive("db", &[("common", COMMON), ("own", OWN)]);
        registry.push(&self.upload("db.layout"), "team/db:1");
        self.bring("web", &format!("oci-archive:{}", self.upload("web.oci").display()));
        self.bring("db", &format!("docker://{}/team/db:1", registry.host()));
        let data = "NAME=data\nTYPE=DATABLOCK\nSIZE=16\nFS=ext4\nFORMAT=raw";
        self.oned.command("oneimage create -d images", data).expect("data");
        self.is_ready("data");
        self.add_template("web", "DISK=[IMAGE=web]\nDISK=[TYPE=fs,SIZE=16,FORMAT=raw,FS=ext4]");
        self.add_template("db", "DISK=[IMAGE=db]\nDISK=[IMAGE=data]");
        registry
    }

    /// A registry that the drivers may talk to, as to these web servers.
    #[must_use]
    pub fn open_registry(&self, more: &[&str]) -> Registry {
        let place = &self.oned.drivers.place;
        let registry = Registry::start(&place.root().join("registry"));
        configure(place, &[more, &[&registry.host()]].concat());
        registry
    }

    /// `oneimage create`, which must succeed.
    #[track_caller]
    pub fn bring(&self, name: &str, path: &str) {
        let text = format!("NAME={name}\nPATH=\"{path}\"");
        self.oned.command("oneimage create -d images", &text).unwrap_or_else(|e| panic!("{e}"));
        self.is_ready(name);
    }

    #[track_caller]
    fn is_ready(&self, name: &str) {
        let model = self.oned.model();
        let image = model.image(name).expect("an image");
        assert_eq!(image.state.0, ImageState::Ready, "{name}: {:?}", image.error);
    }

    /// A template of these disks.
    ///
    /// # Panics
    /// It is refused.
    pub fn add_template(&self, name: &str, disks: &str) {
        let text = format!("NAME={name}\n{TEMPLATE}{disks}\n");
        self.oned.command("onetemplate create", &text).expect("a template");
    }

    /// A host.
    #[must_use]
    pub fn node(&self, name: &str) -> &Arc<Node> {
        self.nodes.iter().find(|node| node.name == name).expect("a host")
    }

    /// Asks oned, which must not refuse.
    #[track_caller]
    pub fn ask(&self, command: &str) -> String {
        self.oned.command(command, "").unwrap_or_else(|e| panic!("{command}: {e}"))
    }

    /// A VM's state as users are shown it, and its last error.
    #[must_use]
    pub fn state(&self, vm: u32) -> (String, Option<String>) {
        let model = self.oned.model();
        let vm = &model.vms[&vm];
        (crate::state::shown(vm.state, vm.lcm), vm.error.clone())
    }

    /// Asks oned something that is to lead a VM to a state.
    #[track_caller]
    pub fn leads(&self, command: &str, vm: u32, state: &str) {
        self.ask(command);
        let (seen, error) = self.state(vm);
        let calls = self.oned.drivers.take_calls();
        let last = calls.last().map(|call| (&call.on, &call.script, &call.args, &call.answer));
        assert_eq!(seen, state, "{command}: {error:?}\nlast call: {last:?}");
    }

    /// Calls a script on a host outside of any action: what a hostile document does to it.
    ///
    /// # Panics
    /// The host's shell does not say what it took.
    #[must_use]
    pub fn script(&self, host: &str, action: &str, args: &[&str], stdin: &[u8]) -> Ran {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let place = &self.oned.drivers.place;
        let script = place.remotes_of_hosts().join("vmm").join(&self.oned.drivers.vmm).join(action);
        let taken = self.node(host).dir().join("home/times");
        let (script, args, to) = (script.display(), args.join(" "), taken.display());
        let mut child = Command::new(place.root().join("bin/ssh"))
            .arg(host)
            .arg(format!("{script} {args}; code=$?; times > {to}; exit $code"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who refuses early need not read all.
        let _refused = child.stdin.take().unwrap().write_all(stdin);
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ran {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
            cpu: of_children(&std::fs::read_to_string(taken).unwrap()),
        }
    }

    /// What all hosts hold, and the front-end's datastores.
    #[must_use]
    pub fn holdings(&self) -> (Vec<Holdings>, Vec<String>, Vec<String>) {
        let root = self.oned.drivers.place.root();
        let mut files = Vec::new();
        crate::node::files_below(&root.join("var/lib/one/datastores"), root, &mut files);
        (self.nodes.iter().map(|node| node.holdings()).collect(), files, loops(root))
    }
}

/// What a shell's `times` says of its children: `0m0.012s 0m0.003s` in the second line.
fn of_children(times: &str) -> Duration {
    let words = times.lines().nth(1).expect("times of children").split_whitespace();
    words
        .map(|word| {
            let (minutes, seconds) = word.trim_end_matches('s').split_once('m').expect("minutes");
            let minutes: u64 = minutes.parse().expect("minutes");
            Duration::from_secs(minutes * 60)
                + Duration::from_secs_f64(seconds.parse().expect("seconds"))
        })
        .sum()
}

/// Loop devices whose file is below a directory.
fn loops(root: &Path) -> Vec<String> {
    let devices = std::fs::read_dir("/sys/block").expect("/sys");
    let files = devices.filter_map(|device| {
        std::fs::read_to_string(device.ok()?.path().join("loop/backing_file")).ok()
    });
    files.filter(|file| Path::new(file.trim()).starts_with(root)).collect()
}

/// Writes the drivers' configuration on the front-end.
fn configure(place: &Place, registries: &[&str]) {
    let bin = |name: &str| place.root().join("bin").join(name).display().to_string();
    let mut text = format!(
        "[transfer]\nssh = {:?}\nonevm = {:?}\nonedatastore = {:?}\nfrontend = [{FRONTEND:?}]\n\
         [images]\noneimage = {:?}\ndisk_mb = 64\npolicy = {:?}\n[registries]\nattempts = 2\n",
        bin("ssh"),
        bin("onevm"),
        bin("onedatastore"),
        bin("oneimage"),
        bin("no-policy.json"),
    );
    for host in registries {
        text += &format!("[registries.hosts.{host:?}]\nplain_http = true\n");
    }
    std::fs::write(place.root().join("opennebula.toml"), text).unwrap();
}
