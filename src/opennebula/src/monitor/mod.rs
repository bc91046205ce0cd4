//! What the monitoring agent of a host reads and sends, as texts. Pure: clock, sockets and randomness are the caller's.
//!
//! ```text
//! stdin of the start ─► Configuration (config.rs)
//! what VMs are       ─► States: which states to tell, when (states.rs)  ─┐ lines in template syntax
//! what hosts are     ─► Template (template.rs)                          ─┤
//!                                                                        ▼
//!                     Firsts: one XML document (first.rs), then Message by Message (message.rs, key.rs)
//! ```
//!
//! The forms were observed with 6.10 and 7.4. Keys that OpenNebula does not know are ignored there.

mod config;
mod first;
mod key;
mod message;
mod states;
mod template;

pub use config::{Configuration, Periods};
pub use first::Firsts;
pub use key::PublicKey;
pub use message::{MAX_DATAGRAM, Message, MessageKind};
pub use states::{Seen, States, Told, VmWord};
pub use template::Template;
