//! The server: the process that faces network and guest. One thread, one poll loop.
//!
//! ```text
//!   console ──► screen ──► clients        each at most thirty times a second
//!   clients ──► wishes ──► console, screen
//! ```
//!
//! One thread, because everything meets in one terminal and nothing here waits: sockets do not block, and the longest
//! pieces of work are to encode a rectangle and to print a portion ([`crate::portion`]). Threads would cost a stack per client and a
//! lock around the terminal, and win nothing for a picture of some thousand characters.
//!
//! What must hold: nobody makes this process wait, grow or spin. A guest that prints without end is read at a bounded
//! rate; what it prints more is left out by its shim, which sends the newest then. Clients that do not read get fewer
//! pictures. Those that knock are few; when one too many comes, the oldest of whoever has the most of them goes.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

use crate::console::{Console, Said, Typed};
use crate::journal::Journal;
use crate::keys::Meant;
use crate::portion::Portion;
use crate::rfb::auth::{Book, Secret};
use crate::rfb::client::{Client, Scene, Surroundings, Wish};
use crate::rfb::handshake::Sharing;
use crate::rfb::view::Pixels;
use crate::screen::Screen;
use crate::terminal::View;

/// Sockets that listen: IPv4 and IPv6, or some addresses.
pub const MAX_LISTENERS: usize = 4;
/// Clients that are in.
pub const MAX_CLIENTS: usize = 8;
/// Clients that knock.
pub const MAX_KNOCKING: usize = 8;
/// Shortest time between two changes of size: programs in the guest draw everything anew.
const RESIZE_PERIOD: Duration = Duration::from_millis(100);
/// Pause after descriptors ran out.
const DEAF: Duration = Duration::from_secs(1);
/// A client that takes nothing for so long is gone, as far as anybody can know.
const DEAD: Duration = Duration::from_secs(120);
/// A connection that is silent for so long is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The server.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<TcpListener>,
    console: Console,
    screen: Screen,
    secret: Secret,
    book: Book,
    name: String,
    journal: Journal,
    seats: Vec<Seat>,
    portion: Portion,
    deaf_until: Option<Instant>,
    resize: Option<Pixels>,
    resized: Instant,
}

/// A client and its connection.
#[derive(Debug)]
struct Seat {
    stream: TcpStream,
    client: Client,
}

/// What a poll found.
struct Ready {
    gate: bool,
    viewer: bool,
    listeners: Vec<bool>,
    seats: Vec<PollFlags>,
}

impl Server {
    /// A server for clients of these listeners. They do not block.
    #[must_use]
    pub fn new(listeners: Vec<TcpListener>, console: Console, secret: Secret, name: &str) -> Self {
        let now = Instant::now();
        Self {
            listeners,
            console,
            screen: Screen::default(),
            secret,
            book: Book::default(),
            name: name.to_owned(),
            journal: Journal::new(name, now),
            seats: Vec::new(),
            portion: Portion::new(now),
            deaf_until: None,
            resize: None,
            resized: now,
        }
    }

    /// Serves until the keeper is gone.
    ///
    /// # Errors
    /// It is.
    pub fn run(&mut self) -> io::Result<()> {
        loop {
            let now = Instant::now();
            self.console.ask(self.screen.terminal().size(), now)?;
            let ready = self.wait(now)?;
            let now = Instant::now();
            if ready.gate
                && let Some(said) = self.console.hear(now)?
            {
                self.screen.hear(said, now);
            }
            if ready.viewer {
                self.print(now);
            }
            for (at, ready) in ready.seats.into_iter().enumerate() {
                self.serve(at, ready, now);
            }
            for (at, ready) in ready.listeners.into_iter().enumerate() {
                if ready {
                    self.accept(at, now);
                }
            }
            self.console.need_typist(self.seats.iter().any(|seat| seat.client.is_in()), now);
            self.resize(now);
            self.screen.tick(now);
            self.show(now);
            self.console.flush(now);
            let before = self.seats.len();
            self.seats.retain(|seat| !seat.client.is_over(now));
            if self.seats.len() < before {
                self.screen.rest_soon(now);
            }
        }
    }

    fn wait(&self, now: Instant) -> io::Result<Ready> {
        let hungry = self.fed_at(now).is_none();
        let hears = self.deaf_until.is_none_or(|until| until <= now);
        let (none, gate) = (PollFlags::empty(), self.console.gate());
        // One that is not to be polled is replaced by the gate with no flags, to keep the places.
        let wanted = |fd, wanted| if wanted { fd } else { None };
        let mut fds = vec![PollFd::from_borrowed_fd(gate, PollFlags::IN)];
        let optional = |fd: Option<_>, flags| match fd {
            Some(fd) => PollFd::from_borrowed_fd(fd, flags),
            None => PollFd::from_borrowed_fd(gate, none),
        };
        fds.push(optional(wanted(self.console.viewer(), hungry), PollFlags::IN));
        let (typist, flags) = self.console.typist().map_or((None, none), |(fd, f)| (Some(fd), f));
        fds.push(optional(wanted(typist, hungry), flags));
        for listener in &self.listeners {
            fds.push(optional(wanted(Some(listener.as_fd()), hears), PollFlags::IN));
        }
        for seat in &self.seats {
            let (fd, client) = (seat.stream.as_fd(), &seat.client);
            let reads = if client.wants() > 0 { PollFlags::IN } else { none };
            let writes = if client.output().is_empty() { none } else { PollFlags::OUT };
            fds.push(PollFd::from_borrowed_fd(fd, reads | writes));
        }
        let timeout = self.deadline(now).map(|deadline| {
            let left = deadline.saturating_duration_since(now);
            // Rounded up, else the loop would spin through the last millisecond.
            let left = if left.is_zero() { left } else { left + Duration::from_millis(1) };
            let seconds = left.as_secs().try_into().unwrap_or(i64::MAX);
            Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let seen: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let (fixed, seats) = seen.split_at(3 + self.listeners.len());
        Ok(Ready {
            gate: !fixed[0].is_empty(),
            viewer: hungry && !fixed[1].is_empty(),
            listeners: fixed[3..].iter().map(|seen| hears && !seen.is_empty()).collect(),
            seats: seats.to_vec(),
        })
    }

    /// When to look though nothing came.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let number = self.screen.number();
        let seats = self.seats.iter().filter_map(|seat| seat.client.deadline(number));
        let resize = self.resize.map(|_| self.resized + RESIZE_PERIOD);
        let own = [self.console.deadline(), self.screen.deadline(), self.fed_at(now), resize];
        let deaf = self.deaf_until.filter(|until| *until > now);
        seats.chain(own.into_iter().flatten()).chain(deaf).min()
    }

    /// When the guest's output may be read again, if not now.
    fn fed_at(&self, now: Instant) -> Option<Instant> {
        let watched = self.seats.iter().any(|seat| seat.client.is_in());
        self.portion.free_at(watched, now)
    }

    fn print(&mut self, now: Instant) {
        self.portion.renew(now);
        let screen = &mut self.screen;
        while self.portion.has_room() {
            let begin = Instant::now();
            let read = self.console.read(1, now, |said| screen.hear(said, now));
            self.portion.add(read, begin.elapsed());
            if read == 0 {
                break;
            }
        }
        let answers = self.screen.take_answers();
        if !answers.is_empty() {
            // Without a client nobody types, and the guest is not answered, as on a line without a terminal.
            let _ = self.console.type_bytes(&answers, now);
        }
        if self.screen.take_bell() {
            self.ring();
        }
    }

    fn ring(&mut self) {
        self.seats.iter_mut().for_each(|seat| seat.client.ring());
    }

    fn accept(&mut self, at: usize, now: Instant) {
        self.deaf_until = None;
        for _ in 0..MAX_KNOCKING {
            let (stream, address) = match self.listeners[at].accept() {
                Ok(accepted) => accepted,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // That one is gone already (accept(2), "Error handling").
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => continue,
                Err(_) => {
                    // Out of descriptors or memory: the listener stays readable, do not spin.
                    self.deaf_until = Some(now + DEAF);
                    return;
                }
            };
            if let Ok(stream) = prepared(stream) {
                self.make_room();
                let client = Client::new(address.ip().to_canonical(), now);
                self.seats.push(Seat { stream, client });
            }
        }
    }

    /// If too many knock, one of whoever has the most of them goes: the one who knocks longest.
    fn make_room(&mut self) {
        let knocking =
            |seat: &Seat| seat.client.knocks().map(|since| (seat.client.address(), since));
        let all: Vec<(IpAddr, Instant)> = self.seats.iter().filter_map(knocking).collect();
        if all.len() < MAX_KNOCKING {
            return;
        }
        let of = |address| all.iter().filter(|(other, _)| *other == address).count();
        let goes =
            all.iter().max_by_key(|(address, since)| (of(*address), std::cmp::Reverse(*since)));
        if let Some(at) = self.seats.iter().position(|seat| knocking(seat).as_ref() == goes) {
            self.seats.remove(at);
        }
    }

    /// Hears a client, and carries its wishes out.
    fn serve(&mut self, at: usize, ready: PollFlags, now: Instant) {
        let clients = self.seats.iter().filter(|seat| seat.client.is_in()).count();
        let Seat { stream, client } = &mut self.seats[at];
        let mut bytes = [0; crate::rfb::message::MAX_BUFFERED];
        let read = match client.wants().min(bytes.len()) {
            _ if ready.is_empty() => Ok(0),
            // Nothing is to be read, and nobody reads: a poll would tell so for ever.
            0 if ready.intersects(PollFlags::HUP | PollFlags::ERR) => Err(None),
            0 => Ok(0),
            most => match stream.read(&mut bytes[..most]) {
                Ok(0) => Err(None),
                Ok(n) => Ok(n),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    Ok(0)
                }
                Err(e) => Err(Some(e)),
            },
        };
        let mut wishes = Vec::new();
        let mut around = Surroundings {
            secret: &self.secret,
            book: &mut self.book,
            room: clients < MAX_CLIENTS,
            name: &self.name,
            pixels: self.screen.pixels(),
            size: self.screen.terminal().size(),
            modes: self.screen.terminal().modes(),
        };
        let address = client.address();
        match read {
            Ok(n) => {
                let heard = client.receive(&bytes[..n], &mut around, now, &mut wishes);
                if let Err(gone) = heard {
                    client.leave(now);
                    self.journal.say(format_args!("{address} is sent away: {gone}"), now);
                }
            }
            Err(error) => {
                let was_in = client.is_in();
                client.leave(now);
                client.wrote(usize::MAX);
                if was_in {
                    let why = error.map_or(String::new(), |e| format!(": {e}"));
                    self.journal.say(format_args!("{address} left{why}"), now);
                }
            }
        }
        for wish in wishes {
            self.grant(at, wish, now);
        }
    }

    fn grant(&mut self, at: usize, wish: Wish, now: Instant) {
        match wish {
            Wish::CameIn(sharing) => {
                let address = self.seats[at].client.address();
                self.journal.say(format_args!("{address} came in"), now);
                if sharing == Sharing::Exclusive {
                    let others = self.seats.iter_mut().enumerate();
                    let inside = others.filter(|(n, seat)| *n != at && seat.client.is_in());
                    inside.for_each(|(_, seat)| seat.client.leave(now));
                }
                self.console.need_typist(true, now);
            }
            Wish::Do(Meant::Typed(bytes)) => self.type_bytes(at, &bytes, now),
            Wish::Do(Meant::Paste) => {
                let (room, modes) = (self.console.room(), self.screen.terminal().modes());
                let client = &mut self.seats[at].client;
                match client.pasted(room, modes) {
                    Some(text) => self.type_bytes(at, &text, now),
                    None => client.ring(),
                }
            }
            Wish::Do(Meant::Look(view)) => self.screen.look(view),
            Wish::Do(Meant::Nothing) => {}
            Wish::Resize(pixels) => self.resize = Some(pixels),
        }
    }

    fn type_bytes(&mut self, at: usize, bytes: &[u8], now: Instant) {
        self.screen.look(View::Bottom);
        match self.console.type_bytes(bytes, now) {
            Typed::Taken => {}
            Typed::Full => self.seats[at].client.ring(),
            Typed::InVain => {
                self.seats[at].client.ring();
                if self.console.is_busy() {
                    self.screen.hear(Said::Busy, now);
                }
            }
        }
    }

    /// The size that was asked for last counts, for all.
    fn resize(&mut self, now: Instant) {
        if now.saturating_duration_since(self.resized) < RESIZE_PERIOD {
            return;
        }
        if let Some(pixels) = self.resize.take() {
            let before = self.screen.terminal().size();
            self.screen.resize(pixels);
            self.resized = now;
            let size = self.screen.terminal().size();
            if size != before {
                self.console.resize(size);
            }
        }
    }

    fn show(&mut self, now: Instant) {
        let number = self.screen.number();
        if self.seats.iter().any(|seat| seat.client.is_due(number, now)) {
            self.screen.refresh();
        }
        let clients = self.seats.iter().filter(|seat| seat.client.is_in()).count();
        let scene = Scene {
            picture: self.screen.picture(),
            number: self.screen.number(),
            pixels: self.screen.pixels(),
            clients: clients.try_into().unwrap_or(u32::MAX),
        };
        for Seat { stream, client } in &mut self.seats {
            let begin = Instant::now();
            if let Err(gone) = client.show(scene, now) {
                self.journal.say(format_args!("{} is sent away: {gone}", client.address()), now);
                client.leave(now);
            }
            if write(stream, client).is_err() {
                // Who broke the connection is noticed by reading from it; this one just does not listen.
                client.wrote(usize::MAX);
                client.leave(now);
            }
            client.charge(begin.elapsed(), scene.clients);
        }
    }
}

fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE / 4)?;
    let dead = u32::try_from(DEAD.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(&stream, dead)?;
    Ok(stream)
}

/// Writes what waits, as far as the client reads.
fn write(stream: &mut TcpStream, client: &mut Client) -> io::Result<()> {
    while !client.output().is_empty() {
        match stream.write(client.output()) {
            Ok(n) => client.wrote(n),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
