//! Values that are strings in JSON: identifiers, names of kinds, times.

use std::fmt;
use std::str::FromStr;

use ocivisor_core::error::ErrorKind;
use ocivisor_core::ids::{DisplayName, Hostname, IfName, MacAddr, OpId, RequestId, VmId};
use ocivisor_core::state::{OpKind, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A type with one textual form that can be read back.
pub trait TextForm: Sized {
    /// The text.
    fn to_text(&self) -> String;

    /// The value of that text.
    ///
    /// # Errors
    /// Says which rule the text breaks.
    fn from_text(text: &str) -> Result<Self, String>;
}

/// A value of `T` that is a string in JSON and is checked when read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text<T>(pub T);

impl<T> From<T> for Text<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: TextForm> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_text())
    }
}

impl<T: TextForm> FromStr for Text<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        T::from_text(text).map(Self)
    }
}

impl<T: TextForm> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_text())
    }
}

impl<'de, T: TextForm> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::from_text(&text).map(Self).map_err(de::Error::custom)
    }
}

macro_rules! text_by_from_str {
    ($($name:ty),*) => {$(
        impl TextForm for $name {
            fn to_text(&self) -> String {
                self.to_string()
            }

            fn from_text(text: &str) -> Result<Self, String> {
                text.parse().map_err(|e: ocivisor_core::ids::BadId| e.to_string())
            }
        }
    )*};
}

text_by_from_str!(VmId, RequestId, IfName, Hostname, DisplayName, MacAddr);

macro_rules! text_by_name {
    ($($name:ty, $what:literal);*) => {$(
        impl TextForm for $name {
            fn to_text(&self) -> String {
                self.name().to_owned()
            }

            fn from_text(text: &str) -> Result<Self, String> {
                Self::from_name(text).ok_or_else(|| unknown($what, text))
            }
        }
    )*};
}

text_by_name!(OpKind, "operation kind"; ErrorKind, "error kind");

impl TextForm for OpId {
    fn to_text(&self) -> String {
        self.to_string()
    }

    /// `op-` and a decimal number without sign or leading zeros, so that one id has one text.
    fn from_text(text: &str) -> Result<Self, String> {
        text.strip_prefix("op-")
            .and_then(|digits| digits.parse().ok())
            .map(Self)
            .filter(|id| id.to_string() == text)
            .ok_or_else(|| {
                let text: String = text.chars().take(80).collect();
                format!("{text:?} is not a valid operation id: must be op- and a number")
            })
    }
}

fn unknown(what: &str, text: &str) -> String {
    let text: String = text.chars().take(80).collect();
    format!("{text:?} is not a known {what}")
}

/// A moment as RFC 3339 text in UTC with milliseconds: `2026-01-31T12:00:00.000Z`.
///
/// Finer digits are cut when read; moments before 1970 or after 9999 are refused when read and
/// clamped when written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimeV1(pub Timestamp);

impl fmt::Display for TimeV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0.0).unwrap_or(i64::MAX);
        let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
        write!(f, "{time:.3}")
    }
}

impl FromStr for TimeV1 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            let text: String = text.chars().take(80).collect();
            format!("{text:?} is not a time in RFC 3339: {why}")
        };
        let time: jiff::Timestamp = text.parse().map_err(|_| bad("cannot be read"))?;
        let millis = u64::try_from(time.as_millisecond()).map_err(|_| bad("before 1970"))?;
        Ok(Self(Timestamp(millis)))
    }
}

impl Serialize for TimeV1 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TimeV1 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl From<Timestamp> for TimeV1 {
    fn from(time: Timestamp) -> Self {
        Self(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operation_ids_have_one_text() {
        assert_eq!(OpId::from_text("op-7"), Ok(OpId(7)));
        assert_eq!(OpId::from_text("op-18446744073709551615"), Ok(OpId(u64::MAX)));
        for bad in ["", "7", "op-", "op-07", "op-+7", "op--7", "op-7 ", "op-18446744073709551616"] {
            assert!(OpId::from_text(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_are_utc_with_milliseconds() {
        for (millis, want) in
            [(0, "1970-01-01T00:00:00.000Z"), (1_769_860_800_007, "2026-01-31T12:00:00.007Z")]
        {
            let time = TimeV1(Timestamp(millis));
            assert_eq!(time.to_string(), want);
            assert_eq!(want.parse(), Ok(time));
        }
        assert_eq!(
            "2026-01-31T13:00:00.0079+01:00".parse(),
            Ok(TimeV1(Timestamp(1_769_860_800_007)))
        );
        for bad in ["", "now", "2026-01-31", "1969-12-31T23:59:59Z"] {
            assert!(bad.parse::<TimeV1>().is_err(), "{bad:?}");
        }
        assert!(TimeV1(Timestamp(u64::MAX)).to_string().starts_with("9999-12-30"));
    }

    #[test]
    fn bad_texts_are_refused_with_the_rule() {
        let error = serde_json::from_str::<Text<VmId>>("\"a/b\"").unwrap_err();
        assert_eq!(error.to_string(), "\"a/b\" is not a valid vm id: may hold only a-z 0-9 . _ -");
        let error = serde_json::from_str::<Text<OpKind>>("\"fly\"").unwrap_err();
        assert_eq!(error.to_string(), "\"fly\" is not a known operation kind");
    }
}
