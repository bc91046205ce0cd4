//! Clients and guests that mean harm: the server stays, stays small, and serves others.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;

use ocivisor_shim::frame::Frame;
use ocivisor_vnc::rfb::message::MAX_CUT_TEXT;
use ocivisor_vnc::server::{MAX_CLIENTS, MAX_KNOCKING};
use ocivisor_vnc::terminal::{FIRST_SIZE, Terminal};

use crate::program::{Options, Program};
use crate::shim::Shim;
use crate::until;
use crate::viewer::{Viewer, exactly};

/// What a server may have at most, in kilobytes: itself unoptimized, eight screens of the largest size, their streams.
const MOST_MEMORY: u64 = 64 * 1024;

/// Numbers as random as it takes, the same ones in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014 (SplitMix64).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }

    /// A message; mostly one that is understood, with numbers from anywhere.
    fn message(&mut self) -> Vec<u8> {
        match self.below(100) {
            0..10 => {
                let bits = [8, 16, 32][self.below(3) as usize];
                let mut message = vec![0, 0, 0, 0, bits, bits, self.below(2) as u8, 1];
                message.extend([0, 3, 0, 3, 0, 3, 0, 2, 4, 0, 0, 0]);
                message
            }
            10..20 => {
                let count = self.below(12) as usize;
                let all = [0, 1, 7, 16, -223, -239, -308, -224, 5, 99];
                let numbers = (0..count).map(|_| all[self.below(10) as usize]);
                let list: Vec<u8> = numbers.flat_map(i32::to_be_bytes).collect();
                [&[2, 0, 0, count as u8], &list[..]].concat()
            }
            20..45 => [&[3, self.below(2) as u8][..], &self.bytes(8)].concat(),
            45..50 => vec![3, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
            50..75 => [&[4, self.below(2) as u8, 0, 0, 0, 0][..], &self.bytes(2)].concat(),
            75..85 => [&[5][..], &self.bytes(5)].concat(),
            85..90 => {
                let length = self.below(3000) as u16;
                let text = self.bytes(length.into());
                [&[6, 0, 0, 0, 0, 0][..], &length.to_be_bytes(), &text].concat()
            }
            90..94 => [&[251, 0][..], &self.bytes(4), &[1, 0], &[0; 16]].concat(),
            // Now and then what nobody can understand.
            94 if self.below(5) == 0 => self.bytes(20),
            _ => [&[4, 1, 0, 0, 0, 0, 0xff][..], &self.bytes(1)].concat(),
        }
    }
}

fn open() -> Program {
    Program::start_with(&Options { password: None, ..Options::default() }).unwrap()
}

/// Reads all there is, until the stream ends.
fn swallow(mut stream: TcpStream) {
    let mut bytes = vec![0; 1 << 16];
    while stream.read(&mut bytes).is_ok_and(|n| n > 0) {}
}

#[test]
fn ten_thousand_random_messages() {
    // Ten times as many are in the tests of `rfb::client`, where no process is between them.
    // Of private use: nothing else types it. It tells that all before was heard.
    const MARK: char = '\u{e000}';
    let program = open();
    let shim = Shim::start(&program.socket());
    until("the viewer's attachment", || (shim.viewers() == 1).then_some(()));
    let server = program.server();
    let mut random = Random(1);
    let (mut heard, mut connections) = (0, 0);
    while heard < 10_000 {
        let mut stream = program.come_in();
        connections += 1;
        let reader = stream.try_clone().unwrap();
        let reader = thread::spawn(move || swallow(reader));
        until("the typist", || shim.has_writer().then_some(()));
        while heard < 10_000 && !reader.is_finished() {
            let mut messages: Vec<u8> = (0..500).flat_map(|_| random.message()).collect();
            messages.extend([4, 1, 0, 0]);
            messages.extend((0x0100_0000 + u32::from(MARK)).to_be_bytes());
            shim.print(&random.bytes(200));
            shim.forget_typed();
            // It may have been sent away for the last ones.
            let _ = stream.write_all(&messages);
            let mark = MARK.to_string();
            until("a mark", || {
                let seen = String::from_utf8_lossy(&shim.typed()).contains(&mark);
                (seen || reader.is_finished()).then_some(())
            });
            heard += 500;
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
        reader.join().unwrap();
    }
    assert!(connections > 3, "{connections}");
    assert_eq!(program.server(), server, "it is still the same");
    assert!(program.peak() < MOST_MEMORY, "{} kB", program.peak());
    // All of them left; one that behaves is served.
    let mut viewer = Viewer::connect(program.port, "", "raw", 4).unwrap();
    until("a picture", || viewer.shot().rgb.iter().any(|byte| *byte != 0).then_some(()));
}

#[test]
fn a_guest_that_prints_anything() {
    let program = open();
    let shim = Shim::start(&program.socket());
    let server = program.server();
    let mut viewer = Viewer::connect(program.port, "", "zrle copyrect", 4).unwrap();
    until("the viewer's attachment", || (shim.viewers() == 1).then_some(()));
    let mut random = Random(2);
    let pieces: [&[u8]; 12] = [
        b"\x1b[",
        b"\x1b]52;c;",
        b"\x1bP",
        b"\x1b[?1049h",
        b"\x1b[?1049l",
        b"\x1b[99999;99999H",
        b"\x1b[2147483648L",
        "e\u{301}\u{301}\u{301}".as_bytes(),
        "漢字".as_bytes(),
        b"\x1b#8",
        b"\x1b[1;1r\x1b[9999S",
        b"\x1b[?2026h",
    ];
    for _ in 0..400 {
        let mut bytes = random.bytes(2000);
        for _ in 0..20 {
            bytes.extend_from_slice(pieces[random.below(12) as usize]);
            let length = random.below(40) as usize;
            bytes.extend(random.bytes(length).iter().map(|byte| byte & 0x7f));
        }
        shim.print(&bytes);
    }
    // Strings without end, and characters without width, on one cell.
    for begin in [&b"\x1bPq"[..], b"\x1b\\\x1b]0;", b"\x1b\\\x1b[H"] {
        shim.print(begin);
        for _ in 0..200 {
            shim.print(&"\u{301}".repeat(5000).into_bytes());
        }
    }
    shim.print(b"\x1b\\\x1bcstill there");
    let mut terminal = Terminal::new(FIRST_SIZE);
    terminal.print(b"still there");
    viewer.shows(&terminal.picture(), exactly);
    assert_eq!(program.server(), server);
    assert!(program.peak() < MOST_MEMORY, "{} kB", program.peak());
}

#[test]
fn a_guest_that_never_stops_printing() {
    let program = open();
    let shim = Shim::start(&program.socket());
    let mut viewer = Viewer::connect(program.port, "", "tight copyrect", 4).unwrap();
    until("the typist", || shim.has_writer().then_some(()));
    let flood = [&b"\x1b[32mspam and \x1b[1megg\x1b[0m\r\n"[..]; 2000].concat();
    for _ in 0..100 {
        shim.print(&flood);
    }
    shim.frame(&Frame::Gap(1 << 30));
    shim.print(b"\x1bcthe end");
    viewer.type_text("\r");
    until("a key to get through", || (shim.typed() == b"\r").then_some(()));
    let mut terminal = Terminal::new(FIRST_SIZE);
    terminal.print(b"the end");
    viewer.shows(&terminal.picture(), exactly);
    assert!(program.peak() < MOST_MEMORY, "{} kB", program.peak());
}

#[test]
fn clients_that_never_read() {
    let program = open();
    let shim = Shim::start(&program.socket());
    until("the viewer's attachment", || (shim.viewers() == 1).then_some(()));
    let mut asleep: Vec<TcpStream> = (0..MAX_CLIENTS - 1).map(|_| program.come_in()).collect();
    let large = [&[251, 0, 16, 0, 8, 0x70, 1, 0][..], &[0; 16]].concat();
    let encodings = [&[2, 0, 0, 2][..], &0_i32.to_be_bytes(), &(-308_i32).to_be_bytes()].concat();
    for step in 0..200 {
        shim.print(format!("\x1b[H\x1b[4{}m\x1b[2J", step % 8).as_bytes());
        for stream in &mut asleep {
            let messages = [&encodings[..], &large, &[3, 0, 0, 0, 0, 0, 16, 0, 8, 0x70]].concat();
            stream.set_write_timeout(Some(crate::LONG)).unwrap();
            stream.write_all(&messages).unwrap();
        }
    }
    let mut viewer = Viewer::connect(program.port, "", "tight", 4).unwrap();
    until("a large picture", || (viewer.shot().width == 4096).then_some(()));
    assert!(program.peak() < MOST_MEMORY, "{} kB", program.peak());
}

#[test]
fn a_client_that_pastes_a_thousand_times_at_once() {
    let program = open();
    let shim = Shim::start(&program.socket());
    let server = program.server();
    let mut stream = program.come_in();
    until("the typist", || shim.has_writer().then_some(()));
    // The longest text that is kept, Latin-1 of which each byte becomes two.
    let text = vec![0xe4; MAX_CUT_TEXT];
    let copy = [&[6, 0, 0, 0][..], &(text.len() as u32).to_be_bytes(), &text].concat();
    let key = |down: u8, keysym: u32| [&[4, down, 0, 0][..], &keysym.to_be_bytes()].concat();
    let (shift, insert, mark) = (key(1, 0xffe1), key(1, 0xff63), key(1, 'x'.into()));
    stream.write_all(&[copy, shift, insert.repeat(2000), key(0, 0xffe1)].concat()).unwrap();
    until("the end of it", || {
        // It is not heard while too much waits.
        stream.write_all(&mark).unwrap();
        shim.typed().ends_with(b"x").then_some(())
    });
    assert!(shim.typed().starts_with("\u{e4}".repeat(MAX_CUT_TEXT).as_bytes()));
    assert_eq!(program.server(), server, "it is still the same");
    assert!(program.peak() < MOST_MEMORY, "{} kB", program.peak());
}

#[test]
fn a_crowd_at_the_door() {
    let program = Program::start();
    let crowd: Vec<TcpStream> = (0..100).map(|_| program.connect()).collect();
    assert!(Viewer::connect(program.port, "secret12", "tight", 4).is_some());
    // The oldest ones were sent away; who stays is told something.
    let mut kept = 0;
    for mut stream in crowd {
        stream.set_nonblocking(true).unwrap();
        let mut bytes = Vec::new();
        let end = stream.read_to_end(&mut bytes);
        kept += usize::from(end.is_err_and(|e| e.kind() == ErrorKind::WouldBlock));
    }
    assert!(kept <= MAX_KNOCKING, "{kept}");
}

#[test]
fn a_ninth_client_comes_in_if_it_wants_the_screen_alone() {
    let program = open();
    let inside: Vec<TcpStream> = (0..MAX_CLIENTS).map(|_| program.come_in()).collect();
    let mut ninth = program.connect();
    ninth.write_all(b"RFB 003.008\n\x01\x01").unwrap();
    let mut said = Vec::new();
    ninth.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"RFB 003.008\n\x01\x01\0\0\0\0", "there is no room");
    let mut alone = program.connect();
    alone.write_all(b"RFB 003.008\n\x01\x00").unwrap();
    alone.read_exact(&mut [0; 42]).unwrap();
    for mut sent_away in inside {
        assert_eq!(sent_away.read(&mut [0; 100]).unwrap_or(0), 0);
    }
    until("room", || {
        let mut stream = program.connect();
        stream.write_all(b"RFB 003.008\n\x01\x01").ok()?;
        let mut said = [0; 42];
        stream.read_exact(&mut said).ok()
    });
}

#[test]
fn who_guesses_is_turned_away() {
    let program = Program::start();
    let guess = || {
        let mut stream = program.connect();
        stream.write_all(b"RFB 003.008\n").unwrap();
        let mut offer = [0; 14];
        stream.read_exact(&mut offer).unwrap();
        if offer[12] == 0 {
            return false;
        }
        let mut response = b"\x02".to_vec();
        response.extend([0; 16]);
        stream.write_all(&response).unwrap();
        stream.read_exact(&mut [0; 16]).unwrap();
        true
    };
    // Nobody waits for the answers, which come later each time.
    let tries = (0..100).take_while(|_| guess()).count();
    assert!((8..=8 + MAX_KNOCKING).contains(&tries), "{tries}");
}
