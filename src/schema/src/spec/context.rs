//! What a VM is told about itself.

use std::path::PathBuf;

use ocivisor_core::error::Error;
use ocivisor_core::spec::{Context, GuestFile, Password, Secret};
use serde::{Deserialize, Serialize};

use super::fields::{Fields, base64};

/// What stands for a secret in answers.
const HIDDEN: &str = "(hidden)";

/// See [`Context`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContextV1 {
    /// Name servers beside those of the NICs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Search domains beside those of the NICs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Whose keys and password; else root's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Lines of `authorized_keys`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// The user's password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordV1>,
    /// Time zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Base64 of a script that runs once per boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_script: Option<String>,
    /// Files to be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<GuestFileV1>,
    /// What the platform's packages inside are told: names and values in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variables: Vec<(String, String)>,
    /// Absolute path of the platform's context disk on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
}

/// See [`Password`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PasswordV1 {
    /// `{"plain": "secret"}`
    Plain(String),
    /// `{"crypted": "$6$…"}`
    Crypted(String),
}

/// See [`GuestFile`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFileV1 {
    /// Absolute path in the guest.
    pub path: String,
    /// Base64 of its bytes.
    pub content: String,
    /// Permissions as a number; else 0644 (420).
    #[serde(default = "readable")]
    pub mode: u16,
    /// Owner in the guest; else 0.
    #[serde(default)]
    pub uid: u32,
    /// Group in the guest; else 0.
    #[serde(default)]
    pub gid: u32,
}

fn readable() -> u16 {
    0o644
}

impl ContextV1 {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Without what only the guest may see: passwords, values of variables, files and scripts.
    pub(super) fn hide(&mut self) {
        match &mut self.password {
            Some(PasswordV1::Plain(text) | PasswordV1::Crypted(text)) => HIDDEN.clone_into(text),
            None => {}
        }
        let values = self.variables.iter_mut().map(|(_, value)| value);
        let contents = self.files.iter_mut().map(|file| &mut file.content);
        for text in values.chain(contents).chain(&mut self.start_script) {
            HIDDEN.clone_into(text);
        }
    }
}

impl Fields<'_> {
    pub(super) fn context(&self, context: ContextV1) -> Result<Context, Error> {
        let file = |file: &GuestFileV1| {
            Ok::<_, Error>(GuestFile {
                path: PathBuf::from(&file.path),
                content: self.bytes("context.files.content", &file.content)?,
                mode: file.mode,
                owner: (file.uid, file.gid),
            })
        };
        let script = |text: &String| self.bytes("context.start_script", text);
        Ok(Context {
            dns: self.addresses("context.dns", &context.dns)?,
            search: self.ids("context.search", &context.search)?,
            user: context.user,
            ssh_keys: context.ssh_keys,
            password: context.password.map(|password| match password {
                PasswordV1::Plain(text) => Password::Plain(Secret(text)),
                PasswordV1::Crypted(text) => Password::Crypted(Secret(text)),
            }),
            timezone: context.timezone,
            start_script: context.start_script.as_ref().map(script).transpose()?,
            files: context.files.iter().map(file).collect::<Result<_, _>>()?,
            variables: context
                .variables
                .into_iter()
                .map(|(name, value)| (name, Secret(value)))
                .collect(),
            disk: context.disk.map(PathBuf::from),
        })
    }
}

impl From<&Context> for ContextV1 {
    fn from(context: &Context) -> Self {
        let file = |file: &GuestFile| GuestFileV1 {
            path: file.path.to_string_lossy().into_owned(),
            content: base64(&file.content),
            mode: file.mode,
            uid: file.owner.0,
            gid: file.owner.1,
        };
        Self {
            dns: context.dns.iter().map(ToString::to_string).collect(),
            search: context.search.iter().map(ToString::to_string).collect(),
            user: context.user.clone(),
            ssh_keys: context.ssh_keys.clone(),
            password: context.password.as_ref().map(|password| match password {
                Password::Plain(secret) => PasswordV1::Plain(secret.0.clone()),
                Password::Crypted(secret) => PasswordV1::Crypted(secret.0.clone()),
            }),
            timezone: context.timezone.clone(),
            start_script: context.start_script.as_deref().map(base64),
            files: context.files.iter().map(file).collect(),
            variables: context
                .variables
                .iter()
                .map(|(name, value)| (name.clone(), value.0.clone()))
                .collect(),
            disk: context.disk.as_ref().map(|path| path.to_string_lossy().into_owned()),
        }
    }
}
