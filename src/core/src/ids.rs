//! Names and identifiers, parsed once at the boundary into types that cannot be wrong.

use std::fmt;
use std::str::FromStr;

/// Why a text is not an identifier of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {what}: {rule}")]
pub struct BadId {
    /// The kind of identifier, as users name it.
    pub what: &'static str,
    /// The offending text, cut to 80 characters.
    pub text: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

impl BadId {
    fn new(what: &'static str, text: &str, rule: &'static str) -> Self {
        Self { what, text: text.chars().take(80).collect(), rule }
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The text, as given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let check: fn(&str) -> Result<(), &'static str> = $check;
                check(text).map_err(|rule| BadId::new($what, text, rule))?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

text_id!(
    /// A VM's identity, chosen by the caller: OpenNebula `one-42`, Nova the instance's uuid.
    ///
    /// `[a-z0-9][a-z0-9._-]{0,62}`, so it is safe as path component, cgroup and unit name.
    VmId,
    "vm id",
    |text| {
        let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"._-".contains(&c);
        let bytes = text.as_bytes();
        match bytes {
            [] => Err("must not be empty"),
            [first, ..] if !(first.is_ascii_lowercase() || first.is_ascii_digit()) => {
                Err("must begin with a-z or 0-9")
            }
            _ if bytes.len() > 63 => Err("must have at most 63 characters"),
            _ if !bytes.iter().all(|c| ok(*c)) => Err("may hold only a-z 0-9 . _ -"),
            _ => Ok(()),
        }
    }
);

text_id!(
    /// Identity of one request, chosen by the client: the same id is one effect, also after a
    /// restart of the daemon. 1 to 128 printable ASCII characters without blanks.
    RequestId,
    "request id",
    |text| {
        if text.is_empty() || text.len() > 128 {
            Err("must have 1 to 128 characters")
        } else if !text.bytes().all(|c| c.is_ascii_graphic()) {
            Err("may hold only printable ASCII without blanks")
        } else {
            Ok(())
        }
    }
);

text_id!(
    /// Name of a network interface: 1 to 15 bytes (`IFNAMSIZ`), letters, digits, `.`, `_` and `-`.
    ///
    /// The kernel allows more (`dev_valid_name` in net/core/dev.c); no platform uses it, and names
    /// end up in tools' arguments and logs.
    IfName,
    "interface name",
    |text| {
        let bad = |c: char| !c.is_ascii_alphanumeric() && !".-_".contains(c);
        if text.is_empty() || text.len() > 15 {
            Err("must have 1 to 15 characters")
        } else if text == "." || text == ".." || text.starts_with('-') || text.contains(bad) {
            Err("may hold only letters, digits, . _ and -, and not begin with -")
        } else {
            Ok(())
        }
    }
);

text_id!(
    /// Host name of a guest: RFC 1123 labels, at most 63 characters (`HOST_NAME_MAX` is 64).
    Hostname,
    "host name",
    |text| {
        if text.is_empty() || text.len() > 63 {
            return Err("must have 1 to 63 characters");
        }
        let label = |l: &str| {
            !l.is_empty()
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
        };
        if text.split('.').all(label) {
            Ok(())
        } else {
            Err("labels hold only letters, digits and inner hyphens (RFC 1123)")
        }
    }
);

text_id!(
    /// A name for people: 1 to 256 bytes of UTF-8 without control characters.
    DisplayName,
    "name",
    |text| {
        if text.is_empty() || text.len() > 256 {
            Err("must have 1 to 256 bytes")
        } else if text.chars().any(char::is_control) {
            Err("must not hold control characters")
        } else {
            Ok(())
        }
    }
);

text_id!(
    /// A domain that names are looked up in, as resolv.conf(5) has it: labels of letters, digits, hyphens and
    /// underscores, at most 253 characters; a dot may end it.
    Domain,
    "domain",
    |text| {
        let label = |l: &str| {
            let ok = |c: u8| c.is_ascii_alphanumeric() || b"-_".contains(&c);
            !l.is_empty() && l.len() <= 63 && l.bytes().all(ok)
        };
        if text.len() > 253 {
            return Err("must have at most 253 characters");
        }
        if text == "." || text.strip_suffix('.').unwrap_or(text).split('.').all(label) {
            Ok(())
        } else {
            Err("labels hold only letters, digits, hyphens and underscores")
        }
    }
);

impl Hostname {
    /// Makes a host name of any text: letters, digits and hyphens stay, the rest becomes hyphens.
    /// A text with nothing to keep becomes `fallback`.
    #[must_use]
    pub fn from_display(text: &str, fallback: &VmId) -> Self {
        let clean = |text: &str| -> String {
            let mapped: String = text
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                .take(63)
                .collect();
            mapped.trim_matches('-').to_owned()
        };
        let kept = clean(text);
        let name = if kept.is_empty() { clean(fallback.as_str()) } else { kept };
        Self(if name.is_empty() { "guest".to_owned() } else { name })
    }
}

/// Number of an operation, unique for the life of a state directory and growing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op-{}", self.0)
    }
}

/// How often a record was written; a later write has a larger number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// The number of the next write.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// First host id of a guest's range of [`IdRange::LEN`] user and group ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdRange {
    /// Host id that is root inside the guest.
    pub base: u32,
}

impl IdRange {
    /// Ids in a range: what a distribution uses, and what images are held to at import.
    pub const LEN: u32 = 65_536;
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.base, u64::from(self.base) + u64::from(Self::LEN) - 1)
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl FromStr for MacAddr {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = |rule| BadId::new("MAC address", text, rule);
        let mut bytes = [0_u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(|| bad("must have six parts"))?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(bad("must be six pairs of hex digits joined by colons"));
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad("must be hex"))?;
        }
        if parts.next().is_some() {
            return Err(bad("must have six parts"));
        }
        if bytes[0] & 1 == 1 {
            return Err(bad("must not be a multicast address"));
        }
        if bytes == [0; 6] {
            return Err(bad("must not be all zero"));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm_ids_are_safe_as_path_cgroup_and_unit_names() {
        for good in ["one-42", "0", "a.b_c-d", "6f1c2f6e-7c1d-4a52-9a3c-3a2b8a7f1c11"] {
            assert_eq!(good.parse::<VmId>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-a", "A", "a/b", "a b", "a\n", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<VmId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        assert_eq!("one-42-0".parse::<IfName>().unwrap().as_str(), "one-42-0");
        for bad in ["", ".", "..", "a/b", "a b", "sixteen-letters-", "a\0", "a%d", "-o"] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn mac_addresses_round_trip_and_refuse_groups() {
        assert_eq!(
            "02:00:C0:a8:64:0a".parse::<MacAddr>().unwrap().to_string(),
            "02:00:c0:a8:64:0a"
        );
        for bad in
            ["", "02:00:c0:a8:64", "02:00:c0:a8:64:0a:00", "01:00:5e:00:00:01", "2:0:c0:a8:64:a"]
        {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn host_names_are_made_of_any_text() {
        let id: VmId = "one-7".parse().unwrap();
        for (text, want) in
            [("web1", "web1"), ("my server", "my-server"), ("ü", "one-7"), ("--", "one-7")]
        {
            let made = Hostname::from_display(text, &id);
            assert_eq!(made.as_str(), want);
            assert_eq!(made.as_str().parse::<Hostname>().unwrap(), made);
        }
    }
}
