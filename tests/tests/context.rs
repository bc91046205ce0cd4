//! What a guest is told, seen from inside it: by recorded calls of oned's driver, and by hand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests write files and run tools"
)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ocivisor_tests::{Answer, Call, Host, context_disk, tool, wait_for};

/// The recorded VM 13: its deploy, and the change of its context while it runs.
const DEPLOY: &str = "0480-vmm-deploy";
const PREPARE: &str = "0484-vmm-prereconfigure";
const CHANGE: &str = "0486-vmm-reconfigure";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx user@example";

fn inside(host: &Host, vm: &str, script: &str) -> Answer {
    host.cli(&["exec", vm, "--", "/bin/sh", "-c", script])
}

#[track_caller]
fn text(host: &Host, path: &str) -> String {
    inside(host, "one-13", &format!("cat {path}")).ok()
}

#[test]
fn an_application_of_a_plain_image_is_told_all_of_its_template() {
    let host = Host::start();
    host.add_disk(13);
    let mut deploy = Call::recorded(&host, DEPLOY)
        .with_context(&[
            ("TOKEN", "YES"),
            ("VMID", "13"),
            ("ONEGATE_ENDPOINT", "http://192.168.100.1:5030"),
            ("PASSWORD", "jFnZ5b9RuCa4uKrBkCdhqA=="),
            ("USERNAME", "dev"),
            ("SEARCH_DOMAIN", "example.org"),
        ])
        .with("sleep 1000", "cat /tmp/hello; sleep 1000");
    deploy.in_clear = vec![("PASSWORD".into(), "s3cr't".into())];
    let answer = host.driver(&deploy);
    assert_eq!((answer.code, answer.out.as_str()), (0, "one-13\n"), "{answer:?}");
    assert!(!answer.err.contains("CONTEXT"), "nothing of it is left out: {}", answer.err);

    assert_eq!(text(&host, "/etc/hostname"), "conf\n");
    assert_eq!(inside(&host, "one-13", "hostname -i").ok().trim(), "192.168.100.23");
    let resolv = text(&host, "/etc/resolv.conf");
    assert!(resolv.ends_with("search example.org\nnameserver 192.168.100.1\n"), "{resolv}");
    let keys = text(&host, "/home/dev/.ssh/authorized_keys");
    assert!(keys.contains(&format!("\n{KEY}\n")), "{keys}");
    let ids = inside(&host, "one-13", "stat -c '%a %u' /home/dev/.ssh /home/dev/.ssh/*").ok();
    assert_eq!(ids, "700 1001\n600 1001\n");
    assert_eq!(text(&host, "/etc/sudoers.d/one-context"), "dev ALL=(ALL) NOPASSWD:ALL\n");
    // The password is that of the disk, in clear: what the drivers' XML has, nobody could type.
    let login = "busybox su -c true dev; grep ^dev: /etc/shadow";
    let shadow = inside(&host, "one-13", login).ok();
    let hash = shadow.split(':').nth(1).unwrap();
    let made = format!("print crypt(\"s3cr't\", '{hash}') eq '{hash}' ? 'same' : 'other'");
    assert_eq!(tool(&["perl", "-e", &made]), "same");
    // The start script came before the program, as root.
    wait_for("the script's and the program's word", || match host.cli(&["logs", "one-13"]).ok() {
        log if log.contains("hello") => Ok(()),
        log => Err(log),
    });
    // What OpenNebula's own programs would look for.
    let env = inside(&host, "one-13", "tr '\\0' '\\n' < /proc/1/environ").ok();
    for line in ["ONEGATE_ENDPOINT=http://192.168.100.1:5030", "VMID=13"] {
        assert!(env.lines().any(|known| known == line), "{env}");
    }
    assert!(!env.contains("PASSWORD"), "{env}");
    assert_eq!(text(&host, "/context/token.txt"), context_disk::TOKEN);
    assert!(text(&host, "/context/context.sh").contains("SET_VAR='a b '\\''c'\\'' \"d\"'\n"));
    // Answers hide what only the guest may know.
    let info = host.info("one-13").unwrap().to_string();
    assert!(!info.contains("s3cr") && !info.contains("jFnZ5b9RuCa4uKrBkCdhqA"), "{info}");
}

#[test]
fn a_recorded_change_of_context_reaches_the_running_guest_and_its_next_boot() {
    let host = Host::start();
    host.add_disk(13);
    host.driver(&Call::recorded(&host, DEPLOY)).ok();
    let own = "ssh-rsa AAAA own";
    let path = "/root/.ssh/authorized_keys";
    inside(&host, "one-13", &format!("echo '{own}' >> {path}")).ok();
    let first = host.info("one-13").unwrap()["guest"]["init"].clone();
    for name in [PREPARE, CHANGE] {
        let answer = host.driver(&Call::recorded(&host, name));
        assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{answer:?}");
        assert!(answer.err.lines().all(|line| line.starts_with("INFO: ")), "{answer:?}");
    }
    let keys = text(&host, path);
    assert!(keys.contains("new user@example") && keys.contains(own), "{keys}");
    assert!(!keys.contains(KEY), "{keys}");
    assert!(text(&host, "/context/context.sh").contains("NEWVAR='1'"));
    assert_eq!(host.info("one-13").unwrap()["guest"]["init"], first, "it ran on");
    // The new script is for the next boot.
    host.driver(&Call::recorded(&host, "0082-vmm-reset").for_vm(0, 13)).ok();
    wait_for("the new script", || match host.cli(&["logs", "one-13"]).ok() {
        log if log.contains("updated") => Ok(()),
        log => Err(log),
    });
    assert!(text(&host, path).contains("new user@example"));

    // Without a disk it is told nothing, and said so; without a guest there is nobody to tell.
    let mut gone = Call::recorded(&host, CHANGE).with("NEWVAR", "NEWER");
    let script = host.driver_command(&gone).get_program().to_owned();
    std::fs::remove_file(host.vm_dir(13).join("disk.2")).unwrap();
    let output = run(&host, &script, &gone);
    assert_ne!(output.code, 0);
    assert!(
        output.err.contains("context disk") && output.err.contains("does not exist"),
        "{output:?}"
    );
    assert!(text(&host, "/context/context.sh").contains("NEWVAR='1'"), "as it was");
    host.driver(&Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 13)).ok();
    gone.in_clear.clear();
    let answer = host.driver(&gone);
    assert_eq!((answer.code, answer.out.as_str()), (0, ""), "{answer:?}");
    assert!(answer.err.contains("there is no guest"), "{answer:?}");
}

/// A driver script without what oned does before it.
fn run(host: &Host, script: &std::ffi::OsStr, call: &Call) -> Answer {
    let mut child = Command::new(script)
        .args(&call.arguments)
        .env("OCIVISOR_BIN", ocivisor_tests::bin_dir().join("ocivisor"))
        .env("OCIVISOR_SOCKET", host.socket())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&call.stdin).unwrap();
    let output = child.wait_with_output().unwrap();
    Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn a_busybox_system_runs_its_start_script_after_its_boot_scripts() {
    let host = Host::start();
    host.add_disk(13);
    let script = "echo $PPID $(id -u) > /tmp/hello";
    let deploy = Call::recorded(&host, DEPLOY)
        .with("echo hello > /tmp/hello", script)
        .with("<ENTRYPOINT><![CDATA[/bin/sh -c]]></ENTRYPOINT>", "<INIT>system</INIT>")
        .with("<CMD><![CDATA[sleep 1000]]></CMD>", "");
    host.driver(&deploy).ok();
    wait_for("the script", || match inside(&host, "one-13", "cat /tmp/hello").out {
        text if text == "1 0\n" => Ok(()),
        other => Err(other),
    });
    let inittab = text(&host, "/etc/inittab");
    assert!(inittab.ends_with("::once:/bin/sh /var/lib/ocivisor/start-script\n"), "{inittab}");
    assert_eq!(text(&host, "/etc/hostname"), "conf\n");
}

#[test]
fn a_system_that_reads_no_inittab_has_its_script_beside_it() {
    let host = Host::start();
    host.add_disk(13);
    let deploy = Call::recorded(&host, DEPLOY)
        .with("echo hello > /tmp/hello", "echo beside $(id -u) > /tmp/hello")
        .with("<![CDATA[/bin/sh -c]]></ENTRYPOINT>", "/sbin/init</ENTRYPOINT><INIT>system</INIT>")
        .with("<CMD><![CDATA[sleep 1000]]></CMD>", "");
    host.driver(&deploy).ok();
    wait_for("the script", || match inside(&host, "one-13", "cat /tmp/hello").out {
        text if text == "beside 0\n" => Ok(()),
        other => Err(other),
    });
    let comm = inside(&host, "one-13", "cat /proc/1/comm").ok();
    assert_eq!(comm, "init\n", "the image's init is the first process");
}

/// Makes a package and has apt install it from a file's address, as it would from a mirror.
const PACKAGE: &str = "set -e; cd /tmp; mkdir -p p/DEBIAN p/usr/bin mirror\n\
    printf 'Package: told-package\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@example.org>\\n\
    Description: none\\n' > p/DEBIAN/control\n\
    printf '#!/bin/sh\\necho installed\\n' > p/usr/bin/told-package; chmod 755 p/usr/bin/told-package\n\
    dpkg-deb --root-owner-group -b p mirror/told-package.deb >&2\n\
    apt-get install -qq -y ./mirror/told-package.deb >&2";

/// An ssh client with a key of its own, in the host's network.
struct Ssh<'a> {
    host: &'a Host,
    key: String,
}

impl<'a> Ssh<'a> {
    fn new(host: &'a Host) -> Self {
        let key = host.dir().join("key").display().to_string();
        tool(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tenant", "-f", &key]);
        Self { host, key }
    }

    fn public(&self) -> String {
        std::fs::read_to_string(format!("{}.pub", self.key)).unwrap().trim().to_owned()
    }

    fn run(&self, user: &str, command: &str) -> Answer {
        let at = format!("{user}@192.168.100.23");
        let mut words = vec!["ssh", "-F", "none", "-i", &self.key];
        for option in [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=10",
        ] {
            words.extend(["-o", option]);
        }
        words.extend([at.as_str(), command]);
        self.host.in_netns(&words)
    }
}

fn debian(host: &Host) {
    let tar = std::env::var("OCIVISOR_TEST_SYSTEMD_TAR");
    let tar = tar.expect("OCIVISOR_TEST_SYSTEMD_TAR is not set: use `cargo xtask test`");
    host.cli(&["image", "import", &format!("rootfs:{tar}"), "debian"]).ok();
    let disk = host.vm_dir(13).join("disk.0").display().to_string();
    host.cli(&["disk", "create", "--image", "debian", "--size", "1GiB", &disk]).ok();
}

/// The recorded VM as a system with a tenant's key.
fn system(host: &Host, key: &str) -> Call {
    let deploy = Call::recorded(host, DEPLOY).with(KEY, key);
    let text = String::from_utf8(deploy.stdin.clone()).unwrap();
    let (_, rest) = text.split_once("<OCI>").unwrap();
    let oci = format!("<OCI>{}</OCI>", rest.split("</OCI>").next().unwrap());
    let (_, rest) = text.split_once("<MEMORY>").unwrap();
    let memory = format!("<MEMORY>{}</MEMORY>", rest.split("</MEMORY>").next().unwrap());
    deploy.with(&oci, "").with(&memory, "<MEMORY>512</MEMORY>")
}

#[test]
fn a_tenant_logs_into_a_debian_system_by_ssh_with_the_key_of_its_context() {
    let host = Host::start();
    debian(&host);
    let ssh = Ssh::new(&host);
    let script = "#!/bin/sh\nsystemctl is-system-running > /root/state; echo told";
    let deploy = system(&host, &ssh.public())
        .with("echo hello > /tmp/hello", script)
        .with_context(&[("TIMEZONE", "Europe/Madrid"), ("CRYPTED_PASSWORD", "$6$salt$hash")]);
    assert_eq!(host.driver(&deploy).ok(), "one-13\n");
    wait_for("a login", || match ssh.run("root", "systemctl is-system-running") {
        Answer { out, .. } if out.trim() == "running" => Ok(()),
        Answer { out, .. } if out.trim() == "degraded" => {
            panic!("{:?}", ssh.run("root", "systemctl --failed --no-pager; journalctl -p err"))
        }
        other => Err(other),
    });
    let login = |command: &str| ssh.run("root", command).ok();
    assert_eq!(login("hostname; cat /etc/hostname; date +%Z"), "conf\nconf\nCET\n");
    assert_eq!(login("getent hosts conf").split_whitespace().next(), Some("192.168.100.23"));
    assert_eq!(login("getent shadow root").split(':').nth(1), Some("$6$salt$hash"));
    let unit = "systemctl show -p ActiveState,ExecMainStatus ocivisor-start-script";
    assert_eq!(login(unit), "ExecMainStatus=0\nActiveState=active\n");
    assert_eq!(login("cat /root/state | grep -cE 'running|starting'"), "1\n");
    let journal = login("journalctl --no-pager -u ocivisor-start-script");
    assert!(journal.contains("told"), "{journal}");
    assert!(login("journalctl --no-pager -n 3").lines().count() >= 3);
    assert_eq!(login("cat /etc/machine-id").trim().len(), 32);
    // Packages can be installed, by apt's own user where it downloads.
    login(PACKAGE);
    assert_eq!(login("apt-get check -qq; told-package"), "installed\n");

    // A user with a key, told while it runs; root's key is taken away.
    let change = Call::recorded(&host, CHANGE)
        .with("ssh-ed25519 AAAAC3Nza...new user@example", &ssh.public())
        .with_context(&[("USERNAME", "dev")]);
    host.driver(&change).ok();
    assert_eq!(ssh.run("dev", "id -un; pwd").ok(), "dev\n/home/dev\n");
    let refused = ssh.run("root", "true");
    assert!(refused.err.contains("Permission denied"), "{refused:?}");
    // A reboot from inside is a new boot of the guest, and is told as well: also what it broke itself.
    let id = inside(&host, "one-13", "cat /etc/machine-id; rm /home/dev/.ssh/authorized_keys").ok();
    let first = host.info("one-13").unwrap()["guest"]["init"].clone();
    // The guest may be gone before the answer is.
    inside(&host, "one-13", "systemctl reboot");
    wait_for("another boot", || match host.info("one-13").unwrap() {
        info if info["op"].is_null() && info["guest"]["init"] != first => Ok(()),
        info => Err(info["state"].clone()),
    });
    // The same machine, whose time zone is told no more.
    let now = format!("{id}Etc/UTC\nconf\n");
    let command = "cat /etc/machine-id /etc/timezone /etc/hostname";
    wait_for("a login after the reboot", || match ssh.run("dev", command) {
        Answer { code: 0, out, .. } if out == now => Ok(()),
        other => Err(other),
    });
}

/// A process on the host that keeps the guest's passwd file locked, as a tool in the guest would.
fn hold_lock(file: &Path) -> Child {
    let script = "import fcntl, sys\n\
                  f = open(sys.argv[1], 'a')\n\
                  fcntl.lockf(f, fcntl.LOCK_EX)\n\
                  print('held', flush=True)\n\
                  sys.stdin.read()";
    let mut holder = Command::new("python3")
        .args(["-c", script])
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    holder
}

/// Processes that tell guests of this host.
fn tellers(host: &Host) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap();
    let ids = processes.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let dir = host.run_dir().display().to_string();
    ids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("\0tell\0") && line.contains(&dir)
    })
    .collect()
}

#[test]
fn a_daemon_or_teller_killed_in_the_middle_of_a_telling_is_made_up_for() {
    let mut host = Host::start();
    host.add_disk(13);
    host.driver(&Call::recorded(&host, DEPLOY)).ok();
    let root = host.run_dir().join("vms/one-13/root");
    let lock = root.join("etc/.pwd.lock");
    inside(&host, "one-13", "touch /etc/.pwd.lock").ok();
    let change = Call::recorded(&host, CHANGE).with_context(&[("USERNAME", "dev")]);
    for kill_daemon in [false, true] {
        let mut holder = hold_lock(&lock);
        let mut driver = host.driver_command(&change).spawn().unwrap();
        driver.stdin.take().unwrap().write_all(&change.stdin).unwrap();
        // One on the host, and its child in the guest.
        wait_for("a telling", || match tellers(&host) {
            all if all.len() == 2 => Ok(()),
            all => Err(all),
        });
        if kill_daemon {
            host.kill_daemon();
        } else {
            for pid in tellers(&host) {
                // The child ends with its parent, perhaps before it is its turn.
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
            }
        }
        if kill_daemon {
            wait_for("the end of the telling", || match tellers(&host) {
                all if all.is_empty() => Ok(()),
                all => Err(all),
            });
        }
        drop(holder.stdin.take());
        holder.wait().unwrap();
        if kill_daemon {
            host.start_daemon();
        }
        let answer = driver.wait_with_output().unwrap();
        wait_for("rest", || match host.info("one-13").unwrap() {
            info if info["op"].is_null() => Ok(()),
            info => Err(info["op"].clone()),
        });
        let told = inside(&host, "one-13", "cat /home/dev/.ssh/authorized_keys").out;
        if kill_daemon {
            // The change is carried out by the next daemon, and the driver hears of it.
            assert!(answer.status.success(), "{answer:?}");
            assert!(told.contains("new user@example"), "{told}");
        } else {
            // The change failed, and the guest is told the old context again.
            assert!(!answer.status.success(), "{answer:?}");
            assert_eq!(told, "");
            assert!(text(&host, "/root/.ssh/authorized_keys").contains(KEY));
        }
        let id = host.info("one-13").unwrap()["spec"]["context"]["user"].clone();
        assert_eq!(id, if kill_daemon { "dev".into() } else { serde_json::Value::Null });
    }
}

#[test]
fn an_image_that_leads_out_of_the_guest_is_told_inside() {
    let host = Host::start();
    // Links out of the root, as a layer may hold them.
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    let busybox = host.dir().join("busybox.tar").display().to_string();
    let dir = root.path().display().to_string();
    tool(&["tar", "-C", &dir, "-xf", &busybox]);
    let target = host.dir().join("host-file");
    std::fs::write(&target, "host's").unwrap();
    for (name, to) in [("etc/hostname", target.to_str().unwrap()), ("etc/hosts", "/etc/shadow")] {
        std::os::unix::fs::symlink(to, path(name)).unwrap();
    }
    tool(&["mkfifo", path("etc/resolv.conf").to_str().unwrap()]);
    let tar = host.dir().join("hostile.tar").display().to_string();
    tool(&["tar", "--numeric-owner", "--owner=0", "--group=0", "-C", &dir, "-cf", &tar, "."]);
    host.cli(&["image", "import", &format!("rootfs:{tar}"), "hostile"]).ok();
    let disk = host.vm_dir(13).join("disk.0").display().to_string();
    host.cli(&["disk", "create", "--image", "hostile", "--size", "64MiB", &disk]).ok();
    let hosts = std::fs::read("/etc/hosts").ok();
    host.driver(&Call::recorded(&host, DEPLOY)).ok();
    assert_eq!(text(&host, "/etc/hostname"), "conf\n");
    assert!(text(&host, "/etc/resolv.conf").contains("nameserver 192.168.100.1"));
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "host's");
    assert_eq!(std::fs::read("/etc/hosts").ok(), hosts);
}
