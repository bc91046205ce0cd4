//! What was installed, so that it can be replaced, checked and taken away again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Where it is kept, below the root. Root's alone to write: by it files are removed.
pub const PATH: &str = "var/lib/ocivisor-opennebula/installed.json";
/// Version of the format, the only one there has been.
const VERSION: u32 = 1;

/// Files and memberships that are ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// Version of the program that installed them.
    pub program: String,
    /// SHA-256 of what we wrote, by path below the root. Two while one is replaced by the other.
    pub files: BTreeMap<String, Vec<String>>,
    /// The user that was made a member of [`super::host::GROUP`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

impl Record {
    /// Nothing, by this version of the program.
    pub fn new() -> Self {
        let program = env!("CARGO_PKG_VERSION").to_owned();
        Self { version: VERSION, program, ..Self::default() }
    }

    /// The same, about to be changed by this version of the program.
    pub fn by_this_program(&self) -> Self {
        Self { program: Self::new().program, ..self.clone() }
    }

    /// Reads what [`Record::to_text`] wrote.
    ///
    /// # Errors
    /// In words.
    pub fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let Head { version } = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if version != VERSION {
            return Err(format!("it has version {version}, this program knows {VERSION}"));
        }
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    /// As it is kept.
    pub fn to_text(&self) -> String {
        // Maps of strings always become JSON.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Whether we wrote that there.
    pub fn wrote(&self, path: &str, text: &[u8]) -> bool {
        let hash = hash(text);
        self.files.get(path).is_some_and(|hashes| hashes.contains(&hash))
    }

    /// We are about to write that there.
    pub fn add(&mut self, path: &str, text: &[u8]) {
        let hashes = self.files.entry(path.to_owned()).or_default();
        let hash = hash(text);
        if !hashes.contains(&hash) {
            hashes.push(hash);
        }
    }
}

fn hash(text: &[u8]) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_knows_what_was_written() {
        let mut record = Record::new();
        record.add("a", b"old");
        record.add("a", b"new");
        let again = Record::parse(&record.to_text()).unwrap();
        assert_eq!(again, record);
        assert!(again.wrote("a", b"old") && again.wrote("a", b"new"));
        assert!(!again.wrote("a", b"other") && !again.wrote("b", b"old"));
    }

    #[test]
    fn a_later_format_is_refused() {
        let text = Record::new().to_text().replace("\"version\": 1", "\"version\": 2, \"new\": 1");
        assert!(Record::parse(&text).unwrap_err().contains("version 2"));
        assert!(Record::parse("{").is_err());
    }
}
