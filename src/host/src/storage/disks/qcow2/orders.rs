//! What a server is told, in QEMU's machine protocol: one JSON object per line, an answer to each.
//!
//! Whoever reads hostile images may answer anything: answers are bounded in length and number, and waited for until one
//! deadline. Nothing of them is used but whether it is one, and its words.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use serde_json::{Value, json};

/// Longest line of an answer.
const LINE: usize = 64 << 10;
/// Most lines before an answer: events.
const EVENTS: usize = 64;

/// The near end of a server's socket.
#[derive(Debug)]
pub(super) struct Orders {
    socket: UnixStream,
    deadline: Instant,
    unread: Vec<u8>,
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// It said so.
    #[error("{0}")]
    Said(String),
    /// It did not say anything that can be understood.
    #[error("{0}")]
    Broken(#[from] io::Error),
}

impl Orders {
    /// Takes the greeting.
    pub(super) fn begin(socket: UnixStream, deadline: Instant) -> Result<Self, Refused> {
        let mut orders = Self { socket, deadline, unread: Vec::new() };
        let greeting = orders.line()?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::other("it greets in another language").into());
        }
        orders.give("qmp_capabilities", &json!({}))?;
        Ok(orders)
    }

    /// Has one thing done.
    pub(super) fn give(&mut self, order: &str, arguments: &Value) -> Result<(), Refused> {
        let mut text = json!({ "execute": order, "arguments": arguments }).to_string();
        text.push('\n');
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write_all(text.as_bytes())?;
        for _ in 0..EVENTS {
            let answer = self.line()?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                let said = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                let said: String = said.chars().filter(|c| !c.is_control()).take(400).collect();
                return Err(Refused::Said(said));
            }
        }
        Err(io::Error::other("it tells without end and does not answer").into())
    }

    fn left(&self) -> io::Result<std::time::Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    fn line(&mut self) -> io::Result<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&line).map_err(io::Error::other);
            }
            if self.unread.len() > LINE {
                return Err(io::Error::other("an answer is too long"));
            }
            let mut chunk = [0; 4096];
            self.socket.set_read_timeout(Some(self.left()?))?;
            match self.socket.read(&mut chunk) {
                Ok(0) => return Err(io::Error::other("it ended")),
                Ok(n) => self.unread.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What comes of one order to somebody who says this.
    fn told(says: &[u8]) -> String {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(says).unwrap();
        let deadline = Instant::now() + Duration::from_millis(200);
        let done = Orders::begin(near, deadline).and_then(|mut o| o.give("x", &json!({})));
        done.map_or_else(|e| e.to_string(), |()| "done".to_owned())
    }

    #[test]
    fn answers_are_understood_or_refused_and_never_waited_for_without_end() {
        const HELLO: &str = "{\"QMP\":{}}\n{\"return\":{}}\n";
        let after = |says: &str| told(format!("{HELLO}{says}").as_bytes());
        assert_eq!(after("{\"event\":\"X\"}\n{\"return\":{}}\n"), "done");
        assert_eq!(after("{\"error\":{\"desc\":\"no\\u001b[2J\"}}\n"), "no[2J");
        assert_eq!(after("{\"error\":7}\n"), "no reason given");
        assert_eq!(told(b"{\"hello\":1}\n"), "it greets in another language");
        assert!(after("not json\n").contains("expected"));
        assert_eq!(after(&"{}\n".repeat(EVENTS)), "it tells without end and does not answer");
        assert_eq!(after(&"x".repeat(LINE + 1)), "an answer is too long");
        assert_eq!(after(""), io::Error::from(io::ErrorKind::TimedOut).to_string());
    }
}
