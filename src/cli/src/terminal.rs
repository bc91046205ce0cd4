//! The user's terminal: raw while a console is attached, and always put back.

use std::io;
use std::sync::Once;

use ocivisor_shim::message::Size;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Raw mode of standard input for as long as this lives: what is typed goes to the guest as it is,
/// Ctrl-C included.
///
/// Put back on drop, and by a panic hook too, because release builds abort without dropping. Only
/// SIGKILL leaves it raw; nobody can help that.
#[derive(Debug)]
pub struct RawMode {
    saved: Termios,
}

impl RawMode {
    /// Makes standard input raw; `None` if it is no terminal.
    ///
    /// # Errors
    /// The terminal does not let itself be set.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let saved = tcgetattr(&stdin)?;
        restore_on_panic(&saved);
        let mut raw = saved.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        Ok(Some(Self { saved }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that vanished needs no restoring.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.saved);
    }
}

fn restore_on_panic(saved: &Termios) {
    static HOOKED: Once = Once::new();
    let saved = saved.clone();
    HOOKED.call_once(move || {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // As above.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, &saved);
            before(info);
        }));
    });
}

/// Whether standard output is a terminal.
#[must_use]
pub fn is_shown() -> bool {
    isatty(io::stdout())
}

/// Size of the terminal on standard output, else on standard input; zero if there is none, which
/// leaves the guest's alone.
#[must_use]
pub fn size() -> Size {
    let asked = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin()));
    asked.map_or_else(|_| Size::default(), |size| Size { cols: size.ws_col, rows: size.ws_row })
}
