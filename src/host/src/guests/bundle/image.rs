//! What the image says about the process to run. Hostile bytes: bounded, and only read as data.
//!
//! It is in the manifest beside the root disk ([`DiskManifest`]), as it was in the image that the
//! disk was made of. Only what a process can be given comes out of here: see execve(2) for bounds.

use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};

use crate::storage::{DiskConfig, DiskManifest};

/// Most strings in argv and environment together.
const MAX_STRINGS: usize = 4096;
/// Longest string; the kernel's `MAX_ARG_STRLEN`, execve(2).
const MAX_STRING: usize = 128 * 1024 - 1;
/// Most bytes of all strings; below a quarter of the usual stack limit, execve(2).
const MAX_BYTES: usize = 1 << 20;

/// The part of an image's configuration that describes its process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// First words of the command line.
    pub entrypoint: Vec<String>,
    /// Further words, or all of them if there is no entrypoint.
    pub cmd: Vec<String>,
    /// Variables in order; entries without a name are left out.
    pub env: Vec<(String, String)>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Directory to run in.
    pub working_dir: Option<String>,
    /// Name or number of a signal.
    pub stop_signal: Option<String>,
}

/// Reads the manifest beside a root disk.
///
/// # Errors
/// Those of [`DiskManifest::read`]. `Image`: it holds absurd values.
pub fn load(disk: &Path) -> Result<ImageConfig> {
    let manifest = DiskManifest::read(disk)?;
    understand(manifest.config).map_err(|e| e.context(DiskManifest::path_of(disk).display()))
}

/// What a process can be given of a configuration.
///
/// # Errors
/// `Image`: it is absurd.
pub fn understand(config: DiskConfig) -> Result<ImageConfig> {
    let bad = |what: String| Error::new(ErrorKind::Image, what);
    let DiskConfig { entrypoint, cmd, env, user, working_dir, stop_signal } = config;
    let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (user, working_dir) = (filled(user), filled(working_dir));
    let stop_signal = filled(stop_signal);

    let texts = [&user, &working_dir, &stop_signal].into_iter().flatten();
    let all: Vec<&String> = entrypoint.iter().chain(&cmd).chain(&env).chain(texts).collect();
    if all.len() > MAX_STRINGS || all.iter().map(|text| text.len()).sum::<usize>() > MAX_BYTES {
        return Err(bad(format!(
            "image wants more than {MAX_STRINGS} strings or {MAX_BYTES} bytes"
        )));
    }
    if all.iter().any(|text| text.len() > MAX_STRING || text.contains('\0')) {
        return Err(bad("image has an argument or variable with NUL or over 128 KiB".into()));
    }
    let env = env.iter().filter_map(|entry| entry.split_once('='));
    let env = env.filter(|(name, _)| !name.is_empty());
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Ok(ImageConfig { entrypoint, cmd, env, user, working_dir, stop_signal })
}

/// Number of a signal by name (`SIGTERM`, `TERM`, `SIGRTMIN+3`) or number, 1 to 64.
#[must_use]
pub fn signal_number(text: &str) -> Option<u8> {
    // Numbers of x86-64 and arm64; real-time signals as glibc counts them, signal(7).
    const NAMES: [(&str, u8); 31] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
        ("SYS", 31),
    ];
    const RTMIN: u8 = 34;
    const RTMAX: u8 = 64;
    if let Ok(number) = text.parse::<u8>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let plus = if rest.is_empty() { 0 } else { rest.strip_prefix('+')?.parse().ok()? };
        return RTMIN.checked_add(plus).filter(|number| *number <= RTMAX);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let minus = if rest.is_empty() { 0 } else { rest.strip_prefix('-')?.parse().ok()? };
        return RTMAX.checked_sub(minus).filter(|number| *number >= RTMIN);
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> DiskConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn entries_that_say_nothing_are_left_out() {
        let config = parse(
            r#"{"entrypoint":["a"],"cmd":["b"],"env":["A=1=2","=x","B"],"user":"",
                "working_dir":"/w","stop_signal":"SIGQUIT"}"#,
        );
        let want = ImageConfig {
            entrypoint: vec!["a".into()],
            cmd: vec!["b".into()],
            env: vec![("A".into(), "1=2".into())],
            user: None,
            working_dir: Some("/w".into()),
            stop_signal: Some("SIGQUIT".into()),
        };
        assert_eq!(understand(config).unwrap(), want);
        assert_eq!(understand(parse("{}")).unwrap(), ImageConfig::default());
    }

    #[test]
    fn absurd_configurations_are_refused() {
        let long = DiskConfig { env: vec!["x".repeat(1 << 18)], ..DiskConfig::default() };
        let many = DiskConfig { cmd: vec!["x".into(); 5000], ..DiskConfig::default() };
        let large = DiskConfig { cmd: vec!["x".repeat(100_000); 11], ..DiskConfig::default() };
        for bad in [long, many, large, parse(r#"{"cmd":["a\u0000b"]}"#)] {
            assert_eq!(understand(bad).unwrap_err().kind, ErrorKind::Image);
        }
    }

    #[test]
    fn signals_by_name_and_number() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("64", Some(64)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("SIGRTMAX-1", Some(63)),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("", None),
            ("SIG", None),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN+300", None),
            ("SIGRTMAX-31", None),
            ("SIGTERM\n", None),
        ] {
            assert_eq!(signal_number(text), want, "{text:?}");
        }
    }
}
