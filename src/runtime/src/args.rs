//! Options: `--name value`, nothing else, because only our own daemon writes them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use ocivisor_core::error::{Error, ErrorKind, Result};

/// Pairs of a command line, taken out one by one.
#[derive(Debug)]
pub struct Options(Vec<(String, OsString)>);

impl Options {
    /// Splits a command line.
    ///
    /// # Errors
    /// `Invalid`: not of the form.
    pub fn parse(words: &[OsString]) -> Result<Self> {
        let bad = |what: String| Error::new(ErrorKind::Invalid, what);
        let mut pairs = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let name = word.to_str().and_then(|word| word.strip_prefix("--"));
            let name = name.ok_or_else(|| bad(format!("{word:?} is not an option")))?;
            let value = words.next().ok_or_else(|| bad(format!("--{name} lacks its value")))?;
            if value.as_bytes().is_empty() {
                return Err(bad(format!("--{name} is empty")));
            }
            pairs.push((name.to_owned(), value.clone()));
        }
        Ok(Self(pairs))
    }

    /// All values of an option.
    pub fn all(&mut self, name: &str) -> Vec<OsString> {
        let mut taken = Vec::new();
        self.0.retain(|(known, value)| {
            let ours = known == name;
            if ours {
                taken.push(value.clone());
            }
            !ours
        });
        taken
    }

    /// The value of an option that may be absent; the last one counts.
    pub fn optional(&mut self, name: &str) -> Option<OsString> {
        self.all(name).pop()
    }

    /// The value of an option.
    ///
    /// # Errors
    /// `Invalid`: absent.
    pub fn required(&mut self, name: &str) -> Result<OsString> {
        let missing = || Error::new(ErrorKind::Invalid, format!("--{name} is missing"));
        self.optional(name).ok_or_else(missing)
    }

    /// An absolute path.
    ///
    /// # Errors
    /// `Invalid`: absent or relative.
    pub fn path(&mut self, name: &str) -> Result<PathBuf> {
        let path = PathBuf::from(self.required(name)?);
        if path.is_absolute() {
            return Ok(path);
        }
        Err(Error::new(ErrorKind::Invalid, format!("--{name} is not an absolute path")))
    }

    /// A value that is a number or the like.
    ///
    /// # Errors
    /// `Invalid`: absent or malformed.
    pub fn parsed<T: FromStr>(&mut self, name: &str) -> Result<T> {
        let text = self.required(name)?;
        let bad = || Error::new(ErrorKind::Invalid, format!("--{name} is {text:?}"));
        text.to_str().and_then(|text| text.parse().ok()).ok_or_else(bad)
    }

    /// A number that may be absent.
    ///
    /// # Errors
    /// `Invalid`: malformed.
    pub fn optional_number(&mut self, name: &str) -> Result<Option<u32>> {
        let Some(text) = self.optional(name) else { return Ok(None) };
        let bad = || Error::new(ErrorKind::Invalid, format!("--{name} is {text:?}"));
        text.to_str().and_then(|text| text.parse().ok()).map(Some).ok_or_else(bad)
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// `Invalid`: names an option that nobody took.
    pub fn done(self) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                Err(Error::new(ErrorKind::Invalid, format!("--{name} is not known")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Options> {
        Options::parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_taken_by_name() {
        let mut got = options(&["--a", "/x", "--n", "7", "--a", "/y", "--b", "--a"]).unwrap();
        assert_eq!(got.optional("none"), None);
        assert_eq!(got.parsed::<u32>("n").unwrap(), 7);
        assert_eq!(got.all("a"), ["/x", "/y"]);
        assert_eq!(got.required("b").unwrap(), "--a");
        assert!(got.required("b").is_err());
        got.done().unwrap();
    }

    #[test]
    fn malformed_lines_are_refused() {
        assert!(options(&["a", "b"]).is_err());
        assert!(options(&["--a"]).is_err());
        assert!(options(&["--a", ""]).is_err());
        assert!(options(&["--a", "rel"]).unwrap().path("a").is_err());
        assert!(options(&["--a", "-1"]).unwrap().parsed::<u32>("a").is_err());
        assert!(options(&["--a", "1"]).unwrap().done().is_err());
    }
}
