//! What a host needs beside the package: oneadmin may ask the daemon.

use super::record::Record;
use super::root::{Owner, Root};
use super::{Item, Site, State, unreadable};
use crate::failure::Failure;

/// The group that may ask the daemon; it owns the socket.
pub const GROUP: &str = "ocivisor";
/// The platform's user.
pub const USER: &str = "oneadmin";
/// The daemon's configuration.
const CONFIG: &str = "etc/ocivisor/ocivisor.toml";

/// Brings the host to what it should be.
///
/// # Errors
/// A tool or a file failed; what was done stays, and is recorded.
pub fn install(site: &Site) -> Result<Vec<Item>, Failure> {
    let mut record = site.record()?.unwrap_or_else(Record::new);
    if group(&site.root)?.is_none() {
        site.tool("groupadd", &["--system", GROUP])?;
    }
    let known = group(&site.root)?.unwrap_or_default();
    if !known.members.iter().any(|member| member == USER) {
        // Before the effect: whoever finds the membership must know that it is ours.
        record.member = Some(USER.to_owned());
        site.keep(&record)?;
        site.tool("usermod", &["--append", "--groups", GROUP, USER])?;
    }
    if site.read(CONFIG)?.is_none() {
        let text = format!(
            "# docs/ocivisor.toml has every key.\n[access]\n# The group {GROUP}, of which {USER} is a member.\noperate_gid = {}\n",
            known.gid
        );
        record.add(CONFIG, text.as_bytes());
        site.keep(&record)?;
        site.write(CONFIG, text.as_bytes(), 0o644, Owner::ROOT)?;
    }
    site.keep(&record)?;
    check(site)
}

/// Takes the membership back; the group and what is in use of it stays.
///
/// # Errors
/// The tool failed.
pub fn uninstall(site: &Site, record: &Record) -> Result<(), Failure> {
    let known = group(&site.root)?.unwrap_or_default();
    match &record.member {
        Some(user) if known.members.contains(user) => {
            site.tool("usermod", &["--remove", "--groups", GROUP, user])
        }
        _ => Ok(()),
    }
}

/// How things stand.
///
/// # Errors
/// A file cannot be read.
pub fn check(site: &Site) -> Result<Vec<Item>, Failure> {
    let known = group(&site.root)?;
    let member = known.as_ref().is_some_and(|group| group.members.iter().any(|user| user == USER));
    let mut items = vec![
        Item::new("group", format!("group {GROUP}"), known.is_some()),
        Item::new("member", format!("{USER} is a member of group {GROUP}"), member),
    ];
    let gid = known.map(|group| group.gid);
    let config = site.read(CONFIG)?.unwrap_or_default();
    let said = operate_gid(&String::from_utf8_lossy(&config))
        .map_err(|why| unreadable(site, CONFIG, &why))?;
    let mut socket = Item::new(
        "socket",
        format!("the daemon's socket belongs to group {GROUP}"),
        said.is_some() && said == gid,
    );
    if socket.state == State::Missing {
        let gid = gid.map_or_else(|| "<its number>".to_owned(), |gid| gid.to_string());
        socket.write = Some(format!(
            "# {}, then: systemctl restart ocivisord\n[access]\noperate_gid = {gid}",
            site.shown(CONFIG)
        ));
    }
    items.push(socket);
    Ok(items)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Group {
    gid: u32,
    members: Vec<String>,
}

fn group(root: &Root) -> Result<Option<Group>, Failure> {
    let text = root.read("etc/group").map_err(|e| super::failed("read /etc/group", &e))?;
    Ok(parse_group(&String::from_utf8_lossy(&text.unwrap_or_default())))
}

/// group(5): `name:password:gid:member,member`.
fn parse_group(text: &str) -> Option<Group> {
    let line = text.lines().find(|line| line.split(':').next() == Some(GROUP))?;
    let mut fields = line.split(':').skip(2);
    let gid = fields.next()?.parse().ok()?;
    let members = fields.next().unwrap_or_default().split(',').filter(|name| !name.is_empty());
    Some(Group { gid, members: members.map(str::to_owned).collect() })
}

fn operate_gid(text: &str) -> Result<Option<u32>, String> {
    let config: toml::Table = toml::from_str(text).map_err(|e| e.message().to_owned())?;
    let gid = config.get("access").and_then(|access| access.get("operate_gid"));
    Ok(gid.and_then(toml::Value::as_integer).and_then(|gid| u32::try_from(gid).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_with_its_members() {
        let text = "root:x:0:\nocivisorx:x:5:oneadmin\nocivisor:x:997:nova,oneadmin\n";
        let want = Group { gid: 997, members: vec!["nova".into(), "oneadmin".into()] };
        assert_eq!(parse_group(text), Some(want));
        assert_eq!(parse_group("ocivisor:x:997:").unwrap().members, Vec::<String>::new());
        assert_eq!(parse_group("ocivisor:x:many:"), None);
        assert_eq!(parse_group(""), None);
    }

    #[test]
    fn the_daemons_group_is_read_from_its_configuration() {
        assert_eq!(operate_gid("[access]\noperate_gid = 7"), Ok(Some(7)));
        assert_eq!(operate_gid("[access]\nread_gids = [7]"), Ok(None));
        assert_eq!(operate_gid(""), Ok(None));
        assert!(operate_gid("[access").is_err());
    }
}
