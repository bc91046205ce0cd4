//! What a real client sees and does.

use ocivisor_shim::message::Size as ShimSize;
use ocivisor_vnc::picture::{Picture, Size};
use ocivisor_vnc::terminal::{FIRST_SIZE, Terminal};

use crate::program::{Options, Program};
use crate::shim::Shim;
use crate::until;
use crate::viewer::{Viewer, exactly};

const PASSWORD: &str = "secret12";

/// Colours, styles, lines, letters of many scripts, a cursor.
const SCENE: &str = "\x1b[2J\x1b[H\x1b[1;32mDebian GNU/Linux 13 one-42 tty1\x1b[0m\r\n\r\n\
    \x1b(0lqqqqqqk\x1b(B ┌─╔═╗ ░▒▓█ äöüß łąż ЖЯ Ωλ ⠿⣿\r\n\
    \x1b[4munder\x1b[0m \x1b[7minverse\x1b[0m \x1b[9mstrike\x1b[0m \x1b[1mbold\x1b[0m \x1b[2mdim\x1b[0m\r\n\
    \x1b[38;5;208morange\x1b[48;2;20;60;120m true \x1b[0m\r\none-42 login: ";

/// What the emulator makes of it.
fn picture(size: Size, printed: &[&str]) -> Picture {
    let mut terminal = Terminal::new(size);
    printed.iter().for_each(|text| terminal.print(text.as_bytes()));
    terminal.picture()
}

#[test]
fn a_stock_client_sees_and_types_in_every_encoding_and_format() {
    let program = Program::start();
    let shim = Shim::start(&program.socket());
    until("the viewer's attachment", || (shim.viewers() == 1).then_some(()));
    shim.print(SCENE.as_bytes());
    // What the library's formats can show of eight bits, as many of each colour.
    let bits = |bits: [u32; 3]| {
        move |rgb: u32| {
            let [red, green, blue] = exactly(rgb);
            [(red, bits[0]), (green, bits[1]), (blue, bits[2])].map(|(colour, bits)| {
                let max = (1 << bits) - 1;
                ((u32::from(colour) * max + 127) / 255 * 255 / max) as u8
            })
        }
    };
    let expected = picture(FIRST_SIZE, &[SCENE]);
    for encodings in ["raw", "zrle", "tight", "zrle copyrect hextile raw", "tight copyrect"] {
        for bytes in [4, 2, 1] {
            let mut viewer = Viewer::connect(program.port, PASSWORD, encodings, bytes).unwrap();
            match bytes {
                4 => viewer.shows(&expected, exactly),
                2 => viewer.shows(&expected, bits([5, 5, 5])),
                _ => viewer.shows(&expected, bits([3, 3, 2])),
            }
            let before = shim.typed().len();
            viewer.type_text("root\r");
            until("typing", || (shim.typed().len() >= before + 5).then_some(()));
            assert_eq!(&shim.typed()[before..], b"root\r", "{encodings} {bytes}");
        }
    }
    assert!(shim.asked().iter().all(|line| line.starts_with("attach r")), "{:?}", shim.asked());
}

#[test]
fn scrolling_and_changes_arrive_exactly() {
    let program = Program::start();
    let shim = Shim::start(&program.socket());
    let mut viewers: Vec<Viewer> = ["zrle copyrect", "tight copyrect", "raw"]
        .iter()
        .map(|encodings| Viewer::connect(program.port, PASSWORD, encodings, 4).unwrap())
        .collect();
    let mut terminal = Terminal::new(FIRST_SIZE);
    until("the viewer's attachment", || (shim.viewers() == 1).then_some(()));
    for step in 0..12 {
        let text = match step % 3 {
            0 => (0..step).map(|n| format!("line {n} of step {step}\r\n")).collect(),
            1 => format!("\x1b[5;20r\x1b[5;1H\x1b[{step}L\x1b[r\x1b[8;10Hstep {step}\x1b[20;1H"),
            _ => format!("\x1b[3{}mcoloured {step}\x1b[0m\x1b[K\x1b[A", step % 8),
        };
        terminal.print(text.as_bytes());
        shim.print(text.as_bytes());
        viewers.iter_mut().for_each(|viewer| viewer.shows(&terminal.picture(), exactly));
    }
}

#[test]
fn a_client_sets_the_size_of_the_guests_terminal() {
    let program = Program::start();
    let shim = Shim::start(&program.socket());
    let mut first = Viewer::connect(program.port, PASSWORD, "tight", 4).unwrap();
    let mut second = Viewer::connect(program.port, PASSWORD, "zrle", 4).unwrap();
    until("the typist", || shim.has_writer().then_some(()));
    shim.print(b"\x1b[2J\x1b[Hhello");
    let large = Size { columns: 100, rows: 37 };
    // The library does not ask before it was told that it may.
    let asked = ShimSize { cols: 100, rows: 37 };
    until("the size", || {
        first.say("size 800 592");
        (shim.sizes().last() == Some(&asked)).then_some(())
    });
    assert_eq!(shim.sizes()[0], ShimSize { cols: 80, rows: 25 });
    shim.print(b"\x1b[2J\x1b[Hin a larger one\x1b[37;90Hlast row");
    let expected = picture(large, &["\x1b[2J\x1b[Hin a larger one\x1b[37;90Hlast row"]);
    first.shows(&expected, exactly);
    second.shows(&expected, exactly);
}

#[test]
fn the_password_decides_and_guessing_ends() {
    let program = Program::start();
    for wrong in ["secret", "", "Secret12"] {
        assert!(Viewer::connect(program.port, wrong, "raw", 4).is_none(), "{wrong:?}");
    }
    assert!(Viewer::connect(program.port, PASSWORD, "raw", 4).is_some());
}

#[test]
fn pasting_is_asked_for() {
    let program = Program::start();
    let shim = Shim::start(&program.socket());
    let mut viewer = Viewer::connect(program.port, PASSWORD, "tight", 4).unwrap();
    until("the typist", || shim.has_writer().then_some(()));
    viewer.say("cut rm -rf /tmp/x");
    viewer.type_text("a");
    until("typing", || (!shim.typed().is_empty()).then_some(()));
    assert_eq!(shim.typed(), b"a", "what is copied is not typed by itself");
    for line in ["down 65505", "key 65379", "up 65505"] {
        viewer.say(line);
    }
    until("pasting", || (shim.typed().len() > 1).then_some(()));
    assert_eq!(shim.typed(), b"arm -rf /tmp/x");
}

#[test]
fn ipv6_and_no_password_serve_as_well() {
    let options = Options { password: None, address: "[::]:0" };
    let program = Program::start_with(&options).unwrap();
    let shim = Shim::start(&program.socket());
    let record = program.record().unwrap();
    assert_eq!((record.password, record.listen[0].port()), (false, program.port));
    let mut viewer = Viewer::connect(program.port, "", "tight", 4).unwrap();
    until("the viewer's attachment", || (shim.viewers() == 1).then_some(()));
    shim.print(b"open");
    viewer.shows(&picture(FIRST_SIZE, &["open"]), exactly);
}
