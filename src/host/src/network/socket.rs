//! One synchronous rtnetlink socket: a request, its answer, the kernel's words if it refuses.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use ocivisor_core::error::{Error, ErrorKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::wire::{HEADER, Message, Received, attributes, messages, number, text};

/// Longest wait for one answer. The kernel answers before `send` returns, so this bounds defects.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The kernel never puts more than 32 KiB into one datagram of a dump (`netlink_dump`).
const BUFFER: usize = 32 * 1024;
/// Most messages in one `send`: their answers must fit the socket's receive buffer.
const BATCH: usize = 64;
/// Most times a dump is begun again because what it lists changed under it.
const DUMP_TRIES: u32 = 20;
/// Attribute of an error with the explanation (`NLMSGERR_ATTR_MSG`).
const ERROR_TEXT: u16 = 1;

/// Why the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The error number.
    pub(super) errno: i32,
    /// The kernel's explanation, if it gave one.
    pub(super) text: Option<String>,
}

impl Refusal {
    pub(super) fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }

    /// As an error about `what`.
    pub(super) fn error(&self, what: impl fmt::Display) -> Error {
        let kind = match self.errno {
            libc::ENOMEM
            | libc::ENOBUFS
            | libc::ENOSPC
            | libc::EMFILE
            | libc::ENFILE
            | libc::EUSERS
            | libc::EXFULL
            | libc::EAGAIN => ErrorKind::Exhausted,
            libc::ETIMEDOUT => ErrorKind::Timeout,
            libc::EOPNOTSUPP | libc::EAFNOSUPPORT => ErrorKind::Unsupported,
            _ => ErrorKind::Host,
        };
        Error::new(kind, format!("{what}: {self}"))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = Errno::from_raw_os_error(self.errno);
        match &self.text {
            Some(text) => write!(f, "{errno}: {text}"),
            None => write!(f, "{errno}"),
        }
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self { errno: errno.raw_os_error(), text: None }
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self { errno, text: None },
            None => Self { errno: libc::EIO, text: Some(error.to_string()) },
        }
    }
}

/// Result of a request.
pub(super) type Answer<T> = Result<T, Refusal>;

/// An open socket; it belongs to the network namespace it was opened in for good.
pub(super) struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// In the caller's network namespace.
    pub(super) fn open() -> Answer<Self> {
        let socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        // Without this, filters of dumps are ignored instead of obeyed or refused.
        socket.set_netlink_get_strict_chk(true)?;
        // Connected to the kernel, the socket takes nothing from anyone else: in a guest's network
        // namespace the guest's root is privileged and could send us answers of its own.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, buffer: vec![0; BUFFER], sequence: 0 })
    }

    /// In another network namespace. A thread goes there, because namespaces are per thread and
    /// the caller's must stay what it is whatever happens.
    pub(super) fn open_in(namespace: BorrowedFd<'_>) -> Answer<Self> {
        thread::scope(|scope| {
            let go = || {
                move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
                Self::open()
            };
            let opened = thread::Builder::new().name("netns".into()).spawn_scoped(scope, go)?;
            let gone = || Refusal { errno: libc::EIO, text: Some("thread panicked".into()) };
            opened.join().unwrap_or_else(|_| Err(gone()))
        })
    }

    /// A change; done on return.
    pub(super) fn change(&mut self, message: Message) -> Answer<()> {
        self.changes(vec![message]).map_err(|(_, refusal)| refusal)
    }

    /// Changes in order, sent together; one that is refused does not keep the kernel from the
    /// rest. The first refusal and the place of its message.
    pub(super) fn changes(&mut self, all: Vec<Message>) -> Result<(), (usize, Refusal)> {
        let mut first: Option<(usize, Refusal)> = None;
        let mut done = 0;
        let mut all = all.into_iter().peekable();
        while all.peek().is_some() {
            let (start, mut bytes, mut count) = (self.sequence, Vec::new(), 0);
            for message in all.by_ref().take(BATCH) {
                bytes.extend(self.number(message));
                count += 1;
            }
            self.send(&bytes).map_err(|e| (done, e))?;
            let mut open = count;
            while open > 0 {
                self.receive(|message| {
                    let at = message.sequence.wrapping_sub(start + 1);
                    if (at as usize) < count && message.kind == libc::NLMSG_ERROR as u16 {
                        open -= 1;
                        if let (Err(refusal), None) = (verdict(message), &first) {
                            first = Some((done + at as usize, refusal));
                        }
                    }
                    Ok(())
                })
                .map_err(|e| (done, e))?;
            }
            done += count;
        }
        first.map_or(Ok(()), Err)
    }

    /// One thing, by `parse`.
    pub(super) fn get<T>(
        &mut self,
        message: Message,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Answer<T> {
        let bytes = self.number(message);
        self.send(&bytes)?;
        let (sequence, mut found) = (self.sequence, None);
        while found.is_none() {
            self.receive(|message| {
                if message.sequence == sequence {
                    found = Some(if message.kind == libc::NLMSG_ERROR as u16 {
                        verdict(message).and(Err(Refusal::from(Errno::NOMSG)))
                    } else {
                        parse(message.payload).ok_or_else(|| Errno::BADMSG.into())
                    });
                }
                Ok(())
            })?;
        }
        found.unwrap_or_else(|| Err(Errno::NOMSG.into()))
    }

    /// All things that `parse` takes, from one consistent moment.
    pub(super) fn dump<T>(
        &mut self,
        message: &Message,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Answer<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            let bytes = self.number(message.clone());
            self.send(&bytes)?;
            let (sequence, mut all) = (self.sequence, Vec::new());
            let (mut done, mut torn) = (false, false);
            while !done {
                self.receive(|message| {
                    if message.sequence != sequence {
                        return Ok(());
                    }
                    torn |= message.flags & libc::NLM_F_DUMP_INTR != 0;
                    let ends = [libc::NLMSG_DONE, libc::NLMSG_ERROR];
                    if ends.contains(&message.kind.into()) {
                        done = true;
                        verdict(message)
                    } else {
                        all.extend(parse(message.payload));
                        Ok(())
                    }
                })?;
            }
            if !torn {
                return Ok(all);
            }
        }
        Err(Errno::AGAIN.into())
    }

    fn number(&mut self, message: Message) -> Vec<u8> {
        self.sequence += 1;
        message.finish(self.sequence)
    }

    fn send(&self, bytes: &[u8]) -> Answer<()> {
        loop {
            match send(&self.socket, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The messages of the next datagram, waiting for it at most [`TIMEOUT`].
    fn receive(&mut self, mut each: impl FnMut(Received<'_>) -> Answer<()>) -> Answer<()> {
        let deadline = Instant::now() + TIMEOUT;
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        loop {
            match recv(&self.socket, self.buffer.as_mut_slice(), flags) {
                Ok((_, len)) if len > self.buffer.len() => return Err(Errno::MSGSIZE.into()),
                Ok((_, len)) => return messages(&self.buffer[..len]).try_for_each(&mut each),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Errno::TIMEDOUT.into());
                    }
                    let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
                    let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
                    match poll(&mut fds, Some(&left)) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// What an NLMSG_ERROR (or the end of a dump) says: a negative error number; then the header of
/// the request, its payload unless capped, and attributes if flagged so.
fn verdict(message: Received<'_>) -> Answer<()> {
    let code = message.payload.get(0..4).and_then(number).map_or(-libc::EBADMSG, |n| n as i32);
    if code == 0 {
        return Ok(());
    }
    let header = message.payload.get(4..4 + HEADER);
    let skip = match header.and_then(|h| number(&h[0..4])) {
        _ if message.kind == libc::NLMSG_DONE as u16 => 4,
        Some(len) if message.flags & libc::NLM_F_CAPPED == 0 => {
            4 + (len as usize).next_multiple_of(4)
        }
        _ => 4 + HEADER,
    };
    let rest = match message.flags & libc::NLM_F_ACK_TLVS {
        0 => &[],
        _ => message.payload.get(skip..).unwrap_or_default(),
    };
    let text = attributes(rest).find(|(kind, _)| *kind == ERROR_TEXT).map(|(_, v)| text(v));
    Err(Refusal { errno: code.saturating_neg(), text })
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink").field("socket", &self.socket).finish_non_exhaustive()
    }
}
