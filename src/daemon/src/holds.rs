//! Whether somebody looked at a VM from outside while a guest was being looked at from inside.
//!
//! Who holds a VM may let it stand still for as long as it takes to read its disk. A program in the guest stands
//! still with it, and how long it took says nothing then: neither if it began before, nor if it ended after.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts how often a VM was held: odd while it is.
#[derive(Debug, Default)]
pub struct Holds(AtomicU64);

/// A moment in which a VM was not held. An equal one later: nor was it in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free(u64);

impl Holds {
    /// The VM is held from here on. One holder at a time; its slot sees to that.
    pub fn begin(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// It is free again.
    pub fn end(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Now, if it is free.
    pub fn free(&self) -> Option<Free> {
        let count = self.0.load(Ordering::SeqCst);
        count.is_multiple_of(2).then_some(Free(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_the_same_only_if_nobody_held_the_vm_since() {
        let holds = Holds::default();
        let before = holds.free();
        assert!(before.is_some());
        assert_eq!(holds.free(), before, "nobody came");
        holds.begin();
        assert_eq!(holds.free(), None, "held");
        holds.end();
        assert!(holds.free().is_some());
        assert_ne!(holds.free(), before, "held meanwhile, and free again");
    }
}
