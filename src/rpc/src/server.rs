//! The server: HTTP/1.1 and WebSocket on one Unix socket, a task per connection.
//!
//! A peer can waste its own time alone: heads and bodies must arrive in time and are bounded
//! (readers and strangers need only small ones), answers must be read in time, places are counted
//! in all and per user, some are for admins alone, and a peer beyond them is told so and closed.
//! Waiting methods hold nothing but their connection.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jsonrpsee::server::middleware::rpc::RpcServiceBuilder;
use jsonrpsee::server::{
    BatchRequestConfig, HttpBody, Methods, PingConfig, ServerBuilder, StopHandle,
    TowerServiceBuilder, stop_channel,
};
use jsonrpsee::types::ErrorObjectOwned;
use ocivisor_core::error::{Error, ErrorKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::Service;
use tower::layer::util::{Identity, Stack};

use crate::api::ApiServer;
use crate::bind::{self, BindError, SocketFile};
use crate::error::ApiError;
use crate::gate::GateLayer;
use crate::limits::{Limits, Slot};
use crate::peer::{Peer, Role, RolePolicy};
use crate::stall::Stall;

/// Most bytes of a request of those who may operate.
pub const MAX_REQUEST: u32 = 8 << 20;
/// Most bytes of a request of all others.
const MAX_SMALL_REQUEST: u32 = 64 << 10;
/// Most bytes of an answer.
pub const MAX_REPLY: u32 = 32 << 20;

/// Most connections that are told that there is no place; more are just closed.
const MAX_TURNED_AWAY: usize = 64;

/// Settings of a server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Its group; else that of the process.
    pub group: Option<u32>,
    /// Who may do what.
    pub policy: RolePolicy,
    /// Most connections.
    pub max_connections: usize,
    /// How long a client may take to send the head of a request.
    pub head_timeout: Duration,
    /// How long a client may take to send the body of a request.
    pub body_timeout: Duration,
    /// How long a client may keep an answer waiting.
    pub write_timeout: Duration,
    /// How long calls under way may take when the server stops.
    pub grace: Duration,
}

impl ServerConfig {
    /// The defaults at this path: root alone may call.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            group: None,
            policy: RolePolicy::default(),
            max_connections: 1024,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(20),
            write_timeout: Duration::from_secs(20),
            grace: Duration::from_secs(2),
        }
    }
}

/// A server that listens and does not answer yet.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    listener: UnixListener,
    /// Absent if the socket is somebody else's.
    file: Option<SocketFile>,
}

type Builder = TowerServiceBuilder<Stack<GateLayer, Identity>, Identity>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;
type HttpResponse = Response<HttpBody>;

/// What the tasks of all connections share.
struct Shared {
    config: ServerConfig,
    methods: Methods,
    limits: Arc<Limits>,
    turned_away: Semaphore,
    stop: StopHandle,
    large: Builder,
    small: Builder,
}

impl Server {
    /// Makes the socket: mode 0660, in the place of one on which nobody answers. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// Another daemon answers there, or a call failed.
    pub fn bind(config: ServerConfig) -> Result<Self, BindError> {
        let (listener, file) = bind::bind(&config.socket, config.group)?;
        Self::new(config, listener, Some(file))
    }

    /// Takes a socket that the service manager made, and leaves it there at the end. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// It does not listen at the path of the configuration, or a call failed.
    pub fn adopt(config: ServerConfig, socket: OwnedFd) -> Result<Self, BindError> {
        let listener = bind::adopt(&config.socket, config.group, socket)?;
        Self::new(config, listener, None)
    }

    fn new(
        config: ServerConfig,
        listener: std::os::unix::net::UnixListener,
        file: Option<SocketFile>,
    ) -> Result<Self, BindError> {
        let fail = |source| {
            let path = config.socket.clone();
            BindError::Io { what: "set up", path, source }
        };
        listener.set_nonblocking(true).map_err(fail)?;
        let listener = UnixListener::from_std(listener).map_err(fail)?;
        Ok(Self { config, listener, file })
    }

    /// Path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.config.socket
    }

    /// Answers until `stop` is ready; then calls under way have a moment, and the socket goes.
    pub async fn serve(self, api: impl ApiServer, stop: impl Future<Output = ()>) {
        let Self { config, listener, file } = self;
        let grace = config.grace;
        let (stop_handle, server_handle) = stop_channel();
        let shared = Arc::new(Shared {
            methods: api.into_rpc().into(),
            limits: Limits::new(config.max_connections),
            turned_away: Semaphore::new(MAX_TURNED_AWAY),
            stop: stop_handle,
            large: builder(&config, MAX_REQUEST),
            small: builder(&config, MAX_SMALL_REQUEST),
            config,
        });
        let mut tasks = JoinSet::new();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(_ended) = tasks.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tasks.spawn(connection(stream, Arc::clone(&shared)));
                    }
                    Err(error) => {
                        // EMFILE and the like pass by themselves; do not spin until then.
                        tracing::warn!("cannot accept a connection: {error}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
            }
        }
        // Clients that come now get "connection refused" at once, and know what it means; or they wait for the
        // next daemon, if the socket is not ours.
        drop(listener);
        drop(file);
        if server_handle.stop().is_err() {
            tracing::debug!("no connection was left to stop");
        }
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::info!("{} connections cut off", tasks.len());
        }
    }
}

fn builder(config: &ServerConfig, max_request: u32) -> Builder {
    let settings = jsonrpsee::server::ServerConfig::builder()
        .max_request_body_size(max_request)
        .max_response_body_size(MAX_REPLY)
        .max_connections(u32::try_from(config.max_connections).unwrap_or(u32::MAX))
        .set_batch_request_config(BatchRequestConfig::Disabled)
        .set_message_buffer_capacity(16)
        .enable_ws_ping(PingConfig::new())
        .build();
    ServerBuilder::with_config(settings)
        .set_rpc_middleware(RpcServiceBuilder::new().layer(GateLayer))
        .to_service_builder()
}

/// One connection, from accept to close.
async fn connection(stream: UnixStream, shared: Arc<Shared>) {
    let peer = match Peer::of(&stream, &shared.config.policy) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::warn!("cannot tell who connected: {error}");
            return;
        }
    };
    let Some(slot) = shared.limits.take(&peer) else {
        tracing::warn!(uid = peer.uid, "too many connections");
        // Those who are turned away hold a descriptor for a moment; they are bounded too.
        if let Ok(_permit) = shared.turned_away.try_acquire() {
            turn_away(stream).await;
        }
        return;
    };
    let slot = Arc::new(slot);
    let service = service_fn({
        let shared = Arc::clone(&shared);
        move |request| answer(request, Arc::clone(&shared), peer.clone(), Arc::clone(&slot))
    });
    let io = TokioIo::new(Stall::new(stream, shared.config.write_timeout));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.config.head_timeout)
        .max_headers(64)
        .serve_connection(io, service)
        .with_upgrades();
    tokio::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = shared.stop.clone().shutdown() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("connection ended: {error}");
    }
}

/// Tells a client that there is no place for it.
///
/// Its request is read and thrown away, before and after: an answer to a request that was not yet
/// sent is none, and closing a Unix socket with unread bytes in it loses what was written.
async fn turn_away(mut stream: UnixStream) {
    const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\
        Content-Type: text/plain\r\nContent-Length: 42\r\n\r\n\
        too many connections, try again in a while";
    let exchange = async {
        let mut scratch = vec![0; 16 << 10];
        let _first_bytes = stream.read(&mut scratch).await?;
        stream.write_all(BUSY).await?;
        stream.shutdown().await?;
        while stream.read(&mut scratch).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    let ended = tokio::time::timeout(Duration::from_secs(1), exchange).await;
    if !matches!(ended, Ok(Ok(()))) {
        tracing::debug!("a client that was turned away did not listen");
    }
}

/// One HTTP request: a call, or the beginning of a WebSocket.
async fn answer(
    mut request: Request<Incoming>,
    shared: Arc<Shared>,
    peer: Peer,
    slot: Arc<Slot>,
) -> Result<HttpResponse, Infallible> {
    let may_send_much = peer.role >= Some(Role::Operate);
    let (builder, limit) = if may_send_much {
        (&shared.large, MAX_REQUEST)
    } else {
        (&shared.small, MAX_SMALL_REQUEST)
    };
    let has_role = peer.role.is_some();
    request.extensions_mut().insert(peer);
    // A WebSocket outlives the HTTP connection; its extensions keep the place taken.
    request.extensions_mut().insert(slot);
    let mut service = builder.clone().build(shared.methods.clone(), shared.stop.clone());
    let answered = if jsonrpsee::server::ws::is_upgrade_request(&request) {
        if !has_role {
            return Ok(failure(
                StatusCode::FORBIDDEN,
                ErrorKind::Permission,
                "a caller without a role gets no WebSocket",
            ));
        }
        service.call(request).await
    } else {
        let (parts, body) = request.into_parts();
        let whole = tokio::time::timeout(shared.config.body_timeout, read(body, limit)).await;
        let bytes = match whole {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(ReadError::TooLarge)) => {
                return Ok(failure(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    ErrorKind::Invalid,
                    &format!("the request has more than {limit} bytes"),
                ));
            }
            Ok(Err(ReadError::Broken(error))) => {
                tracing::debug!("request broke off: {error}");
                return Ok(failure(
                    StatusCode::BAD_REQUEST,
                    ErrorKind::Invalid,
                    "the body of the request cannot be read",
                ));
            }
            Err(_elapsed) => {
                return Ok(failure(
                    StatusCode::REQUEST_TIMEOUT,
                    ErrorKind::Timeout,
                    "the body of the request did not arrive in time",
                ));
            }
        };
        service.call(Request::from_parts(parts, Full::new(bytes))).await
    };
    Ok(answered.unwrap_or_else(|error: BoxError| {
        tracing::warn!("request failed: {error}");
        failure(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Host, "the request failed")
    }))
}

enum ReadError {
    TooLarge,
    Broken(hyper::Error),
}

/// The whole body.
///
/// One that is too large is read on, to some bound, and thrown away: a client that cannot write its
/// request does not read the answer that says why.
async fn read(mut body: Incoming, limit: u32) -> Result<Bytes, ReadError> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let drain = limit.saturating_mul(4);
    let mut kept = Vec::new();
    let mut seen = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(ReadError::Broken)?;
        let Some(data) = frame.data_ref() else {
            continue;
        };
        seen = seen.saturating_add(data.len());
        if seen <= limit {
            kept.extend_from_slice(data);
        } else if seen > drain {
            break;
        } else {
            kept = Vec::new();
        }
    }
    if seen > limit { Err(ReadError::TooLarge) } else { Ok(kept.into()) }
}

/// An error before any method was called, in the form of an answer to one.
fn failure(status: StatusCode, kind: ErrorKind, message: &str) -> HttpResponse {
    let error = ErrorObjectOwned::from(ApiError::from(Error::new(kind, message)));
    let body = serde_json::json!({"jsonrpc": "2.0", "id": null, "error": error});
    let mut response = Response::new(HttpBody::from(body.to_string()));
    *response.status_mut() = status;
    let json = hyper::header::HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("config", &self.config).finish_non_exhaustive()
    }
}
