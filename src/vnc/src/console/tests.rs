use std::io::{Read, Write};

use super::*;
use crate::gate::{answer, pair, question};

const SIZE: Size = Size { columns: 80, rows: 25 };

/// The console, and the keeper's end of the gate.
struct Setting {
    console: Console,
    keeper: OwnedFd,
    now: Instant,
}

impl Setting {
    fn new() -> Self {
        let (gate, keeper) = pair().unwrap();
        let now = Instant::now();
        Self { console: Console::new(gate, now), keeper, now }
    }

    /// What is asked now, and the answer to it.
    fn asks(&mut self, given: &Answer) -> (Question, Option<Said>) {
        self.console.ask(SIZE, self.now).unwrap();
        let asked = question(&self.keeper).unwrap();
        answer(&self.keeper, given).unwrap();
        (asked, self.console.hear(self.now).unwrap())
    }

    fn asks_nothing(&mut self) {
        self.console.ask(SIZE, self.now).unwrap();
        assert_eq!(self.console.asked, None);
    }

    /// Looks at a console; returns its other end.
    fn looks(&mut self) -> UnixStream {
        let (near, far) = UnixStream::pair().unwrap();
        let heard = self.asks(&Answer::Here(near.into()));
        assert_eq!(heard, (Question::Look, Some(Said::Here)));
        far
    }

    fn types(&mut self) -> UnixStream {
        let (near, far) = UnixStream::pair().unwrap();
        assert_eq!(self.asks(&Answer::Here(near.into())), (Question::Type(SIZE), None));
        far
    }

    fn reads(&mut self) -> Vec<Said> {
        let mut said = Vec::new();
        self.console.read(1 << 20, self.now, |what| said.push(what));
        said
    }
}

fn frames(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

#[test]
fn a_guest_that_is_away_is_looked_for_less_and_less_often() {
    let mut setting = Setting::new();
    let mut pauses = Vec::new();
    for _ in 0..5 {
        assert_eq!(setting.asks(&Answer::Away), (Question::Look, Some(Said::Away)));
        let again = setting.console.deadline().unwrap();
        pauses.push((again - setting.now).as_millis());
        setting.asks_nothing();
        setting.now = again;
    }
    assert_eq!(pauses, [250, 500, 1000, 2000, 2000]);
    assert_eq!(setting.asks(&Answer::NoConsole).1, Some(Said::NoConsole));
}

#[test]
fn what_is_said_arrives_in_order() {
    let mut setting = Setting::new();
    let mut far = setting.looks();
    far.write_all(&frames(&[Frame::Data(b"hello"), Frame::Gap(7)])).unwrap();
    let hello = Said::Output(b"hello".to_vec());
    assert_eq!(setting.reads(), [hello, Said::Gap, Said::CaughtUp]);
    far.write_all(&frames(&[Frame::Exit(Exit::Code(1)), Frame::Detach])).unwrap();
    assert_eq!(setting.reads(), [Said::Ended(Exit::Code(1))]);
    assert!(setting.console.viewer().is_none());
}

#[test]
fn a_broken_connection_is_lost_and_looked_for_at_once() {
    for last in [&b""[..], b"\xff\xff\xff"] {
        let mut setting = Setting::new();
        let mut far = setting.looks();
        far.write_all(last).unwrap();
        drop(far);
        assert_eq!(setting.reads(), [Said::Lost]);
        assert_eq!(setting.console.deadline(), Some(setting.now));
    }
}

#[test]
fn reading_stops_where_it_is_told() {
    let mut setting = Setting::new();
    let mut far = setting.looks();
    far.write_all(&frames(&[Frame::Data(&[b'x'; 4096])]).repeat(20)).unwrap();
    let read = setting.console.read(10_000, setting.now, |_| ());
    assert!((10_000..10_000 + PIECE).contains(&read), "{read}");
}

#[test]
fn typing_waits_for_the_role_and_is_written_whole() {
    let mut setting = Setting::new();
    let _viewer = setting.looks();
    assert_eq!(setting.console.type_bytes(b"x", setting.now), Typed::InVain, "nobody is there");
    setting.console.need_typist(true, setting.now);
    assert_eq!(setting.console.type_bytes(b"ls", setting.now), Typed::Taken);
    let mut far = setting.types();
    assert_eq!(setting.console.type_bytes(b"\r", setting.now), Typed::Taken);
    setting.console.resize(Size { columns: 100, rows: 30 });
    setting.console.flush(setting.now);
    let size = message::Size { cols: 100, rows: 30 };
    let wanted = frames(&[Frame::Data(b"ls"), Frame::Data(b"\r"), Frame::Resize(size)]);
    let mut bytes = vec![0; wanted.len()];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, wanted);
    setting.console.need_typist(false, setting.now);
    setting.console.need_typist(true, setting.now + LINGER);
    setting.console.need_typist(false, setting.now + LINGER);
    assert_eq!(
        setting.console.deadline(),
        Some(setting.now + 2 * LINGER),
        "it is kept for a while"
    );
    setting.console.need_typist(false, setting.now + 2 * LINGER);
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, frames(&[Frame::Detach]), "and given back");
}

#[test]
fn somebody_else_is_asked_again_only_when_somebody_types() {
    let mut setting = Setting::new();
    let _viewer = setting.looks();
    setting.console.need_typist(true, setting.now);
    assert_eq!(setting.asks(&Answer::Busy), (Question::Type(SIZE), None), "nothing was typed");
    assert!(setting.console.is_busy());
    assert_eq!(setting.console.type_bytes(b"x", setting.now), Typed::InVain);
    setting.now += ASK_AGAIN;
    setting.asks_nothing();
    assert_eq!(setting.console.type_bytes(b"x", setting.now), Typed::Taken);
    assert_eq!(setting.asks(&Answer::Busy), (Question::Type(SIZE), Some(Said::Busy)));
    setting.now += ASK_AGAIN;
    assert_eq!(setting.console.type_bytes(b"y", setting.now), Typed::Taken);
    let mut far = setting.types();
    assert!(!setting.console.is_busy());
    setting.console.flush(setting.now);
    let mut bytes = [0; 4];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes.as_slice(), frames(&[Frame::Data(b"y")]), "and nothing from before");
}

#[test]
fn a_role_that_was_taken_is_not_taken_back() {
    let mut setting = Setting::new();
    let _viewer = setting.looks();
    setting.console.need_typist(true, setting.now);
    let mut far = setting.types();
    far.write_all(&frames(&[Frame::Data(b"echo"), Frame::Detach])).unwrap();
    drop(far);
    setting.console.flush(setting.now);
    setting.asks_nothing();
    assert_eq!(setting.console.type_bytes(b"x", setting.now), Typed::Taken);
    let _far = setting.types();
}

#[test]
fn a_guest_that_does_not_read_loses_keys() {
    let mut setting = Setting::new();
    let _viewer = setting.looks();
    setting.console.need_typist(true, setting.now);
    let _far = setting.types();
    let mut taken = 0;
    while setting.console.type_bytes(&[b'x'; 1000], setting.now) == Typed::Taken {
        setting.console.flush(setting.now);
        taken += 1000;
        assert!(taken < 10 << 20, "it grows");
    }
    assert!(setting.console.typed.len() <= MAX_TYPED + 1000);
    assert_eq!(setting.console.type_bytes(&[b'x'; 1000], setting.now), Typed::Full);
}

#[test]
fn a_keeper_that_is_gone_is_the_end() {
    let mut setting = Setting::new();
    drop(setting.keeper);
    assert!(setting.console.hear(setting.now).is_err());
    assert!(setting.console.ask(SIZE, setting.now).is_err());
}
