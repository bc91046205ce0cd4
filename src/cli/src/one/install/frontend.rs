//! What the front-end needs: our scripts below OpenNebula's `remotes`.

use std::collections::BTreeSet;

use super::blocks::{self, Wanted};
use super::conf::Conf;
use super::record::Record;
use super::root::{Owner, There};
use super::tree::{Script, scripts};
use super::{Item, Site, State, failed, unreadable};
use crate::failure::{Exit, Failure};

/// Where OpenNebula keeps the scripts that it copies to its hosts.
const REMOTES: &str = "var/lib/one/remotes";

/// What an installation did and left to do.
#[derive(Debug)]
pub struct Done {
    /// How things stand.
    pub items: Vec<Item>,
    /// Hosts have other scripts than the front-end now.
    pub changed: bool,
}

/// Puts the scripts there, takes those of an earlier version away that are no more, and tells the rest.
///
/// # Errors
/// OpenNebula is not here, or a file is not as we left it; nothing was changed then.
pub fn install(site: &Site, name: &str, force: bool) -> Result<Done, Failure> {
    let found = site.root.dir(REMOTES).map_err(|e| failed("look for OpenNebula", &e))?;
    let Some((owner, _)) = found else {
        let what =
            format!("no {}: OpenNebula's front-end is not installed here", site.shown(REMOTES));
        return Err(Failure::new(Exit::NotFound, what).hint("--host prepares a host"));
    };
    let old = site.record()?.unwrap_or_else(Record::new);
    if let (Some(path), false) = (foreign(site, &old)?.first(), force) {
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
    let mut changed = false;
    for script in scripts() {
        if !is_whole(site, script, owner)? {
            let path = place(script);
            site.write(&path, script.text.as_bytes(), script.mode, owner)?;
            changed = true;
        }
    }
    for dir in directories() {
        if site.root.dir(&dir).map_err(|e| failed(&dir, &e))? != Some((owner, 0o755)) {
            site.root.give_dir(&dir, owner).map_err(|e| failed(&dir, &e))?;
            changed = true;
        }
    }
    for path in old.files.keys().filter(|path| is_script(path) && !is_current(path)) {
        let There::File { text, .. } = site.look(path)? else { continue };
        if old.wrote(path, &text) {
            site.remove(path)?;
            changed = true;
        }
        new.files.remove(path);
    }
    for script in scripts() {
        let path = place(script);
        new.files.remove(&path);
        new.add(&path, script.text.as_bytes());
    }
    site.keep(&new)?;
    Ok(Done { items: check(site, name)?, changed })
}

/// Content, permissions and owner.
fn is_whole(site: &Site, script: Script, by: Owner) -> Result<bool, Failure> {
    Ok(match site.look(&place(script))? {
        There::File { text, mode, owner } => {
            text == script.text.as_bytes() && mode == script.mode && owner == by
        }
        There::Nothing | There::Other => false,
    })
}

/// Our own directories, below the root.
fn directories() -> BTreeSet<String> {
    let dir = |script: Script| Some(place(script).rsplit_once('/')?.0.to_owned());
    scripts().into_iter().filter_map(dir).collect()
}

/// Scripts of ours by the place that they should have, with something else there.
fn foreign(site: &Site, record: &Record) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    for script in scripts() {
        let path = place(script);
        let ours = match site.look(&path)? {
            There::Nothing => true,
            There::File { text, .. } => {
                text == script.text.as_bytes() || record.wrote(&path, &text)
            }
            There::Other => false,
        };
        if !ours {
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
    let found = site.root.dir(REMOTES).map_err(|e| failed("look for OpenNebula", &e))?;
    let owner = found.map_or(Owner::ROOT, |(owner, _)| owner);
    for script in scripts() {
        let dir = script.path.rsplit_once('/').map_or("", |(dir, _)| dir);
        let there = is_whole(site, script, owner)?;
        match items.last_mut().filter(|item| item.name == dir) {
            Some(item) if !there => item.state = State::Missing,
            Some(_) => {}
            None => items.push(Item::new(dir, format!("scripts in remotes/{dir}"), there)),
        }
    }
    for item in &mut items {
        let dir = format!("{REMOTES}/{}", item.name);
        if site.root.dir(&dir).map_err(|e| failed(&dir, &e))? != Some((owner, 0o755)) {
            item.state = State::Missing;
        }
    }
    let execrc = site.text(blocks::EXECRC)?;
    let (oned, monitord) = (conf(site, blocks::ONED)?, conf(site, blocks::MONITORD)?);
    for Wanted { file, what, write } in blocks::wanted(&oned, &monitord, &execrc, name) {
        let mut item = Item::new(file, what, write.is_none());
        item.write = write.map(|text| format!("# {}\n{text}", site.shown(file)));
        items.push(item);
    }
    Ok(items)
}

fn conf(site: &Site, path: &str) -> Result<Conf, Failure> {
    Conf::parse(&site.text(path)?).map_err(|why| unreadable(site, path, &why))
}

/// What oned still says of us: without the scripts it could not end its VMs.
///
/// # Errors
/// As [`check`].
pub fn configured(site: &Site, name: &str) -> Result<Vec<String>, Failure> {
    let all = check(site, name)?.into_iter();
    let said = all.filter(|item| item.name.starts_with("etc/") && item.state == State::Ok);
    Ok(said.map(|item| item.what).collect())
}

/// What is left to do by hand, on this machine.
pub fn commands(name: &str, incomplete: bool, changed: bool) -> String {
    let mut text = String::new();
    if incomplete {
        text.push_str("systemctl restart opennebula\n");
    }
    if incomplete || changed {
        text.push_str("sudo -u oneadmin onehost sync --force\n");
    }
    if incomplete {
        text.push_str("sudo -u oneadmin onehost create <host> --im ocivisor --vm ");
        text.push_str(name);
        text.push('\n');
    }
    text
}
