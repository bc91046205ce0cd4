//! Where processors and memory are: nodes of memory, cores and huge pages, for VMs that are pinned.
//!
//! Of `/sys/devices/system`: `node/node<n>/…` and `cpu/cpu<n>/topology/…`. A kernel without nodes has none of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ocivisor_opennebula::monitor::Template;

use crate::read_text;

/// Where it is.
pub(super) const ROOT: &str = "/sys/devices/system";
/// Most bytes of a file there: a page.
const MOST: u64 = 4096;
/// Most processors of a node that are looked at.
const MOST_CPUS: usize = 8192;

/// Adds cores, huge pages and memory of all nodes.
pub(super) fn add(text: &mut Template, root: &Path) {
    for node in nodes(root) {
        for (id, cpus) in cores(root, node) {
            text.vector("CORE", &[("NODE_ID", &node), ("ID", &id), ("CPUS", &cpus)]);
        }
        for page in pages(root, node) {
            text.vector(
                "HUGEPAGE",
                &[
                    ("NODE_ID", &node),
                    ("SIZE", &page.size),
                    ("PAGES", &page.all),
                    ("FREE", &page.free),
                ],
            );
        }
        if let Some(memory) = memory(root, node) {
            text.vector(
                "MEMORY_NODE",
                &[
                    ("NODE_ID", &node),
                    ("TOTAL", &memory.total),
                    ("FREE", &memory.free),
                    ("USED", &memory.total.saturating_sub(memory.free)),
                    ("DISTANCE", &nearest(root, node)),
                ],
            );
        }
    }
}

/// Adds what of that changes.
pub(super) fn add_usage(text: &mut Template, root: &Path) {
    for node in nodes(root) {
        for page in pages(root, node) {
            let pairs: [(&str, &dyn std::fmt::Display); 3] =
                [("NODE_ID", &node), ("SIZE", &page.size), ("FREE", &page.free)];
            text.vector("HUGEPAGE", &pairs);
        }
        if let Some(memory) = memory(root, node) {
            let used = memory.total.saturating_sub(memory.free);
            let pairs: [(&str, &dyn std::fmt::Display); 3] =
                [("NODE_ID", &node), ("FREE", &memory.free), ("USED", &used)];
            text.vector("MEMORY_NODE", &pairs);
        }
    }
}

/// In KiB.
struct Memory {
    total: u64,
    free: u64,
}

/// Huge pages of one size.
struct Pages {
    /// In KiB.
    size: u64,
    all: u64,
    free: u64,
}

fn of_node(root: &Path, node: u32, file: &str) -> Option<String> {
    read_text(&root.join(format!("node/node{node}")).join(file), MOST).ok()
}

fn number(text: Option<String>) -> Option<u64> {
    text?.trim().parse().ok()
}

/// Numbers of what is named `<prefix><number><suffix>` in a directory.
fn numbered(dir: &Path, prefix: &str, suffix: &str) -> BTreeSet<u32> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let number =
        |name: String| name.strip_prefix(prefix)?.strip_suffix(suffix)?.parse::<u32>().ok();
    names.filter_map(number).collect()
}

fn nodes(root: &Path) -> BTreeSet<u32> {
    numbered(&root.join("node"), "node", "")
}

/// Cores of a node: number, and its threads, as `0,4`.
fn cores(root: &Path, node: u32) -> Vec<(u64, String)> {
    let cpus = list(&of_node(root, node, "cpulist").unwrap_or_default());
    let mut cores: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
    for cpu in cpus {
        let of = |file: &str| {
            read_text(&root.join(format!("cpu/cpu{cpu}/topology")).join(file), MOST).ok()
        };
        // One that is off tells nothing.
        let Some(siblings) = of("thread_siblings_list") else { continue };
        let Some(core) = number(of("core_id")) else { continue };
        cores.insert(list(&siblings), core);
    }
    let mut cores: Vec<(Vec<u32>, u64)> = cores.into_iter().collect();
    cores.sort_by_key(|(cpus, core)| (*core, cpus.first().copied()));
    let text = |cpus: Vec<u32>| cpus.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    cores.into_iter().map(|(cpus, core)| (core, text(cpus))).collect()
}

/// `0-2,7` as numbers.
fn list(text: &str) -> Vec<u32> {
    let mut all = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            let room = MOST_CPUS - all.len().min(MOST_CPUS);
            all.extend((first..=last).take(room));
        }
    }
    all
}

fn pages(root: &Path, node: u32) -> Vec<Pages> {
    let dir = format!("node/node{node}/hugepages");
    let sizes = numbered(&root.join(&dir), "hugepages-", "kB").into_iter();
    let of = |size: u32| {
        let file = |name| of_node(root, node, &format!("hugepages/hugepages-{size}kB/{name}"));
        let (all, free) = (number(file("nr_hugepages"))?, number(file("free_hugepages"))?);
        Some(Pages { size: u64::from(size), all, free })
    };
    sizes.filter_map(of).collect()
}

/// Lines are `Node 0 MemTotal:  16338284 kB`.
fn memory(root: &Path, node: u32) -> Option<Memory> {
    let text = of_node(root, node, "meminfo")?;
    let of = |name: &str| -> Option<u64> {
        let words = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
        let mut found = words.filter(|words| words.get(2) == Some(&name));
        found.next()?.get(3)?.parse().ok()
    };
    Some(Memory { total: of("MemTotal:")?, free: of("MemFree:")? })
}

/// All nodes, the nearest first, as `0 1`.
fn nearest(root: &Path, node: u32) -> String {
    let text = of_node(root, node, "distance").unwrap_or_default();
    let distances = text.split_ascii_whitespace().map_while(|word| word.parse::<u32>().ok());
    let mut nodes: Vec<(u32, u32)> = distances.zip(nodes(root)).collect();
    nodes.sort_unstable();
    nodes.iter().map(|(_, node)| node.to_string()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests fill directories")]

    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn two_nodes_with_threads_and_huge_pages_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for (node, cpus, distance) in [(0, "0-1,4\n", "10 21\n"), (1, "2,6\n", "21 10\n")] {
            let file = |name: &str| format!("node/node{node}/{name}");
            write(root, &file("cpulist"), cpus);
            write(root, &file("distance"), distance);
            let memory = format!("Node {node} MemTotal:  1000 kB\nNode {node} MemFree: 400 kB\n");
            write(root, &file("meminfo"), &memory);
        }
        write(root, "node/node0/hugepages/hugepages-2048kB/nr_hugepages", "8\n");
        write(root, "node/node0/hugepages/hugepages-2048kB/free_hugepages", "5\n");
        for (cpu, core, siblings) in
            [(0, "0", "0,4"), (4, "0", "0,4"), (1, "1", "1"), (2, "0", "2,6"), (6, "0", "2,6")]
        {
            write(root, &format!("cpu/cpu{cpu}/topology/core_id"), core);
            write(root, &format!("cpu/cpu{cpu}/topology/thread_siblings_list"), siblings);
        }
        let mut text = Template::default();
        add(&mut text, root);
        assert_eq!(
            text.text(),
            "CORE=[NODE_ID=\"0\",ID=\"0\",CPUS=\"0,4\"]\n\
             CORE=[NODE_ID=\"0\",ID=\"1\",CPUS=\"1\"]\n\
             HUGEPAGE=[NODE_ID=\"0\",SIZE=\"2048\",PAGES=\"8\",FREE=\"5\"]\n\
             MEMORY_NODE=[NODE_ID=\"0\",TOTAL=\"1000\",FREE=\"400\",USED=\"600\",DISTANCE=\"0 1\"]\n\
             CORE=[NODE_ID=\"1\",ID=\"0\",CPUS=\"2,6\"]\n\
             MEMORY_NODE=[NODE_ID=\"1\",TOTAL=\"1000\",FREE=\"400\",USED=\"600\",DISTANCE=\"1 0\"]\n"
        );
        let mut usage = Template::default();
        add_usage(&mut usage, root);
        assert_eq!(
            usage.text(),
            "HUGEPAGE=[NODE_ID=\"0\",SIZE=\"2048\",FREE=\"5\"]\n\
             MEMORY_NODE=[NODE_ID=\"0\",FREE=\"400\",USED=\"600\"]\n\
             MEMORY_NODE=[NODE_ID=\"1\",FREE=\"400\",USED=\"600\"]\n"
        );
    }

    #[test]
    fn lists_of_processors_are_bounded() {
        assert_eq!(list("0-2,7\n"), [0, 1, 2, 7]);
        assert_eq!(list("x,3-1,\n"), [0_u32; 0]);
        assert_eq!(list("0-4294967295").len(), MOST_CPUS);
    }
}
