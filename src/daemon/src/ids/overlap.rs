//! Who else on this host uses ids that are set aside for our guests.
//!
//! Nobody hands out ranges of ids for the whole host: /etc/subuid knows those of users, other
//! container managers and other daemons of ours keep their own books, or none, as systemd-nspawn.
//! Two guests with the same ids are kept apart by everything but their ids: a limit per user counts
//! them as one, and a file or process of the one that comes into sight of the other is its own. So
//! it is looked at start, and said; running guests are not harmed for it.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

use ocivisor_host::fs::read_bounded;

/// Most overlaps that are named.
const MOST: usize = 8;
/// Most bytes of a file that is looked at.
const MAX_BYTES: u64 = 1 << 20;

/// All overlaps with `ids` that can be seen now, one line each. Processes in control groups below
/// `base` are ours.
pub fn with(ids: &Range<u64>, base: &str) -> Vec<String> {
    let mut found = Vec::new();
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = text(Path::new(file));
        found.extend(text.lines().filter_map(|line| set_aside(line, ids)).map(|(owner, range)| {
            format!("{file} sets {} to {} aside for {owner}", range.start, range.end - 1)
        }));
    }
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let map = text(&entry.path().join("uid_map"));
        let overlap = map.lines().filter_map(mapped).find(|range| overlaps(range, ids));
        // A process that has ended meanwhile has no files.
        let Some(range) = overlap else { continue };
        if is_below(&text(&entry.path().join("cgroup")), base)
            || !seen.insert((range.start, range.end))
        {
            continue;
        }
        let (first, last) = (range.start, range.end - 1);
        found.push(format!("process {pid} is in a user namespace with the ids {first} to {last}"));
    }
    found.truncate(MOST);
    found
}

/// Empty if it cannot be read.
fn text(path: &Path) -> String {
    let bytes = read_bounded(path, MAX_BYTES).ok().flatten();
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

fn overlaps(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Owner and ids of a line of subuid(5) that overlaps.
fn set_aside<'a>(line: &'a str, ids: &Range<u64>) -> Option<(&'a str, Range<u64>)> {
    let mut fields = line.split(':');
    let owner = fields.next().filter(|owner| !owner.starts_with('#'))?;
    let (start, count): (u32, u32) =
        (fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?);
    let range = range(start, count);
    overlaps(&range, ids).then_some((owner, range))
}

/// The ids outside of a line of a uid_map, user_namespaces(7). Not those of namespaces that map ids to
/// themselves, as the host's own does.
fn mapped(line: &str) -> Option<Range<u64>> {
    let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
    let (inside, outside, count) =
        (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
    (inside != outside).then(|| range(outside, count))
}

fn range(start: u32, count: u32) -> Range<u64> {
    u64::from(start)..u64::from(start) + u64::from(count)
}

/// Whether a /proc/PID/cgroup names a group below that one, in any hierarchy; cgroups(7).
fn is_below(proc_cgroup: &str, base: &str) -> bool {
    let groups = proc_cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut below = groups.filter_map(|group| group.strip_prefix('/')?.strip_prefix(base));
    below.any(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn lines_that_overlap_are_found() {
        let ids = 1000..2000;
        for (line, want) in [
            ("lxd:900:101", Some(("lxd", 900..1001))),
            ("1000:1999:65536", Some(("1000", 1999..67_535))),
            ("a:900:100", None),
            ("a:2000:1", None),
            ("a:1000:0", None),
            ("# a:1000:10", None),
            ("a:1000", None),
            ("a:-5:7000", None),
            ("", None),
        ] {
            assert_eq!(set_aside(line, &ids), want, "{line:?}");
        }
        assert_eq!(mapped("         0 1000000 65536"), Some(1_000_000..1_065_536));
        assert_eq!(mapped("0 0 4294967295"), None);
        assert_eq!(mapped("0 1"), None);
    }

    #[test]
    fn own_processes_are_known_by_their_control_group() {
        assert!(is_below("4:cpu:/x\n0::/ocivisor/one-7/guest/a:b\n", "ocivisor"));
        assert!(!is_below("0::/ocivisor\n", "ocivisor"));
        assert!(!is_below("0::/ocivisor2/one-7\n0::/x/ocivisor/y", "ocivisor"));
    }

    #[test]
    fn a_stranger_with_our_ids_is_named() {
        #[expect(clippy::disallowed_methods, reason = "a stranger for the test")]
        let mut stranger = Command::new("unshare")
            .args(["--user", "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        stranger.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let first = 4_000_000_000 + u64::from(std::process::id());
        let map = format!("/proc/{}/uid_map", stranger.id());
        let map = fs::OpenOptions::new().write(true).open(map);
        map.unwrap().write_all(format!("0 {first} 10").as_bytes()).unwrap();
        let (inside, beside) =
            (with(&(first + 9..first + 20), "b"), with(&(first + 10..first + 20), "b"));
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        let (pid, last) = (stranger.id(), first + 9);
        let want = format!("process {pid} is in a user namespace with the ids {first} to {last}");
        assert_eq!(inside, [want]);
        assert_eq!(beside, Vec::<String>::new());
    }
}
