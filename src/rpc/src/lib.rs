//! JSON-RPC over the Unix socket: trait, server glue, client.
//!
//! ```text
//!   client ──HTTP/1.1 or WebSocket──► one Unix socket
//!              accept: peer's credentials, role, limits        server, peer, limits
//!              read:   bounded size, bounded time               server, stall
//!              gate:   the method's least role                  gate, methods
//!              call:   ApiServer of the daemon                  api
//!              answer: result, or code and data                 error
//! ```
//!
//! What can go wrong, and who guards: a peer without a role (gate), one that opens many
//! connections (limits), sends without end (server), sends or reads slowly (server, stall), a
//! socket left over by a crash (bind). No TCP, no TLS, no tokens: who may connect is decided by the
//! mode of the socket, who may do what by the peer's uid and groups, which the kernel vouches for.
//!
//! Absent on purpose: subscriptions (a slow reader loses them; `events.since` cannot lose events),
//! batches (each request has a role of its own).

pub mod api;
mod bind;
pub mod client;
pub mod error;
mod gate;
mod limits;
pub mod methods;
pub mod peer;
pub mod server;
mod stall;

pub use api::{API_VERSION, ApiServer, MAX_EVENTS, MAX_WAIT_MS};
pub use bind::BindError;
pub use client::{Client, ClientError};
pub use error::ApiError;
pub use jsonrpsee::Extensions;
pub use jsonrpsee::core::async_trait;
pub use peer::{Peer, Role, RolePolicy};
pub use server::{Server, ServerConfig};
