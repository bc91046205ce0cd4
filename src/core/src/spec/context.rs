//! What a VM is told about itself before its first process runs, so that a plain image is a usable machine.
//!
//! All of it is a tenant's word and reaches nothing but the tenant's own guest: it is written from within the
//! guest's namespaces. Addresses, name servers and the host name are of the NICs and of the spec itself.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::normal_path;
use crate::ids::Domain;

/// Contextualisation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Context {
    /// Name servers beside those of the NICs.
    pub dns: Vec<IpAddr>,
    /// Search domains beside those of the NICs.
    pub search: Vec<Domain>,
    /// Whose keys and password follow; else root's. Made if the image has no such user.
    pub user: Option<String>,
    /// Lines of `authorized_keys`.
    pub ssh_keys: Vec<String>,
    /// The user's password.
    pub password: Option<Password>,
    /// Name of a time zone, as in `Europe/Madrid`.
    pub timezone: Option<String>,
    /// A program that runs once per boot, as root: a script with its `#!`, or for `/bin/sh`.
    pub start_script: Option<Vec<u8>>,
    /// Files to be there.
    pub files: Vec<GuestFile>,
    /// What the platform's own packages inside would be told, verbatim (OpenNebula's `CONTEXT`). For an image that
    /// has such packages.
    pub variables: Vec<(String, Secret)>,
    /// The platform's disk with all that (OpenNebula's context ISO, a config drive), absolute and normal.
    pub disk: Option<PathBuf>,
}

/// A password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Password {
    /// As it is typed.
    Plain(Secret),
    /// As crypt(5) has it.
    Crypted(Secret),
}

/// A file for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// Absolute and normal in the guest; directories above it are made.
    pub path: PathBuf,
    /// Its bytes.
    pub content: Vec<u8>,
    /// Permissions, without set-id bits.
    pub mode: u16,
    /// Owner and group in the guest, numbers.
    pub owner: (u32, u32),
}

/// Text that logs and answers do not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Most bytes of all texts and files together: a record stays small enough to be written often.
const MAX_BYTES: usize = 512 * 1024;

impl Context {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.dns.len() > 16 || self.search.len() > 32 {
            return Err("at most 16 name servers and 32 search domains".into());
        }
        if self.ssh_keys.len() > 1000 || self.files.len() > 100 || self.variables.len() > 4096 {
            return Err("at most 1000 keys, 100 files and 4096 variables".into());
        }
        let (script, path) = (self.start_script.as_ref(), self.disk.as_ref());
        let sizes = [
            self.ssh_keys.iter().map(String::len).sum(),
            script.map_or(0, Vec::len),
            self.files.iter().map(|file| file.content.len()).sum(),
            self.variables.iter().map(|(name, value)| name.len() + value.0.len()).sum::<usize>(),
        ];
        if sizes.into_iter().sum::<usize>() > MAX_BYTES {
            return Err("the context holds more than 512 KiB".into());
        }
        let odd = |text: &str| {
            text.is_empty() || text.len() > 16 * 1024 || text.chars().any(char::is_control)
        };
        // A comment is no key, and could be the end of our block in the file.
        if self.ssh_keys.iter().any(|key| odd(key) || key.trim_start().starts_with('#')) {
            return Err(
                "an ssh key is empty, a comment, too long, or has control characters".into()
            );
        }
        if self.user.as_deref().is_some_and(|user| !is_user(user)) {
            return Err("user is no name that a user can have".into());
        }
        if let Some(Password::Plain(secret) | Password::Crypted(secret)) = &self.password
            && (odd(&secret.0) || secret.0.len() > 512)
        {
            return Err("the password is empty, too long, or has control characters".into());
        }
        if let Some(Password::Crypted(Secret(hash))) = &self.password
            && hash.contains(':')
        {
            return Err("the crypted password holds a colon".into());
        }
        if self.timezone.as_deref().is_some_and(|zone| !is_zone(zone)) {
            return Err("time zone is no name such as Europe/Madrid".into());
        }
        if path.is_some_and(|path| normal_path(path).as_ref() != Some(path)) {
            return Err("the context disk's path is not absolute and normal".into());
        }
        for file in &self.files {
            let shown = file.path.display();
            if normal_path(&file.path).as_ref() != Some(&file.path) || file.path.parent().is_none()
            {
                return Err(format!("file {shown:?} is not an absolute, normal path"));
            }
            if file.mode > 0o1777 || file.owner.0 > 65_535 || file.owner.1 > 65_535 {
                return Err(format!(
                    "file {shown:?} has a mode above 1777 or an owner above 65535"
                ));
            }
        }
        let variable = |name: &str| {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.chars().all(word)
        };
        if let Some((name, _)) = self.variables.iter().find(|(name, _)| !variable(name)) {
            let short: String = name.chars().take(80).collect();
            return Err(format!("variable {short:?} is no name of a shell's variable"));
        }
        if self.variables.iter().any(|(_, value)| value.0.contains('\0')) {
            return Err("a variable holds a NUL byte".into());
        }
        Ok(())
    }
}

/// useradd(8): portable names.
fn is_user(name: &str) -> bool {
    let first = |c: char| c.is_ascii_lowercase() || c == '_';
    let rest = |c: char| first(c) || c.is_ascii_digit() || c == '-' || c == '.';
    name.len() <= 32 && name.starts_with(first) && name.chars().all(rest)
}

/// Parts of letters, digits and `+-_`, tzfile names as in zone.tab.
fn is_zone(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "+-_".contains(c))
    };
    name.len() <= 64 && name.split('/').all(part)
}
