//! What a client says, from its first byte, while a guest prints now and then.
#![no_main]

use std::time::{Duration, Instant};

use ocivisor_vnc::rfb::auth::{Book, Secret};
use ocivisor_vnc::rfb::client::{Client, Scene, Surroundings};
use ocivisor_vnc::screen::Screen;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (mut now, mut screen, mut book) = (Instant::now(), Screen::default(), Book::default());
    let mut client = Client::new([192, 0, 2, 7].into(), now);
    let mut rest = bytes;
    while !rest.is_empty() && client.wants() > 0 {
        let (piece, after) = rest.split_at(client.wants().min(rest.len()).min(64));
        rest = after;
        let mut around = Surroundings {
            secret: &Secret::None,
            book: &mut book,
            room: true,
            name: "fuzz",
            pixels: screen.pixels(),
            size: screen.terminal().size(),
            modes: screen.terminal().modes(),
        };
        if client.receive(piece, &mut around, now, &mut Vec::new()).is_err() {
            return;
        }
        screen.hear(ocivisor_vnc::console::Said::Output(piece.to_vec()), now);
        screen.refresh();
        let (picture, number, pixels) = (screen.picture(), screen.number(), screen.pixels());
        client.show(Scene { picture, number, pixels, clients: 1 }, now).expect("zlib works");
        assert!(client.output().len() < 1 << 20);
        client.wrote(usize::MAX);
        now += Duration::from_millis(40);
    }
});
