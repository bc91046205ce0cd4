//! The shim's command line. Its only caller is our own code, so it is strict and terse.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use ocivisor_shim::facts::Process;

use crate::start::StartAction;

/// What a shim is told at birth.
#[derive(Debug, PartialEq, Eq)]
pub struct Args {
    /// The VM's run directory: facts and exit record go there.
    pub vm_dir: PathBuf,
    /// Where the socket goes.
    pub socket_dir: PathBuf,
    /// The console log; one older generation is kept beside it.
    pub log: PathBuf,
    /// Most bytes of each of the two, 0 for no log.
    pub log_max: u64,
    /// The guest's first process.
    pub init: Process,
    /// Number of the inherited pty master.
    pub console: Option<RawFd>,
    /// Number of the inherited pipe that wants to know when all is set up.
    pub status: Option<RawFd>,
    /// How the guest is let go.
    pub start: StartAction,
    /// Whether the first process is not our child.
    pub adopt: bool,
    /// Group that may use the socket.
    pub group: Option<u32>,
    /// Control groups to enter before anything else, as paths of their `cgroup.procs`.
    pub cgroup_procs: Vec<PathBuf>,
}

impl Args {
    /// Reads the arguments after the program's name.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let (mut vm_dir, mut socket_dir, mut log, mut log_max) = (None, None, None, None);
        let (mut init, mut ticks) = (None, None);
        let (mut console, mut status, mut start, mut group) = (None, None, None, None);
        let (mut adopt, mut cgroup_procs) = (false, Vec::new());
        while let Some(word) = words.next() {
            let name = word.to_str().ok_or("an option that is not text")?.to_owned();
            if name == "--adopt" {
                adopt = true;
                continue;
            }
            let value = words.next().ok_or_else(|| format!("{name} needs a value"))?;
            let slot: &mut Option<OsString> = match name.as_str() {
                "--vm-dir" => &mut vm_dir,
                "--socket-dir" => &mut socket_dir,
                "--log" => &mut log,
                "--log-max" => &mut log_max,
                "--init" => &mut init,
                "--start-ticks" => &mut ticks,
                "--console-fd" => &mut console,
                "--status-fd" => &mut status,
                "--start" => &mut start,
                "--group" => &mut group,
                "--cgroup-procs" => {
                    cgroup_procs.push(value.into());
                    continue;
                }
                _ => return Err(format!("no such option: {name}")),
            };
            if slot.replace(value).is_some() {
                return Err(format!("{name} is given twice"));
            }
        }
        Ok(Self {
            vm_dir: vm_dir.ok_or("--vm-dir is missing")?.into(),
            socket_dir: socket_dir.ok_or("--socket-dir is missing")?.into(),
            log: log.ok_or("--log is missing")?.into(),
            log_max: number("--log-max", log_max)?.ok_or("--log-max is missing")?,
            init: Process {
                pid: number("--init", init)?.ok_or("--init is missing")?,
                start_ticks: number("--start-ticks", ticks)?.ok_or("--start-ticks is missing")?,
            },
            console: number("--console-fd", console)?,
            status: number("--status-fd", status)?,
            start: StartAction::parse(start.as_deref().unwrap_or("none".as_ref()))?,
            adopt,
            group: number("--group", group)?,
            cgroup_procs,
        })
    }
}

fn number<N: std::str::FromStr>(name: &str, value: Option<OsString>) -> Result<Option<N>, String> {
    let Some(value) = value else { return Ok(None) };
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| format!("{name} is not a number in range: {value:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split(' ').map(OsString::from))
    }

    const LEAST: &str = "--vm-dir /v --socket-dir /s --log /l/console.log --log-max 9 --init 7 \
                         --start-ticks 8";

    #[test]
    fn the_least_and_the_most() {
        let least = parse(LEAST).unwrap();
        assert_eq!(least.init, Process { pid: 7, start_ticks: 8 });
        assert_eq!((least.console, least.adopt, least.start), (None, false, StartAction::None));
        let more = "--console-fd 4 --status-fd 3 --start fifo:/f --adopt --group 5 \
                    --cgroup-procs /a --cgroup-procs /b";
        let most = parse(&format!("{LEAST} {more}")).unwrap();
        assert_eq!((most.console, most.status, most.group), (Some(4), Some(3), Some(5)));
        assert_eq!(most.start, StartAction::Fifo("/f".into()));
        assert_eq!(most.cgroup_procs, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert!(most.adopt);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, error) in [
            ("--vm-dir", "--vm-dir needs a value"),
            ("--vm-dir /v", "--socket-dir is missing"),
            ("--vm-dir /v --socket-dir /s", "--log is missing"),
            ("--color x", "no such option: --color"),
            (&format!("{LEAST} --init 7"), "--init is given twice"),
            (&format!("{LEAST} --group -1"), "--group is not a number in range: \"-1\""),
            (&format!("{LEAST} --start x"), "--start is neither connect:PATH, fifo:PATH nor none"),
        ] {
            assert_eq!(parse(line).unwrap_err(), error);
        }
    }
}
