//! Texts of a wish, read with errors that name the field.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::BadId;

/// `address/prefix`, as in `10.0.0.2/24`. Whether the prefix fits is checked with the spec.
fn parse_network(text: &str) -> Option<(IpAddr, u8)> {
    let (addr, len) = text.split_once('/')?;
    if len.is_empty() || !len.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    Some((addr.parse().ok()?, len.parse().ok()?))
}

pub(super) fn network_text((addr, len): &(IpAddr, u8)) -> String {
    format!("{addr}/{len}")
}

/// Whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes as text, RFC 4648 section 4.
pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Errors that name the VM and the field.
pub(super) struct Fields<'a> {
    pub vm: &'a str,
}

impl Fields<'_> {
    pub fn bad(&self, field: &str, why: &dyn std::fmt::Display) -> Error {
        let vm: String = self.vm.chars().take(80).collect();
        Error::new(ErrorKind::Invalid, format!("vm {vm}: {field}: {why}"))
    }

    pub fn id<T: std::str::FromStr<Err = BadId>>(
        &self,
        field: &str,
        text: &str,
    ) -> Result<T, Error> {
        text.parse().map_err(|why| self.bad(field, &why))
    }

    pub fn network(&self, field: &str, text: &str) -> Result<(IpAddr, u8), Error> {
        let short: String = text.chars().take(80).collect();
        parse_network(text)
            .ok_or_else(|| self.bad(field, &format!("{short:?} is not an address/prefix")))
    }

    pub fn address(&self, field: &str, text: &str) -> Result<IpAddr, Error> {
        let short: String = text.chars().take(80).collect();
        text.parse().map_err(|_| self.bad(field, &format!("{short:?} is not an IP address")))
    }

    pub fn bytes(&self, field: &str, text: &str) -> Result<Vec<u8>, Error> {
        STANDARD.decode(text).map_err(|_| self.bad(field, &"it is not base64"))
    }

    pub fn ids<T: std::str::FromStr<Err = BadId>>(
        &self,
        field: &str,
        texts: &[String],
    ) -> Result<Vec<T>, Error> {
        texts.iter().map(|text| self.id(field, text)).collect()
    }

    pub fn addresses(&self, field: &str, texts: &[String]) -> Result<Vec<IpAddr>, Error> {
        texts.iter().map(|text| self.address(field, text)).collect()
    }
}
