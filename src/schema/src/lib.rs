//! Versioned serde types of disk and wire.
//!
//! ```text
//!   core type ──From──► …V1 ──serde──► JSON ──serde──► …V1 ──TryFrom──► core type
//! ```
//!
//! The domain types of `ocivisor-core` know no serde, so they may change; the types here may not,
//! but for new optional fields. Goldens under `tests/golden` pin each of them.
//!
//! Rules of the format: snake_case names; bytes are integers; identifiers, addresses and times
//! (RFC 3339, UTC, milliseconds) are strings; an absent value is `null`; unknown fields are ignored
//! when reading. Whatever is read is checked by core's own parsers before it becomes a core type.
//!
//! Absent on purpose: I/O (the host crate writes records), error codes of the wire (the RPC crate).

pub mod codec;
pub mod error;
pub mod event;
pub mod failure;
pub mod image;
pub mod record;
pub mod reply;
pub mod spec;
pub mod stats;
pub mod text;

pub use codec::{DecodeError, EncodeError, decode, encode};
pub use error::{ErrorV1, OutcomeV1};
pub use event::{EventDataV1, EventV1};
pub use failure::{KeptFailureV1, WhyReply};
pub use record::RecordV1;
pub use spec::{ChangeV1, VmSpecV1};
pub use text::{Text, TextForm, TimeV1};
