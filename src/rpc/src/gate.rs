//! Refuses calls of those who may not, before any parameter is parsed.

use std::sync::Arc;
use std::time::Instant;

use jsonrpsee::core::middleware::{Batch, Notification, RpcServiceT};
use jsonrpsee::server::MethodResponse;
use jsonrpsee::types::{ErrorObjectOwned, Request};
use ocivisor_core::error::{Error, ErrorKind};
use tokio::sync::Semaphore;
use tower::Layer;

use crate::error::ApiError;
use crate::methods;
use crate::peer::Peer;

/// Calls of one connection that may be under way; only a WebSocket can have more than one.
const MAX_IN_FLIGHT: usize = 64;

/// A service around the one that calls the methods.
#[derive(Debug, Clone)]
pub struct Gate<S> {
    inner: S,
    /// One permit per call that may be under way: waiting calls hold memory, and a WebSocket may
    /// send any number of them.
    calls: Arc<Semaphore>,
}

/// Puts a [`Gate`] around a service; once per HTTP request or WebSocket.
#[derive(Debug, Clone, Copy)]
pub struct GateLayer;

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, calls: Arc::new(Semaphore::new(MAX_IN_FLIGHT)) }
    }
}

/// Whether this peer may call this method.
///
/// A method that is not in the table needs no role: there is none of that name, which the inner
/// service says. (A test makes sure that the table has all.)
fn check(peer: Option<&Peer>, name: &str) -> Result<(), ApiError> {
    let Some(method) = methods::find(name) else {
        return Ok(());
    };
    let role = peer.and_then(|peer| peer.role);
    if role >= Some(method.role) {
        return Ok(());
    }
    let who = peer.map_or_else(|| "nobody".to_owned(), |peer| format!("uid {}", peer.uid));
    Err(Error::new(
        ErrorKind::Permission,
        format!(
            "{who} may not call {name}: it needs the role {}, the caller has {}",
            method.role.name(),
            role.map_or("none", |role| role.name()),
        ),
    )
    .hint("roles are given to users and groups in the daemon's configuration")
    .into())
}

impl<S> RpcServiceT for Gate<S>
where
    S: RpcServiceT<
            MethodResponse = MethodResponse,
            BatchResponse = MethodResponse,
            NotificationResponse = MethodResponse,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    type MethodResponse = MethodResponse;
    type NotificationResponse = MethodResponse;
    type BatchResponse = MethodResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let inner = self.inner.clone();
        let permit = Arc::clone(&self.calls).try_acquire_owned();
        async move {
            let peer = request.extensions().get::<Peer>().cloned();
            let name = request.method_name().to_owned();
            let uid = peer.as_ref().map(|peer| peer.uid);
            if let Err(error) = check(peer.as_ref(), &name) {
                tracing::warn!(method = name, uid, "refused: {error}");
                return MethodResponse::error(request.id, ErrorObjectOwned::from(error));
            }
            let Ok(_permit) = permit else {
                let error = ApiError::new(
                    ErrorKind::Exhausted,
                    format!("{MAX_IN_FLIGHT} calls of this connection are under way"),
                );
                return MethodResponse::error(request.id, ErrorObjectOwned::from(error));
            };
            let began = Instant::now();
            let response = inner.call(request).await;
            tracing::debug!(
                method = name,
                uid,
                code = response.as_error_code(),
                micros = began.elapsed().as_micros(),
                "answered"
            );
            response
        }
    }

    /// Never reached, as the server refuses batches; the inner service would not ask this gate for
    /// each request of one.
    fn batch<'a>(&self, _batch: Batch<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let error = ApiError::new(ErrorKind::Unsupported, "batches are not supported");
        let response =
            MethodResponse::error(jsonrpsee::types::Id::Null, ErrorObjectOwned::from(error));
        std::future::ready(response)
    }

    /// A notification calls nothing: the inner service drops it.
    fn notification<'a>(
        &self,
        notification: Notification<'a>,
    ) -> impl Future<Output = MethodResponse> + Send + 'a {
        self.inner.notification(notification)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Role;

    #[test]
    fn each_method_needs_its_role() {
        let peer = |role| Peer { uid: 7, gids: vec![7], pid: None, role };
        let allowed = |role, name| check(Some(&peer(role)), name).is_ok();
        for (name, none, read, operate) in [
            ("vm.list", false, true, true),
            ("vm.start", false, false, true),
            ("vm.get", false, false, true),
            ("image.remove", false, false, false),
        ] {
            assert_eq!(allowed(None, name), none, "{name}");
            assert_eq!(allowed(Some(Role::Read), name), read, "{name}");
            assert_eq!(allowed(Some(Role::Operate), name), operate, "{name}");
            assert!(allowed(Some(Role::Admin), name), "{name}");
            assert!(check(None, name).is_err(), "{name}");
        }
    }
}
