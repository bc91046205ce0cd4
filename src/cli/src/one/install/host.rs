//! What a host needs beside the package: oneadmin may ask the daemon, and udev leaves disks of guests alone.

use super::record::Record;
use super::root::Owner;
use super::{Item, Site, unreadable};
use crate::failure::{Exit, Failure};

/// The group that may ask the daemon; it owns the socket.
pub const GROUP: &str = "ocivisor";
/// The platform's user.
pub const USER: &str = "oneadmin";
/// The daemon's configuration.
const CONFIG: &str = "etc/ocivisor/ocivisor.toml";

/// What keeps udev off disks of guests.
const RULE: &str = "etc/udev/rules.d/60-ocivisor.rules";
const RULE_TEXT: &str = include_str!("../../../../daemon/udev/60-ocivisor.rules");
/// Where a package would have it.
const PACKAGED_RULE: &str = "usr/lib/udev/rules.d/60-ocivisor.rules";

/// Where the socket is unless the configuration says otherwise.
const SOCKET: &str = crate::args::DEFAULT_SOCKET;

/// Brings the host to what it should be.
///
/// # Errors
/// A tool or a file failed; what was done stays, and is recorded.
pub fn install(site: &Site) -> Result<Vec<Item>, Failure> {
    let mut record = site.record()?.unwrap_or_else(Record::new);
    let users = site.text("etc/passwd")?;
    if !users.lines().any(|line| line.split(':').next() == Some(USER)) {
        let what =
            format!("there is no user {USER}: OpenNebula's node package is not installed here");
        return Err(Failure::new(Exit::NotFound, what).hint("install it first"));
    }
    if groups(site)?.by_name(GROUP).is_none() {
        site.tool("groupadd", &["--system", GROUP])?;
    }
    let Some(known) = groups(site)?.by_name(GROUP).cloned() else {
        let what = format!("{} has no group {GROUP} that can be read", site.shown("etc/group"));
        return Err(Failure::new(Exit::Failure, what));
    };
    if !known.has(USER) {
        // Before the effect: whoever finds the membership must know that it is ours.
        record.member = Some(USER.to_owned());
        site.keep(&record)?;
        site.tool("usermod", &["--append", "--groups", GROUP, USER])?;
    }
    if site.read(CONFIG)?.is_none() {
        let text = format!(
            "[access]\n# The group {GROUP}, of which {USER} is a member.\noperate_gid = {}\n",
            known.gid
        );
        record.add(CONFIG, text.as_bytes());
        site.keep(&record)?;
        site.write(CONFIG, text.as_bytes(), 0o644, Owner::ROOT)?;
    }
    // One of the admin's own stays; udev sees by itself that there is a new one.
    let rule = site.read(RULE)?;
    let is_free = rule.as_deref().is_none_or(|text| record.wrote(RULE, text));
    if is_free && rule.as_deref() != Some(RULE_TEXT.as_bytes()) && !packaged_rule(site)? {
        record.add(RULE, RULE_TEXT.as_bytes());
        site.keep(&record)?;
        site.write(RULE, RULE_TEXT.as_bytes(), 0o644, Owner::ROOT)?;
    }
    check(site)
}

fn packaged_rule(site: &Site) -> Result<bool, Failure> {
    Ok(site.read(PACKAGED_RULE)?.is_some_and(|text| text == RULE_TEXT.as_bytes()))
}

/// The rule for udev as it is here: that of /etc comes before that of a package.
fn rule_item(site: &Site) -> Result<Item, Failure> {
    let right = match site.read(RULE)? {
        Some(text) => text == RULE_TEXT.as_bytes(),
        None => packaged_rule(site)?,
    };
    let mut item = Item::new("udev", "udev leaves disks of guests alone", right);
    if !right {
        item.write = Some(format!("# {}\n{}", site.shown(RULE), RULE_TEXT.trim_end()));
    }
    Ok(item)
}

/// Takes the membership back; the group stays, others may be in it.
///
/// # Errors
/// The tool failed.
pub fn uninstall(site: &Site, record: &Record) -> Result<(), Failure> {
    let Some(user) = &record.member else { return Ok(()) };
    if !groups(site)?.by_name(GROUP).is_some_and(|group| group.has(user)) {
        return Ok(());
    }
    if site.is_machine()? {
        // usermod(8) learned to remove only in shadow 4.10.
        site.tool("gpasswd", &["--delete", user, GROUP])
    } else {
        site.tool("usermod", &["--remove", "--groups", GROUP, user])
    }
}

/// How things stand: who the daemon's operators are, by its configuration and by its socket.
///
/// # Errors
/// A file cannot be read.
pub fn check(site: &Site) -> Result<Vec<Item>, Failure> {
    let groups = groups(site)?;
    let config = site.text(CONFIG)?;
    let (gid, socket) = operators(&config).map_err(|why| unreadable(site, CONFIG, &why))?;
    let group = gid.and_then(|gid| groups.by_gid(gid));
    let primary = |gid| {
        let of = |line: &str| {
            let mut fields = line.split(':');
            fields.next() == Some(USER)
                && fields.nth(2).is_some_and(|field| field.parse() == Ok(gid))
        };
        site.text("etc/passwd").is_ok_and(|users| users.lines().any(of))
    };
    let member = group.is_some_and(|group| group.has(USER)) || gid.is_some_and(primary);
    let name = group.map_or(GROUP, |group| &group.name);
    let mut said =
        Item::new("config", "ocivisor.toml says which group may operate VMs", gid.is_some());
    if gid.is_none() {
        let gid =
            groups.by_name(GROUP).map_or_else(|| "<its number>".to_owned(), |g| g.gid.to_string());
        said.write = Some(format!(
            "# {}, in [access], then: systemctl restart ocivisord\noperate_gid = {gid}",
            site.shown(CONFIG)
        ));
    }
    let others = group.map_or_else(String::new, |group| {
        let others: Vec<&str> =
            group.members.iter().map(String::as_str).filter(|user| *user != USER).collect();
        if others.is_empty() { String::new() } else { format!(" (so are {})", others.join(", ")) }
    });
    let mut items =
        vec![said, Item::new("member", format!("{USER} is in group {name}{others}"), member)];
    items.push(rule_item(site)?);
    if site.is_machine()? {
        items.push(socket_item(socket.as_deref().unwrap_or(SOCKET), gid, name));
    }
    Ok(items)
}

/// A daemon that ran before its configuration was written has its socket as before.
fn socket_item(socket: &str, gid: Option<u32>, name: &str) -> Item {
    use std::os::unix::fs::MetadataExt;
    let there = std::fs::metadata(socket).ok().map(|meta| meta.gid());
    let right = there.is_some() && there == gid;
    let mut item = Item::new("socket", format!("{socket} belongs to group {name}"), right);
    if !right {
        item.write = Some(
            "# the daemon\nsystemctl enable --now ocivisord.socket && systemctl restart ocivisord"
                .to_owned(),
        );
    }
    item
}

/// group(5).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

impl Group {
    fn has(&self, user: &str) -> bool {
        self.members.iter().any(|member| member == user)
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Groups(Vec<Group>);

impl Groups {
    /// `name:password:gid:member,member`; lines of another form are not looked at.
    fn parse(text: &str) -> Self {
        let group = |line: &str| {
            let mut fields = line.split(':');
            let (name, gid) = (fields.next()?.to_owned(), fields.nth(1)?.parse().ok()?);
            let members = fields.next().unwrap_or_default().split(',');
            let members = members.filter(|name| !name.is_empty()).map(str::to_owned).collect();
            Some(Group { name, gid, members })
        };
        Self(text.lines().filter_map(group).collect())
    }

    fn by_name(&self, name: &str) -> Option<&Group> {
        self.0.iter().find(|group| group.name == name)
    }

    fn by_gid(&self, gid: u32) -> Option<&Group> {
        self.0.iter().find(|group| group.gid == gid)
    }
}

fn groups(site: &Site) -> Result<Groups, Failure> {
    Ok(Groups::parse(&site.text("etc/group")?))
}

/// Number of the group of operators, and the socket, by the daemon's configuration.
fn operators(text: &str) -> Result<(Option<u32>, Option<String>), String> {
    let config: toml::Table = toml::from_str(text).map_err(|e| e.message().to_owned())?;
    let gid = config.get("access").and_then(|access| access.get("operate_gid"));
    let gid = gid.and_then(toml::Value::as_integer).and_then(|gid| u32::try_from(gid).ok());
    let run = config.get("run_dir").and_then(toml::Value::as_str);
    Ok((gid, run.map(|dir| format!("{dir}/ocivisord.sock"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_with_their_members() {
        let groups = Groups::parse(
            "root:x:0:\nodd\nocivisorx:x:5:oneadmin\nocivisor:x:997:nova,oneadmin\nbad:x:many:\n",
        );
        let group = groups.by_name("ocivisor").unwrap();
        assert_eq!((group.gid, group.members.len()), (997, 2));
        assert!(group.has("oneadmin") && group.has("nova") && !group.has("nov"));
        assert_eq!(groups.by_gid(997), Some(group));
        assert!(groups.by_name("root").unwrap().members.is_empty());
        assert_eq!(
            (groups.by_name("bad"), groups.by_name("odd"), groups.by_gid(7)),
            (None, None, None)
        );
    }

    #[test]
    fn the_daemons_group_and_socket_are_read_from_its_configuration() {
        let read = |text| operators(text).unwrap();
        assert_eq!(read("[access]\noperate_gid = 7"), (Some(7), None));
        assert_eq!(
            read("run_dir = \"/r\"\n[access]\nread_gids = [7]"),
            (None, Some("/r/ocivisord.sock".into()))
        );
        assert_eq!(read(""), (None, None));
        assert!(operators("[access").is_err());
    }
}
