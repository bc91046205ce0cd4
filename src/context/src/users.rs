//! The user who is told keys and a password: made if missing, in the guest's own files.
//!
//! No program of the guest is run for it (useradd, chpasswd): the image may have none, and would run before its first
//! instruction. In a guest that runs, others change these files too; they agree on a lock, lckpwdf(3), and so do we.

use std::fs::File;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::{Context, Password};
use rustix::fs::{FileType, FlockOperation, fcntl_lock};

use crate::accounts::{Accounts, NO_PASSWORD, User};
use crate::content::Content;
use crate::password;
use crate::root::{Access, Node, Root, within};
use crate::state::{Claim, State};
use crate::telling::Moment;

/// Most bytes of a file of accounts.
const MAX_FILE: u64 = 4 << 20;
/// How long others may hold the lock: lckpwdf(3) waits as long.
const LOCK: Duration = Duration::from_secs(15);
/// Shells, best first.
const SHELLS: [&str; 3] = ["/bin/bash", "/bin/ash", "/bin/sh"];
/// What a new home gets: useradd(8), `-k`.
const SKELETON: [&str; 5] = [".bash_logout", ".bashrc", ".kshrc", ".profile", ".zshrc"];

/// A user of the guest whom the context is about.
#[derive(Debug)]
pub struct Tenant {
    /// His name.
    pub name: String,
    /// His line.
    pub user: User,
}

impl Tenant {
    /// His home.
    #[must_use]
    pub fn home(&self) -> &str {
        match (&self.user.home, self.user.uid) {
            (Some(home), _) => home,
            (None, 0) => "/root",
            (None, _) => "/",
        }
    }

    /// Where his keys are.
    #[must_use]
    pub fn ssh_dir(&self) -> String {
        format!("{}/.ssh", self.home().trim_end_matches('/'))
    }
}

/// The files of accounts as they were, and as they shall be.
#[derive(Debug)]
pub struct Users {
    old: Accounts,
    new: Accounts,
    /// From before they were read: nobody changes them meanwhile.
    _lock: Option<File>,
}

impl Users {
    /// Reads them, and keeps others from changing them until this is dropped.
    ///
    /// # Errors
    /// `Image`: one of them is too large, or no regular file. `Conflict`: somebody in the guest holds them too long.
    pub fn read(root: &Root, moment: Moment) -> Result<Self> {
        let lock = match moment {
            // There is nobody yet.
            Moment::Boot => None,
            Moment::Change => lock(root)?,
        };
        let read = |path: &str| -> Result<Option<Vec<u8>>> {
            match root.read(path, MAX_FILE)? {
                Node::Absent => Ok(None),
                Node::File(_, Some(bytes)) => Ok(Some(bytes)),
                Node::File(_, None) => Err(odd(path, "too large")),
                Node::Link(_) | Node::Directory | Node::Odd => Err(odd(path, "no regular file")),
            }
        };
        let old = Accounts {
            passwd: read(PASSWD)?.unwrap_or_default(),
            shadow: read(SHADOW)?,
            group: read(GROUP)?.unwrap_or_default(),
            gshadow: read(GSHADOW)?,
        };
        Ok(Self { new: old.clone(), old, _lock: lock })
    }

    /// The user of the context, added if missing.
    ///
    /// # Errors
    /// `Exhausted`: no id is free.
    pub fn tenant(&mut self, root: &Root, context: &Context) -> Result<Tenant> {
        let name = context.user.as_deref().unwrap_or("root");
        let user = match self.new.user(name) {
            Some(user) => user,
            None => {
                let shell = SHELLS.into_iter().find(|s| root.leads_to(s, FileType::RegularFile));
                self.new.add(name, shell.unwrap_or("/bin/sh"), today())?
            }
        };
        Ok(Tenant { name: name.to_owned(), user })
    }

    /// Sets the user's password, unless he was told it before: then he may have chosen another since.
    ///
    /// Returns what is to be remembered of it.
    ///
    /// # Errors
    /// `Host`: no random bytes.
    pub fn set_password(&mut self, name: &str, wish: &Password, state: &State) -> Result<Claim> {
        let earlier = state.claims.iter().find_map(|claim| match claim {
            Claim::Password { user, before, wrote } if user == name => Some((before, wrote)),
            _ => None,
        });
        let (before, wrote) = earlier.map_or((None, None), |(b, w)| (Some(b.clone()), Some(w)));
        let before = before.unwrap_or_else(|| self.old.password(name));
        let told = |crypted: &&String| match wish {
            Password::Plain(secret) => password::is_hash_of(crypted, &secret.0),
            Password::Crypted(secret) => **crypted == secret.0,
        };
        let told = wrote.and_then(|wrote| wrote.iter().find(told));
        if let Some(crypted) = told.filter(|_| state.whole) {
            return Ok(Claim::Password { user: name.into(), before, wrote: vec![crypted.clone()] });
        }
        let crypted = match wish {
            Password::Plain(secret) => password::hash(&secret.0)?,
            Password::Crypted(secret) => secret.0.clone(),
        };
        self.new.set_password(name, &crypted, today());
        Ok(Claim::Password { user: name.into(), before, wrote: vec![crypted] })
    }

    /// Gives a user the password back that he had before us, if it is still ours.
    pub fn restore_password(&mut self, name: &str, before: Option<&str>, wrote: &[String]) {
        let now = self.new.password(name);
        if now.is_some_and(|now| wrote.contains(&now)) {
            self.new.set_password(name, before.unwrap_or(NO_PASSWORD), today());
        }
    }

    /// Whether anything is to be written.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.old != self.new
    }

    /// Writes what changed, the names before what refers to them.
    ///
    /// # Errors
    /// `Image`, `Exhausted`: they cannot be written.
    pub fn write(&self, root: &Root) -> Result<()> {
        let (old, new) = (&self.old, &self.new);
        for dir in root.missing_dirs("/etc")? {
            root.make_dir(&dir, Access::root(0o755))?;
        }
        let write = |path: &str, old: Option<&[u8]>, new: Option<&[u8]>, mode: u32| {
            let Some(new) = new.filter(|new| old != Some(new)) else { return Ok(()) };
            let access = match root.read(path, 0)? {
                Node::File(access, _) => access,
                _ => Access::root(mode),
            };
            root.write_durably(path, new.to_vec(), access)
        };
        write(GROUP, Some(&old.group), Some(&new.group), 0o644)?;
        write(GSHADOW, old.gshadow.as_deref(), new.gshadow.as_deref(), 0o600)?;
        write(SHADOW, old.shadow.as_deref(), new.shadow.as_deref(), 0o600)?;
        write(PASSWD, Some(&old.passwd), Some(&new.passwd), 0o644)
    }
}

const PASSWD: &str = "/etc/passwd";
const SHADOW: &str = "/etc/shadow";
const GROUP: &str = "/etc/group";
const GSHADOW: &str = "/etc/gshadow";

/// Makes the user's home with the usual files, if it is missing.
///
/// # Errors
/// `Image`, `Exhausted`: it cannot be made.
pub fn ensure_home(root: &Root, tenant: &Tenant) -> Result<()> {
    let User { uid, gid, .. } = tenant.user;
    let home = tenant.home();
    let missing = root.missing_dirs(home)?;
    if missing.is_empty() {
        return Ok(());
    }
    for dir in &missing {
        let own = Access { mode: 0o700, uid, gid };
        root.make_dir(dir, if dir == home { own } else { Access::root(0o755) })?;
    }
    for name in SKELETON {
        if let Node::File(from, Some(bytes)) = root.read(&format!("/etc/skel/{name}"), MAX_FILE)? {
            let access = Access { mode: from.mode & 0o755, uid, gid };
            root.write(&format!("{home}/{name}"), &Content::Bytes(bytes), access)?;
        }
    }
    Ok(())
}

/// Makes the user's `.ssh`, if it is missing: by himself, or where he may not, by root.
///
/// # Errors
/// `Image`, `Exhausted`: it cannot be made.
pub fn ensure_ssh_dir(root: &Root, tenant: &Tenant) -> Result<()> {
    let User { uid, gid, .. } = tenant.user;
    let dir = tenant.ssh_dir();
    let access = Access { mode: 0o700, uid, gid };
    let by_himself = root.acting_as(uid, gid, |root| match root.missing_dirs(&dir)?.is_empty() {
        true => Ok(()),
        false => root.make_dir(&dir, access),
    });
    match by_himself {
        // Only where he cannot exchange it for something else meanwhile.
        Err(_) if root.is_roots_alone(tenant.home())? => root.make_dir(&dir, access),
        done => done,
    }
}

/// The lock of lckpwdf(3), held until dropped; none if the image has something odd in its place.
fn lock(root: &Root) -> Result<Option<File>> {
    if !root.missing_dirs("/etc")?.is_empty() {
        return Ok(None);
    }
    let Some(file) = root.lock_file("/etc/.pwd.lock")? else { return Ok(None) };
    if !within(LOCK, || fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()) {
        let what = "a process of the guest keeps /etc/passwd locked";
        return Err(Error::new(ErrorKind::Conflict, what));
    }
    Ok(Some(file))
}

/// Days since 1970, as shadow(5) counts.
fn today() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs() / (24 * 3600)
}

fn odd(path: &str, what: &str) -> Error {
    Error::new(ErrorKind::Image, format!("the guest's {path} is {what}"))
        .hint("users and passwords cannot be set in this image")
}
