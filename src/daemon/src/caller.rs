//! Who asks, as far as it matters behind the gate.

use ocivisor_rpc::{Extensions, Peer, Role};

/// A user and his role. Who may only look is kept off by the gate from whatever asks for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    /// May do everything.
    Admin(u32),
    /// Is held to directories, to names, and to operations of his own.
    Operator(u32),
}

impl Caller {
    /// Whoever sent a request.
    pub fn of(extensions: &Extensions) -> Self {
        match extensions.get::<Peer>() {
            Some(peer) if peer.role == Some(Role::Admin) => Self::Admin(peer.uid),
            Some(peer) => Self::Operator(peer.uid),
            // The server puts one into every request; else nobody, whom no user is (setuid(2) takes no -1).
            None => Self::Operator(u32::MAX),
        }
    }

    /// The user's number.
    pub fn uid(self) -> u32 {
        match self {
            Self::Admin(uid) | Self::Operator(uid) => uid,
        }
    }

    /// Whether he may do everything.
    pub fn is_admin(self) -> bool {
        matches!(self, Self::Admin(_))
    }

    /// Whether what belongs to the user `owner` is open to him.
    pub fn may_touch_what_is_of(self, owner: u32) -> bool {
        self.is_admin() || self.uid() == owner
    }
}
