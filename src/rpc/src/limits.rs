//! How many connections there may be: in all, and of one user.
//!
//! Without the second bound one user of the socket's group could shut out all others.

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
    by_uid: HashMap<u32, usize>,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Slot {
    limits: Arc<Limits>,
    uid: u32,
}

impl Limits {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// A place for this peer, if there is one: admins may have all, others half.
    pub fn take(self: &Arc<Self>, peer: &Peer) -> Option<Slot> {
        let share = match peer.role {
            Some(Role::Admin) => self.most,
            Some(Role::Operate | Role::Read) => self.most.div_ceil(2),
            None => STRANGERS.min(self.most),
        };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_uid = taken.by_uid.get(&peer.uid).copied().unwrap_or(0);
        if taken.all >= self.most || of_uid >= share {
            return None;
        }
        taken.all += 1;
        taken.by_uid.insert(peer.uid, of_uid + 1);
        Some(Slot { limits: Arc::clone(self), uid: peer.uid })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.limits.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
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
}
