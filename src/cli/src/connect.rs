//! From a command to the daemon: one runtime, one client, operations that survive a restart.
//!
//! A request that changes something carries an id; the same id is one effect, also across a
//! restart of the daemon. So when a connection breaks before the answer came, the same request is
//! simply sent again, for a while ([`PATIENCE`]).
//!
//! Operations on VMs go on whatever becomes of us. Long work on images that somebody waits for ends with the waiting:
//! SIGINT and SIGTERM cancel it.

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::RequestId;
use ocivisor_rpc::{Client, ClientError};
use ocivisor_schema::reply::{ImageOperationReply, OpStatusReply, OperationReply, ProgressV1};
use ocivisor_schema::{OutcomeV1, Text};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::Global;
use crate::failure::{Exit, Failure};
use crate::output::{Output, complain};

/// How long a daemon may be away (an upgrade, a crash) before what became of a request is unknown.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries to reach it.
const PAUSE: Duration = Duration::from_millis(100);
/// How often long work is asked how far it is.
const LOOK: Duration = Duration::from_secs(1);

/// What every command needs.
#[derive(Debug, Clone)]
pub struct Context {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// How to print.
    pub output: Output,
    /// Identity of the request.
    pub request_id: RequestId,
    /// How long to wait for the result.
    pub timeout: Option<Duration>,
    /// Whether to wait for it.
    pub wait: Wait,
    /// What the request is for.
    pub wish: Wish,
    /// How long a daemon may be away while a request of ours is open.
    pub patience: Duration,
}

/// Whether to wait for an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until it ended.
    ForResult,
    /// Not at all.
    No,
}

/// How a request ended.
#[derive(Debug)]
pub enum Ended {
    /// Nothing was to be done.
    AlreadyTrue(OperationReply),
    /// Recorded; the caller does not wait.
    NotAwaited(OperationReply),
    /// Done.
    Done(Box<OpStatusReply>),
}

/// What is said of long work on images that ended with its daemon.
const AGAIN: &str = "ask again: it goes on from there";

/// Whether it is that which became of it.
#[must_use]
pub fn ended_with_daemon(failure: &Failure) -> bool {
    failure.hint.as_deref() == Some(AGAIN)
}

impl Context {
    /// The context of a command line.
    #[must_use]
    pub fn new(global: &Global) -> Self {
        Self {
            socket: global.socket.clone(),
            output: Output { format: global.output, quiet: global.quiet },
            request_id: global.request_id.clone().unwrap_or_else(fresh_request_id),
            timeout: global.timeout,
            wait: if global.no_wait { Wait::No } else { Wait::ForResult },
            wish: Wish::Presence,
            patience: PATIENCE,
        }
    }

    /// The same for a request that wants a VM gone.
    #[must_use]
    pub fn wishing_absence(&self) -> Self {
        Self { wish: Wish::Absence, ..self.clone() }
    }

    /// The same without a deadline, for requests that carry one to the daemon.
    #[must_use]
    pub fn patient(&self) -> Self {
        Self { timeout: None, ..self.clone() }
    }

    /// A client, once somebody listens.
    ///
    /// # Errors
    /// [`Exit::Unreachable`], saying why; [`Exit::Permission`] if we may not.
    pub async fn daemon(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.socket).await?)
    }

    /// A request that needs no operation, with its answer.
    ///
    /// # Errors
    /// The daemon cannot be reached, refuses, or [`Context::timeout`] passed.
    pub async fn ask<T>(
        &self,
        answer: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, Failure> {
        let Some(limit) = self.timeout else {
            return Ok(answer.await?);
        };
        let Ok(answer) = tokio::time::timeout(limit, answer).await else {
            let what = format!("no answer within {} ms", limit.as_millis());
            return Err(Failure::new(Exit::Timeout, what));
        };
        Ok(answer?)
    }

    /// A request that changes a VM: sends it, waits as told, prints what became of it.
    ///
    /// # Errors
    /// See [`Context::run_operation`].
    pub async fn operate(
        &self,
        done: &str,
        send: impl AsyncFn(&Client, Text<RequestId>) -> Result<OperationReply, ClientError>,
    ) -> Result<(), Failure> {
        let client = self.daemon().await?;
        match self.run_operation(&client, &send).await? {
            Ended::AlreadyTrue(reply) => self.output.emit(&reply, || {
                let state = reply.state.map_or("gone", |state| state.name());
                format!("{}: {state} already\n", reply.vm)
            }),
            Ended::NotAwaited(reply) => {
                let op = || reply.op.map(|op| op.to_string()).unwrap_or_default();
                let text = || format!("{}: {}\n", reply.vm, op());
                self.output.list(&reply, || vec![op()], text)
            }
            Ended::Done(status) => {
                let vm = status.vm.as_ref().map(ToString::to_string).unwrap_or_default();
                let text = || format!("{vm}: {done}\n");
                self.output.emit(&status, text)
            }
        }
    }

    /// The same without printing. `send` is called again, with the same request id, after a lost
    /// connection.
    ///
    /// # Errors
    /// As the operation ended, or why that is not known.
    pub async fn run_operation(
        &self,
        client: &Client,
        send: &impl AsyncFn(&Client, Text<RequestId>) -> Result<OperationReply, ClientError>,
    ) -> Result<Ended, Failure> {
        let began = Instant::now();
        let mut again = 0;
        loop {
            let reply = self.send_until_answered(client, send).await?;
            let Some(op) = reply.op else {
                return Ok(Ended::AlreadyTrue(reply));
            };
            if self.wait == Wait::No {
                return Ok(Ended::NotAwaited(reply));
            }
            if reply.joined {
                progress(self.output, &format!("{}: {op} is under way, joined", reply.vm));
            }
            let left = self.timeout.map(|t| t.saturating_sub(began.elapsed()));
            match client.wait_op(op.0, left, |_| ()).await {
                Ok(status) => return outcome(status),
                Err(ClientError::Api(e)) if e.error.kind == ErrorKind::NotFound && again < 3 => {
                    // The operation ended, and its VM was forgotten, while the daemon restarted. Who
                    // wished for absence asks once more and learns that there is nothing left to do;
                    // for others that was a failure, and a second effect would not be theirs.
                    if self.wish == Wish::Presence {
                        let what = format!("{}: it was undone while ocivisord restarted", reply.vm);
                        return Err(Failure::new(Exit::Failure, what));
                    }
                    again += 1;
                }
                Err(ClientError::Broken { .. } | ClientError::Unreachable { .. })
                    if began.elapsed() < self.patience => {}
                Err(error) => return Err(self.lost(error)),
            }
        }
    }

    /// A request for long work on images: sends it, waits as told and shows how far it is. `None`
    /// if the caller does not wait; the operation's id is printed then. If we are told to end, so is the
    /// operation; told so twice, we do not wait for that.
    ///
    /// # Errors
    /// As the operation ended, or why that is not known.
    pub async fn run_image_operation(
        &self,
        send: &impl AsyncFn(&Client, Text<RequestId>) -> Result<ImageOperationReply, ClientError>,
    ) -> Result<Option<OpStatusReply>, Failure> {
        let client = self.daemon().await?;
        let reply = self.send_until_answered(&client, send).await?;
        if self.wait == Wait::No {
            let op = reply.op.to_string();
            self.output.list(
                &reply,
                || vec![op.clone()],
                || format!("{}: {op}\n", reply.about()),
            )?;
            return Ok(None);
        }
        let began = Instant::now();
        let mut answered = began;
        let mut shown = None;
        let mut ending = false;
        let mut signals = Signals::new()?;
        loop {
            let left = self.timeout.map(|t| t.saturating_sub(began.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                let what = format!("{}: {} goes on", reply.about(), reply.op);
                return Err(Failure::new(Exit::Timeout, what).hint("ocivisor events shows its end"));
            }
            let wait = left.map_or(LOOK, |left| left.min(LOOK));
            let answer = tokio::select! {
                answer = client.op_wait(reply.op, millis(wait)) => answer,
                () = signals.next() => {
                    if std::mem::replace(&mut ending, true) {
                        let what = format!("{}: {} is being cancelled", reply.about(), reply.op);
                        return Err(Failure::new(Exit::Conflict, what));
                    }
                    self.cancel(&client, &reply).await?;
                    continue;
                }
            };
            let status = match answer {
                // Nothing is recorded of such work, so a daemon that was replaced knows nothing.
                Err(ClientError::Api(e)) if e.error.kind == ErrorKind::NotFound => {
                    let what = format!("{}: ocivisord ended before it was done", reply.about());
                    return Err(Failure::new(Exit::Failure, what).hint(AGAIN));
                }
                Err(ClientError::Broken { .. } | ClientError::Unreachable { .. })
                    if answered.elapsed() < self.patience =>
                {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Ok(status) => status,
                Err(error) => return Err(self.lost(error)),
            };
            answered = Instant::now();
            if status.done {
                return match outcome(status)? {
                    Ended::Done(status) => Ok(Some(*status)),
                    Ended::AlreadyTrue(_) | Ended::NotAwaited(_) => Ok(None),
                };
            }
            let now = how_far(&status);
            if now.is_some() && now != shown {
                progress(
                    self.output,
                    &format!("{}: {}", reply.about(), now.as_deref().unwrap_or("")),
                );
                shown = now;
            }
        }
    }

    /// Has an operation end.
    async fn cancel(&self, client: &Client, reply: &ImageOperationReply) -> Result<(), Failure> {
        progress(self.output, &format!("{}: cancelling {}", reply.about(), reply.op));
        let on = |why: String| {
            let what = format!("{}: {} goes on: {why}", reply.about(), reply.op);
            Failure::new(Exit::Failure, what).hint("ocivisor events shows its end")
        };
        match tokio::time::timeout(self.patience, client.op_cancel(reply.op)).await {
            // Not known any more: the next look says what is to be said.
            Ok(Err(ClientError::Api(e))) if e.error.kind == ErrorKind::NotFound => Ok(()),
            Ok(Err(ClientError::Api(e))) => Err(on(e.error.message)),
            Ok(Err(error)) => Err(on(error.to_string())),
            Err(_) => Err(on("the daemon does not answer".into())),
            Ok(Ok(_)) => Ok(()),
        }
    }

    async fn send_until_answered<T>(
        &self,
        client: &Client,
        send: &impl AsyncFn(&Client, Text<RequestId>) -> Result<T, ClientError>,
    ) -> Result<T, Failure> {
        let began = Instant::now();
        loop {
            match send(client, Text(self.request_id.clone())).await {
                Ok(reply) => return Ok(reply),
                // The request id makes it safe to send it again, whatever became of the first.
                Err(
                    ClientError::Broken { .. }
                    | ClientError::Unreachable { .. }
                    | ClientError::Timeout { .. },
                ) if began.elapsed() < self.patience => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(self.lost(error)),
            }
        }
    }

    /// A failure that leaves open whether the request had its effect says how to find out.
    fn lost(&self, error: ClientError) -> Failure {
        match error {
            ClientError::Broken { .. }
            | ClientError::Timeout { .. }
            | ClientError::Unreachable { .. } => {
                let id = &self.request_id;
                Failure::from(error)
                    .hint(format!("what became of it is on disk: repeat with --request-id {id}"))
            }
            ClientError::Api(_) | ClientError::Denied { .. } | ClientError::Protocol { .. } => {
                error.into()
            }
        }
    }
}

/// What tells us to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From here on they do not kill us.
    fn new() -> Result<Self, Failure> {
        let failed = |e| Failure::new(Exit::Failure, format!("catch signals: {e}"));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
        }
    }
}

/// The step in words, in whole percents.
fn how_far(status: &OpStatusReply) -> Option<String> {
    let step = status.step.clone()?;
    Some(match status.progress {
        Some(ProgressV1 { done, total: Some(total) }) if total > 0 => {
            format!("{step}, {}%", u128::from(done.min(total)) * 100 / u128::from(total))
        }
        Some(ProgressV1 { done, .. }) => format!("{step}, {} MiB", done >> 20),
        None => step,
    })
}

fn outcome(status: OpStatusReply) -> Result<Ended, Failure> {
    match &status.result {
        Some(OutcomeV1::Error(error)) => Err(Error::from(error.clone()).into()),
        Some(OutcomeV1::Ok) | None => Ok(Ended::Done(Box::new(status))),
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Api(error) => error.error.into(),
            ClientError::Unreachable { path, source } => {
                let path = path.display();
                Self::new(Exit::Unreachable, format!("cannot reach the daemon at {path}: {source}"))
                    .hint("is ocivisord running? ocivisor doctor says more")
            }
            ClientError::Denied { path } => {
                let path = path.display();
                Self::new(Exit::Permission, format!("you may not use the socket {path}"))
                    .hint("become a member of the group ocivisor, or use sudo")
            }
            ClientError::Broken { .. } => Self::new(Exit::Unreachable, &error),
            ClientError::Timeout { .. } => Self::new(Exit::Timeout, &error),
            ClientError::Protocol { .. } => Self::new(Exit::Failure, &error)
                .hint("are the daemon and this command of the same version? see ocivisor version"),
        }
    }
}

/// What a request that changes a VM wants in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// That there is a VM.
    Presence,
    /// That there is none.
    Absence,
}

/// An id that no other request has.
#[must_use]
#[expect(clippy::expect_used, reason = "letters, digits and hyphens are a request id")]
pub fn fresh_request_id() -> RequestId {
    let id = format!("cli-{}", uuid::Uuid::new_v4());
    id.parse().expect("a valid request id")
}

/// Milliseconds for the wire.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Runs `work` on a runtime of one thread.
///
/// # Errors
/// What `work` says, or the runtime cannot be made.
pub fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::new(Exit::Failure, format!("start the runtime: {e}")))?;
    runtime.block_on(work)
}

/// Progress for people, on standard error, unless they want quiet.
pub fn progress(output: Output, text: &str) {
    if !output.quiet {
        complain(&format!("{text}\n"));
    }
}
