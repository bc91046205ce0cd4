//! Shows what a guest wrote to its console.
//!
//! Following without a hole and without doubles: the console is attached first, then the log is
//! read; what came by both ways is cut out where the log's end is the beginning of what came live.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use clap::Args;
use ocivisor_rpc::Client;
use ocivisor_shim::client::{Console, Event};
use ocivisor_shim::message::Access;

use super::Vm;
use crate::attach::{Signals, attach, run as session};
use crate::connect::{Context, progress};
use crate::failure::{Exit, Failure};
use crate::output::{Format, Reader, write_bytes};
use crate::sanitize::{Policy, Sanitizer};
use crate::typed::DetachKey;

/// More than is kept; the daemon sends no more than it has.
const MAX_LOG: u64 = 16 << 20;
/// How long bytes may be on their way from the shim.
const SETTLE: Duration = Duration::from_millis(50);

/// Options of `logs`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    vm: Vm,
    /// Only the last lines
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
    /// Go on as the guest prints
    #[arg(short, long)]
    follow: bool,
    /// Pass every byte to a terminal too, with all that commands it
    #[arg(long)]
    raw: bool,
}

/// Runs it.
///
/// # Errors
/// See [`Context::ask`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    if context.output.format == Format::Json {
        if options.follow {
            let what = "a log that is followed has no JSON form";
            return Err(Failure::new(Exit::Usage, what));
        }
        let reply = context.ask(client.vm_log(options.vm.text(), MAX_LOG)).await?;
        return context.output.emit(&reply, String::new);
    }
    let mut live = if options.follow { follow(options, &client, context).await? } else { None };
    let reply = context.ask(client.vm_log(options.vm.text(), MAX_LOG)).await?;
    let log = base64::engine::general_purpose::STANDARD
        .decode(&reply.text_base64)
        .map_err(|e| Failure::new(Exit::Failure, format!("the daemon's answer: {e}")))?;
    let mut screen = Screen::new(options.raw);
    let begun = match &mut live {
        Some(console) => already(console)?,
        None => Vec::new(),
    };
    let fresh = &begun[overlap(&log, &begun)..];
    if screen.show(last_lines(&log, options.lines))? == Reader::Gone
        || screen.show(fresh)? == Reader::Gone
    {
        return Ok(());
    }
    if let Some(console) = live {
        let key = "none".parse::<DetachKey>().unwrap_or_default();
        session(console, Signals::catch()?, None, key, |bytes| screen.show(bytes)).await?;
    }
    Ok(())
}

/// The console to follow; `None` if there is no guest that could print.
async fn follow(
    options: &Options,
    client: &Client,
    context: &Context,
) -> Result<Option<Console>, Failure> {
    match context.ask(client.vm_console(options.vm.text())).await {
        Ok(place) => attach(Path::new(&place.socket), Access::Read, false).map(Some),
        Err(failure) if failure.exit == Exit::Conflict => {
            progress(context.output, &failure.message);
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

/// What came live while the log was read.
fn already(console: &mut Console) -> Result<Vec<u8>, Failure> {
    let failed =
        |e: std::io::Error| Failure::new(Exit::Failure, format!("console connection: {e}"));
    let mut bytes = Vec::new();
    console.stream().set_read_timeout(Some(SETTLE)).map_err(failed)?;
    loop {
        match console.next_event() {
            Ok(Event::Output(more)) => bytes.extend_from_slice(&more),
            Ok(Event::Gap(_)) => {}
            // The session hears of it again: the stream is at its end.
            Ok(Event::Exit(_) | Event::Detached) => break,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(e) => return Err(failed(e)),
        }
        if bytes.len() > 1 << 20 {
            break;
        }
    }
    console.stream().set_read_timeout(None).map_err(failed)?;
    Ok(bytes)
}

/// How many bytes at the beginning of `live` are at the end of `log` already; the most possible.
fn overlap(log: &[u8], live: &[u8]) -> usize {
    let most = log.len().min(live.len());
    (0..=most).rev().find(|n| log.ends_with(&live[..*n])).unwrap_or(0)
}

/// The last `wanted` lines; an unfinished last one counts.
fn last_lines(log: &[u8], wanted: Option<usize>) -> &[u8] {
    let Some(wanted) = wanted else { return log };
    if wanted == 0 {
        return &[];
    }
    let body = log.strip_suffix(b"\n").unwrap_or(log);
    let mut breaks = body.iter().enumerate().rev().filter(|(_, b)| **b == b'\n');
    match breaks.nth(wanted - 1) {
        Some((at, _)) => &log[at + 1..],
        None => log,
    }
}

/// Standard output, guarded if it is a terminal.
struct Screen {
    guard: Option<Sanitizer>,
}

impl Screen {
    fn new(raw: bool) -> Self {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
        Self { guard: (terminal && !raw).then(|| Sanitizer::new(Policy::Lines)) }
    }

    fn show(&mut self, bytes: &[u8]) -> Result<Reader, Failure> {
        match &mut self.guard {
            Some(guard) => write_bytes(&guard.clean(bytes)),
            None => write_bytes(bytes),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.guard.is_some() {
            // A colour that the guest left on. Nobody is left to hear that it failed.
            let _ = write_bytes(b"\x1b[0m");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_twice_is_shown_once() {
        for (log, live, want) in [
            (&b"abc"[..], &b""[..], 0),
            (b"abc", b"bcd", 2),
            (b"abc", b"abc", 3),
            (b"abc", b"xyz", 0),
            (b"", b"abc", 0),
            (b"xabab", b"ababab", 4),
        ] {
            assert_eq!(overlap(log, live), want);
        }
    }

    #[test]
    fn lines_are_counted_from_the_end() {
        let log = b"a\nb\nc\n";
        assert_eq!(last_lines(log, None), log);
        assert_eq!(last_lines(log, Some(0)), b"");
        assert_eq!(last_lines(log, Some(1)), b"c\n");
        assert_eq!(last_lines(log, Some(2)), b"b\nc\n");
        assert_eq!(last_lines(log, Some(9)), log);
        assert_eq!(last_lines(b"a\nb", Some(1)), b"b");
        assert_eq!(last_lines(b"", Some(1)), b"");
    }
}
