//! Whether what oned believes of VMs is so on its machines: which guests run, with which memory, NICs and addresses, where
//! their disks are and what is on them, which images the front-end has.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::cloud::Cloud;
use crate::model::{ImageState, Vm};
use crate::node::Node;
use crate::sshd::ONEADMIN;
use crate::state::{Lcm, State};
use crate::template::Vector;

/// What is not as oned believes, for a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Really {
    /// No guest runs, whatever oned believes.
    NothingRuns,
    /// All guests run that do not rest elsewhere.
    Runs,
}

#[derive(Debug, Deserialize)]
struct List {
    vms: Vec<Seen>,
}

#[derive(Debug, Deserialize)]
struct Seen {
    id: String,
    state: String,
    memory: u64,
    vcpus: u32,
}

/// A file in which each VM has its number, on its root disk.
const MARK: &str = "/root/.mark";

/// What is not as oned believes, in words. VMs that are seen to run for the first time are marked.
///
/// # Panics
/// A host cannot be looked at.
pub fn wrong(cloud: &Cloud, marked: &mut Vec<u32>, really: Option<Really>) -> Vec<String> {
    let mut wrong = Vec::new();
    let vms: Vec<Vm> = cloud.oned.model().vms.values().cloned().collect();
    for node in &cloud.nodes {
        let list = node.cli(&["list", "-o", "json"]);
        let list: List = serde_json::from_str(&list).expect("a list");
        let mut running: BTreeMap<String, Seen> = list
            .vms
            .into_iter()
            .filter(|seen| ["running", "paused"].contains(&seen.state.as_str()))
            .map(|seen| (seen.id.clone(), seen))
            .collect();
        let mut links = ends(node);
        for vm in vms.iter().filter(|vm| runs_on(vm, &node.name, really)) {
            let name = format!("one-{}", vm.id);
            let Some(seen) = running.remove(&name) else {
                wrong.push(format!("{name} does not run on {}", node.name));
                continue;
            };
            let number = |key: &str| vm.template.text(key).and_then(|n| n.parse::<u64>().ok());
            if number("MEMORY").map(|mb| mb << 20) != Some(seen.memory) {
                wrong.push(format!("{name} has {} bytes", seen.memory));
            }
            if number("VCPU").unwrap_or(1) != u64::from(seen.vcpus) {
                wrong.push(format!("{name} has {} processors", seen.vcpus));
            }
            for nic in vm.template.vectors("NIC") {
                let bridge = links.remove(&nic["TARGET"]);
                if bridge.as_ref() != Some(&nic["BRIDGE"]) {
                    wrong.push(format!("{} is in {bridge:?}", nic["TARGET"]));
                }
            }
            wrong.extend(inside(node, vm, marked));
        }
        wrong.extend(running.keys().map(|name| format!("{name} runs on {}", node.name)));
        wrong.extend(links.keys().map(|link| format!("{} has {link}", node.name)));
    }
    for vm in &vms {
        wrong.extend(disks(cloud, vm));
    }
    wrong.extend(images(cloud));
    wrong
}

fn runs_on(vm: &Vm, host: &str, really: Option<Really>) -> bool {
    let runs = match really {
        None => (vm.state, vm.lcm) == (State::Active, Lcm::Running),
        Some(Really::NothingRuns) => false,
        Some(Really::Runs) => matches!(vm.state, State::Active | State::Poweroff),
    };
    runs && vm.place().host == host
}

/// Hosts' ends of NICs, and their bridges.
fn ends(node: &Node) -> BTreeMap<String, String> {
    let text = node.run(&["ip", "-o", "link"]);
    let links = text.lines().filter_map(|line| {
        let (name, rest) = line.split_once(": ")?.1.split_once([':', '@'])?;
        let master = rest.split_once(" master ").and_then(|(_, rest)| rest.split(' ').next());
        name.starts_with("one-").then(|| (name.to_owned(), master.unwrap_or_default().to_owned()))
    });
    links.collect()
}

/// What the guest sees of itself.
fn inside(node: &Node, vm: &Vm, marked: &mut Vec<u32>) -> Vec<String> {
    let name = format!("one-{}", vm.id);
    let first = !marked.contains(&vm.id);
    if first {
        marked.push(vm.id);
    }
    let write = if first { format!("echo mark-{} > {MARK}; sync;", vm.id) } else { String::new() };
    let script = format!("{write} cat {MARK}; ip -o link; ip -o -4 address");
    let text = node.cli(&["exec", &name, "--", "sh", "-c", &script]);
    let mut wrong = Vec::new();
    if !text.starts_with(&format!("mark-{}\n", vm.id)) {
        wrong.push(format!("{name} has lost its mark"));
    }
    let nics: Vec<_> = vm.template.vectors("NIC").collect();
    let all = nics.iter().copied().chain(vm.template.vectors("NIC_ALIAS"));
    // Addresses are told by the context, to who has one.
    let mut contexts = vm.template.vectors("CONTEXT");
    let told = contexts.any(|context| context.get("NETWORK").is_some_and(|told| told == "YES"));
    for nic in all.filter(|_| told) {
        if !text.contains(&format!(" {}/", nic["IP"])) {
            wrong.push(format!("{name} has no address {}: {text}", nic["IP"]));
        }
    }
    for nic in &nics {
        if !text.contains(&nic["MAC"]) {
            wrong.push(format!("{name} has no NIC {}: {text}", nic["MAC"]));
        }
    }
    if text.matches("link/ether").count() != nics.len() {
        wrong.push(format!("{name} has other NICs: {text}"));
    }
    wrong
}

/// Directories of a VM, by machine: the front-end, then hosts.
fn directories(cloud: &Cloud, vm: u32) -> Vec<(String, PathBuf)> {
    let root = cloud.oned.drivers.place.root().join("var/lib/one/datastores");
    let tops = cloud.nodes.iter().map(|node| (node.name.clone(), node.dir().join("datastores")));
    let tops = [(crate::place::FRONTEND.to_owned(), root)].into_iter().chain(tops);
    let stores = [101, 103, 106];
    let all = tops.flat_map(|(name, top)| {
        stores.map(|store| (name.clone(), top.join(format!("{store}/{vm}"))))
    });
    all.filter(|(_, dir)| dir.exists()).collect()
}

/// Where the disks of a VM are, and that they are nowhere else.
fn disks(cloud: &Cloud, vm: &Vm) -> Vec<String> {
    let found = directories(cloud, vm.id);
    let Some(place) = vm.history.last() else {
        return found.iter().map(|(on, _)| format!("{on} has disks of VM {}", vm.id)).collect();
    };
    let shared = place.store == 103;
    let machine = match (vm.state, vm.lcm) {
        (State::Done, _) => None,
        (State::Stopped | State::Undeployed, _) => Some(crate::place::FRONTEND.to_owned()),
        (State::Poweroff | State::Suspended, _) | (_, Lcm::Running | Lcm::BootFailure) => {
            Some(place.host.clone())
        }
        // Under way.
        _ => return Vec::new(),
    };
    let machine = machine.map(|name| if shared { crate::place::FRONTEND.to_owned() } else { name });
    let mut wrong = Vec::new();
    for (on, dir) in &found {
        if machine.as_ref() != Some(on) || !dir.ends_with(format!("{}/{}", place.store, vm.id)) {
            wrong.push(format!("{on} has {} of VM {}", dir.display(), vm.id));
        }
    }
    let dir = found.iter().find(|(on, _)| Some(on) == machine.as_ref()).map(|(_, dir)| dir);
    if machine.is_some() {
        for disk in vm.template.vectors("DISK") {
            let name = format!("disk.{}", disk["DISK_ID"]);
            match dir.and_then(|dir| dir.join(&name).symlink_metadata().ok()) {
                None => wrong.push(format!("{machine:?} has no {name} of VM {}", vm.id)),
                Some(found) if found.is_file() && !is_as_large(disk, found.len()) => {
                    let (size, bytes) = (&disk["SIZE"], found.len());
                    wrong.push(format!("{name} of VM {} has {bytes} bytes, not {size} MB", vm.id));
                }
                Some(_) => {}
            }
        }
        let entries = dir.and_then(|dir| std::fs::read_dir(dir).ok()).into_iter().flatten();
        for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
            let number = name.strip_prefix("disk.").map(|rest| rest.split('.').next());
            let Some(Some(number)) = number else { continue };
            let mut disks = vm.template.vectors("DISK").chain(vm.template.vectors("CONTEXT"));
            if !disks.any(|disk| disk["DISK_ID"] == number) {
                wrong.push(format!("{machine:?} has {name}, which VM {} has not", vm.id));
            }
        }
    }
    wrong
}

/// Whether a disk's file has the size that oned believes. Root disks have 64 MB at least; others are formats of their own.
fn is_as_large(disk: &Vector, bytes: u64) -> bool {
    let size: u64 = disk.get("SIZE").and_then(|size| size.parse().ok()).unwrap_or(0);
    let key = |name: &str| disk.get(name).map_or("", String::as_str);
    let told = ["swap", "CDROM"].contains(&key("TYPE")) || key("FORMAT") == "qcow2";
    told || bytes.div_ceil(1 << 20) == size || (size < 64 && bytes == 64 << 20)
}

/// What is to be the same after something that was refused: guests' processes, VMs' directories, images' files.
///
/// # Panics
/// A host cannot be looked at.
pub fn picture(cloud: &Cloud) -> Vec<String> {
    let mut picture = Vec::new();
    for node in &cloud.nodes {
        let list: serde_json::Value =
            serde_json::from_str(&node.cli(&["list", "-o", "json"])).expect("a list");
        for vm in list["vms"].as_array().into_iter().flatten() {
            let facts = ["id", "state", "pid", "changed", "memory", "vcpus", "addresses", "op"];
            let facts = facts.map(|key| vm[key].to_string());
            picture.push(format!("{}: {}", node.name, facts.join(" ")));
        }
    }
    let model = cloud.oned.model();
    let mut files = Vec::new();
    for (on, dir) in model.vms.keys().flat_map(|vm| directories(cloud, *vm)) {
        let mut names = Vec::new();
        crate::node::files_below(&dir, &dir, &mut names);
        files.extend(names.into_iter().map(|name| (on.clone(), dir.join(name))));
    }
    let ready = |image: &&crate::model::Image| image.state.0 != ImageState::Error;
    let sources = model.images.values().filter(ready).map(|image| PathBuf::from(&image.source));
    let frontend = crate::place::FRONTEND.to_owned();
    files.extend(sources.map(|path| (frontend.clone(), path)));
    for (on, path) in files {
        if let Ok(found) = path.symlink_metadata() {
            let shown = cloud.oned.drivers.place.plain(&path.display().to_string());
            picture.push(format!("{on}: {shown} of {} bytes", found.len()));
        }
    }
    picture
}

/// Images that are ready are there, and of those that are gone nothing is.
fn images(cloud: &Cloud) -> Vec<String> {
    let root = cloud.oned.drivers.place.root();
    let mut files = Vec::new();
    crate::node::files_below(&root.join("var/lib/one/datastores"), root, &mut files);
    let mut wrong = Vec::new();
    for image in cloud.oned.model().images.values() {
        let ready =
            matches!(image.state.0, ImageState::Ready | ImageState::Used | ImageState::UsedPers);
        let there = match image.source.strip_prefix("ocivisor:") {
            Some(name) => {
                let number = name.split('@').next().unwrap_or_default();
                let end = format!("/image-{number}");
                let json = format!("{end}.json");
                files.iter().any(|file| {
                    file.ends_with(&end)
                        || file.ends_with(&json)
                        || file.contains(&format!("{end}/"))
                })
            }
            None => !image.source.is_empty() && std::path::Path::new(&image.source).exists(),
        };
        if ready && !there {
            wrong.push(format!("image {} is nowhere: {}", image.id, image.source));
        }
    }
    let model = cloud.oned.model();
    let left = |file: &&String| image_of(file).is_some_and(|id| !model.images.contains_key(&id));
    wrong.extend(
        files.iter().filter(left).map(|file| format!("{file} is of an image that is gone")),
    );
    wrong
}

/// The image that a file of a datastore of ours belongs to, if its name says so.
fn image_of(file: &str) -> Option<u32> {
    let mut parts = file.rsplit('/');
    let (name, dir) = (parts.next()?, parts.next()?);
    let own = ["images", "disks"].contains(&dir).then_some(name.trim_start_matches('.'));
    let stored = || file.split('/').find_map(|part| part.strip_prefix("image-"));
    own.or_else(stored)?.split('.').next()?.parse().ok()
}

/// What is left of VMs that are done; and files of the front-end that are another's than the platform's user's.
pub fn left(cloud: &Cloud) -> Vec<String> {
    let mut left = Vec::new();
    for vm in cloud.oned.model().vms.values().filter(|vm| vm.state != State::Done) {
        left.push(format!("VM {} is {}", vm.id, crate::state::shown(vm.state, vm.lcm)));
    }
    let root = cloud.oned.drivers.place.root();
    let mut files = Vec::new();
    crate::node::files_below(&root.join("var/lib/one/datastores"), root, &mut files);
    for file in files {
        let owner = root.join(&file).symlink_metadata().map_or(0, |found| found.uid());
        if owner != ONEADMIN {
            left.push(format!("{file} is user {owner}'s: not made by a script of the platform's"));
        }
    }
    for node in &cloud.nodes {
        let now = node.holdings();
        left.extend(now.cgroups.iter().map(|group| format!("{}: {}", node.name, group.display())));
        left.extend(now.processes.iter().map(|pid| format!("{}: process {pid}", node.name)));
        let files = now.files.iter().filter(|file| file.matches('/').count() > 1);
        left.extend(
            files
                .filter(|file| !file.contains("/store"))
                .map(|file| format!("{}: {file}", node.name)),
        );
    }
    left
}
