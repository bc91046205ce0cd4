//! OpenNebula's configuration files, as far as the installer must understand them: which blocks are there.
//!
//! The syntax: `KEY = value` and `KEY = [ KEY = "value", … ]`, `#` begins a comment. Keys are of any case.

use std::collections::BTreeMap;

/// A block or a single value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `KEY = value`.
    Single(String),
    /// `KEY = [ … ]`; keys in upper case.
    Vector(BTreeMap<String, String>),
}

/// A file, in its order; keys in upper case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conf(Vec<(String, Value)>);

impl Conf {
    /// Reads a file.
    ///
    /// # Errors
    /// The number of the line where it is not what it should be, and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Reader { rest: text, line: 1 };
        let mut all = Vec::new();
        while let Some(key) = reader.key()? {
            reader.expect('=')?;
            let vector = reader.rest.trim_start_matches([' ', '\t']).starts_with('[');
            let value = if vector { reader.vector()? } else { Value::Single(reader.value("")?) };
            all.push((key, value));
        }
        Ok(Self(all))
    }

    /// Blocks of that key.
    pub fn blocks(&self, key: &str) -> impl Iterator<Item = &BTreeMap<String, String>> {
        self.0.iter().filter_map(move |(known, value)| match value {
            Value::Vector(block) if known == key => Some(block),
            _ => None,
        })
    }

    /// Blocks of that key with that `NAME`; there should be no more than one.
    pub fn named(&self, key: &str, name: &str) -> Vec<&BTreeMap<String, String>> {
        let has = |block: &&BTreeMap<_, _>| block.get("NAME").is_some_and(|known| known == name);
        self.blocks(key).filter(has).collect()
    }

    /// Whether that key has that value somewhere.
    pub fn says(&self, key: &str, value: &str) -> bool {
        self.0.iter().any(|(known, said)| {
            known == key && matches!(said, Value::Single(text) if text == value)
        })
    }
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl Reader<'_> {
    fn fail<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("line {}: {what}", self.line))
    }

    fn skip(&mut self) {
        loop {
            let blank = self.rest.len() - self.rest.trim_start().len();
            self.step(blank);
            if !self.rest.starts_with('#') {
                return;
            }
            self.step(self.rest.find('\n').unwrap_or(self.rest.len()));
        }
    }

    fn step(&mut self, bytes: usize) {
        let (gone, rest) = self.rest.split_at(bytes);
        self.line += gone.matches('\n').count();
        self.rest = rest;
    }

    fn peek(&mut self) -> Option<char> {
        self.skip();
        self.rest.chars().next()
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.peek() != Some(wanted) {
            return self.fail(&format!("{wanted:?} expected"));
        }
        self.step(wanted.len_utf8());
        Ok(())
    }

    fn key(&mut self) -> Result<Option<String>, String> {
        if self.peek().is_none() {
            return Ok(None);
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = self.rest.find(|c| !word(c)).unwrap_or(self.rest.len());
        if length == 0 {
            return self.fail("a key expected");
        }
        let key = self.rest[..length].to_ascii_uppercase();
        self.step(length);
        Ok(Some(key))
    }

    /// Up to a quote's end, or to a line's end or one of `ends`. Nothing at all is an empty value.
    fn value(&mut self, ends: &str) -> Result<String, String> {
        let blank = self.rest.len() - self.rest.trim_start_matches([' ', '\t']).len();
        self.step(blank);
        if !self.rest.starts_with('"') {
            let end = |c: char| c == '\n' || c == '#' || ends.contains(c);
            let length = self.rest.find(end).unwrap_or(self.rest.len());
            let value = self.rest[..length].trim().to_owned();
            self.step(length);
            return Ok(value);
        }
        let mut value = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.step(at + 1);
                    return Ok(value);
                }
                '\\' => match chars.next() {
                    Some((_, '"')) => value.push('"'),
                    Some((_, other)) => value.extend(['\\', other]),
                    None => break,
                },
                other => value.push(other),
            }
        }
        self.fail("a quote is not closed")
    }

    fn vector(&mut self) -> Result<Value, String> {
        self.expect('[')?;
        let mut block = BTreeMap::new();
        while self.peek() != Some(']') {
            let Some(key) = self.key()? else { return self.fail("a bracket is not closed") };
            self.expect('=')?;
            block.insert(key, self.value(",]")?);
            if self.peek() == Some(',') {
                self.step(1);
            }
        }
        self.step(1);
        Ok(Value::Vector(block))
    }
}

/// The list that follows an option, in the arguments of a driver process; none if it has not this option, and then
/// knows all there are.
pub fn list<'a>(arguments: &'a str, option: &str) -> Option<&'a str> {
    let mut words = arguments.split_whitespace().skip_while(|known| *known != option);
    words.nth(1)
}

/// Whether `word` is in the list that follows `option`, or needs not be.
pub fn lists(arguments: &str, option: &str, word: &str) -> bool {
    list(arguments, option).is_none_or(|list| list.split(',').any(|known| known == word))
}

/// The arguments with `word` in that list.
pub fn with_listed(arguments: &str, option: &str, word: &str) -> String {
    let mut words: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let at = words.iter().position(|known| known == option).map(|at| at + 1);
    if let Some(list) = at.and_then(|at| words.get_mut(at))
        && !lists(arguments, option, word)
    {
        list.push(',');
        list.push_str(word);
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "# comment = [\nPORT = 2633 # why\nlisten_address=\"0.0.0.0\"\n\
        VM_MAD = [\n  NAME = \"kvm\",   # c ]\n  ARGUMENTS = \"-t 15 -r 0 kvm\",\n  TYPE=kvm ]\n\
        VM_MAD = [ NAME=\"a\\\"b\", IMPORTED=\"x, y ]\" ]\nINHERIT_IMAGE_ATTR = \"ISCSI_USAGE\"\n";

    #[test]
    fn blocks_and_values_are_read() {
        let conf = Conf::parse(SAMPLE).unwrap();
        assert_eq!(conf.blocks("VM_MAD").count(), 2);
        assert_eq!(conf.named("VM_MAD", "kvm")[0]["ARGUMENTS"], "-t 15 -r 0 kvm");
        assert_eq!(conf.named("VM_MAD", "kvm")[0]["TYPE"], "kvm");
        assert_eq!(conf.named("VM_MAD", "a\"b")[0]["IMPORTED"], "x, y ]");
        assert!(conf.says("PORT", "2633") && conf.says("LISTEN_ADDRESS", "0.0.0.0"));
        assert!(conf.says("INHERIT_IMAGE_ATTR", "ISCSI_USAGE"));
        assert!(!conf.says("INHERIT_IMAGE_ATTR", "OTHER"));
    }

    #[test]
    fn what_is_broken_is_said_with_its_line() {
        for (text, want) in [
            ("A = 1\nB [", "line 2: '=' expected"),
            ("A = [ B = \"x\n", "line 1: a quote is not closed"),
            ("A = [ B = 1,\n", "line 2: a bracket is not closed"),
            ("\n\n= 1", "line 3: a key expected"),
        ] {
            assert_eq!(Conf::parse(text).unwrap_err(), want);
        }
    }

    #[test]
    fn an_empty_value_swallows_nothing() {
        let conf = Conf::parse("MAC_PREFIX =\nTM_MAD = [\n A = ,\n B = \"x\" ]\nC = # none\nD = 1")
            .unwrap();
        assert!(conf.says("MAC_PREFIX", "") && conf.says("C", "") && conf.says("D", "1"));
        let block = conf.blocks("TM_MAD").next().unwrap();
        assert_eq!((block["A"].as_str(), block["B"].as_str()), ("", "x"));
    }

    #[test]
    fn a_word_is_added_to_a_list_once() {
        let arguments = "-t 15 -d dummy,shared -s ssh";
        assert_eq!(with_listed(arguments, "-d", "oci"), "-t 15 -d dummy,shared,oci -s ssh");
        assert_eq!(with_listed(arguments, "-s", "oci"), "-t 15 -d dummy,shared -s ssh,oci");
        assert_eq!(with_listed(arguments, "-d", "shared"), arguments);
        assert_eq!(with_listed(arguments, "-m", "oci"), arguments);
        assert!(lists(arguments, "-d", "dummy") && !lists(arguments, "-d", "dum"));
        assert!(!lists(arguments, "-s", "shared"));
        assert!(lists(arguments, "-m", "oci"), "without the option all are known");
    }
}
