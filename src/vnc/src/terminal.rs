//! The terminal that a guest's console is shown on.
//!
//! The emulation is `alacritty_terminal`'s: a library of its own with releases, used by several terminals and editors.
//! (`vt100` is smaller, but has no line-drawing characters and answers no request, which installers and systemd's first
//! boot rely on.) Around it stands what it takes to feed it by an attacker:
//!
//! - Control strings never reach it: [`crate::strings`]. With them go titles, clipboards, palettes and pictures.
//! - Of what is left it is told only what [`Allowed`] passes on, an allow-list by type: no titles, no links, no keyboard
//!   protocols, no colours of underlines, no character that has no width. The last would pile up in one cell for ever
//!   (version 0.26 sets no limit).
//! - Synchronized updates are shown as they come: the library would hold up to 2 MiB back for 150 ms, and clients are
//!   sent at most thirty pictures a second anyway.
//! - Size, scrollback and answers are bounded, and so is what a few bytes can have done many times: [`allowed`]. What a
//!   piece takes nevertheless is measured by whoever prints it: [`crate::portion`].
//!
//! The guest's environment says `TERM=xterm`, and keys are sent accordingly: [`crate::keys`].

mod allowed;

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use alacritty_terminal::event::{Event, EventListener};
use alacritty_terminal::grid::{Dimensions, Scroll};
use alacritty_terminal::index::{Column, Line};
use alacritty_terminal::term::cell::{self, Flags};
use alacritty_terminal::term::{Config, Term, TermMode};
use alacritty_terminal::vte::ansi::{CursorShape, Processor, Timeout};

use self::allowed::Allowed;
use crate::colour::{Light, rgb};
use crate::font::Glyph;
use crate::picture::{Cell, Picture, Size, Style};
use crate::strings::Strings;

/// As a PC shows text when it is switched on.
pub const FIRST_SIZE: Size = Size { columns: 80, rows: 25 };
/// Smallest size; programs misbehave below.
pub const MIN_SIZE: Size = Size { columns: 20, rows: 5 };
/// Largest size: a monitor of 4096 by 2160 pixels.
pub const MAX_SIZE: Size = Size { columns: 512, rows: 135 };
/// Lines that were scrolled off the screen and can be looked at again.
const SCROLLBACK: usize = 500;
/// Bytes of answers to the guest that wait to be fetched.
const MAX_ANSWERS: usize = 1024;
/// Bytes that are interpreted at once. What they may have repeated is bounded for each such piece.
const PIECE: usize = 512;

/// The terminal.
pub struct Terminal {
    term: Term<Ear>,
    parser: Processor<Never>,
    strings: Strings,
    plain: Vec<u8>,
    heard: Rc<RefCell<Heard>>,
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").field("size", &self.size()).finish_non_exhaustive()
    }
}

/// What the guest's programs asked for, as far as keys and mice must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes(TermMode);

impl Modes {
    /// No mode at all.
    pub const NONE: Self = Self(TermMode::NONE);

    /// Cursor keys are told in the application's way (DECCKM).
    #[must_use]
    pub fn application_cursor(self) -> bool {
        self.0.contains(TermMode::APP_CURSOR)
    }

    /// Return is carriage return and line feed (LNM).
    #[must_use]
    pub fn line_feed(self) -> bool {
        self.0.contains(TermMode::LINE_FEED_NEW_LINE)
    }

    /// Pasted text is to be told from typed text.
    #[must_use]
    pub fn bracketed_paste(self) -> bool {
        self.0.contains(TermMode::BRACKETED_PASTE)
    }

    /// The screen of full-screen programs, which has no scrollback.
    #[must_use]
    pub fn alternate_screen(self) -> bool {
        self.0.contains(TermMode::ALT_SCREEN)
    }

    /// The wheel becomes cursor keys on the alternate screen.
    #[must_use]
    pub fn alternate_scroll(self) -> bool {
        self.0.contains(TermMode::ALT_SCREEN | TermMode::ALTERNATE_SCROLL)
    }

    /// Buttons of the mouse are told.
    #[must_use]
    pub fn mouse(self) -> bool {
        self.0.intersects(TermMode::MOUSE_MODE)
    }

    /// Movements with a button held are told.
    #[must_use]
    pub fn mouse_drag(self) -> bool {
        self.0.intersects(TermMode::MOUSE_DRAG | TermMode::MOUSE_MOTION)
    }

    /// All movements are told.
    #[must_use]
    pub fn mouse_motion(self) -> bool {
        self.0.contains(TermMode::MOUSE_MOTION)
    }

    /// The mouse is told in xterm's newer form.
    #[must_use]
    pub fn mouse_sgr(self) -> bool {
        self.0.contains(TermMode::SGR_MOUSE)
    }
}

/// Where to look in the scrollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// So many lines up; down if negative.
    Lines(i32),
    /// A screenful up.
    PageUp,
    /// A screenful down.
    PageDown,
    /// The oldest line.
    Top,
    /// Where the guest prints.
    Bottom,
}

impl Terminal {
    /// An empty terminal. The size is brought within the limits.
    #[must_use]
    pub fn new(size: Size) -> Self {
        let heard = Rc::new(RefCell::new(Heard::default()));
        let config = Config { scrolling_history: SCROLLBACK, ..Config::default() };
        let term = Term::new(config, &Within::limits(size), Ear(Rc::clone(&heard)));
        let (parser, strings) = (Processor::new(), Strings::default());
        Self { term, parser, strings, plain: Vec::new(), heard }
    }

    /// Its size.
    #[must_use]
    pub fn size(&self) -> Size {
        // Both are within the limits, see `Within`.
        let columns = u16::try_from(self.term.columns()).unwrap_or(MAX_SIZE.columns);
        let rows = u16::try_from(self.term.screen_lines()).unwrap_or(MAX_SIZE.rows);
        Size { columns, rows }
    }

    /// Makes it so large, within the limits.
    pub fn resize(&mut self, size: Size) {
        self.term.resize(Within::limits(size));
    }

    /// Shows what the guest printed.
    pub fn print(&mut self, bytes: &[u8]) {
        // In pieces, so that what is left of strings does not need memory for all.
        for piece in bytes.chunks(PIECE) {
            self.plain.clear();
            self.strings.filter(piece, &mut self.plain);
            self.parser.advance(&mut Allowed::new(&mut self.term, self.plain.len()), &self.plain);
        }
    }

    /// Makes it as new, of the same size.
    pub fn reset(&mut self) {
        self.cut();
        // RIS: modes, colours, both screens and the scrollback.
        self.parser.advance(&mut Allowed::new(&mut self.term, 0), b"\x1bc");
        *self.heard.borrow_mut() = Heard::default();
    }

    /// Ends the sequence that was being printed, because the rest of it is lost.
    pub fn cut(&mut self) {
        self.strings.cut();
        // CAN, which every state of a parser hears.
        self.parser.advance(&mut Allowed::new(&mut self.term, 0), &[0x18]);
    }

    /// Gives memory back that the next lines would need: the library makes rows for the scrollback a thousand at a
    /// time, two megabytes at the least, which adds up over many idle guests.
    pub fn rest(&mut self) {
        self.term.grid_mut().truncate();
        self.plain = Vec::new();
    }

    /// Looks elsewhere.
    pub fn look(&mut self, view: View) {
        self.term.scroll_display(match view {
            View::Lines(lines) => Scroll::Delta(lines.clamp(-1000, 1000)),
            View::PageUp => Scroll::PageUp,
            View::PageDown => Scroll::PageDown,
            View::Top => Scroll::Top,
            View::Bottom => Scroll::Bottom,
        });
    }

    /// What programs asked for.
    #[must_use]
    pub fn modes(&self) -> Modes {
        Modes(*self.term.mode())
    }

    /// What the guest was promised to be told: its cursor's place, what terminal this is.
    #[must_use]
    pub fn take_answers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.heard.borrow_mut().answers)
    }

    /// Whether it rang since the last time.
    #[must_use]
    pub fn take_bell(&mut self) -> bool {
        std::mem::take(&mut self.heard.borrow_mut().bell)
    }

    /// What is to be seen.
    #[must_use]
    pub fn picture(&self) -> Picture {
        let mut picture = Picture::new(self.size());
        let grid = self.term.grid();
        // The library moves the offset with every line that scrolls, also with those that the scrollback does not
        // get because only a part of the screen moves (version 0.26).
        let offset = grid.display_offset().min(grid.history_size());
        for row in 0..self.size().rows {
            let line = &grid[Line(i32::from(row) - i32::try_from(offset).unwrap_or(0))];
            for (column, cell) in picture.row_mut(row).iter_mut().enumerate() {
                *cell = painted(&line[Column(column)]);
            }
        }
        let cursor = self.term.renderable_content().cursor;
        let row = cursor.point.line.0.saturating_add_unsigned(u32::try_from(offset).unwrap_or(0));
        if let Ok(row) = u16::try_from(row)
            && let Some(cell) = picture.row_mut(row).get_mut(cursor.point.column.0)
        {
            match cursor.shape {
                CursorShape::Block | CursorShape::HollowBlock => {
                    std::mem::swap(&mut cell.foreground, &mut cell.background);
                    if cell.foreground == cell.background {
                        cell.background = !cell.background & 0x00ff_ffff;
                    }
                }
                CursorShape::Underline => cell.style = cell.style.with(Style::CURSOR_BELOW),
                CursorShape::Beam => cell.style = cell.style.with(Style::CURSOR_BEFORE),
                CursorShape::Hidden => {}
            }
        }
        picture
    }
}

fn painted(cell: &cell::Cell) -> Cell {
    let bold = cell.flags.contains(Flags::BOLD);
    let light = match () {
        () if cell.flags.contains(Flags::DIM) => Light::Dim,
        () if bold => Light::Bright,
        () => Light::Normal,
    };
    let mut shown = Cell {
        glyph: Glyph::BLANK,
        style: Style::default(),
        foreground: rgb(cell.fg, light),
        background: rgb(cell.bg, Light::Normal),
    };
    if cell.flags.contains(Flags::INVERSE) {
        std::mem::swap(&mut shown.foreground, &mut shown.background);
    }
    let spacer = Flags::WIDE_CHAR_SPACER | Flags::LEADING_WIDE_CHAR_SPACER;
    if !cell.flags.intersects(spacer | Flags::HIDDEN) && cell.c > ' ' {
        shown.glyph = Glyph::of(cell.c);
    }
    for (flags, style) in [
        (Flags::BOLD, Style::BOLD),
        (Flags::ALL_UNDERLINES, Style::UNDERLINE),
        (Flags::STRIKEOUT, Style::STRIKE),
    ] {
        if cell.flags.intersects(flags) {
            shown.style = shown.style.with(style);
        }
    }
    shown
}

/// A size within the limits.
struct Within(Size);

impl Within {
    fn limits(size: Size) -> Self {
        Self(Size {
            columns: size.columns.clamp(MIN_SIZE.columns, MAX_SIZE.columns),
            rows: size.rows.clamp(MIN_SIZE.rows, MAX_SIZE.rows),
        })
    }
}

impl Dimensions for Within {
    fn total_lines(&self) -> usize {
        self.screen_lines()
    }

    fn screen_lines(&self) -> usize {
        self.0.rows.into()
    }

    fn columns(&self) -> usize {
        self.0.columns.into()
    }
}

/// What the emulation says to whoever runs it.
#[derive(Debug, Default)]
struct Heard {
    answers: Vec<u8>,
    bell: bool,
}

struct Ear(Rc<RefCell<Heard>>);

impl EventListener for Ear {
    fn send_event(&self, event: Event) {
        let mut heard = self.0.borrow_mut();
        match event {
            // Whole or not at all: half an answer reads like keys.
            Event::PtyWrite(text) if heard.answers.len() + text.len() <= MAX_ANSWERS => {
                heard.answers.extend_from_slice(text.as_bytes());
            }
            Event::Bell => heard.bell = true,
            // Titles, clipboards and colours; we allow no sequence that leads to them.
            _ => {}
        }
    }
}

/// No synchronized update ever waits, see the module's comment.
#[derive(Default)]
struct Never;

impl Timeout for Never {
    fn set_timeout(&mut self, _: Duration) {}

    fn clear_timeout(&mut self) {}

    fn pending_timeout(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
