//! Calls recorded from a real oned, with the paths of this test's datastore.

use std::fs;

use crate::{Host, repository};

/// One call of a driver script.
#[derive(Debug, Clone)]
pub struct Call {
    /// The script's name.
    pub action: String,
    /// What follows it in argv.
    pub arguments: Vec<String>,
    /// The bytes of its stdin.
    pub stdin: Vec<u8>,
    /// Values of `CONTEXT` as they are on the context disk, where its XML has them encrypted.
    pub in_clear: Vec<(String, String)>,
}

impl Call {
    /// A recorded call as it was, but for the location of the datastores: the machine that recorded
    /// had them at oned's default, this test has them in its own directory.
    #[must_use]
    pub fn recorded(host: &Host, name: &str) -> Self {
        let dir = repository().join("tests/fixtures/opennebula").join(name);
        let argv = fs::read(dir.join("argv")).unwrap();
        let argv: Vec<String> = serde_json::from_slice(&argv).unwrap();
        let location = format!("{}/ds", host.dir().display());
        let place = |text: &str| text.replace("/var/lib/one//datastores", &location);
        let stdin = String::from_utf8(fs::read(dir.join("stdin")).unwrap()).unwrap();
        Self {
            action: argv[0].rsplit('/').next().unwrap().to_owned(),
            arguments: argv[1..].iter().map(|word| place(word)).collect(),
            stdin: place(&stdin).into_bytes(),
            in_clear: Vec::new(),
        }
    }

    /// The same call for another VM: the number is replaced wherever it means the VM. Its VNC port is the one that oned
    /// would give it, 5900 and its number.
    #[must_use]
    pub fn for_vm(mut self, from: u32, to: u32) -> Self {
        let text = String::from_utf8(self.stdin).unwrap();
        let text = text
            .replace(&format!("<VM><ID>{from}</ID>"), &format!("<VM><ID>{to}</ID>"))
            .replace(&format!("one-{from}"), &format!("one-{to}"))
            .replace(&format!("/101/{from}/"), &format!("/101/{to}/"))
            .replace("02:00:c0:a8:64:0a", &format!("02:00:c0:a8:{:02x}:{:02x}", to / 256, to % 256))
            .replace("<PORT><![CDATA[5900]]>", &format!("<PORT><![CDATA[{}]]>", 5900 + to))
            .replace("192.168.100.10]", &format!("192.168.100.{}]", 10 + to % 240));
        self.stdin = text.into_bytes();
        for word in &mut self.arguments {
            *word = word
                .replace(&format!("/101/{from}/"), &format!("/101/{to}/"))
                .replace(&format!("one-{from}"), &format!("one-{to}"));
            if *word == from.to_string() {
                *word = to.to_string();
            }
        }
        self
    }

    /// The same call with a text of its stdin replaced, which must be there.
    #[must_use]
    pub fn with(mut self, from: &str, to: &str) -> Self {
        let text = String::from_utf8(self.stdin).unwrap();
        assert!(text.contains(from), "{from} is not in the recorded call");
        self.stdin = text.replace(from, to).into_bytes();
        self
    }

    /// The same call with more keys in `CONTEXT`, which it must have.
    #[must_use]
    pub fn with_context(self, keys: &[(&str, &str)]) -> Self {
        let keys = keys.iter().map(|(key, value)| format!("<{key}><![CDATA[{value}]]></{key}>"));
        self.with("</CONTEXT>", &(keys.collect::<String>() + "</CONTEXT>"))
    }

    /// The same call without a key in `CONTEXT`.
    #[must_use]
    pub fn without_context(self, key: &str) -> Self {
        let text = String::from_utf8(self.stdin.clone()).unwrap();
        let (_, rest) = text.split_once(&format!("<{key}><![CDATA[")).expect("the key");
        let (value, _) = rest.split_once("]]>").unwrap();
        let whole = format!("<{key}><![CDATA[{value}]]></{key}>");
        self.with(&whole, "")
    }
}
