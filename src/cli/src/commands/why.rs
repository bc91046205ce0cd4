//! Tells why a VM is as it is: what failed, at which step, the cause, the remedy, the guest's last lines.
//!
//! Admins of OpenNebula's know a VM by its number, so `42` is also `one-42`, where no VM is called `42`.

use clap::Args;
use ocivisor_core::error::one_line;
use ocivisor_core::ids::VmId;
use ocivisor_rpc::Client;
use ocivisor_schema::{KeptFailureV1, Text, WhyReply};

use super::info::exit_text;
use crate::connect::Context;
use crate::failure::{Exit, Failure};
use crate::output::fields;

/// Options of `why`.
#[derive(Debug, Args)]
pub struct Options {
    /// Id of the virtual machine, known or not; a number is that of OpenNebula
    #[arg(value_name = "VM")]
    vm: VmId,
}

/// Runs it.
///
/// # Errors
/// [`Exit::NotFound`]: nothing is known of the VM. See [`Context::ask`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let reply = find(&options.vm, &client, context).await?;
    context.output.emit(&reply, || text(&reply))
}

async fn find(vm: &VmId, client: &Client, context: &Context) -> Result<WhyReply, Failure> {
    let answer = context.ask(client.vm_why(Text(vm.clone()))).await;
    let unknown = |answer: &Result<_, Failure>| {
        answer.as_ref().is_err_and(|failure| failure.exit == Exit::NotFound)
    };
    let Some(other) = of_opennebula(vm).filter(|_| unknown(&answer)) else { return answer };
    let second = context.ask(client.vm_why(Text(other.clone()))).await;
    if unknown(&second) {
        return answer.map_err(|failure| Failure {
            message: format!("nothing is known of vm {vm}, nor of {other}"),
            ..failure
        });
    }
    second
}

/// What OpenNebula's VM of that number is called here.
fn of_opennebula(vm: &VmId) -> Option<VmId> {
    let number: u32 = vm.as_str().parse().ok()?;
    format!("one-{number}").parse().ok()
}

fn text(reply: &WhyReply) -> String {
    let (mut pairs, lines) = match &reply.failure {
        Some(failure) => (of_failure(failure), &failure.console),
        None => (Vec::new(), &reply.console),
    };
    pairs.push(("state", state(reply)));
    if let Some(reason) = &reply.reason {
        pairs.push(("reason", reason.clone()));
    }
    // Of the failure's guest it is told above.
    if let (None, Some(exit)) = (reply.failure.as_ref().and_then(|f| f.exit), reply.last_exit) {
        let how = if reply.ended_by_itself { "ended by itself, " } else { "ended, " };
        pairs.push(("guest", format!("{how}{}", exit_text(exit))));
    }
    let what = match &reply.failure {
        Some(failure) => format!("{} failed", failure.operation),
        None => "no operation failed since it was last booted".to_owned(),
    };
    let mut text = format!("{}: {what}\n{}", reply.vm, fields(&pairs));
    if !lines.is_empty() {
        text.push_str("\nlast lines of the guest\n");
        for line in lines {
            text.push_str(&format!("  {}\n", one_line(line)));
        }
    }
    text
}

fn of_failure(failure: &KeptFailureV1) -> Vec<(&'static str, String)> {
    let mut pairs = Vec::new();
    if let Some(step) = &failure.step {
        let meaning = meaning(step).map_or_else(String::new, |words| format!(": {words}"));
        pairs.push(("step", format!("{step}{meaning}")));
    }
    pairs.push(("cause", failure.error.message.clone()));
    pairs.extend(failure.error.hint.clone().map(|hint| ("remedy", hint)));
    pairs.extend(failure.exit.map(|exit| ("guest", format!("ended, {}", exit_text(exit)))));
    pairs.push(("when", failure.at.to_string()));
    pairs
}

fn state(reply: &WhyReply) -> String {
    match (&reply.display_state, reply.changed) {
        (None, _) => "not known any more: a failed deploy forgets the VM".to_owned(),
        (Some(state), None) => state.clone(),
        (Some(state), Some(since)) => format!("{state}, since {since}"),
    }
}

/// What a step of the daemon does; a newer daemon may have others.
fn meaning(step: &str) -> Option<&'static str> {
    Some(match step {
        "cgroup" => "control groups with the limits",
        "namespaces" => "user and network namespace",
        "nics" => "network interfaces",
        "root" => "the root disk is mounted",
        "disks" => "data disks",
        "display" => "the VNC console listens",
        "create" => "the guest's first process is made",
        "tell" => "the context is written into the guest",
        "start" => "the guest begins",
        "settle" => "the guest must live for a moment",
        "limit" => "limits of a guest that runs",
        "rewire" => "network interfaces of a guest that runs",
        "ask-to-end" => "the guest is asked to end",
        "drop-guest" => "the guest's processes are ended",
        "drop-display" => "the VNC console is ended",
        "drop-cgroup" => "control groups are removed",
        "drop-nics" => "network interfaces are removed",
        "drop-disks" => "data disks are detached",
        "drop-root" => "the root disk is unmounted",
        "drop-namespaces" => "namespaces are removed",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_opennebulas() {
        let of = |text: &str| of_opennebula(&text.parse().unwrap()).map(|id| id.to_string());
        assert_eq!(of("42").as_deref(), Some("one-42"));
        assert_eq!(of("one-42"), None);
        assert_eq!(of("web"), None);
    }

    #[test]
    fn every_step_has_a_meaning() {
        use ocivisor_core::plan::{Step, release};
        let ask = Step::AskToEnd { timeout_ms: 0, force: false };
        let ways = [
            Step::Cgroup,
            Step::Namespaces,
            Step::Nics,
            Step::Root,
            Step::Disks,
            Step::Display,
            Step::Create,
            Step::Tell,
            Step::Start,
            Step::Settle,
            Step::Limit,
            Step::Rewire,
            ask,
        ];
        for step in ways.iter().chain(release()) {
            assert!(meaning(step.name()).is_some(), "{step:?}");
        }
    }
}
