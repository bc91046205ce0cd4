//! Who may point which name at which image.
//!
//! A name decides what the next disk is made of, so whoever moves one chooses what others will run. A handle of the
//! store works for its owner, who may move every name, or for one of several users ([`Store::naming_for`]) that
//! trust each other with nothing:
//!
//! | the name | a user may point it |
//! |---|---|
//! | begins with a registry's host | where the registry does, by pulling that very tag; nowhere else |
//! | is not there | anywhere; it is his from then on |
//! | is his | anywhere |
//! | is another's, or of the store's owner | nowhere but where it points already |
//!
//! The first line is no matter of who was first: such a name stands for what the registry says. So a user can
//! neither squat on it with something else, nor be kept from the registry's newer image because somebody pulled
//! the older one before him. Who wants a name to stay where it is chooses one without a host.
//!
//! The user is part of the ref, so he changes with it in one step. To look and to move is one step, too, by a lock
//! on `refs`.

use rustix::fs::FlockOperation;

use crate::digest::Digest;
use crate::disk;
use crate::error::{Error, Result};
use crate::name::ImageName;
use crate::record::RefRecord;
use crate::source::Source;
use crate::store::Store;

/// Why an image gets a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// It is what the registry has under the tag that the name is.
    Tag,
    /// The name is made of the image's digest.
    Digest,
    /// The caller wants it so.
    Choice,
}

impl By {
    pub fn of(source: &Source, name: &ImageName) -> Self {
        let Source::Registry(source) = source else { return Self::Choice };
        let reference = &source.reference;
        if reference.image_name().as_ref() != Some(name) {
            return Self::Choice;
        }
        match (reference.tag(), reference.digest()) {
            (None, Some(_)) => Self::Digest,
            // The digest decides, and the tag need never have meant it.
            (Some(_), Some(_)) => Self::Choice,
            // A tag that looks like a digest's name must not take that from the digest.
            (Some(tag), None) if is_short_digest(tag) => Self::Choice,
            (_, None) => Self::Tag,
        }
    }
}

/// As [`crate::RegistryReference::image_name`] writes a digest.
fn is_short_digest(tag: &str) -> bool {
    tag.strip_prefix("sha256-").is_some_and(|hex| {
        hex.len() == 16 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Decides, and says whose the name is then: a user's, or the owner's of the store. `to` is none for an image that
/// no name can point at yet.
fn decide(
    user: Option<u32>,
    name: &ImageName,
    now: Option<&RefRecord>,
    to: Option<&Digest>,
    by: By,
) -> Result<Option<u32>> {
    let Some(user) = user else { return Ok(None) };
    let refuse = |why| Err(Error::NotYours { name: name.to_string(), why });
    if let Some(now) = now.filter(|now| Some(&now.manifest) == to) {
        return Ok(now.owner);
    }
    if by == By::Choice && name.begins_with_host() {
        return refuse("it begins with a registry's host, so it is set by a pull of that very tag");
    }
    match now {
        Some(now) if by != By::Tag && now.owner != Some(user) => {
            refuse("somebody else set it, and it points at another image")
        }
        _ => Ok(Some(user)),
    }
}

impl Store {
    /// Sets names for this user from now on, and moves those of nobody else.
    #[must_use]
    pub fn naming_for(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// The user who set a name; none if it was the owner of the store, or nobody has set it.
    pub fn owner_of(&self, name: &ImageName) -> Result<Option<u32>> {
        Ok(self.ref_now(name)?.and_then(|now| now.owner))
    }

    /// Fails where [`crate::publish::Publisher::name`] would, before work for it begins. An image that may have the
    /// name already is `to`; one that cannot is none.
    pub(crate) fn check_name(&self, name: &ImageName, to: Option<&Digest>, by: By) -> Result<()> {
        if self.user.is_some() {
            decide(self.user, name, self.ref_now(name)?.as_ref(), to, by)?;
        }
        Ok(())
    }

    /// The same, where it is not known yet whether the image has the name.
    pub(crate) fn check_new_name(&self, name: &ImageName, by: By) -> Result<()> {
        if self.user.is_some() && self.ref_now(name)?.is_none() {
            decide(self.user, name, None, None, by)?;
        }
        Ok(())
    }

    /// Does something with whose the name is then; nobody moves a name meanwhile.
    pub(crate) fn with_name<T>(
        &self,
        name: &ImageName,
        to: &Digest,
        by: By,
        set: impl FnOnce(Option<u32>) -> Result<T>,
    ) -> Result<T> {
        // An open file of its own: threads that share one share its lock.
        let refs = disk::open_dir(&self.dir, "refs");
        let refs = refs.map_err(|e| self.io("open directory", "refs", e))?;
        disk::lock(&refs, FlockOperation::LockExclusive).map_err(|e| self.io("lock", "refs", e))?;
        // The owner of the store moves also what cannot be read.
        let now = if self.user.is_some() { self.ref_now(name)? } else { None };
        set(decide(self.user, name, now.as_ref(), Some(to), by)?)
    }

    fn ref_now(&self, name: &ImageName) -> Result<Option<RefRecord>> {
        match self.read_ref(name) {
            Ok(now) => Ok(Some(now)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ImageName {
        text.parse().unwrap()
    }

    #[test]
    fn users_move_their_own_names_and_those_of_registries_by_their_tags() {
        const ONE: Option<u32> = Some(1001);
        const TWO: Option<u32> = Some(1002);
        let [old, new] = [&b"old"[..], b"new"].map(Digest::of);
        let (plain, far) = ("web:1", "host.example/web:1");
        for (user, text, owner, by, want) in [
            // Nobody's yet, his, another's, the store's owner's.
            (ONE, plain, None, By::Choice, Ok(ONE)),
            (ONE, plain, Some(ONE), By::Choice, Ok(ONE)),
            (ONE, plain, Some(TWO), By::Choice, Err(())),
            (ONE, plain, Some(None), By::Choice, Err(())),
            (ONE, far, None, By::Choice, Err(())),
            (ONE, far, Some(ONE), By::Choice, Err(())),
            (ONE, far, None, By::Tag, Ok(ONE)),
            (ONE, far, Some(TWO), By::Tag, Ok(ONE)),
            (ONE, far, Some(None), By::Tag, Ok(ONE)),
            (ONE, far, None, By::Digest, Ok(ONE)),
            (ONE, far, Some(None), By::Digest, Err(())),
            (None, plain, Some(ONE), By::Choice, Ok(None)),
            (None, far, Some(ONE), By::Choice, Ok(None)),
        ] {
            let record = |to| owner.map(|owner| RefRecord::new(name(text), to, owner));
            let decide = |now: Option<&RefRecord>, to| {
                decide(user, &name(text), now, to, by).map_err(|_| ())
            };
            let now = record(old);
            assert_eq!(decide(now.as_ref(), Some(&new)), want, "{user:?} {text} {owner:?} {by:?}");
            assert_eq!(decide(now.as_ref(), None), want, "{user:?} {text} {owner:?} {by:?}");
            // What points there already is left alone, and is no less another's.
            let there = record(new);
            if let (Some(there), Some(_)) = (&there, user) {
                assert_eq!(decide(Some(there), Some(&new)), Ok(there.owner));
            }
        }
    }

    #[test]
    fn a_name_is_a_registrys_only_as_the_pull_of_that_tag() {
        let digest = Digest::of(b"");
        let short = format!("sha256-{}", &digest.hex()[..16]);
        for (source, text, want) in [
            ("docker://host.example/web:1".to_owned(), "host.example/web:1", By::Tag),
            ("docker://host.example/web".into(), "host.example/web:latest", By::Tag),
            ("docker://web:1".into(), "docker.io/library/web:1", By::Tag),
            ("docker://host.example/web:1".into(), "host.example/web:2", By::Choice),
            ("docker://host.example/web:1".into(), "web:1", By::Choice),
            (format!("docker://host.example/web:1@{digest}"), "host.example/web:1", By::Choice),
            (
                format!("docker://host.example/web@{digest}"),
                &format!("host.example/web:{short}"),
                By::Digest,
            ),
            (
                format!("docker://host.example/web:{short}"),
                &format!("host.example/web:{short}"),
                By::Choice,
            ),
            ("rootfs:/srv/web.tar".into(), "host.example/web:1", By::Choice),
        ] {
            assert_eq!(By::of(&source.parse().unwrap(), &name(text)), want, "{source} {text}");
        }
    }
}
