//! The steps into confinement, in the order in which each is still possible and the next not yet harmful.
//!
//! ```text
//! keeper                                            server, its copy
//!   root; may change and kill users, nothing else     a user that owns nothing, no capability
//!   connects to one socket, parses one-line answers   parses what network and guest send
//!   its list of system calls                          a shorter one; no file (Landlock), no new privileges
//! ```

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope,
};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid};
use rustix::process::{DumpableBehavior, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::filter;

/// Address space of the server: some thirty MB at the worst, and the program with its libraries.
const ADDRESS_SPACE: u64 = 256 << 20;
/// Descriptors of the server.
const DESCRIPTORS: u64 = 64;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {source}")]
pub struct Failed {
    what: &'static str,
    source: io::Error,
}

trait Step<T> {
    fn step(self, what: &'static str) -> Result<T, Failed>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, what: &'static str) -> Result<T, Failed> {
        self.map_err(|e| Failed { what, source: e.into() })
    }
}

/// What the keeper gives up before it makes a server. Its filter follows when it is set up.
///
/// # Errors
/// A step that failed; the process has to end then.
pub fn keeper() -> Result<(), Failed> {
    // To make a server of another user, and to end it.
    let kept = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL;
    for capability in CapabilitySet::all().difference(kept).iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(e) => return Err(e).step("drop capabilities for good"),
        }
    }
    keep_capabilities(kept).step("drop capabilities")?;
    rustix::thread::set_no_new_privs(true).step("forbid new privileges")?;
    undumpable().step("forbid core dumps")?;
    limit(Resource::RLIMIT_CORE, 0).step("set limits")
}

/// The keeper's system calls.
///
/// # Errors
/// A step that failed.
pub fn filter_keeper() -> Result<(), Failed> {
    let program = filter::keeper().map_err(io::Error::other).step("make the keeper's filter")?;
    seccompiler::apply_filter(&program).map_err(io::Error::other).step("apply the keeper's filter")
}

/// All the way in, for the server.
///
/// # Errors
/// A step that failed; the process has to end then.
pub fn server(uid: u32, gid: u32) -> Result<(), Failed> {
    nix::unistd::setgroups(&[]).step("drop groups")?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::unistd::setresgid(gid, gid, gid).step("become the server's group")?;
    nix::unistd::setresuid(uid, uid, uid).step("become the server's user")?;
    keep_capabilities(CapabilitySet::empty()).step("drop capabilities")?;
    // After the change of user, which takes both back.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .step("ask to die with the keeper")?;
    undumpable().step("forbid core dumps")?;
    for (resource, most) in [
        (Resource::RLIMIT_AS, ADDRESS_SPACE),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        limit(resource, most).step("set limits")?;
    }
    landlock().map_err(io::Error::other).step("apply Landlock")?;
    let program = filter::server().map_err(io::Error::other).step("make the filter")?;
    seccompiler::apply_filter(&program).map_err(io::Error::other).step("apply the filter")
}

fn limit(resource: Resource, most: u64) -> nix::Result<()> {
    setrlimit(resource, most, most)
}

fn undumpable() -> rustix::io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

fn keep_capabilities(kept: CapabilitySet) -> rustix::io::Result<()> {
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)
}

/// As much of Landlock as the kernel has: no file at all, no port, no socket and no process of others.
fn landlock() -> Result<(), landlock::RulesetError> {
    const NEWEST: ABI = ABI::V7;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .restrict_self()
        .map(drop)
}

#[cfg(test)]
mod tests;
