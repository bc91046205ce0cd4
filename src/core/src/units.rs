//! Quantities with their unit in the type.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bytes(pub u64);

impl Bytes {
    /// `n` mebibytes; saturates.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// Hundredths of a processor: 50 is half a core, 200 is two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CentiCores(pub u32);

impl fmt::Display for CentiCores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// Numbers of processors or memory nodes, written as the kernel does: `0-3,8` (cpuset(7), List format). Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberSet(BTreeSet<u16>);

impl NumberSet {
    /// Largest number, far above what kernels are built for.
    const MAX: u16 = 8191;

    /// These numbers; `None` if there are none, or one of them is beyond what kernels are built for.
    #[must_use]
    pub fn new(numbers: impl IntoIterator<Item = u16>) -> Option<Self> {
        let all: BTreeSet<u16> = numbers.into_iter().collect();
        all.last().is_some_and(|last| *last <= Self::MAX).then_some(Self(all))
    }

    /// Whether this number is one of them.
    #[must_use]
    pub fn contains(&self, number: u16) -> bool {
        self.0.contains(&number)
    }

    /// The numbers, rising.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().copied()
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl FromStr for NumberSet {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "is not a list of numbers up to 8191 such as 0-3,8";
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
            text.parse().ok().filter(|n| digits && *n <= Self::MAX).ok_or(WRONG)
        };
        let mut all = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u16, u16) = (number(first.trim())?, number(last.trim())?);
            if first > last {
                return Err(WRONG);
            }
            all.extend(first..=last);
        }
        Ok(Self(all))
    }
}

impl fmt::Display for NumberSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_in_the_largest_exact_unit() {
        for (bytes, want) in [
            (Bytes(0), "0 B"),
            (Bytes(1023), "1023 B"),
            (Bytes::mib(256), "256 MiB"),
            (Bytes::mib(2048), "2 GiB"),
            (Bytes((1 << 20) + 1), "1048577 B"),
        ] {
            assert_eq!(bytes.to_string(), want);
        }
    }

    #[test]
    fn lists_of_numbers_are_read_and_written_as_the_kernel_does() {
        for (text, want) in
            [("0", "0"), ("8,0-3", "0-3,8"), ("1,2,3,5", "1-3,5"), ("7-7", "7"), ("3, 4", "3-4")]
        {
            assert_eq!(text.parse::<NumberSet>().map(|set| set.to_string()).as_deref(), Ok(want));
        }
        assert_eq!(NumberSet::new([3, 1, 2, 1]).map(|set| set.to_string()).as_deref(), Some("1-3"));
        assert_eq!((NumberSet::new([]), NumberSet::new([8192])), (None, None));
        for text in ["", "a", "1-", "-1", "3-1", "1,,2", "8192", "+1", "0-99999"] {
            assert!(text.parse::<NumberSet>().is_err(), "{text}");
        }
    }
}
