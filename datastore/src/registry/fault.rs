//! What goes wrong between us and a registry.

use crate::error::{Error, escape};

/// Why a registry's answer, or the lack of one, ended an operation.
///
/// Text from the registry is escaped; there are no secrets in here, and no queries of addresses, which may hold
/// signatures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryFault {
    /// No connection, or it broke and trying again did not help.
    #[error("not reachable: {0}")]
    Unreachable(String),
    /// The server's certificate is not accepted, or there is no TLS with it.
    #[error("no secure connection: {0}; name its CA in the configuration if the registry is yours")]
    Tls(String),
    /// One phase took too long.
    #[error("no answer in time ({0})")]
    Timeout(&'static str),
    /// Bytes came, but too few.
    #[error("too slow: less than {bytes} bytes in {seconds} s")]
    Stalled {
        /// What had to come.
        bytes: u64,
        /// In which time.
        seconds: u64,
    },
    /// The whole operation took longer than it may.
    #[error("not done within {0} s")]
    Deadline(u64),
    /// The registry does not have it, or hides it from us.
    #[error("not found; check the name, and that the login may see it")]
    NotFound,
    /// The registry wants a login and there is none for it.
    #[error("login required; add credentials for this registry")]
    LoginRequired,
    /// The registry does not take the login.
    #[error("login refused (HTTP {0}); check user, password, and what they may do")]
    LoginRefused(u16),
    /// The login would go to somebody else.
    #[error(
        "the registry asks to log in at {realm}, where its credentials do not go; list that host in token_hosts if it is right"
    )]
    ForeignRealm {
        /// Where to.
        realm: String,
    },
    /// `WWW-Authenticate` breaks a rule.
    #[error("bad login challenge: {0}")]
    Challenge(&'static str),
    /// The token server's answer breaks a rule.
    #[error("bad token answer: {0}")]
    Token(&'static str),
    /// The configured credentials cannot be read.
    #[error("credentials cannot be had: {0}")]
    Credentials(String),
    /// A redirect that is not followed.
    #[error("redirect to {to} refused: it {why}")]
    Redirect {
        /// Where to, without the query.
        to: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// A redirect or realm leads into a network where the registry itself is not.
    #[error("refused to go to {host}: its address {address} is not public")]
    Address {
        /// As the registry named it.
        host: String,
        /// What it resolves to.
        address: std::net::IpAddr,
    },
    /// Another status than the request allows.
    #[error("HTTP status {status}{detail}")]
    Status {
        /// The status.
        status: u16,
        /// The registry's error code and message, escaped; empty if it gave none.
        detail: String,
    },
    /// An answer that breaks HTTP or the distribution protocol.
    #[error("bad answer: {0}")]
    Protocol(String),
    /// Content-Type and document differ: another client might take it for another thing.
    #[error("ambiguous: Content-Type is {header}, the document is {body}")]
    MediaType {
        /// In the header, escaped.
        header: String,
        /// In the document or its descriptor.
        body: String,
    },
    /// A blob's bytes differ from those that came before of the same blob.
    #[error("bytes are not those that came before")]
    Changed,
    /// The manifest says that a layer is elsewhere; such addresses are never asked.
    #[error(
        "layer {0} lies elsewhere (urls), which is not supported; push the image with all its layers"
    )]
    ForeignLayer(crate::Digest),
    /// The configuration of this registry cannot be used.
    #[error("bad configuration: {0}")]
    Config(String),
    /// The image cannot be pushed as it is.
    #[error("cannot be pushed: {0}")]
    NotPushable(String),
}

impl RegistryFault {
    pub(crate) fn about(self, object: impl Into<String>) -> Error {
        Error::Registry { object: object.into(), why: self }
    }

    /// Whether the same request may succeed a little later.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Timeout(_) | Self::Stalled { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }

    pub(crate) fn protocol(text: impl AsRef<str>) -> Self {
        Self::Protocol(escape(text.as_ref().as_bytes()))
    }
}
