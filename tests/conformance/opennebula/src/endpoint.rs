//! Where hosts send what they monitor: datagrams and connections on one port (contract §6.4).

use std::fs::File;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use flate2::read::ZlibDecoder;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::drivers::unbase64;
use crate::oned::Oned;

/// No message is longer, decompressed.
const MOST: u64 = 64 << 20;

/// A message of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `BEACON_HOST`, `SYSTEM_HOST`, `MONITOR_HOST`, `MONITOR_VM`, `STATE_VM`, `EXEC_VM`.
    pub kind: String,
    /// Whether what it tells could be found out.
    pub success: bool,
    /// The host's number.
    pub host: i64,
    /// When it was sent.
    pub time: u64,
    /// What it tells.
    pub payload: String,
    /// Whether it came by a connection.
    pub by_connection: bool,
}

/// Both sockets.
#[derive(Debug)]
pub struct Endpoint {
    address: SocketAddr,
    messages: Receiver<Result<Message, String>>,
}

impl Endpoint {
    /// Listens on a port of this machine, on both sockets.
    ///
    /// # Panics
    /// No port is free for both.
    #[must_use]
    pub fn open() -> Self {
        let (sender, messages) = channel();
        for _ in 0..100 {
            let connections = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = connections.local_addr().unwrap();
            // The same port may be taken there.
            if let Ok(datagrams) = UdpSocket::bind(address) {
                listen(connections, datagrams, &sender);
                return Self { address, messages };
            }
        }
        panic!("no port is free for datagrams and connections");
    }

    /// The same in the network namespace of a process.
    ///
    /// # Panics
    /// As [`Self::open`]; there is no such process.
    #[must_use]
    pub fn open_in(process: u32) -> Self {
        // A thread of its own: sockets stay in the namespace in which they were made.
        let opened = std::thread::spawn(move || {
            let there = File::open(format!("/proc/{process}/ns/net")).unwrap();
            move_into_link_name_space(there.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            Self::open()
        });
        opened.join().unwrap()
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next message, or what is wrong with it; nothing if none comes in that time.
    #[must_use]
    pub fn next(&self, within: Duration) -> Option<Result<Message, String>> {
        self.messages.recv_timeout(within).ok()
    }
}

fn listen(connections: TcpListener, datagrams: UdpSocket, to: &Sender<Result<Message, String>>) {
    let (first, second) = (to.clone(), to.clone());
    std::thread::spawn(move || {
        for stream in connections.incoming().map_while(Result::ok) {
            let mut text = String::new();
            // One message per connection, which its sender closes.
            let read = stream.take(MOST).read_to_string(&mut text);
            let message = read.map_err(|e| e.to_string()).and_then(|_| read_message(&text, true));
            if first.send(message).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length) = datagrams.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if second.send(read_message(&text, false)).is_err() {
                return;
            }
        }
    });
}

/// Reads `TYPE STATUS HOST TIME PAYLOAD`.
///
/// # Errors
/// What is wrong with it.
pub fn read_message(text: &str, by_connection: bool) -> Result<Message, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [kind, status, host, time, payload] = words[..] else {
        return Err(format!("{} words, not five: {text:?}", words.len()));
    };
    let bytes = unbase64(payload).ok_or("the payload is not base64")?;
    let mut told = String::new();
    let mut inflated = ZlibDecoder::new(&bytes[..]).take(MOST);
    inflated.read_to_string(&mut told).map_err(|e| format!("the payload: {e}"))?;
    Ok(Message {
        kind: kind.to_owned(),
        success: match status {
            "SUCCESS" => true,
            "FAILURE" => false,
            other => return Err(format!("the status {other}")),
        },
        host: host.parse().map_err(|_| format!("the host {host}"))?,
        time: time.parse().map_err(|_| format!("the time {time}"))?,
        payload: told,
        by_connection,
    })
}

impl Oned {
    /// Takes a message as monitord does: later ones of a kind before earlier ones are not kept, failures tell nothing.
    pub fn hear(&self, message: &Message) {
        let host = {
            let model = self.model();
            let number = u32::try_from(message.host).ok();
            number.and_then(|number| model.hosts.get(&number)).map(|host| host.name.clone())
        };
        let Some(host) = host.filter(|_| message.success) else { return };
        match message.kind.as_str() {
            "STATE_VM" => self.hear_states(&host, &message.payload),
            "EXEC_VM" => self.hear_commands(&message.payload),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpStream;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;
    use crate::drivers::base64;

    fn message(kind: &str, payload: &str) -> String {
        let mut deflated = ZlibEncoder::new(Vec::new(), Compression::default());
        deflated.write_all(payload.as_bytes()).unwrap();
        format!("{kind} SUCCESS 7 1767000000 {}\n", base64(&deflated.finish().unwrap()))
    }

    #[test]
    fn datagrams_and_connections_are_heard() {
        let endpoint = Endpoint::open();
        let soon = Duration::from_secs(10);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(message("BEACON_HOST", "now").as_bytes(), endpoint.address()).unwrap();
        let heard = endpoint.next(soon).unwrap().unwrap();
        assert_eq!((heard.kind.as_str(), heard.payload.as_str()), ("BEACON_HOST", "now"));
        assert!(!heard.by_connection);
        let mut stream = TcpStream::connect(endpoint.address()).unwrap();
        let text = "VM=[ID=\"1\",STATE=\"RUNNING\"]\n";
        stream.write_all(message("STATE_VM", text).as_bytes()).unwrap();
        drop(stream);
        let heard = endpoint.next(soon).unwrap().unwrap();
        assert_eq!((heard.payload.as_str(), heard.by_connection), (text, true));
        assert_eq!((heard.host, heard.time), (7, 1_767_000_000));
    }

    #[test]
    fn what_is_no_message_is_told() {
        for text in ["", "STATE_VM SUCCESS 7", "STATE_VM SUCCESS 7 1 !!", "STATE_VM DONE 7 1 aGE="]
        {
            assert!(read_message(text, false).is_err(), "{text}");
        }
    }
}
