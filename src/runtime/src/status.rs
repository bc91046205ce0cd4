//! How this program tells its caller what went wrong.

use std::io::Write;
use std::os::fd::OwnedFd;

use ocivisor_core::error::{Error, ErrorKind, one_line};

/// Writes `error KIND MESSAGE` to the status descriptor.
pub fn report(status: OwnedFd, error: &Error) {
    let line = format!("{}\n", line(error));
    // A caller that is gone cannot be told; the exit code stays.
    let _ = std::fs::File::from(status).write_all(line.as_bytes());
}

/// Writes to standard error, for people who call this program by hand.
pub fn complain(what: &str) {
    // Standard error is /dev/null in production, and nobody is left to tell of its failure.
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// The line without its end.
#[must_use]
pub fn line(error: &Error) -> String {
    let hint = error.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("error {} {}", error.kind.name(), one_line(&format!("{}{hint}", error.message)))
}

/// Reads such a line back; anything else is an error of the host.
#[must_use]
pub fn parse(line: &str) -> Error {
    let known = line.strip_prefix("error ").and_then(|rest| {
        let (kind, message) = rest.split_once(' ')?;
        Some(Error::new(ErrorKind::from_name(kind)?, message))
    });
    known.unwrap_or_else(|| {
        Error::new(ErrorKind::Host, format!("runtime ended without a result {line:?}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_pass_through_a_line() {
        let error = Error::new(ErrorKind::Image, "no such\nprogram").hint("look");
        let line = line(&error);
        assert_eq!(line, "error image no such\\nprogram (look)");
        let back = parse(&line);
        assert_eq!(
            (back.kind, back.message.as_str()),
            (ErrorKind::Image, "no such\\nprogram (look)")
        );
        assert_eq!(parse("").kind, ErrorKind::Host);
        assert_eq!(parse("error nope x").kind, ErrorKind::Host);
    }
}
