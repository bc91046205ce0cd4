//! Users of the guest: `passwd`, `shadow`, `group` and `gshadow`, as bytes. Pure.
//!
//! Lines are changed one by one; all other bytes stay, comments, NIS entries (`+::::::`) and what is malformed
//! included. Formats: passwd(5), shadow(5), group(5), gshadow(5).

use ocivisor_core::error::{Error, ErrorKind, Result};

/// Ids that useradd(8) gives to people: login.defs(5), `UID_MIN` and `UID_MAX`.
const FIRST_UID: u32 = 1000;
const LAST_UID: u32 = 60_000;
/// A password that nothing matches. Not `!`, with which some sshd refuse keys too.
pub const NO_PASSWORD: &str = "*";

/// A line of `passwd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory, absolute.
    pub home: Option<String>,
}

/// The four files; those that may be absent are `None` then.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: Vec<u8>,
    /// `/etc/shadow`.
    pub shadow: Option<Vec<u8>>,
    /// `/etc/group`.
    pub group: Vec<u8>,
    /// `/etc/gshadow`.
    pub gshadow: Option<Vec<u8>>,
}

impl Accounts {
    /// The user of that name; an entry without readable ids is none.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<User> {
        let line = find(&self.passwd, name)?;
        let fields = fields(&self.passwd[line]);
        let text = |at: usize| std::str::from_utf8(fields.get(at)?).ok();
        let id = |at: usize| text(at)?.parse().ok().filter(|id: &u32| *id <= 65_535);
        let home = text(5).filter(|home| home.starts_with('/') && !home.contains(char::is_control));
        Some(User { uid: id(2)?, gid: id(3)?, home: home.map(str::to_owned) })
    }

    /// Adds a user with a group of the same name, no password, and a home below `/home`; root as what it is.
    ///
    /// # Errors
    /// `Exhausted`: no id is free.
    pub fn add(&mut self, name: &str, shell: &str, today: u64) -> Result<User> {
        let root = name == "root";
        let uid = if root { 0 } else { self.free_id(name)? };
        let gid = match find(&self.group, name) {
            Some(line) => number(&self.group[line], 2).unwrap_or(uid),
            None => {
                append(&mut self.group, &format!("{name}:x:{uid}:"));
                if let Some(gshadow) = &mut self.gshadow {
                    append(gshadow, &format!("{name}:!::"));
                }
                uid
            }
        };
        let home = if root { "/root".to_owned() } else { format!("/home/{name}") };
        append(
            &mut self.passwd,
            &format!("{name}:x:{uid}:{gid}:{}:{home}:{shell}", if root { "root" } else { "" }),
        );
        let shadow = self.shadow.get_or_insert_default();
        if find(shadow, name).is_none() {
            append(shadow, &format!("{name}:{NO_PASSWORD}:{today}:0:99999:7:::"));
        }
        Ok(User { uid, gid, home: Some(home) })
    }

    /// The user's password as it is written down; `None` if there is no such line.
    #[must_use]
    pub fn password(&self, name: &str) -> Option<String> {
        let shadow = self.shadow.as_ref()?;
        let line = find(shadow, name)?;
        let fields = fields(&shadow[line]);
        std::str::from_utf8(fields.get(1)?).ok().map(str::to_owned)
    }

    /// Writes the user's password down, as crypt(5) has it, changed today. The user must exist.
    pub fn set_password(&mut self, name: &str, crypted: &str, today: u64) {
        if let Some(line) = find(&self.passwd, name) {
            set_field(&mut self.passwd, line, 1, "x");
        }
        let shadow = self.shadow.get_or_insert_default();
        match find(shadow, name) {
            Some(line) => {
                set_field(shadow, line.clone(), 1, crypted);
                // Its length may have changed, not its beginning.
                if let Some(line) = find(shadow, name) {
                    set_field(shadow, line, 2, &today.to_string());
                }
            }
            None => append(shadow, &format!("{name}:{crypted}:{today}:0:99999:7:::")),
        }
    }

    fn free_id(&self, name: &str) -> Result<u32> {
        let ids = |file: &[u8]| -> Vec<u32> {
            lines(file).filter_map(|line| number(&file[line], 2)).collect()
        };
        let (users, groups) = (ids(&self.passwd), ids(&self.group));
        let free = |id: &u32| !users.contains(id) && !groups.contains(id);
        (FIRST_UID..=LAST_UID).find(free).ok_or_else(|| {
            Error::new(ErrorKind::Exhausted, format!("the guest has no user id free for {name}"))
        })
    }
}

/// Where the lines are, without their ends.
fn lines(file: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut at = 0;
    file.split(|c| *c == b'\n').map(move |line| {
        let range = at..at + line.len();
        at = range.end + 1;
        range
    })
}

/// The line of that name: the first one counts, as for getpwnam(3).
fn find(file: &[u8], name: &str) -> Option<std::ops::Range<usize>> {
    lines(file).find(|line| {
        let rest = file[line.clone()].strip_prefix(name.as_bytes());
        rest.is_some_and(|rest| rest.first() == Some(&b':'))
    })
}

fn fields(line: &[u8]) -> Vec<&[u8]> {
    line.split(|c| *c == b':').collect()
}

fn number(line: &[u8], at: usize) -> Option<u32> {
    std::str::from_utf8(fields(line).get(at)?).ok()?.parse().ok()
}

/// Replaces one field of a line; a line with too few is left alone.
fn set_field(file: &mut Vec<u8>, line: std::ops::Range<usize>, at: usize, value: &str) {
    let mut begin = line.start;
    for (n, field) in file[line].split(|c| *c == b':').enumerate() {
        let end = begin + field.len();
        if n == at {
            file.splice(begin..end, value.bytes());
            return;
        }
        begin = end + 1;
    }
}

fn append(file: &mut Vec<u8>, line: &str) {
    if file.last().is_some_and(|c| *c != b'\n') {
        file.push(b'\n');
    }
    file.extend_from_slice(line.as_bytes());
    file.push(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TODAY: u64 = 20_000;

    fn accounts(passwd: &str, shadow: Option<&str>) -> Accounts {
        Accounts {
            passwd: passwd.into(),
            shadow: shadow.map(Into::into),
            group: "root:x:0:\nweb:x:1000:a\n".into(),
            gshadow: Some("root:*::\n".into()),
        }
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_user_is_found_by_the_first_line_of_the_name() {
        let file = "# c\nroot:x:0:0:root:/root:/bin/sh\nab:x:1:1::/:/\na:x:5:6::rel:/\na:x:7:7::/:/\nbig:x:70000:1::/:/\n";
        let accounts = accounts(file, None);
        let root = User { uid: 0, gid: 0, home: Some("/root".into()) };
        assert_eq!(accounts.user("root"), Some(root));
        assert_eq!(accounts.user("a"), Some(User { uid: 5, gid: 6, home: None }));
        assert_eq!(
            (accounts.user("b"), accounts.user("big"), accounts.user("# c")),
            (None, None, None)
        );
    }

    #[test]
    fn a_new_user_gets_free_ids_and_no_password() {
        let mut all =
            accounts("root:x:0:0::/root:/bin/sh\nx:x:1001:0::/:/", Some("root:*:1::::::\n"));
        let user = all.add("dev", "/bin/bash", TODAY).unwrap();
        assert_eq!(user, User { uid: 1002, gid: 1002, home: Some("/home/dev".into()) });
        assert_eq!(all.user("dev"), Some(user));
        assert_eq!(
            text(&all.passwd),
            "root:x:0:0::/root:/bin/sh\nx:x:1001:0::/:/\ndev:x:1002:1002::/home/dev:/bin/bash\n"
        );
        assert_eq!(
            text(all.shadow.as_ref().unwrap()),
            "root:*:1::::::\ndev:*:20000:0:99999:7:::\n"
        );
        assert_eq!(text(&all.group), "root:x:0:\nweb:x:1000:a\ndev:x:1002:\n");
        assert_eq!(text(all.gshadow.as_ref().unwrap()), "root:*::\ndev:!::\n");
        // A group of that name is taken as it is.
        assert_eq!(all.add("web", "/bin/sh", TODAY).unwrap().gid, 1000);
        assert_eq!(text(&all.group), "root:x:0:\nweb:x:1000:a\ndev:x:1002:\n");
    }

    #[test]
    fn an_image_without_any_file_gets_root() {
        let mut all = Accounts::default();
        assert_eq!(all.add("root", "/bin/sh", TODAY).unwrap().home.as_deref(), Some("/root"));
        assert_eq!(text(&all.passwd), "root:x:0:0:root:/root:/bin/sh\n");
        all.set_password("root", "$6$a$b", TODAY);
        assert_eq!(text(all.shadow.as_ref().unwrap()), "root:$6$a$b:20000:0:99999:7:::\n");
    }

    #[test]
    fn a_password_changes_its_field_and_the_day() {
        let mut all =
            accounts("root:x:0:0::/root:/bin/sh\n", Some("a:!:1:::\nroot:*:19000:0:99999:7:::\nz"));
        assert_eq!(all.password("root").as_deref(), Some("*"));
        all.set_password("root", "$6$s$h", TODAY);
        assert_eq!(
            text(all.shadow.as_ref().unwrap()),
            "a:!:1:::\nroot:$6$s$h:20000:0:99999:7:::\nz"
        );
        // Where the hash is in passwd, the shadow file takes its place.
        let mut old = accounts("root::0:0::/root:/bin/sh\n", None);
        old.set_password("root", "h", TODAY);
        assert_eq!(text(&old.passwd), "root:x:0:0::/root:/bin/sh\n");
        assert_eq!(text(old.shadow.as_ref().unwrap()), "root:h:20000:0:99999:7:::\n");
    }

    proptest! {
        #[test]
        fn every_other_byte_of_shadow_is_kept(
            before in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b':'), any::<u8>()], 0..100),
            after in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b':'), any::<u8>()], 0..100),
            hash in "[./0-9A-Za-z$]{0,40}",
        ) {
            let line = |hash: &str, day: &str| -> Vec<u8> {
                let line = format!("\ntenant:{hash}:{day}:0:99999:7:::\n");
                [&before, line.as_bytes(), &after].concat()
            };
            prop_assume!(find(&before, "tenant").is_none());
            let mut all = Accounts { shadow: Some(line("*", "1")), ..Accounts::default() };
            all.set_password("tenant", &hash, TODAY);
            prop_assert_eq!(all.shadow.unwrap(), line(&hash, "20000"));
        }

        #[test]
        fn adding_a_user_keeps_every_byte(
            passwd in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b':'), any::<u8>()], 0..100),
            group in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b':'), any::<u8>()], 0..100),
        ) {
            let mut all = Accounts { passwd: passwd.clone(), group: group.clone(), ..Accounts::default() };
            prop_assume!(all.user("tenant").is_none());
            all.add("tenant", "/bin/sh", TODAY).unwrap();
            prop_assert!(all.passwd.starts_with(&passwd) && all.group.starts_with(&group));
            prop_assert_eq!(all.user("tenant").map(|u| u.uid), Some(1000));
        }
    }
}
