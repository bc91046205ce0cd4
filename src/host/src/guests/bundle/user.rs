//! Who a process of a guest runs as: `user[:group]`, names or numbers, looked up in the guest's own
//! files. Pure; used for the first process here and for later ones by `ocivisor-runtime`.
//!
//! Numbers are read strictly: an id that wraps to 0 gave root to whoever asked for 4294967296
//! (CVE-2024-40635), and ids outside the guest's range do not exist.

/// Largest id of a guest.
pub const MAX_ID: u32 = 65_535;
/// Most bytes read of a passwd or group file.
pub const MAX_FILE: u64 = 1 << 20;
/// Most supplementary groups that are kept.
const MAX_GROUPS: usize = 1024;

/// Ids of a process within the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// Home directory, if the guest's passwd file has one.
    pub home: Option<String>,
}

/// Why there is no such user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUser {
    /// Not of the form `user[:group]`.
    #[error("user {0:?} is not of the form user[:group]")]
    Malformed(String),
    /// A number above the guest's range.
    #[error("user {0:?} holds an id above 65535")]
    TooLarge(String),
    /// No such line in the guest's passwd file.
    #[error("the guest has no user {0:?}")]
    NoUser(String),
    /// No such line in the guest's group file.
    #[error("the guest has no group {0:?}")]
    NoGroup(String),
}

/// Looks `text` up. Missing files are empty ones.
///
/// A number needs no line in the files; a user without group gets the group of its line, else 0,
/// and the supplementary groups that name it.
///
/// # Errors
/// See [`BadUser`].
pub fn resolve(text: &str, passwd: &[u8], group: &[u8]) -> Result<User, BadUser> {
    let (user, group_text) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let odd = |part: &str| part.is_empty() || part.contains(|c: char| c == ':' || c.is_control());
    if text.len() > 256 || odd(user) || group_text.is_some_and(odd) {
        return Err(BadUser::Malformed(text.chars().take(80).collect()));
    }
    let number = numeric(user, text)?;
    let line = lines(passwd).find(|fields| match number {
        Some(id) => field(fields, 2).and_then(parse_id) == Some(id),
        None => field(fields, 0) == Some(user),
    });
    let uid = match (number, &line) {
        (Some(id), _) => id,
        (None, Some(line)) => {
            field(line, 2).and_then(parse_id).ok_or_else(|| BadUser::NoUser(user.into()))?
        }
        (None, None) => return Err(BadUser::NoUser(user.into())),
    };
    let home = line.as_ref().and_then(|line| field(line, 5));
    let home = home.filter(|home| home.starts_with('/') && !home.contains(char::is_control));
    let home = home.map(str::to_owned);
    if let Some(group_text) = group_text {
        let gid = match numeric(group_text, text)? {
            Some(id) => id,
            None => lines(group)
                .find(|fields| field(fields, 0) == Some(group_text))
                .and_then(|fields| field(&fields, 2).and_then(parse_id))
                .ok_or_else(|| BadUser::NoGroup(group_text.into()))?,
        };
        return Ok(User { uid, gid, groups: Vec::new(), home });
    }
    let gid = line.as_ref().and_then(|line| field(line, 3)).and_then(parse_id).unwrap_or(0);
    let mut groups = Vec::new();
    if let Some(name) = line.as_ref().and_then(|line| field(line, 0)) {
        let named = lines(group).filter(|fields| {
            field(fields, 3).is_some_and(|members| members.split(',').any(|member| member == name))
        });
        let ids = named.filter_map(|fields| field(&fields, 2).and_then(parse_id));
        groups.extend(ids.filter(|id| *id != gid).take(MAX_GROUPS));
        groups.sort_unstable();
        groups.dedup();
    }
    Ok(User { uid, gid, groups, home })
}

/// A number if the text is one; digits that do not fit are an error, not a name.
fn numeric(part: &str, whole: &str) -> Result<Option<u32>, BadUser> {
    let signed = part.strip_prefix(['-', '+']).unwrap_or(part);
    if signed.is_empty() || !signed.bytes().all(|c| c.is_ascii_digit()) {
        return Ok(None);
    }
    parse_id(part).map(Some).ok_or_else(|| BadUser::TooLarge(whole.to_owned()))
}

fn parse_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= MAX_ID)
}

/// Lines that are text and no comment, split at colons.
fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    let text = file.split(|c| *c == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    text.filter(|line| !line.starts_with('#')).map(|line| line.split(':').collect())
}

fn field<'a>(fields: &[&'a str], at: usize) -> Option<&'a str> {
    fields.get(at).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:/bin/false\n\
        big:x:70000:1::/:/\n#no:x:1:1::/:/\n\xff\xfe:x:5:5::/:/\nshort\nctl:x:7:7::rel:/\n";
    const GROUP: &[u8] =
        b"root:x:0:\nwww:x:34:a,web,b\ntls:x:40:web\nwww2:x:34:web\nbig:x:99999:web\n";

    fn ok(text: &str) -> (u32, u32, Vec<u32>, Option<String>) {
        let user = resolve(text, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.groups, user.home)
    }

    #[test]
    fn names_and_numbers_are_looked_up_in_the_guest() {
        let www = Some("/var/www".to_owned());
        assert_eq!(ok("web"), (33, 33, vec![34, 40], www.clone()));
        assert_eq!(ok("33"), (33, 33, vec![34, 40], www.clone()));
        assert_eq!(ok("web:tls"), (33, 40, vec![], www.clone()));
        assert_eq!(ok("web:7"), (33, 7, vec![], www));
        assert_eq!(ok("1000"), (1000, 0, vec![], None));
        assert_eq!(ok("65535:65535"), (65535, 65535, vec![], None));
        assert_eq!(ok("0"), (0, 0, vec![], Some("/root".into())));
        assert_eq!(ok("ctl"), (7, 7, vec![], None));
        assert_eq!(resolve("0", b"", b"").unwrap().gid, 0);
    }

    #[test]
    fn nothing_odd_becomes_a_user_least_of_all_root() {
        for text in [
            "",
            ":",
            "0:",
            ":0",
            "0:0:0",
            "root\nroot",
            "root\0",
            "4294967296",
            "65536",
            "-1",
            "+1",
            "2147483648",
            "18446744073709551616",
            "0:65536",
            "0x0",
            " 0",
            "0 ",
            "nobody",
            "no",
            "#no",
            "big",
            "short",
            "web:nogroup",
            "web:big",
            "root:root:x",
        ] {
            assert!(resolve(text, PASSWD, GROUP).is_err(), "{text:?}");
        }
    }
}
