//! Who we are at a registry.
//!
//! Looked for in the datastore's own configuration, then in the files that `podman login` and `docker login`
//! write, in the order configured. In a file a helper for the very host comes first, then the general helper,
//! then the file's own entries, the longest matching one. A file that is not there is no error, one that cannot be
//! read is: silently pulling as nobody hides the mistake.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::config::RegistriesConfig;
use super::fault::RegistryFault;
use super::helper;
use super::reference::RegistryHost;
use super::secret::Secret;
use crate::source::open_regular;

/// Most bytes of a credential or certificate file.
const MAX: u64 = 1 << 20;

/// Docker's name for its own registry, from before version 2 of the protocol.
const HUB_SERVER: &str = "https://index.docker.io/v1/";

/// What helpers call a user whose secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// A login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credential {
    Basic {
        user: String,
        password: Secret,
    },
    /// OAuth2 refresh token, to be exchanged at the token server.
    Identity(Secret),
    /// Goes to the registry as it is.
    Bearer(Secret),
}

impl Credential {
    fn basic(user: String, password: Secret) -> Result<Self, String> {
        // A colon would move the border between user and password.
        if user.is_empty() || user.contains(':') || user.chars().any(char::is_control) {
            return Err("the user's name is empty or has a colon or control character".into());
        }
        Ok(Self::Basic { user, password })
    }
}

/// `Authorization: Basic …`
pub(crate) fn basic_header(user: &str, password: &Secret) -> Secret {
    let pair = Secret::new(format!("{user}:{}", password.expose()));
    Secret::new(format!("Basic {}", STANDARD.encode(pair.expose())))
}

/// Finds the login for a repository; none means anonymous.
pub(crate) fn find(
    config: &RegistriesConfig,
    host: &RegistryHost,
    repository: &str,
    helper_time: Duration,
) -> Result<Option<Credential>, RegistryFault> {
    let failed = |why: String| RegistryFault::Credentials(why);
    if let Some(own) = config.hosts.get(host) {
        match (&own.username, &own.password_file) {
            (Some(user), Some(file)) => {
                let password = read_secret(file).map_err(failed)?;
                return Credential::basic(user.clone(), password).map(Some).map_err(failed);
            }
            (None, None) => {}
            (Some(_), None) => {
                return Err(failed("there is a username and no password_file".into()));
            }
            (None, Some(_)) => {
                return Err(failed("there is a password_file and no username".into()));
            }
        }
    }
    let keys = keys(host, repository);
    for path in &config.auth_files {
        let Some(bytes) = read_file(path).map_err(failed)? else { continue };
        let at = |why: String| failed(format!("{}: {why}", path.display()));
        // serde's own message might quote what it stumbled over.
        let file: AuthFile =
            serde_json::from_slice(&bytes).map_err(|_| at("is no credential file".into()))?;
        if let Some(found) = file.find(host, &keys, helper_time).map_err(at)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The keys under which a login for this repository may be, the best first.
fn keys(host: &RegistryHost, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = Some(repository);
    while let Some(here) = path {
        keys.push(format!("{host}/{here}"));
        path = here.rsplit_once('/').map(|(above, _)| above);
    }
    keys.push(host.to_string());
    if host.is_hub() {
        keys.push("index.docker.io".into());
    }
    keys
}

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl AuthFile {
    fn find(
        &self,
        host: &RegistryHost,
        keys: &[String],
        helper_time: Duration,
    ) -> Result<Option<Credential>, String> {
        if let Some((key, name)) = best(&self.helpers, keys) {
            return ask(name, key, helper_time);
        }
        if let Some(name) = self.store.as_deref().filter(|name| !name.is_empty()) {
            let server = if host.is_hub() { HUB_SERVER } else { host.as_str() };
            if let Some(found) = ask(name, server, helper_time)? {
                return Ok(Some(found));
            }
        }
        best(&self.auths, keys).map_or(Ok(None), |(_, entry)| entry.credential())
    }
}

fn best<'a, T>(map: &'a BTreeMap<String, T>, keys: &[String]) -> Option<(&'a str, &'a T)> {
    keys.iter().find_map(|key| {
        map.iter().find(|(k, _)| plain(k) == key.as_str()).map(|(k, value)| (k.as_str(), value))
    })
}

/// A key without what Docker wrote around the host in its time.
fn plain(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.strip_suffix('/').unwrap_or(key);
    key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key)
}

fn ask(name: &str, server: &str, time: Duration) -> Result<Option<Credential>, String> {
    let Some(login) = helper::get(name, server, time)? else { return Ok(None) };
    if login.username == TOKEN_USER {
        return Ok(Some(Credential::Identity(login.secret)));
    }
    Credential::basic(login.username, login.secret).map(Some)
}

impl Entry {
    fn credential(&self) -> Result<Option<Credential>, String> {
        let secret = |text: &str| Secret::new(text.to_owned());
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::Identity(secret(&self.identitytoken))));
        }
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credential::Bearer(secret(&self.registrytoken))));
        }
        if !self.username.is_empty() {
            return Credential::basic(self.username.clone(), secret(&self.password)).map(Some);
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        let bad = || "an \"auth\" is not base64 of user:password".to_owned();
        let bytes = STANDARD.decode(&self.auth).map_err(|_| bad())?;
        let text = Secret::new(String::from_utf8(bytes).map_err(|_| bad())?);
        // Docker pads with NUL.
        let (user, password) =
            text.expose().trim_end_matches('\0').split_once(':').ok_or_else(bad)?;
        Credential::basic(user.to_owned(), secret(password)).map(Some)
    }
}

/// A small file of the operator's; none if it is not there.
pub(crate) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let shown = path.display();
    let file: File = match open_regular(path) {
        Ok(file) => file,
        Err(crate::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(crate::Error::Io { source, .. }) => return Err(format!("{shown}: {source}")),
        Err(e) => return Err(format!("{shown}: {e}")),
    };
    let mut bytes = Vec::new();
    file.take(MAX + 1).read_to_end(&mut bytes).map_err(|e| format!("{shown}: {e}"))?;
    if bytes.len() as u64 > MAX {
        return Err(format!("{shown}: has more than {MAX} bytes"));
    }
    Ok(Some(bytes))
}

/// A secret that is a file's content.
pub(crate) fn read_secret(path: &Path) -> Result<Secret, String> {
    let shown = path.display();
    let bytes = read_file(path)?.ok_or_else(|| format!("{shown}: no such file"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{shown}: is not UTF-8"))?;
    let text = Secret::new(text);
    let line = text.expose().strip_suffix('\n').unwrap_or(text.expose());
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.contains(['\n', '\0']) {
        return Err(format!("{shown}: does not hold one line"));
    }
    Ok(Secret::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(file: &str, reference: &str) -> Result<Option<Credential>, RegistryFault> {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("auth.json");
        io::Write::write_all(&mut File::create(&path).unwrap(), file.as_bytes()).unwrap();
        let absent = top.path().join("absent.json");
        let config = RegistriesConfig { auth_files: vec![absent, path], ..Default::default() };
        let reference: crate::RegistryReference = reference.parse().unwrap();
        find(&config, reference.host(), reference.repository(), Duration::from_secs(5))
    }

    fn basic(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Basic { user: user.into(), password: Secret::new(password.into()) })
    }

    #[test]
    fn the_longest_match_of_a_credential_file_wins() {
        let entry =
            |user: &str| format!("{{\"auth\":\"{}\"}}", STANDARD.encode(format!("{user}:p:w")));
        let file = format!(
            r#"{{"auths":{{"a.example":{},"a.example/team":{},"https://b.example/v1/":{},
                "https://index.docker.io/v1/":{},"c.example":{{}},
                "d.example":{{"auth":"eA==","identitytoken":"t"}}}},"other":1}}"#,
            entry("host"),
            entry("team"),
            entry("b"),
            entry("hub")
        );
        for (reference, want) in [
            ("a.example/x", basic("host", "p:w")),
            ("a.example/team/x/y", basic("team", "p:w")),
            ("a.example/teams/x", basic("host", "p:w")),
            ("a.example:5000/x", None),
            ("b.example/x", basic("b", "p:w")),
            ("debian", basic("hub", "p:w")),
            ("c.example/x", None),
            ("d.example/x", Some(Credential::Identity(Secret::new("t".into())))),
        ] {
            assert_eq!(lookup(&file, reference).unwrap(), want, "{reference}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_not_passed_over_and_not_quoted() {
        for file in ["", "{", "[\"hunter2\"]", "{\"auths\":{\"a.example\":{\"auth\":\"hunter2\"}}}"]
        {
            let why = lookup(file, "a.example/x").unwrap_err().to_string();
            assert!(why.starts_with("credentials cannot be had: "), "{why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn a_name_that_would_change_the_password_is_refused() {
        assert!(Credential::basic("a:b".into(), Secret::new("c".into())).is_err());
        assert!(Credential::basic("a\nb".into(), Secret::new("c".into())).is_err());
        let header = basic_header("user", &Secret::new("pass".into()));
        assert_eq!(header.expose(), "Basic dXNlcjpwYXNz");
    }
}
