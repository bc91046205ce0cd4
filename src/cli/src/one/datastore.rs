//! Scripts of the datastore driver, on the front-end.

use std::ffi::OsString;
use std::time::Instant;

use ocivisor_core::error::Error;
use ocivisor_opennebula::ds::{self, DsAction};
use ocivisor_opennebula::{Answer, xml};

use super::config::Config;
use super::remarks::remark;

/// Bytes of standard input: base64 of a document, with newlines.
pub const MAX_INPUT: usize = xml::MAX_INPUT / 2 * 3;

/// Carries a call out and answers it.
pub fn answer(action: &str, argv: &[OsString], stdin: &[u8]) -> Answer {
    let call = match ds::plan(action, argv, stdin) {
        Ok(call) => call,
        Err(answer) => return answer,
    };
    let began = Instant::now();
    let mut log = |text: &str| remark(&call.note(text));
    let done = Config::load().and_then(|config| {
        ocivisor_frontend::images::carry_out(&call, &config.frontend(), &mut log)
    });
    match done {
        Ok(stdout) => {
            // Asked every few minutes, or by somebody who waits.
            if !matches!(call.action, DsAction::Monitor | DsAction::Stat) {
                let took = began.elapsed().as_millis();
                remark(&call.note(&format!("{} took {took} ms", call.action.name())));
            }
            call.success(&stdout)
        }
        Err(error) => call.failure(&error),
    }
}

/// The answer where there is no input.
pub fn unread(action: &str, error: &Error) -> Answer {
    ds::failure(DsAction::from_name(action).unwrap_or(DsAction::Monitor), None, error)
}
