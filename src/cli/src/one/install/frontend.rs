//! What the front-end needs: our scripts below OpenNebula's `remotes`.

use super::blocks::{self, Wanted};
use super::conf::Conf;
use super::record::Record;
use super::tree::{Script, scripts};
use super::{Item, Site, State, failed, unreadable};
use crate::failure::{Exit, Failure};

/// Where OpenNebula keeps the scripts that it copies to its hosts.
const REMOTES: &str = "var/lib/one/remotes";

/// Puts the scripts there, takes those of an earlier version away that are no more, and tells the rest.
///
/// # Errors
/// OpenNebula is not here, or a file is not as we left it; nothing was changed then.
pub fn install(site: &Site, name: &str, force: bool) -> Result<Vec<Item>, Failure> {
    let Some(owner) = site.root.owner(REMOTES).map_err(|e| failed("look for OpenNebula", &e))?
    else {
        let what =
            format!("no {}: OpenNebula's front-end is not installed here", site.shown(REMOTES));
        return Err(Failure::new(Exit::NotFound, what).hint("--host prepares a host"));
    };
    let old = site.record()?.unwrap_or_else(Record::new);
    let foreign = foreign(site, &old)?;
    if let (Some(path), false) = (foreign.first(), force) {
        let what = format!("{} is not as ocivisor left it", site.shown(path));
        return Err(Failure::new(Exit::Conflict, what)
            .hint("move it away if it is yours, or say --force to replace it"));
    }
    let mut new = old.by_this_program();
    for script in scripts() {
        new.add(&place(script), script.text.as_bytes());
    }
    // What will be there is on record before it is there: a crash leaves nothing that is not known to be ours.
    site.keep(&new)?;
    for script in scripts() {
        let path = place(script);
        if site.read(&path)?.as_deref() != Some(script.text.as_bytes()) {
            site.write(&path, script.text.as_bytes(), script.mode(), owner)?;
        }
    }
    for path in old.files.keys().filter(|path| is_script(path) && !is_current(path)) {
        let ours = site.read(path)?.is_some_and(|text| old.wrote(path, &text));
        if ours {
            site.remove(path)?;
        }
        new.files.remove(path);
    }
    for script in scripts() {
        let path = place(script);
        new.files.remove(&path);
        new.add(&path, script.text.as_bytes());
    }
    site.keep(&new)?;
    check(site, name)
}

/// Scripts of ours by the place that they should have, with what is there instead.
fn foreign(site: &Site, record: &Record) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for script in scripts() {
        let path = place(script);
        let there = site.read(&path)?;
        let ours = |text: &Vec<u8>| text == script.text.as_bytes() || record.wrote(&path, text);
        if there.is_some_and(|text| !ours(&text)) {
            found.push(path);
        }
    }
    Ok(found)
}

fn place(script: Script) -> String {
    format!("{REMOTES}/{}", script.path)
}

fn is_script(path: &str) -> bool {
    path.starts_with(REMOTES)
}

fn is_current(path: &str) -> bool {
    scripts().into_iter().any(|script| place(script) == path)
}

/// How things stand: the scripts by directory, and the configuration of OpenNebula.
///
/// # Errors
/// A file cannot be read, or is not what it should be.
pub fn check(site: &Site, name: &str) -> Result<Vec<Item>, Failure> {
    let mut items: Vec<Item> = Vec::new();
    for script in scripts() {
        let dir = script.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        let there = site.read(&place(script))?.is_some_and(|text| text == script.text.as_bytes());
        match items.last_mut().filter(|item| item.name == dir) {
            Some(item) if !there => item.state = State::Missing,
            Some(_) => {}
            None => items.push(Item::new(dir, format!("scripts in remotes/{dir}"), there)),
        }
    }
    let execrc = text(site, blocks::EXECRC)?;
    let (oned, monitord) = (conf(site, blocks::ONED)?, conf(site, blocks::MONITORD)?);
    for Wanted { file, what, write } in blocks::wanted(&oned, &monitord, &execrc, name) {
        let mut item = Item::new(file, what, write.is_none());
        item.write = write.map(|text| format!("# {}\n{text}", site.shown(file)));
        items.push(item);
    }
    Ok(items)
}

fn text(site: &Site, path: &str) -> Result<String, Failure> {
    Ok(String::from_utf8_lossy(&site.read(path)?.unwrap_or_default()).into_owned())
}

fn conf(site: &Site, path: &str) -> Result<Conf, Failure> {
    Conf::parse(&text(site, path)?).map_err(|why| unreadable(site, path, &why))
}

/// What to do when the configuration says all of it.
pub fn commands(name: &str) -> String {
    format!(
        "systemctl restart opennebula\n\
         sudo -u oneadmin onehost sync --force\n\
         sudo -u oneadmin onehost create <host> --im ocivisor --vm {name}\n"
    )
}
