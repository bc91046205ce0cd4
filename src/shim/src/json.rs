//! As much JSON as two small files need: flat writing, and a reader for what we wrote ourselves.
//!
//! The reader knows objects, strings, unsigned numbers and booleans, and finds a value by the path
//! of its keys. It is bounded by its input (files are read with a limit) and by [`MAX_DEPTH`].

/// Deepest nesting that is read.
pub const MAX_DEPTH: usize = 8;

/// A value that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A string, escapes resolved.
    Text(String),
    /// An unsigned integer.
    Number(u64),
    /// `true` or `false`.
    Bool(bool),
    /// An object, in the order of the file.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// The value under `key` of an object.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            Self::Text(_) | Self::Number(_) | Self::Bool(_) => None,
        }
    }

    /// The number under `key`.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.get(key)? {
            Self::Number(n) => Some(*n),
            Self::Text(_) | Self::Bool(_) | Self::Object(_) => None,
        }
    }

    /// The string under `key`.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Self::Text(text) => Some(text),
            Self::Number(_) | Self::Bool(_) | Self::Object(_) => None,
        }
    }

    /// The boolean under `key`.
    #[must_use]
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Self::Bool(b) => Some(*b),
            Self::Number(_) | Self::Text(_) | Self::Object(_) => None,
        }
    }
}

/// `text` as a JSON string with its quotes.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if u32::from(c) < 0x20 => {
                let hex = |n: u32| char::from_digit(n & 15, 16).unwrap_or('0');
                quoted.push_str("\\u00");
                quoted.push(hex(u32::from(c) >> 4));
                quoted.push(hex(u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Reads one object; `None` if it is anything else or has anything after it.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut reader = Reader { rest: text };
    let value = reader.value(0)?;
    reader.blanks();
    (reader.rest.is_empty() && matches!(value, Value::Object(_))).then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\n', '\r', '\t']);
    }

    fn eat(&mut self, token: &str) -> Option<()> {
        self.blanks();
        self.rest = self.rest.strip_prefix(token)?;
        Some(())
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.blanks();
        match self.rest.as_bytes().first()? {
            b'{' => self.object(depth),
            b'"' => self.string().map(Value::Text),
            b't' => self.eat("true").map(|()| Value::Bool(true)),
            b'f' => self.eat("false").map(|()| Value::Bool(false)),
            _ => {
                let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
                let (digits, rest) = self.rest.split_at(end);
                self.rest = rest;
                digits.parse().ok().map(Value::Number)
            }
        }
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        self.eat("{")?;
        let mut members = Vec::new();
        if self.eat("}").is_some() {
            return Some(Value::Object(members));
        }
        loop {
            let key = self.string()?;
            self.eat(":")?;
            members.push((key, self.value(depth + 1)?));
            if self.eat("}").is_some() {
                return Some(Value::Object(members));
            }
            self.eat(",")?;
        }
    }

    fn string(&mut self) -> Option<String> {
        self.eat("\"")?;
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        loop {
            match chars.next()? {
                (at, '"') => {
                    self.rest = &self.rest[at + 1..];
                    return Some(text);
                }
                (_, '\\') => match chars.next()?.1 {
                    c @ ('"' | '\\' | '/') => text.push(c),
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'u' => {
                        let mut code = 0;
                        for _ in 0..4 {
                            code = code * 16 + chars.next()?.1.to_digit(16)?;
                        }
                        text.push(char::from_u32(code)?);
                    }
                    _ => return None,
                },
                (_, c) => text.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_quoted_is_read_back() {
        for text in ["", "a b", "\"\\", "line\nend\u{1}\u{1f}", "ü/€"] {
            let json = format!("{{ \"k\" : {} }}\n", quote(text));
            assert_eq!(parse(json.as_bytes()).unwrap().text("k"), Some(text));
        }
    }

    #[test]
    fn values_are_found_by_key_and_kind() {
        let value = parse(br#"{"a":1,"b":{"c":true,"d":"x"},"e":{}}"#).unwrap();
        assert_eq!(value.number("a"), Some(1));
        assert_eq!(value.text("a"), None);
        assert_eq!(value.get("b").unwrap().bool("c"), Some(true));
        assert_eq!(value.get("b").unwrap().text("d"), Some("x"));
        assert_eq!(value.get("e"), Some(&Value::Object(vec![])));
    }

    #[test]
    fn anything_else_is_refused() {
        let deep = format!("{}1{}", "{\"a\":".repeat(20), "}".repeat(20));
        for bad in [
            "",
            "1",
            "{",
            "{}x",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":-1}",
            "{\"a\":1,}",
            "{\"a\":\"",
            "{\"a\":\"\\u12\"}",
            "{\"a\":99999999999999999999}",
            "[1]",
            &deep,
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(parse(b"{\"a\":\"\xff\"}"), None);
    }
}
