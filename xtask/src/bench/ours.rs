//! Ours: a daemon of its own, asked over its socket; every guest with a disk, an interface on a
//! bridge, limits, user namespace and the default profile.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Contender, GUESTS, Life, MANY_GUESTS, stamp, tarball, wall};
use crate::cmd::{program, root, run, wait_until};
use crate::quickstart::Places;
use crate::quickstart::daemon::Daemon;
use crate::quickstart::undo::Undo;

const BRIDGE: &str = "ocvbench2";
const IMAGE: &str = "bench";
/// How often each question is asked.
const QUESTIONS: u32 = 200;
/// How often all guests' statistics are asked for.
const PASSES: u32 = 50;

/// Our daemon.
#[derive(Debug)]
pub struct Ours {
    daemon: Daemon,
    disks: PathBuf,
}

impl Ours {
    /// Starts it.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(places: &Places, rootfs: &Path, undo: &mut Undo) -> Result<Self> {
        run(program("ip").args(["link", "add", BRIDGE, "type", "bridge"]))?;
        undo.add(
            format!("remove {BRIDGE}"),
            || run(program("ip").args(["link", "delete", BRIDGE])),
        );
        run(program("ip").args(["link", "set", BRIDGE, "up"]))?;
        // Whether a guest lives on for a while is no part of its start, here or elsewhere.
        let daemon = Daemon::start(places, "[guests]\nsettle_ms = 0\n", undo)?;
        forget_all(&daemon)?;
        let left = places.cache.join("datastores");
        if left.exists() {
            std::fs::remove_dir_all(&left)?;
        }
        std::fs::create_dir_all(&left)?;
        undo.add("remove the disks", move || Ok(std::fs::remove_dir_all(left)?));
        let same = Daemon { places: places.clone() };
        undo.add("destroy the guests", move || forget_all(&same));
        let tar = tarball(rootfs);
        daemon.cli(&["image", "import", &tar.to_string_lossy(), IMAGE])?;
        let disks = places.cache.join("datastores/101");
        let ours = Self { daemon, disks };
        (0..=GUESTS).try_for_each(|number| ours.make_disk(number))?;
        Ok(ours)
    }

    fn make_disk(&self, number: u32) -> Result<()> {
        let dir = self.disks.join(number.to_string());
        std::fs::create_dir_all(&dir)?;
        let path = dir.join("disk.0");
        let path = path.to_string_lossy();
        let made = ["disk", "create", "--image", IMAGE, "--size", "64MiB", &path];
        self.daemon.cli_output(&made).map(|_| ())
    }

    /// Guest 0 is the one that comes and goes; the others stay together for a while.
    fn spec(&self, number: u32) -> Value {
        json!({
            "id": name(number),
            "resources": {"memory": 256_u64 << 20, "vcpus": 1, "cpu_share": 100},
            "boot": {"init": "application", "entrypoint": ["/first"]},
            "root": {"path": self.disks.join(number.to_string()).join("disk.0")},
            "nics": [{
                "index": 0, "host_name": format!("ocvbench-{number}"),
                "mac": format!("02:00:00:00:77:{:02x}", number + 2),
                "bridge": {"kind": "linux", "name": BRIDGE},
                "addresses": [format!("198.18.78.{}/24", number + 2)],
            }],
        })
    }

    fn deploy(&self, number: u32) -> Result<()> {
        self.operate("vm.deploy", json!({"spec": self.spec(number)}), &unique("deploy"))
    }

    fn destroy(&self, number: u32) -> Result<()> {
        let params = json!({"vm": name(number), "forget": true});
        self.operate("vm.destroy", params, &unique("destroy"))
    }

    fn call(&self, method: &str, params: &Value) -> Result<Value> {
        call(&self.daemon.socket(), method, params)
    }

    /// A call and the end of its operation.
    fn operate(&self, method: &str, mut params: Value, id: &str) -> Result<()> {
        params["request_id"] = json!(id);
        let reply = self.call(method, &params)?;
        if reply["op"].is_null() {
            return Ok(());
        }
        let wait = json!({"op": reply["op"], "timeout_ms": 60_000});
        let status = self.call("op.wait", &wait)?;
        if status["result"] != "ok" {
            bail!("{method}: {}", status["result"]);
        }
        Ok(())
    }

    fn said(&self, vm: &str) -> String {
        let log = self.daemon.places.state.join("vms").join(vm).join("console.log");
        std::fs::read_to_string(log).unwrap_or_default()
    }

    /// A whole call of OpenNebula's `deploy`, from the start of the script to its end.
    ///
    /// # Errors
    /// It fails.
    pub fn script(&self) -> Result<Duration> {
        let recorded = root().join("tests/fixtures/opennebula/0079-vmm-deploy/stdin");
        let xml = std::fs::read_to_string(recorded).context("read the recording")?;
        let xml = xml
            .replace("<BRIDGE><![CDATA[br0]]>", &format!("<BRIDGE><![CDATA[{BRIDGE}]]>"))
            .replace("<![CDATA[/bin/sh -c]]>", "<![CDATA[/first]]>")
            // Made by OpenNebula's transfer driver, and nothing that this image could run.
            .replace("<CONTEXT><DISK_ID><![CDATA[2]]></DISK_ID>", "<CONTEXT>")
            .replace("<START_SCRIPT><![CDATA[echo hello > /tmp/hello]]></START_SCRIPT>", "")
            // Its VNC console is for nobody else on this network.
            .replace("<LISTEN><![CDATA[0.0.0.0]]>", "<LISTEN><![CDATA[127.0.0.1]]>");
        let file = self.disks.join("0/deployment.0");
        let script = root().join("driver-scripts/opennebula/remotes/vmm/ocivisor/deploy");
        let began = Instant::now();
        let mut child = program(script)
            .arg(file)
            .args(["host02", "0", "host02"])
            .env("OCIVISOR_BIN", self.daemon.places.programs.join("ocivisor"))
            .env("OCIVISOR_SOCKET", self.daemon.socket())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("no input")?.write_all(xml.as_bytes())?;
        let output = child.wait_with_output()?;
        let took = began.elapsed();
        if !output.status.success() {
            bail!("deploy: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        self.operate("vm.destroy", json!({"vm": "one-0", "forget": true}), &unique("script"))?;
        Ok(took)
    }
}

/// A call of the API: HTTP on the socket, as the command line does it.
///
/// # Errors
/// Nobody answers, or the answer is an error.
pub fn call(socket: &Path, method: &str, params: &Value) -> Result<Value> {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let body = body.to_string();
    let mut stream = UnixStream::connect(socket)?;
    let head = format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let mut value: Value = serde_json::from_str(body).context("read the answer")?;
    if let Some(error) = value.get("error") {
        bail!("{method}: {error}");
    }
    Ok(value["result"].take())
}

/// An id that no other request has.
fn unique(what: &str) -> String {
    format!("bench-{what}-{}", wall().as_nanos())
}

/// Name of a guest.
fn name(number: u32) -> String {
    format!("bench-{number}")
}

/// Ends all guests of this daemon and forgets them.
///
/// # Errors
/// One cannot be ended.
pub fn forget_all(daemon: &Daemon) -> Result<()> {
    for vm in daemon.cli_output(&["list", "--quiet"])?.lines() {
        daemon.cli(&["destroy", "--forget", vm])?;
    }
    Ok(())
}

/// What is measured beside many guests.
#[derive(Debug, Default)]
pub struct Crowd {
    /// Memory of each shim, in bytes.
    pub memory: Vec<u64>,
    /// Answers to `vm.list`.
    pub list: Vec<Duration>,
    /// Answers to `vm.get`.
    pub info: Vec<Duration>,
}

impl Ours {
    /// Deploys guests, looks at them, destroys them.
    ///
    /// # Errors
    /// One of it fails.
    pub fn crowd(&self) -> Result<Crowd> {
        let mut crowd = Crowd::default();
        for number in 1..=GUESTS {
            self.deploy(number)?;
        }
        for number in 1..=GUESTS {
            let info = self.call("vm.get", &json!({"vm": name(number)}))?;
            let shim = info["guest"]["shim"]["pid"].as_u64().context("no shim")?;
            crowd.memory.push(pss(shim)?);
        }
        let timed = |method: &str, params: &Value| -> Result<Duration> {
            let began = Instant::now();
            self.call(method, params)?;
            Ok(began.elapsed())
        };
        for question in 0..QUESTIONS {
            crowd.list.push(timed("vm.list", &json!({}))?);
            crowd.info.push(timed("vm.get", &json!({"vm": name(1 + question % GUESTS)}))?);
        }
        for number in 1..=GUESTS {
            self.destroy(number)?;
        }
        Ok(crowd)
    }
}

impl Ours {
    /// Asks for the statistics of many guests, again and again: time until each answer, and time of the
    /// daemon on processors for it.
    ///
    /// # Errors
    /// One of it fails.
    pub fn passes(&self, undo: &mut Undo) -> Result<Vec<(Duration, Duration)>> {
        for number in 1..=MANY_GUESTS {
            undo.check()?;
            if number > GUESTS {
                self.make_disk(number)?;
            }
            self.deploy(number)?;
        }
        let pid = self.daemon.pid()?;
        let pass = || -> Result<(Duration, Duration)> {
            let (began, before) = (Instant::now(), on_processors(pid)?);
            let reply = self.call("vm.stats", &json!({}))?;
            let took = began.elapsed();
            let seen = reply["vms"].as_array().map_or(0, Vec::len);
            if seen != MANY_GUESTS as usize {
                bail!("statistics of {seen} guests instead of {MANY_GUESTS}");
            }
            // The answer is sent by a thread that may still be at it.
            Ok((took, on_processors(pid)?.saturating_sub(before)))
        };
        // Files are opened by the first.
        pass()?;
        let passes: Result<Vec<_>> = (0..PASSES).map(|_| pass()).collect();
        for number in 1..=MANY_GUESTS {
            self.destroy(number)?;
        }
        passes
    }
}

/// Time of all threads of a process on processors (sched-stats.rst: /proc/PID/schedstat).
///
/// # Errors
/// The kernel does not tell.
pub fn on_processors(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("read its threads")? {
        let path = task?.path().join("schedstat");
        // A thread that ended meanwhile did nothing for us.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        total += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}

impl Contender for Ours {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn live(&mut self, _round: u32) -> Result<Life> {
        let began = Instant::now();
        let start = wall();
        self.deploy(0)?;
        let made = began.elapsed();
        let mut at = None;
        wait_until("the guest's first word", Duration::from_secs(20), || {
            at = stamp(&self.said(&name(0)));
            Ok(at.is_some())
        })?;
        let ending = Instant::now();
        self.destroy(0)?;
        let gone = ending.elapsed();
        let first = at.unwrap_or_default().saturating_sub(start);
        Ok(Life { first, made, gone })
    }
}

/// Proportional set size of a process (proc(5), smaps_rollup), in bytes.
///
/// # Errors
/// The kernel does not tell.
pub fn pss(pid: u64) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).context("no Pss")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib * 1024)
}
