//! A daemon of a few lines: HTTP/1.1 on a Unix socket, one request per connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// What it does with a call.
pub enum Answer {
    Result(Value),
    Error(Value),
    HangUp,
}

type Calls = Arc<Mutex<Vec<(String, Value)>>>;

/// It answers until its directory is removed; its threads end with the test.
pub struct Fake {
    dir: tempfile::TempDir,
    calls: Calls,
}

impl Fake {
    pub fn start(answer: impl Fn(&str, &Value) -> Answer + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let calls = Calls::default();
        let seen = Arc::clone(&calls);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(&stream.unwrap(), &answer, &seen);
            }
        });
        Self { dir, calls }
    }

    pub fn socket(&self) -> PathBuf {
        Path::new(self.dir.path()).join("sock")
    }

    /// Methods and parameters, in order.
    pub fn calls(&self) -> Vec<(String, Value)> {
        self.calls.lock().unwrap().clone()
    }
}

fn serve(stream: &UnixStream, answer: &dyn Fn(&str, &Value) -> Answer, seen: &Calls) {
    let Some(call) = read(stream) else { return };
    let method = call["method"].as_str().unwrap().to_owned();
    seen.lock().unwrap().push((method.clone(), call["params"].clone()));
    let body = match answer(&method, &call["params"]) {
        Answer::Result(result) => json!({"jsonrpc": "2.0", "id": call["id"], "result": result}),
        Answer::Error(error) => json!({"jsonrpc": "2.0", "id": call["id"], "error": error}),
        Answer::HangUp => return,
    };
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    stream.write_all((head + &body).as_bytes()).unwrap();
}

/// The body of a request; nothing if the client only looked whether somebody listens.
fn read(stream: &UnixStream) -> Option<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}

/// A refusal.
pub fn api_error(kind: &str, message: &str) -> Answer {
    let data = json!({
        "kind": kind, "hint": null, "retryable": false, "vm": null, "op": null, "step": null,
    });
    Answer::Error(json!({"code": 1999, "message": message, "data": data}))
}

/// A recorded operation.
pub fn operation(vm: &str) -> Value {
    json!({"op": "op-5", "vm": vm, "state": "stopped", "joined": false})
}

/// An operation that ended.
pub fn status(vm: &str, kind: &str, result: &Value) -> Value {
    json!({"op": "op-5", "vm": vm, "kind": kind, "done": true, "step": null, "result": result})
}
