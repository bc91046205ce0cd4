//! How many connections there may be: in all, of all who are no admins, and of one user.
//!
//! Without the last bound one user of the socket's group could shut out all others; without the
//! second a few of them together could shut out root, who has to put an end to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::peer::{Peer, Role};

/// Connections that a user without a role may have: enough to be told so.
const STRANGERS: usize = 8;

/// Counts connections.
#[derive(Debug)]
pub struct Limits {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_others: usize,
    by_uid: HashMap<u32, usize>,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    limits: Arc<Limits>,
    uid: u32,
    admin: bool,
}

impl Limits {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// How many are for admins alone: one in eight, if there is more than one.
    fn reserved(&self) -> usize {
        self.most.div_ceil(8).min(self.most.saturating_sub(1))
    }

    /// A place for this peer, if there is one: an admin may have all, another user half, all other
    /// users together what is not reserved.
    pub fn take(self: &Arc<Self>, peer: &Peer) -> Option<Slot> {
        let admin = peer.role == Some(Role::Admin);
        let share = match peer.role {
            Some(Role::Admin) => self.most,
            Some(Role::Operate | Role::Read) => self.most.div_ceil(2),
            None => STRANGERS.min(self.most),
        };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_uid = taken.by_uid.get(&peer.uid).copied().unwrap_or(0);
        let room_for_others = self.most - self.reserved();
        if taken.all >= self.most
            || of_uid >= share
            || (!admin && taken.by_others >= room_for_others)
        {
            return None;
        }
        taken.all += 1;
        taken.by_others += usize::from(!admin);
        taken.by_uid.insert(peer.uid, of_uid + 1);
        Some(Slot { limits: Arc::clone(self), uid: peer.uid, admin })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.limits.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        taken.by_others = taken.by_others.saturating_sub(usize::from(!self.admin));
        if let Some(count) = taken.by_uid.get_mut(&self.uid) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.by_uid.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, role: Option<Role>) -> Peer {
        Peer { uid, gids: vec![uid], pid: None, role }
    }

    #[test]
    fn one_user_cannot_take_all_places() {
        let limits = Limits::new(4);
        let operator = peer(7, Some(Role::Operate));
        let held: Vec<Slot> = (0..2).map(|_| limits.take(&operator).unwrap()).collect();
        assert!(limits.take(&operator).is_none());
        let admin: Vec<Slot> =
            (0..2).map(|_| limits.take(&peer(0, Some(Role::Admin))).unwrap()).collect();
        assert!(limits.take(&peer(0, Some(Role::Admin))).is_none());
        drop(admin);
        drop(held);
        assert!(limits.take(&operator).is_some());
        assert!(limits.taken.lock().unwrap().by_uid.is_empty());
    }

    #[test]
    fn all_others_together_leave_room_for_admins() {
        for (most, for_others) in [(1, 1), (2, 1), (8, 7), (9, 7), (1024, 896)] {
            let limits = Limits::new(most);
            let others: Vec<Slot> = (1..)
                .map_while(|uid| limits.take(&peer(uid, Some(Role::Operate))))
                .take(most + 1)
                .collect();
            assert_eq!(others.len(), for_others, "of {most}");
            let root = peer(0, Some(Role::Admin));
            let admin: Vec<Slot> = std::iter::from_fn(|| limits.take(&root)).collect();
            assert_eq!(admin.len(), most - for_others, "of {most}");
            drop(others);
            drop(admin);
            assert_eq!(limits.taken.lock().unwrap().by_others, 0);
        }
    }
}
