//! Sizes and durations as people type them: `2GiB`, `512M`, `90s`, `2m`.

use std::time::Duration;

use ocivisor_core::units::{Bytes, CentiCores, NumberSet};

/// Reads a size: a whole number of bytes, or with a unit. `K M G T` and `KiB MiB GiB TiB` are
/// powers of 1024 (as in truncate(1) and qemu-img(1)), `kB MB GB TB` powers of 1000.
///
/// # Errors
/// What is wrong, for clap.
pub fn size(text: &str) -> Result<Bytes, String> {
    const UNITS: [(&str, u64); 17] = [
        ("", 1),
        ("b", 1),
        ("k", 1 << 10),
        ("kib", 1 << 10),
        ("ki", 1 << 10),
        ("m", 1 << 20),
        ("mib", 1 << 20),
        ("mi", 1 << 20),
        ("g", 1 << 30),
        ("gib", 1 << 30),
        ("gi", 1 << 30),
        ("t", 1 << 40),
        ("tib", 1 << 40),
        ("kb", 1_000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
    ];
    let (number, unit) = split(text)?;
    let unit = unit.to_ascii_lowercase();
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("unit {unit:?} is none of B, KiB, MiB, GiB, TiB, kB, MB, GB, TB"));
    };
    let bytes = number.checked_mul(*factor).ok_or("is too large")?;
    Ok(Bytes(bytes))
}

/// Reads a duration: a whole number of seconds, or with a unit `ms`, `s`, `m`, `h`, `d`.
///
/// # Errors
/// What is wrong, for clap.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let millis: u64 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 24 * 3_600_000,
        _ => return Err(format!("unit {unit:?} is none of ms, s, m, h, d")),
    };
    let total = number.checked_mul(millis).ok_or("is too large")?;
    // A year: beyond it sums of deadlines could overflow somewhere.
    if total > 366 * 24 * 3_600_000 {
        return Err("is longer than a year".into());
    }
    Ok(Duration::from_millis(total))
}

/// Reads a number of cores with at most two decimals: `0.5`, `2`.
///
/// # Errors
/// What is wrong, for clap.
pub fn cores(text: &str) -> Result<CentiCores, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.bytes().all(|c| c.is_ascii_digit());
    if text == "." || whole.is_empty() && part.is_empty() || !digits(whole) || !digits(part) {
        return Err("must be a number of cores such as 0.5 or 2".into());
    }
    if part.len() > 2 {
        return Err("has more than two decimals".into());
    }
    let whole: u32 =
        if whole.is_empty() { 0 } else { whole.parse().map_err(|_| "is too large")? };
    let part: u32 = format!("{part:0<2}").parse().map_err(|_| "is too large")?;
    let centi = whole.checked_mul(100).and_then(|c| c.checked_add(part)).ok_or("is too large")?;
    if centi == 0 {
        return Err("must be at least 0.01".into());
    }
    Ok(CentiCores(centi))
}

/// A value, or the word `none` for the absence of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrNone<T>(pub Option<T>);

fn or_none<T>(text: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<OrNone<T>, String> {
    if text == "none" { Ok(OrNone(None)) } else { read(text).map(Some).map(OrNone) }
}

/// [`cores`], or `none`.
///
/// # Errors
/// What is wrong, for clap.
pub fn cores_or_none(text: &str) -> Result<OrNone<CentiCores>, String> {
    or_none(text, cores)
}

/// A whole number, or `none`.
///
/// # Errors
/// What is wrong, for clap.
pub fn number_or_none(text: &str) -> Result<OrNone<u16>, String> {
    or_none(text, |text| text.parse().map_err(|_| "must be a number up to 65535, or none".into()))
}

/// Numbers as in `0-3,8`.
///
/// # Errors
/// What is wrong, for clap.
pub fn numbers(text: &str) -> Result<NumberSet, String> {
    text.parse().map_err(str::to_owned)
}

/// [`numbers`], or `none`.
///
/// # Errors
/// What is wrong, for clap.
pub fn numbers_or_none(text: &str) -> Result<OrNone<NumberSet>, String> {
    or_none(text, numbers)
}

fn split(text: &str) -> Result<(u64, &str), String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    if number.is_empty() {
        return Err("must begin with a whole number".into());
    }
    let number = number.parse().map_err(|_| "is too large")?;
    Ok((number, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        for (text, want) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("1k", 1024),
            ("2GiB", 2 << 30),
            ("2 GiB", 2 << 30),
            ("2g", 2 << 30),
            ("2GB", 2_000_000_000),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(Bytes(want)), "{text}");
        }
        for bad in ["", "GiB", "-1", "1.5G", "1X", "99999999999999999999", "99999999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_seconds_unless_said() {
        for (text, ms) in [
            ("0", 0),
            ("90", 90_000),
            ("90s", 90_000),
            ("250ms", 250),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "s", "1w", "367d", "-1", "9999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cores_are_hundredths() {
        for (text, want) in [("1", 100), ("0.5", 50), (".25", 25), ("2.05", 205)] {
            assert_eq!(cores(text), Ok(CentiCores(want)), "{text}");
        }
        for bad in ["", ".", "0", "0.001", "x", "1.x", "-1", "1e3", "4294967296"] {
            assert!(cores(bad).is_err(), "{bad}");
        }
    }
}
