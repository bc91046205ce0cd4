//! The image config, made safe to hand on.
//!
//! All of it is the image author's wish, none of it policy: no field may choose a host path, a device or a
//! privilege (CVE-2022-23648, CVE-2024-40635). Here it is only checked that a value can be what it claims to be
//! and that it is of bearable size; what a wish is worth is decided where the guest is built.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::DiffId;
use crate::document::{self, Platform};
use crate::error::DocumentFault as Fault;
use crate::limits::Limits;

/// What an image says about running it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// `GOARCH` of the programs inside.
    pub architecture: String,
    /// `GOOS`; only `linux` is imported.
    pub os: String,
    /// Program and first arguments; may be empty.
    pub entrypoint: Vec<String>,
    /// Arguments after the entrypoint, or the program if there is none; may be empty.
    pub cmd: Vec<String>,
    /// Variables, in order; a name occurs once.
    pub env: Vec<(String, String)>,
    /// Whom to run as.
    pub user: ImageUser,
    /// Absolute path inside the guest, `/` if the image says nothing. It may name anything there, also
    /// `/proc/self/fd/7`: enter it inside the guest's root and check where that led.
    pub working_dir: String,
    /// Name (`SIGTERM`, `SIGRTMIN+3`) or number of the signal that asks for the end.
    pub stop_signal: Option<String>,
    /// Labels. Inert: nothing in them is ever an instruction.
    pub labels: BTreeMap<String, String>,
    /// Ports the image wants known, `80/tcp`. Inert.
    pub exposed_ports: Vec<String>,
    /// Paths inside the guest the image wants to be volumes. Inert.
    pub volumes: Vec<String>,
}

/// `User` of the config: `uid`, `uid:gid`, `user`, `user:group`, or mixed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// The user.
    pub user: Principal,
    /// The group; the user's own if none is named.
    pub group: Option<Principal>,
}

/// A user or group, by number or by a name that only the guest's own `/etc` can resolve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// 0 to 65535, inside the guest.
    Id(u16),
    /// To be looked up inside the guest.
    Name(String),
}

impl Default for Principal {
    fn default() -> Self {
        Self::Id(0)
    }
}

/// Longest single string for `execve`: `MAX_ARG_STRLEN`, less the NUL.
const ARGUMENT_MAX: usize = 131_071;
/// All arguments, or all variables, together: an eighth of what `execve` takes at the usual stack limit.
const TOTAL_MAX: usize = 256 * 1024;
const COUNT_MAX: usize = 4096;

#[derive(Debug, Deserialize)]
struct RawImage {
    architecture: String,
    os: String,
    #[serde(default)]
    config: Option<RawConfig>,
    rootfs: RawRootfs,
}

#[derive(Debug, Deserialize)]
struct RawRootfs {
    r#type: String,
    diff_ids: Vec<DiffId>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
}

impl ImageConfig {
    /// Reads a config document; returns it with the digests of its layers, lowest first.
    pub(crate) fn parse(bytes: &[u8], limits: &Limits) -> Result<(Self, Vec<DiffId>), Fault> {
        let raw: RawImage = document::parse(bytes)?;
        if raw.rootfs.r#type != "layers" {
            return Err(bad("rootfs.type", "is not \"layers\""));
        }
        document::count_layers(raw.rootfs.diff_ids.len(), limits)?;
        let config = raw.config.unwrap_or_default();
        let image = Self {
            architecture: raw.architecture,
            os: raw.os,
            entrypoint: arguments("Entrypoint", config.entrypoint)?,
            cmd: arguments("Cmd", config.cmd)?,
            env: variables(config.env.unwrap_or_default())?,
            user: ImageUser::parse(config.user.as_deref().unwrap_or_default())?,
            working_dir: working_dir(config.working_dir)?,
            stop_signal: config
                .stop_signal
                .filter(|s| !s.is_empty())
                .map(stop_signal)
                .transpose()?,
            labels: labels(config.labels.unwrap_or_default())?,
            exposed_ports: keys("ExposedPorts", config.exposed_ports)?,
            volumes: keys("Volumes", config.volumes)?,
        };
        Ok((image, raw.rootfs.diff_ids))
    }

    /// The platform the image is for.
    pub(crate) fn platform(&self) -> Platform {
        Platform { os: self.os.clone(), architecture: self.architecture.clone() }
    }

    /// A config document for a bare root file system: it says nothing but what is inside. No time of creation,
    /// so that the same file always becomes the same image.
    pub(crate) fn synthesize(diff_id: DiffId) -> Result<Vec<u8>, Fault> {
        #[derive(Serialize)]
        struct Image {
            architecture: String,
            os: String,
            config: BTreeMap<String, String>,
            rootfs: Rootfs,
        }
        #[derive(Serialize)]
        struct Rootfs {
            r#type: &'static str,
            diff_ids: [DiffId; 1],
        }
        let Platform { os, architecture } = document::host_platform();
        let rootfs = Rootfs { r#type: "layers", diff_ids: [diff_id] };
        let image = Image { architecture, os, config: BTreeMap::new(), rootfs };
        serde_json::to_vec(&image).map_err(|e| Fault::Json(e.to_string()))
    }
}

fn bad(field: &'static str, why: &'static str) -> Fault {
    Fault::Config { field, why }
}

/// Bounds that hold for every list of strings.
fn bounded<'a>(field: &'static str, list: impl Iterator<Item = &'a str>) -> Result<(), Fault> {
    let mut total = 0;
    for (n, text) in list.enumerate() {
        total += text.len() + 1;
        if n >= COUNT_MAX {
            return Err(bad(field, "has more than 4096 items"));
        }
        if text.len() > ARGUMENT_MAX {
            return Err(bad(field, "has an item above 131071 bytes"));
        }
        if total > TOTAL_MAX {
            return Err(bad(field, "has more than 262144 bytes"));
        }
        if text.contains('\0') {
            return Err(bad(field, "has a NUL byte"));
        }
    }
    Ok(())
}

fn arguments(field: &'static str, list: Option<Vec<String>>) -> Result<Vec<String>, Fault> {
    let list = list.unwrap_or_default();
    bounded(field, list.iter().map(String::as_str))?;
    Ok(list)
}

fn variables(list: Vec<String>) -> Result<Vec<(String, String)>, Fault> {
    bounded("Env", list.iter().map(String::as_str))?;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut env: Vec<(String, String)> = Vec::new();
    for item in list {
        let (name, value) = item.split_once('=').ok_or(bad("Env", "has an item without '='"))?;
        if name.is_empty() || name.contains(char::is_control) {
            return Err(bad("Env", "has a variable with a bad name"));
        }
        // Of two with one name programs would see either; the last one is what a shell would leave.
        if let Some(at) = seen.get(name) {
            value.clone_into(&mut env[*at].1);
        } else {
            seen.insert(name.to_owned(), env.len());
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(env)
}

fn labels(labels: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Fault> {
    bounded("Labels", labels.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]))?;
    Ok(labels)
}

fn keys(
    field: &'static str,
    map: Option<BTreeMap<String, serde::de::IgnoredAny>>,
) -> Result<Vec<String>, Fault> {
    let map = map.unwrap_or_default();
    bounded(field, map.keys().map(String::as_str))?;
    Ok(map.into_keys().collect())
}

fn working_dir(dir: Option<String>) -> Result<String, Fault> {
    let dir = dir.filter(|d| !d.is_empty()).unwrap_or_else(|| "/".into());
    if !dir.starts_with('/') {
        return Err(bad("WorkingDir", "is not absolute"));
    }
    if dir.len() > 4095 {
        return Err(bad("WorkingDir", "has more than 4095 bytes"));
    }
    if dir.contains(char::is_control) {
        return Err(bad("WorkingDir", "has control characters"));
    }
    Ok(dir)
}

fn stop_signal(text: String) -> Result<String, Fault> {
    const BAD: &str = "is no signal";
    let number =
        |t: &str, max: u8| t.len() <= 2 && t.parse::<u8>().is_ok_and(|n| (1..=max).contains(&n));
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    let (base, offset) = name.split_once(['+', '-']).map_or((name, None), |(b, o)| (b, Some(o)));
    let plain = (2..=9).contains(&base.len())
        && base.starts_with(|c: char| c.is_ascii_uppercase())
        && base.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
    let good = match offset {
        Some(offset) => matches!(base, "RTMIN" | "RTMAX") && number(offset, 30),
        None => plain || number(&text, 64),
    };
    if good { Ok(text) } else { Err(bad("StopSignal", BAD)) }
}

impl ImageUser {
    /// Reads `User`; empty is root.
    ///
    /// Numbers above 65535 are refused, never cut down: 4294967296 must not become 0 (CVE-2024-40635).
    fn parse(text: &str) -> Result<Self, Fault> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let (user, group) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
        Ok(Self { user: Principal::parse(user)?, group: group.map(Principal::parse).transpose()? })
    }
}

impl Principal {
    fn parse(text: &str) -> Result<Self, Fault> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().map(Self::Id).map_err(|_| bad("User", "has an id above 65535"));
        }
        let name = text.strip_suffix('$').unwrap_or(text);
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        if first && name.len() <= 64 && name.bytes().all(allowed) {
            Ok(Self::Name(text.to_owned()))
        } else {
            Err(bad("User", "is neither a number nor a name"))
        }
    }
}

#[cfg(test)]
mod tests;
