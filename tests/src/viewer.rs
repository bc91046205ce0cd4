//! A stock VNC client (LibVNCClient, as in the tests of `ocivisor-vnc`), and what it reads on the screen.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use ocivisor_vnc::font::{Glyph, HEIGHT, WIDTH, Weight};
use tempfile::TempDir;

use crate::{Host, repository, wait_for};

/// The program, compiled once.
fn program() -> &'static Path {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, program) = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("viewer");
        let source = repository().join("src/vnc/tests/vnc/viewer.c");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-Wall", "-o"]).args([&program, &source]).arg("-lvncclient");
        assert!(cc.status().unwrap().success(), "the viewer needs gcc and libvncserver-dev");
        (dir, program)
    });
    program
}

/// A client that is connected.
#[derive(Debug)]
pub struct Viewer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Viewer {
    /// Connects to a port of the host's loopback; `None` if it is not let in.
    #[must_use]
    pub fn connect(host: &Host, port: u16, password: &str) -> Option<Self> {
        let mut child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", host.name()))
            .arg(program())
            .args([&port.to_string(), password, "tight zrle copyrect raw", "4"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        // The library says things of its own there, too.
        for line in (&mut output).lines() {
            if line.unwrap() == "in" {
                return Some(Self { child, input, output });
            }
        }
        assert_eq!(child.wait().unwrap().code(), Some(1));
        None
    }

    /// Types; a line feed is Return.
    pub fn type_text(&mut self, text: &str) {
        for character in text.chars() {
            // Keysyms of ASCII are its codes (RFC 6143, 7.5.4).
            let keysym = if character == '\n' { 0xff0d } else { u32::from(character) };
            writeln!(self.input, "key {keysym}").unwrap();
        }
    }

    /// The screen as text, line by line; what is not of plain ASCII is a question mark.
    pub fn read(&mut self) -> String {
        writeln!(self.input, "shot").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let mut numbers = line.split_whitespace().map(|word| word.parse::<usize>().unwrap());
        let (width, height) = (numbers.next().unwrap(), numbers.next().unwrap());
        let mut rgb = vec![0; width * height * 3];
        self.output.read_exact(&mut rgb).unwrap();
        let pixels: Vec<[u8; 3]> = rgb.chunks(3).map(|rgb| [rgb[0], rgb[1], rgb[2]]).collect();
        let mut text = String::new();
        for row in 0..height / HEIGHT {
            let mut line = String::new();
            for column in 0..width / WIDTH {
                let lines = pixels[row * HEIGHT * width + column * WIDTH..].chunks(width);
                let cell: Vec<[u8; 3]> =
                    lines.take(HEIGHT).flat_map(|line| &line[..WIDTH]).copied().collect();
                line.push(letter(&cell).unwrap_or('?'));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Waits until the screen shows a text.
    #[track_caller]
    pub fn shows(&mut self, wanted: &str) {
        wait_for(wanted, || {
            let text = self.read();
            if text.contains(wanted) { Ok(()) } else { Err(text) }
        });
    }

    /// Whether the connection is still there.
    pub fn is_connected(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The letter of a cell's pixels: the console's font is known, so a test that reads need not guess. Colours do not matter:
/// what is most of a cell is its background.
fn letter(cell: &[[u8; 3]]) -> Option<char> {
    static LETTERS: OnceLock<HashMap<[u8; HEIGHT], char>> = OnceLock::new();
    let letters = LETTERS.get_or_init(|| {
        let both = [Weight::Bold, Weight::Regular];
        let shape = |letter, weight| (Glyph::of(letter).rows(weight), letter);
        both.iter().flat_map(|weight| (' '..='~').map(|c| shape(c, *weight))).collect()
    });
    let lit = cell.iter().filter(|rgb| **rgb != cell[0]).count();
    let background = match cell.iter().find(|rgb| **rgb != cell[0]) {
        Some(other) if lit > cell.len() / 2 => *other,
        _ => cell[0],
    };
    let mut shape = [0; HEIGHT];
    for (at, rgb) in cell.iter().enumerate() {
        shape[at / WIDTH] |= u8::from(*rgb != background) << (WIDTH - 1 - at % WIDTH);
    }
    letters.get(&shape).copied()
}
