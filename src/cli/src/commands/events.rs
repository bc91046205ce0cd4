//! Shows what happened. Numbers let a reader go on where it stopped, also after a lost connection.

use clap::Args;
use ocivisor_rpc::{Client, ClientError, MAX_EVENTS, MAX_WAIT_MS};
use ocivisor_schema::reply::EventsReply;
use ocivisor_schema::{EventDataV1, EventV1, OutcomeV1};
use serde_json::Value;

use crate::connect::{Context, PATIENCE, progress};
use crate::failure::{Exit, Failure};
use crate::output::{Format, Reader, SCHEMA_VERSION, write_bytes};

/// Options of `events`.
#[derive(Debug, Args)]
pub struct Options {
    /// Begin with the event of this number; else with the oldest one that is kept
    #[arg(long, value_name = "SEQ", default_value_t = 0, hide_default_value = true)]
    since: u64,
    /// Go on as things happen
    #[arg(short, long)]
    follow: bool,
    /// Only those of this virtual machine
    #[arg(long, value_name = "VM")]
    vm: Option<ocivisor_core::ids::VmId>,
}

/// Runs it.
///
/// # Errors
/// The daemon cannot be reached.
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let client = context.daemon().await?;
    let mut next = options.since;
    loop {
        let wait = if options.follow { MAX_WAIT_MS } else { 0 };
        let reply = since(&client, next, wait).await?;
        if reply.lost && (next > 0 || options.follow) {
            progress(context.output, "events before these are no longer kept");
        }
        let wanted = |event: &&EventV1| {
            options.vm.as_ref().is_none_or(|vm| event.vm.as_ref().is_some_and(|of| of.0 == *vm))
        };
        let mut text = String::new();
        for event in reply.events.iter().filter(wanted) {
            text.push_str(&line(event, context.output.format)?);
        }
        if write_bytes(text.as_bytes())? == Reader::Gone {
            return Ok(());
        }
        let stuck = reply.next_seq == next && reply.events.is_empty();
        next = reply.next_seq;
        if !options.follow && (stuck || reply.events.is_empty()) {
            return Ok(());
        }
    }
}

/// Asks again while the daemon is being replaced.
async fn since(client: &Client, seq: u64, wait: u64) -> Result<EventsReply, ClientError> {
    let began = std::time::Instant::now();
    loop {
        match client.events_since(seq, MAX_EVENTS, wait).await {
            Err(ClientError::Broken { .. } | ClientError::Unreachable { .. })
                if wait > 0 && began.elapsed() < PATIENCE =>
            {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            result => return result,
        }
    }
}

fn line(event: &EventV1, format: Format) -> Result<String, Failure> {
    if format == Format::Json {
        let mut value = serde_json::to_value(event)
            .map_err(|e| Failure::new(Exit::Failure, format!("make JSON: {e}")))?;
        if let Value::Object(map) = &mut value {
            map.insert("schema_version".into(), SCHEMA_VERSION.into());
        }
        return Ok(format!("{value}\n"));
    }
    let subject = match (&event.vm, &event.image) {
        (Some(vm), Some(image)) => format!("{vm} {image}"),
        (Some(vm), None) => vm.to_string(),
        (None, Some(image)) => image.clone(),
        (None, None) => "image store".to_owned(),
    };
    let text = format!("{}  {}  {subject}  {}", event.seq, event.at, words(&event.data));
    Ok(ocivisor_core::error::one_line(&text) + "\n")
}

fn words(data: &EventDataV1) -> String {
    match data {
        EventDataV1::OperationStarted { op, operation } => format!("{operation} started ({op})"),
        EventDataV1::OperationProgress { op, step, .. } => format!("{step} ({op})"),
        EventDataV1::OperationFinished { op, operation, result } => match result {
            OutcomeV1::Ok => format!("{operation} done ({op})"),
            OutcomeV1::Error(error) => format!("{operation} failed: {} ({op})", error.message),
        },
        EventDataV1::StateChanged { from, to } => match from {
            Some(from) => format!("{} -> {}", from.name(), to.name()),
            None => format!("new, {}", to.name()),
        },
        EventDataV1::GuestExited { exit } => {
            format!("guest ended: {}", super::info::exit_text(*exit))
        }
        EventDataV1::ShimAdopted { losses } if losses.is_empty() => "has a new shim".to_owned(),
        EventDataV1::ShimAdopted { losses } => {
            format!("has a new shim; lost: {}", losses.join("; "))
        }
        EventDataV1::VmOom { count, total } => {
            format!("memory full, processes killed: {count} ({total} since boot)")
        }
        EventDataV1::HealthChanged { from, to } => format!("{} -> {}", from.name(), to.name()),
        EventDataV1::RestartsExhausted { restarts } => {
            format!("failed again, not restarted any more ({restarts} times in a row)")
        }
        EventDataV1::VmForgotten => "forgotten".to_owned(),
        EventDataV1::Unknown => "something that this version does not know".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_words_or_json() {
        let event: EventV1 = serde_json::from_value(serde_json::json!({
            "seq": 3, "at": "2026-11-20T10:00:00.000Z", "vm": "one-7", "kind": "state_changed",
            "from": "running", "to": "stopped",
        }))
        .unwrap();
        assert_eq!(
            line(&event, Format::Table).unwrap(),
            "3  2026-11-20T10:00:00.000Z  one-7  running -> stopped\n"
        );
        let json = line(&event, Format::Json).unwrap();
        assert!(
            json.contains("\"schema_version\":1") && json.contains("\"kind\":\"state_changed\"")
        );
    }
}
