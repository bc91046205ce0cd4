//! OpenNebula's template language, and templates as oned keeps them: sorted by key.

use std::collections::BTreeMap;

use crate::xml::Element;

/// Keys of a vector attribute.
pub type Vector = BTreeMap<String, String>;

/// A value of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `KEY = "text"`.
    Text(String),
    /// `KEY = [ A = "1", B = "2" ]`.
    Vector(Vector),
}

/// Attributes by name; those of one name in the order in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template(BTreeMap<String, Vec<Value>>);

impl Template {
    /// Reads the language.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut template = Self::default();
        let mut rest = text.trim_start();
        while let Some((key, after)) = rest.split_once('=') {
            let key = key.trim().to_uppercase();
            let after = after.trim_start_matches([' ', '\t']);
            let (value, left) = match after.strip_prefix('[') {
                Some(inner) => vector(inner),
                None => {
                    let (text, left) = word(after, &['\n']);
                    (Value::Text(text), left)
                }
            };
            template.add(&key, value);
            rest = left.trim_start();
        }
        template
    }

    /// Adds one more of that name.
    pub fn add(&mut self, key: &str, value: Value) {
        self.0.entry(key.to_owned()).or_default().push(value);
    }

    /// Sets the only one of that name.
    pub fn set(&mut self, key: &str, text: impl ToString) {
        self.0.insert(key.to_owned(), vec![Value::Text(text.to_string())]);
    }

    /// Adds a vector.
    pub fn add_vector(&mut self, key: &str, vector: Vector) {
        self.add(key, Value::Vector(vector));
    }

    /// Removes all of that name.
    pub fn take(&mut self, key: &str) -> Vec<Value> {
        self.0.remove(key).unwrap_or_default()
    }

    /// The text of that name.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.iter().find_map(|value| match value {
            Value::Text(text) => Some(text.as_str()),
            Value::Vector(_) => None,
        })
    }

    /// Vectors of that name.
    pub fn vectors(&self, key: &str) -> impl Iterator<Item = &Vector> {
        self.0.get(key).into_iter().flatten().filter_map(|value| match value {
            Value::Vector(vector) => Some(vector),
            Value::Text(_) => None,
        })
    }

    /// Vectors of that name, to be changed.
    pub fn vectors_mut(&mut self, key: &str) -> impl Iterator<Item = &mut Vector> {
        self.0.get_mut(key).into_iter().flatten().filter_map(|value| match value {
            Value::Vector(vector) => Some(vector),
            Value::Text(_) => None,
        })
    }

    /// Removes the vectors of that name which satisfy a condition.
    pub fn drop_vectors(&mut self, key: &str, condition: impl Fn(&Vector) -> bool) {
        if let Some(values) = self.0.get_mut(key) {
            values.retain(|value| !matches!(value, Value::Vector(v) if condition(v)));
            if values.is_empty() {
                self.0.remove(key);
            }
        }
    }

    /// What is left of it when its names are taken out, name by name.
    pub fn drain(&mut self) -> impl Iterator<Item = (String, Vec<Value>)> {
        std::mem::take(&mut self.0).into_iter()
    }

    /// As elements.
    #[must_use]
    pub fn elements(&self) -> Vec<Element> {
        let all = self.0.iter().flat_map(|(key, values)| values.iter().map(move |v| (key, v)));
        all.map(|(key, value)| match value {
            Value::Text(text) => Element::quoted(key, text),
            Value::Vector(vector) => {
                Element::of(key, vector.iter().map(|(k, v)| Element::quoted(k, v)).collect())
            }
        })
        .collect()
    }
}

/// A vector of these keys.
#[must_use]
pub fn vector_of(keys: &[(&str, &str)]) -> Vector {
    keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn vector(text: &str) -> (Value, &str) {
    let mut keys = Vector::new();
    let mut rest = text.trim_start();
    loop {
        if let Some(left) = rest.strip_prefix(']') {
            return (Value::Vector(keys), left);
        }
        let Some((key, after)) = rest.split_once('=') else {
            return (Value::Vector(keys), "");
        };
        let (value, left) = word(after.trim_start(), &[',', ']']);
        keys.insert(key.trim().to_uppercase(), value);
        rest = left.trim_start().trim_start_matches(',').trim_start();
    }
}

/// A quoted word with `\"` in it, or what stands before one of those characters.
fn word<'a>(text: &'a str, ends: &[char]) -> (String, &'a str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(ends).unwrap_or(text.len());
        return (text[..end].trim().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' if quoted[at + 1..].starts_with('"') => {
                value.push('"');
                characters.next();
            }
            '"' => return (value, &quoted[at + 1..]),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_is_read() {
        let text = "NAME = web\nDISK=[IMAGE=alpine, SIZE = \"10\"]\nDISK=[TYPE=fs]\nX=\"a \\\"b\\\" [c]\"\n";
        let template = Template::read(text);
        assert_eq!(template.text("NAME"), Some("web"));
        assert_eq!(template.text("X"), Some("a \"b\" [c]"));
        let disks: Vec<&Vector> = template.vectors("DISK").collect();
        assert_eq!(disks[0], &vector_of(&[("IMAGE", "alpine"), ("SIZE", "10")]));
        assert_eq!(disks[1], &vector_of(&[("TYPE", "fs")]));
        let monitor =
            Template::read("VM = [ ID=\"29\", STATE=\"RUNNING\" ]\nSYNC_STATE=yes\nVM=[ID=3]");
        assert_eq!(monitor.vectors("VM").count(), 2);
        assert_eq!(monitor.text("SYNC_STATE"), Some("yes"));
    }
}
