//! What a session runs: a JSON object on a descriptor, so that neither the token nor the environment
//! is on a command line, which everybody on the host can read.
//!
//! ```json
//! {"token": "…", "argv": ["ls"], "env": ["A=b"], "user": "web", "workdir": "/", "tty": true,
//!  "timeout_ms": 5000, "detach": false, "whole": false}
//! ```
//!
//! Only `token` and `argv` must be there. Instead of running a program files can be copied:
//!
//! ```json
//! {"token": "…", "copy": {"direction": "out", "path": "/etc", "follow": false, "owners": false,
//!  "archive": false}}
//! ```

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use serde::Deserialize;

/// Most bytes of a request.
const MAX_REQUEST: u64 = 4 << 20;
/// Fewest and most characters of a token.
const TOKEN: std::ops::RangeInclusive<usize> = 16..=128;

/// Shortest and longest time limit: a sum of it and now has to fit into the clock's type.
const LIMIT_MS: std::ops::RangeInclusive<u64> = 1..=366 * 24 * 3_600_000;

/// A session.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What the client has to send first: printable ASCII.
    pub token: String,
    /// Program and arguments.
    #[serde(default)]
    pub argv: Vec<String>,
    /// `NAME=value`, on top of the guest's own.
    #[serde(default)]
    pub env: Vec<String>,
    /// `user[:group]` of the guest; root if absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Absolute directory of the guest; its first process's if absent.
    #[serde(default)]
    pub workdir: Option<String>,
    /// Whether to run on a terminal of its own.
    #[serde(default)]
    pub tty: bool,
    /// How long it may run, in milliseconds; without limit if absent.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Whether to leave it alone once it runs.
    #[serde(default)]
    pub detach: bool,
    /// Whether what it left in its session ends with it.
    #[serde(default)]
    pub whole: bool,
    /// Files to copy, instead of all but the token.
    #[serde(default)]
    pub copy: Option<CopyRequest>,
}

/// What is copied.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyRequest {
    /// Which way.
    pub direction: Direction,
    /// Absolute, in the guest.
    pub path: String,
    /// Out: whether a link at its end is followed.
    pub follow: bool,
    /// In: whether owners and set-id bits are kept.
    pub owners: bool,
    /// In: whether names are as they are, below a directory that is there.
    pub archive: bool,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Into the guest.
    In,
    /// Out of the guest.
    Out,
}

impl Request {
    /// How long it may run.
    #[must_use]
    pub fn limit(&self) -> Option<Duration> {
        self.timeout_ms.map(Duration::from_millis)
    }

    /// A program of the guest's root, with nothing but its arguments, in the guest's root directory.
    #[must_use]
    pub fn of(argv: Vec<String>) -> Self {
        let (token, env, workdir) = (String::new(), Vec::new(), Some("/".to_owned()));
        let (user, timeout_ms) = (None, None);
        let (tty, detach, whole) = (false, false, false);
        Self { token, argv, env, user, workdir, tty, timeout_ms, detach, whole, copy: None }
    }
}

/// Reads a request to the end of the stream.
///
/// # Errors
/// `Invalid`: malformed.
pub fn read(from: OwnedFd) -> Result<Request> {
    let mut bytes = Vec::new();
    let read = File::from(from).take(MAX_REQUEST).read_to_end(&mut bytes);
    read.map_err(|e| Error::new(ErrorKind::Host, format!("read the request: {e}")))?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Request> {
    let bad = |what: String| Error::new(ErrorKind::Invalid, format!("exec request: {what}"));
    let request: Request = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
    let token = &request.token;
    if !TOKEN.contains(&token.len()) || !token.bytes().all(|c| c.is_ascii_graphic()) {
        return Err(bad("token must be 16 to 128 printable characters".into()));
    }
    if let Some(copy) = &request.copy {
        if !copy.path.starts_with('/') || copy.path.contains('\0') {
            return Err(bad("the path to copy is not absolute".into()));
        }
        return if request.argv.is_empty() && !request.detach {
            Ok(request)
        } else {
            Err(bad("there is a command beside what to copy".into()))
        };
    }
    if request.argv.first().is_none_or(String::is_empty) {
        return Err(bad("there is no command".into()));
    }
    let texts =
        request.argv.iter().chain(&request.env).chain(&request.user).chain(&request.workdir);
    if texts.clone().any(|text| text.contains('\0')) {
        return Err(bad("texts must not hold NUL bytes".into()));
    }
    if request.env.iter().any(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        return Err(bad("variables are NAME=value".into()));
    }
    if request.workdir.as_ref().is_some_and(|dir| !dir.starts_with('/')) {
        return Err(bad("working directory is not absolute".into()));
    }
    if request.timeout_ms.is_some_and(|limit| !LIMIT_MS.contains(&limit)) {
        return Err(bad("the time limit is not between a millisecond and a year".into()));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_checked() {
        let token = "0123456789abcdef";
        let good = parse(format!(r#"{{"token":"{token}","argv":["ls"]}}"#).as_bytes()).unwrap();
        assert_eq!((good.argv, good.tty, good.user), (vec!["ls".to_owned()], false, None));
        for bad in [
            "".to_owned(),
            r#"{"token":"short","argv":["ls"]}"#.into(),
            format!(r#"{{"token":"{token} ","argv":["ls"]}}"#),
            format!(r#"{{"token":"{token}","argv":[]}}"#),
            format!(r#"{{"token":"{token}","argv":[""]}}"#),
            format!(r#"{{"token":"{token}","argv":["a\u0000"]}}"#),
            format!(r#"{{"token":"{token}","argv":["a"],"env":["A"]}}"#),
            format!(r#"{{"token":"{token}","argv":["a"],"env":["=b"]}}"#),
            format!(r#"{{"token":"{token}","argv":["a"],"workdir":"x"}}"#),
            format!(r#"{{"token":"{token}","argv":["a"],"timeout_ms":0}}"#),
            format!(r#"{{"token":"{token}","argv":["a"],"timeout_ms":99999999999}}"#),
            format!(r#"{{"token":"{token}","argv":["a"],"more":1}}"#),
        ] {
            assert_eq!(parse(bad.as_bytes()).unwrap_err().kind, ErrorKind::Invalid, "{bad}");
        }
    }
}
