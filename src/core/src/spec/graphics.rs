//! The console as a picture.

use std::net::IpAddr;

use super::Secret;

/// A VNC server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Graphics {
    /// Address of the host that it listens on.
    pub listen: IpAddr,
    /// TCP port, not among the first 1024: those belong to the host's own services, and the wish is a tenant's.
    pub port: u16,
    /// At most 8 characters count (RFC 6143, 7.2.2); without one everybody is let in who reaches the port.
    pub password: Option<Secret>,
}

impl Graphics {
    pub(super) fn check(&self) -> Result<(), String> {
        if self.port < 1024 {
            return Err(format!("the port of graphics is {}, must be 1024 to 65535", self.port));
        }
        match &self.password {
            Some(Secret(text))
                if text.is_empty()
                    || text.len() > 64
                    || !text.bytes().all(|b| matches!(b, b' '..=b'~')) =>
            {
                Err("the password of graphics must be 1 to 64 printable ASCII characters".into())
            }
            _ => Ok(()),
        }
    }
}
