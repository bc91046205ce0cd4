//! Telling oned what an image is, by its own command.
//!
//! Keys of an image's template reach a VM's disk where `INHERIT_IMAGE_ATTR` names them. oned writes them itself only
//! from what a user said, so they are appended by `oneimage update ID --append FILE`. It is a convenience: whatever goes wrong
//! with it is a line in the log, and nothing here or on hosts relies on these keys.

use std::io::Write;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{Image, Principal};
use serde_json::json;

use crate::config::Images;
use crate::depot::{Depot, ImageLock};
use crate::fault::failed;
use crate::tool;

/// How long the command may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest `OCI_CONFIG`: templates travel in every message.
const CONFIG_MAX: usize = 8192;

/// Appends `OCI_DIGEST` and its friends to the image's template.
pub(super) fn append(
    depot: &Depot,
    held: &ImageLock,
    image: &Image,
    origin: Option<&str>,
    config: &Images,
) -> Result<()> {
    let draft = depot.scratch(held)?;
    let path = depot.draft_path(&draft);
    draft
        .file()
        .write_all(template(image, origin).as_bytes())
        .map_err(|e| failed("write", &path, &e))?;
    let id = held.image().to_string();
    let argv = [
        config.oneimage.as_os_str(),
        "update".as_ref(),
        id.as_ref(),
        "--append".as_ref(),
        path.as_os_str(),
    ];
    if !config.oneimage.is_file() {
        let text = format!("{} is not installed", config.oneimage.display());
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    tool::run(&argv, PATIENCE)
}

/// Text of an image's comes as base64 or not at all: nothing of it can end a value.
fn template(image: &Image, origin: Option<&str>) -> String {
    let mut text = format!("OCI_DIGEST = \"{}\"\n", image.manifest_digest);
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    for (name, value) in
        [("OCI_ORIGIN", origin), ("OCI_ARCHITECTURE", Some(image.config.architecture.as_str()))]
    {
        if let Some(value) = value.filter(|value| value.chars().all(plain)) {
            text += &format!("{name} = \"{value}\"\n");
        }
    }
    let config = STANDARD.encode(config(image).to_string());
    if config.len() <= CONFIG_MAX {
        text += &format!("OCI_CONFIG = \"{config}\"\n");
    }
    text
}

/// What a user wants to know before a VM is made of it. The environment is left out: it is long.
fn config(image: &Image) -> serde_json::Value {
    let name = |who: &Principal| match who {
        Principal::Id(id) => id.to_string(),
        Principal::Name(name) => name.clone(),
    };
    let user = &image.config.user;
    let mut who = name(&user.user);
    if let Some(group) = &user.group {
        who += &format!(":{}", name(group));
    }
    json!({
        "Entrypoint": image.config.entrypoint,
        "Cmd": image.config.cmd,
        "User": who,
        "WorkingDir": image.config.working_dir,
        "StopSignal": image.config.stop_signal,
        "ExposedPorts": image.config.exposed_ports,
    })
}
