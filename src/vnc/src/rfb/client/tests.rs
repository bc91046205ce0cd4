//! A client is talked to by a viewer written for these tests, which reads every byte it gets and knows Raw and CopyRect.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;
use crate::rfb::auth::Password;
use crate::rfb::encode::{MAX_HEIGHT, MAX_WIDTH};
use crate::rfb::message::Region;
use crate::terminal::{FIRST_SIZE, Terminal};

const PIXELS: Pixels = Pixels { width: 640, height: 400 };

struct Server {
    secret: Secret,
    book: Book,
    terminal: Terminal,
    pixels: Pixels,
    picture: Picture,
    number: u64,
    now: Instant,
    room: bool,
}

impl Server {
    fn new() -> Self {
        let terminal = Terminal::new(FIRST_SIZE);
        let picture = terminal.picture();
        let (secret, book, now) = (Secret::None, Book::default(), Instant::now());
        let room = true;
        Self { secret, book, terminal, pixels: PIXELS, picture, number: 0, now, room }
    }

    fn print(&mut self, text: &str) {
        self.terminal.print(text.as_bytes());
        self.picture = self.terminal.picture();
        self.number += 1;
    }

    fn hear(&mut self, client: &mut Client, mut bytes: &[u8]) -> Result<Vec<Wish>, Gone> {
        let mut wishes = Vec::new();
        loop {
            let (now, rest) = bytes.split_at(client.wants().min(bytes.len()));
            let mut around = Surroundings {
                secret: &self.secret,
                book: &mut self.book,
                room: self.room,
                name: "one-42",
                pixels: self.pixels,
                size: self.terminal.size(),
                modes: self.terminal.modes(),
            };
            client.receive(now, &mut around, self.now, &mut wishes)?;
            if rest.is_empty() {
                return Ok(wishes);
            }
            bytes = rest;
        }
    }

    fn show(&self, client: &mut Client) {
        let (picture, number, pixels) = (&self.picture, self.number, self.pixels);
        client.show(Scene { picture, number, pixels, clients: 1 }, self.now).unwrap();
    }

    /// Shows it all that is due, and lets the time between two pictures pass.
    fn update(&mut self, client: &mut Client, viewer: &mut Viewer) -> Vec<Told> {
        let mut told = Vec::new();
        for _ in 0..100 {
            self.now += Duration::from_secs(10);
            self.show(client);
            let said = client.output().len();
            viewer.bytes.extend_from_slice(client.output());
            client.wrote(said);
            told.extend(viewer.read());
            if said == 0 {
                return told;
            }
        }
        panic!("it never ends: {told:?}");
    }

    fn come_in(&mut self) -> (Client, Viewer) {
        let mut client = Client::new([192, 0, 2, 7].into(), self.now);
        let wishes = self.hear(&mut client, b"RFB 003.008\n\x01\x01").unwrap();
        assert_eq!(wishes, [Wish::CameIn(Sharing::Shared)]);
        let head = 12 + 2 + 4;
        assert_eq!(client.output().len(), head + 24 + "one-42".len());
        let Pixels { width, height } = self.pixels;
        let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
        assert_eq!(client.output()[head..head + 4], size);
        client.wrote(client.output().len());
        (client, Viewer::new(self.pixels))
    }
}

/// What the viewer was told, an update each time.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Bell,
    /// Regions with the numbers of their encodings.
    Update(Vec<(Region, i32)>),
}

struct Viewer {
    pixels: Pixels,
    screen: Vec<u32>,
    bytes: Vec<u8>,
    /// Bytes of a pixel, of which the first three are blue, green and red if they are four.
    pixel: usize,
}

impl Viewer {
    fn new(pixels: Pixels) -> Self {
        let screen = vec![0xdead_beef; usize::from(pixels.width) * usize::from(pixels.height)];
        Self { pixels, screen, bytes: Vec::new(), pixel: 4 }
    }

    fn read(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        while let Some((message, used)) = self.message() {
            self.bytes.drain(..used);
            told.push(message);
        }
        told
    }

    fn message(&mut self) -> Option<(Told, usize)> {
        let bytes = std::mem::take(&mut self.bytes);
        let read = self.parse(&bytes);
        self.bytes = bytes;
        read
    }

    /// Applies what it understands; a message that is cut is read again from its beginning, which changes nothing.
    fn parse(&mut self, bytes: &[u8]) -> Option<(Told, usize)> {
        let number = |at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        match *bytes.first()? {
            2 => return Some((Told::Bell, 1)),
            0 => {}
            other => panic!("message of type {other}"),
        }
        let (mut at, mut regions) = (4, Vec::new());
        for _ in 0..number(2)? {
            let [x, y, width, height] =
                [number(at)?, number(at + 2)?, number(at + 4)?, number(at + 6)?];
            let encoding = i32::from_be_bytes(*bytes.get(at + 8..)?.first_chunk()?);
            at += 12;
            let (w, h) = (usize::from(width), usize::from(height));
            match encoding {
                0 => {
                    let pixels = bytes.get(at..at + w * h * self.pixel)?;
                    self.draw((x, y), w, pixels);
                    at += pixels.len();
                }
                1 => {
                    let from = usize::from(number(at + 2)?) * usize::from(self.pixels.width);
                    assert_eq!((x, number(at)?, width), (0, 0, self.pixels.width));
                    let to = usize::from(y) * w;
                    self.screen.copy_within(from..from + h * w, to);
                    at += 4;
                }
                -239 => at += w * h * self.pixel + w.div_ceil(8) * h,
                -223 | -308 => {
                    if (width, height) != (self.pixels.width, self.pixels.height) {
                        let rest = std::mem::replace(self, Self::new(Pixels { width, height }));
                        self.pixel = rest.pixel;
                    }
                    at += if encoding == -308 { 20 } else { 0 };
                }
                other => panic!("encoding {other}"),
            }
            regions.push((Region { x, y, width, height }, encoding));
        }
        bytes.get(..at)?;
        Some((Told::Update(regions), at))
    }

    fn draw(&mut self, (x, y): (u16, u16), width: usize, pixels: &[u8]) {
        for (n, row) in pixels.chunks(width * self.pixel).enumerate() {
            let at = (usize::from(y) + n) * usize::from(self.pixels.width) + usize::from(x);
            for (pixel, bytes) in self.screen[at..at + width].iter_mut().zip(row.chunks(self.pixel))
            {
                *pixel = bytes.iter().rev().fold(0, |rgb, byte| rgb << 8 | u32::from(*byte));
            }
        }
    }

    fn shows(&self, picture: &Picture) -> bool {
        let Pixels { width, height } = self.pixels;
        let (columns, rows) = (width.div_ceil(8), height.div_ceil(16));
        let area = crate::picture::Area { column: 0, row: 0, columns, rows };
        let mut wanted = Vec::new();
        picture.paint(area, width.into(), height.into(), &mut wanted);
        wanted == self.screen
    }
}

fn encodings(list: &[i32]) -> Vec<u8> {
    let mut bytes = vec![2, 0];
    bytes.extend((list.len() as u16).to_be_bytes());
    list.iter().for_each(|number| bytes.extend(number.to_be_bytes()));
    bytes
}

fn request(incremental: bool, Pixels { width, height }: Pixels) -> Vec<u8> {
    let mut bytes = vec![3, incremental.into(), 0, 0, 0, 0];
    bytes.extend(width.to_be_bytes());
    bytes.extend(height.to_be_bytes());
    bytes
}

fn key(keysym: u32) -> Vec<u8> {
    [&[4, 1, 0, 0][..], &keysym.to_be_bytes()].concat()
}

#[test]
fn pictures_come_when_asked_for_and_changed() {
    let mut server = Server::new();
    let (mut client, mut viewer) = server.come_in();
    server.print("hello");
    assert_eq!(server.update(&mut client, &mut viewer), [], "not asked for");
    server.hear(&mut client, &request(false, PIXELS)).unwrap();
    assert!(client.is_due(server.number, server.now));
    assert_eq!(server.update(&mut client, &mut viewer).len(), 1);
    assert!(viewer.shows(&server.picture));
    server.hear(&mut client, &request(true, PIXELS)).unwrap();
    assert_eq!(server.update(&mut client, &mut viewer), [], "nothing changed");
    assert_eq!(client.deadline(server.number), None, "and nothing to wait for");
    server.print("\x1b[Hj");
    server.now += PERIOD;
    assert!(client.is_due(server.number, server.now));
    assert_eq!(server.update(&mut client, &mut viewer).len(), 1);
    assert!(viewer.shows(&server.picture));
}

#[test]
fn there_is_a_time_between_two_pictures() {
    let mut server = Server::new();
    let (mut client, mut viewer) = server.come_in();
    let mut pictures = 0;
    for _ in 0..100 {
        server.hear(&mut client, &request(true, PIXELS)).unwrap();
        server.print(".");
        server.show(&mut client);
        viewer.bytes.extend_from_slice(client.output());
        client.wrote(client.output().len());
        pictures += viewer.read().len();
        server.now += Duration::from_millis(1);
    }
    assert!((1..=4).contains(&pictures), "{pictures} pictures in 100 ms");
}

#[test]
fn there_is_a_time_between_two_looks_for_a_difference() {
    let mut server = Server::new();
    let (mut client, mut viewer) = server.come_in();
    server.hear(&mut client, &request(true, PIXELS)).unwrap();
    server.update(&mut client, &mut viewer);
    server.hear(&mut client, &request(true, PIXELS)).unwrap();
    server.now += Duration::from_secs(10);
    assert!(client.is_due(server.number, server.now));
    server.show(&mut client);
    assert_eq!(client.output(), b"", "nothing changed");
    server.hear(&mut client, &request(true, PIXELS)).unwrap();
    assert!(!client.is_due(server.number, server.now));
    assert_eq!(client.deadline(server.number), Some(server.now + PERIOD));
    // Looking took long: others come first.
    client.charge(Duration::from_secs(1), 1);
    let due = client.deadline(server.number).unwrap();
    assert!(due >= Instant::now() + Duration::from_millis(1900), "two seconds at most");
}

#[test]
fn formats_change_between_updates_only() {
    let mut server = Server::new();
    let (mut client, mut viewer) = server.come_in();
    server.hear(&mut client, &request(false, PIXELS)).unwrap();
    server.show(&mut client);
    assert!(
        !viewer.shows(&server.picture) && client.output().len() >= LOW_WATER,
        "it is on its way"
    );
    // 16 bits from now on, said in the midst of an update of 32.
    let mut format = vec![0, 0, 0, 0, 16, 16, 0, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0];
    format.extend(request(true, PIXELS));
    server.hear(&mut client, &format).unwrap();
    let said = client.output().len();
    viewer.bytes.extend_from_slice(client.output());
    client.wrote(said);
    for _ in 0..100 {
        if viewer.shows(&server.picture) {
            break;
        }
        server.show(&mut client);
        viewer.bytes.extend_from_slice(client.output());
        client.wrote(client.output().len());
        viewer.read();
    }
    assert!(viewer.shows(&server.picture), "the first is whole");
    viewer.pixel = 2;
    let told = server.update(&mut client, &mut viewer);
    assert_eq!(told.len(), 1, "all of it again, in the new form");
    assert!(viewer.bytes.is_empty());
}

#[test]
fn bells_are_rung_between_updates_and_not_too_often() {
    let mut server = Server::new();
    let (mut client, mut viewer) = server.come_in();
    server.hear(&mut client, &request(false, PIXELS)).unwrap();
    server.show(&mut client);
    client.ring();
    let told = server.update(&mut client, &mut viewer);
    assert!(matches!(told[..], [Told::Update(_), Told::Bell]), "{told:?}");
    let mut rung = 0;
    for _ in 0..100 {
        client.ring();
        server.show(&mut client);
        rung += client.output().len();
        client.wrote(client.output().len());
        server.now += Duration::from_millis(10);
    }
    assert_eq!(rung, 4, "in a second");
}

#[test]
fn sizes_are_told_as_the_client_understands_them() {
    let large = Pixels { width: 700, height: 500 };
    let told_of = |list: &[i32], told: Vec<Told>| -> Vec<(Region, i32)> {
        let all = told.into_iter().flat_map(|told| match told {
            Told::Update(regions) => regions,
            Told::Bell => vec![],
        });
        all.filter(|(_, encoding)| list.contains(encoding) && *encoding < 0).collect()
    };
    let region = |x, y, Pixels { width, height }: Pixels| Region { x, y, width, height };
    for (list, first, second) in [
        (&[0][..], vec![], vec![]),
        (&[0, -223], vec![], vec![(region(0, 0, large), -223)]),
        (&[0, -223, -308], vec![(region(0, 0, PIXELS), -308)], vec![(region(0, 0, large), -308)]),
    ] {
        let mut server = Server::new();
        let (mut client, mut viewer) = server.come_in();
        let asked = [encodings(list), request(false, PIXELS)].concat();
        server.hear(&mut client, &asked).unwrap();
        assert_eq!(told_of(list, server.update(&mut client, &mut viewer)), first, "{list:?}");
        server.hear(&mut client, &request(true, PIXELS)).unwrap();
        server.pixels = large;
        server.terminal.resize(Size { columns: 87, rows: 31 });
        server.print("hello");
        assert_eq!(told_of(list, server.update(&mut client, &mut viewer)), second, "{list:?}");
        assert!(viewer.shows(&server.picture), "{list:?}");
    }
}

#[test]
fn a_client_that_asks_for_a_size_is_answered() {
    let mut server = Server::new();
    let (mut client, mut viewer) = server.come_in();
    let asked = [encodings(&[0, -308]), request(true, PIXELS)].concat();
    server.hear(&mut client, &asked).unwrap();
    server.update(&mut client, &mut viewer);
    let ask = |width: u16, height: u16| {
        let mut bytes = vec![251, 0];
        [width, height].iter().for_each(|number| bytes.extend(number.to_be_bytes()));
        bytes.extend([1, 0]);
        bytes.extend([0; 16]);
        [bytes, request(true, PIXELS)].concat()
    };
    let wanted = Pixels { width: 800, height: 600 };
    assert_eq!(server.hear(&mut client, &ask(800, 600)).unwrap(), [Wish::Resize(wanted)]);
    server.pixels = wanted;
    let told = server.update(&mut client, &mut viewer);
    let answer = Region { x: 1, y: 0, width: 800, height: 600 };
    assert_eq!(told[0], Told::Update(vec![(answer, -308)]));
    assert_eq!(server.hear(&mut client, &ask(0, 600)).unwrap(), []);
    let told = server.update(&mut client, &mut viewer);
    assert_eq!(told, [Told::Update(vec![(Region { y: 3, ..answer }, -308)])]);
}

#[test]
fn the_pointer_is_told_once() {
    let mut server = Server::new();
    let (mut client, mut viewer) = server.come_in();
    let asked = [encodings(&[0, -239]), request(true, PIXELS)].concat();
    server.hear(&mut client, &asked).unwrap();
    let told = server.update(&mut client, &mut viewer);
    assert_eq!(told[0], Told::Update(vec![(crate::pointer::HOT_SPOT, -239)]));
    assert_eq!(told.len(), 2);
    server.hear(&mut client, &request(true, PIXELS)).unwrap();
    assert_eq!(server.update(&mut client, &mut viewer), []);
}

#[test]
fn keys_mice_and_pasting_become_wishes() {
    let mut server = Server::new();
    let (mut client, _) = server.come_in();
    let typed = |bytes: &[u8]| Wish::Do(Meant::Typed(bytes.to_vec()));
    let paste = [key(0xffe1), key(0xff63)].concat();
    assert_eq!(server.hear(&mut client, &paste).unwrap(), [], "nothing was copied");
    let copy = [&[6, 0, 0, 0, 0, 0, 0, 3][..], b"ls\n"].concat();
    assert_eq!(server.hear(&mut client, &copy).unwrap(), []);
    let pastes = Wish::Do(Meant::Paste);
    assert_eq!(server.hear(&mut client, &paste).unwrap(), std::slice::from_ref(&pastes));
    assert_eq!(server.hear(&mut client, &[5, 2, 0, 0, 0, 0]).unwrap(), [pastes]);
    assert_eq!(client.pasted(3, Modes::NONE).as_deref(), Some(&b"ls\r"[..]));
    assert_eq!(client.pasted(2, Modes::NONE), None);
    assert_eq!(server.hear(&mut client, &key(97)).unwrap(), [typed(b"a")]);
}

#[test]
fn who_dawdles_has_to_go() {
    let mut server = Server::new();
    server.secret = Secret::Password(Password::new(b"secret").unwrap());
    for (said, patience) in [(&b"RFB 003."[..], IMPATIENCE), (b"RFB 003.008\n\x02", PATIENCE)] {
        let mut client = Client::new([192, 0, 2, 7].into(), server.now);
        server.hear(&mut client, said).unwrap();
        assert_eq!(client.deadline(0), Some(server.now + patience));
        server.now += patience;
        assert!(matches!(server.hear(&mut client, b""), Err(Gone::TooSlow)));
    }
}

#[test]
fn the_last_place_is_given_once() {
    let mut server = Server::new();
    let mut client = Client::new([192, 0, 2, 7].into(), server.now);
    server.hear(&mut client, b"RFB 003.008\n\x01").unwrap();
    server.room = false;
    let refused = server.hear(&mut client, b"\x01");
    assert!(matches!(refused, Err(Gone::Refused(Refusal::TooManyClients))));
    assert!(!client.is_in());
}

#[test]
fn who_leaves_is_told_why_first() {
    let mut server = Server::new();
    let mut client = Client::new([192, 0, 2, 7].into(), server.now);
    assert!(server.hear(&mut client, b"RFB 003.008\n\x05").is_err());
    client.leave(server.now);
    assert!(!client.is_over(server.now) && client.is_over(server.now + IMPATIENCE));
    client.wrote(client.output().len());
    assert!(client.is_over(server.now));
}

#[test]
fn a_client_that_does_not_read_costs_no_more() {
    let mut server = Server::new();
    let (mut client, _) = server.come_in();
    let rectangle = MAX_WIDTH * MAX_HEIGHT * 4;
    server.pixels = Pixels { width: 4096, height: 2160 };
    server.hear(&mut client, &encodings(&[0, -308])).unwrap();
    for _ in 0..100 {
        server.hear(&mut client, &request(false, server.pixels)).unwrap();
        server.print("other");
        server.now += PERIOD;
        server.show(&mut client);
        client.ring();
        assert!(client.output().len() <= LOW_WATER + rectangle + 1000);
    }
}

#[test]
fn a_hundred_thousand_random_messages_cost_no_more_than_one() {
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut server = Server::new();
    let any = noise();
    let (mut heard, mut clients) = (0, 0);
    while heard < 100_000 {
        let (mut client, _) = server.come_in();
        clients += 1;
        for _ in 0..5000 {
            heard += 1;
            let message = any.new_tree(&mut runner).unwrap().current();
            let Ok(wishes) = server.hear(&mut client, &message) else { break };
            for wish in wishes {
                if let Wish::Resize(Pixels { width, height }) = wish {
                    let (width, height) = (width.clamp(160, 1024), height.clamp(80, 768));
                    server.pixels = Pixels { width, height };
                }
            }
            if heard % 500 == 0 {
                server.print("other\r\n");
                server.now += PERIOD;
                server.show(&mut client);
                let most = LOW_WATER + MAX_WIDTH * MAX_HEIGHT * 4 + 1000;
                assert!(client.output().len() <= most, "{}", client.output().len());
                client.wrote(usize::MAX);
            }
        }
    }
    assert!(clients > 20, "{clients}");
}

/// A message; mostly one that is understood, with numbers from anywhere.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |begin: &'static [u8], length: usize| {
        let rest = prop::collection::vec(any::<u8>(), length);
        rest.prop_map(move |rest| [begin, &rest].concat())
    };
    let list = prop::collection::vec(-310_i32..20, 0..12).prop_map(|list| encodings(&list));
    let text = prop::collection::vec(any::<u8>(), 0..3000).prop_map(|text| {
        [&[6, 0, 0, 0, 0, 0][..], &(text.len() as u16).to_be_bytes(), &text].concat()
    });
    prop_oneof![
        30 => bytes(&[4, 1, 0, 0, 0, 0], 2),
        10 => bytes(&[4, 1, 0, 0], 4),
        10 => bytes(&[5], 5),
        20 => bytes(&[3, 0], 8),
        20 => bytes(&[3, 1], 8),
        5 => list,
        5 => bytes(&[0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255], 0)
            .prop_map(|head| [&head[..], &[8, 16, 0, 0, 0, 0]].concat()),
        1 => text,
        3 => bytes(&[251, 0], 4).prop_map(|head| [&head[..], &[1, 0], &[0; 16]].concat()),
        // Now and then what nobody can understand.
        1 => prop::collection::vec(any::<u8>(), 1..20),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..Default::default() })]

    /// Whatever a client asks for, in whatever order, what it gets can be read.
    #[test]
    fn what_is_sent_is_understood(steps in prop::collection::vec(step(), 1..30)) {
        let mut server = Server::new();
        let (mut client, mut viewer) = server.come_in();
        server.hear(&mut client, &encodings(&[0])).unwrap();
        for step in steps {
            match step {
                Step::Say(bytes) => drop(server.hear(&mut client, &bytes).unwrap()),
                Step::Print(text) => server.print(&text),
                Step::Resize(pixels) => server.pixels = pixels,
                Step::Ring => client.ring(),
            }
            server.show(&mut client);
            let half = client.output().len() / 2;
            viewer.bytes.extend_from_slice(&client.output()[..half]);
            client.wrote(half);
            viewer.read();
            server.now += Duration::from_millis(20);
        }
        let all = Pixels { width: u16::MAX, height: u16::MAX };
        server.hear(&mut client, &request(false, all)).unwrap();
        server.update(&mut client, &mut viewer);
        prop_assert!(viewer.bytes.is_empty());
        prop_assert!(viewer.shows(&server.picture));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Say(Vec<u8>),
    Print(String),
    Resize(Pixels),
    Ring,
}

fn step() -> impl Strategy<Value = Step> {
    let pixels = (1_u16..700, 1_u16..500).prop_map(|(width, height)| Pixels { width, height });
    let list = prop::sample::subsequence(vec![0, 1, -223, -239, -308], 0..5);
    prop_oneof![
        list.prop_map(|list| Step::Say(encodings(&list))),
        (any::<bool>(), pixels.clone()).prop_map(|(i, p)| Step::Say(request(i, p))),
        any::<u32>().prop_map(|keysym| Step::Say(key(keysym))),
        "[a-z\r\n]{1,100}".prop_map(Step::Print),
        pixels.prop_map(Step::Resize),
        Just(Step::Ring),
    ]
}
