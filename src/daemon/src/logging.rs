//! Structured logs: to journald where it is, else to standard error.

use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, fmt, registry};

/// Sets up logging for the process. A filter that cannot be read becomes `info`.
pub fn start(level: &str) {
    let filter = || EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    // systemd says by JOURNAL_STREAM that standard error is the journal's: then fields are kept.
    let journald = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let started = match journald {
        Some(layer) => registry().with(filter()).with(layer).try_init(),
        None => {
            let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
            registry().with(filter()).with(layer).try_init()
        }
    };
    if let Err(error) = started {
        eprintln!("ocivisord: logging is not available: {error}");
    }
}
