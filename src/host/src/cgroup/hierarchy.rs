//! Which cgroup hierarchies are mounted: v2, v1, or both (hybrid). See cgroups(7).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};

use crate::fs::io_error;

/// How control groups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only cgroup2.
    V2,
    /// Controllers in v1, cgroup2 mounted beside them.
    Hybrid,
    /// Only v1.
    V1,
}

impl Kind {
    /// As shown to people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::Hybrid => "hybrid",
            Self::V1 => "v1",
        }
    }
}

/// The mounted hierarchies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    v2: Option<PathBuf>,
    /// Mount points by controller; co-mounted controllers share one.
    v1: BTreeMap<String, PathBuf>,
    /// `name=systemd`, which limits nothing: only some runtimes (runc) make groups there.
    named: Option<PathBuf>,
    /// Controllers of v2.
    v2_controllers: Vec<String>,
}

impl Hierarchies {
    /// Reads /proc/self/mountinfo.
    ///
    /// # Errors
    /// `Unsupported`: the controllers cpu, memory and pids are not all there.
    pub fn of_this_host() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        let mounts = fs::read_to_string(path).map_err(|e| io_error("read", path, &e))?;
        let found = Self::parse(&mounts, |root| {
            fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
        });
        let missing: Vec<&str> =
            ["cpu", "memory", "pids"].into_iter().filter(|c| !found.has(c)).collect();
        if missing.is_empty() {
            return Ok(found);
        }
        let what = format!("control group controllers {} are not available", missing.join(", "));
        let hint =
            "mount cgroup2 at /sys/fs/cgroup (or the v1 controllers) and see ocivisor doctor";
        Err(Error::new(ErrorKind::Unsupported, what).hint(hint))
    }

    pub(super) fn parse(mountinfo: &str, controllers: impl Fn(&Path) -> String) -> Self {
        let mut found =
            Self { v2: None, v1: BTreeMap::new(), named: None, v2_controllers: Vec::new() };
        for line in mountinfo.lines() {
            // proc_pid_mountinfo(5): … (5) mount point … - (9) type (10) source (11) super options
            let Some((before, after)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = before.split(' ').nth(4) else {
                continue;
            };
            let mut after = after.split(' ');
            let (kind, options) = (after.next(), after.nth(1).unwrap_or_default());
            match kind {
                // The first mount wins: later ones are bind mounts of guests and tools.
                Some("cgroup2") if found.v2.is_none() => found.v2 = Some(point.into()),
                Some("cgroup") => {
                    for option in options.split(',') {
                        if option == "name=systemd" {
                            found.named.get_or_insert_with(|| point.into());
                        } else if V1_CONTROLLERS.contains(&option) {
                            found.v1.entry(option.to_owned()).or_insert_with(|| point.into());
                        }
                    }
                }
                _ => {}
            }
        }
        if let Some(root) = &found.v2 {
            found.v2_controllers =
                controllers(root).split_ascii_whitespace().map(str::to_owned).collect();
        }
        found
    }

    /// Which layout this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match (&self.v2, self.v1.is_empty()) {
            (Some(_), true) => Kind::V2,
            (Some(_), false) => Kind::Hybrid,
            (None, _) => Kind::V1,
        }
    }

    /// Whether a controller is available, in either version.
    #[must_use]
    pub fn has(&self, controller: &str) -> bool {
        self.v1.contains_key(controller) || self.v2_controllers.iter().any(|c| c == controller)
    }

    /// Mount point of a v1 controller.
    pub(super) fn v1(&self, controller: &str) -> Option<&Path> {
        self.v1.get(controller).map(PathBuf::as_path)
    }

    /// Mount point of v2, if `controller` is to be limited there.
    pub(super) fn v2(&self, controller: &str) -> Option<&Path> {
        let there = self.v2_controllers.iter().any(|c| c == controller);
        self.v2.as_deref().filter(|_| there && !self.v1.contains_key(controller))
    }

    /// What to say when a wish needs a controller that is in neither version.
    pub(super) fn missing(&self, controller: &str, wish: &str) -> Error {
        let name = match (self.kind(), controller) {
            (Kind::V1 | Kind::Hybrid, "io") => "blkio",
            _ => controller,
        };
        let what = format!("{wish} needs the control group controller {name}, which is not there");
        let hint = match self.kind() {
            Kind::V2 => format!(
                "see /sys/fs/cgroup/cgroup.controllers; Debian's kernels have it, and \
                 cgroup_disable={name} on the kernel's command line takes it away"
            ),
            Kind::Hybrid | Kind::V1 => format!(
                "mount it (mount -t cgroup -o {name} {name} /sys/fs/cgroup/{name}) and start \
                 ocivisord anew, or boot with systemd.unified_cgroup_hierarchy=1 (cgroup v2)"
            ),
        };
        Error::new(ErrorKind::Unsupported, what).hint(hint)
    }

    /// The hierarchy in which every process of a VM is found.
    #[must_use]
    pub fn tracking(&self) -> &Path {
        let v1 = ["freezer", "pids", "memory"].into_iter().find_map(|c| self.v1(c));
        // of_this_host() made sure of pids in one version or the other.
        self.v2.as_deref().or(v1).unwrap_or(Path::new("/sys/fs/cgroup"))
    }

    /// Hierarchies in which a guest has a group of its own: all of v1, else v2.
    pub fn limiting(&self) -> impl Iterator<Item = &Path> {
        let v2 = self.v2.as_deref().filter(|_| self.v1.is_empty());
        self.distinct_v1().into_iter().chain(v2)
    }

    /// All hierarchies that may hold groups of ours.
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        let v2 = self.v2.as_deref().into_iter();
        v2.chain(self.distinct_v1()).chain(self.named.as_deref())
    }

    fn distinct_v1(&self) -> Vec<&Path> {
        let mut points: Vec<&Path> = self.v1.values().map(PathBuf::as_path).collect();
        points.sort_unstable();
        points.dedup();
        points
    }

    /// v2: hands the controllers on to the children of `parent` (cgroup.subtree_control). The kernel
    /// refuses if processes are in `parent` itself: cgroups(7), "no internal processes". A hybrid host
    /// may have some of them here as well; there it need not work, because the group is for finding
    /// processes first of all: a limit that then cannot be set is told when it is wished for.
    pub(super) fn let_children_be_limited(&self, parent: &Path) -> Result<()> {
        let Some(root) = &self.v2 else { return Ok(()) };
        if !parent.starts_with(root) {
            return Ok(());
        }
        let file = parent.join("cgroup.subtree_control");
        let have = fs::read_to_string(&file).map_err(|e| io_error("read", &file, &e))?;
        let have: Vec<&str> = have.split_ascii_whitespace().collect();
        let wanted = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"].into_iter();
        let missing = wanted.filter(|c| self.v2(c).is_some() && !have.contains(c));
        let line: Vec<String> = missing.map(|controller| format!("+{controller}")).collect();
        if line.is_empty() {
            return Ok(());
        }
        // All in one write, which the kernel does wholly or not at all: cpu alone would be handed
        // on by a group with processes of its own, and make it a threaded one, of no use any more.
        let wrote = OpenOptions::new()
            .write(true)
            .open(&file)
            .and_then(|mut f| f.write_all(line.join(" ").as_bytes()));
        wrote.or_else(|e| match e.raw_os_error() {
            // No such controller here: it was not handed on to this group either.
            Some(libc::EBUSY | libc::EOPNOTSUPP | libc::ENOENT) if !self.v1.is_empty() => Ok(()),
            Some(libc::EBUSY | libc::EOPNOTSUPP) => {
                let group = parent.display();
                let what = format!("control group {group} has processes of its own");
                let hint = "groups below such a one cannot be limited: set cgroup_base to a group \
                            that holds no process, and not to one below ocivisord's own";
                Err(Error::new(ErrorKind::Unsupported, what).hint(hint))
            }
            _ => Err(io_error(&format!("write {} to", line.join(" ")), &file, &e)),
        })
    }

    /// v1: a cpuset takes no task before it has processors and memory nodes.
    pub(super) fn inherit_cpuset(&self, group: &Path) -> Result<()> {
        let Some(root) = self.v1("cpuset") else {
            return Ok(());
        };
        let Some(parent) = group.parent().filter(|_| group.starts_with(root)) else {
            return Ok(());
        };
        for name in ["cpuset.cpus", "cpuset.mems"] {
            let (file, above) = (group.join(name), parent.join(name));
            let own = fs::read_to_string(&file).map_err(|e| io_error("read", &file, &e))?;
            if own.trim().is_empty() {
                let above = fs::read_to_string(&above).map_err(|e| io_error("read", &above, &e))?;
                super::file::write(&file, above.trim())?;
            }
        }
        Ok(())
    }
}

/// Controllers of v1 that a guest is put under.
const V1_CONTROLLERS: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
33 30 0:31 / /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
34 30 0:32 / /sys/fs/cgroup/memory rw shared:16 - cgroup cgroup rw,memory
35 30 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
90 30 0:33 /x /mnt/pids rw - cgroup cgroup rw,pids
";

    #[test]
    fn hybrid_hosts_limit_in_v1_and_track_in_v2() {
        let found = Hierarchies::parse(HYBRID, |_| "hugetlb".into());
        assert_eq!(found.kind(), Kind::Hybrid);
        assert_eq!(found.tracking(), Path::new("/sys/fs/cgroup/unified"));
        let limiting: Vec<&Path> = found.limiting().collect();
        let want = ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"];
        assert_eq!(limiting, want.map(Path::new));
        assert_eq!(found.all().count(), 5, "with name=systemd");
        assert_eq!(found.v1("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.v2("memory"), None);
    }

    #[test]
    fn v2_hosts_limit_and_track_in_v2() {
        let line = "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Hierarchies::parse(line, |_| "cpuset cpu io memory pids".into());
        assert_eq!(found.kind(), Kind::V2);
        assert_eq!(found.tracking(), Path::new("/sys/fs/cgroup"));
        assert_eq!(found.limiting().collect::<Vec<_>>(), [Path::new("/sys/fs/cgroup")]);
        assert_eq!(found.v2("memory"), Some(Path::new("/sys/fs/cgroup")));
        assert!(found.has("cpu") && !found.has("hugetlb"));
    }
}
