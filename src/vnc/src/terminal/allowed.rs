//! What of the emulation a guest may use, and how often.
//!
//! A sequence of a few bytes says how often a thing is to be done, up to 65535 times: a character repeated (REP), a
//! cursor moved over tabulators of which there are none (CBT). The emulator obeys. So counts are cut to what can make a
//! difference: a screenful of repeated characters for each piece of output, no step further when one led nowhere.

use alacritty_terminal::grid::Dimensions;
use alacritty_terminal::term::Term;
use alacritty_terminal::vte::ansi::{
    Attr, CharsetIndex, ClearMode, CursorShape, CursorStyle, Handler, LineClearMode, Mode,
    PrivateMode, StandardCharset, TabulationClearMode,
};
use unicode_width::UnicodeWidthChar;

use super::Ear;

/// The functions of the terminal that a guest may use. What is not named here does nothing.
pub(super) struct Allowed<'a> {
    term: &'a mut Term<Ear>,
    /// Characters that may still be shown.
    characters: usize,
}

impl<'a> Allowed<'a> {
    /// For a piece of so many bytes: each may show a character, and a screenful may be repeated besides.
    pub(super) fn new(term: &'a mut Term<Ear>, bytes: usize) -> Self {
        let characters = bytes + term.columns() * term.screen_lines();
        Self { term, characters }
    }
}

/// Takes a step at most so many times, and no more when one led nowhere.
fn until_still<T: PartialEq>(count: u16, mut step: impl FnMut() -> (T, T)) {
    for _ in 0..count {
        let (before, after) = step();
        if before == after {
            return;
        }
    }
}

macro_rules! pass_on {
    ($($name:ident($($arg:ident: $type:ty),*);)*) => {
        $(fn $name(&mut self, $($arg: $type),*) {
            Handler::$name(self.term, $($arg),*);
        })*
    };
}

impl Handler for Allowed<'_> {
    fn input(&mut self, c: char) {
        // First of all: a repetition comes here 65535 times for eight bytes.
        if self.characters > 0 && c.width().unwrap_or(0) > 0 {
            self.characters -= 1;
            Handler::input(self.term, c);
        }
    }

    fn move_backward_tabs(&mut self, count: u16) {
        until_still(count, || {
            let before = self.term.grid().cursor.point.column;
            Handler::move_backward_tabs(self.term, 1);
            (before, self.term.grid().cursor.point.column)
        });
    }

    fn move_forward_tabs(&mut self, count: u16) {
        until_still(count, || {
            let before = self.term.grid().cursor.point.column;
            Handler::move_forward_tabs(self.term, 1);
            (before, self.term.grid().cursor.point.column)
        });
    }

    fn scroll_up(&mut self, lines: usize) {
        Handler::scroll_up(self.term, lines.min(self.term.screen_lines()));
    }

    fn scroll_down(&mut self, lines: usize) {
        Handler::scroll_down(self.term, lines.min(self.term.screen_lines()));
    }

    fn insert_blank_lines(&mut self, lines: usize) {
        Handler::insert_blank_lines(self.term, lines.min(self.term.screen_lines()));
    }

    fn put_tab(&mut self, count: u16) {
        let columns = u16::try_from(self.term.columns()).unwrap_or(u16::MAX);
        Handler::put_tab(self.term, count.min(columns));
    }

    fn terminal_attribute(&mut self, attr: Attr) {
        if !matches!(attr, Attr::UnderlineColor(_)) {
            Handler::terminal_attribute(self.term, attr);
        }
    }

    pass_on! {
        // Printing and moving.
        goto(line: i32, column: usize);
        goto_line(line: i32);
        goto_col(column: usize);
        move_up(lines: usize);
        move_down(lines: usize);
        move_forward(columns: usize);
        move_backward(columns: usize);
        move_down_and_cr(lines: usize);
        move_up_and_cr(lines: usize);
        backspace();
        carriage_return();
        linefeed();
        newline();
        reverse_index();
        substitute();
        bell();
        save_cursor_position();
        restore_cursor_position();
        // Inserting, deleting, scrolling.
        insert_blank(count: usize);
        delete_lines(lines: usize);
        delete_chars(count: usize);
        erase_chars(count: usize);
        clear_line(mode: LineClearMode);
        clear_screen(mode: ClearMode);
        set_scrolling_region(top: usize, bottom: Option<usize>);
        decaln();
        // Tabulators.
        set_horizontal_tabstop();
        set_tabs(interval: u16);
        clear_tabs(mode: TabulationClearMode);
        // Modes, characters, the cursor's shape.
        set_mode(mode: Mode);
        unset_mode(mode: Mode);
        set_private_mode(mode: PrivateMode);
        unset_private_mode(mode: PrivateMode);
        set_keypad_application_mode();
        unset_keypad_application_mode();
        set_active_charset(index: CharsetIndex);
        configure_charset(index: CharsetIndex, charset: StandardCharset);
        set_cursor_style(style: Option<CursorStyle>);
        set_cursor_shape(shape: CursorShape);
        reset_state();
        // Questions whose answers are numbers that we choose.
        identify_terminal(intermediate: Option<char>);
        device_status(kind: usize);
        report_mode(mode: Mode);
        report_private_mode(mode: PrivateMode);
        text_area_size_chars();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_lead_nowhere_are_not_repeated() {
        for (wall, taken) in [(0, 1), (3, 4), (100, 7)] {
            let (mut at, mut steps) = (0, 0);
            until_still(7, || {
                let before = at;
                at = wall.min(at + 1);
                steps += 1;
                (before, at)
            });
            assert_eq!((at, steps), (wall.min(7), taken));
        }
    }
}
