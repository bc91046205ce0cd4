//! A web server that has the files of one directory.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

/// It answers until the test ends.
#[derive(Debug)]
pub struct Web {
    address: SocketAddr,
}

impl Web {
    /// Opens it.
    ///
    /// # Panics
    /// No port is free.
    #[must_use]
    pub fn open(dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, dir) = (listener.local_addr().unwrap(), dir.to_owned());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let dir = dir.clone();
                // Whoever hangs up early is not told anything.
                std::thread::spawn(move || drop(serve(&stream, &dir)));
            }
        });
        Self { address }
    }

    /// `host:port`.
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }
}

fn serve(mut stream: &TcpStream, dir: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let request = lines.next().unwrap_or(Ok(String::new()))?;
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let name: PathBuf = Path::new(path).file_name().unwrap_or_default().into();
    let Ok(body) = std::fs::read(dir.join(name)) else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    let length = body.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    if method == "GET" { stream.write_all(&body) } else { Ok(()) }
}
