//! What a host holds, counted from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::wait::wait_for_option;
use crate::{Host, PATIENCE};

/// Numbers of things that must be equal before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Mounts below the host's directory, namespaces pinned by bind mounts included.
    pub mounts: Vec<String>,
    /// Loop devices whose file is below the host's directory.
    pub loops: Vec<String>,
    /// Links in the host's network namespace.
    pub links: Vec<String>,
    /// Control groups below the host's base, in all hierarchies.
    pub cgroups: Vec<String>,
    /// Processes (no zombies) whose command line or control group names the host.
    pub processes: Vec<String>,
    /// Files below the run directory and the VMs' state, without the socket.
    pub files: Vec<String>,
}

impl Counts {
    /// Counts now.
    #[must_use]
    pub fn of(host: &Host) -> Self {
        let links = host.in_netns(&["ip", "-o", "link"]).ok();
        let name = |line: &str| line.split(": ").nth(1).unwrap_or(line).to_owned();
        let mut links: Vec<String> = links.lines().map(name).collect();
        links.sort();
        Self {
            mounts: mounts_below(host.dir()),
            loops: loops_below(host.dir()),
            links,
            cgroups: cgroups_of(host.name())
                .iter()
                .map(|group| group.display().to_string())
                // Those of the daemon's helpers and of all displays stay with the daemon.
                .filter(|group| !group.rsplit('/').next().is_some_and(|leaf| leaf.starts_with('+')))
                .collect(),
            processes: processes_of(host).into_iter().map(|(_, line)| line).collect(),
            files: files_of(host),
        }
    }
}

/// Mount points below a directory, the last mounted first.
fn mounts_below(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    let below = points.filter(|point| Path::new(point).starts_with(dir));
    let mut below: Vec<String> = below.map(str::to_owned).collect();
    below.reverse();
    below
}

/// What loop devices have as their files, of those below a directory, and of those that are on such devices.
fn loops_below(dir: &Path) -> Vec<String> {
    let mut found: Vec<String> =
        loop_devices(dir).into_iter().map(|(_, backing)| backing).collect();
    found.sort();
    found
}

/// Devices and their files; a device comes before the one that it is on.
fn loop_devices(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/sys/block").unwrap().filter_map(Result::ok) {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        if let Ok(backing) = backing {
            all.push((Path::new("/dev").join(entry.file_name()), backing.trim().to_owned()));
        }
    }
    let (mut found, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(_, backing)| Path::new(backing).starts_with(dir));
    let on = |(_, backing): &(PathBuf, String)| {
        found.iter().any(|(device, _)| device == Path::new(backing))
    };
    let above: Vec<_> = others.into_iter().filter(on).collect();
    found.splice(0..0, above);
    found
}

/// Groups below `<hierarchy>/<name>`, which itself may stay; deepest last.
fn cgroups_of(name: &str) -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(fs::read_dir("/sys/fs/cgroup").unwrap().filter_map(|e| Some(e.ok()?.path())));
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> = roots.iter().map(|root| root.join(name)).collect();
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                found.push(entry.path());
                todo.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// Processes that belong to the host, the daemon and whoever asks excepted.
fn processes_of(host: &Host) -> Vec<(u32, String)> {
    let daemon = host.daemon.as_ref().map(std::process::Child::id);
    let needle = format!("/{}", host.name());
    let dir = host.run_dir().display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let groups = String::from_utf8_lossy(&read("cgroup")).into_owned();
        let zombie = line.is_empty();
        let ours = groups.contains(&needle) || line.contains(&dir);
        if ours && !zombie && Some(pid) != daemon && pid != std::process::id() {
            found.push((pid, line.trim().to_owned()));
        }
    }
    found.sort_by(|a, b| a.1.cmp(&b.1));
    found
}

fn files_of(host: &Host) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![host.run_dir(), host.state_dir().join("vms")];
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let path = entry.path();
            if path == host.socket() {
                continue;
            }
            found.push(path.strip_prefix(host.dir()).unwrap().display().to_string());
            // A guest's mounted root is counted as a mount, not file by file.
            let mounted = ["root", "disk", "disks"].iter().any(|name| path.ends_with(name));
            if entry.file_type().is_ok_and(|t| t.is_dir()) && !mounted {
                todo.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Removes whatever a test left that failed, or did not end its guests, by force.
pub(crate) fn clear(host: &Host) {
    // Who is killed may have forked, and is there for a moment longer.
    let _ = wait_for_option(PATIENCE, || {
        let left = processes_of(host);
        for (pid, _) in &left {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
        }
        left.is_empty().then_some(())
    });
    for mount in mounts_below(host.dir()) {
        let _ = Command::new("umount").args(["-l", &mount]).output();
    }
    // Those that are mounted go with their mounts; block nodes do not.
    for (device, _) in loop_devices(host.dir()) {
        let _ = Command::new("losetup").arg("--detach").arg(device).output();
    }
    let mut groups = cgroups_of(host.name());
    let bases = fs::read_dir("/sys/fs/cgroup").unwrap().filter_map(|e| Some(e.ok()?.path()));
    groups.splice(0..0, bases.map(|root| root.join(host.name())));
    groups.insert(0, Path::new("/sys/fs/cgroup").join(host.name()));
    // The dead leave their groups a moment after they are gone.
    let _ = wait_for_option(PATIENCE, || {
        for group in groups.iter().rev() {
            let _ = fs::remove_dir(group);
        }
        (!groups.iter().any(|group| group.exists())).then_some(())
    });
}
