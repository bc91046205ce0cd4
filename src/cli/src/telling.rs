//! Options of what a guest is told about itself.
//!
//! Secrets come from files, never from the command line, which everybody on the host can read.

use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use ocivisor_core::ids::Domain;
use ocivisor_schema::spec::{ContextV1, GuestFileV1, PasswordV1};

use crate::failure::{Exit, Failure};

/// Most bytes of a file that is told.
const MAX_FILE: u64 = 512 << 10;

/// What a guest is told.
#[derive(Debug, Args)]
pub struct TellingOptions {
    /// A file with public keys that may log in
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    ssh_key: Vec<PathBuf>,
    /// A file whose first line is the password; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    password_file: Option<PathBuf>,
    /// Who gets keys and password, made if need be; else root
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    login: Option<String>,
    /// A name server
    #[arg(long, value_name = "ADDRESS", conflicts_with = "file")]
    dns: Vec<IpAddr>,
    /// A domain to look names up in
    #[arg(long, value_name = "DOMAIN", conflicts_with = "file")]
    search: Vec<Domain>,
    /// Its time zone, as Europe/Madrid
    #[arg(long, value_name = "ZONE", conflicts_with = "file")]
    timezone: Option<String>,
    /// A script that runs as root once per boot
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    start_script: Option<PathBuf>,
    /// A file for the guest's root, and where it goes
    #[arg(long, value_name = "FILE:PATH", conflicts_with = "file")]
    put: Vec<PutOption>,
}

/// `FILE:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PutOption {
    from: PathBuf,
    to: String,
}

impl FromStr for PutOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The guest's path is absolute, so the last `:/` is the border.
        let (from, to) = text.rsplit_once(":/").ok_or("is not FILE:PATH with an absolute PATH")?;
        if from.is_empty() || to.is_empty() {
            return Err("is not FILE:PATH with an absolute PATH".into());
        }
        Ok(Self { from: from.into(), to: format!("/{to}") })
    }
}

impl TellingOptions {
    /// The context, with the files' content.
    ///
    /// # Errors
    /// A file cannot be read, or is too large.
    pub fn context(&self) -> Result<ContextV1, Failure> {
        let mut ssh_keys = Vec::new();
        for path in &self.ssh_key {
            let text = text(path)?;
            if text.contains("PRIVATE KEY-----") {
                let what = format!("{} is a private key", path.display());
                return Err(Failure::new(Exit::Usage, what).hint("name the file that ends in .pub"));
            }
            let lines = text.lines().map(str::trim);
            let before = ssh_keys.len();
            ssh_keys.extend(
                lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned),
            );
            if ssh_keys.len() == before {
                let what = format!("{} holds no key", path.display());
                return Err(Failure::new(Exit::Usage, what));
            }
        }
        let password = self.password_file.as_deref().map(text).transpose()?;
        let password = password.map(|text| text.lines().next().unwrap_or_default().to_owned());
        let script = self.start_script.as_deref().map(bytes).transpose()?;
        let files = self.put.iter().map(file).collect::<Result<_, _>>()?;
        Ok(ContextV1 {
            dns: self.dns.iter().map(ToString::to_string).collect(),
            search: self.search.iter().map(ToString::to_string).collect(),
            user: self.login.clone(),
            ssh_keys,
            password: password.map(PasswordV1::Plain),
            timezone: self.timezone.clone(),
            start_script: script.map(|script| STANDARD.encode(script)),
            files,
            variables: Vec::new(),
            disk: None,
        })
    }
}

fn file(put: &PutOption) -> Result<GuestFileV1, Failure> {
    let meta = std::fs::metadata(&put.from).map_err(|e| unreadable(&put.from, &e))?;
    let mode = meta.permissions().mode() & 0o777;
    Ok(GuestFileV1 {
        path: put.to.clone(),
        content: STANDARD.encode(bytes(&put.from)?),
        mode: u16::try_from(mode).unwrap_or(0o600),
        uid: 0,
        gid: 0,
    })
}

fn text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(bytes(path)?)
        .map_err(|_| Failure::new(Exit::Usage, format!("{} is not text in UTF-8", path.display())))
}

fn bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let source: std::io::Result<Box<dyn Read>> = if path == Path::new("-") {
        Ok(Box::new(std::io::stdin()))
    } else {
        std::fs::File::open(path).map(|file| Box::new(file) as Box<dyn Read>)
    };
    let read = source.and_then(|source| source.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|e| unreadable(path, &e))?;
    if bytes.len() as u64 > MAX_FILE {
        let what = format!("{} is larger than 512 KiB", path.display());
        return Err(Failure::new(Exit::Usage, what));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, e: &std::io::Error) -> Failure {
    Failure::new(Exit::of_io(e), format!("read {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[arg(long)]
        file: Option<PathBuf>,
        #[command(flatten)]
        telling: TellingOptions,
    }

    fn of(words: &[&str]) -> Result<ContextV1, Failure> {
        Line::try_parse_from([&["x"], words].concat()).unwrap().telling.context()
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "writes the files to be told")]
    fn options_make_a_context() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
            path.display().to_string()
        };
        let keys = path("keys", "# mine\nssh-rsa A a\n\nssh-rsa B b\n");
        let password = path("password", "se cret\nnot this\n");
        let script = path("a:b", "echo hi");
        let made = of(&[
            "--ssh-key",
            &keys,
            "--password-file",
            &password,
            "--login",
            "dev",
            "--dns",
            "fd00::1",
            "--search",
            "example.org",
            "--timezone",
            "Europe/Madrid",
            "--start-script",
            &script,
            "--put",
            &format!("{script}:/srv/x"),
        ]);
        let want = ContextV1 {
            dns: vec!["fd00::1".into()],
            search: vec!["example.org".into()],
            user: Some("dev".into()),
            ssh_keys: vec!["ssh-rsa A a".into(), "ssh-rsa B b".into()],
            password: Some(PasswordV1::Plain("se cret".into())),
            timezone: Some("Europe/Madrid".into()),
            start_script: Some("ZWNobyBoaQ==".into()),
            files: vec![GuestFileV1 {
                path: "/srv/x".into(),
                content: "ZWNobyBoaQ==".into(),
                mode: 0o640,
                uid: 0,
                gid: 0,
            }],
            variables: Vec::new(),
            disk: None,
        };
        assert_eq!(made.unwrap(), want);
        assert_eq!(of(&[]).unwrap(), ContextV1::default());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "writes the files to be told")]
    fn mistakes_are_told_before_anything_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, "-----BEGIN OPENSSH PRIVATE KEY-----\nx\n").unwrap();
        let failure = of(&["--ssh-key", key.to_str().unwrap()]).unwrap_err();
        assert!(failure.message.ends_with("is a private key"), "{}", failure.message);
        std::fs::write(&key, "# none\n").unwrap();
        assert!(of(&["--ssh-key", key.to_str().unwrap()]).is_err());
        assert_eq!(of(&["--start-script", "/no/such"]).unwrap_err().exit, Exit::NotFound);
        for bad in ["x", "x:y", ":/x", "x:/"] {
            assert!(bad.parse::<PutOption>().is_err(), "{bad}");
        }
        let both = Line::try_parse_from(["x", "--file", "a", "--dns", "::1"]);
        assert!(both.is_err());
    }
}
