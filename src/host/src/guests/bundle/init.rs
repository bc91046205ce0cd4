//! Which kind of guest an image makes, and which init it has.

use std::path::{Path, PathBuf};

use ocivisor_context::Runner;
use ocivisor_core::error::Result;
use ocivisor_core::spec::{Boot, InitKind};
use ocivisor_core::state::GuestKind;
use rustix::fs::FileType;

use super::image::ImageConfig;
use super::rootfs::GuestRoot;

/// Where inits are, most specific first.
const PLACES: [&str; 5] = [
    "/sbin/init",
    "/usr/sbin/init",
    "/usr/lib/systemd/systemd",
    "/lib/systemd/systemd",
    "/etc/init",
];

/// sysvinit's configuration; no other init but busybox has one of that name.
const INITTAB: &str = "/etc/inittab";
/// Most bytes of it.
const INITTAB_MAX: u64 = 1 << 20;

/// Commands that an image of a bare operating system has because it must have one.
const SHELLS: [&str; 7] = ["sh", "bash", "ash", "dash", "zsh", "ksh", "fish"];

/// Programs by their own name, which tells how they want to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// systemd: `SIGRTMIN+3` halts (systemd(1), Signals).
    Systemd,
    /// busybox init: `SIGUSR2` powers off; older ones ignore `SIGPWR`.
    Busybox,
    /// sysvinit, by what its inittab says, see [`sysvinit`].
    Sysvinit(Sysvinit),
    /// openrc-init (`SIGPWR` shuts down), runit-init and others.
    Other,
}

/// What an inittab(5) has for us. All init does by itself on a signal is to run an entry of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sysvinit {
    /// `SIGPWR` shuts down: somebody made it for containers.
    PowerFail,
    /// `SIGINT`, as Ctrl-Alt-Del on a keyboard. What distributions have there is an orderly way
    /// down followed by a restart; that restart is where the first process ends, and whether another one
    /// begins is ours to decide. (Their `powerfail` entries wait for a UPS to come back, or name a
    /// script that is not there.)
    CtrlAltDel,
}

impl Flavour {
    /// Signal that makes it shut down.
    #[must_use]
    pub fn stop_signal(self) -> u8 {
        match self {
            Self::Systemd => 37,
            Self::Busybox => 12,
            Self::Sysvinit(Sysvinit::CtrlAltDel) => 2,
            Self::Sysvinit(Sysvinit::PowerFail) | Self::Other => 30,
        }
    }
}

/// An init found in a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Init {
    /// Path to run, absolute in the guest.
    pub path: PathBuf,
    /// What it is.
    pub flavour: Flavour,
}

/// Looks for an init that would make a system of the guest.
///
/// busybox alone does not count: nearly every small image links `/sbin/init` to it, but only those
/// with boot scripts for it boot.
///
/// # Errors
/// The root filesystem cannot be read.
pub fn detect(root: &GuestRoot) -> Result<Option<Init>> {
    for place in PLACES {
        let path = Path::new(place);
        let Some(found) = root.resolve(path)? else {
            continue;
        };
        if found.file_type != FileType::RegularFile || found.mode & 0o111 == 0 {
            continue;
        }
        let flavour = match found.path.file_name().and_then(|name| name.to_str()) {
            Some("systemd") => Flavour::Systemd,
            Some(name) if name.starts_with("busybox") => Flavour::Busybox,
            _ => match root.read(Path::new(INITTAB), INITTAB_MAX)? {
                Some(text) => Flavour::Sysvinit(sysvinit(&String::from_utf8_lossy(&text))),
                None => Flavour::Other,
            },
        };
        if flavour == Flavour::Busybox && !has_boot_scripts(root)? {
            continue;
        }
        return Ok(Some(Init { path: path.to_owned(), flavour }));
    }
    Ok(None)
}

/// What to do with a sysvinit that has this inittab: lines of `id:runlevels:action:process`. Pure.
#[must_use]
pub fn sysvinit(inittab: &str) -> Sysvinit {
    const FAIL: [&str; 3] = ["powerfail", "powerfailnow", "powerwait"];
    const DOWN: [&str; 5] = ["init", "telinit", "shutdown", "halt", "poweroff"];
    let goes_down = |line: &str| {
        let mut fields = line.trim_start().splitn(4, ':');
        let action = fields.nth(2).unwrap_or_default();
        let process = fields.next().unwrap_or_default();
        // "+" in front: no utmp record.
        let program = process.trim_start_matches('+').split_whitespace().next().unwrap_or_default();
        FAIL.contains(&action) && DOWN.contains(&base_name(program))
    };
    let entries = inittab.lines().filter(|line| !line.trim_start().starts_with('#'));
    if entries.into_iter().any(goes_down) { Sysvinit::PowerFail } else { Sysvinit::CtrlAltDel }
}

fn has_boot_scripts(root: &GuestRoot) -> Result<bool> {
    for script in ["/sbin/openrc", "/usr/sbin/openrc", "/etc/init.d/rcS"] {
        let found = root.resolve(Path::new(script))?;
        if found.is_some_and(|f| f.file_type == FileType::RegularFile && f.mode & 0o111 != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What runs the start script of a guest of that kind, as `ocivisor_context` has it told.
///
/// An init that a caller named is unknown to us, and so is any that has no inittab: they are given the script by our
/// own, beside them.
///
/// # Errors
/// The root filesystem cannot be read.
pub fn script_runner(
    root: &GuestRoot,
    boot: &Boot,
    kind: GuestKind,
    found: Option<&Init>,
) -> Result<Runner> {
    let found = found.filter(|_| kind == GuestKind::System && boot.entrypoint.is_none());
    let Some(found) = found else { return Ok(Runner::Ours) };
    let inittab = root.resolve(Path::new("/etc/inittab"))?;
    let inittab = inittab.is_some_and(|file| {
        file.file_type == FileType::RegularFile && file.path == Path::new("/etc/inittab")
    });
    let real = root.resolve(&found.path)?.map(|file| file.path);
    Ok(match found.flavour {
        Flavour::Systemd => Runner::Systemd,
        Flavour::Busybox if inittab => Runner::Busybox,
        // sysvinit is called init where it is; others with that name are links or read no inittab.
        Flavour::Other if inittab && real.is_some_and(|path| path.ends_with("init")) => {
            Runner::Sysvinit
        }
        Flavour::Busybox | Flavour::Sysvinit(_) | Flavour::Other => Runner::Ours,
    })
}

/// System or application? Pure.
///
/// 1. What the caller says with `init` counts.
/// 2. A caller that names an entrypoint or a command wants that program: application.
/// 3. An image without an init makes an application.
/// 4. An image whose command is an init (`/sbin/init`, `…/systemd`), whose command is but a shell
///    (`["bash"]`: a bare operating system), or that has none at all, makes a system.
/// 5. Any other image was made to run its command: application.
#[must_use]
pub fn decide_kind(boot: &Boot, image: &ImageConfig, has_init: Option<&Path>) -> GuestKind {
    match boot.init {
        InitKind::System => return GuestKind::System,
        InitKind::Application => return GuestKind::Application,
        InitKind::Auto => {}
    }
    if boot.entrypoint.is_some() || boot.cmd.is_some() || has_init.is_none() {
        return GuestKind::Application;
    }
    let argv: Vec<&str> = image.entrypoint.iter().chain(&image.cmd).map(String::as_str).collect();
    match argv.as_slice() {
        [] => GuestKind::System,
        [command] if is_shell(command) => GuestKind::System,
        [command, "-l" | "-i" | "--login"] if is_shell(command) => GuestKind::System,
        [command, ..] if is_init(command) => GuestKind::System,
        _ => GuestKind::Application,
    }
}

/// Whether a command is an init of a system. `tini`, `dumb-init` and the like only reap.
#[must_use]
pub fn is_init(command: &str) -> bool {
    let name = base_name(command);
    let directory = command.starts_with('/');
    directory && matches!(name, "init" | "systemd" | "openrc-init" | "runit-init")
}

fn is_shell(command: &str) -> bool {
    SHELLS.contains(&base_name(command))
}

fn base_name(command: &str) -> &str {
    command.rsplit('/').next().unwrap_or(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageConfig {
        let own = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        ImageConfig { entrypoint: own(entrypoint), cmd: own(cmd), ..ImageConfig::default() }
    }

    #[test]
    fn kind_follows_caller_then_image() {
        use GuestKind::{Application as A, System as S};
        let init = Some(Path::new("/sbin/init"));
        let auto = Boot::default();
        for (entrypoint, cmd, has_init, want) in [
            (&[][..], &[][..], init, S),
            (&[], &["bash"], init, S),
            (&[], &["/bin/sh"], init, S),
            (&["/bin/bash", "-l"], &[], init, S),
            (&[], &["/sbin/init"], init, S),
            (&["/lib/systemd/systemd"], &["--log-level=info"], init, S),
            (&[], &[], None, A),
            (&[], &["bash"], None, A),
            (&[], &["/sbin/init"], None, A),
            (&[], &["sh", "-c", "nginx"], init, A),
            (&["/docker-entrypoint.sh"], &["nginx"], init, A),
            (&["/bin/sh"], &["run.sh"], init, A),
            (&["tini", "--"], &["init"], init, A),
            (&[], &["init"], init, A),
        ] {
            let image = image(entrypoint, cmd);
            assert_eq!(decide_kind(&auto, &image, has_init), want, "{entrypoint:?} {cmd:?}");
        }
        let system = image(&[], &[]);
        let entrypoint = Boot { entrypoint: Some(vec!["a".into()]), ..Boot::default() };
        assert_eq!(decide_kind(&entrypoint, &system, init), A);
        let cmd = Boot { cmd: Some(vec!["a".into()]), ..Boot::default() };
        assert_eq!(decide_kind(&cmd, &system, init), A);
        let forced = Boot { init: InitKind::System, ..cmd };
        assert_eq!(decide_kind(&forced, &image(&["x"], &[]), None), S);
        let forced = Boot { init: InitKind::Application, ..Boot::default() };
        assert_eq!(decide_kind(&forced, &system, init), A);
    }

    #[test]
    fn sysvinit_goes_down_by_what_its_inittab_says() {
        use Sysvinit::{CtrlAltDel, PowerFail};
        let debian = "id:2:initdefault:\nca:12345:ctrlaltdel:/sbin/shutdown -t1 -a -r now\n\
                      pf::powerwait:/etc/init.d/powerfail start\n";
        for (inittab, want) in [
            ("", CtrlAltDel),
            (debian, CtrlAltDel),
            ("p6::ctrlaltdel:/sbin/init 6\np0::powerfail:/sbin/init 0\n", PowerFail),
            (" pf::powerwait:+shutdown -h now", PowerFail),
            ("# p0::powerfail:/sbin/init 0\n#", CtrlAltDel),
            ("p0::powerfail\np0::powerfail:\n:::::\n", CtrlAltDel),
            ("po::powerokwait:/sbin/shutdown -c", CtrlAltDel),
        ] {
            assert_eq!(sysvinit(inittab), want, "{inittab:?}");
        }
        let signals = [Flavour::Sysvinit(CtrlAltDel), Flavour::Sysvinit(PowerFail), Flavour::Other];
        assert_eq!(signals.map(Flavour::stop_signal), [2, 30, 30]);
    }
}
