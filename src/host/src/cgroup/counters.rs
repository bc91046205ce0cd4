//! What a guest's groups count, read from files that stay open.
//!
//! Opening a control file costs three times as much as reading it, and hosts have hundreds of guests
//! that are asked every few seconds. So the files of a guest are opened once; the kernel answers ENODEV
//! when their group is gone, and whoever keeps them opens anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::VmId;
use ocivisor_core::units::Bytes;

use super::HostCgroups;
use crate::fs::io_error;

/// What was counted since the guest booted, and what it has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupStats {
    /// Time on processors.
    pub cpu_usage: Duration,
    /// Periods in which it had a quota and something to do, those in which the quota was used up, and
    /// the time that its processors stood still for it.
    pub cpu_periods: u64,
    /// See [`Self::cpu_periods`].
    pub cpu_throttled_periods: u64,
    /// See [`Self::cpu_periods`].
    pub cpu_throttled: Duration,
    /// Memory that is charged to it, page cache included.
    pub memory: Bytes,
    /// The most there was; `None` if the kernel does not tell.
    pub memory_peak: Option<Bytes>,
    /// Swap; `None` if the kernel does not count it.
    pub swap: Option<Bytes>,
    /// Processes that were killed for want of memory.
    pub oom_kills: u64,
    /// Processes and threads.
    pub pids: u64,
    /// What it waited for; `None` if the kernel does not tell.
    pub pressure: Option<Pressure>,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pressure {
    /// Waiting for a processor.
    pub cpu: Stall,
    /// Waiting for memory.
    pub memory: Stall,
    /// Waiting for disks.
    pub io: Stall,
}

/// Waiting for one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stall {
    /// Somebody in the guest waited.
    pub some: StallTime,
    /// Everybody did.
    pub full: StallTime,
}

/// How much of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StallTime {
    /// Of the last 10 seconds, in hundredths of a percent.
    pub avg10: u32,
    /// Of the last minute, in hundredths of a percent.
    pub avg60: u32,
    /// Of the last 5 minutes, in hundredths of a percent.
    pub avg300: u32,
    /// In all.
    pub total: Duration,
}

/// What a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    /// v2: time, and what the quota did.
    Cpu,
    /// v1: what the quota did.
    CpuQuota,
    /// v1: time in nanoseconds.
    CpuUsage,
    Memory,
    MemoryPeak,
    Swap,
    /// v1: memory and swap together.
    MemoryAndSwap,
    /// A line `oom_kill N`.
    OomKills,
    Pids,
    CpuPressure,
    MemoryPressure,
    IoPressure,
}

/// Files by controller; the first name is v1's, the second v2's, empty if that has none.
const FILES: [(&str, Field, &str, Field, &str); 7] = [
    ("cpu", Field::CpuQuota, "cpu.stat", Field::Cpu, "cpu.stat"),
    ("cpuacct", Field::CpuUsage, "cpuacct.usage", Field::CpuUsage, ""),
    ("memory", Field::Memory, "memory.usage_in_bytes", Field::Memory, "memory.current"),
    ("memory", Field::MemoryPeak, "memory.max_usage_in_bytes", Field::MemoryPeak, "memory.peak"),
    (
        "memory",
        Field::MemoryAndSwap,
        "memory.memsw.usage_in_bytes",
        Field::Swap,
        "memory.swap.current",
    ),
    ("memory", Field::OomKills, "memory.oom_control", Field::OomKills, "memory.events"),
    ("pids", Field::Pids, "pids.current", Field::Pids, "pids.current"),
];

/// Of the tracking hierarchy, if that is v2.
const PRESSURE: [(Field, &str); 3] = [
    (Field::CpuPressure, "cpu.pressure"),
    (Field::MemoryPressure, "memory.pressure"),
    (Field::IoPressure, "io.pressure"),
];

/// The open files of one guest.
#[derive(Debug)]
pub struct Counters(Vec<(Field, PathBuf, File)>);

impl HostCgroups {
    /// Opens the guest's files; those that this kernel does not have are left out.
    ///
    /// # Errors
    /// `Exhausted`: too many files are open. `NotFound`: the guest has no group.
    pub fn counters(&self, id: &VmId) -> Result<Counters> {
        let mut wanted: Vec<(Field, PathBuf)> = Vec::new();
        for (controller, v1, v1_name, v2, v2_name) in FILES {
            if let Some(root) = self.hierarchies.v1(controller) {
                wanted.push((v1, self.group(root, id, "guest").join(v1_name)));
            } else if let Some(root) = self.hierarchies.v2(controller) {
                wanted.push((v2, self.group(root, id, "guest").join(v2_name)));
            }
        }
        let group = self.group(self.hierarchies.tracking(), id, "guest");
        wanted.extend(PRESSURE.map(|(field, name)| (field, group.join(name))));
        let mut files = Vec::with_capacity(wanted.len());
        for (field, path) in wanted {
            match File::open(&path) {
                Ok(file) => files.push((field, path, file)),
                // Memory is what every guest has a group for.
                Err(e) if e.kind() == io::ErrorKind::NotFound && field != Field::Memory => {}
                Err(e) => return Err(io_error("open", &path, &e)),
            }
        }
        Ok(Counters(files))
    }
}

impl Counters {
    /// How many files are open.
    #[must_use]
    pub fn files(&self) -> usize {
        self.0.len()
    }

    /// What they say now.
    ///
    /// # Errors
    /// `NotFound`: the group is gone.
    pub fn read(&mut self) -> Result<GroupStats> {
        let mut stats = GroupStats::default();
        let mut total = None;
        // All of these files are shorter.
        let mut buffer = [0; 4096];
        let mut refused = None;
        for (at, (field, path, file)) in self.0.iter().enumerate() {
            match file.read_at(&mut buffer, 0) {
                Ok(len) => {
                    take(*field, &String::from_utf8_lossy(&buffer[..len]), &mut stats, &mut total);
                }
                // Pressure is switched off, by psi=0 or cgroup.pressure.
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => refused = Some(at),
                Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {
                    let what = format!("read {}: the group is gone", path.display());
                    return Err(Error::new(ErrorKind::NotFound, what));
                }
                Err(e) => return Err(io_error("read", path, &e)),
            }
        }
        if let Some(at) = refused {
            self.0.remove(at);
        }
        if let Some(total) = total {
            stats.swap = Some(Bytes(total.saturating_sub(stats.memory.0)));
        }
        Ok(stats)
    }
}

/// Takes in what a file says. Pure. A number that is missing counts as none: a monitor that fails for
/// a line that some kernel does not have is worse than a zero.
fn take(field: Field, text: &str, stats: &mut GroupStats, total: &mut Option<u64>) {
    let whole = || text.trim().parse::<u64>().unwrap_or(0);
    let line = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(key, _)| *key == name);
        found.and_then(|(_, value)| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let pressure = |stats: &mut GroupStats| *stats.pressure.get_or_insert_default();
    match field {
        Field::Cpu | Field::CpuQuota => {
            stats.cpu_periods = line("nr_periods");
            stats.cpu_throttled_periods = line("nr_throttled");
            // Microseconds in v2, nanoseconds in v1.
            stats.cpu_throttled = match field {
                Field::Cpu => Duration::from_micros(line("throttled_usec")),
                _ => Duration::from_nanos(line("throttled_time")),
            };
            if field == Field::Cpu {
                stats.cpu_usage = Duration::from_micros(line("usage_usec"));
            }
        }
        Field::CpuUsage => stats.cpu_usage = Duration::from_nanos(whole()),
        Field::Memory => stats.memory = Bytes(whole()),
        Field::MemoryPeak => stats.memory_peak = Some(Bytes(whole())),
        Field::Swap => stats.swap = Some(Bytes(whole())),
        Field::MemoryAndSwap => *total = Some(whole()),
        Field::OomKills => stats.oom_kills = line("oom_kill"),
        Field::Pids => stats.pids = whole(),
        Field::CpuPressure => {
            stats.pressure = Some(Pressure { cpu: stall(text), ..pressure(stats) });
        }
        Field::MemoryPressure => {
            stats.pressure = Some(Pressure { memory: stall(text), ..pressure(stats) });
        }
        Field::IoPressure => {
            stats.pressure = Some(Pressure { io: stall(text), ..pressure(stats) });
        }
    }
}

/// `some avg10=0.12 avg60=… avg300=… total=…`, and the same for `full`.
fn stall(text: &str) -> Stall {
    let time = |kind: &str| -> StallTime {
        let line = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or_default();
        let value = |key: &str| {
            let mut pairs = line.split_ascii_whitespace().filter_map(|word| word.split_once('='));
            pairs.find(|(name, _)| *name == key).map_or("", |(_, value)| value)
        };
        StallTime {
            avg10: hundredths(value("avg10")),
            avg60: hundredths(value("avg60")),
            avg300: hundredths(value("avg300")),
            total: Duration::from_micros(value("total").parse().unwrap_or(0)),
        }
    };
    Stall { some: time("some "), full: time("full ") }
}

/// The kernel always writes two decimals.
fn hundredths(text: &str) -> u32 {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(Field, &str)]) -> GroupStats {
        let (mut stats, mut total) = (GroupStats::default(), None);
        files.iter().for_each(|(field, text)| take(*field, text, &mut stats, &mut total));
        stats
    }

    #[test]
    fn both_versions_say_the_same_in_their_own_way() {
        let v2 = of(&[
            (
                Field::Cpu,
                "usage_usec 1500000\nuser_usec 1\nsystem_usec 2\nnr_periods 9\nnr_throttled 4\n\
                 throttled_usec 250\nnr_bursts 0\nburst_usec 0\n",
            ),
            (Field::Memory, "4096\n"),
            (Field::MemoryPeak, "8192\n"),
            (Field::Swap, "100\n"),
            (Field::OomKills, "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"),
            (Field::Pids, "5\n"),
        ]);
        let mut total = None;
        let mut v1 = of(&[
            (Field::CpuUsage, "1500000000\n"),
            (Field::CpuQuota, "nr_periods 9\nnr_throttled 4\nthrottled_time 250000\n"),
            (Field::Memory, "4096\n"),
            (Field::MemoryPeak, "8192\n"),
            (Field::OomKills, "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            (Field::Pids, "5\n"),
        ]);
        take(Field::MemoryAndSwap, "4196\n", &mut v1, &mut total);
        assert_eq!(total, Some(4196));
        v1.swap = Some(Bytes(100));
        assert_eq!(v2, v1);
        assert_eq!(
            (v2.cpu_usage, v2.cpu_throttled, v2.oom_kills, v2.pids),
            (Duration::from_millis(1500), Duration::from_micros(250), 2, 5)
        );
    }

    #[test]
    fn pressure_is_read_in_hundredths_of_a_percent() {
        let text = "some avg10=1.23 avg60=0.05 avg300=100.00 total=123456\n\
                    full avg10=0.00 avg60=0.00 avg300=0.07 total=99\n";
        let stats = of(&[(Field::MemoryPressure, text)]);
        let time = |avg10, avg60, avg300, total| StallTime {
            avg10,
            avg60,
            avg300,
            total: Duration::from_micros(total),
        };
        let want = Stall { some: time(123, 5, 10_000, 123_456), full: time(0, 0, 7, 99) };
        let pressure = stats.pressure.unwrap();
        assert_eq!((pressure.memory, pressure.cpu), (want, Stall::default()));
        // Kernels before 5.13 have no line `full` for processors.
        assert_eq!(
            stall("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n").full,
            Stall::default().full
        );
    }

    #[test]
    fn a_kernel_that_says_nothing_is_a_zero() {
        let stats = of(&[(Field::Cpu, ""), (Field::OomKills, "x"), (Field::Memory, "max\n")]);
        assert_eq!(stats, GroupStats::default());
    }
}
