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
        let _infallible = writeln!(self.0, "{key}=\"{}\"", plain(value));
        self
    }

    /// Adds `KEY=[A="1",B="2"]`.
    pub fn vector(&mut self, key: &str, pairs: &[(&str, &dyn Display)]) -> &mut Self {
        let pairs = pairs.iter().map(|(k, value)| format!("{k}=\"{}\"", whole(&value.to_string())));
        let pairs: Vec<String> = pairs.collect();
        let _infallible = writeln!(self.0, "{key}=[{}]", pairs.join(","));
        self
    }

    /// Adds the lines of another one.
    pub fn append(&mut self, other: &Self) -> &mut Self {
        self.0.push_str(&other.0);
        self
    }
}

/// One line that ends where its quotes do. Within quotes only `\"` is special; any other backslash could come to
/// stand before the closing quote, so there is none.
fn whole(value: &str) -> String {
    let mut safe = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '"' => safe.push_str("\\\""),
            '\\' => safe.push('/'),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

fn plain(value: &str) -> String {
    whole(&value.chars().take(MAX_VALUE).collect::<String>())
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
