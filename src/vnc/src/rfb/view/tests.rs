//! A client is imagined: it has pixels, follows updates, and must end with those of the picture.

use proptest::prelude::*;

use super::*;
use crate::picture::Size;
use crate::terminal::Terminal;

struct Client {
    view: View,
    screen: Vec<u32>,
    copying: Copying,
}

/// What an update consisted of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sent {
    copied: Option<Copied>,
    rectangles: Vec<Region>,
}

impl Client {
    fn new(pixels: Pixels) -> Self {
        let screen = vec![0xdead_beef; usize::from(pixels.width) * usize::from(pixels.height)];
        Self { view: View::new(pixels), screen, copying: Copying::Able }
    }

    fn width(&self) -> usize {
        self.view.pixels.width.into()
    }

    fn request(&mut self, incremental: bool) {
        self.view.want(self.view.pixels.all(), incremental);
    }

    fn update(&mut self, picture: &Picture) -> Option<Sent> {
        let plan = self.view.plan(picture, self.copying)?;
        let mut sent = Sent { copied: plan.copy, rectangles: Vec::new() };
        if let Some(copy) = plan.copy {
            let (width, rows) = (self.width(), usize::from(copy.to.height));
            assert_eq!((copy.to.x, usize::from(copy.to.width)), (0, width));
            let from = usize::from(copy.from_y) * width;
            self.screen.copy_within(from..from + rows * width, usize::from(copy.to.y) * width);
        }
        let mut pixels = Vec::new();
        while let Some(region) = self.view.next_rectangle(picture, &mut pixels) {
            let (x, width) = (usize::from(region.x), usize::from(region.width));
            assert!(width <= MAX_WIDTH && usize::from(region.height) <= MAX_HEIGHT);
            for (n, row) in pixels.chunks(width).enumerate() {
                let at = (usize::from(region.y) + n) * self.width() + x;
                self.screen[at..at + width].copy_from_slice(row);
            }
            assert_eq!(pixels.len(), width * usize::from(region.height));
            sent.rectangles.push(region);
        }
        assert_eq!(sent.rectangles.len(), usize::from(plan.rectangles));
        Some(sent)
    }

    /// Whether it shows the picture and nothing else.
    fn shows(&self, picture: &Picture) -> bool {
        let Pixels { width, height } = self.view.pixels;
        let area = Area { column: 0, row: 0, columns: self.view.columns, rows: self.view.rows };
        let mut wanted = Vec::new();
        picture.paint(area, width.into(), height.into(), &mut wanted);
        wanted == self.screen
    }
}

const SMALL: Size = Size { columns: 20, rows: 6 };
const FITTING: Pixels = Pixels { width: 160, height: 96 };

fn printed(text: &str) -> Picture {
    let mut terminal = Terminal::new(SMALL);
    terminal.print(text.as_bytes());
    terminal.picture()
}

fn region(x: u16, y: u16, width: u16, height: u16) -> Region {
    Region { x, y, width, height }
}

#[test]
fn the_first_update_is_everything_and_the_next_what_changed() {
    let mut client = Client::new(FITTING);
    assert_eq!(client.update(&printed("")), None, "not asked for");
    client.request(true);
    let sent = client.update(&printed("\x1b[?25lhello")).unwrap();
    assert_eq!(sent.rectangles, [region(0, 0, 160, 64), region(0, 64, 160, 32)]);
    client.request(true);
    assert_eq!(client.update(&printed("\x1b[?25lhello")), None, "nothing changed");
    let sent = client.update(&printed("\x1b[?25lhallo")).unwrap();
    assert_eq!(sent.rectangles, [region(8, 0, 8, 16)]);
    assert_eq!(client.update(&printed("other")), None, "not asked for again");
}

#[test]
fn near_differences_are_one_rectangle_and_far_ones_two() {
    let mut client = Client::new(FITTING);
    client.request(true);
    client.update(&printed("\x1b[?25l")).unwrap();
    client.request(true);
    let picture = printed("\x1b[?25l\x1b[2;2Ha\x1b[2;7Hb\x1b[2;13Hc\x1b[3;13Hd");
    let sent = client.update(&picture).unwrap();
    assert_eq!(sent.rectangles, [region(8, 16, 48, 16), region(96, 16, 8, 32)]);
    assert!(client.shows(&picture));
}

#[test]
fn a_request_that_is_not_incremental_is_answered_in_full() {
    let (mut client, picture) = (Client::new(FITTING), printed("hello"));
    client.request(true);
    client.update(&picture);
    client.view.want(region(9, 17, 16, 1), false);
    assert_eq!(client.update(&picture).unwrap().rectangles, [region(8, 16, 24, 16)]);
}

#[test]
fn only_what_was_asked_for_is_sent() {
    let mut client = Client::new(FITTING);
    client.view.want(region(0, 0, 8, 16), true);
    client.view.want(region(150, 90, 500, 500), true);
    assert_eq!(client.update(&printed("x")).unwrap().rectangles.len(), 2, "the box around both");
    for nowhere in [
        region(160, 0, 8, 8),
        region(0, 96, 8, 8),
        region(0, 0, 0, 5),
        region(u16::MAX, u16::MAX, u16::MAX, u16::MAX),
    ] {
        client.view.want(nowhere, false);
        assert!(!client.view.is_wanted(), "{nowhere:?}");
    }
    client.view.want(region(0, 0, 8, 16), true);
    let sent = client.update(&printed("xy")).map(|sent| sent.rectangles);
    assert_eq!(sent, None, "the change is elsewhere");
}

#[test]
fn scrolling_is_copied() {
    let lines: Vec<String> = (0..9).map(|n| format!("line {n}")).collect();
    let at = |n: usize| printed(&format!("\x1b[?25l{}", lines[n..n + 6].join("\r\n")));
    let mut client = Client::new(FITTING);
    for (n, copied) in [(0, None), (2, Some((0, 32))), (1, Some((16, 0)))] {
        client.request(true);
        let sent = client.update(&at(n)).unwrap();
        assert_eq!(sent.copied.map(|copy| (copy.to.y, copy.from_y)), copied);
        assert!(client.shows(&at(n)));
    }
    // Who cannot copy is sent pixels.
    client.copying = Copying::Unable;
    client.request(true);
    assert_eq!(client.update(&at(3)).unwrap().copied, None);
    assert!(client.shows(&at(3)));
}

#[test]
fn screens_larger_and_smaller_than_the_picture_are_filled() {
    let picture = printed("hello\r\nworld");
    for (width, height) in [(161, 97), (1000, 500), (155, 90), (9, 17), (1, 1), (5000, 20)] {
        let mut client = Client::new(Pixels { width, height });
        client.request(true);
        client.update(&picture).unwrap();
        assert!(client.shows(&picture), "{width}x{height}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_is_printed_is_shown(
        pieces in prop::collection::vec("(\x1b\\[[0-9]{0,2}[ABCDHJKLMPSTX@m]|[a-z ]{1,9}|\r\n){1,12}", 1..12),
        (width, height) in (150_u16..170, 80_u16..120),
        copies: bool,
    ) {
        let mut client = Client::new(Pixels { width, height });
        client.copying = if copies { Copying::Able } else { Copying::Unable };
        let mut terminal = Terminal::new(SMALL);
        for piece in pieces {
            terminal.print(piece.as_bytes());
            client.request(true);
            let picture = terminal.picture();
            client.update(&picture);
            prop_assert!(client.shows(&picture));
        }
    }
}

#[test]
fn what_a_client_lost_is_sent_once_however_often_it_says_so() {
    let picture = Terminal::new(SMALL).picture();
    let mut client = Client::new(Pixels { width: 160, height: 96 });
    client.request(true);
    client.update(&picture);
    for _ in 0..100 {
        client.request(false);
    }
    assert!(client.view.shown.iter().all(Option::is_some), "nothing is done for each of them");
    assert!(client.update(&picture).is_some());
    client.request(true);
    assert_eq!(client.update(&picture), None);
}
