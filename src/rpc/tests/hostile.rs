//! Peers that waste our time, or send what they should not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{ENDLESS, Running};
use ocivisor_core::error::ErrorKind;
use ocivisor_rpc::{Client, ClientError, RolePolicy};
use ocivisor_schema::Text;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Sends bytes, half-closes nothing, reads until the server closes.
async fn raw(server: &Running, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(&server.path).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .expect("the server neither answers nor closes")
        .unwrap();
    String::from_utf8(answer).unwrap()
}

fn post(body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn status(answer: &str) -> &str {
    answer.lines().next().unwrap_or("")
}

fn json(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}"))
}

#[tokio::test]
async fn what_is_not_http_is_refused_and_the_next_client_is_served() {
    let server = Running::start(|_| ());
    for garbage in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nBad Header\r\n\r\n",
    ] {
        let answer = raw(&server, garbage).await;
        assert_eq!(status(&answer), "HTTP/1.1 400 Bad Request", "{garbage:?}");
    }
    let many = "X: y\r\n".repeat(1000);
    let answer = raw(&server, format!("POST / HTTP/1.1\r\n{many}\r\n").as_bytes()).await;
    assert_eq!(status(&answer), "HTTP/1.1 431 Request Header Fields Too Large");
    let get = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&raw(&server, get).await), "HTTP/1.1 405 Method Not Allowed");
    let client = Client::connect(&server.path).await.unwrap();
    assert_eq!(client.daemon_version().await.unwrap().api, 1);
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_json_rpc_is_refused() {
    let server = Running::start(|_| ());
    let deep = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"vm.define","params":{{"request_id":"r","spec":{}"#,
        "[".repeat(100_000)
    );
    for (body, code) in [
        (&b"{"[..], -32700),
        (b"null", -32700),
        (b"\xff\xfe", -32700),
        (deep.as_bytes(), -32700),
        (br#"{"jsonrpc":"1.0","id":1,"method":"vm.list"}"#, -32600),
        (br#"{"jsonrpc":"2.0","id":1,"method":"vm.get","params":{"vm":7}}"#, -32602),
        (br#"{"jsonrpc":"2.0","id":1,"method":"vm.get","params":{"vm":null}}"#, -32602),
        (br#"{"jsonrpc":"2.0","id":1,"method":"vm.get","params":"one-1"}"#, -32602),
        (br#"{"jsonrpc":"2.0","id":1,"method":"op.get","params":{"op":"op-07"}}"#, -32602),
        (
            br#"{"jsonrpc":"2.0","id":1,"method":"vm.log","params":{"vm":"a","max_bytes":-1}}"#,
            -32602,
        ),
        (
            br#"{"jsonrpc":"2.0","id":1,"method":"vm.log","params":{"vm":"a","max_bytes":1e3}}"#,
            -32602,
        ),
    ] {
        let answer = raw(&server, &post(body)).await;
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert_eq!(json(&answer)["error"]["code"], code, "{shown}: {answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn notifications_and_batches_call_nothing() {
    let server = Running::start(|_| ());
    let start = r#"{"jsonrpc":"2.0","method":"vm.start","params":{"request_id":"r","vm":"a"}}"#;
    let answer = raw(&server, &post(start.as_bytes())).await;
    assert_eq!(status(&answer), "HTTP/1.1 200 OK");
    assert_eq!(json(&answer), Value::Null);
    let answer = raw(&server, &post(format!("[{start}]").as_bytes())).await;
    assert_eq!(json(&answer)["error"]["code"], -32005);
    assert_eq!(common::STARTS.load(Ordering::SeqCst), 0);
    // That the counter counts:
    let call = start.replacen('{', r#"{"id":1,"#, 1);
    raw(&server, &post(call.as_bytes())).await;
    assert_eq!(common::STARTS.load(Ordering::SeqCst), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_requests_are_refused_and_read_to_the_end() {
    let server = Running::start(|_| ());
    let huge = vec![b' '; (8 << 20) + 1];
    let answer = raw(&server, &post(&huge)).await;
    assert_eq!(status(&answer), "HTTP/1.1 413 Payload Too Large");
    let error = &json(&answer)["error"];
    assert_eq!(error["code"], 1001);
    assert_eq!(error["message"], "the request has more than 8388608 bytes");
    // The same in chunks, without a length that tells beforehand.
    let mut chunks = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
        Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        .to_vec();
    for _ in 0..9 {
        chunks.extend_from_slice(b"100000\r\n");
        chunks.resize(chunks.len() + (1 << 20), b' ');
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    let answer = raw(&server, &chunks).await;
    assert_eq!(status(&answer), "HTTP/1.1 413 Payload Too Large");
    server.stop().await;
}

#[tokio::test]
async fn strangers_are_told_so_and_may_send_little() {
    let server = Running::start(|config| {
        config.policy =
            RolePolicy { admin_uids: Vec::new(), operate_gids: Vec::new(), read_gids: Vec::new() };
    });
    let client = Client::connect(&server.path).await.unwrap();
    let error = client.daemon_version().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission);
    assert!(
        error
            .to_string()
            .ends_with("may not call daemon.version: it needs the role read, the caller has none"),
        "{error}"
    );
    let answer = raw(&server, &post(&vec![b' '; (64 << 10) + 1])).await;
    assert_eq!(status(&answer), "HTTP/1.1 413 Payload Too Large");
    let upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut stream = UnixStream::connect(&server.path).await.unwrap();
    stream.write_all(upgrade).await.unwrap();
    let mut head = [0; 22];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 403 Forbidden");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_do_not_hold_up_others_and_are_closed() {
    let server = Running::start(|config| config.head_timeout = Duration::from_secs(2));
    let mut half_open = Vec::new();
    for at in 0..200 {
        let mut stream = UnixStream::connect(&server.path).await.unwrap();
        // Some say nothing, some stop in the head of a request.
        if at % 2 == 0 {
            stream.write_all(b"POST / HTTP/1.1\r\nHost:").await.unwrap();
        }
        half_open.push(stream);
    }
    let client = Client::connect(&server.path).await.unwrap();
    let began = Instant::now();
    for _ in 0..20 {
        assert_eq!(client.daemon_version().await.unwrap().api, 1);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(2), "20 calls took {took:?}");
    for mut stream in half_open {
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("a half-open connection stays open")
            .unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let server = Running::start(|config| config.body_timeout = Duration::from_millis(200));
    let answer = raw(
        &server,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    )
    .await;
    assert_eq!(status(&answer), "HTTP/1.1 408 Request Timeout");
    assert_eq!(json(&answer)["error"]["code"], 1005);
    server.stop().await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let server = Running::start(|config| config.max_connections = 3);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(UnixStream::connect(&server.path).await.unwrap());
    }
    let client = Client::connect(&server.path).await.unwrap();
    let error = client.daemon_version().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    assert_eq!(error.to_string(), "too many connections, try again in a while");
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match client.daemon_version().await {
            Ok(version) => break assert_eq!(version.api, 1),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_web_socket_keeps_its_place_until_it_is_closed() {
    let server = Running::start(|config| config.max_connections = 1);
    let upgrade = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut socket = UnixStream::connect(&server.path).await.unwrap();
    socket.write_all(upgrade).await.unwrap();
    let mut head = [0; 12];
    socket.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    let client = Client::connect(&server.path).await.unwrap();
    let error = client.daemon_version().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    drop(socket);
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = client.daemon_version().await {
        assert!(Instant::now() < deadline, "{error}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_calls_do_not_hold_up_others_nor_the_end_of_the_server() {
    let server = Running::start(|config| config.grace = Duration::from_millis(200));
    let client = Client::connect(&server.path).await.unwrap();
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.op_wait(Text(ENDLESS), 60_000).await })
        })
        .collect();
    assert_eq!(client.daemon_version().await.unwrap().api, 1);
    let took = server.stop().await;
    assert!(took < Duration::from_secs(10), "stopping took {took:?}");
    for call in waiting {
        let error = call.await.unwrap().unwrap_err();
        assert!(
            matches!(error, ClientError::Broken { .. } | ClientError::Unreachable { .. }),
            "{error}"
        );
    }
}
