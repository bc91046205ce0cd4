//! The client: one HTTP request per call, each on a connection of its own.
//!
//! A connection costs 15 µs on a Unix socket; for that there is no state to go stale while the
//! daemon is replaced, and calls of one client do not wait for each other.
//!
//! Nothing is sent twice by itself: whoever repeats a changing call sends the same request id.
//! [`Client::wait_op`] only looks, so it goes on across a restart of the daemon.

#![expect(clippy::too_many_arguments, reason = "vm.exec has as many parameters on the wire")]

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use jsonrpsee::core::client::{BatchResponse, ClientT, Error as RpcError};
use jsonrpsee::core::params::BatchRequestBuilder;
use jsonrpsee::core::traits::ToRpcParams;
use jsonrpsee::types::{ErrorObjectOwned, Id, Request as Call};
use ocivisor_core::error::{Error, ErrorKind, one_line};
use ocivisor_core::ids::{OpId, RequestId, VmId};
use ocivisor_schema::image::{
    CommitOptionsV1, DfReply, HistoryV1, ImageInspect, ImportOptionsV1, LackingV1, SourceStatV1,
};
use ocivisor_schema::reply::{
    ConsoleReply, DamagedVm, DiskBackendV1, DiskInfo, EventsReply, ExecReply, HostInfo, ImageInfo,
    ImageOperationReply, LogReply, OpStatusReply, OperationReply, RemovedReply, StatesReply,
    VersionReply, VmInfo, VmSummary,
};
use ocivisor_schema::stats::StatsReply;
use ocivisor_schema::{ChangeV1, Text, VmSpecV1, WhyReply};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::{ApiClient, MAX_WAIT_MS};
use crate::error::ApiError;
use crate::methods::{self, Patience};
use crate::server::MAX_REPLY;

/// How long [`Client::wait_op`] looks for a daemon that went away.
const RESTART_PATIENCE: Duration = Duration::from_secs(30);

/// How long a call tries to get into the queue of a daemon that is busy.
const QUEUE_PATIENCE: Duration = Duration::from_secs(10);

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "ocivisord does not answer on {}: {source}; is it running? (systemctl status ocivisord)",
        path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why not. Part of the text, as that is one line for people.
        source: io::Error,
    },
    /// The socket's mode does not let this user in.
    #[error(
        "no permission to connect to ocivisord on {}: root and members of the socket's group may",
        path.display()
    )]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon said no.
    #[error("{0}")]
    Api(ApiError),
    /// The connection broke before the answer; the call may have had its effect.
    #[error("connection to ocivisord on {} broke during {method}: {why}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The method.
        method: String,
        /// How.
        why: String,
    },
    /// No answer in time; the call may have had its effect.
    #[error("ocivisord on {} did not answer {method} within {} s", path.display(), after.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// The method.
        method: String,
        /// After how long.
        after: Duration,
    },
    /// The answer is not one of ours.
    #[error("answer to {method} on {} makes no sense: {why}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// The method.
        method: String,
        /// What is wrong.
        why: String,
    },
}

impl ClientError {
    /// Whether there was no daemon to talk to, so that surely nothing happened.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Denied { .. })
    }

    /// The answer of a method that not every daemon has; `None` from one that does not know it: the package is unpacked, and
    /// the daemon of before it not restarted yet.
    ///
    /// # Errors
    /// Any other.
    pub fn if_known<T>(answer: Result<T, Self>) -> Result<Option<T>, Self> {
        match answer {
            Err(Self::Api(no)) if no.error.kind == ErrorKind::Unsupported => Ok(None),
            other => other.map(Some),
        }
    }

    /// What the daemon said, if it did.
    #[must_use]
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(error) => Some(error),
            Self::Unreachable { .. }
            | Self::Denied { .. }
            | Self::Broken { .. }
            | Self::Timeout { .. }
            | Self::Protocol { .. } => None,
        }
    }

    /// The kind that fits.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Api(error) => error.error.kind,
            Self::Denied { .. } => ErrorKind::Permission,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Unreachable { .. } | Self::Broken { .. } | Self::Protocol { .. } => {
                ErrorKind::Host
            }
        }
    }
}

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Api(error) => error.error,
            other => Self::new(other.kind(), &other),
        }
    }
}

impl From<RpcError> for ClientError {
    /// Of errors that [`Client`] made.
    fn from(error: RpcError) -> Self {
        let protocol = |error: &dyn fmt::Display| Self::Protocol {
            path: PathBuf::new(),
            method: String::new(),
            why: one_line(&error.to_string()),
        };
        match error {
            RpcError::Call(object) => Self::Api(ApiError::from(&object)),
            RpcError::Transport(inner) => match inner.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(other) => protocol(&other),
            },
            other => protocol(&other),
        }
    }
}

/// A client of the daemon.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of the daemon that listens at `path`, if one does: calls will tell.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// A client of the daemon that listens at `path`; finds out whether somebody does.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Denied`].
    pub async fn connect(path: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let client = Self::new(path);
        client.open().await?;
        Ok(client)
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn open(&self) -> Result<UnixStream, ClientError> {
        let began = Instant::now();
        let source = loop {
            match UnixStream::connect(&self.path).await {
                Ok(stream) => return Ok(stream),
                // The queue of the listener is full (connect(2)), as when hundreds of callers
                // start at once: it is there, and busy.
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock
                        && began.elapsed() < QUEUE_PATIENCE =>
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => break error,
            }
        };
        let path = self.path.clone();
        Err(if source.kind() == io::ErrorKind::PermissionDenied {
            ClientError::Denied { path }
        } else {
            ClientError::Unreachable { path, source }
        })
    }

    /// Sends one request, returns status and body of the answer.
    async fn exchange(
        &self,
        method: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |why: &dyn fmt::Display| ClientError::Broken {
            path: self.path.clone(),
            method: method.to_owned(),
            why: one_line(&why.to_string()),
        };
        let stream = self.open().await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream))
                .await
                .map_err(|e| broken(&e))?;
        let request = Request::post("/")
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| broken(&e))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
            let status = response.status();
            let limit = usize::try_from(MAX_REPLY).unwrap_or(usize::MAX) + (64 << 10);
            let body = Limited::new(response.into_body(), limit).collect().await;
            let body = body.map_err(|e| broken(&e))?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(answer);
        tokio::pin!(connection);
        // The connection drives the exchange; it ends first when the daemon closes it.
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ended = &mut connection => answer.await,
        }
    }

    async fn call<R: DeserializeOwned>(
        &self,
        method: &str,
        params: impl ToRpcParams,
    ) -> Result<R, ClientError> {
        let protocol = |why: &dyn fmt::Display| ClientError::Protocol {
            path: self.path.clone(),
            method: method.to_owned(),
            why: one_line(&why.to_string()),
        };
        let params = params.to_rpc_params().map_err(|e| protocol(&e))?;
        let request = Call::borrowed(method, params.as_deref(), Id::Number(1));
        let body = serde_json::to_string(&request).map_err(|e| protocol(&e))?;
        let patience = methods::find(method).map_or(Patience::Quick, |method| method.patience);
        let after = patience.limit();
        let exchange = self.exchange(method, body);
        let (status, body) = tokio::time::timeout(after, exchange).await.map_err(|_| {
            ClientError::Timeout { path: self.path.clone(), method: method.to_owned(), after }
        })??;
        match serde_json::from_slice::<Answer>(&body) {
            Ok(Answer { error: Some(error), .. }) => Err(ClientError::Api(ApiError::from(&error))),
            Ok(Answer { result: Some(result), .. }) => {
                serde_json::from_str(result.get()).map_err(|e| protocol(&e))
            }
            Ok(Answer { error: None, result: None }) => Err(protocol(&"neither result nor error")),
            Err(_) if status == StatusCode::SERVICE_UNAVAILABLE => {
                let error = ApiError::new(ErrorKind::Exhausted, String::from_utf8_lossy(&body));
                Err(ClientError::Api(error))
            }
            Err(_) => {
                let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
                Err(protocol(&format!("HTTP {status}: {text}")))
            }
        }
    }

    /// Waits until an operation ended, at most `limit`; `watch` sees every status on the way.
    ///
    /// A daemon that is being restarted is waited for, half a minute at most.
    ///
    /// # Errors
    /// As of any call. [`ErrorKind::Timeout`] if `limit` passed; the operation goes on.
    pub async fn wait_op(
        &self,
        op: OpId,
        limit: Option<Duration>,
        mut watch: impl FnMut(&OpStatusReply),
    ) -> Result<OpStatusReply, ClientError> {
        let began = Instant::now();
        let mut answered = began;
        loop {
            let left = limit.map(|limit| limit.saturating_sub(began.elapsed()));
            let wait = left
                .map_or(MAX_WAIT_MS, |left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
            match self.op_wait(Text(op), wait.min(MAX_WAIT_MS)).await {
                Ok(status) => {
                    answered = Instant::now();
                    watch(&status);
                    if status.done {
                        return Ok(status);
                    }
                }
                Err(ClientError::Unreachable { .. } | ClientError::Broken { .. })
                    if answered.elapsed() < RESTART_PATIENCE =>
                {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => return Err(error),
            }
            if left.is_some_and(|left| left.is_zero()) {
                let error = Error::new(
                    ErrorKind::Timeout,
                    format!("{op} did not end within {:?}", began.elapsed()),
                )
                .hint("it goes on; wait again, or look at it");
                return Err(ClientError::Api(ApiError::from(error).op(op)));
            }
        }
    }
}

/// The two forms of an answer. Which id it carries does not matter on a connection with one call.
#[derive(serde::Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    result: Option<&'a serde_json::value::RawValue>,
    #[serde(default)]
    error: Option<ErrorObjectOwned>,
}

impl ClientT for Client {
    /// Not offered: a notification has no answer, so nobody would know that it was refused.
    async fn notification<Params>(&self, _method: &str, _params: Params) -> Result<(), RpcError>
    where
        Params: ToRpcParams + Send,
    {
        Err(RpcError::HttpNotImplemented)
    }

    async fn request<R, Params>(&self, method: &str, params: Params) -> Result<R, RpcError>
    where
        R: DeserializeOwned,
        Params: ToRpcParams + Send,
    {
        let result = self.call(method, params).await;
        result.map_err(|error| RpcError::Transport(Box::new(error)))
    }

    /// Not offered: the server refuses batches.
    async fn batch_request<'a, R>(
        &self,
        _batch: BatchRequestBuilder<'a>,
    ) -> Result<BatchResponse<'a, R>, RpcError>
    where
        R: DeserializeOwned + fmt::Debug + 'a,
    {
        Err(RpcError::HttpNotImplemented)
    }
}

/// The methods of the trait with our error.
macro_rules! methods {
    ($($name:ident($($arg:ident: $type:ty),*) -> $reply:ty;)*) => {
        impl Client {
            $(
                #[doc = concat!("See [`ApiClient::", stringify!($name), "`].")]
                ///
                /// # Errors
                /// The daemon refused, or could not be asked.
                pub async fn $name(&self, $($arg: $type),*) -> Result<$reply, ClientError> {
                    Ok(ApiClient::$name(self, $($arg),*).await?)
                }
            )*
        }
    };
}

methods! {
    vm_define(request_id: Text<RequestId>, spec: VmSpecV1) -> OperationReply;
    vm_start(request_id: Text<RequestId>, vm: Text<VmId>) -> OperationReply;
    vm_deploy(request_id: Text<RequestId>, spec: VmSpecV1) -> OperationReply;
    vm_shutdown(
        request_id: Text<RequestId>, vm: Text<VmId>, timeout_ms: Option<u64>, force: bool, forget: bool
    ) -> OperationReply;
    vm_destroy(request_id: Text<RequestId>, vm: Text<VmId>, forget: bool) -> OperationReply;
    vm_reboot(request_id: Text<RequestId>, vm: Text<VmId>, timeout_ms: Option<u64>) -> OperationReply;
    vm_reset(request_id: Text<RequestId>, vm: Text<VmId>) -> OperationReply;
    vm_change(
        request_id: Text<RequestId>, vm: Text<VmId>, change: ChangeV1
    ) -> OperationReply;
    vm_undefine(request_id: Text<RequestId>, vm: Text<VmId>) -> OperationReply;
    op_wait(op: Text<OpId>, timeout_ms: u64) -> OpStatusReply;
    op_get(op: Text<OpId>) -> OpStatusReply;
    op_cancel(op: Text<OpId>) -> OpStatusReply;
    vm_list() -> Vec<VmSummary>;
    vm_damaged() -> Vec<DamagedVm>;
    vm_states() -> StatesReply;
    vm_get(vm: Text<VmId>) -> VmInfo;
    vm_stats(vm: Option<Text<VmId>>) -> StatsReply;
    events_since(seq: u64, limit: u32, wait_ms: u64) -> EventsReply;
    vm_console(vm: Text<VmId>) -> ConsoleReply;
    vm_exec(
        vm: Text<VmId>, argv: Vec<String>, env: Vec<String>, user: Option<String>,
        workdir: Option<String>, tty: bool, timeout_ms: Option<u64>, detach: bool
    ) -> ExecReply;
    vm_copy(
        vm: Text<VmId>, direction: String, path: String, follow: bool, owners: bool, archive: bool
    ) -> ExecReply;
    vm_log(vm: Text<VmId>, max_bytes: u64) -> LogReply;
    vm_why(vm: Text<VmId>) -> WhyReply;
    image_import(
        request_id: Text<RequestId>, source: String, name: Option<String>,
        options: Option<ImportOptionsV1>
    ) -> ImageOperationReply;
    image_stat(source: String) -> SourceStatV1;
    image_lacking(source: String) -> LackingV1;
    image_push(
        request_id: Text<RequestId>, image: String, target: String
    ) -> ImageOperationReply;
    image_save(
        request_id: Text<RequestId>, images: Vec<String>, format: String, path: String
    ) -> ImageOperationReply;
    image_export(
        request_id: Text<RequestId>, image: Option<String>, vm: Option<Text<VmId>>, format: String,
        size_bytes: Option<u64>, path: String
    ) -> ImageOperationReply;
    image_commit(
        request_id: Text<RequestId>, vm: Text<VmId>, name: String,
        options: Option<CommitOptionsV1>
    ) -> ImageOperationReply;
    image_build(request_id: Text<RequestId>, dir: String, name: String) -> ImageOperationReply;
    image_fsck(request_id: Text<RequestId>, repair: bool) -> ImageOperationReply;
    image_prune(request_id: Text<RequestId>, dry_run: bool, quarantine_age_s: Option<u64>) -> ImageOperationReply;
    image_tag(image: String, name: String) -> ImageInfo;
    image_inspect(image: String) -> ImageInspect;
    image_history(image: String) -> Vec<HistoryV1>;
    image_df() -> DfReply;
    image_list() -> Vec<ImageInfo>;
    image_remove(name: String) -> RemovedReply;
    disk_create(
        image: String, size_bytes: u64, path: String, backend: DiskBackendV1
    ) -> DiskInfo;
    disk_adopt(path: String) -> DiskInfo;
    host_info() -> HostInfo;
    daemon_version() -> VersionReply;
}
