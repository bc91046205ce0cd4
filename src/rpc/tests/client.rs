//! What the client says when there is no daemon, and how it waits.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{ENDLESS, Running};
use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::OpId;
use ocivisor_rpc::{Client, ClientError};
use ocivisor_schema::OutcomeV1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_daemon_that_is_not_there_is_named_with_advice() {
    let error = Client::connect("/nonexistent/ocivisord.sock").await.unwrap_err();
    assert!(error.is_unreachable());
    assert_eq!(
        error.to_string(),
        "ocivisord does not answer on /nonexistent/ocivisord.sock: No such file or directory \
         (os error 2); is it running? (systemctl status ocivisord)"
    );
    assert_eq!(Error::from(error).kind, ErrorKind::Host);
}

#[tokio::test]
async fn what_is_no_daemon_of_ours_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let client = Client::connect(&path).await.unwrap();
    let (probe, _) = listener.accept().await.unwrap();
    drop(probe);
    for (answer, want) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"[..], "makes no sense: HTTP 200 OK: hi"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "makes no sense: neither result nor error",
        ),
        (b"SSH-2.0-x\r\n\r\n", "broke during daemon.version"),
        (b"", "broke during daemon.version"),
    ] {
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 16];
            stream.read_exact(&mut head).await.unwrap();
            stream.write_all(answer).await.unwrap();
        };
        let (error, ()) = tokio::join!(client.daemon_version(), serve);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[tokio::test]
async fn an_operation_is_waited_for() {
    let server = Running::start(|_| ());
    let client = Client::connect(&server.path).await.unwrap();
    let mut seen = 0;
    let status = client.wait_op(OpId(7), None, |_| seen += 1).await.unwrap();
    assert!(status.done);
    assert!(matches!(status.result, Some(OutcomeV1::Error(_))));
    assert_eq!(seen, 1);
    server.stop().await;
}

#[tokio::test]
async fn an_operation_that_takes_too_long_is_named() {
    let server = Running::start(|_| ());
    let client = Client::connect(&server.path).await.unwrap();
    let limit = Some(Duration::from_millis(300));
    let mut steps = Vec::new();
    let error =
        client.wait_op(ENDLESS, limit, |status| steps.push(status.step.clone())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!(error.api().unwrap().op, Some(ENDLESS));
    assert_eq!(steps[0].as_deref(), Some("wait for the guest"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_goes_on_across_a_restart_of_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ocivisord.sock");
    let quick = |config: &mut ocivisor_rpc::ServerConfig| config.grace = Duration::ZERO;
    let first = Running::start_at(&path, quick);
    let client = Client::connect(&path).await.unwrap();
    let (told, mut statuses) = tokio::sync::mpsc::unbounded_channel();
    let waiting = tokio::spawn(async move {
        let limit = Some(Duration::from_millis(2500));
        client
            .wait_op(ENDLESS, limit, move |status| {
                told.send(status.clone()).unwrap();
            })
            .await
    });
    first.stop().await;
    let began = Instant::now();
    let second = Running::start_at(&path, quick);
    // The call that comes after the restart is answered when its time is over.
    let status = statuses.recv().await.unwrap();
    assert!(!status.done);
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(began.elapsed() < Duration::from_secs(20));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_once_are_all_answered() {
    let server = Running::start(|_| ());
    let client = Client::connect(&server.path).await.unwrap();
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.vm_list().await })
        })
        .collect();
    for call in calls {
        let result: Result<_, ClientError> = call.await.unwrap();
        assert_eq!(result.unwrap().len(), 1);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_full_queue_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _queued = tokio::net::UnixStream::connect(&path).await.unwrap();
    let full = tokio::net::UnixStream::connect(&path).await.unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::WouldBlock);
    let connecting = tokio::spawn(Client::connect(path.clone()));
    // It tries until there is room.
    tokio::task::yield_now().await;
    let _accepted = listener.accept().await.unwrap();
    assert_eq!(connecting.await.unwrap().unwrap().path(), path);
}
