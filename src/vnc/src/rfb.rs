//! The Remote Framebuffer protocol, versions 3.3, 3.7 and 3.8, the server's side: RFC 6143 and its extensions.

pub mod auth;
pub mod client;
pub mod encode;
pub mod handshake;
pub mod message;
pub mod pixel;
mod session;
pub mod view;
