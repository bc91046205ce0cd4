//! The one thing that OCI runtimes are used for here.

use std::path::{Path, PathBuf};

use ocivisor_core::error::{Error, ErrorKind, Result};

/// What to create.
#[derive(Debug)]
pub struct Creation<'a> {
    /// Name of the guest within the runtime.
    pub id: &'a str,
    /// Directory of `config.json`.
    pub bundle: &'a Path,
    /// Directory of the runtime's state; holds nothing else.
    pub root: &'a Path,
    /// Where to send the terminal's master.
    pub console_socket: &'a Path,
}

/// A guest's first process that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// Its process id here.
    pub pid: u32,
    /// How it is let go.
    pub start: Start,
}

/// How a waiting first process is let go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// By connecting to this socket.
    Connect(PathBuf),
    /// By opening this FIFO for reading.
    Fifo(PathBuf),
}

impl Start {
    /// As the shim takes it.
    #[must_use]
    pub fn argument(&self) -> String {
        match self {
            Self::Connect(path) => format!("connect:{}", path.display()),
            Self::Fifo(path) => format!("fifo:{}", path.display()),
        }
    }
}

/// An OCI runtime.
pub trait Runtime {
    /// Makes the guest's first process, confined and waiting, as a descendant of this process.
    ///
    /// # Errors
    /// `Image`: the image has nothing to run. What was made may be left: the caller clears.
    fn create(&self, creation: &Creation<'_>) -> Result<Created>;
}

/// Whose fault a runtime's message tells of. Pure; texts of libcontainer 0.7 and runc 1.1 to 1.3.
#[must_use]
pub fn classify(message: &str) -> ErrorKind {
    const IMAGE: [&str; 8] = [
        "not found in $path",
        "no such executable",
        "is not executable",
        "executable file not found",
        "stat /",
        "exec format error",
        "must be mounted on ordinary directory",
        "working directory",
    ];
    const EXHAUSTED: [&str; 4] = [
        "resource temporarily unavailable",
        "cannot allocate memory",
        "no space left on device",
        "too many open files",
    ];
    let message = message.to_lowercase();
    let has = |list: &[&str]| list.iter().any(|text| message.contains(text));
    if has(&IMAGE) || (message.contains("exec:") && message.contains("permission denied")) {
        ErrorKind::Image
    } else if has(&EXHAUSTED) {
        ErrorKind::Exhausted
    } else {
        ErrorKind::Host
    }
}

/// An error of an OCI runtime.
#[must_use]
pub fn runtime_error(message: &str) -> Error {
    Error::new(classify(message), format!("create guest: {}", cause(message)))
}

/// The end of a chain of errors. Platforms show users the beginning of a text only, where libcontainer says three times that
/// something failed and then what.
fn cause(message: &str) -> &str {
    const CHAIN: [&str; 3] = [
        "failed to create container: ",
        "exec process failed with error ",
        "error in executing process : ",
    ];
    let mut rest = message;
    while let Some(then) = CHAIN.iter().find_map(|link| rest.strip_prefix(link)) {
        rest = then;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_images_are_told_from_those_of_hosts() {
        for (message, want) in [
            ("executable 'nope' not found in $PATH", ErrorKind::Image),
            (r#"exec: "/nope": stat /nope: no such file or directory"#, ErrorKind::Image),
            (r#"exec: "/etc/passwd": permission denied"#, ErrorKind::Image),
            ("mount /x: permission denied", ErrorKind::Host),
            ("clone: Resource temporarily unavailable", ErrorKind::Exhausted),
            ("EPERM", ErrorKind::Host),
        ] {
            assert_eq!(classify(message), want, "{message}");
        }
    }

    #[test]
    fn the_cause_comes_first() {
        let chain = "failed to create container: exec process failed with error error in executing process : \
                     no such executable \"/nope\"";
        let error = runtime_error(chain);
        assert_eq!(error.message, "create guest: no such executable \"/nope\"");
        assert_eq!(error.kind, ErrorKind::Image);
        assert_eq!(runtime_error("clone: EPERM").message, "create guest: clone: EPERM");
    }
}
