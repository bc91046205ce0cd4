//! The table of methods is that of the trait, and `docs/api.md` is made of it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use common::{Fake, assert_file, golden_dir};
use ocivisor_core::error::ErrorKind;
use ocivisor_rpc::error::code_of;
use ocivisor_rpc::methods::{METHODS, Method, Patience};
use ocivisor_rpc::peer::Role;
use ocivisor_rpc::{API_VERSION, ApiServer};
use serde_json::Value;

fn golden(name: &str) -> Value {
    let path = golden_dir().join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_table_has_every_method_of_the_trait() {
    let module = Fake.into_rpc();
    let registered: BTreeSet<&str> = module.method_names().collect();
    let listed: BTreeSet<&str> = METHODS.iter().map(|method| method.name).collect();
    assert_eq!(registered, listed);
    assert_eq!(listed.len(), METHODS.len(), "a name is listed twice");
}

#[test]
fn the_table_has_every_parameter_that_the_client_sends() {
    for method in METHODS {
        let request = golden(&format!("{}.request.json", method.name));
        let sent: BTreeSet<&str> = request
            .get("params")
            .and_then(Value::as_object)
            .map(|params| params.keys().map(String::as_str).collect())
            .unwrap_or_default();
        let listed: BTreeSet<&str> = method.params.iter().map(|param| param.name).collect();
        assert_eq!(sent, listed, "{}", method.name);
        for param in method.params {
            let value = &request["params"][param.name];
            let fits = match param.json.trim_end_matches('?') {
                "string" => value.is_string(),
                "integer" => value.is_u64(),
                "boolean" => value.is_boolean(),
                "[string]" => value.is_array(),
                _ => value.is_object(),
            };
            let optional = param.json.ends_with('?') && value.is_null();
            assert!(fits || optional, "{} {}: {value}", method.name, param.name);
        }
    }
}

fn section(out: &mut String, method: &Method) {
    let wait = match method.patience {
        Patience::Quick => "at once",
        Patience::Poll => "when there is something to tell, or the time is over",
        Patience::Long => "when it is done, which may take minutes",
    };
    writeln!(out, "\n## {}\n\n{}\n", method.name, method.about).unwrap();
    writeln!(
        out,
        "Role: {}. Answers {wait}, with {}.",
        method.role.name(),
        reply_link(method.reply)
    )
    .unwrap();
    if !method.params.is_empty() {
        out.push_str("\n| parameter | type | meaning |\n|---|---|---|\n");
        for param in method.params {
            writeln!(out, "| `{}` | {} | {} |", param.name, param.json, param.about).unwrap();
        }
    }
    for (title, kind) in [("Request", "request"), ("Answer", "reply")] {
        let value = golden(&format!("{}.{kind}.json", method.name));
        let text = serde_json::to_string_pretty(&value).unwrap();
        writeln!(out, "\n{title}:\n\n```json\n{text}\n```").unwrap();
    }
}

fn reply_link(reply: &str) -> String {
    match reply.strip_prefix('[').and_then(|r| r.strip_suffix(']')) {
        Some(item) => format!("a list of `{item}`"),
        None => format!("`{reply}`"),
    }
}

fn meaning(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Invalid => "the request itself is wrong",
        ErrorKind::NotFound => "a named thing does not exist",
        ErrorKind::Conflict => "wrong state, another operation under way, or a name is taken",
        ErrorKind::Permission => "the caller may not do this",
        ErrorKind::Timeout => "a deadline passed",
        ErrorKind::Exhausted => "memory, disk space, ids or another finite thing is short",
        ErrorKind::Unsupported => "this host or this build cannot do it",
        ErrorKind::Image => "an image or registry is at fault",
        ErrorKind::Integrity => "stored bytes are not what they must be",
        ErrorKind::GuestExited => "the guest ended when it should have run",
        ErrorKind::Cancelled => "given up for another request, or cancelled",
        ErrorKind::Host => "a system call or tool failed for no reason of the caller's",
    }
}

fn document() -> String {
    let mut out = format!(
        "# API of ocivisord, version {API_VERSION}

<!-- Made by a test of ocivisor-rpc (UPDATE_GOLDENS=1 rewrites it): change the table in
     src/rpc/src/methods.rs or this text in src/rpc/tests/docs.rs instead. -->

JSON-RPC 2.0 on the Unix socket `/run/ocivisor/ocivisord.sock`, as the body of an HTTP/1.1 `POST /`
with `Content-Type: application/json`, or as text messages of a WebSocket.

```sh
curl --unix-socket /run/ocivisor/ocivisord.sock -H 'Content-Type: application/json' \\
     -d '{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"vm.list\"}}' http://localhost/
```

- Parameters are given by name; unknown ones are ignored. Bytes are integers, times are RFC 3339 in
  UTC, identifiers and addresses are strings.
- A request that changes a VM carries a `request_id`, records an operation before anything happens
  and answers at once; [op.wait](#opwait) waits for it. After a lost connection send the same again:
  the same id is one effect, also after a restart of the daemon. If the wish is already true, `op`
  is `null`.
- Work on images is an operation, too, of the user who asked for it: only he and admins may cancel it. It is not
  recorded, for what the store does is whole or leaves nothing: after a restart of the daemon send the same again.
- Batches and notifications call nothing. A request has at most 8 MiB, of callers who may only look
  64 KiB; it must arrive within 30 s. A user other than an admin may hold half of all connections;
  one too many is answered by HTTP status 503.

## Roles

The kernel tells who connected; the daemon's configuration says which users and groups may what.
Each role may do what those before it may.

| role | methods |
|---|---|
"
    );
    for role in [Role::Read, Role::Operate, Role::Admin] {
        let names: Vec<String> = METHODS
            .iter()
            .filter(|method| method.role == role)
            .map(|method| format!("`{}`", method.name))
            .collect();
        writeln!(out, "| {} | {} |", role.name(), names.join(", ")).unwrap();
    }
    out.push_str(
        "\n## Errors\n\nCodes never change. `data` has `kind`, `hint` (what to do, or `null`), \
         `retryable` (the same\nrequest may work a moment later), and what it is about: `vm`, `op`, \
         `step`, each or `null`. Errors of\nJSON-RPC itself have its own codes (-32768 to -32000) \
         and a text as `data`, if any.\n\n| code | kind | meaning |\n|---|---|---|\n",
    );
    for kind in ErrorKind::ALL {
        writeln!(out, "| {} | `{}` | {} |", code_of(kind), kind.name(), meaning(kind)).unwrap();
    }
    let example = serde_json::to_string_pretty(&golden("error.conflict.reply.json")).unwrap();
    writeln!(out, "\n```json\n{example}\n```").unwrap();
    for method in METHODS {
        section(&mut out, method);
    }
    out
}

#[test]
fn the_document_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api.md");
    assert_file(&path, &document());
}
