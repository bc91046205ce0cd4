//! `INFO:` lines of a script, beside its answer.
//!
//! They go to standard error as they come, and OpenNebula 7 takes them out of what users see of a failure. 6.10 does not:
//! users see all that a failed script wrote there. So there the lines wait for the answer, and those of a failure come behind
//! its sentence. Which of the two it is says `VERSION`, which OpenNebula keeps at the top of its drivers' tree, on all machines.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use ocivisor_opennebula::Answer;

use crate::output::complain;

/// Most bytes that wait; what is more goes out at once.
const MOST: usize = 1 << 20;

/// What waits; none where lines need not.
static WAITING: Mutex<Option<String>> = Mutex::new(None);

/// A line.
pub fn remark(line: &str) {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    match waiting.as_mut().filter(|text| text.len() + line.len() <= MOST) {
        Some(text) => text.push_str(line),
        None => complain(line),
    }
}

/// A script begins that lies in that directory, `<top>/<kind>/<driver>`.
pub fn begin(dir: Option<&Path>) {
    let waits = dir.is_some_and(|dir| shows_all(&version(&dir.join("../../VERSION"))));
    *WAITING.lock().unwrap_or_else(PoisonError::into_inner) = waits.then(String::new);
}

/// All that the script writes to standard error from here on.
pub fn end(answer: &Answer) -> String {
    let waited = WAITING.lock().unwrap_or_else(PoisonError::into_inner).take();
    format!("{}{}", answer.stderr, waited.unwrap_or_default())
}

/// Whether drivers of that version show users all that a failed script wrote.
fn shows_all(version: &str) -> bool {
    version.trim_start().starts_with("6.")
}

/// The first bytes of the file; nothing if it cannot be read.
fn version(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).map(|file| file.take(16).read_to_string(&mut text));
    if read.is_ok() { text } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "writes the file to be read")]
    fn lines_wait_for_the_answer_where_users_see_them_all() {
        for (version, waits) in
            [("6.10.5\n", true), ("6.10.0", true), ("7.0.1", false), ("16.", false), ("", false)]
        {
            assert_eq!(shows_all(version), waits, "{version:?}");
        }
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("vmm/ocivisor");
        std::fs::create_dir_all(&dir).unwrap();
        let failed = Answer::sentence("Cannot deploy VM 7: no disk");
        // Where there is no version, nothing waits.
        begin(Some(&dir));
        assert_eq!(end(&failed), "Cannot deploy VM 7: no disk.\n");
        std::fs::write(top.path().join("VERSION"), "6.10.0").unwrap();
        begin(Some(&dir));
        remark("INFO: 7 one\n");
        remark("INFO: 7 two\n");
        assert_eq!(end(&failed), "Cannot deploy VM 7: no disk.\nINFO: 7 one\nINFO: 7 two\n");
        assert_eq!(end(&failed), "Cannot deploy VM 7: no disk.\n", "once");
    }
}
