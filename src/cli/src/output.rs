//! What commands print: a table for people or JSON for programs, always through one writer that
//! survives a closed pipe.
//!
//! Text that comes from guests, images and templates is hostile to terminals: every cell has its
//! control characters escaped. JSON objects carry `schema_version`; fields never change type.

use std::io::{self, IsTerminal, Write};

use ocivisor_core::error::one_line;
use serde::Serialize;
use serde_json::Value;

use crate::failure::{Exit, Failure};

/// Version of all JSON that this command prints.
pub const SCHEMA_VERSION: u64 = 1;

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns or words for people
    Table,
    /// One JSON object (one per line where output is a stream)
    Json,
}

/// Where and how a command prints.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// Table or JSON.
    pub format: Format,
    /// Only ids, or nothing where a command has none.
    pub quiet: bool,
}

impl Output {
    /// Prints `value` as JSON or what `table` makes as text. Quiet suppresses neither JSON nor
    /// what [`Output::list`] prints.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn emit(
        self,
        value: &impl Serialize,
        table: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.json(value),
            Format::Table if self.quiet => Ok(()),
            Format::Table => print(&table()),
        }
    }

    /// As [`Output::emit`], but quiet prints one id per line.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn list(
        self,
        value: &impl Serialize,
        ids: impl FnOnce() -> Vec<String>,
        table: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match (self.format, self.quiet) {
            (Format::Json, _) => self.json(value),
            (Format::Table, true) => {
                let lines: String = ids().iter().map(|id| one_line(id) + "\n").collect();
                print(&lines)
            }
            (Format::Table, false) => print(&table()),
        }
    }

    fn json(self, value: &impl Serialize) -> Result<(), Failure> {
        let mut value = serde_json::to_value(value)
            .map_err(|e| Failure::new(Exit::Failure, format!("make JSON: {e}")))?;
        if let Value::Object(map) = &mut value {
            map.insert("schema_version".into(), SCHEMA_VERSION.into());
        }
        print(&format!("{value}\n"))
    }
}

/// Writes to standard output at once. A reader that went away is no failure: it has had enough,
/// and [`write_bytes`] tells streams to stop.
///
/// # Errors
/// Standard output cannot be written (disk full).
pub fn print(text: &str) -> Result<(), Failure> {
    write_bytes(text.as_bytes()).map(|_| ())
}

/// Whether the reader of standard output is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// It read on, as far as known.
    There,
    /// It closed the pipe.
    Gone,
}

/// As [`print()`], for bytes that go out as they are, telling whether somebody reads them.
///
/// # Errors
/// Standard output cannot be written (disk full).
pub fn write_bytes(bytes: &[u8]) -> Result<Reader, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(e) => Err(Failure::new(Exit::Failure, format!("write standard output: {e}"))),
    }
}

/// Writes to standard error; nobody there to read is fine.
pub fn complain(text: &str) {
    complain_bytes(text.as_bytes());
}

/// As [`complain`], for bytes that go out as they are.
pub fn complain_bytes(bytes: &[u8]) {
    // Nothing is left to tell the failure to.
    let _ = io::stderr().lock().write_all(bytes);
}

/// Whether standard output takes colours: a terminal, and `NO_COLOR` (no-color.org) not set.
#[must_use]
pub fn wants_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && io::stdout().is_terminal()
}

/// Columns, left aligned, two blanks between them, nothing after the last.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this heading.
    #[must_use]
    pub fn new(heading: &[&str]) -> Self {
        let heading = heading.iter().map(|&cell| cell.to_owned()).collect();
        Self { rows: vec![heading] }
    }

    /// Adds a row; control characters of its cells are escaped, empty ones become `-`.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        let clean = |cell: String| {
            if cell.is_empty() { "-".to_owned() } else { one_line(&cell) }
        };
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// The text.
    #[must_use]
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(at));
            cells.map(|c| c.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let pad = width + 2 - cell.chars().count();
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', pad));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names and values, one per line, values aligned.
#[must_use]
pub fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs
        .iter()
        .map(|(name, value)| {
            let line =
                format!("{:width$}  {}", format!("{name}:"), one_line(value), width = width + 1);
            format!("{}\n", line.trim_end())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_escape() {
        let mut table = Table::new(&["ID", "NAME", "STATE"]);
        table.row(["one-1".into(), "web\u{1b}[31m".into(), "running".into()]);
        table.row(["b".into(), String::new(), "x".into()]);
        assert_eq!(
            table.render(),
            "ID     NAME           STATE\n\
             one-1  web\\u{1b}[31m  running\n\
             b      -              x\n"
        );
    }

    #[test]
    fn fields_align() {
        assert_eq!(
            fields(&[("id", "a".into()), ("longer", "b\nc".into())]),
            "id:      a\nlonger:  b\\nc\n"
        );
    }
}
