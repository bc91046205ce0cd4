//! Messages on their way: datagrams, and TCP for those that matter or are long.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_opennebula::monitor::{MAX_DATAGRAM, Message, MessageKind, PublicKey};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket, lookup_host};
use tokio::time::timeout;

use crate::now;

/// How long the monitor may take: until its address is known, the connection accepted, and all read from it. What is late is
/// out of date: states of VMs must not be told much later than they were looked at ([`crate::resident`]).
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of text that are likely to fit into a datagram: only who does not fit must be packed again, in halves.
const LIKELY: usize = 96 << 10;

/// To one monitor. Each task has its own.
#[derive(Debug, Clone)]
pub struct Sender {
    /// The host's number.
    pub host: u32,
    /// Name or address; an address of IPv6 may have a scope.
    pub address: String,
    /// Port of both.
    pub port: u16,
    /// Who alone may read.
    pub key: Option<PublicKey>,
    /// Time of the last message: the monitor drops older ones, and clocks are put back at times.
    pub last: u64,
    /// [`PATIENCE`].
    pub patience: Duration,
}

impl Sender {
    /// Sends a text, or why there is none; an empty one need not be sent.
    ///
    /// # Errors
    /// By TCP: the monitor did not take it. By UDP nobody knows.
    pub async fn send(&mut self, kind: MessageKind, found: &Result<String>) -> Result<()> {
        if found.as_ref().is_ok_and(String::is_empty) {
            return Ok(());
        }
        let failure;
        let text = match found {
            Ok(text) => text,
            Err(error) => {
                failure = error.to_string();
                &failure
            }
        };
        let packed = self.pack(kind, found.is_ok(), text)?;
        if kind.matters() || packed.len() > MAX_DATAGRAM {
            self.connection(packed.as_bytes()).await
        } else {
            self.datagram(packed.as_bytes()).await
        }
    }

    /// Sends texts about a VM each, in as few datagrams as will do.
    ///
    /// # Errors
    /// As of [`Sender::send`].
    pub async fn send_each(&mut self, kind: MessageKind, texts: &[String]) -> Result<()> {
        let size: usize = texts.iter().map(String::len).sum();
        let each = texts.len().div_ceil(size.div_ceil(LIKELY).max(1)).max(1);
        let mut parts: Vec<&[String]> = texts.chunks(each).rev().collect();
        while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
            let whole = part.concat();
            let packed = self.pack(kind, true, &whole)?;
            if packed.len() <= MAX_DATAGRAM {
                self.datagram(packed.as_bytes()).await?;
            } else if part.len() == 1 {
                self.connection(packed.as_bytes()).await?;
            } else {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
        }
        Ok(())
    }

    fn pack(&mut self, kind: MessageKind, success: bool, text: &str) -> Result<String> {
        self.last = now().max(self.last);
        let message = Message { kind, success, host: self.host, time: self.last, text };
        message.pack(self.key.as_ref(), &mut random)
    }

    async fn datagram(&self, bytes: &[u8]) -> Result<()> {
        let sent = self.within(async {
            let to = self.place().await?;
            let from: SocketAddr = match to {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            UdpSocket::bind(from).await?.send_to(bytes, to).await
        });
        sent.await.map(drop)
    }

    async fn connection(&self, bytes: &[u8]) -> Result<()> {
        let sent = self.within(async {
            let mut stream = TcpStream::connect(self.place().await?).await?;
            stream.write_all(bytes).await?;
            stream.shutdown().await
        });
        sent.await
    }

    /// Also if a resolver does not answer.
    async fn place(&self) -> io::Result<SocketAddr> {
        let mut found = lookup_host((self.address.as_str(), self.port)).await?;
        found.next().ok_or_else(|| io::Error::other("the name has no address"))
    }

    async fn within<T>(&self, work: impl Future<Output = io::Result<T>>) -> Result<T> {
        let done = timeout(self.patience, work).await;
        done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> Error {
        let Self { address, port, .. } = self;
        Error::new(
            ErrorKind::Host,
            format!("send to the monitor at {address} port {port}: {error}"),
        )
    }
}

fn random(mut bytes: &mut [u8]) -> Result<()> {
    while !bytes.is_empty() {
        let filled = getrandom(&mut *bytes, GetRandomFlags::empty());
        let n = filled.map_err(|e| Error::new(ErrorKind::Host, format!("random numbers: {e}")))?;
        bytes = &mut bytes[n..];
    }
    Ok(())
}

#[cfg(test)]
mod tests;
