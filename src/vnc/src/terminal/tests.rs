use super::*;
use crate::colour::{BACKGROUND, FOREGROUND};

fn shown(bytes: &[u8]) -> Terminal {
    let mut terminal = Terminal::new(Size { columns: 20, rows: 5 });
    terminal.print(bytes);
    terminal
}

/// The characters of the first row, found again by their glyphs.
fn text(picture: &Picture, row: u16) -> String {
    let known: Vec<(Glyph, char)> =
        (' '..='~').chain("äé┌─┐".chars()).map(|c| (Glyph::of(c), c)).collect();
    let name = |glyph| known.iter().find(|(known, _)| *known == glyph).map_or('?', |(_, c)| *c);
    let line: String = picture.row(row).iter().map(|cell| name(cell.glyph)).collect();
    line.trim_end().to_owned()
}

fn first(bytes: &[u8]) -> String {
    text(&shown(bytes).picture(), 0)
}

#[test]
fn text_is_where_it_was_put() {
    let picture = shown("login: \x1b[2;5Häé\x1b[5;18Habc".as_bytes()).picture();
    assert_eq!(
        [0, 1, 2, 4].map(|row| text(&picture, row)),
        ["login:", "    äé", "", "                 abc"]
    );
}

#[test]
fn line_drawing_wide_and_invalid_characters() {
    assert_eq!(first(b"\x1b(0lqk\x1b(B."), "┌─┐.");
    // A wide character without a glyph, and the cell that belongs to it.
    assert_eq!(first("a漢b".as_bytes()), "a? b");
    assert_eq!(first(b"a\xff\xc3b"), "a??b");
}

#[test]
fn a_scrolled_part_of_the_screen_leads_nobody_out_of_the_scrollback() {
    let mut terminal = shown(b"1\r\n2\r\n3\r\n4\r\n5\r\n6");
    terminal.look(View::Top);
    assert_eq!(text(&terminal.picture(), 0), "1");
    terminal.print(b"\x1b[2;4r\x1b[4;1H\n\n\n\n\n");
    assert_eq!(text(&terminal.picture(), 0), "1");
    terminal.look(View::Bottom);
    assert_eq!(text(&terminal.picture(), 0), "2");
}

#[test]
fn colours_and_styles_reach_the_picture() {
    let picture =
        shown(b"\x1b[1;34mA\x1b[0;4;7mB\x1b[0;9;38;2;1;2;3mC\x1b[0;8mD\x1b[0;48;5;196m \x1b[0m")
            .picture();
    let cell = |column| picture.cell(column, 0);
    let named = |c| Glyph::of(c);
    assert_eq!(
        cell(0),
        Cell { glyph: named('A'), style: Style::BOLD, foreground: 0x55_55ff, background: 0 }
    );
    assert_eq!(
        cell(1),
        Cell {
            glyph: named('B'),
            style: Style::UNDERLINE,
            foreground: BACKGROUND,
            background: FOREGROUND
        }
    );
    assert_eq!((cell(2).style, cell(2).foreground), (Style::STRIKE, 0x01_0203));
    assert_eq!(cell(3).glyph, Glyph::BLANK);
    assert_eq!(cell(4).background, 0xff_0000);
}

#[test]
fn the_cursor_has_its_shape_and_hides() {
    let at_cursor = |bytes: &[u8]| shown(bytes).picture().cell(1, 0);
    let block = Cell { foreground: BACKGROUND, background: FOREGROUND, ..Cell::BLANK };
    assert_eq!(at_cursor(b"a"), block);
    assert_eq!(at_cursor(b"a\x1b[4 q").style, Style::CURSOR_BELOW);
    assert_eq!(at_cursor(b"a\x1b[6 q").style, Style::CURSOR_BEFORE);
    assert_eq!(at_cursor(b"a\x1b[?25l"), Cell::BLANK);
    // Of one colour with what is below it, it is seen nevertheless.
    let cell = at_cursor(b"\x1b[30;40m  \x1b[D");
    assert_ne!(cell.foreground, cell.background);
}

#[test]
fn the_alternate_screen_comes_and_goes() {
    let mut terminal = shown(b"shell\x1b[?1049h\x1b[Hvim");
    assert_eq!(text(&terminal.picture(), 0), "vim");
    assert!(terminal.modes().alternate_screen());
    terminal.print(b"\x1b[?1049l");
    assert_eq!(text(&terminal.picture(), 0), "shell");
}

#[test]
fn the_scrollback_is_looked_at_and_left() {
    let mut terminal = shown(b"one\r\ntwo\r\nthree\r\nfour\r\nfive\r\nsix\r\nseven");
    let top = |terminal: &Terminal| text(&terminal.picture(), 0);
    assert_eq!(top(&terminal), "three");
    terminal.look(View::Lines(1));
    assert_eq!(top(&terminal), "two");
    terminal.look(View::Top);
    assert_eq!(top(&terminal), "one");
    terminal.look(View::Bottom);
    assert_eq!(top(&terminal), "three");
    assert_eq!(terminal.picture().cell(5, 4).background, FOREGROUND, "the cursor");
}

#[test]
fn sizes_stay_within_the_limits() {
    let mut terminal = shown(b"hello");
    for (wanted, got) in [
        (Size { columns: 0, rows: 0 }, MIN_SIZE),
        (Size { columns: u16::MAX, rows: u16::MAX }, MAX_SIZE),
        (Size { columns: 132, rows: 43 }, Size { columns: 132, rows: 43 }),
    ] {
        terminal.resize(wanted);
        assert_eq!(terminal.size(), got);
        assert_eq!(terminal.picture().size(), got);
    }
    assert_eq!(text(&terminal.picture(), 0), "hello");
}

#[test]
fn questions_are_answered_with_numbers_only() {
    for (asked, answer) in [
        (&b"ab\x1b[6n"[..], &b"\x1b[1;3R"[..]),
        (b"\x1b[5n", b"\x1b[0n"),
        (b"\x1b[c", b"\x1b[?6c"),
        (b"\x1b[18t", b"\x1b[8;5;20t"),
        (b"\x1b[?25$p", b"\x1b[?25;1$y"),
        // Title, clipboard, colours, settings, size in pixels, keyboards: not even an empty answer.
        (b"\x1b]0;evil\x07\x1b[21t\x1b[20t", b""),
        (b"\x1b]52;c;?\x07\x1b]10;?\x07\x1b]4;1;?\x07", b""),
        (b"\x1bP$qm\x1b\\\x1bP+q544e\x1b\\", b""),
        (b"\x1b[14t\x1b[?u\x1b[>4;1m\x1b[?4m", b""),
    ] {
        let text = String::from_utf8_lossy(asked);
        assert_eq!(shown(asked).take_answers(), answer, "{text:?}");
    }
}

#[test]
fn answers_that_nobody_fetches_are_bounded_and_whole() {
    let mut terminal = shown(&b"\x1b[6n".repeat(10_000));
    let answers = terminal.take_answers();
    assert_eq!(answers, b"\x1b[1;1R".repeat(MAX_ANSWERS / 6));
    assert_eq!(terminal.take_answers(), b"");
}

#[test]
fn bells_are_told_once() {
    let mut terminal = shown(b"\x07\x07");
    assert!(terminal.take_bell());
    assert!(!terminal.take_bell());
    // This one ends a title.
    assert!(!shown(b"\x1b]0;x\x07").take_bell());
}

#[test]
fn characters_without_width_do_not_pile_up() {
    let terminal = shown("e\u{301}\u{301}\u{200d}\u{feff}x".as_bytes());
    assert_eq!(text(&terminal.picture(), 0), "ex");
    let line = &terminal.term.grid()[Line(0)];
    assert!((0..20).all(|column| line[Column(column)].extra.is_none()));
}

#[test]
fn a_lost_end_of_a_sequence_swallows_nothing() {
    for begun in [&b"\x1b[31"[..], b"\x1b]0;title", b"\x1bPq", b"\x1b", b"\x1b(", b"\xe2\x94"] {
        let mut terminal = shown(begun);
        terminal.cut();
        terminal.print(b"text");
        let seen = text(&terminal.picture(), 0);
        assert_eq!(seen.trim_start_matches('?'), "text", "{begun:?}");
    }
}

#[test]
fn synchronized_updates_are_not_held_back() {
    assert_eq!(first(b"\x1b[?2026habc"), "abc");
}

#[test]
fn resting_changes_nothing_that_is_seen() {
    let lines: String = (0..100).map(|n| format!("line {n}\r\n")).collect();
    let (mut rested, mut other) = (shown(lines.as_bytes()), shown(lines.as_bytes()));
    rested.rest();
    for terminal in [&mut rested, &mut other] {
        terminal.print(b"more\r\nand more\r\n");
        terminal.look(View::Lines(50));
    }
    assert_eq!(rested.picture(), other.picture());
    assert_eq!(text(&rested.picture(), 0), "line 48");
    rested.look(View::Top);
    assert_eq!(text(&rested.picture(), 0), "line 0");
}

#[test]
fn a_reset_terminal_is_as_new() {
    let scene = "one\r\n2\r\n3\r\n4\r\n5\r\n6\x1b[?1049h\x1b[31;7mvim\x1b[?1h\x1b[?25l\x1b[2;3r\x1b[6n\x1b(0";
    let (mut reset, mut new) = (shown(scene.as_bytes()), shown(b""));
    reset.look(View::Top);
    reset.reset();
    assert_eq!((reset.picture(), reset.modes()), (new.picture(), new.modes()));
    for terminal in [&mut reset, &mut new] {
        terminal.print(b"lqk\r\nb\r\nc\r\nd\r\ne\r\nf");
        terminal.look(View::Top);
    }
    assert_eq!(reset.picture(), new.picture());
    assert_eq!(reset.take_answers(), b"");
}

#[test]
fn repetitions_are_cut_to_a_screenful_for_each_piece() {
    let piece = b"x\x1b[65535b".repeat(50);
    let mut terminal = shown(&piece);
    let cells = |terminal: &Terminal| {
        let grid = terminal.term.grid();
        let oldest = i32::try_from(grid.history_size()).unwrap();
        let lines = (-oldest..5).map(|line| &grid[Line(line)]);
        lines.flat_map(|line| (0..20).map(|n| line[Column(n)].c)).filter(|c| *c == 'x').count()
    };
    assert_eq!(cells(&terminal), piece.len() + 20 * 5);
    // As programs use it, it is as it was.
    terminal.print(b"\x1bc=\x1b[4b>");
    assert_eq!(text(&terminal.picture(), 0), "=====>");
}

#[test]
fn tabulators_lead_where_they_are_and_no_further() {
    let column = |bytes: &[u8]| shown(bytes).term.grid().cursor.point.column.0;
    assert_eq!(column(b"\x1b[2I"), 16);
    assert_eq!(column(b"\x1b[65535I"), 19);
    assert_eq!(column(b"\x1b[20G\x1b[2Z"), 8);
    assert_eq!(column(b"\x1b[20G\x1b[65535Z"), 0);
    assert_eq!(column(b"\x1b[3g\x1b[20G\x1b[65535Z"), 19, "there is none");
}
