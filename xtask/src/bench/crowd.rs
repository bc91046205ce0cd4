//! Many guests on one machine: what each costs while it idles, and what the others notice of one that
//! takes all it can get.
//!
//! Guests are of two kinds, as people run them: a shell of busybox that sleeps, and a whole Debian whose
//! systemd has reached its target. Both have a disk, limits and a console; interfaces have no say in
//! memory and would need a bridge for more ports than one has.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::ours::{self, on_processors, pss};
use crate::cmd::{program, run as run_command, say, step, wait_until, write};
use crate::packages::{FOR_CROWD, FOR_QUICKSTART, TO_BUILD, ensure};
use crate::quickstart::Places;
use crate::quickstart::daemon::Daemon;
use crate::quickstart::image;
use crate::quickstart::undo::Undo;

/// Guests that sleep.
const SHELLS: u32 = 200;
/// Guests with systemd.
const SYSTEMS: u32 = 30;
/// How long all of them idle before they are looked at: timers of a system that just came up are over.
const IDLE: Duration = Duration::from_secs(30);
/// How often statistics of all are asked for.
const PASSES: u32 = 50;
/// How often the command line asks for one guest, in peace and under attack.
const QUESTIONS: u32 = 300;
/// How long a system may take to its target, with others beside it.
const BOOT: Duration = Duration::from_mins(5);

/// What a system does that wants to harm others: processes, memory, memory file systems, its disk,
/// terminals, watches, control groups, names, the console.
const ATTACKS: [&str; 9] = [
    "f() { f | f & }; f; sleep 1000",
    "while :; do tail /dev/zero; done",
    "while :; do dd if=/dev/zero of=/dev/shm/x bs=1M; rm /dev/shm/x; done",
    "while :; do dd if=/dev/zero of=/tmp/x bs=1M; rm /tmp/x; done",
    "while :; do sleep 1000 < /dev/ptmx & done",
    "mkdir /w; i=0; while [ $i -lt 20000 ]; do : > /w/$i; i=$((i+1)); done; \
     while :; do tail -qF /w/* & sleep 1; done",
    "i=0; while :; do mkdir /sys/fs/cgroup/x$i; i=$((i+1)); done",
    "i=0; while :; do mkdir -p /tmp/d/$i; i=$((i+1)); done",
    "yes > /dev/console",
];

/// Runs it.
///
/// # Errors
/// A guest does not come up, or the host does not tell.
pub fn run(programs: PathBuf, json: Option<&Path>) -> Result<()> {
    ensure(&[&TO_BUILD, &FOR_QUICKSTART, &FOR_CROWD])?;
    let places = Places::new("bench-crowd", programs)?;
    let mut undo = Undo::new()?;
    let measured = measure(&places, &mut undo);
    if let Ok(figures) = &measured {
        say(&format!("\n{}", figures.table()));
    }
    step("clearing away");
    let cleared = undo.run();
    let figures = measured?;
    cleared?;
    if let Some(path) = json {
        write(path, &figures.json().to_string())?;
    }
    say("OK: measured");
    Ok(())
}

/// What came of it.
#[derive(Debug, Default)]
struct Figures {
    /// PSS of each shim, bytes.
    shims: Vec<u64>,
    /// PSS of the daemon with all guests, bytes.
    daemon: u64,
    /// Memory that the control groups count: of guests that sleep, of systems; bytes.
    shells: Vec<u64>,
    systems: Vec<u64>,
    /// What the machine has less of with all of them, bytes.
    machine: u64,
    /// Statistics of all: until the answer, and on processors.
    passes: Vec<(Duration, Duration)>,
    /// `ocivisor info`, in peace and under attack.
    peace: Vec<Duration>,
    attack: Vec<Duration>,
}

fn measure(places: &Places, undo: &mut Undo) -> Result<Figures> {
    let debian = image::tarball(&debian_cache(places), &image::DEBIAN)?;
    let busybox = busybox(places)?;
    let daemon = Daemon::start(places, "[guests]\nsettle_ms = 0\n", undo)?;
    let disks = places.cache.join("disks");
    let left = disks.clone();
    if left.exists() {
        std::fs::remove_dir_all(&left).context("remove old disks")?;
    }
    std::fs::create_dir_all(&disks).context("make a place for disks")?;
    undo.add("remove the disks", move || Ok(std::fs::remove_dir_all(left)?));
    let same = Daemon { places: places.clone() };
    undo.add("destroy the guests", move || ours::forget_all(&same));
    ours::forget_all(&daemon)?;
    daemon.cli(&["image", "import", &busybox.to_string_lossy(), "busybox"])?;
    daemon.cli(&["image", "import", &debian.to_string_lossy(), "debian"])?;
    let crowd = Crowd { daemon, disks };
    let mut figures = Figures::default();

    step(&format!("{SHELLS} guests that sleep, {SYSTEMS} with systemd"));
    let before = available()?;
    for number in 0..SHELLS {
        undo.check()?;
        crowd.boot(&shell(number), "busybox", "64M", &["--", "sleep", "100000"])?;
    }
    for number in 0..SYSTEMS {
        undo.check()?;
        crowd.boot(&system(number), "debian", "512M", &[])?;
    }
    for number in 0..SYSTEMS {
        crowd.reaches_target(&system(number))?;
        undo.check()?;
    }
    #[expect(clippy::disallowed_methods, reason = "what is waited for is time itself")]
    std::thread::sleep(IDLE);
    figures.machine = before.saturating_sub(available()?);
    crowd.look(&mut figures)?;

    step("one of them attacks");
    crowd.ask(&shell(1), &mut figures.peace)?;
    let attackers = crowd.attack(&system(0))?;
    let asked = crowd.ask(&shell(1), &mut figures.attack);
    crowd.daemon.cli(&["destroy", "--forget", &system(0)])?;
    for mut child in attackers {
        // Its session ended with the guest.
        child.wait().context("end an attack")?;
    }
    asked?;
    Ok(figures)
}

/// Beside the quickstart's, which has it perhaps.
fn debian_cache(places: &Places) -> PathBuf {
    let cache = places.cache.with_file_name("quickstart");
    if cache.is_dir() { cache } else { places.cache.clone() }
}

/// A root filesystem with Debian's static busybox.
pub(super) fn busybox(places: &Places) -> Result<PathBuf> {
    let root = places.cache.join("busybox");
    for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "run"] {
        std::fs::create_dir_all(root.join(dir)).with_context(|| format!("make {dir}"))?;
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).context("copy busybox")?;
    for applet in crate::cmd::output(program("/bin/busybox").arg("--list"))?.lines() {
        let link = root.join("bin").join(applet);
        if applet != "busybox" && !link.exists() {
            std::os::unix::fs::symlink("busybox", &link).context("link an applet")?;
        }
    }
    let tar = places.cache.join("busybox.tar");
    let mut command = program("tar");
    command.args(["--owner=0", "--group=0", "--numeric-owner", "-C"]).arg(&root);
    run_command(command.arg("-cf").arg(&tar).arg("."))?;
    Ok(tar)
}

fn shell(number: u32) -> String {
    format!("shell-{number}")
}

fn system(number: u32) -> String {
    format!("system-{number}")
}

/// The guests and their daemon.
struct Crowd {
    daemon: Daemon,
    disks: PathBuf,
}

impl Crowd {
    fn boot(&self, vm: &str, image: &str, memory: &str, more: &[&str]) -> Result<()> {
        let disk = self.disks.join(vm);
        let disk = disk.to_string_lossy();
        let make = ["disk", "create", "--image", image, "--size", "1GiB", &disk];
        self.daemon.cli_output(&make)?;
        let define = ["define", vm, "--disk", &disk, "--memory", memory];
        self.daemon.cli_output(&[&define[..], more].concat())?;
        self.daemon.cli_output(&["start", vm]).map(drop)
    }

    fn reaches_target(&self, vm: &str) -> Result<()> {
        wait_until(&format!("the target of {vm}"), BOOT, || {
            let mut asks =
                self.daemon.command(&["exec", vm, "--", "systemctl", "is-system-running"]);
            let answer = asks.stderr(Stdio::null()).output().context("ask systemd")?;
            match String::from_utf8_lossy(&answer.stdout).trim() {
                "running" => Ok(true),
                "degraded" => bail!("{vm} is degraded: see systemctl --failed in it"),
                _ => Ok(false),
            }
        })
    }

    /// Memory of all, and passes over their statistics.
    fn look(&self, figures: &mut Figures) -> Result<()> {
        let call = |method: &str, params: &Value| ours::call(&self.daemon.socket(), method, params);
        let pid = self.daemon.pid()?;
        let mut stats = Value::Null;
        for pass in 0..=PASSES {
            let (began, before) = (Instant::now(), on_processors(pid)?);
            stats = call("vm.stats", &json!({}))?;
            let took = began.elapsed();
            // Files are opened by the first.
            if pass > 0 {
                figures.passes.push((took, on_processors(pid)?.saturating_sub(before)));
            }
        }
        let all = stats["vms"].as_array().context("no statistics")?;
        if all.len() != (SHELLS + SYSTEMS) as usize {
            bail!("statistics of {} guests instead of {}", all.len(), SHELLS + SYSTEMS);
        }
        for vm in all {
            let id = vm["id"].as_str().context("a guest without name")?;
            let memory = vm["memory"]["used"].as_u64().context("no memory in statistics")?;
            let kind =
                if id.starts_with("shell") { &mut figures.shells } else { &mut figures.systems };
            kind.push(memory);
            let info = call("vm.get", &json!({"vm": id}))?;
            let shim = info["guest"]["shim"]["pid"].as_u64().context("no shim")?;
            figures.shims.push(pss(shim)?);
        }
        figures.daemon = pss(pid.into())?;
        Ok(())
    }

    /// `ocivisor info`, from the start of the program to its end.
    fn ask(&self, vm: &str, times: &mut Vec<Duration>) -> Result<()> {
        for _ in 0..QUESTIONS {
            let began = Instant::now();
            self.daemon.cli_output(&["info", vm])?;
            times.push(began.elapsed());
        }
        Ok(())
    }

    /// Begins all attacks, and waits until the guest is at its limit of processes.
    fn attack(&self, vm: &str) -> Result<Vec<Child>> {
        let session = |script: &str| {
            let mut command = self.daemon.command(&["exec", vm, "--", "/bin/sh", "-c", script]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command
        };
        // The one that takes all processes comes last: no other session could begin.
        let (forks, others) = ATTACKS.split_first().context("no attack")?;
        let begun = others.iter().chain([forks]).map(|script| session(script).spawn());
        let attackers = begun.collect::<std::io::Result<Vec<_>>>().context("begin an attack")?;
        wait_until("its last process", BOOT, || {
            Ok(!session("true").status().context("ask the guest")?.success())
        })?;
        Ok(attackers)
    }
}

/// The value at that rank, the nearest one; the default of none.
fn percentile<T: Copy + Default + Ord>(values: &[T], percent: usize) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(rank).copied().unwrap_or_default()
}

/// Memory that the machine could still give (proc(5), MemAvailable), in bytes.
fn available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("no MemAvailable")? * 1024)
}

impl Figures {
    fn table(&self) -> String {
        let kib = |values: &[u64]| {
            let at = |percent| percentile(values, percent) / 1024;
            (at(50), at(99))
        };
        let ms = |values: &[Duration]| {
            let at = |percent| percentile(values, percent).as_secs_f64() * 1e3;
            (at(50), at(99))
        };
        let mut text = String::new();
        for (name, values) in [
            ("shim, PSS", &self.shims),
            ("guest that sleeps, control group", &self.shells),
            ("guest with systemd, control group", &self.systems),
        ] {
            let ((p50, p99), n) = (kib(values), values.len());
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}: p50 {p50} KiB, p99 {p99} KiB, n {n}");
        }
        let _ = writeln!(text, "daemon, PSS: {} KiB", self.daemon / 1024);
        let each = self.machine / u64::from(SHELLS + SYSTEMS);
        let (all, each) = (self.machine >> 20, each / 1024);
        let _ = writeln!(text, "the machine has {all} MiB less, {each} KiB per guest");
        let (answers, processors): (Vec<_>, Vec<_>) = self.passes.iter().copied().unzip();
        for (name, values) in [
            ("stats of all", &answers),
            ("stats of all, on processors", &processors),
            ("ocivisor info in peace", &self.peace),
            ("ocivisor info under attack", &self.attack),
        ] {
            let ((p50, p99), n) = (ms(values), values.len());
            let _ = writeln!(text, "{name}: p50 {p50:.2} ms, p99 {p99:.2} ms, n {n}");
        }
        let ratio = ms(&self.attack).1 / ms(&self.peace).1;
        let _ = writeln!(text, "p99 of info under attack: {ratio:.2} times that in peace");
        text
    }

    fn json(&self) -> Value {
        let us = |values: &[Duration]| values.iter().map(Duration::as_micros).collect::<Vec<_>>();
        let (answers, processors): (Vec<_>, Vec<_>) = self.passes.iter().copied().unzip();
        json!({
            "shim_pss_bytes": self.shims,
            "shell_memory_bytes": self.shells,
            "system_memory_bytes": self.systems,
            "daemon_pss_bytes": self.daemon,
            "machine_bytes": self.machine,
            "stats_us": us(&answers),
            "stats_on_processors_us": us(&processors),
            "info_in_peace_us": us(&self.peace),
            "info_under_attack_us": us(&self.attack),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_the_nearest_rank() {
        let values: Vec<u64> = (1..=200).rev().collect();
        assert_eq!((percentile(&values, 50), percentile(&values, 99)), (100, 198));
        assert_eq!(percentile::<u64>(&[], 50), 0);
    }
}
