//! The same calls from Rust, Python and curl have the same answers, which the goldens pin.
//!
//! `golden/<name>.request.json` is what is sent, `golden/<name>.reply.json` what comes back.
//! Requests of methods are those that the typed client makes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "common/calls.rs"]
mod calls;
mod common;

use std::fmt;
use std::sync::{Arc, Mutex};

use common::{Running, assert_file, golden_dir, run};
use jsonrpsee::client_transport::ws::{Url, WsTransportClientBuilder};
use jsonrpsee::core::client::{BatchResponse, ClientBuilder, ClientT, Error as RpcError};
use jsonrpsee::core::params::BatchRequestBuilder;
use jsonrpsee::core::traits::ToRpcParams;
use ocivisor_core::error::ErrorKind;
use ocivisor_rpc::api::ApiClient;
use ocivisor_rpc::methods::METHODS;
use ocivisor_rpc::{ApiError, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// A client that keeps the request and sends nothing.
#[derive(Default)]
struct Recorder(Mutex<Option<Value>>);

impl ClientT for Recorder {
    async fn notification<Params>(&self, _: &str, _: Params) -> Result<(), RpcError>
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
        let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
        if let Some(params) = params.to_rpc_params()? {
            request["params"] = serde_json::from_str(params.get())?;
        }
        *self.0.lock().unwrap() = Some(request);
        Err(RpcError::HttpNotImplemented)
    }

    async fn batch_request<'a, R>(
        &self,
        _: BatchRequestBuilder<'a>,
    ) -> Result<BatchResponse<'a, R>, RpcError>
    where
        R: DeserializeOwned + fmt::Debug + 'a,
    {
        Err(RpcError::HttpNotImplemented)
    }
}

async fn request_of(method: &str) -> Value {
    let recorder = Recorder::default();
    assert!(calls::call(&recorder, method).await.is_err());
    recorder.0.into_inner().unwrap().unwrap()
}

/// Requests that are answered by an error: of each kind, and of the protocol itself.
fn wrong_requests() -> Vec<(String, Value)> {
    let start = |vm: &str| {
        json!({"jsonrpc": "2.0", "id": 1, "method": "vm.start",
               "params": {"request_id": "r", "vm": vm}})
    };
    let mut all: Vec<(String, Value)> = ErrorKind::ALL
        .iter()
        .map(|kind| {
            let name = kind.name();
            (format!("error.{name}"), start(&format!("fails-{name}")))
        })
        .collect();
    let spec = json!({"id": "a/b", "resources": {"memory": 67_108_864}, "root": {"path": "/x"}});
    let more = [
        ("id", start("a/b")),
        (
            "type",
            json!({"jsonrpc": "2.0", "id": 1, "method": "vm.destroy",
                        "params": {"request_id": "r", "vm": "a", "forget": "yes"}}),
        ),
        (
            "missing",
            json!({"jsonrpc": "2.0", "id": 1, "method": "vm.start",
                           "params": {"vm": "a"}}),
        ),
        (
            "spec",
            json!({"jsonrpc": "2.0", "id": 1, "method": "vm.define",
                        "params": {"request_id": "r", "spec": spec}}),
        ),
        ("method", json!({"jsonrpc": "2.0", "id": 1, "method": "vm.teleport"})),
        ("envelope", json!({"id": 1, "method": "vm.list"})),
        ("batch", json!([{"jsonrpc": "2.0", "id": 1, "method": "vm.list"}])),
    ];
    all.extend(more.into_iter().map(|(name, request)| (format!("wrong.{name}"), request)));
    all
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap() + "\n"
}

async fn post_by_curl(path: &str, file: &str) -> String {
    let data = format!("@{file}");
    let args = [
        "--silent",
        "--show-error",
        "--fail",
        "--unix-socket",
        path,
        "--header",
        "Content-Type: application/json",
        "--data-binary",
        &data,
        "http://localhost/",
    ];
    run("curl", &args).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rust_python_and_curl_are_answered_alike() {
    let server = Running::start(|_| ());
    let socket = server.path.to_str().unwrap();
    let client = Client::connect(&server.path).await.unwrap();
    let golden = golden_dir();
    let request_file = |name: &str| golden.join(format!("{name}.request.json"));
    let reply_file = |name: &str| golden.join(format!("{name}.reply.json"));

    // Rust, typed; it also writes the goldens when told so.
    let mut names = Vec::new();
    for method in METHODS {
        let request = request_of(method.name).await;
        let result = calls::call(&client, method.name).await.unwrap();
        let reply = json!({"jsonrpc": "2.0", "id": 1, "result": result});
        assert_file(&request_file(method.name), &pretty(&request));
        assert_file(&reply_file(method.name), &pretty(&reply));
        names.push(method.name.to_owned());
    }
    for (name, request) in wrong_requests() {
        assert_file(&request_file(&name), &pretty(&request));
        names.push(name);
    }

    // curl, one process per call; its answers are the goldens of errors.
    for name in &names {
        let file = request_file(name);
        let answer = post_by_curl(socket, file.to_str().unwrap()).await;
        let value: Value = serde_json::from_str(&answer).unwrap();
        assert_file(&reply_file(name), &pretty(&value));
    }

    // Python, all on one connection.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/three_clients.py");
    let count = run("python3", &[script, socket, golden.to_str().unwrap()]).await;
    assert_eq!(count.trim(), names.len().to_string());
    let files = std::fs::read_dir(&golden).unwrap().count();
    assert_eq!(files, 2 * names.len(), "goldens that nothing reads");

    // Errors come back to Rust as they were.
    for kind in ErrorKind::ALL {
        let vm = format!("fails-{}", kind.name()).parse().unwrap();
        let request = "r".parse().unwrap();
        let error = Client::vm_start(&client, request, vm).await.unwrap_err();
        let error: &ApiError = error.api().unwrap();
        assert_eq!(error.error.kind, kind);
        assert_eq!(error.error.hint.as_deref(), Some("do not do that"));
        assert_eq!(error.step.as_deref(), Some("mount root"));
        assert_eq!(error.op.unwrap().0, 7);
        assert_eq!(error.vm.as_ref().unwrap().as_str(), format!("fails-{}", kind.name()));
    }
    server.stop().await;
}

async fn web_socket(server: &Running) -> jsonrpsee::async_client::Client {
    let stream = tokio::net::UnixStream::connect(&server.path).await.unwrap();
    let url = Url::parse("ws://localhost/").unwrap();
    let (sender, receiver) =
        WsTransportClientBuilder::default().build_with_stream(url, stream).await.unwrap();
    ClientBuilder::default().build_with_tokio(sender, receiver)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_socket_is_answered_like_http() {
    let server = Running::start(|_| ());
    let client = web_socket(&server).await;
    let http = Client::connect(&server.path).await.unwrap();
    for method in METHODS {
        let over_ws = calls::call(&client, method.name).await.unwrap();
        let over_http = calls::call(&http, method.name).await.unwrap();
        assert_eq!(over_ws, over_http, "{}", method.name);
    }
    // A call that waits does not hold up others on the same socket.
    let endless = ocivisor_schema::Text(common::ENDLESS);
    let waiting = client.op_wait(endless, 60_000);
    tokio::pin!(waiting);
    tokio::select! {
        _ = &mut waiting => panic!("it was to wait"),
        version = client.daemon_version() => assert_eq!(version.unwrap().api, 1),
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_socket_may_wait_for_so_many_calls_at_once() {
    let server = Running::start(|_| ());
    let client = Arc::new(web_socket(&server).await);
    let (told, mut refused) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..65 {
        let (client, told) = (Arc::clone(&client), told.clone());
        tokio::spawn(async move {
            let endless = ocivisor_schema::Text(common::ENDLESS);
            if let Err(RpcError::Call(error)) = client.op_wait(endless, 60_000).await {
                told.send(error.code()).unwrap();
            }
        });
    }
    assert_eq!(refused.recv().await, Some(1006));
    server.stop().await;
}
