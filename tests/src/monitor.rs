//! OpenNebula's monitor, as agents of hosts see it: it begins and ends them by their script, and listens.

use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::{Answer, Host, repository, wait_for_option};

/// What an agent sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// How: `udp` or `tcp`.
    pub by: &'static str,
    /// What about.
    pub kind: String,
    /// `SUCCESS` or `FAILURE`.
    pub status: String,
    /// The host's number.
    pub host: String,
    /// The text.
    pub text: String,
}

impl Heard {
    fn read(by: &'static str, bytes: &[u8]) -> Self {
        let message = std::str::from_utf8(bytes).expect("a message is text");
        let words: Vec<&str> = message.split(' ').collect();
        let [kind, status, host, time, packed] = words[..] else { panic!("{message}") };
        assert!(time.parse::<u64>().unwrap() > 1_700_000_000, "{message}");
        let (packed, mut text) = (STANDARD.decode(packed).unwrap(), String::new());
        flate2::read::ZlibDecoder::new(packed.as_slice()).read_to_string(&mut text).unwrap();
        let [kind, status, host] = [kind, status, host].map(str::to_owned);
        Self { by, kind, status, host, text }
    }
}

/// A monitor on the loopback, with the scripts of a host.
#[derive(Debug)]
pub struct Monitor {
    dir: PathBuf,
    number: u32,
    port: u16,
    socket: PathBuf,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// Whether it is one of OpenNebula 6.10.
    old: bool,
}

impl Monitor {
    /// Listens for the host of that number; scripts and state are in the host's directory.
    #[must_use]
    pub fn listen(host: &Host, number: u32) -> Self {
        let udp = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        let port = udp.local_addr().unwrap().port();
        let tcp = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (datagrams, connections) = (Arc::clone(&heard), Arc::clone(&heard));
        std::thread::spawn(move || {
            let mut bytes = vec![0; 70_000];
            while let Ok(n) = udp.recv(&mut bytes) {
                datagrams.lock().unwrap().push(Heard::read("udp", &bytes[..n]));
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let mut bytes = Vec::new();
                stream.unwrap().read_to_end(&mut bytes).unwrap();
                connections.lock().unwrap().push(Heard::read("tcp", &bytes));
            }
        });
        let monitor = Self {
            dir: host.dir().join(format!("monitor-{number}")),
            number,
            port,
            socket: host.socket(),
            heard,
            old: false,
        };
        monitor.copy_scripts();
        let config = format!(
            "daemon_timeout = 2\n[monitoring]\nstate_dir = \"{}\"\n",
            host.dir().join("db/ocivisor").display()
        );
        std::fs::write(monitor.config(), config).unwrap();
        monitor
    }

    /// The same, of OpenNebula 6.10: its configuration has no `EXEC_VM`, and messages of that kind are none to it.
    #[must_use]
    pub fn of_6_10(mut self) -> Self {
        self.old = true;
        self
    }

    fn config(&self) -> PathBuf {
        self.dir.join("opennebula.toml")
    }

    fn scripts(&self) -> PathBuf {
        self.dir.join("one/im/ocivisor.d")
    }

    /// What `rsync --delete` does before each start.
    pub fn copy_scripts(&self) {
        let _absent = std::fs::remove_dir_all(self.dir.join("one"));
        std::fs::create_dir_all(self.scripts()).unwrap();
        let ours = "driver-scripts/opennebula/remotes/im/ocivisor.d/ocivisor_control.sh";
        let script = self.scripts().join("ocivisor_control.sh");
        std::fs::copy(repository().join(ours), script).unwrap();
        std::fs::write(self.dir.join("one/VERSION"), "7.4.0").unwrap();
    }

    /// The recorded configuration, with our port, the host's number, the datastores of this host and periods of a second.
    fn configuration(&self, host: &Host) -> String {
        let recorded = repository().join("tests/fixtures/opennebula/monitor-configuration.xml");
        let mut text = std::fs::read_to_string(recorded).unwrap();
        let mut replace = |from: &str, to: String| {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, &to);
        };
        replace("<PORT><![CDATA[4124]]>", format!("<PORT><![CDATA[{}]]>", self.port));
        replace("<HOST_ID>0<", format!("<HOST_ID>{}<", self.number));
        replace("/var/lib/one//datastores", format!("{}//ds", host.dir().display()));
        for (kind, seconds) in [
            ("BEACON_HOST", 30),
            ("EXEC_VM", 5),
            ("MONITOR_HOST", 120),
            ("MONITOR_VM", 30),
            ("STATE_VM", 5),
            ("SYNC_STATE_VM", 180),
        ] {
            let own = if kind == "SYNC_STATE_VM" { 3 } else { 1 };
            replace(
                &format!("<{kind}><![CDATA[{seconds}]]>"),
                format!("<{kind}><![CDATA[{own}]]>"),
            );
        }
        if self.old {
            replace("<EXEC_VM><![CDATA[1]]></EXEC_VM>", String::new());
            replace("<ADDRESS><![CDATA[127.0.0.1]]>", "<ADDRESS><![CDATA[0.0.0.0]]>".into());
        }
        text
    }

    fn command(&self, first: &[&str]) -> Command {
        let mut command = Command::new(self.scripts().join("ocivisor_control.sh"));
        command
            .args(first)
            .args(["ocivisor", &self.number.to_string(), "host01"])
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/games")
            .env("SSH_CLIENT", "127.0.0.1 35720 22")
            .env("OCIVISOR_BIN", crate::bin_dir().join("ocivisor"))
            .env("OCIVISOR_SOCKET", &self.socket)
            .env("OCIVISOR_OPENNEBULA_CONFIG", self.config());
        command
    }

    fn call(&self, host: &Host, first: &[&str]) -> Answer {
        // Calls may be made at once.
        let stdin = self.dir.join(format!("stdin-{:?}", std::thread::current().id()));
        std::fs::write(&stdin, self.configuration(host)).unwrap();
        let mut command = self.command(first);
        command.current_dir(self.scripts());
        command.stdin(std::fs::File::open(stdin).unwrap()).stdout(Stdio::piped());
        let output = command.stderr(Stdio::piped()).output().unwrap();
        Answer::of(&output)
    }

    /// Begins the agent as another user, whose the directory of agents is then.
    pub fn start_as(&self, host: &Host, uid: u32) -> Answer {
        let state = host.dir().join("db");
        std::fs::create_dir_all(&state).unwrap();
        std::os::unix::fs::chown(&state, Some(uid), Some(uid)).unwrap();
        host.as_user(uid, &self.command(&[]), self.configuration(host).as_bytes())
    }

    /// Begins the agent, as `run_monitord_client` does: its streams are read until they are closed.
    pub fn start(&self, host: &Host) -> Answer {
        self.call(host, &[])
    }

    /// Ends it, as `stop_monitord_client` does.
    pub fn stop(&self, host: &Host) -> Answer {
        self.call(host, &["stop"])
    }

    /// For the scripts of virtual machines: they share the configuration.
    #[must_use]
    pub fn with_config(&self, mut command: Command) -> Command {
        command.env("OCIVISOR_OPENNEBULA_CONFIG", self.config());
        command
    }

    /// The agent's process.
    #[must_use]
    pub fn agent(&self) -> Option<u32> {
        let seat = self.dir.with_file_name(format!("db/ocivisor/host-{}", self.number));
        let held: serde_json::Value = serde_json::from_slice(&std::fs::read(seat).ok()?).ok()?;
        let pid = u32::try_from(held["agent"][0].as_u64()?).ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        (line == b"ocivisor\0one\0agent\0").then_some(pid)
    }

    /// How long starts wait for a daemon that does not answer, in seconds.
    pub fn wait_for_daemon(&self, seconds: u32) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        let own = format!("daemon_timeout = {seconds}\n");
        std::fs::write(self.config(), text.replace("daemon_timeout = 2\n", &own)).unwrap();
    }

    /// The number of the newest ticket, and whether it is a start's or a stop's.
    #[must_use]
    pub fn ticket(&self) -> Option<(u64, String)> {
        let path = self.dir.with_file_name(format!("db/ocivisor/ticket-{}", self.number));
        let text = std::fs::read_to_string(path).ok()?;
        let (number, order) = text.trim_end().split_once(' ')?;
        Some((number.parse().ok()?, order.to_owned()))
    }

    /// All that was heard so far.
    #[must_use]
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// Forgets what was heard so far.
    pub fn forget(&self) {
        self.heard.lock().unwrap().clear();
    }

    /// Waits until `count` messages of that kind hold that text, and gives the last one's.
    #[track_caller]
    pub fn hears(&self, kind: &str, text: &str, count: usize) -> String {
        let found = wait_for_option(crate::PATIENCE, || {
            let all = self.heard();
            let mut fitting = all.iter().filter(|h| h.kind == kind && h.text.contains(text));
            fitting.nth(count - 1).map(|heard| heard.text.clone())
        });
        found.unwrap_or_else(|| panic!("no {kind} with {text}: {:#?}", self.heard()))
    }
}

impl Drop for Monitor {
    /// A test that failed leaves no agent.
    fn drop(&mut self) {
        if let Some(pid) = self.agent() {
            let _gone = Command::new("kill").args(["-9", &pid.to_string()]).output();
        }
    }
}
