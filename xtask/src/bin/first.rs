//! The guest of the benchmarks: says when it began, by the clock that host and guest share, and
//! waits to be ended. Linked statically, so that it is all a root filesystem needs.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // One write, so that the line is whole wherever it goes. Nobody to tell if it fails.
    let _ = std::io::stdout().write_all(format!("first {}\n", now.as_nanos()).as_bytes());
    loop {
        std::thread::park();
    }
}
