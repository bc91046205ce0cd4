//! Displays: one `ocivisor-vnc` for each guest that wishes for a VNC console.
//!
//! ```text
//!   bind the port ─► password into a pipe ─► spawn ─► it joins +vnc/<vm>, confines itself, writes vnc.json ─► `ready`
//! ```
//!
//! We bind, so that a port that is taken is a plain error before anything was made, and so that the program needs no
//! right to bind. It then depends on nobody: not on us, not on the shim, not on the guest. A later daemon finds it by
//! its record and its control group; one that died before it wrote the record, by the group alone.
//!
//! Who faces the network is the *last* id of the VM's own range: another one for each VM, so that none can touch
//! another's, and one that hardly a guest has a user for (65535 is no id where ids have 16 bits). One that does gains
//! nothing by it: the guest sees no process of the host.

use std::fs as stdfs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::{IdRange, VmId};
use ocivisor_core::ports::Displays;
use ocivisor_core::spec::{Graphics, Secret};
use ocivisor_core::state::ProcessRef;
use ocivisor_shim::{facts, json};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::HostGuests;
use super::adapter::{DEATH, boot_id, kill_and_wait, suffixed};
use super::spawn::quiet;
use super::sys::Life;
use crate::fs;
use crate::layout::VmRun;
use crate::process;

/// Characters of a password that count: RFB's authentication is a DES key of so many bytes (RFC 6143, 7.2.2).
const MAX_PASSWORD: usize = 8;

/// What `vnc.json` says.
struct Known {
    keeper: ProcessRef,
    listen: Vec<SocketAddr>,
    password: bool,
    host_boot: String,
}

impl Known {
    /// Whether it was made for this wish, as far as the record tells: a password is changed by a new boot alone.
    fn serves(&self, graphics: &Graphics) -> bool {
        let wished = SocketAddr::new(graphics.listen, graphics.port);
        self.listen == [wished] && self.password == graphics.password.is_some()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let value = json::parse(bytes)?;
        let process = value.get("vnc")?;
        let listen = value.text("listen")?.split_whitespace().map(str::parse);
        Some(Self {
            keeper: ProcessRef {
                pid: u32::try_from(process.number("pid")?).ok()?,
                start_ticks: process.number("start_ticks")?,
            },
            listen: listen.collect::<std::result::Result<_, _>>().ok()?,
            password: value.bool("password")?,
            host_boot: value.text("host_boot")?.to_owned(),
        })
    }
}

impl HostGuests {
    /// The VM's display, and what becomes readable when it ends; `None` if there is none.
    #[must_use]
    pub fn display_fd(&self, id: &VmId) -> Option<(ProcessRef, OwnedFd)> {
        let keeper = known(&self.settings.layout.run_vm(id))?.keeper;
        Some((keeper, process::pidfd(keeper)?))
    }

    fn spawn_display(&self, id: &VmId, graphics: &Graphics, ids: IdRange) -> Result<()> {
        let settings = &self.settings;
        let listener = listen(graphics).map_err(|e| e.context(format!("vnc of vm {id}")))?;
        let procs = settings.cgroups.ensure_display_procs(id)?;
        let run = settings.layout.run_vm(id);
        let user = ids.base + (IdRange::LEN - 1);

        let mut command = quiet(&settings.vnc_bin);
        command.args(["--name", id.as_str(), "--vm-dir"]).arg(run.dir());
        command.arg("--socket").arg(run.shim_socket()).arg("--cgroup-procs").arg(procs);
        command.args(["--uid", &user.to_string(), "--gid", &user.to_string()]);
        // Few lines, for the same reader as ours: whom it turned away.
        command.stderr(Stdio::inherit());
        let mut descriptors: Vec<(&str, BorrowedFd<'_>)> = vec![("--listen-fd", listener.as_fd())];
        let password = graphics.password.as_ref().map(in_pipe).transpose();
        let password = password.map_err(|e| {
            Error::new(ErrorKind::Host, format!("vnc of vm {id}: pass the password on: {e}"))
        })?;
        match &password {
            Some(pipe) => descriptors.push(("--password-fd", pipe.as_fd())),
            None => drop(command.arg("--no-password")),
        }
        let ready = |line: &str, child: u32| {
            let mut words = line.strip_prefix("ready ")?.split(' ');
            let pid = words.next()?.parse().ok().filter(|pid: &u32| *pid == child)?;
            let _start_ticks: u64 = words.next()?.parse().ok()?;
            words.next().is_none().then_some(pid)
        };
        self.spawn(id, &settings.vnc_bin, command, &descriptors, Life::Own, ready).map(drop)
    }
}

impl Displays for HostGuests {
    fn ensure_display(&self, id: &VmId, graphics: &Graphics, ids: IdRange) -> Result<()> {
        self.reap();
        if self.observe_display(id, graphics)? {
            return Ok(());
        }
        // What a crash left, or another wish.
        self.drop_display(id)?;
        self.spawn_display(id, graphics, ids).inspect_err(|_| {
            // The first error is the one to report, and every undo drops the display again.
            let _ = self.drop_display(id);
        })
    }

    fn drop_display(&self, id: &VmId) -> Result<()> {
        let run = self.settings.layout.run_vm(id);
        if let Some(known) = known(&run) {
            kill_and_wait(known.keeper, DEATH).map_err(|e| e.context(format!("vnc of vm {id}")))?;
        }
        self.settings.cgroups.drop_display(id)?;
        self.reap();
        fs::drop_file(&suffixed(&run.display_record(), ".new"))?;
        fs::drop_file(&run.display_record())
    }

    fn observe_display(&self, id: &VmId, graphics: &Graphics) -> Result<bool> {
        let known = known(&self.settings.layout.run_vm(id));
        Ok(known.is_some_and(|it| it.serves(graphics) && process::is_alive(it.keeper)))
    }

    fn observe_displays(&self) -> Result<std::collections::BTreeSet<VmId>> {
        let mut seen = self.settings.cgroups.observe_displays()?;
        let dir = self.settings.layout.run_vms();
        let entries = match stdfs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(seen),
            Err(e) => return Err(fs::io_error("list", &dir, &e)),
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let ids = names.filter_map(|name| name.parse::<VmId>().ok());
        seen.extend(ids.filter(|id| {
            self.settings.layout.run_vm(id).display_record().symlink_metadata().is_ok()
        }));
        Ok(seen)
    }
}

/// The record; none, or one that cannot be read, tells nothing: the control group still knows.
fn known(run: &VmRun) -> Option<Known> {
    let bytes = fs::read_bounded(&run.display_record(), facts::MAX_FILE).ok()??;
    let known = Known::parse(&bytes)?;
    // Of another boot it names processes that are gone, or others.
    (known.host_boot == boot_id().ok()?).then_some(known)
}

fn listen(graphics: &Graphics) -> Result<TcpListener> {
    let at = SocketAddr::new(graphics.listen, graphics.port);
    TcpListener::bind(at).map_err(|e| {
        let errno = Errno::from_io_error(&e);
        match errno {
            Some(Errno::ADDRINUSE) => {
                let what = format!("port {} of {} is in use", graphics.port, graphics.listen);
                Error::new(ErrorKind::Conflict, what).hint("`ss -ltnp` shows by whom")
            }
            Some(Errno::ADDRNOTAVAIL) => {
                let what = format!("this host has no address {}", graphics.listen);
                Error::new(ErrorKind::NotFound, what).hint("listen on one of the host's own")
            }
            _ => Error::new(ErrorKind::Host, format!("listen on {at}: {e}")),
        }
    })
}

/// A pipe that holds the password and ends after it. It is short enough never to wait.
fn in_pipe(Secret(text): &Secret) -> io::Result<OwnedFd> {
    let (pipe, far) = pipe_with(PipeFlags::CLOEXEC)?;
    stdfs::File::from(far).write_all(&text.as_bytes()[..text.len().min(MAX_PASSWORD)])?;
    Ok(pipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    fn wish(listen: &str, port: u16) -> Graphics {
        Graphics { listen: listen.parse().unwrap(), port, password: None }
    }

    #[test]
    fn a_display_serves_the_wish_that_it_was_made_for() {
        let record = |password: bool| {
            let text = format!(
                "{{\"version\":1,\"vnc\":{{\"pid\":7,\"start_ticks\":100}},\
                 \"listen\":\"[::1]:5942\",\"password\":{password},\"host_boot\":\"x\"}}"
            );
            Known::parse(text.as_bytes()).unwrap()
        };
        let open = wish("::1", 5942);
        let closed = Graphics { password: Some(Secret("secret".to_owned())), ..open.clone() };
        assert!(record(false).serves(&open) && record(true).serves(&closed));
        assert!(!record(true).serves(&open) && !record(false).serves(&closed));
        for other in [wish("::1", 5943), wish("127.0.0.1", 5942)] {
            assert!(!record(false).serves(&other));
        }
    }

    #[test]
    fn a_record_of_another_boot_tells_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { run: dir.path().to_owned(), ..Layout::system() };
        let run = layout.run_vm(&"one-42".parse().unwrap());
        stdfs::create_dir_all(run.dir()).unwrap();
        for (boot, told) in [(boot_id().unwrap(), true), ("another".to_owned(), false)] {
            let text = format!(
                "{{\"vnc\":{{\"pid\":7,\"start_ticks\":100}},\"listen\":\"[::1]:5942\",\
                 \"password\":false,\"host_boot\":\"{boot}\"}}"
            );
            let mut file = stdfs::File::create(run.display_record()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            assert_eq!(known(&run).is_some(), told, "{boot}");
        }
    }

    #[test]
    fn what_cannot_be_listened_on_is_said_plainly() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = listen(&wish("127.0.0.1", port)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert_eq!(error.message, format!("port {port} of 127.0.0.1 is in use"));
        // TEST-NET-1, RFC 5737: nobody's.
        let error = listen(&wish("192.0.2.1", 5900)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        assert_eq!(error.message, "this host has no address 192.0.2.1");
        drop(taken);
        listen(&wish("127.0.0.1", port)).unwrap();
    }

    #[test]
    fn of_a_password_what_counts_is_passed_on() {
        for (text, passed) in [("secret", "secret"), ("twelve chars", "twelve c")] {
            let mut read = String::new();
            let pipe = in_pipe(&Secret(text.to_owned())).unwrap();
            io::Read::read_to_string(&mut stdfs::File::from(pipe), &mut read).unwrap();
            assert_eq!(read, passed);
        }
    }
}
