//! Linux signals by name or number (`signal(7)`; the numbers of x86-64 and arm64).

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// First real-time signal that programs get: glibc and musl keep the two below to themselves.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// The number of `15`, `TERM`, `SIGTERM`, `sigterm`, `SIGRTMIN+3` or `RTMAX-1`; 1 to 64.
pub(crate) fn number(text: &str) -> Option<u8> {
    if let Some(number) = crate::decimal(text) {
        return u8::try_from(number).ok().filter(|n| (1..=RTMAX).contains(n));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| crate::decimal(text).and_then(|n| u8::try_from(n).ok());
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let plus = if rest.is_empty() { Some(0) } else { rest.strip_prefix('+').and_then(offset) };
        return RTMIN.checked_add(plus?).filter(|n| *n <= RTMAX);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        let minus = if rest.is_empty() { Some(0) } else { rest.strip_prefix('-').and_then(offset) };
        return RTMAX.checked_sub(minus?).filter(|n| *n >= RTMIN);
    }
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        other => other,
    };
    let at = NAMES.iter().position(|known| *known == name)?;
    u8::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_signal_7() {
        for (text, want) in [
            ("1", Some(1)),
            ("64", Some(64)),
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("SIGQUIT", Some(3)),
            ("SIGWINCH", Some(28)),
            ("SIGPWR", Some(30)),
            ("SIGUSR1", Some(10)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("rtmin+30", Some(64)),
            ("RTMAX-1", Some(63)),
            ("0", None),
            ("65", None),
            ("-15", None),
            ("+15", None),
            ("", None),
            ("SIG", None),
            ("SIGSIGTERM", None),
            ("SIGRTMIN+31", None),
            ("RTMAX-31", None),
            ("TERM; id", None),
        ] {
            assert_eq!(number(text), want, "{text:?}");
        }
    }
}
