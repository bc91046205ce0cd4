//! A stock client: LibVNCClient of Debian's package `libvncserver-dev`, in a program of a hundred lines.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use ocivisor_vnc::font::{HEIGHT, WIDTH};
use ocivisor_vnc::picture::{Area, Picture};
use tempfile::TempDir;

use crate::until;

/// The program, compiled once.
fn program() -> &'static Path {
    static BUILT: OnceLock<(TempDir, std::path::PathBuf)> = OnceLock::new();
    let (_, program) = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("viewer");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vnc/viewer.c");
        let built = Command::new("cc")
            .args(["-O1", "-Wall", "-o"])
            .args([&program, &source])
            .arg("-lvncclient")
            .status()
            .unwrap();
        assert!(built.success(), "the viewer needs gcc and libvncserver-dev");
        (dir, program)
    });
    program
}

pub struct Viewer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Pixels as a viewer shows them.
#[derive(PartialEq, Eq)]
pub struct Shot {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

impl Viewer {
    /// `None` if it is not let in.
    pub fn connect(port: u16, password: &str, encodings: &str, bytes: u8) -> Option<Self> {
        let mut child = Command::new(program())
            .args([&port.to_string(), password, encodings, &bytes.to_string()])
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

    pub fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub fn type_text(&mut self, text: &str) {
        for character in text.chars() {
            let keysym = if character == '\r' { 0xff0d } else { u32::from(character) };
            self.say(&format!("key {keysym}"));
        }
    }

    pub fn shot(&mut self) -> Shot {
        self.say("shot");
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap());
        let (width, height): (usize, usize) = (numbers.next().unwrap(), numbers.next().unwrap());
        let mut rgb = vec![0; width * height * 3];
        self.output.read_exact(&mut rgb).unwrap();
        Shot { width, height, rgb }
    }

    /// Waits until it shows this picture, of which its pixels can show as much as `shown` says.
    pub fn shows(&mut self, picture: &Picture, shown: impl Fn(u32) -> [u8; 3]) {
        let size = picture.size();
        let (width, height) = (usize::from(size.columns) * WIDTH, usize::from(size.rows) * HEIGHT);
        let area = Area { column: 0, row: 0, columns: size.columns, rows: size.rows };
        let mut pixels = Vec::new();
        picture.paint(area, width, height, &mut pixels);
        let rgb: Vec<u8> = pixels.iter().flat_map(|rgb| shown(*rgb)).collect();
        until("the picture", || {
            let shot = self.shot();
            (shot.width == width && shot.height == height && shot.rgb == rgb).then_some(())
        });
    }
}

/// All eight bits of each colour.
pub fn exactly(rgb: u32) -> [u8; 3] {
    let [_, red, green, blue] = rgb.to_be_bytes();
    [red, green, blue]
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
