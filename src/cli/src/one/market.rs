//! Scripts of the marketplace driver, on the front-end.

use std::ffi::OsString;

use ocivisor_opennebula::Answer;
use ocivisor_opennebula::market;

use super::config::Config;
use super::remarks::remark;

/// Carries a call out and answers it. Everything is in the arguments.
pub fn answer(action: &str, argv: &[OsString]) -> Answer {
    let called = match market::plan(action, argv) {
        Ok(called) => called,
        Err(answer) => return answer,
    };
    let mut log = |text: &str| remark(&market::note(&called, text));
    let listed = Config::load()
        .and_then(|config| ocivisor_frontend::market::list(&called, &config.frontend(), &mut log));
    match listed {
        Ok(apps) => market::listing(&called, &apps),
        Err(error) => market::failure(&error),
    }
}
