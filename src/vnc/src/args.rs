//! The command line. Its only caller is our own code, so it is strict and terse. Nothing secret is in it.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use crate::server::MAX_LISTENERS;

/// What the program is told.
#[derive(Debug, PartialEq, Eq)]
pub struct Args {
    /// What clients see as the screen's name; the VM's.
    pub name: String,
    /// The VM's run directory: the record goes there.
    pub vm_dir: PathBuf,
    /// The shim's socket; it may come later, and come and go.
    pub socket: PathBuf,
    /// Numbers of the inherited sockets that listen.
    pub listeners: Vec<RawFd>,
    /// Number of the inherited pipe that wants to know when all is set up.
    pub status: Option<RawFd>,
    /// Number of the inherited pipe with the password; `None` if everybody may come in.
    pub password: Option<RawFd>,
    /// Who faces the network.
    pub uid: u32,
    /// And of which group.
    pub gid: u32,
    /// Control groups to enter before anything else, as paths of their `cgroup.procs`.
    pub cgroup_procs: Vec<PathBuf>,
}

impl Args {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let (mut name, mut vm_dir, mut socket) = (None, None, None);
        let (mut status, mut password, mut uid, mut gid) = (None, None, None, None);
        let (mut open, mut listeners, mut cgroup_procs) = (false, Vec::new(), Vec::new());
        while let Some(word) = words.next() {
            let option = word.to_str().ok_or("an option that is not text")?.to_owned();
            if option == "--no-password" {
                open = true;
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{option} needs a value"))?;
            let slot: &mut Option<OsString> = match option.as_str() {
                "--name" => &mut name,
                "--vm-dir" => &mut vm_dir,
                "--socket" => &mut socket,
                "--status-fd" => &mut status,
                "--password-fd" => &mut password,
                "--uid" => &mut uid,
                "--gid" => &mut gid,
                "--listen-fd" => {
                    listeners.push(number(&option, &value)?);
                    continue;
                }
                "--cgroup-procs" => {
                    cgroup_procs.push(value.into());
                    continue;
                }
                _ => return Err(format!("no such option: {option}")),
            };
            if slot.replace(value).is_some() {
                return Err(format!("{option} is given twice"));
            }
        }
        let needed = |option: &str, value: Option<OsString>| {
            value.ok_or_else(|| format!("{option} is missing"))
        };
        let id = |option: &str, value| match number(option, &needed(option, value)?)? {
            0 => Err(format!("{option} must not be root's")),
            id => Ok(id),
        };
        let fd = |option: &str, value: Option<OsString>| {
            value.map(|value| number(option, &value)).transpose()
        };
        if listeners.is_empty() || listeners.len() > MAX_LISTENERS {
            return Err(format!("--listen-fd is needed once to {MAX_LISTENERS} times"));
        }
        let password = fd("--password-fd", password)?;
        // To forget one of them must not open the door.
        if open == password.is_some() {
            return Err("either --password-fd or --no-password is needed".to_owned());
        }
        Ok(Self {
            name: needed("--name", name)?.into_string().map_err(|_| "--name is not text")?,
            vm_dir: needed("--vm-dir", vm_dir)?.into(),
            socket: needed("--socket", socket)?.into(),
            listeners,
            status: fd("--status-fd", status)?,
            password,
            uid: id("--uid", uid)?,
            gid: id("--gid", gid)?,
            cgroup_procs,
        })
    }
}

fn number<N: std::str::FromStr>(option: &str, value: &OsString) -> Result<N, String> {
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("{option} is not a number in range: {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(OsString::from))
    }

    const LEAST: &str = "--name one-42 --vm-dir /v --socket /s --uid 65534 --gid 65533";

    #[test]
    fn the_least_and_the_most() {
        let least = parse(&format!("{LEAST} --listen-fd 3 --no-password")).unwrap();
        assert_eq!((least.listeners, least.password, least.status), (vec![3], None, None));
        assert_eq!((least.name.as_str(), least.uid, least.gid), ("one-42", 65534, 65533));
        let more = "--listen-fd 3 --listen-fd 4 --password-fd 5 --status-fd 6 \
                    --cgroup-procs /a --cgroup-procs /b";
        let most = parse(&format!("{LEAST} {more}")).unwrap();
        assert_eq!((most.listeners, most.password, most.status), (vec![3, 4], Some(5), Some(6)));
        assert_eq!(most.cgroup_procs, [PathBuf::from("/a"), PathBuf::from("/b")]);
    }

    #[test]
    fn mistakes_are_named() {
        let fd = "--listen-fd 3";
        for (line, error) in [
            ("--name", "--name needs a value"),
            ("--color x", "no such option: --color"),
            (&format!("{LEAST} --no-password"), "--listen-fd is needed once to 4 times"),
            (&format!("{LEAST} {fd}"), "either --password-fd or --no-password is needed"),
            (
                &format!("{LEAST} {fd} --no-password --password-fd 4"),
                "either --password-fd or --no-password is needed",
            ),
            (&format!("{LEAST} {fd} --no-password --uid 1"), "--uid is given twice"),
            (&format!("{fd} --no-password"), "--name is missing"),
            (&format!("{LEAST} --listen-fd x"), "--listen-fd is not a number in range: \"x\""),
            (
                &format!("{} {fd} --no-password", LEAST.replace("65534", "0")),
                "--uid must not be root's",
            ),
        ] {
            assert_eq!(parse(line).unwrap_err(), error);
        }
    }
}
