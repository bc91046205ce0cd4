//! One telling: what is wished for is found out, what is told no more is taken back, the rest is written.

use std::fs::File;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::{ErrorKind, Result};
use ocivisor_core::spec::Password;

use crate::agent::{self, Agent, Disk, Platform, cloud_init, one_context};
use crate::root::{Access, Node, Root};
use crate::state::{Before, Claim, MAX_ALL_KEPT, Seed, State, is_still};
use crate::telling::{Moment, Telling};
use crate::users::{self, Tenant, Users};
use crate::wish::{Thing, Weight, Wish, set_block, set_line};
use crate::{hostkeys, identity, plan};

/// How a telling ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    /// What could not be done and was not asked for, one line each.
    pub notes: Vec<String>,
    /// What to run in the guest, as its root, so that its agent reads what was written.
    pub run: Option<Vec<String>>,
}

/// Tells the guest whose root directory this is; `disk` is its context disk.
///
/// # Errors
/// `Image`, `Exhausted`, `Conflict`: the guest's files do not let themselves be written. `Invalid`: the disk is not
/// sound. Some of it may be written; told again, or told something else, the guest has that and nothing else.
pub fn tell(root: &Root, telling: &Telling, disk: Option<&File>) -> Result<Told> {
    let mut told = Told::default();
    let disk = disk.map(Disk::open).transpose()?;
    // Whoever asked for an earlier telling may have died while it could not.
    let _alone = State::hold(root)?;
    let known = State::read(root)?;
    let new_machine = known.vm != telling.spec.id.as_str();
    // What another VM was told, this one was not.
    let known = if new_machine { State { whole: false, seed: None, ..known } } else { known };
    let mut wished = wished(root, telling, disk.as_ref(), &known, &mut told)?;
    let users = wished.users.take().filter(Users::changed);
    let Wished { wishes, tenant, seed, .. } = &wished;
    let mut claims = wished.claims.clone();
    claims.extend(claim_all(root, wishes, &known.claims, &mut told.notes)?);
    let vm = telling.spec.id.to_string();
    let mut last = State { vm, whole: true, claims, seed: seed.clone(), ..State::default() };
    if last == known && users.is_none() && all_so(root, wishes)? {
        return Ok(told);
    }
    let claims = both(&known.claims, &last.claims);
    let first = State { vm: known.vm.clone(), whole: false, claims, ..last.clone() };
    if let Err(error) = first.write(root) {
        if users.is_some() || wishes.iter().any(|wish| wish.weight == Weight::Asked) {
            return Err(error);
        }
        // Nothing was asked for: an image in which nothing can be kept is as good as it was.
        told.notes.push(error.to_string());
        return Ok(told);
    }
    if new_machine && telling.moment == Moment::Boot {
        for error in
            [identity::renew(root), hostkeys::renew(root)].into_iter().filter_map(Result::err)
        {
            // A full or broken disk, unlike what the image wants otherwise, is tried again at the next boot.
            if error.kind != ErrorKind::Image {
                last.vm.clone_from(&known.vm);
            }
            told.notes.push(error.to_string());
        }
    }
    // And gives up their lock.
    users.map_or(Ok(()), |users| users.write(root))?;
    if let Some(tenant) = tenant {
        let keys = !telling.spec.context.ssh_keys.is_empty();
        let ready = users::ensure_home(root, tenant)
            .and_then(|()| if keys { users::ensure_ssh_dir(root, tenant) } else { Ok(()) });
        excuse(ready, wished.tenant_weight, &mut told.notes)?;
    }
    take_back(root, &known.claims, &last.claims, &mut told.notes);
    for wish in wishes {
        excuse(write(root, wish), wish.weight, &mut told.notes)?;
    }
    last.write(root)?;
    Ok(told)
}

/// A failure of something that nobody asked for is but a note.
fn excuse(result: Result<()>, weight: Weight, notes: &mut Vec<String>) -> Result<()> {
    match (result, weight) {
        (Err(error), Weight::Useful) => {
            notes.push(error.to_string());
            Ok(())
        }
        (result, _) => result,
    }
}

/// What shall be, and who is told.
struct Wished<'a> {
    wishes: Vec<Wish<'a>>,
    users: Option<Users>,
    tenant: Option<Tenant>,
    tenant_weight: Weight,
    /// Of passwords.
    claims: Vec<Claim>,
    seed: Option<Seed>,
}

fn wished<'a>(
    root: &Root,
    telling: &Telling,
    disk: Option<&Disk<'a>>,
    known: &State,
    told: &mut Told,
) -> Result<Wished<'a>> {
    let context = &telling.spec.context;
    let agent = agent::find(root, telling, disk);
    let platform = disk.map(|disk| disk.platform);
    let at_boot = telling.moment == Moment::Boot;
    let variables = agent::variables(telling, disk)?;
    let password = context.password.clone();
    let password = password.or_else(|| one_context::password(&variables, &mut told.notes));
    let mut wishes = plan::always(telling, root)?;
    let mut seed = None;
    if platform == Some(Platform::OpenNebula) || agent == Agent::OneContext {
        wishes.extend(one_context::files(telling, disk)?);
    }
    if agent == Agent::CloudInit {
        if let Some(disk) = disk.filter(|disk| disk.platform == Platform::OpenStack) {
            wishes.extend(cloud_init::config_drive(disk, &telling.spec.nics)?);
        } else {
            let (spec, last) = (&telling.spec, known.seed.as_ref());
            let (files, made) = cloud_init::nocloud(spec, password.as_ref(), &variables, last)?;
            wishes.extend(files);
            seed = Some(made);
        }
    }
    if agent != Agent::OneContext {
        wishes.extend(plan::resolver(telling));
        wishes.extend(plan::files(telling));
        wishes.extend(plan::script(telling, root)?);
    } else if !at_boot {
        told.run = Some(one_context::reconfigure(root));
    }
    // cloud-init reads its seed at boot alone: a guest that runs is told by us until then.
    let ours = agent == Agent::None || (agent == Agent::CloudInit && !at_boot);
    if ours {
        wishes.extend(plan::timezone(telling, root, &mut told.notes));
    }
    // The tenant's own file wins over a useful one of that name.
    let files: Vec<&str> = context.files.iter().filter_map(|file| file.path.to_str()).collect();
    wishes.retain(|wish| wish.weight == Weight::Asked || !files.contains(&wish.path.as_str()));
    // A user must not be able to keep the guest from booting by what he does to his home.
    let his = context.user.is_some() && known.whole;
    let tenant_weight = if his { Weight::Useful } else { Weight::Asked };
    let mut wished =
        Wished { wishes, users: None, tenant: None, tenant_weight, claims: Vec::new(), seed };
    if ours && (context.user.is_some() || !context.ssh_keys.is_empty() || password.is_some()) {
        wished.tell_tenant(root, telling, password.as_ref(), known)?;
    }
    wished
        .restore_passwords(root, telling.moment, known)
        .unwrap_or_else(|error| told.notes.push(error.to_string()));
    Ok(wished)
}

impl Wished<'_> {
    /// The user with keys and password.
    fn tell_tenant(
        &mut self,
        root: &Root,
        telling: &Telling,
        password: Option<&Password>,
        known: &State,
    ) -> Result<()> {
        let (context, moment) = (&telling.spec.context, telling.moment);
        let mut users = Users::read(root, moment)?;
        let tenant = users.tenant(root, context)?;
        if let Some(password) = password {
            self.claims.push(users.set_password(&tenant.name, password, known)?);
        }
        if !context.ssh_keys.is_empty() {
            let lines = format!("{}\n", context.ssh_keys.join("\n"));
            let access = Access { mode: 0o600, uid: tenant.user.uid, gid: tenant.user.gid };
            let path = format!("{}/authorized_keys", tenant.ssh_dir());
            let thing = Thing::Block(lines, access);
            self.wishes.push(Wish { path, thing, weight: self.tenant_weight });
        }
        (self.users, self.tenant) = (Some(users), Some(tenant));
        Ok(())
    }

    /// Passwords that are told no more become those of before.
    fn restore_passwords(&mut self, root: &Root, moment: Moment, known: &State) -> Result<()> {
        for claim in &known.claims {
            let Claim::Password { user, before, wrote } = claim else { continue };
            if self.claims.iter().any(|told| told.subject() == claim.subject()) {
                continue;
            }
            if self.users.is_none() {
                self.users = Some(Users::read(root, moment)?);
            }
            if let Some(users) = &mut self.users {
                users.restore_password(user, before.as_deref(), wrote);
            }
        }
        Ok(())
    }
}

/// Claims of all wishes: what was there before, and what will be.
fn claim_all(
    root: &Root,
    wishes: &[Wish<'_>],
    earlier: &[Claim],
    notes: &mut Vec<String>,
) -> Result<Vec<Claim>> {
    let mut claims: Vec<Claim> = Vec::new();
    let mut kept = 0;
    for wish in wishes {
        match claims_of(root, wish, earlier) {
            Ok(made) => {
                for mut claim in made {
                    if let Claim::File { before, .. } = &mut claim
                        && let Before::File { content, .. } = before
                    {
                        kept += content.len();
                        if kept > MAX_ALL_KEPT {
                            *before = Before::Lost;
                        }
                    }
                    if !claims.contains(&claim) {
                        claims.push(claim);
                    }
                }
            }
            Err(error) if wish.weight == Weight::Asked => return Err(error),
            Err(error) => notes.push(error.to_string()),
        }
    }
    Ok(claims)
}

fn claims_of(root: &Root, wish: &Wish<'_>, earlier: &[Claim]) -> Result<Vec<Claim>> {
    let path = &wish.path;
    let mut claims = Vec::new();
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    if let Thing::Block(_, access) = &wish.thing {
        // The directory itself, not those above it: a home stays with its user.
        let made = earlier.iter().find(|c| matches!(c, Claim::Dir { path } if path == dir));
        let (missing, now) = root.acting_as(access.uid, access.gid, |root| {
            Ok((!root.missing_dirs(dir)?.is_empty(), root.read(path, 0)?))
        })?;
        let new = missing.then(|| Claim::Dir { path: dir.to_owned() });
        claims.extend(made.cloned().or(new));
        let known = earlier.iter().find_map(|claim| match claim {
            Claim::Block { path: p, link, .. } if p == path => Some(link.clone()),
            _ => None,
        });
        let link = known.unwrap_or_else(|| match now {
            Node::Link(target) => Some(STANDARD.encode(target)),
            _ => None,
        });
        claims.push(Claim::Block { path: path.clone(), uid: access.uid, gid: access.gid, link });
        return Ok(claims);
    }
    if let Thing::Line(_) = &wish.thing {
        return Ok(vec![Claim::Line { path: path.clone() }]);
    }
    if !dir.is_empty() {
        // Those that we made, now or earlier, on the way to it.
        let missing = root.missing_dirs(dir)?.into_iter().map(|path| Claim::Dir { path });
        let made = earlier.iter().filter(|claim| match claim {
            Claim::Dir { path: made } => path.starts_with(&format!("{made}/")),
            _ => false,
        });
        claims.extend(made.cloned().chain(missing));
    }
    let before = earlier.iter().find_map(|claim| match claim {
        Claim::File { path: p, before, .. } if p == path => Some(before.clone()),
        _ => None,
    });
    let before = before.map_or_else(|| Before::of(root, path), Ok)?;
    let wrote = wish.print()?.into_iter().collect();
    claims.push(Claim::File { path: path.clone(), before, wrote });
    Ok(claims)
}

/// Old claims and new ones, while one becomes the other.
fn both(old: &[Claim], new: &[Claim]) -> Vec<Claim> {
    let mut all = new.to_vec();
    for claim in old {
        let same = all.iter_mut().find(|other| other.subject() == claim.subject());
        match (same, claim) {
            (None, claim) => all.push(claim.clone()),
            (
                Some(Claim::File { wrote, .. } | Claim::Password { wrote, .. }),
                Claim::File { wrote: old, .. } | Claim::Password { wrote: old, .. },
            ) => wrote.extend(
                old.iter().filter(|print| !wrote.contains(print)).cloned().collect::<Vec<_>>(),
            ),
            _ => {}
        }
    }
    all
}

/// Undoes what is claimed no more. What does not let itself be undone is told and left.
fn take_back(root: &Root, old: &[Claim], new: &[Claim], notes: &mut Vec<String>) {
    // The last one first: files before the directories that they are in.
    for claim in old.iter().rev() {
        if new.iter().any(|other| other.subject() == claim.subject()) {
            continue;
        }
        if let Err(error) = take_one_back(root, claim) {
            notes.push(error.to_string());
        }
    }
}

fn take_one_back(root: &Root, claim: &Claim) -> Result<()> {
    match claim {
        Claim::Dir { path } => root.remove_dir(path),
        Claim::Block { path, uid, gid, link } => root.acting_as(*uid, *gid, |root| {
            set_block(root, path, "", Access { mode: 0o644, uid: *uid, gid: *gid })?;
            match link.as_ref().and_then(|link| STANDARD.decode(link).ok()) {
                Some(target) if root.read(path, 0)? == Node::Absent => root.link(path, &target),
                _ => Ok(()),
            }
        }),
        Claim::Line { path } => set_line(root, path, ""),
        Claim::File { path, before, wrote } => {
            for print in wrote {
                if is_still(root, path, print)? {
                    return before.restore(root, path);
                }
            }
            Ok(())
        }
        // With the users.
        Claim::Password { .. } => Ok(()),
    }
}

/// Whether all is as wished.
fn all_so(root: &Root, wishes: &[Wish<'_>]) -> Result<bool> {
    for wish in wishes {
        match wish.is_so(root) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            // It is tried again, and told of again.
            Err(_) if wish.weight == Weight::Useful => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn write(root: &Root, wish: &Wish<'_>) -> Result<()> {
    if wish.is_so(root)? {
        return Ok(());
    }
    let roots = !matches!(wish.thing, Thing::Block(_, Access { uid: 1.., .. }));
    if roots && let Some((dir, _)) = wish.path.rsplit_once('/').filter(|(dir, _)| !dir.is_empty()) {
        for dir in root.missing_dirs(dir)? {
            root.make_dir(&dir, Access::root(0o755))?;
        }
    }
    wish.write(root)
}

#[cfg(test)]
mod tests;
