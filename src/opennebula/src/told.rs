//! `CONTEXT` to [`Context`]: what the guest is told beside its addresses.
//!
//! Names and rules are those of OpenNebula's own packages for guests (`USERNAME`, `SSH_PUBLIC_KEY`, …; base64 goes
//! before text), so that a template means the same in an image without them. Where an image has the packages they
//! read the disk themselves.
//!
//! No password is read here: oned hands `PASSWORD` to drivers encrypted (`VM_ENCRYPTED_ATTR`), and what else its
//! admin lists there. In clear they are on the context disk alone, where the guest's side finds them.
//!
//! A tenant writes all of it, for his own guest: what makes no sense becomes a note, and the guest boots.

use std::net::IpAddr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::ids::Domain;
use ocivisor_core::spec::{Context, GuestFile, Secret};

use crate::answer::Notes;
use crate::vm::{Vector, is_yes};
use crate::{clip, decimal};

/// Keys that nothing but the packages in a guest can obey.
const FOR_PACKAGES: [(&str, &str); 2] = [
    ("REPORT_READY", "the guest reports to OneGate"),
    ("DNS_HOSTNAME", "the guest looks its name up"),
];

/// What a guest is told; `vm_dir` is where the platform keeps the context disk.
pub(crate) fn context(keys: Option<&Vector>, vm_dir: &Path, notes: &mut Notes) -> Context {
    let Some(keys) = keys else { return Context::default() };
    let disk = keys.get("DISK_ID").and_then(|id| decimal(id));
    for (key, what) in FOR_PACKAGES {
        if is_yes(keys, key) {
            notes.add(format_args!("CONTEXT/{key}: {what} only if the image has one-context"));
        }
    }
    let user = user(keys, notes);
    Context {
        dns: servers(keys.get("DNS"), "DNS", notes),
        search: domains(keys.get("SEARCH_DOMAIN"), "SEARCH_DOMAIN", notes),
        ssh_keys: ssh_keys(keys, notes),
        password: None,
        timezone: timezone(keys, notes),
        start_script: start_script(keys, notes),
        files: sudoers(user.as_deref(), keys).into_iter().collect(),
        variables: variables(keys, notes),
        disk: disk.map(|id| vm_dir.join(format!("disk.{id}"))),
        user,
    }
}

/// Addresses of name servers, with blanks or commas between them.
pub(crate) fn servers(text: Option<&String>, key: &str, notes: &mut Notes) -> Vec<IpAddr> {
    words(text, key, notes, "the address of a name server")
}

/// Domains to search, with blanks or commas between them.
pub(crate) fn domains(text: Option<&String>, key: &str, notes: &mut Notes) -> Vec<Domain> {
    words(text, key, notes, "a domain")
}

fn words<T: std::str::FromStr>(
    text: Option<&String>,
    key: &str,
    notes: &mut Notes,
    want: &str,
) -> Vec<T> {
    const MAX: usize = 16;
    let words = text.map_or("", String::as_str).split(|c: char| c.is_whitespace() || c == ',');
    let mut found = Vec::new();
    for word in words.filter(|word| !word.is_empty()) {
        match word.parse() {
            Ok(value) if found.len() < MAX => found.push(value),
            Ok(_) => {
                notes.add(format_args!("CONTEXT/{key}: only the first {MAX} are used"));
                break;
            }
            Err(_) => notes
                .add(format_args!("CONTEXT/{key}: {:?} is not {want} and is not used", clip(word))),
        }
    }
    found
}

fn user(keys: &Vector, notes: &mut Notes) -> Option<String> {
    let name = keys.get("USERNAME").filter(|name| *name != "root")?;
    // The check of the spec names the rule; a guest without its user is better than none.
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
    let begin = |c: char| c.is_ascii_lowercase() || c == '_';
    if name.len() <= 32 && name.starts_with(begin) && name.chars().all(plain) {
        return Some(name.clone());
    }
    notes.add(format_args!("CONTEXT/USERNAME {:?} is not a name a user can have", clip(name)));
    None
}

fn ssh_keys(keys: &Vector, notes: &mut Notes) -> Vec<String> {
    const MAX: usize = 16 * 1024;
    let texts = ["SSH_PUBLIC_KEY", "EC2_PUBLIC_KEY"].into_iter().filter_map(|key| keys.get(key));
    let lines = texts.flat_map(|text| text.lines()).map(str::trim);
    let mut found: Vec<String> = Vec::new();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.len() > MAX || line.chars().any(char::is_control) || found.len() >= 1000 {
            notes.add("CONTEXT/SSH_PUBLIC_KEY has a line that is no key, or too many");
        } else if !found.iter().any(|known| known == line) {
            found.push(line.to_owned());
        }
    }
    found
}

fn timezone(keys: &Vector, notes: &mut Notes) -> Option<String> {
    let zone = keys.get("TIMEZONE")?;
    let part = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "+-_".contains(c))
    };
    if zone.len() <= 64 && zone.split('/').all(part) {
        return Some(zone.clone());
    }
    notes.add(format_args!("CONTEXT/TIMEZONE {:?} is not the name of a time zone", clip(zone)));
    None
}

fn start_script(keys: &Vector, notes: &mut Notes) -> Option<Vec<u8>> {
    if let Some(text) = keys.get("START_SCRIPT_BASE64") {
        let digits: String = text.split_whitespace().collect();
        let script = STANDARD.decode(digits).ok();
        if script.is_none() {
            notes.add("CONTEXT/START_SCRIPT_BASE64 is not base64 and is not run");
        }
        return script;
    }
    // `echo` in the packages ends it with a newline.
    keys.get("START_SCRIPT").map(|text| format!("{text}\n").into())
}

/// What the packages let a user do, by the file that they name.
fn sudoers(user: Option<&str>, keys: &Vector) -> Option<GuestFile> {
    let granted = ["USERNAME_SUDO", "GRANT_SUDO"].into_iter().find_map(|key| keys.get(key));
    if !granted.is_none_or(|granted| granted.eq_ignore_ascii_case("yes")) {
        return None;
    }
    Some(GuestFile {
        path: "/etc/sudoers.d/one-context".into(),
        content: format!("{} ALL=(ALL) NOPASSWD:ALL\n", user?).into(),
        mode: 0o440,
        owner: (0, 0),
    })
}

/// All of it, for an image that has the packages and a VM that has no disk; and so that any change is one.
fn variables(keys: &Vector, notes: &mut Notes) -> Vec<(String, Secret)> {
    const MAX: usize = 4096;
    const MAX_BYTES: usize = 256 * 1024;
    let bytes: usize = keys.iter().map(|(name, value)| name.len() + value.len()).sum();
    if keys.len() > MAX || bytes > MAX_BYTES {
        notes.add("CONTEXT is too long: the guest has it on its disk alone");
        return Vec::new();
    }
    let shells = |name: &str| {
        !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
    };
    let known = keys.iter().filter(|(name, value)| shells(name) && !value.contains('\0'));
    known.map(|(name, value)| (name.clone(), Secret(value.clone()))).collect()
}

/// Variables of the environment that OneGate's client reads; its token is in `/context/token.txt`.
///
/// Nothing else of `CONTEXT` becomes environment: it holds passwords, and an environment is inherited by all. What an
/// application shall have there, `OCI/ENV` says.
pub(crate) fn environment(keys: Option<&Vector>) -> Vec<(String, String)> {
    let names = ["ONEGATE_ENDPOINT", "VMID"].into_iter();
    let pairs = names.filter_map(|name| Some((name.to_owned(), keys?.get(name)?.clone())));
    pairs.filter(|(_, value)| !value.contains(char::is_control)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> (Context, Vec<String>) {
        let keys = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut notes = Notes::default();
        let context = context(Some(&keys), Path::new("/ds/0/42"), &mut notes);
        (context, notes.into_vec().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn no_section_tells_nothing() {
        let none = context(None, Path::new("/d"), &mut Notes::default());
        assert_eq!(none, Context::default());
    }

    #[test]
    fn all_keys_are_translated() {
        let pairs = [
            ("DISK_ID", "3"),
            ("DNS", "10.0.0.1, fd00::1  9.9.9.9"),
            ("SEARCH_DOMAIN", "a.example b.example."),
            ("SSH_PUBLIC_KEY", "ssh-rsa A x\n\n# c\nssh-rsa B y\r\nssh-rsa A x"),
            ("EC2_PUBLIC_KEY", "ssh-rsa C"),
            ("USERNAME", "dev"),
            ("TIMEZONE", "Europe/Madrid"),
            ("START_SCRIPT", "not this"),
            ("START_SCRIPT_BASE64", "IyEv\nYmlu"),
            ("PASSWORD", "c2VjcmV0"),
            ("SET-VAR", "x"),
        ];
        let (made, notes) = of(&pairs);
        assert_eq!(notes, Vec::<String>::new());
        assert_eq!(
            made.dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.1", "fd00::1", "9.9.9.9"]
        );
        assert_eq!(made.search.len(), 2);
        assert_eq!(made.ssh_keys, ["ssh-rsa A x", "ssh-rsa B y", "ssh-rsa C"]);
        assert_eq!(
            (made.user.as_deref(), made.timezone.as_deref()),
            (Some("dev"), Some("Europe/Madrid"))
        );
        assert_eq!(made.start_script.as_deref(), Some(&b"#!/bin"[..]));
        assert_eq!(made.disk.as_deref(), Some(Path::new("/ds/0/42/disk.3")));
        assert_eq!(made.password, None, "what is here may be encrypted");
        assert_eq!(made.files[0].content, b"dev ALL=(ALL) NOPASSWD:ALL\n");
        assert_eq!(made.variables.len(), pairs.len() - 1);
    }

    #[test]
    fn sudo_can_be_denied_and_root_needs_none() {
        for (pairs, want) in [
            (&[("USERNAME", "dev"), ("USERNAME_SUDO", "no")][..], 0),
            (&[("USERNAME", "dev"), ("GRANT_SUDO", "NO")], 0),
            (&[("USERNAME", "dev"), ("USERNAME_SUDO", "Yes"), ("GRANT_SUDO", "NO")], 1),
            (&[("USERNAME", "root")], 0),
            (&[("USERNAME_SUDO", "YES")], 0),
        ] {
            assert_eq!(of(pairs).0.files.len(), want, "{pairs:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_note() {
        let (made, notes) = of(&[
            ("DNS", "10.0.0.1 resolver $(id)"),
            ("SEARCH_DOMAIN", "a..b"),
            ("USERNAME", "-rf"),
            ("TIMEZONE", "../../etc/shadow"),
            ("REPORT_READY", "YES"),
            ("DNS_HOSTNAME", "yes"),
        ]);
        assert_eq!(
            (made.dns.len(), made.search.len(), made.user, made.timezone),
            (1, 0, None, None)
        );
        assert_eq!(notes.len(), 7, "{notes:?}");
    }

    #[test]
    fn a_script_that_is_no_base64_is_told_of_and_the_other_is_not_taken_for_it() {
        let (made, notes) = of(&[("START_SCRIPT_BASE64", "%%"), ("START_SCRIPT", "x")]);
        assert_eq!(made, Context { variables: made.variables.clone(), ..Context::default() });
        assert_eq!(notes, ["CONTEXT/START_SCRIPT_BASE64 is not base64 and is not run"]);
    }

    #[test]
    fn the_environment_has_onegate_and_nothing_else() {
        let keys = [
            ("ONEGATE_ENDPOINT", "http://10.0.0.1:5030"),
            ("VMID", "7"),
            ("PASSWORD", "x"),
            ("PATH", "/x"),
        ];
        let keys = keys.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let names: Vec<String> =
            environment(Some(&keys)).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["ONEGATE_ENDPOINT", "VMID"]);
        assert_eq!(environment(None), []);
    }
}
