//! Sessions by `exec`, and their client.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::{Guest, first_line, runtime};

pub const TOKEN: &str = "0123456789abcdef0123456789abcdef";

pub struct Session {
    pub child: Child,
    pub socket: PathBuf,
    pub status: String,
}

pub struct Done {
    pub out: String,
    pub err: String,
    pub code: Option<u8>,
}

pub fn begin(guest: &Guest, name: &str, request: serde_json::Value) -> Session {
    let init = guest.init.unwrap();
    let stat = fs::read_to_string(format!("/proc/{init}/stat")).unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap();
    let ticks = after.split_whitespace().nth(19).unwrap_or("1").to_owned();
    begin_at(guest, name, request, &ticks)
}

pub fn begin_at(guest: &Guest, name: &str, mut request: serde_json::Value, ticks: &str) -> Session {
    request["token"] = TOKEN.into();
    let dir = guest.layout.run_vm(&guest.spec.id).sockets().to_owned();
    fs::create_dir_all(&dir).unwrap();
    let socket = dir.join(format!("{name}.sock"));
    let mut command = runtime(&["exec"]);
    command.arg("--vm-dir").arg(guest.vm_dir()).arg("--socket").arg(&socket);
    command.args(["--init", &guest.init.unwrap().to_string(), "--start-ticks", ticks]);
    command.args(["--request-fd", "4", "--status-fd", "3"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let (status, _) = first_line(&mut child);
    Session { child, socket, status }
}

impl Session {
    pub fn connect(&self) -> UnixStream {
        assert_eq!(self.status, "ready");
        let mut client = UnixStream::connect(&self.socket).unwrap();
        client.write_all(format!("{TOKEN}\n").as_bytes()).unwrap();
        client
    }

    pub fn finish(mut self, mut client: UnixStream) -> Done {
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).unwrap();
        assert!(self.child.wait().unwrap().success());
        assert!(!self.socket.exists() && !self.socket.with_extension("json").exists());
        let (mut out, mut err, mut code) = (Vec::new(), Vec::new(), None);
        let mut rest = &bytes[..];
        while let [kind, high, low, more @ ..] = rest {
            let (payload, next) = more.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            match kind {
                0 => out.extend_from_slice(payload),
                1 => err.extend_from_slice(payload),
                4 => code = Some(payload[0]),
                other => panic!("frame {other}"),
            }
            rest = next;
        }
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Done { out: text(out), err: text(err), code }
    }
}

pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind], &length[..], payload].concat()
}

pub fn run(guest: &Guest, name: &str, request: serde_json::Value) -> Done {
    let session = begin(guest, name, request);
    let client = session.connect();
    session.finish(client)
}

pub fn shell(script: &str) -> serde_json::Value {
    serde_json::json!({"argv": ["sh", "-c", script]})
}
