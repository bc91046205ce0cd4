//! What monitoring under OpenNebula costs: processor time of the agent and of the daemon for a pass over a thousand VMs, some
//! of them running.
//!
//! A pass is everything that the agent tells, once: states of all VMs, what they use, the allocated size of their disks, what the host
//! uses. The agent is begun by the script of the remotes tree, with the recorded configuration of a monitor and periods of
//! a second; who listens counts. Time on processors is that of /proc/PID/stat, all threads, also those that ended.

use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::crowd::busybox;
use super::ours;
use crate::cmd::{program, root, say, step, wait_until, write};
use crate::packages::{FOR_CROWD, FOR_QUICKSTART, TO_BUILD, ensure};
use crate::quickstart::Places;
use crate::quickstart::daemon::Daemon;
use crate::quickstart::undo::Undo;

/// VMs.
const VMS: u32 = 1000;
/// Those of them that run: every fifth.
const RUNS: u32 = 5;
/// Passes that are measured, after some that are not.
const PASSES: u64 = 60;
const WARM: u64 = 5;
/// What a pass should take at most, in milliseconds.
const AIM: f64 = 50.0;
/// How long OpenNebula's probe of LXC sleeps for each container that runs, one after the other, to tell how busy it is.
const SLEEP_OF_LXC: Duration = Duration::from_secs(1);
/// The host's number.
const HOST: u32 = 7;

/// Runs it.
///
/// # Errors
/// A guest does not come up, the agent does not begin.
pub fn run(programs: PathBuf, json: Option<&Path>) -> Result<()> {
    ensure(&[&TO_BUILD, &FOR_QUICKSTART, &FOR_CROWD])?;
    let places = Places::new("bench-agent", programs)?;
    let mut undo = Undo::new()?;
    let measured = measure(&places, &mut undo);
    step("clearing away");
    let cleared = undo.run();
    let figures = measured?;
    cleared?;
    say(&format!("\n{}", figures.table()));
    if let Some(path) = json {
        write(path, &figures.json().to_string())?;
    }
    say("OK: measured");
    Ok(())
}

/// Milliseconds on processors, of a pass.
#[derive(Debug)]
struct Figures {
    agent: f64,
    daemon: f64,
    running: usize,
}

impl Figures {
    fn sum(&self) -> f64 {
        self.agent + self.daemon
    }

    /// How many times as long OpenNebula's probe sleeps.
    fn ratio(&self) -> f64 {
        SLEEP_OF_LXC.as_secs_f64() * 1e3 * self.running as f64 / self.sum()
    }

    fn table(&self) -> String {
        let Self { agent, daemon, running } = self;
        format!(
            "{VMS} VMs, {running} of them running; a pass, on processors: agent {agent:.1} ms, daemon {daemon:.1} ms, \
             together {:.1} ms (aim: {AIM})\nOpenNebula's probe of LXC sleeps {:.0} times as long",
            self.sum(),
            self.ratio()
        )
    }

    fn json(&self) -> serde_json::Value {
        let Self { agent, daemon, running } = self;
        json!({
            "vms": VMS, "running": running, "passes": PASSES, "agent_ms": agent, "daemon_ms": daemon,
            "sum_ms": self.sum(), "aim_ms": AIM, "lxc_probe_sleeps_ratio": self.ratio(),
        })
    }
}

fn measure(places: &Places, undo: &mut Undo) -> Result<Figures> {
    let image = busybox(places)?;
    let daemon = Daemon::start(places, "[guests]\nsettle_ms = 0\n", undo)?;
    let left = places.datastores.clone();
    if left.exists() {
        std::fs::remove_dir_all(&left).context("remove old disks")?;
    }
    undo.add("remove the disks", move || Ok(std::fs::remove_dir_all(left)?));
    let same = Daemon { places: places.clone() };
    undo.add("destroy the guests", move || ours::forget_all(&same));
    ours::forget_all(&daemon)?;
    daemon.cli(&["image", "import", &image.to_string_lossy(), "busybox"])?;
    step(&format!("{VMS} VMs, one of {RUNS} runs"));
    for number in 0..VMS {
        undo.check()?;
        make(&daemon, number)?;
    }
    step(&format!("{PASSES} passes"));
    let monitor = Monitor::listen()?;
    let agent = monitor.start(&daemon, undo)?;
    monitor.hears(WARM)?;
    let running = ours::call(&daemon.socket(), "vm.stats", &json!({}))?;
    let cost = || Ok::<_, anyhow::Error>((cpu_ms(agent)?, cpu_ms(daemon.pid()?)?, monitor.count()));
    let before = cost()?;
    monitor.hears(before.2 + PASSES)?;
    let after = cost()?;
    let passes = (after.2 - before.2) as f64;
    Ok(Figures {
        agent: (after.0 - before.0) / passes,
        daemon: (after.1 - before.1) / passes,
        running: running["vms"].as_array().map_or(0, Vec::len),
    })
}

/// A VM as OpenNebula's drivers leave it: a name of theirs, a disk where disks are; some run.
fn make(daemon: &Daemon, number: u32) -> Result<()> {
    let (vm, dir) =
        (format!("one-{number}"), daemon.places.datastores.join(format!("101/{number}")));
    std::fs::create_dir_all(&dir).context("make a place for a disk")?;
    let disk = dir.join("disk.0");
    let disk = disk.to_string_lossy();
    daemon.cli_output(&["disk", "create", "--image", "busybox", "--size", "64MiB", &disk])?;
    let define = ["define", &vm, "--disk", &disk, "--memory", "64M", "--", "sleep", "100000"];
    daemon.cli_output(&define)?;
    if number.is_multiple_of(RUNS) {
        daemon.cli_output(&["start", &vm])?;
    }
    Ok(())
}

/// Who listens in the place of OpenNebula's monitor, and counts what the host uses: one per pass.
struct Monitor {
    port: u16,
    heard: Arc<AtomicU64>,
}

impl Monitor {
    fn listen() -> Result<Self> {
        let udp = UdpSocket::bind(("127.0.0.1", 0)).context("listen")?;
        let port = udp.local_addr()?.port();
        let tcp = TcpListener::bind(("127.0.0.1", port)).context("listen")?;
        let heard = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(n) = udp.recv(&mut bytes) {
                if bytes[..n].starts_with(b"MONITOR_HOST SUCCESS ") {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let _ = std::io::copy(&mut stream.take(u64::MAX), &mut std::io::sink());
            }
        });
        Ok(Self { port, heard })
    }

    fn count(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    fn hears(&self, count: u64) -> Result<()> {
        let most = Duration::from_secs(2 * PASSES + 60);
        wait_until("what the host uses", most, || Ok(self.count() >= count))
    }

    /// Begins the agent; returns its process.
    fn start(&self, daemon: &Daemon, undo: &mut Undo) -> Result<u32> {
        let state = daemon.places.cache.join("agents");
        let config = daemon.opennebula_config();
        write(&config, &format!("[monitoring]\nstate_dir = {state:?}\n"))?;
        let stdin = daemon.places.cache.join("monitor.xml");
        write(&stdin, &self.configuration(&daemon.places.datastores)?)?;
        let call = {
            let (programs, socket) = (daemon.places.programs.clone(), daemon.socket());
            move |first: &[&str]| -> Result<()> {
                let script = "driver-scripts/opennebula/remotes/im/ocivisor.d/ocivisor_control.sh";
                let mut command = program(root().join(script));
                command.args(first).args(["ocivisor", &HOST.to_string(), "host"]);
                command.env("OCIVISOR_BIN", programs.join("ocivisor"));
                command.env("OCIVISOR_SOCKET", &socket);
                command.env("OCIVISOR_OPENNEBULA_CONFIG", &config);
                command.env("SSH_CLIENT", "127.0.0.1 1 22").process_group(0);
                command.stdin(std::fs::File::open(&stdin)?).stdout(Stdio::null());
                let status = command.status().context("call the script")?;
                if status.success() { Ok(()) } else { bail!("the script ended with {status}") }
            }
        };
        call(&[])?;
        undo.add("end the agent", move || call(&["stop"]));
        let held = std::fs::read(state.join(format!("host-{HOST}"))).context("read the seat")?;
        let held: serde_json::Value = serde_json::from_slice(&held)?;
        Ok(u32::try_from(held["agent"][0].as_u64().context("no agent")?)?)
    }

    /// The recorded one, for this place, with periods of a second.
    fn configuration(&self, datastores: &Path) -> Result<String> {
        let recorded = root().join("tests/fixtures/opennebula/monitor-configuration.xml");
        let mut text = std::fs::read_to_string(recorded).context("read the recording")?;
        let cdata =
            |name: &str, value: &dyn std::fmt::Display| format!("<{name}><![CDATA[{value}]]>");
        let kinds = [
            ("BEACON_HOST", 30),
            ("EXEC_VM", 5),
            ("MONITOR_HOST", 120),
            ("MONITOR_VM", 30),
            ("STATE_VM", 5),
            ("SYNC_STATE_VM", 180),
        ];
        let kinds = kinds.map(|(kind, seconds)| (cdata(kind, &seconds), cdata(kind, &1)));
        let places = [
            (cdata("PORT", &4124), cdata("PORT", &self.port)),
            ("<HOST_ID>0<".to_owned(), format!("<HOST_ID>{HOST}<")),
            ("/var/lib/one//datastores".to_owned(), datastores.display().to_string()),
        ];
        for (from, to) in kinds.into_iter().chain(places) {
            if !text.contains(&from) {
                bail!("the recorded configuration has no {from}");
            }
            text = text.replace(&from, &to);
        }
        Ok(text)
    }
}

/// Time of a process on processors so far, in milliseconds (proc(5), stat: fields 14 and 15, in hundredths of a second).
fn cpu_ms(pid: u32) -> Result<f64> {
    let mut stat = String::new();
    let file = std::fs::File::open(format!("/proc/{pid}/stat"));
    file.and_then(|mut file| file.read_to_string(&mut stat)).context("read processor times")?;
    let fields = stat.rsplit_once(')').context("no name in stat")?.1.split_ascii_whitespace();
    let ticks = fields.skip(11).take(2).map(|ticks| ticks.parse::<u32>());
    let ticks = ticks.sum::<std::result::Result<u32, _>>().context("read ticks")?;
    Ok(f64::from(ticks) * 10.0)
}
