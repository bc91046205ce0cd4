//! A shim as far as its socket goes: the guest behind it is the test.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use ocivisor_shim::exit::Exit;
use ocivisor_shim::frame::Frame;
use ocivisor_shim::message::{Access, Code, Refusal, Request, Size};

/// What happened at the socket.
#[derive(Default)]
struct State {
    /// Connections that look, the writer's among them.
    viewers: Vec<UnixStream>,
    writer: Option<UnixStream>,
    typed: Vec<u8>,
    sizes: Vec<Size>,
    /// What a new viewer is shown first.
    tail: Vec<u8>,
    /// Somebody else has the writer's role.
    busy: bool,
    refusal: Option<Code>,
    asked: Vec<String>,
}

/// The shim of a guest.
pub struct Shim {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Shim {
    pub fn start(path: &Path) -> Self {
        Self::start_with(path, b"")
    }

    /// One whose log ends so.
    pub fn start_with(path: &Path, tail: &[u8]) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let state = Arc::new(Mutex::new(State { tail: tail.to_vec(), ..State::default() }));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let state = Arc::clone(&shared);
                // Only one that ends early, as a test's last act may make it, cannot be served.
                thread::spawn(move || serve(stream, &state));
            }
        });
        Self { path: path.to_owned(), state }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap())
    }

    pub fn viewers(&self) -> usize {
        self.with(|state| state.viewers.len())
    }

    pub fn has_writer(&self) -> bool {
        self.with(|state| state.writer.is_some())
    }

    /// All that was typed until now.
    pub fn typed(&self) -> Vec<u8> {
        self.with(|state| state.typed.clone())
    }

    pub fn forget_typed(&self) {
        self.with(|state| state.typed.clear());
    }

    /// The sizes that the terminal was given.
    pub fn sizes(&self) -> Vec<Size> {
        self.with(|state| state.sizes.clone())
    }

    /// The lines that were asked.
    pub fn asked(&self) -> Vec<String> {
        self.with(|state| state.asked.clone())
    }

    pub fn set_busy(&self, busy: bool) {
        self.with(|state| state.busy = busy);
    }

    pub fn refuse(&self, code: Option<Code>) {
        self.with(|state| state.refusal = code);
    }

    /// The guest prints.
    pub fn print(&self, bytes: &[u8]) {
        self.frame(&Frame::Data(bytes));
    }

    pub fn frame(&self, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let streams = self.with(|state| {
            state.tail.extend_from_slice(if let Frame::Data(data) = frame { data } else { b"" });
            let all = state.viewers.iter().chain(&state.writer);
            all.map(|stream| stream.try_clone().unwrap()).collect::<Vec<_>>()
        });
        for mut stream in streams {
            // One that left is noticed by its thread.
            let _ = stream.write_all(&bytes);
        }
    }

    /// Somebody takes the writer's role.
    pub fn take(&self) {
        self.set_busy(true);
        let Some(mut writer) = self.with(|state| state.writer.take()) else { return };
        let mut bytes = Vec::new();
        Frame::Detach.encode(&mut bytes);
        let _ = writer.write_all(&bytes);
        let _ = writer.shutdown(std::net::Shutdown::Both);
    }

    /// The guest ends, and with it the shim.
    pub fn end(self, exit: Exit) {
        let _ = std::fs::remove_file(&self.path);
        self.frame(&Frame::Exit(exit));
        self.frame(&Frame::Detach);
        self.hang_up();
    }

    /// The shim dies.
    pub fn die(self) {
        let _ = std::fs::remove_file(&self.path);
        self.hang_up();
    }

    fn hang_up(&self) {
        self.with(|state| {
            for stream in state.viewers.drain(..).chain(state.writer.take()) {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        });
    }
}

fn serve(mut stream: UnixStream, state: &Mutex<State>) -> Option<()> {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).ok()?;
        line.extend_from_slice(&byte);
    }
    let line = String::from_utf8(line).ok()?;
    let request = Request::parse(line.trim_end());
    let mut locked = state.lock().ok()?;
    locked.asked.push(line.trim_end().to_owned());
    let Some(Request::Attach { access, size, replay }) = request else {
        return stream.write_all(b"error denied no\n").ok();
    };
    if let Some(code) = locked.refusal {
        return stream.write_all(format!("{}\n", Refusal::new(code, "no")).as_bytes()).ok();
    }
    let writes = access == Access::Write && locked.writer.is_none() && !locked.busy;
    stream.write_all(if writes { b"ok rw\n" } else { b"ok ro\n" }).ok()?;
    if replay {
        let mut frames = Vec::new();
        Frame::Data(&locked.tail).encode(&mut frames);
        stream.write_all(&frames).ok()?;
    }
    let kept = stream.try_clone().ok()?;
    if writes {
        locked.sizes.push(size);
        locked.writer = Some(kept);
    } else {
        locked.viewers.push(kept);
    }
    drop(locked);
    // Frames of the writer; the end of either.
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut chunk) {
        bytes.extend_from_slice(&chunk[..n]);
        while let Ok(Some((frame, used))) = Frame::decode(&bytes) {
            let mut locked = state.lock().ok()?;
            match frame {
                Frame::Data(data) if writes => locked.typed.extend_from_slice(data),
                Frame::Resize(size) if writes => locked.sizes.push(size),
                _ => {}
            }
            drop(locked);
            bytes.drain(..used);
        }
    }
    let mut locked = state.lock().ok()?;
    let own = stream.peer_addr().ok().map(drop);
    let same = |other: &UnixStream| inode(other) == inode(&stream);
    if writes && locked.writer.as_ref().is_some_and(same) {
        locked.writer = None;
    }
    locked.viewers.retain(|other| !same(other));
    own
}

fn inode(stream: &UnixStream) -> u64 {
    rustix::fs::fstat(stream).unwrap().st_ino
}
