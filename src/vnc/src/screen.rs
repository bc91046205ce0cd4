//! What is shown to clients: the terminal, the screen that it is on, and now and then a note of ours.

use std::time::{Duration, Instant};

use ocivisor_shim::exit::Exit;

use crate::console::Said;
use crate::font::{Glyph, HEIGHT, WIDTH};
use crate::picture::{Cell, Picture, Size};
use crate::rfb::view::Pixels;
use crate::sys;
use crate::terminal::{FIRST_SIZE, MAX_SIZE, MIN_SIZE, Terminal, View};

/// How long a note stays.
const NOTE: Duration = Duration::from_secs(4);
/// A terminal on which nothing is printed for so long rests.
const QUIET: Duration = Duration::from_secs(2);
/// Ends what a program of the guest began: the alternate screen, regions, colours, a hidden cursor.
const TIDY: &str = "\x1b[?1049l\x1b7\x1b[r\x1b[?6l\x1b8\x1b[m\x1b[4l\x1b[?7h\x1b[?25h\x1b(B\x0f";

/// The screen.
#[derive(Debug)]
pub struct Screen {
    terminal: Terminal,
    /// The terminal covers as much of it as whole characters do.
    pixels: Pixels,
    picture: Picture,
    number: u64,
    stale: bool,
    note: Option<(&'static str, Instant)>,
    /// Whether what is printed is new. What is from before must not be answered again.
    live: bool,
    /// Whether it was said already that there is no console.
    said: bool,
    /// When the terminal rests, unless something is printed until then.
    rests: Option<Instant>,
}

impl Default for Screen {
    fn default() -> Self {
        Self {
            terminal: Terminal::new(FIRST_SIZE),
            pixels: pixels(FIRST_SIZE),
            picture: Picture::new(FIRST_SIZE),
            number: 0,
            stale: true,
            note: None,
            live: false,
            said: false,
            rests: None,
        }
    }
}

impl Screen {
    /// Its size.
    #[must_use]
    pub fn pixels(&self) -> Pixels {
        self.pixels
    }

    /// The terminal on it.
    #[must_use]
    pub fn terminal(&self) -> &Terminal {
        &self.terminal
    }

    /// Makes it so large, within the limits of the terminal.
    pub fn resize(&mut self, wanted: Pixels) {
        let (least, most) = (pixels(MIN_SIZE), pixels(MAX_SIZE));
        self.pixels = Pixels {
            width: wanted.width.clamp(least.width, most.width),
            height: wanted.height.clamp(least.height, most.height),
        };
        self.terminal.resize(Size {
            columns: self.pixels.width / WIDTH as u16,
            rows: self.pixels.height / HEIGHT as u16,
        });
        self.stale = true;
    }

    /// Shows what there is to say of the console.
    pub fn hear(&mut self, said: Said, now: Instant) {
        self.stale |= said != Said::CaughtUp;
        match said {
            Said::Here => {
                self.terminal.reset();
                (self.live, self.said) = (false, false);
            }
            Said::Output(bytes) => {
                self.terminal.print(&bytes);
                self.rests = Some(now + QUIET);
            }
            Said::Gap | Said::Lost => self.terminal.cut(),
            Said::CaughtUp => self.live = true,
            Said::Ended(exit) => {
                self.terminal.cut();
                self.say(&match exit {
                    Exit::Code(code) => format!("the guest ended with code {code}"),
                    Exit::Signal(signal) => format!("the guest ended by signal {signal}"),
                    Exit::Unknown => "the guest ended".to_owned(),
                });
            }
            Said::Away => self.say("waiting for the guest"),
            Said::NoConsole => self.say("the guest's console was lost; restart the guest"),
            Said::Busy => self.note = Some(("somebody else types; you look on", now + NOTE)),
        }
        if !self.live {
            drop(self.terminal.take_answers());
        }
    }

    /// Says something on the terminal, once until the console is there again.
    fn say(&mut self, what: &str) {
        if !std::mem::replace(&mut self.said, true) {
            self.terminal.print(format!("{TIDY}\r\n[ocivisor: {what}]\r\n").as_bytes());
        }
    }

    /// Looks elsewhere.
    pub fn look(&mut self, view: View) {
        self.terminal.look(view);
        self.stale = true;
    }

    /// What the guest is to be answered.
    pub fn take_answers(&mut self) -> Vec<u8> {
        self.terminal.take_answers()
    }

    /// Whether the guest rang.
    pub fn take_bell(&mut self) -> bool {
        self.terminal.take_bell() && self.live
    }

    /// When to [`tick`](Self::tick) though nothing came.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.note.map(|(_, until)| until).into_iter().chain(self.rests).min()
    }

    /// Lets notes go whose time is over, and the terminal rest.
    pub fn tick(&mut self, now: Instant) {
        if self.rests.is_some_and(|rests| rests <= now) {
            self.rests = None;
            self.terminal.rest();
            sys::trim_heap();
        }
        if self.note.is_some_and(|(_, until)| until <= now) {
            self.note = None;
            self.stale = true;
        }
    }

    /// Less memory is needed from now on.
    pub fn rest_soon(&mut self, now: Instant) {
        self.rests.get_or_insert(now + QUIET);
    }

    /// The number of the picture that would be shown now.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number + u64::from(self.stale)
    }

    /// Paints the picture anew, if it changed.
    pub fn refresh(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        self.number += 1;
        self.picture = self.terminal.picture();
        let Some((note, _)) = self.note else { return };
        let last = self.picture.size().rows.saturating_sub(1);
        let text = note.chars().chain(std::iter::repeat(' '));
        for (cell, character) in self.picture.row_mut(last).iter_mut().zip(text) {
            let (foreground, background) = (Cell::BLANK.background, Cell::BLANK.foreground);
            *cell = Cell { glyph: Glyph::of(character), foreground, background, ..Cell::BLANK };
        }
    }

    /// The picture as it was painted last.
    #[must_use]
    pub fn picture(&self) -> &Picture {
        &self.picture
    }
}

fn pixels(size: Size) -> Pixels {
    // The largest is 4096 by 2160.
    Pixels { width: size.columns * WIDTH as u16, height: size.rows * HEIGHT as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(said: impl IntoIterator<Item = Said>) -> Screen {
        let mut screen = Screen::default();
        said.into_iter().for_each(|said| screen.hear(said, Instant::now()));
        screen.refresh();
        screen
    }

    fn output(text: &str) -> Said {
        Said::Output(text.as_bytes().to_vec())
    }

    /// The rows that are not empty.
    fn rows(screen: &Screen) -> Vec<String> {
        let known: Vec<(Glyph, char)> = (' '..='~').map(|c| (Glyph::of(c), c)).collect();
        let name = |cell: &Cell| known.iter().find(|k| k.0 == cell.glyph).map_or('?', |k| k.1);
        let row = |row| screen.picture().row(row).iter().map(name).collect::<String>();
        let all = (0..screen.picture().size().rows).map(row);
        all.map(|row| row.trim_end().to_owned()).filter(|row| !row.is_empty()).collect()
    }

    #[test]
    fn the_end_is_said_once_and_a_new_console_begins_anew() {
        let vim = output("\x1b[?1049h\x1b[?25lvim\x1b]0;ti");
        let ended = Said::Ended(Exit::Code(3));
        let mut screen = heard([Said::Here, output("login:"), vim, ended, Said::Away, Said::Away]);
        assert_eq!(rows(&screen), ["login:", "[ocivisor: the guest ended with code 3]"]);
        for said in [Said::Here, output("second boot")] {
            screen.hear(said, Instant::now());
        }
        screen.refresh();
        assert_eq!(rows(&screen), ["second boot"]);
        let killed = heard([Said::Ended(Exit::Signal(9))]);
        assert_eq!(rows(&killed), ["[ocivisor: the guest ended by signal 9]"]);
        assert_eq!(rows(&heard([Said::Away])), ["[ocivisor: waiting for the guest]"]);
    }

    #[test]
    fn old_questions_are_not_answered_again() {
        let mut screen = heard([Said::Here, output("\x1b[6n\x07")]);
        assert_eq!((screen.take_answers(), screen.take_bell()), (vec![], false));
        for said in [Said::CaughtUp, output("\x1b[6n\x07")] {
            screen.hear(said, Instant::now());
        }
        assert_eq!((screen.take_answers(), screen.take_bell()), (b"\x1b[1;1R".to_vec(), true));
    }

    #[test]
    fn notes_cover_the_last_row_for_a_while() {
        let (mut screen, now) = (Screen::default(), Instant::now());
        screen.hear(output("\x1b[25;1Hlast row\x1b[?25l"), now);
        screen.hear(Said::Busy, now);
        screen.refresh();
        assert_eq!(rows(&screen), ["somebody else types; you look on"]);
        assert_eq!(screen.deadline(), Some(now + QUIET));
        screen.tick(now + QUIET);
        assert_eq!(screen.deadline(), Some(now + NOTE));
        let number = screen.number();
        screen.tick(now + NOTE);
        assert_eq!(screen.number(), number + 1);
        screen.refresh();
        assert_eq!((rows(&screen), screen.deadline()), (vec!["last row".to_owned()], None));
    }

    #[test]
    fn pictures_are_counted_when_they_change() {
        let mut screen = heard([output("a")]);
        let number = screen.number();
        screen.refresh();
        screen.hear(Said::CaughtUp, Instant::now());
        assert_eq!(screen.number(), number);
        screen.hear(output("b"), Instant::now());
        assert_eq!(screen.number(), number + 1);
        screen.refresh();
        assert_eq!(screen.number(), number + 1);
    }

    #[test]
    fn the_screen_is_as_large_as_asked_within_limits() {
        for ((width, height), (columns, rows)) in
            [((803, 607), (100, 37)), ((1, 1), (20, 5)), ((u16::MAX, u16::MAX), (512, 135))]
        {
            let mut screen = Screen::default();
            screen.resize(Pixels { width, height });
            assert_eq!(screen.terminal().size(), Size { columns, rows });
        }
        let mut screen = Screen::default();
        screen.resize(Pixels { width: 803, height: 607 });
        assert_eq!(screen.pixels(), Pixels { width: 803, height: 607 });
    }
}
