//! PAX extended headers (POSIX.1-2001 `pax`): records `LENGTH KEY=VALUE\n`.
//!
//! Values are bytes: no charset is assumed, and names that differ only in Unicode form stay different.

use crate::error::{Limit, Refusal};
use crate::limits::Limits;

/// The records that matter to us.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Pax {
    pub fn is_inert(&self) -> bool {
        *self == Self::default()
    }
}

pub(super) fn parse(mut body: &[u8], limits: &Limits) -> Result<Pax, Refusal> {
    let mut pax = Pax::default();
    while !body.is_empty() {
        let (key, value, rest) = record(body)?;
        body = rest;
        match key {
            b"path" => pax.path = Some(path(value, limits)?),
            b"linkpath" => pax.link = Some(path(value, limits)?),
            b"size" => pax.size = Some(number(value)?),
            b"uid" => pax.uid = Some(number(value)?),
            b"gid" => pax.gid = Some(number(value)?),
            b"mtime" => pax.mtime = Some(time(value)?),
            _ if key.starts_with(b"GNU.sparse.") => return Err(Refusal::Sparse),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.len() > 255 || name.contains(&0) {
                        return Err(Refusal::Xattr("bad name"));
                    }
                    // As with every other key the last record wins.
                    pax.xattrs.retain(|(known, _)| known != name);
                    pax.xattrs.push((name.to_vec(), value.to_vec()));
                    if pax.xattrs.len() > MAX_XATTRS {
                        return Err(Refusal::Xattr("more than 128 on one entry"));
                    }
                }
            }
        }
    }
    Ok(pax)
}

/// Far above what one inode can hold on ext4 or xfs; keeps the search for doubles short.
const MAX_XATTRS: usize = 128;

/// Key, value, and what comes after the record.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn record(body: &[u8]) -> Result<Record<'_>, Refusal> {
    const BAD: Refusal = Refusal::Pax("record without a proper length");
    let space = body.iter().take(20).position(|b| *b == b' ').ok_or(BAD)?;
    let length = usize::try_from(number(&body[..space])?).map_err(|_| BAD)?;
    if length <= space + 1 || length > body.len() || body[length - 1] != b'\n' {
        return Err(BAD);
    }
    let text = &body[space + 1..length - 1];
    let equals = text.iter().position(|b| *b == b'=').ok_or(Refusal::Pax("record without '='"))?;
    if equals == 0 {
        return Err(Refusal::Pax("record without a key"));
    }
    Ok((&text[..equals], &text[equals + 1..], &body[length..]))
}

fn path(value: &[u8], limits: &Limits) -> Result<Vec<u8>, Refusal> {
    if value.len() > limits.path_bytes {
        return Err(Refusal::limit(Limit::PathBytes, limits.path_bytes));
    }
    if value.contains(&0) {
        return Err(Refusal::Nul);
    }
    Ok(value.to_vec())
}

fn number(text: &[u8]) -> Result<u64, Refusal> {
    const BAD: Refusal = Refusal::Pax("bad number");
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    str::from_utf8(text).ok().and_then(|t| t.parse().ok()).ok_or(BAD)
}

fn time(text: &[u8]) -> Result<(i64, u32), Refusal> {
    const BAD: Refusal = Refusal::Pax("bad time");
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |t| (true, t));
    let dot = text.iter().position(|b| *b == b'.');
    let (whole, fraction) = dot.map_or((text, &b""[..]), |d| (&text[..d], &text[d + 1..]));
    let seconds = number(whole).ok().and_then(|n| i64::try_from(n).ok()).ok_or(BAD)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0, |n, b| n * 10 + u32::from(b - b'0'));
    Ok(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse_default(body: &[u8]) -> Result<Pax, Refusal> {
        parse(body, &Limits::default())
    }

    #[test]
    fn records_are_read_and_the_last_of_a_key_wins() {
        let body =
            b"8 uid=1\n8 uid=2\n9 path=a\n21 mtime=-1.25000000\n27 SCHILY.xattr.user.a==b\n\n";
        let pax = parse_default(body).unwrap();
        assert_eq!(pax.uid, Some(2));
        assert_eq!(pax.path.as_deref(), Some(&b"a"[..]));
        assert_eq!(pax.mtime, Some((-2, 750_000_000)));
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"=b\n".to_vec())]);
    }

    #[test]
    fn broken_records_are_refused() {
        for body in [
            &b"9 path=a"[..],
            b"99 path=a\n",
            b"0 path=a\n",
            b"2 \n",
            b"4 a\n\n",
            b"5 =a\n",
            b"-9 path=a\n",
            b"+9 path=a\n",
            b"9path=a\n",
            b"99999999999999999999 a=b\n",
            b"8 uid=-\n",
            b"11 size=-12\n",
            b"12 size=1e10\n",
            b"30 size=18446744073709551616\n",
            b"12 mtime=1,5\n",
        ] {
            assert!(matches!(parse_default(body), Err(Refusal::Pax(_))), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn sparse_keys_nul_paths_and_long_paths_are_refused() {
        assert_eq!(parse_default(b"22 GNU.sparse.major=1\n"), Err(Refusal::Sparse));
        assert_eq!(parse_default(b"12 path=a\0b\n"), Err(Refusal::Nul));
        let long = [b"307205 path=".to_vec(), vec![b'a'; 307_192], b"\n".to_vec()].concat();
        assert_eq!(parse_default(&long), Err(Refusal::limit(Limit::PathBytes, 4095u64)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_default(&body);
        }

        #[test]
        fn every_written_record_is_read_back(value in proptest::collection::vec(1u8.., 1..300)) {
            let mut length = value.len() + 7;
            while length != value.len() + 7 + length.to_string().len() {
                length = value.len() + 7 + length.to_string().len();
            }
            let body = [length.to_string().into_bytes(), b" path=".to_vec(), value.clone(), b"\n".to_vec()];
            prop_assert_eq!(parse_default(&body.concat()).unwrap().path, Some(value));
        }
    }
}
