//! Images that are machines: each boots by its own init, takes logins on its console, goes down by the signal that
//! its init knows, and reboots, by us and by itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests start the programs under test"
)]

use std::io::Write;
use std::process::{Child, ChildStdin, Stdio};

use ocivisor_tests::{Counts, Host, image, wait_for};

/// Signals that tell how a pid namespace ended (reboot(2)).
const RESTARTED: u64 = 1;
const HALTED: u64 = 2;

const PASSWORD: &str = "secret";

/// A virtual machine on a host, and somebody at its console.
struct Machine {
    host: Host,
    /// What the host held before.
    before: Counts,
    console: Child,
    keyboard: ChildStdin,
    /// How much of the console has been looked at.
    seen: usize,
}

impl Machine {
    /// Boots an image from that tarball.
    fn boot(host: Host, tar: &str, size: &str) -> Self {
        host.cli(&["image", "import", &format!("rootfs:{tar}"), "system"]).ok();
        let disk = host.dir().join("disk").display().to_string();
        host.cli(&["disk", "create", "--image", "system", "--size", size, &disk]).ok();
        let before = host.counts();
        host.cli(&["define", "vm", "--disk", &disk, "--memory", "512MiB"]).ok();
        host.cli(&["start", "vm"]).ok();
        let info = host.info("vm").unwrap();
        assert_eq!(info["guest"]["kind"], "system");
        let (console, keyboard) = attach(&host);
        Self { host, before, console, keyboard, seen: 0 }
    }

    fn stop_signal(&self) -> u64 {
        self.host.info("vm").unwrap()["guest"]["stop_signal"].as_u64().unwrap()
    }

    fn inside(&self, command: &[&str]) -> String {
        self.host.cli(&[&["exec", "vm", "--"], command].concat()).ok()
    }

    /// Waits until the console shows this, after what was waited for before.
    fn reads(&mut self, text: &str) {
        let mut end = 0;
        wait_for(text, || {
            let log = self.host.cli(&["logs", "vm"]).ok();
            let new = log.get(self.seen..).unwrap_or_default();
            match new.find(text) {
                Some(at) => {
                    end = self.seen + at + text.len();
                    Ok(())
                }
                None => Err(new.to_owned()),
            }
        });
        self.seen = end;
    }

    fn types(&mut self, line: &str) {
        writeln!(self.keyboard, "{line}").unwrap();
    }

    /// Logs in as root, on the console.
    fn logs_in(&mut self) {
        self.reads("login: ");
        self.types("root");
        self.reads("Password: ");
        self.types(PASSWORD);
        // What is typed before there is a shell is thrown away.
        self.reads("# ");
        // Not what the terminal echoes.
        self.types("echo in-$((40+2))");
        self.reads("in-42");
    }

    fn pid(&self) -> Option<u64> {
        self.host.info("vm").unwrap()["guest"]["init"]["pid"].as_u64()
    }

    /// Waits until another guest runs than that of this pid, and sits down at its console.
    fn another_than(&mut self, pid: u64) {
        wait_for("another boot", || match (self.pid(), self.host.info("vm").unwrap()) {
            (Some(now), info) if now != pid && info["op"].is_null() => Ok(()),
            (_, info) => Err(info),
        });
        self.leave();
        (self.console, self.keyboard) = attach(&self.host);
    }

    fn leave(&mut self) {
        // It may have ended with its guest.
        let _ = self.console.kill();
        self.console.wait().unwrap();
    }

    /// Reboots it from outside, and by itself, with a login each time.
    fn reboots(&mut self, down: &str, command: &[&str]) {
        let first = self.pid().unwrap();
        self.host.cli(&["reboot", "vm"]).ok();
        self.reads(down);
        self.another_than(first);
        self.logs_in();
        let second = self.pid().unwrap();
        // It ends the session that asks for it, too.
        self.host.cli(&[&["exec", "vm", "--"], command].concat());
        self.reads(down);
        self.another_than(second);
        self.logs_in();
    }

    /// Shells on its console never had to do without what Ctrl-C and Ctrl-Z take.
    fn has_job_control(&self) {
        let log = self.host.cli(&["logs", "vm"]).ok();
        assert!(!log.contains("job control"), "{log}");
    }

    /// Shuts it down from outside; it says `down`, and ends by itself.
    fn shuts_down(&mut self, down: &str, how: u64) {
        self.host.cli(&["shutdown", "vm", "--no-force"]).ok();
        self.reads(down);
        let info = self.host.info("vm").unwrap();
        assert_eq!(info["state"]["name"], "stopped");
        assert_eq!(info["last_exit"]["signal"], how, "{info}");
        self.leave();
        self.host.cli(&["undefine", "vm"]).ok();
        assert_eq!(self.host.counts(), self.before);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- console ---\n{}", self.host.cli(&["logs", "vm"]).out);
        }
        let _ = self.console.kill();
        let _ = self.console.wait();
    }
}

fn attach(host: &Host) -> (Child, ChildStdin) {
    let mut console = host.cli_command(&["console", "vm"]);
    let mut console = console.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let keyboard = console.stdin.take().unwrap();
    (console, keyboard)
}

fn tar(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: use `cargo xtask test`"))
}

#[test]
fn busybox_boots_takes_logins_reboots_and_powers_off() {
    let host = Host::start();
    let tar = host.dir().join("system.tar");
    // `openssl passwd -6 secret`
    let passwd = "root:$6$ocivisor$fnZT5yzmFXl5igTq4VVZnZndklRahplX7jTBskzjKur5ocTCjsXedhFGz37Qu7.\
                  Ufwq7n1WWqxh9KfIEgbxMu0:0:0:root:/root:/bin/sh\n";
    let inittab = "::sysinit:/etc/init.d/rcS\n\
                   console::respawn:/bin/getty -L 38400 console\n\
                   ::shutdown:/bin/echo down by init\n";
    let files = [("etc/passwd", passwd), ("etc/inittab", inittab)];
    image::busybox_with(&tar, &files);
    let mut vm = Machine::boot(host, &tar.display().to_string(), "64MiB");
    assert_eq!(vm.stop_signal(), 12, "SIGUSR2");
    vm.logs_in();
    // Whoever leaves the shell finds another prompt.
    vm.types("exit");
    vm.logs_in();
    vm.reboots("down by init", &["reboot"]);
    vm.has_job_control();
    vm.shuts_down("down by init", HALTED);
}

#[test]
fn debian_with_sysvinit_boots_takes_logins_reboots_and_goes_down() {
    let tar = tar("OCIVISOR_TEST_SYSVINIT_TAR");
    let mut vm = Machine::boot(Host::start(), &tar, "1GiB");
    assert_eq!(vm.stop_signal(), 2, "SIGINT");
    // As it comes, its prompts are on tty1 to tty6, of a screen that it has not.
    vm.reads("Entering runlevel: 2");
    let getty = "co:2345:respawn:/sbin/getty --noclear 38400 console";
    let add =
        format!("echo '{getty}' >> /etc/inittab && echo root:{PASSWORD} | chpasswd && telinit q");
    vm.inside(&["/bin/sh", "-c", &add]);
    vm.logs_in();
    assert_eq!(vm.inside(&["runlevel"]), "N 2\n");
    vm.reboots("Will now restart", &["/sbin/reboot"]);
    // By Ctrl-Alt-Del: its way down ends in a restart, of which nothing comes.
    vm.shuts_down("Will now restart", RESTARTED);
}

#[test]
fn debian_13_boots_without_a_failed_unit_takes_logins_reboots_and_powers_off() {
    let tar = tar("OCIVISOR_TEST_TRIXIE_TAR");
    let mut vm = Machine::boot(Host::start(), &tar, "1GiB");
    assert_eq!(vm.stop_signal(), 37, "SIGRTMIN+3");
    let state = || vm.host.cli(&["exec", "vm", "--", "systemctl", "is-system-running"]).out;
    wait_for("systemd's target", || match state().trim() {
        "running" => Ok(()),
        "degraded" => panic!("{}", vm.inside(&["systemctl", "--failed", "--no-pager"])),
        other => Err(other.to_owned()),
    });
    assert_eq!(vm.inside(&["cat", "/proc/1/comm"]), "systemd\n");
    let journal = ["journalctl", "--no-pager", "--output=cat", "--unit=console-getty.service"];
    assert!(vm.inside(&journal).contains("Started console-getty.service"));
    vm.inside(&["/bin/sh", "-c", &format!("echo root:{PASSWORD} | chpasswd")]);
    vm.logs_in();
    let down = "Sending SIGTERM to remaining processes";
    vm.reboots(down, &["systemctl", "reboot"]);
    vm.has_job_control();
    vm.shuts_down(down, HALTED);
}
