//! The console as a picture.

use ocivisor_core::error::Error;
use ocivisor_core::spec::{Graphics, Secret};
use serde::{Deserialize, Serialize};

use super::fields::Fields;

/// See [`Graphics`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphicsV1 {
    /// Address of the host that the VNC server listens on; else 127.0.0.1.
    #[serde(default = "loopback")]
    pub listen: String,
    /// TCP port.
    pub port: u16,
    /// Password; else none is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

fn loopback() -> String {
    "127.0.0.1".into()
}

impl GraphicsV1 {
    /// Without its password.
    pub(super) fn hide(&mut self) {
        if let Some(password) = &mut self.password {
            "(hidden)".clone_into(password);
        }
    }
}

impl Fields<'_> {
    pub(super) fn graphics(&self, graphics: GraphicsV1) -> Result<Graphics, Error> {
        Ok(Graphics {
            listen: self.address("graphics.listen", &graphics.listen)?,
            port: graphics.port,
            password: graphics.password.map(Secret),
        })
    }
}

impl From<&Graphics> for GraphicsV1 {
    fn from(graphics: &Graphics) -> Self {
        Self {
            listen: graphics.listen.to_string(),
            port: graphics.port,
            password: graphics.password.as_ref().map(|secret| secret.0.clone()),
        }
    }
}
