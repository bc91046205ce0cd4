//! OpenNebula's data: `/context`, where its packages look in containers.
//!
//! Names and order of the password's variables are those of the packages; base64 goes before text, hashes first.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::Result;
use ocivisor_core::spec::{Password, Secret};
use rustix::fs::FileType;

use super::{Disk, Platform};
use crate::content::Content;
use crate::root::{Access, Root};
use crate::telling::Telling;
use crate::texts::quoted;
use crate::wish::{Thing, Weight, Wish};

const DIR: &str = "/context";

/// The files of `/context`: those of the disk, or one made of the spec's variables.
///
/// What may hold a password or a token is root's alone to read; one-context runs as root.
///
/// # Errors
/// `Invalid`: the disk holds too much.
pub fn files<'a>(telling: &Telling, disk: Option<&Disk<'a>>) -> Result<Vec<Wish<'a>>> {
    let variables = &telling.spec.context.variables;
    let files = match disk.filter(|disk| disk.platform == Platform::OpenNebula) {
        Some(disk) => disk.top_files()?,
        None if variables.is_empty() => Vec::new(),
        None => {
            let lines =
                variables.iter().map(|(name, value)| format!("{name}={}\n", quoted(&value.0)));
            let text = format!("# Written by ocivisor\n{}", lines.collect::<String>());
            vec![("context.sh".to_owned(), Content::Bytes(text.into()))]
        }
    };
    let wish = |(name, content): (String, Content<'a>)| {
        let secret = matches!(name.as_str(), "context.sh" | "token.txt");
        let access = Access::root(if secret { 0o600 } else { 0o644 });
        let thing = Thing::File(content, access);
        Wish { path: format!("{DIR}/{name}"), thing, weight: Weight::Asked }
    };
    Ok(files.into_iter().map(wish).collect())
}

/// The password in OpenNebula's variables. oned keeps some of them encrypted (`VM_ENCRYPTED_ATTR`) wherever but on the
/// disk, which is why this is not for the platform's client to find out.
pub fn password(variables: &[(String, String)], notes: &mut Vec<String>) -> Option<Password> {
    let get = |name: &str| {
        let value = variables.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    };
    let decoded = |name: &str| {
        // As people encode by `echo`, a last newline is none of the password.
        let bytes = STANDARD.decode(get(name)?.split_whitespace().collect::<String>()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        Some(text.trim_end_matches(['\n', '\r']).to_owned()).filter(|text| !text.is_empty())
    };
    let text = |name: &str| get(name).map(str::to_owned);
    let found = [
        ("CRYPTED_PASSWORD_BASE64", decoded("CRYPTED_PASSWORD_BASE64"), true),
        ("PASSWORD_BASE64", decoded("PASSWORD_BASE64"), false),
        ("CRYPTED_PASSWORD", text("CRYPTED_PASSWORD"), true),
        ("PASSWORD", text("PASSWORD"), false),
    ];
    let (name, value, crypted) =
        found.into_iter().find_map(|(name, value, crypted)| Some((name, value?, crypted)))?;
    let odd = value.len() > 512
        || value.chars().any(char::is_control)
        || (crypted && value.contains(':'));
    if odd {
        notes.push(format!("CONTEXT/{name} is no password that can be set"));
        return None;
    }
    Some(if crypted { Password::Crypted(Secret(value)) } else { Password::Plain(Secret(value)) })
}

/// What makes one-context read its data anew in a guest that runs.
#[must_use]
pub fn reconfigure(root: &Root) -> Vec<String> {
    let is = |path, kind| root.leads_to(path, kind);
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    if is("/run/systemd/system", FileType::Directory) {
        // Not waited for: it ends when the network is configured anew.
        words(&["systemctl", "--no-block", "restart", "one-context-reconfigure.service"])
    } else if is("/etc/init.d/one-context-reconfigure", FileType::RegularFile) {
        words(&["/etc/init.d/one-context-reconfigure", "restart"])
    } else {
        words(&["/usr/sbin/one-contextd", "all"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> (Option<Password>, usize) {
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let mut notes = Vec::new();
        let found = password(&pairs, &mut notes);
        (found, notes.len())
    }

    #[test]
    fn the_password_is_chosen_as_the_packages_do() {
        let plain = |text: &str| Some(Password::Plain(Secret(text.into())));
        let crypted = |text: &str| Some(Password::Crypted(Secret(text.into())));
        for (pairs, want) in [
            (&[][..], None),
            (&[("PASSWORD", "")], None),
            (&[("PASSWORD", "a b'c")], plain("a b'c")),
            (&[("PASSWORD", "a"), ("CRYPTED_PASSWORD", "$6$x$y")], crypted("$6$x$y")),
            (&[("PASSWORD_BASE64", "c2VjcmV0Cg=="), ("CRYPTED_PASSWORD", "x")], plain("secret")),
            (
                &[("PASSWORD_BASE64", "YQ=="), ("CRYPTED_PASSWORD_BASE64", "JDYkeA==")],
                crypted("$6$x"),
            ),
            (&[("PASSWORD_BASE64", "%%"), ("PASSWORD", "a")], plain("a")),
        ] {
            assert_eq!(of(pairs), (want, 0), "{pairs:?}");
        }
        assert_eq!(of(&[("CRYPTED_PASSWORD", "x:0:0:::\nroot")]), (None, 1));
        assert_eq!(of(&[("CRYPTED_PASSWORD", "a:b")]), (None, 1));
        assert_eq!(of(&[("PASSWORD", "a\nb")]), (None, 1));
    }
}
