//! SSH host keys of a machine's own.
//!
//! Distributions make them when the package is installed, so an image with an sshd brings keys that everybody has who
//! has the image: whoever reads them can pass for any VM made of it. They are replaced by one Ed25519 key, which every
//! client of the last ten years takes; where an sshd has no keys at all, it gets that one, for without any it does not
//! start.
//!
//! Format of the files: PROTOCOL.key of OpenSSH, and RFC 4253 section 6.6 for the public part.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::{Error, ErrorKind, Result};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustix::fs::FileType;

use crate::root::{Access, Node, Root};

const DIR: &str = "/etc/ssh";
const CONFIG: &str = "/etc/ssh/sshd_config";
const PARTS: &str = "/etc/ssh/sshd_config.d";
/// Most names in there.
const MAX_PARTS: usize = 1000;
/// Kinds of keys that sshd(8) looks for by itself, in files `ssh_host_<kind>_key`, and those of old.
const KINDS: [&str; 4] = ["rsa", "ecdsa", "ed25519", "dsa"];
/// Most bytes of a configuration.
const MAX_CONFIG: u64 = 256 << 10;

/// Gives the guest's sshd a key of its own, if it has one that came with the image, or none.
///
/// # Errors
/// `Image`: it cannot be written, or the sshd is told to use keys of another kind.
pub fn renew(root: &Root) -> Result<()> {
    let path = |kind: &str| format!("{DIR}/ssh_host_{kind}_key");
    let mut found = Vec::new();
    for kind in KINDS {
        if !matches!(root.read(&path(kind), 0)?, Node::Absent) {
            found.push(kind);
        }
    }
    let served = root.leads_to("/usr/sbin/sshd", FileType::RegularFile)
        && root.leads_to(DIR, FileType::Directory);
    if found.is_empty() && !served {
        return Ok(());
    }
    if names_others(&configuration(root)?) {
        let what = format!("{CONFIG} names host keys: they are left as the image has them");
        return Err(Error::new(ErrorKind::Image, what));
    }
    let (private, public) = fresh()?;
    let own = path("ed25519");
    root.write_durably(&own, private.into(), Access::root(0o600))?;
    root.write_durably(&format!("{own}.pub"), public.into(), Access::root(0o644))?;
    // At no time without any.
    for kind in found.into_iter().filter(|kind| *kind != "ed25519") {
        root.remove(&path(kind))?;
        root.remove(&format!("{}.pub", path(kind)))?;
    }
    Ok(())
}

/// The sshd's configuration: its file, and those of the directory that distributions have it include.
fn configuration(root: &Root) -> Result<Vec<u8>> {
    let names = root.names(PARTS, MAX_PARTS)?.into_iter().filter(|name| name.ends_with(".conf"));
    let mut all = Vec::new();
    for path in names.map(|name| format!("{PARTS}/{name}")).chain([CONFIG.to_owned()]) {
        match root.read(&path, MAX_CONFIG)? {
            Node::Absent => {}
            Node::File(_, Some(config)) => {
                all.extend(config);
                all.push(b'\n');
            }
            _ => {
                let what =
                    format!("{path} is no plain file: host keys are left as the image has them");
                return Err(Error::new(ErrorKind::Image, what));
            }
        }
    }
    Ok(all)
}

/// Whether a configuration has keys of its own choice, and not ours among them. sshd_config(5): keywords are
/// case-insensitive, `=` may stand between them and their arguments, and those in quotes.
fn names_others(config: &[u8]) -> bool {
    let text = String::from_utf8_lossy(config);
    let named: Vec<&str> = text
        .lines()
        .filter_map(|line| {
            let line = line.trim_start();
            let (keyword, rest) = line.split_once(|c: char| c.is_whitespace() || c == '=')?;
            let named = keyword.eq_ignore_ascii_case("HostKey").then_some(rest)?;
            Some(named.trim_matches(|c: char| c.is_whitespace() || matches!(c, '=' | '"')))
        })
        .collect();
    !named.is_empty() && !named.contains(&"/etc/ssh/ssh_host_ed25519_key")
}

/// A new key: its private file and its public one.
fn fresh() -> Result<(String, String)> {
    let failed = || Error::new(ErrorKind::Host, "make an SSH host key");
    let (mut seed, mut check) = ([0; 32], [0; 4]);
    let random = SystemRandom::new();
    random.fill(&mut seed).and_then(|()| random.fill(&mut check)).map_err(|_| failed())?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| failed())?;
    Ok(files(&seed, pair.public_key().as_ref(), u32::from_be_bytes(check)))
}

/// The files of a key; `check` is any number, which stands there twice.
fn files(seed: &[u8; 32], public: &[u8], check: u32) -> (String, String) {
    const KIND: &[u8] = b"ssh-ed25519";
    let text = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(bytes);
    };
    let mut blob = Vec::new();
    text(&mut blob, KIND);
    text(&mut blob, public);

    let mut secret = [check.to_be_bytes(), check.to_be_bytes()].concat();
    text(&mut secret, KIND);
    text(&mut secret, public);
    text(&mut secret, &[&seed[..], public].concat());
    text(&mut secret, b"");
    // Up to a whole block of the cipher "none", with 1, 2, 3 …
    secret.extend((1..=7).take(secret.len().next_multiple_of(8) - secret.len()));

    let mut file = b"openssh-key-v1\0".to_vec();
    text(&mut file, b"none");
    text(&mut file, b"none");
    text(&mut file, b"");
    file.extend_from_slice(&1_u32.to_be_bytes());
    text(&mut file, &blob);
    text(&mut file, &secret);
    let encoded = STANDARD.encode(file);
    let mut private = String::from("-----BEGIN OPENSSH PRIVATE KEY-----\n");
    for line in encoded.as_bytes().chunks(70) {
        private.push_str(&String::from_utf8_lossy(line));
        private.push('\n');
    }
    private.push_str("-----END OPENSSH PRIVATE KEY-----\n");
    (private, format!("ssh-ed25519 {}\n", STANDARD.encode(blob)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "asks ssh-keygen")]
    fn ssh_takes_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for _ in 0..4 {
            let (private, public) = fresh().unwrap();
            std::fs::write(&path, private).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            let told = Command::new("ssh-keygen").args(["-y", "-f"]).arg(&path).output().unwrap();
            assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
            assert_eq!(String::from_utf8_lossy(&told.stdout).trim(), public.trim());
        }
    }

    #[test]
    fn a_configuration_that_names_other_keys_is_respected() {
        for (text, want) in [
            ("", false),
            ("#HostKey /etc/ssh/ssh_host_rsa_key\nPort 22\n", false),
            ("hostkey /etc/ssh/ssh_host_rsa_key", true),
            ("HostKey=/etc/ssh/ssh_host_rsa_key\n", true),
            ("\tHostKey = \"/etc/ssh/own key\"\n", true),
            ("HostKey = \"/etc/ssh/ssh_host_ed25519_key\"\n", false),
            ("HostKeyAlgorithms x\n", false),
            ("HostKey /etc/ssh/ssh_host_rsa_key\nHostKey /etc/ssh/ssh_host_ed25519_key\n", false),
        ] {
            assert_eq!(names_others(text.as_bytes()), want, "{text}");
        }
    }
}
