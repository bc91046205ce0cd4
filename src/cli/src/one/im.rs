//! The script of monitoring, on a host: begins the agent or ends it.
//!
//! `run_monitord_client` calls it with `<IM_MAD> <HOST_ID> <HOSTNAME>` and the monitor's configuration as standard input,
//! takes its output until its streams are closed, and expects one document. `stop_monitord_client` calls it with `stop` in
//! front of the same. What the agent does: [`ocivisor_agent`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use ocivisor_agent::place::Place;
use ocivisor_agent::ticket::{self, Order};
use ocivisor_agent::{Orders, seat};
use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_opennebula::Answer;
use ocivisor_opennebula::monitor::Configuration;

use super::config::Config;
use super::detached::{Task, leave};
use crate::connect::block_on;

/// Carries a call out and answers it. `dir` is where the script lies.
pub fn answer(
    argv: &[OsString],
    dir: &Path,
    stdin: Result<Vec<u8>, Error>,
    socket: Option<PathBuf>,
) -> Answer {
    let argv: Vec<String> = argv.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let (verb, done) = match argv.split_first() {
        Some((word, rest)) if word == "stop" => ("end", stdin.and_then(|stdin| stop(rest, &stdin))),
        _ => ("begin", stdin.and_then(|stdin| start(&argv, dir, stdin, socket))),
    };
    match done {
        Ok(answer) => answer,
        Err(error) => {
            let hint = error.hint.as_deref().map_or_else(String::new, |hint| format!("; {hint}"));
            Answer::sentence(&format!("Cannot {verb} monitoring: {}{hint}", error.message))
        }
    }
}

fn start(
    argv: &[String],
    dir: &Path,
    stdin: Vec<u8>,
    socket: Option<PathBuf>,
) -> Result<Answer, Error> {
    let [_driver, host, ..] = argv else {
        let what = format!("the script was called with {} arguments", argv.len());
        return Err(invalid(what).hint("it takes <IM_MAD> <host id> <host name>"));
    };
    let (config, dir) = (Config::load()?, absolute(dir)?);
    config.monitoring.pci.check()?;
    let utf8 = |_| invalid("the monitor's configuration is not UTF-8");
    let mut orders = Orders {
        // Drawn once it is known for which host.
        ticket: 0,
        configuration: String::from_utf8(stdin).map_err(utf8)?,
        front_end: front_end(std::env::var("SSH_CLIENT").ok().as_deref()),
        socket: config.socket(socket),
        state_dir: config.monitoring.state_dir,
        hypervisor: config.monitoring.hypervisor,
        pci: config.monitoring.pci,
        version_file: dir.join("../../VERSION"),
        daemon_timeout: config.daemon_timeout,
    };
    let (configuration, _) = orders.monitor()?;
    if *host != configuration.host.to_string() {
        let told = configuration.host;
        return Err(invalid(format!(
            "the arguments are about host {host:?}, the XML about {told}"
        )));
    }
    let place = Place::open(&orders.state_dir)?;
    orders.ticket =
        block_on(async { Ok(ticket::draw(&place, configuration.host, Order::Start).await?) })?;
    // Here nothing is looked at: what hangs must not keep this process from ending.
    let left = leave(Task::Agent, orders.into_file()?)?;
    Ok(Answer { stdout: left.said, stderr: String::new(), exit: u8::from(!left.stays) })
}

fn stop(argv: &[String], stdin: &[u8]) -> Result<Answer, Error> {
    let host = match argv.get(1) {
        Some(host) => host.parse().map_err(|_| invalid(format!("{host:?} is no host's number")))?,
        None => Configuration::read(stdin)?.host,
    };
    let state_dir = Config::load()?.monitoring.state_dir;
    block_on(async { Ok(seat::end(&Place::open(&state_dir)?, host).await?) })?;
    Ok(Answer { stdout: String::new(), stderr: String::new(), exit: 0 })
}

/// The front-end's address is the first word; its port and ours follow.
fn front_end(ssh_client: Option<&str>) -> Option<String> {
    ssh_client?.split_ascii_whitespace().next().map(str::to_owned)
}

/// The agent's working directory is not ours.
fn absolute(dir: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(match dir.as_os_str().is_empty() {
        true => Path::new("."),
        false => dir,
    })
    .map_err(|e| Error::new(ErrorKind::Host, format!("find the script's directory: {e}")))
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_end_is_where_ssh_came_from() {
        assert_eq!(front_end(Some("10.0.0.1 35720 22")).as_deref(), Some("10.0.0.1"));
        assert_eq!(front_end(Some("fe80::1%eth0 1 22")).as_deref(), Some("fe80::1%eth0"));
        assert_eq!(front_end(Some("  ")), None);
        assert_eq!(front_end(None), None);
    }

    #[test]
    fn calls_without_sense_are_one_sentence() {
        let dir = Path::new(".");
        let said = |argv: &[&str], stdin: &[u8]| {
            let argv: Vec<OsString> = argv.iter().map(OsString::from).collect();
            let answer = answer(&argv, dir, Ok(stdin.to_vec()), None);
            assert_eq!((answer.exit, answer.stdout.as_str()), (1, ""));
            assert!(answer.stderr.ends_with(".\n") && answer.stderr.lines().count() == 1);
            answer.stderr
        };
        assert!(said(&[], b"").contains("with 0 arguments; it takes <IM_MAD>"));
        assert!(said(&["ocivisor", "7", "n"], b"").contains("the XML is empty"));
        assert!(said(&["stop", "x", "y"], b"").starts_with("Cannot end monitoring: \"y\" is no"));
        let other =
            b"<X><HOST_ID>8</HOST_ID><NETWORK><MONITOR_ADDRESS>::1</MONITOR_ADDRESS></NETWORK></X>";
        assert!(said(&["ocivisor", "7", "n"], other).contains("host \"7\", the XML about 8"));
    }
}
