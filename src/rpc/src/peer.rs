//! Who is at the other end, and what they may do.
//!
//! The kernel keeps uid, gid, pid (`SO_PEERCRED`) and supplementary groups (`SO_PEERGROUPS`, Linux
//! 4.13, unix(7)) of the process that called connect(2). They are taken once per connection.
//! `/proc/PID/status` is not read: by then the pid may be another process, which is the mistake
//! behind CVE-2013-4288 (polkit).

mod groups;

use std::io;

use tokio::net::UnixStream;

/// What a peer may do; each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Look.
    Read,
    /// Change VMs and make disks, look into guests.
    Operate,
    /// Everything.
    Admin,
}

impl Role {
    /// The role's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

/// Who has which role; users and groups that are not named have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolePolicy {
    /// Users that may do everything.
    pub admin_uids: Vec<u32>,
    /// Groups that may operate.
    pub operate_gids: Vec<u32>,
    /// Groups that may look.
    pub read_gids: Vec<u32>,
}

impl Default for RolePolicy {
    /// Root alone.
    fn default() -> Self {
        Self { admin_uids: vec![0], operate_gids: Vec::new(), read_gids: Vec::new() }
    }
}

impl RolePolicy {
    /// The highest role of a user in these groups.
    #[must_use]
    pub fn role_of(&self, uid: u32, gids: &[u32]) -> Option<Role> {
        let any = |allowed: &[u32]| gids.iter().any(|gid| allowed.contains(gid));
        if self.admin_uids.contains(&uid) {
            Some(Role::Admin)
        } else if any(&self.operate_gids) {
            Some(Role::Operate)
        } else if any(&self.read_gids) {
            Some(Role::Read)
        } else {
            None
        }
    }
}

/// The peer of a connection; in the extensions of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Effective user at connect(2).
    pub uid: u32,
    /// Primary and supplementary groups at connect(2).
    pub gids: Vec<u32>,
    /// Process at connect(2), for logs alone: it may be gone and its number reused.
    pub pid: Option<i32>,
    /// What it may do.
    pub role: Option<Role>,
}

impl Peer {
    /// The peer of this connection.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn of(stream: &UnixStream, policy: &RolePolicy) -> io::Result<Self> {
        let cred = stream.peer_cred()?;
        let mut gids = vec![cred.gid()];
        gids.extend(groups::of(stream)?);
        Ok(Self { uid: cred.uid(), role: policy.role_of(cred.uid(), &gids), gids, pid: cred.pid() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_role_counts_and_strangers_have_none() {
        let policy =
            RolePolicy { admin_uids: vec![0, 1000], operate_gids: vec![50], read_gids: vec![60] };
        for (uid, gids, want) in [
            (0, vec![0], Some(Role::Admin)),
            (1000, vec![60], Some(Role::Admin)),
            (7, vec![7, 60, 50], Some(Role::Operate)),
            (7, vec![60], Some(Role::Read)),
            (7, vec![7], None),
            (65_534, vec![0], None),
        ] {
            assert_eq!(policy.role_of(uid, &gids), want, "{uid} {gids:?}");
        }
        assert_eq!(RolePolicy::default().role_of(1, &[0]), None);
    }

    #[tokio::test]
    async fn a_socket_pair_is_of_this_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours, &RolePolicy::default()).unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        let mut want: Vec<u32> = line.split_whitespace().map(|gid| gid.parse().unwrap()).collect();
        let mut got = peer.gids[1..].to_vec();
        want.sort_unstable();
        got.sort_unstable();
        assert_eq!(got, want);
    }
}
