//! The first process: what to run, as whom, where, and how it is stopped.

use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::ids::Hostname;
use ocivisor_core::spec::Boot;

use super::image::{ImageConfig, signal_number};
use super::init::{Init, is_init};
use super::rootfs::GuestRoot;
use super::user::{self, User};

/// Where programs are, unless the image says otherwise.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Stops an application that names no signal.
const SIGTERM: u8 = 15;

/// A first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestProcess {
    /// Command line; the first word is looked up in the guest's `PATH`.
    pub argv: Vec<String>,
    /// Environment, each name once.
    pub env: Vec<(String, String)>,
    /// Directory, absolute in the guest.
    pub cwd: PathBuf,
    /// Ids within the guest.
    pub user: User,
    /// Signal that asks it to end, 1 to 64.
    pub stop_signal: u8,
}

/// The guest's root.
#[must_use]
pub fn root_user() -> User {
    User { uid: 0, gid: 0, groups: Vec::new(), home: Some("/root".into()) }
}

/// The image's init.
///
/// An entrypoint of the caller replaces it, a command of the caller becomes its arguments; an
/// image's command counts if it is an init itself (it may carry options).
///
/// # Errors
/// `Image`: there is no init. `Invalid`: the caller asks for another user than root.
pub fn system(boot: &Boot, image: &ImageConfig, found: Option<&Init>) -> Result<GuestProcess> {
    if boot.user.as_deref().is_some_and(|user| !matches!(user, "0" | "root" | "0:0" | "root:root"))
    {
        let what = "the init of a system runs as root, but boot.user names another user";
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let own: Vec<&String> = image.entrypoint.iter().chain(&image.cmd).collect();
    let first = match (&boot.entrypoint, own.first()) {
        (Some(entrypoint), _) => entrypoint.clone(),
        (None, Some(command)) if is_init(command) => own.into_iter().cloned().collect(),
        (None, _) => {
            let path = found.and_then(|init| init.path.to_str()).ok_or_else(|| {
                Error::new(ErrorKind::Image, "image has no init, but a system was asked for")
                    .hint("use init=application, or an image with systemd or another init")
            })?;
            vec![path.to_owned()]
        }
    };
    let argv = first.into_iter().chain(boot.cmd.iter().flatten().cloned()).collect();
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH);
    env.set("HOME", "/root");
    env.set("TERM", "xterm");
    env.extend(&image.env);
    env.extend(&boot.env);
    // How an init learns that it is in a container, systemd.io/CONTAINER_INTERFACE.
    env.set("container", "oci");
    let fallback = found.map_or(super::init::Flavour::Other, |init| init.flavour).stop_signal();
    Ok(GuestProcess {
        argv,
        env: env.0,
        cwd: PathBuf::from("/"),
        user: root_user(),
        stop_signal: stop_signal(boot, image)?.unwrap_or(fallback),
    })
}

/// The image's command, by the rules of Docker: an entrypoint of the caller drops the image's
/// command, a command of the caller replaces it.
///
/// # Errors
/// `Image` or `Invalid`, by whose wish it is: nothing to run, no such user.
pub fn application(
    boot: &Boot,
    image: &ImageConfig,
    root: &GuestRoot,
    hostname: &Hostname,
) -> Result<GuestProcess> {
    let argv: Vec<String> = match (&boot.entrypoint, &boot.cmd) {
        (Some(entrypoint), cmd) => entrypoint.iter().chain(cmd.iter().flatten()).cloned().collect(),
        (None, Some(cmd)) => image.entrypoint.iter().chain(cmd).cloned().collect(),
        (None, None) => image.entrypoint.iter().chain(&image.cmd).cloned().collect(),
    };
    if argv.first().is_none_or(String::is_empty) {
        let nothing = Error::new(ErrorKind::Image, "image has neither entrypoint nor command");
        return Err(nothing.hint("name a command, or use an image with an init"));
    }
    let user = lookup_user(boot, image, root)?;
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH);
    env.set("HOSTNAME", hostname.as_str());
    env.set("TERM", "xterm");
    env.set("HOME", user.home.as_deref().unwrap_or("/"));
    env.extend(&image.env);
    env.extend(&boot.env);
    let cwd = boot.workdir.as_deref().or(image.working_dir.as_deref()).unwrap_or("/");
    Ok(GuestProcess {
        argv,
        env: env.0,
        // Images may leave out the leading slash.
        cwd: Path::new("/").join(cwd),
        user,
        stop_signal: stop_signal(boot, image)?.unwrap_or(SIGTERM),
    })
}

fn lookup_user(boot: &Boot, image: &ImageConfig, root: &GuestRoot) -> Result<User> {
    let (text, kind) = match (&boot.user, &image.user) {
        (Some(text), _) => (text.as_str(), ErrorKind::Invalid),
        (None, Some(text)) => (text.as_str(), ErrorKind::Image),
        (None, None) => ("0", ErrorKind::Image),
    };
    let passwd = root.read(Path::new("/etc/passwd"), user::MAX_FILE)?.unwrap_or_default();
    let group = root.read(Path::new("/etc/group"), user::MAX_FILE)?.unwrap_or_default();
    user::resolve(text, &passwd, &group).map_err(|e| Error::new(kind, e))
}

fn stop_signal(boot: &Boot, image: &ImageConfig) -> Result<Option<u8>> {
    if boot.stop_signal.is_some() {
        return Ok(boot.stop_signal);
    }
    let Some(text) = &image.stop_signal else {
        return Ok(None);
    };
    let what = || format!("image names the unknown stop signal {text:?}");
    signal_number(text).map(Some).ok_or_else(|| Error::new(ErrorKind::Image, what()))
}

/// Variables in order, each name once, the last value.
#[derive(Default)]
struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    fn extend(&mut self, more: &[(String, String)]) {
        for (name, value) in more {
            self.set(name, value);
        }
    }
}
