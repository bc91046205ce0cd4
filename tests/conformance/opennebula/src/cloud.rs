//! A front-end and two hosts with real daemons, and the drivers of a tree in place of the recorder's.

use std::path::{Path, PathBuf};

use ocivisor_tests::{bin_dir, image, repository, tool};

use crate::desk::Desk;
use crate::drivers::Drivers;
use crate::model::TransferConf;
use crate::node::{Holdings, Node};
use crate::oned::Oned;
use crate::place::Place;

/// Another tree of drivers than ours.
const REMOTES: &str = "OCIVISOR_CONFORMANCE_REMOTES";
/// The directory of its VMM scripts, if it is not ours.
const DRIVER: &str = "OCIVISOR_CONFORMANCE_DRIVER";

/// A template that every image boots.
const TEMPLATE: &str = "NAME=base\nCPU=0.5\nVCPU=1\nMEMORY=64\nDISK=[IMAGE=busybox]\nNIC=[NETWORK=net0]\n\
    CONTEXT=[NETWORK=YES,HOSTNAME=\"$NAME\"]\nOCI=[ENTRYPOINT=\"/bin/sh -c\",CMD=\"sleep 1000\"]\n";

/// A cloud.
#[derive(Debug)]
pub struct Cloud {
    /// Its hosts.
    pub nodes: Vec<Node>,
    /// oned.
    pub oned: Oned,
    _desk: Desk,
}

impl Cloud {
    /// A cloud with hosts `host01` and `host02`, networks `net0` and `net1`, image `busybox`, template `base`.
    /// `program` is this crate's own.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn start(program: &Path) -> Self {
        let mut place = Place::new(program);
        let remotes = std::env::var_os(REMOTES).map(PathBuf::from);
        let tree =
            remotes.unwrap_or_else(|| repository().join("driver-scripts/opennebula/remotes"));
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
        for from in [tree, ours] {
            let (from, to) =
                (format!("{}/.", from.display()), place.remotes().display().to_string());
            tool(&["cp", "-rL", &from, &to]);
        }
        let ocivisor = bin_dir().join("ocivisor").display().to_string();
        place.environment.push(("OCIVISOR_BIN".to_owned(), ocivisor));
        for store in ["100", "101"] {
            let dir = place.root().join("var/lib/one/datastores").join(store);
            std::fs::create_dir_all(dir).unwrap();
        }
        let nodes: Vec<Node> = ["host01", "host02"].map(|name| Node::start(&place, name)).into();
        let tar = place.root().join("busybox.tar");
        image::busybox(&tar);
        for node in &nodes {
            node.cli(&["image", "import", &format!("rootfs:{}", tar.display()), "busybox"]);
        }
        let driver = std::env::var(DRIVER).unwrap_or_else(|_| "ocivisor".to_owned());
        let oned = Oned::new(Drivers::new(place, &driver));
        let desk = Desk::open(oned.drivers.place.root(), oned.shared_model());
        let cloud = Self { nodes, oned, _desk: desk };
        cloud.register();
        cloud
    }

    fn register(&self) {
        let direct = TransferConf {
            shared: false,
            ln_target: "SYSTEM",
            clone_target: "SYSTEM",
            systems: Vec::new(),
        };
        self.oned.model().transfers = [("direct".to_owned(), direct)].into();
        for (command, given) in [
            ("onehost create host01 -i ocivisor -v ocivisor", ""),
            ("onehost create host02 -i ocivisor -v ocivisor", ""),
            ("onedatastore create", "NAME=images\nTYPE=IMAGE_DS\nDS_MAD=none\nTM_MAD=direct"),
            ("onedatastore create", "NAME=system\nTYPE=SYSTEM_DS\nTM_MAD=direct"),
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
            (
                "oneimage create -d images",
                "NAME=busybox\nSOURCE=/images/busybox\nSIZE=64\nFORMAT=raw",
            ),
            ("onetemplate create", TEMPLATE),
        ] {
            self.oned.command(command, given).expect(command);
        }
    }

    /// A host.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
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

    /// Calls a script on a host outside of any action: what a hostile document does to it. Status, output, errors.
    #[must_use]
    pub fn script(
        &self,
        host: &str,
        action: &str,
        args: &[&str],
        stdin: &[u8],
    ) -> (i32, String, String) {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let place = &self.oned.drivers.place;
        let script = place.remotes_of_hosts().join("vmm").join(&self.oned.drivers.vmm).join(action);
        let mut child = Command::new(place.root().join("bin/ssh"))
            .arg(host)
            .arg(format!("{} {}", script.display(), args.join(" ")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who refuses early need not read all.
        let _refused = child.stdin.take().unwrap().write_all(stdin);
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// What all hosts hold, and the front-end's datastores.
    #[must_use]
    pub fn holdings(&self) -> (Vec<Holdings>, Vec<String>, Vec<String>) {
        let root = self.oned.drivers.place.root();
        let mut files = Vec::new();
        crate::node::files_below(&root.join("var/lib/one/datastores"), root, &mut files);
        (self.nodes.iter().map(Node::holdings).collect(), files, loops(root))
    }
}

/// Loop devices whose file is below a directory.
fn loops(root: &Path) -> Vec<String> {
    let devices = std::fs::read_dir("/sys/block").expect("/sys");
    let files = devices.filter_map(|device| {
        std::fs::read_to_string(device.ok()?.path().join("loop/backing_file")).ok()
    });
    files.filter(|file| Path::new(file.trim()).starts_with(root)).collect()
}
