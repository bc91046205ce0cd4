//! `WWW-Authenticate` (RFC 9110 §11.6.1), and `Content-Range` (§14.4): headers by which a hostile registry could
//! lead us astray. Pure, bounded, and without leniency: what could be read in two ways is refused.

use std::collections::BTreeMap;

/// Header lines, bytes per line, challenges, and parameters per challenge that are read.
const LINES: usize = 8;
const BYTES: usize = 8 * 1024;
const CHALLENGES: usize = 8;
const PARAMETERS: usize = 16;

/// How a registry wants to be logged in at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Challenges {
    pub basic: bool,
    pub bearer: Option<Bearer>,
}

/// Where to get a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bearer {
    pub realm: String,
    pub service: Option<String>,
}

/// Reads all lines of the header. Schemes that are not known are passed over.
pub(crate) fn parse<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Result<Challenges, &'static str> {
    let mut all = Challenges::default();
    let mut count = 0;
    for (n, line) in lines.enumerate() {
        if n >= LINES || line.len() > BYTES {
            return Err("too long");
        }
        let mut reader = Reader { left: line };
        while let Some((scheme, mut parameters)) = reader.challenge()? {
            count += 1;
            if count > CHALLENGES {
                return Err("too many challenges");
            }
            if scheme == "basic" {
                all.basic = true;
            }
            if scheme == "bearer" {
                let realm = parameters.remove("realm").ok_or("a token without a realm")?;
                let service = parameters.remove("service");
                if all.bearer.replace(Bearer { realm, service }).is_some() {
                    return Err("more than one realm for tokens");
                }
            }
        }
    }
    Ok(all)
}

/// Scheme and parameters.
type Challenge = (String, BTreeMap<String, String>);

struct Reader<'a> {
    left: &'a [u8],
}

impl Reader<'_> {
    /// The next challenge: scheme and parameters, their names in lower case.
    fn challenge(&mut self) -> Result<Option<Challenge>, &'static str> {
        self.skip(b" \t,");
        if self.left.is_empty() {
            return Ok(None);
        }
        let scheme = self.token()?.to_ascii_lowercase();
        if !self.left.is_empty() && !b" \t,".contains(&self.left[0]) {
            return Err("a scheme that does not end");
        }
        let mut parameters = BTreeMap::new();
        self.skip(b" \t");
        if self.token68() {
            return Ok(Some((scheme, parameters)));
        }
        loop {
            self.skip(b" \t,");
            // A word without `=` is the next challenge's scheme.
            let before = self.left;
            if self.left.is_empty() {
                break;
            }
            let name = self.token()?;
            self.skip(b" \t");
            if !self.take(b'=') {
                self.left = before;
                break;
            }
            self.skip(b" \t");
            let value = if self.take(b'"') { self.quoted()? } else { self.token()? };
            if parameters.len() >= PARAMETERS {
                return Err("too many parameters");
            }
            // What the value of a doubled one is depends on the reader.
            if parameters.insert(name.to_ascii_lowercase(), value).is_some() {
                return Err("a parameter twice");
            }
            self.skip(b" \t");
            if !self.left.is_empty() && self.left[0] != b',' {
                return Err("text behind a parameter");
            }
        }
        Ok(Some((scheme, parameters)))
    }

    fn skip(&mut self, what: &[u8]) {
        let n = self.left.iter().take_while(|b| what.contains(b)).count();
        self.left = &self.left[n..];
    }

    fn take(&mut self, what: u8) -> bool {
        let is = self.left.first() == Some(&what);
        if is {
            self.left = &self.left[1..];
        }
        is
    }

    /// RFC 9110 §5.6.2.
    fn token(&mut self) -> Result<String, &'static str> {
        let is = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        let n = self.left.iter().take_while(|b| is(b)).count();
        if n == 0 {
            return Err("a character that does not belong there");
        }
        let (token, left) = self.left.split_at(n);
        self.left = left;
        Ok(String::from_utf8_lossy(token).into_owned())
    }

    /// Passes over a token68, which only schemes have that are not known here.
    fn token68(&mut self) -> bool {
        let is = |b: &u8| b.is_ascii_alphanumeric() || b"-._~+/".contains(b);
        let n = self.left.iter().take_while(|b| is(b)).count();
        let pad = self.left[n..].iter().take_while(|b| **b == b'=').count();
        let mut after = Reader { left: &self.left[n + pad..] };
        after.skip(b" \t");
        let ends = n > 0 && (after.left.is_empty() || after.left[0] == b',');
        if ends {
            self.left = &self.left[n + pad..];
        }
        ends
    }

    fn quoted(&mut self) -> Result<String, &'static str> {
        let mut out = String::new();
        let mut bytes = self.left.iter().enumerate();
        while let Some((at, byte)) = bytes.next() {
            let byte = match byte {
                b'"' => {
                    self.left = &self.left[at + 1..];
                    return Ok(out);
                }
                b'\\' => bytes.next().ok_or("an open quotation")?.1,
                byte => byte,
            };
            if !(b' '..=b'~').contains(byte) {
                return Err("a control or foreign character");
            }
            out.push(char::from(*byte));
        }
        Err("an open quotation")
    }
}

/// `Content-Range: bytes first-last/total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub first: u64,
    pub last: u64,
    /// None for `*`.
    pub total: Option<u64>,
}

impl ContentRange {
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (first, rest) = text.strip_prefix("bytes ")?.split_once('-')?;
        let (last, total) = rest.split_once('/')?;
        let range = Self {
            first: number(first)?,
            last: number(last)?,
            total: if total == "*" { None } else { Some(number(total)?) },
        };
        let sound = range.first <= range.last && range.total.is_none_or(|t| range.last < t);
        sound.then_some(range)
    }
}

/// Decimal digits and nothing else.
pub(crate) fn number(text: &str) -> Option<u64> {
    let good = (1..=19).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    if good { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(lines: &[&str]) -> Result<Challenges, &'static str> {
        parse(lines.iter().map(|l| l.as_bytes()))
    }

    fn bearer(realm: &str, service: Option<&str>) -> Option<Bearer> {
        Some(Bearer { realm: realm.into(), service: service.map(str::to_owned) })
    }

    #[test]
    fn challenges_as_registries_write_them() {
        let token =
            r#"Bearer realm="https://auth.example/token",service="a, \"b\"",scope="x:y:pull,push""#;
        let both = [r#"Basic realm="x""#, token];
        let want = bearer("https://auth.example/token", Some("a, \"b\""));
        for (lines, basic, token) in [
            (&["Basic realm=\"x\""][..], true, None),
            (&["basic"], true, None),
            (&[token], false, want.clone()),
            (&both, true, want.clone()),
            (&[&both.join(", ")], true, want.clone()),
            (&[&format!("Negotiate abc==, {token}")], false, want.clone()),
            (&[&format!("{token} , NTLM")], false, want),
            (&["bearer Realm=X , error = \"y\""], false, bearer("X", None)),
            (&["Digest realm=\"x\", nonce=\"y\""], false, None),
            (&[""], false, None),
            (&[], false, None),
        ] {
            assert_eq!(read(lines), Ok(Challenges { basic, bearer: token }), "{lines:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let realms = [r#"Bearer realm="https://x/""#; 100].join(", ");
        let long = format!("Bearer realm=\"{}\"", "x".repeat(9000));
        let many = format!("Bearer {}", (0..100).map(|n| format!("a{n}=b,")).collect::<String>());
        let basics = ["Basic"; 9].join(",");
        for (lines, why) in [
            (&[realms.as_str()][..], "more than one realm for tokens"),
            (&["Bearer realm=a", "Bearer realm=b"], "more than one realm for tokens"),
            (&[long.as_str()], "too long"),
            (&["Basic"; 9], "too long"),
            (&[many.as_str()], "too many parameters"),
            (&[basics.as_str()], "too many challenges"),
            (&["Bearer"], "a token without a realm"),
            (&["Bearer realm=a, realm=b"], "a parameter twice"),
            (&["Bearer realm=a, REALM=b"], "a parameter twice"),
            (&["Bearer realm=\"a"], "an open quotation"),
            (&["Bearer realm=\"a\\"], "an open quotation"),
            (&["Bearer realm=\"a\nb\""], "a control or foreign character"),
            (&["Bearer realm=\"ä\""], "a control or foreign character"),
            (&["Bearer realm=\"a\"x"], "text behind a parameter"),
            (&["Bearer realm=a b"], "text behind a parameter"),
            (&["Bearer/realm"], "a scheme that does not end"),
            (&["=x"], "a character that does not belong there"),
            (&["Bearer realm=,"], "a token without a realm"),
            (&["Bearer a=b, realm=,"], "a character that does not belong there"),
        ] {
            assert_eq!(read(lines).unwrap_err(), why, "{lines:?}");
        }
    }

    #[test]
    fn a_range_is_read_exactly() {
        let range = |first, last, total| Some(ContentRange { first, last, total });
        for (text, want) in [
            ("bytes 0-0/1", range(0, 0, Some(1))),
            ("bytes 5-9/*", range(5, 9, None)),
            ("bytes 5-9/9", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes 0-9", None),
            ("bytes  0-9/10", None),
            ("bytes +0-9/10", None),
            ("bytes 0-18446744073709551616/*", None),
            ("items 0-9/10", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(text.as_bytes()), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(std::iter::once(&line[..]));
            let _ = ContentRange::parse(&line);
        }

        #[test]
        fn words_in_any_order_do_not_panic(words in "(Bearer|Basic|realm|=|\"|,| |\\\\|x|service){0,40}") {
            let _ = parse(std::iter::once(words.as_bytes()));
        }

        #[test]
        fn a_quoted_realm_survives(realm in "[ -~]{0,60}") {
            let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
            let line = format!("Bearer realm=\"{quoted}\"");
            let got = parse(std::iter::once(line.as_bytes())).unwrap();
            prop_assert_eq!(got.bearer.unwrap().realm, realm);
        }

        #[test]
        fn a_range_survives(first in 0u64..1<<60, length in 0u64..1<<60) {
            let text = format!("bytes {first}-{}/{}", first + length, first + length + 1);
            let want = ContentRange { first, last: first + length, total: Some(first + length + 1) };
            prop_assert_eq!(ContentRange::parse(text.as_bytes()), Some(want));
        }
    }
}
