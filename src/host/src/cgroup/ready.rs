//! Has the kernel get ready for moves of processes, ahead of need.
//!
//! Whoever writes to `cgroup.procs` takes a lock that every fork and exit reads. Its readers cost
//! nothing as long as nobody writes: the first writer waits for an RCU grace period, some 10 ms,
//! until all readers know of it, and writers that follow soon do not (kernel: `percpu_down_write`,
//! `rcu_sync`). A guest moves into its groups at least twice while it is made, and that wait was a
//! third of a deploy. Moving this process to where it is already changes nothing, and waits in a
//! thread of its own while disk and network are made.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

/// Returns at once. `own` is this process's group. Failing costs time later, nothing else.
pub(super) fn make_ready_for_moves(own: &Path) {
    let procs = own.join("cgroup.procs");
    let write = move || {
        // Refused, for instance where control groups are mounted read-only: the guest's own move
        // will tell.
        #[expect(clippy::disallowed_methods, reason = "a file of the kernel, of one write")]
        let _ = fs::write(procs, "0");
    };
    // No thread to be had: as if there had been no attempt.
    let _ = thread::Builder::new().name("cgroup-ready".into()).spawn(write);
}

/// This process's group in the hierarchy that is mounted there.
pub(super) fn own_group(hierarchy: &Path) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let (_, options) = mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        (Path::new(mount.split(' ').nth(4)?) == hierarchy).then_some((mount, filesystem))
    })?;
    let unified = options.starts_with("cgroup2 ");
    let controllers = options.rsplit(' ').next()?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let below = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, parts.next()?);
        let here = match unified {
            true => names.is_empty(),
            false => !names.is_empty() && controllers.ends_with(names),
        };
        here.then(|| path.trim_start_matches('/').to_owned())
    })?;
    Some(hierarchy.join(below))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchies;

    #[test]
    fn own_group_lists_this_process() {
        let hierarchies = Hierarchies::of_this_host().unwrap();
        let group = own_group(hierarchies.tracking()).unwrap();
        let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert!(procs.lines().any(|pid| pid == std::process::id().to_string()), "{group:?}");
    }

    #[test]
    fn getting_ready_moves_nobody() {
        let hierarchies = Hierarchies::of_this_host().unwrap();
        let before = fs::read_to_string("/proc/self/cgroup").unwrap();
        make_ready_for_moves(&own_group(hierarchies.tracking()).unwrap());
        let named = |name: &str| {
            let tasks = fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
            let comm = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
            tasks.filter_map(comm).any(|comm| comm.trim() == name)
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while named("cgroup-ready") && std::time::Instant::now() < deadline {
            thread::yield_now();
        }
        assert_eq!(fs::read_to_string("/proc/self/cgroup").unwrap(), before);
    }
}
