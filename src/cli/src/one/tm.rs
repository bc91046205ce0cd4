//! Scripts of the transfer manager, on the front-end, and `monitor_ds`, on a host.

use std::ffi::OsString;
use std::time::Instant;

use ocivisor_frontend::tm::{Front, carry_out};
use ocivisor_opennebula::tm::{self, TmOrder};
use ocivisor_opennebula::{Answer, progress};

use super::config::Config;
use super::remarks::remark;

/// Carries a call out and answers it.
pub fn answer(script: &str, driver: &str, argv: &[OsString], stdin: &[u8]) -> Answer {
    let call = match tm::plan(script, argv) {
        Ok(call) => call,
        Err(answer) => return answer,
    };
    // A line about no VM would be taken for one about the VM whose number it begins with, or none.
    let mut note = |text: &str| match call.vm {
        Some(vm) => remark(&progress(vm, text)),
        None => remark(&format!("INFO: {}\n", ocivisor_core::error::one_line(text))),
    };
    let began = Instant::now();
    let done = Config::load().and_then(|config| {
        let mut front = Front { config: &config.transfer, driver, note: &mut note, stdin };
        carry_out(&call, &mut front)
    });
    match done {
        Ok(stdout) => {
            if !matches!(call.order, TmOrder::Monitor | TmOrder::MonitorHost(_)) {
                note(&format!("{} took {} ms", call.action, began.elapsed().as_millis()));
            }
            Answer { stdout, stderr: String::new(), exit: 0 }
        }
        Err(error) => tm::failure(call.action, call.vm, &error),
    }
}
