//! Pictures that were looked at once, pixel by pixel. `UPDATE_GOLDENS=1` writes them anew; look at them then.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ocivisor_vnc::font::{HEIGHT, WIDTH};
use ocivisor_vnc::picture::{Area, Picture};
use ocivisor_vnc::terminal::{MIN_SIZE, Terminal};

/// Pixels as text: a line for each row, a letter for each colour, and what the letters mean.
fn drawn(picture: &Picture) -> String {
    let size = picture.size();
    let (width, height) = (usize::from(size.columns) * WIDTH, usize::from(size.rows) * HEIGHT);
    let mut pixels = Vec::new();
    let area = Area { column: 0, row: 0, columns: size.columns, rows: size.rows };
    picture.paint(area, width, height, &mut pixels);
    let mut letters = BTreeMap::from([(0, '.'), (0x00aa_aaaa, '#')]);
    let mut free = 'a'..='z';
    let mut text = String::new();
    for row in pixels.chunks(width) {
        text.extend(
            row.iter().map(|rgb| *letters.entry(*rgb).or_insert_with(|| free.next().unwrap())),
        );
        text.push('\n');
    }
    letters.iter().for_each(|(rgb, letter)| text += &format!("{letter} {rgb:06x}\n"));
    text
}

fn compare(name: &str, printed: &str) {
    let mut terminal = Terminal::new(MIN_SIZE);
    terminal.print(printed.as_bytes());
    let got = drawn(&terminal.picture());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        fs::write(&path, &got).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap();
    assert!(got == wanted, "{name} looks different:\n{got}");
}

#[test]
fn a_login_prompt() {
    compare("login.txt", "Debian 13 \x1b[1mone-42\x1b[0m\r\n\r\nlogin: ro\u{f6}t");
}

#[test]
fn colours_lines_and_styles() {
    compare(
        "styles.txt",
        "\x1b[31mred\x1b[1mbold\x1b[0m \x1b[4munder\x1b[0m\r\n\x1b[7minverse\x1b[0m \x1b[9mstrike\x1b[0m\r\n\
         \x1b(0lqwqk\x1b(B \u{2554}\u{2550}\u{2557} \u{2592}\u{2588}\r\n\x1b[48;5;21;38;2;255;255;1mtrue\x1b[0m \
         \u{416}\u{3a9}\u{6f22}\x1b[6 q",
    );
}
