//! Checks this host; see [`crate::doctor`]. Needs neither a daemon nor a runtime.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::args::DEFAULT_STATE_DIR;
use crate::connect::Context;
use crate::doctor::{Check, Facts, Status, decide};
use crate::failure::{Exit, Failure};
use crate::output::{Table, wants_colour};

/// Options of `doctor`.
#[derive(Debug, Args)]
pub struct Options {
    /// State directory of the daemon, for the checks of its filesystem
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// Show only what is not as it should be
    #[arg(long)]
    troubles: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    /// The worst of all.
    status: Status,
    checks: Vec<Check>,
}

/// Runs it.
///
/// # Errors
/// [`Exit::Unsupported`] if a check fails: guests cannot run here.
pub fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let facts = Facts::gather(&context.socket, &options.state_dir);
    let mut checks = decide(&facts);
    let status = checks.iter().map(|c| c.status).max().unwrap_or(Status::Ok);
    if options.troubles {
        checks.retain(|check| check.status != Status::Ok);
    }
    let report = Report { status, checks };
    let troubles = || {
        let troubled = report.checks.iter().filter(|c| c.status != Status::Ok);
        troubled.map(|c| c.name.to_owned()).collect()
    };
    let paint = |text: &str, status| {
        if wants_colour() { coloured(text, status) } else { text.to_owned() }
    };
    let text = || table(&report, paint);
    context.output.list(&report, troubles, text)?;
    let failed: Vec<&str> = report
        .checks
        .iter()
        .filter(|check| check.status == Status::Fail)
        .map(|check| check.name)
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    let what = format!("guests cannot run on this host: {}", failed.join(", "));
    Err(Failure::new(Exit::Unsupported, what).hint("do what the table says"))
}

/// Advice stands below its line, so that the columns stay narrow.
fn table(report: &Report, paint: impl Fn(&str, Status) -> String) -> String {
    let mut table = Table::new(&["CHECK", "STATUS", "FOUND"]);
    for check in &report.checks {
        table.row([check.name.to_owned(), check.status.name().to_owned(), check.detail.clone()]);
    }
    let rendered = table.render();
    let mut lines = rendered.lines();
    let mut text = lines.next().unwrap_or_default().to_owned() + "\n";
    for (line, check) in lines.zip(&report.checks) {
        text.push_str(&paint(line, check.status));
        text.push('\n');
        if let Some(advice) = &check.advice {
            text.push_str(&format!("    to do: {advice}\n"));
        }
    }
    let count = |status| report.checks.iter().filter(|c| c.status == status).count();
    text.push_str(&format!(
        "{} ok, {} warnings, {} failures\n",
        count(Status::Ok),
        count(Status::Warn),
        count(Status::Fail)
    ));
    text
}

/// ECMA-48 colours.
fn coloured(text: &str, status: Status) -> String {
    match status {
        Status::Ok => text.to_owned(),
        Status::Warn => format!("\u{1b}[33m{text}\u{1b}[0m"),
        Status::Fail => format!("\u{1b}[31m{text}\u{1b}[0m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_follows_its_line() {
        let check = |name, status, advice: Option<&str>| Check {
            name,
            status,
            detail: "found".into(),
            advice: advice.map(str::to_owned),
        };
        let report = Report {
            status: Status::Fail,
            checks: vec![
                check("kernel", Status::Ok, None),
                check("loop devices", Status::Fail, Some("modprobe loop")),
            ],
        };
        insta::assert_snapshot!(table(&report, |text, _| text.to_owned()), @r"
        CHECK         STATUS  FOUND
        kernel        ok      found
        loop devices  fail    found
            to do: modprobe loop
        1 ok, 0 warnings, 1 failures
        ");
    }
}
