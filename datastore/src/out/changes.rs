//! What a new image says otherwise than the one it is made from.
//!
//! The config is edited as the JSON document it is: fields that this program does not know stay. The result is
//! read by the same parser as a stranger's, so a change that would not be imported is refused here.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use crate::config::ImageConfig;
use crate::digest::DiffId;
use crate::document;
use crate::error::{DocumentFault as Fault, Error, Result, escape};
use crate::limits::Limits;

/// Changes to an image's config; what is not named stays as in the base.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitChanges {
    /// Who made the image.
    pub author: Option<String>,
    /// A sentence for the history.
    pub message: Option<String>,
    /// What the history says the layer was made by; nothing if none.
    pub created_by: Option<String>,
    /// Time of creation; now if none. With a time given, the same changes give the same image.
    pub created: Option<SystemTime>,
    /// Program and first arguments. As everywhere, the base's `cmd` goes with its entrypoint, unless `cmd` is given.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments after the entrypoint, or the program.
    pub cmd: Option<Vec<String>>,
    /// Variables to add or replace.
    pub env: Vec<(String, String)>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// Absolute path inside.
    pub working_dir: Option<String>,
    /// Name or number.
    pub stop_signal: Option<String>,
    /// Labels to add or replace.
    pub labels: BTreeMap<String, String>,
    /// Ports to add, `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths to add.
    pub volumes: Vec<String>,
}

impl CommitChanges {
    /// Adds a change written as a line of a Dockerfile: `CMD`, `ENTRYPOINT`, `ENV`, `EXPOSE`, `LABEL`, `STOPSIGNAL`,
    /// `USER`, `VOLUME`, `WORKDIR`.
    ///
    /// `CMD` and `ENTRYPOINT` take a JSON array, or text for `/bin/sh -c`. `ENV` and `LABEL` take one `NAME=VALUE`,
    /// whose value may stand in double quotes.
    pub fn instruction(&mut self, line: &str) -> Result<()> {
        let refused = |why: &str| {
            let document = format!("change \"{}\"", escape(line.as_bytes()));
            Error::document(document, Fault::Json(why.into()))
        };
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(refused("says nothing after the instruction"));
        }
        let one = || rest.to_owned();
        match word.to_ascii_uppercase().as_str() {
            "CMD" => self.cmd = Some(command(rest)),
            "ENTRYPOINT" => self.entrypoint = Some(command(rest)),
            "ENV" => self.env.push(pair(rest).ok_or_else(|| refused("is not NAME=VALUE"))?),
            "LABEL" => {
                self.labels.extend([pair(rest).ok_or_else(|| refused("is not NAME=VALUE"))?]);
            }
            "EXPOSE" => self.exposed_ports.extend(rest.split_whitespace().map(port)),
            "VOLUME" => self.volumes.extend(list(rest)),
            "USER" => self.user = Some(one()),
            "WORKDIR" => self.working_dir = Some(one()),
            "STOPSIGNAL" => self.stop_signal = Some(one()),
            _ => {
                return Err(refused(
                    "is none of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR",
                ));
            }
        }
        Ok(())
    }

    /// The base's config with these changes and one layer more.
    pub(super) fn apply(
        &self,
        base: &[u8],
        diff_id: DiffId,
        limits: &Limits,
    ) -> std::result::Result<Vec<u8>, Fault> {
        let mut image: Map<String, Value> = document::parse(base)?;
        let created = self.created()?;
        // Of the container the base was made from, with docker.
        for stale in ["container", "container_config", "id", "parent", "Size"] {
            image.remove(stale);
        }
        image.insert("created".into(), json!(created));
        if let Some(author) = &self.author {
            image.insert("author".into(), json!(author));
        }
        let layers = self.add_layer(&mut image, diff_id)?;
        self.add_history(&mut image, layers, &created)?;
        self.change_config(object(&mut image, "config")?)?;
        let bytes = serde_json::to_vec(&image).map_err(|e| Fault::Json(e.to_string()))?;
        ImageConfig::parse(&bytes, limits)?;
        Ok(bytes)
    }

    fn created(&self) -> std::result::Result<String, Fault> {
        let time = self.created.unwrap_or_else(SystemTime::now);
        jiff::Timestamp::try_from(time)
            .map(|t| t.to_string())
            .map_err(|_| Fault::Config { field: "created", why: "is beyond the calendar" })
    }

    /// Returns how many layers were there.
    fn add_layer(
        &self,
        image: &mut Map<String, Value>,
        diff_id: DiffId,
    ) -> std::result::Result<usize, Fault> {
        let rootfs = object(image, "rootfs")?;
        let ids = rootfs.get_mut("diff_ids").and_then(Value::as_array_mut);
        let ids = ids.ok_or(Fault::NoLayers)?;
        ids.push(json!(diff_id));
        Ok(ids.len() - 1)
    }

    fn add_history(
        &self,
        image: &mut Map<String, Value>,
        layers: usize,
        created: &str,
    ) -> std::result::Result<(), Fault> {
        let history = image.entry("history").or_insert(Value::Null);
        if history.is_null() {
            *history = json!([]);
        }
        let rows = history.as_array_mut();
        let rows = rows.ok_or(Fault::Config { field: "history", why: "is no list" })?;
        let is_layer = |row: &&Value| row.get("empty_layer").and_then(Value::as_bool) != Some(true);
        // Readers count rows against layers; a base without rows, as of a bare root file system, gets them.
        for _ in rows.iter().filter(is_layer).count()..layers {
            rows.push(json!({"comment": "layer without a history"}));
        }
        let mut row = Map::from_iter([("created".to_owned(), json!(created))]);
        for (key, text) in
            [("created_by", &self.created_by), ("author", &self.author), ("comment", &self.message)]
        {
            if let Some(text) = text {
                row.insert(key.into(), json!(text));
            }
        }
        rows.push(row.into());
        Ok(())
    }

    fn change_config(&self, config: &mut Map<String, Value>) -> std::result::Result<(), Fault> {
        if let Some(entrypoint) = &self.entrypoint {
            config.insert("Entrypoint".into(), json!(entrypoint));
            config.remove("Cmd");
        }
        if let Some(cmd) = &self.cmd {
            config.insert("Cmd".into(), json!(cmd));
            // Docker's mark that the words were escaped for another system's shell.
            config.remove("ArgsEscaped");
        }
        for (key, text) in [
            ("User", &self.user),
            ("WorkingDir", &self.working_dir),
            ("StopSignal", &self.stop_signal),
        ] {
            if let Some(text) = text {
                config.insert(key.into(), json!(text));
            }
        }
        if !self.env.is_empty() {
            let env = config.entry("Env").or_insert(Value::Null);
            if env.is_null() {
                *env = json!([]);
            }
            let env = env.as_array_mut();
            let env = env.ok_or(Fault::Config { field: "Env", why: "is no list" })?;
            for (name, value) in &self.env {
                let named = |v: &Value| {
                    v.as_str().and_then(|t| t.split_once('=')).is_some_and(|(n, _)| n == name)
                };
                let item = json!(format!("{name}={value}"));
                match env.iter_mut().rfind(|v| named(v)) {
                    Some(old) => *old = item,
                    None => env.push(item),
                }
            }
        }
        for (name, value) in &self.labels {
            object(config, "Labels")?.insert(name.clone(), json!(value));
        }
        for port in &self.exposed_ports {
            object(config, "ExposedPorts")?.insert(port.clone(), json!({}));
        }
        for path in &self.volumes {
            object(config, "Volumes")?.insert(path.clone(), json!({}));
        }
        Ok(())
    }
}

/// The object of that key, made where there is none.
fn object<'a>(
    map: &'a mut Map<String, Value>,
    key: &'static str,
) -> std::result::Result<&'a mut Map<String, Value>, Fault> {
    let value = map.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().ok_or(Fault::Config { field: key, why: "is no object" })
}

fn words(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

fn command(text: &str) -> Vec<String> {
    words(text).unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into(), text.into()])
}

fn list(text: &str) -> Vec<String> {
    words(text).unwrap_or_else(|| text.split_whitespace().map(str::to_owned).collect())
}

fn port(text: &str) -> String {
    if text.contains('/') { text.into() } else { format!("{text}/tcp") }
}

fn pair(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    let plain = !name.is_empty() && !name.contains(char::is_whitespace);
    plain.then(|| (name.into(), quoted.unwrap_or(value).into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn apply(changes: &CommitChanges, base: &Value) -> std::result::Result<Value, Fault> {
        let bytes = changes.apply(
            base.to_string().as_bytes(),
            DiffId(Digest::of(b"new")),
            &Limits::default(),
        )?;
        Ok(serde_json::from_slice(&bytes).unwrap())
    }

    fn base() -> Value {
        json!({"architecture": "amd64", "os": "linux", "variant": "v3", "container": "abc",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/bin", "A=1"], "Healthcheck": {"Test": ["x"]}},
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"one"), Digest::of(b"two")]},
            "history": [{"created_by": "one"}, {"empty_layer": true}, {"created_by": "two"}]})
    }

    fn at(seconds: u64) -> Option<SystemTime> {
        Some(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
    }

    #[test]
    fn what_is_not_named_stays_and_a_layer_is_added() {
        let changes = CommitChanges {
            author: Some("me".into()),
            message: Some("why".into()),
            created: at(86_400),
            ..CommitChanges::default()
        };
        let mut want = base();
        want.as_object_mut().unwrap().remove("container");
        want["author"] = json!("me");
        want["created"] = json!("1970-01-02T00:00:00Z");
        want["rootfs"]["diff_ids"].as_array_mut().unwrap().push(json!(Digest::of(b"new")));
        let row = json!({"created": "1970-01-02T00:00:00Z", "author": "me", "comment": "why"});
        want["history"].as_array_mut().unwrap().push(row);
        assert_eq!(apply(&changes, &base()).unwrap(), want);
    }

    #[test]
    fn instructions_are_read_as_in_a_dockerfile() {
        let mut changes = CommitChanges { created: at(0), ..CommitChanges::default() };
        for line in [
            r#"ENTRYPOINT ["/init", "a b"]"#,
            "env A=2",
            r#"ENV B="x y=z""#,
            "EXPOSE 80 53/udp",
            "LABEL k=v",
            "USER 7:8",
            "VOLUME /data",
            "WORKDIR /srv",
            "STOPSIGNAL SIGINT",
        ] {
            changes.instruction(line).unwrap();
        }
        let made = apply(&changes, &base()).unwrap();
        let want = json!({"Entrypoint": ["/init", "a b"], "Env": ["PATH=/bin", "A=2", "B=x y=z"],
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Labels": {"k": "v"}, "User": "7:8",
            "Volumes": {"/data": {}}, "WorkingDir": "/srv", "StopSignal": "SIGINT",
            "Healthcheck": {"Test": ["x"]}});
        assert_eq!(made["config"], want);
        changes.instruction("CMD run | me").unwrap();
        let made = apply(&changes, &base()).unwrap();
        assert_eq!(made["config"]["Cmd"], json!(["/bin/sh", "-c", "run | me"]));
        for bad in ["", "CMD", "RUN x", "ENV A", "LABEL =x"] {
            assert!(changes.instruction(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_change_that_could_not_be_imported_is_refused() {
        let changes =
            CommitChanges { working_dir: Some("not/absolute".into()), ..CommitChanges::default() };
        let why = apply(&changes, &base()).unwrap_err();
        assert_eq!(why, Fault::Config { field: "WorkingDir", why: "is not absolute" });
    }

    #[test]
    fn a_base_without_history_gets_a_row_for_each_layer() {
        let mut bare = base();
        bare.as_object_mut().unwrap().remove("history");
        bare["config"] = Value::Null;
        let made = apply(&CommitChanges::default(), &bare).unwrap();
        assert_eq!(made["history"].as_array().unwrap().len(), 3);
    }
}
