//! What oned sent: arguments and input of two calls about one VM.

use std::path::Path;

use anyhow::{Context, Result};

use crate::cmd::root;

/// The recorded VM.
pub const VM: &str = "one-0";
/// Directories of the recordings.
const DEPLOY: &str = "tests/fixtures/opennebula/0079-vmm-deploy";
const SHUTDOWN: &str = "tests/fixtures/opennebula/0083-vmm-shutdown";
/// DATASTORE_LOCATION of the recorded site; oned joins with a second slash.
const DATASTORES: &str = "/var/lib/one//datastores";

/// One call of a driver script.
#[derive(Debug, Clone)]
pub struct Call {
    /// Arguments after the script's name.
    pub args: Vec<String>,
    /// Standard input.
    pub stdin: String,
}

/// The calls.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Its deployment.
    pub deploy: Call,
    /// Its end.
    pub shutdown: Call,
}

impl Recording {
    /// Reads them.
    ///
    /// # Errors
    /// A file is missing or is no recording.
    pub fn load() -> Result<Self> {
        Ok(Self { deploy: load(DEPLOY)?, shutdown: load(SHUTDOWN)? })
    }

    /// Text of an element of the deployment file; the first of that name.
    #[must_use]
    pub fn value(&self, element: &str) -> Option<&str> {
        value(&self.deploy.stdin, element)
    }
}

/// The first `<element>` of a text; its CDATA if it is one.
fn value<'a>(text: &'a str, element: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{element}>"))?;
    let (inner, _) = rest.split_once(&format!("</{element}>"))?;
    let data = inner.strip_prefix("<![CDATA[").and_then(|d| d.strip_suffix("]]>"));
    Some(data.unwrap_or(inner))
}

/// What of the recorded site is replaced by what of this host.
#[derive(Debug, Clone, Default)]
pub struct Replacements(Vec<(String, String)>);

impl Replacements {
    /// Adds one and returns how to tell it.
    pub fn add(&mut self, from: &str, to: &str) -> String {
        self.0.push((from.to_owned(), to.to_owned()));
        format!("  {from} -> {to}")
    }

    /// The recorded place of the datastores.
    pub fn datastores(&mut self, here: &Path) -> String {
        self.add(DATASTORES, &here.to_string_lossy())
    }

    /// The call as it is made here.
    #[must_use]
    pub fn apply(&self, call: &Call) -> Call {
        let one = |text: &String| {
            let all = self.0.iter();
            all.fold(text.clone(), |text, (from, to)| text.replace(from, to))
        };
        Call { args: call.args.iter().map(one).collect(), stdin: one(&call.stdin) }
    }
}

fn load(dir: &str) -> Result<Call> {
    let dir = root().join(dir);
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let argv: Vec<String> = serde_json::from_str(&read("argv")?).context("read argv")?;
    Ok(Call { args: argv.into_iter().skip(1).collect(), stdin: read("stdin")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recordings_are_about_one_vm() {
        let recording = Recording::load().unwrap();
        let id = recording.value("ID").unwrap();
        assert_eq!(format!("one-{id}"), VM);
        assert_eq!(value(&recording.shutdown.stdin, "ID"), Some(id));
        assert!(recording.deploy.args[0].starts_with(DATASTORES));
        assert_eq!(recording.shutdown.args[0], VM);
    }

    #[test]
    fn replacements_reach_arguments_and_input() {
        let mut replace = Replacements::default();
        replace.datastores(Path::new("/tmp/ds"));
        replace.add("<BRIDGE>br0", "<BRIDGE>ocv0");
        let call = Call {
            args: vec!["/var/lib/one//datastores/101/0/deployment.0".into()],
            stdin: "<BRIDGE>br0</BRIDGE>".into(),
        };
        let call = replace.apply(&call);
        assert_eq!(call.args, ["/tmp/ds/101/0/deployment.0"]);
        assert_eq!(call.stdin, "<BRIDGE>ocv0</BRIDGE>");
    }
}
