//! What goes wrong on the way to a registry, and in it: a relay that breaks connections, a scripted server that says what
//! no honest one does, a proxy. All on loopback, all gone when dropped.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::registry::{Signed, pause};

/// A relay before a server: counts what the server sends, and can break connections after so many bytes.
pub struct Relay {
    pub port: u16,
    shared: Arc<Relayed>,
}

struct Relayed {
    target: SocketAddr,
    sent: AtomicU64,
    /// Bytes still let through, from the server and to it, before the connection breaks; none if it does not.
    left: Mutex<Option<u64>>,
    left_up: Mutex<Option<u64>>,
    received: AtomicU64,
    over: AtomicBool,
}

impl Relay {
    pub fn new(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Relayed {
            target,
            sent: AtomicU64::new(0),
            left: Mutex::new(None),
            left_up: Mutex::new(None),
            received: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let inner = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if inner.over.load(Ordering::SeqCst) {
                    return;
                }
                let inner = inner.clone();
                // A connection that fails is what the client sees too.
                std::thread::spawn(move || drop(inner.relay(&client.unwrap())));
            }
        });
        Self { port, shared }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Breaks all connections once the server has sent so much more.
    pub fn break_after(&self, bytes: u64) {
        *self.shared.left.lock().unwrap() = Some(bytes);
    }

    /// Breaks all connections once the client has sent so much more.
    pub fn break_up_after(&self, bytes: u64) {
        *self.shared.left_up.lock().unwrap() = Some(bytes);
    }

    pub fn is_broken(&self) -> bool {
        let zero = |left: &Mutex<Option<u64>>| *left.lock().unwrap() == Some(0);
        zero(&self.shared.left) || zero(&self.shared.left_up)
    }

    pub fn mend(&self) {
        *self.shared.left.lock().unwrap() = None;
        *self.shared.left_up.lock().unwrap() = None;
    }

    /// Bytes that came from the server and were let through.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Bytes that came from the client and were let through.
    pub fn received(&self) -> u64 {
        self.shared.received.load(Ordering::SeqCst)
    }
}

impl Relayed {
    fn relay(self: &Arc<Self>, client: &TcpStream) -> io::Result<()> {
        let server = TcpStream::connect(self.target)?;
        let (up_from, up_to) = (client.try_clone()?, server.try_clone()?);
        let up = self.clone();
        std::thread::spawn(move || drop(pump(&up_from, &up_to, &up.left_up, &up.received)));
        pump(&server, client, &self.left, &self.sent)
    }
}

/// Passes bytes on; ends both sides where the number allowed is used up.
fn pump(
    mut from: &TcpStream,
    mut to: &TcpStream,
    left: &Mutex<Option<u64>>,
    count: &AtomicU64,
) -> io::Result<()> {
    let mut buf = vec![0; 16 * 1024];
    loop {
        let n = from.read(&mut buf)?;
        if n == 0 {
            return to.shutdown(Shutdown::Write);
        }
        let pass = {
            let mut left = left.lock().unwrap();
            let pass = left.map_or(n as u64, |left| left.min(n as u64));
            *left = left.map(|left| left - pass);
            usize::try_from(pass).unwrap()
        };
        to.write_all(&buf[..pass])?;
        count.fetch_add(pass as u64, Ordering::SeqCst);
        if pass < n {
            drop(from.shutdown(Shutdown::Both));
            return to.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

/// What a scripted server was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// What it answers.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub how: How,
}

/// In which way the body goes out.
pub enum How {
    Whole,
    /// Content-Length is told whole, but only so many bytes are sent before the connection is reset.
    Reset(usize),
    /// So many bytes, then silence until the client goes away.
    Stall(usize),
    /// One byte now and then, until the client goes away.
    Drip(Duration),
    /// No Content-Length, bytes without end.
    Endless,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), how: How::Whole }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn how(mut self, how: How) -> Self {
        self.how = how;
        self
    }
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A server that answers as its script says, and remembers what it was asked.
pub struct Scripted {
    pub port: u16,
    tls: bool,
    asked: Arc<Mutex<Vec<Asked>>>,
    over: Arc<AtomicBool>,
}

impl Scripted {
    pub fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(None, script)
    }

    pub fn start_tls(
        signed: &Signed,
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(Some(tls_config(signed)), script)
    }

    fn serve(
        tls: Option<Arc<rustls::ServerConfig>>,
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let script: Arc<Script> = Arc::new(script);
        let made = Self { port, tls: tls.is_some(), asked: asked.clone(), over: over.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                let (asked, script, tls) = (asked.clone(), script.clone(), tls.clone());
                // Clients that go away are part of the tests.
                std::thread::spawn(move || match tls {
                    None => drop(answer(&stream, &stream, &asked, &*script)),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        let inner = stream.try_clone().unwrap();
                        let tls = Mutex::new(rustls::StreamOwned::new(connection, inner));
                        drop(answer(Locked(&tls), &stream, &asked, &*script));
                    }
                });
            }
        });
        made
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.host())
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Says that nobody was told who we are.
    pub fn assert_no_credentials(&self) {
        for asked in self.asked() {
            assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
            assert!(!format!("{asked:?}").contains("correct"), "{asked:?}");
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}

fn tls_config(signed: &Signed) -> Arc<rustls::ServerConfig> {
    use rustls::pki_types::pem::PemObject;
    let certs = rustls::pki_types::CertificateDer::pem_file_iter(&signed.cert).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&signed.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certs.map(Result::unwrap).collect(), key)
        .unwrap();
    Arc::new(config)
}

struct Locked<'a, T>(&'a Mutex<T>);

impl<T: Read> Read for Locked<'_, T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.lock().unwrap().read(buf)
    }
}

impl<T: Write> Write for Locked<'_, T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().flush()
    }
}

fn answer(
    mut both: impl Read + Write,
    socket: &TcpStream,
    all: &Mutex<Vec<Asked>>,
    script: &Script,
) -> io::Result<()> {
    let asked = read_request(&mut both)?;
    all.lock().unwrap().push(asked.clone());
    let reply = script(&asked);
    let mut head = format!("HTTP/1.1 {} Scripted\r\nconnection: close\r\n", reply.status);
    let endless = matches!(reply.how, How::Endless);
    if !endless && !reply.headers.iter().any(|(name, _)| name == "content-length") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    both.write_all(head.as_bytes())?;
    both.write_all(b"\r\n")?;
    let body: &[u8] = if asked.method == "HEAD" { &[] } else { &reply.body };
    let gone = |both: &mut dyn Read| drop(both.read(&mut [0; 1]));
    match reply.how {
        How::Whole => both.write_all(body)?,
        How::Reset(n) => {
            both.write_all(&body[..n])?;
            both.flush()?;
            rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO))?;
            return Ok(());
        }
        How::Stall(n) => {
            both.write_all(&body[..n])?;
            both.flush()?;
            gone(&mut both);
            return Ok(());
        }
        How::Drip(time) => {
            for byte in body {
                both.write_all(&[*byte])?;
                both.flush()?;
                pause(time);
            }
        }
        How::Endless => loop {
            both.write_all(&[b'x'; 4096])?;
        },
    }
    both.flush()?;
    socket.shutdown(Shutdown::Write)?;
    gone(&mut both);
    Ok(())
}

fn read_request(both: &mut impl Read) -> io::Result<Asked> {
    let mut reader = BufReader::with_capacity(1, both);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next(), words.next());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let none = || io::Error::other("no request");
    Ok(Asked { method: method.ok_or_else(none)?, path: path.ok_or_else(none)?, headers, body })
}

/// A proxy that knows CONNECT and remembers the heads of its requests.
pub struct Connect {
    pub port: u16,
    heads: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
}

impl Connect {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let made = Self { port, heads: heads.clone(), over: over.clone() };
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (heads, client) = (heads.clone(), client.unwrap());
                std::thread::spawn(move || drop(Self::carry(&client, &heads)));
            }
        });
        made
    }

    fn carry(mut client: &TcpStream, heads: &Mutex<Vec<String>>) -> io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        heads.lock().unwrap().push(head);
        let server = TcpStream::connect(target)?;
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        let none = Mutex::new(None);
        let count = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| drop(pump(client, &server, &none, &count)));
            pump(&server, client, &none, &count)
        })
    }

    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(("127.0.0.1", self.port)));
    }
}
