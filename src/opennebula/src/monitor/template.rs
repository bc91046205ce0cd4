//! OpenNebula's template syntax, as far as it is written: `KEY="value"` and `KEY=[A="1",B="2"]`, a line each.

use std::fmt::{Display, Write};

/// Longest value of foreign text, in characters.
const MAX_VALUE: usize = 256;

/// Lines of template syntax.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template(String);

impl Template {
    /// The lines, each with its newline.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }

    /// The lines, each with its newline.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Adds `KEY=value`; for numbers and words, which need no quotes.
    pub fn bare(&mut self, key: &str, value: impl Display) -> &mut Self {
        let _infallible = writeln!(self.0, "{key}={value}");
        self
    }

    /// Adds `KEY="value"`; any text will do.
    pub fn quoted(&mut self, key: &str, value: &str) -> &mut Self {
        let end = value.char_indices().nth(MAX_VALUE).map_or(value.len(), |(at, _)| at);
        self.pair(key, &&value[..end]);
        self.0.push('\n');
        self
    }

    /// Adds `KEY=[A="1",B="2"]`.
    pub fn vector(&mut self, key: &str, pairs: &[(&str, &dyn Display)]) -> &mut Self {
        self.0.push_str(key);
        self.0.push_str("=[");
        for (at, (name, value)) in pairs.iter().enumerate() {
            if at > 0 {
                self.0.push(',');
            }
            self.pair(name, value);
        }
        self.0.push_str("]\n");
        self
    }

    fn pair(&mut self, name: &str, value: &dyn Display) {
        self.0.push_str(name);
        self.0.push_str("=\"");
        let _infallible = write!(Whole(&mut self.0), "{value}");
        self.0.push('"');
    }

    /// Adds the lines of another one.
    pub fn append(&mut self, other: &Self) -> &mut Self {
        self.0.push_str(&other.0);
        self
    }
}

/// One line that ends where its quotes do. Within quotes only `\"` is special; any other backslash could come to
/// stand before the closing quote, so there is none.
struct Whole<'a>(&'a mut String);

impl Write for Whole<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(|c: char| c == '"' || c == '\\' || c.is_control()) {
            let (fine, other) = rest.split_at(at);
            self.0.push_str(fine);
            let mut other = other.chars();
            match other.next() {
                Some('"') => self.0.push_str("\\\""),
                Some('\\') => self.0.push('/'),
                _ => self.0.push(' '),
            }
            rest = other.as_str();
        }
        self.0.push_str(rest);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cannot_leave_their_quotes() {
        let mut text = Template::default();
        text.bare("TOTALCPU", 1600)
            .quoted("MODELNAME", "a \"b\"\n] \\")
            .vector("VM", &[("ID", &7), ("STATE", &"RUNNING")]);
        let want =
            "TOTALCPU=1600\nMODELNAME=\"a \\\"b\\\" ] /\"\nVM=[ID=\"7\",STATE=\"RUNNING\"]\n";
        assert_eq!(text.text(), want);
    }
}
