//! Scripts of the virtual machine manager, on a host.
//!
//! Every call is a request of its own: oned's retries must have an effect again. The daemon may be
//! away for a moment (an upgrade); a call waits for it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_opennebula::vmm::{self, VmmCall};
use ocivisor_opennebula::{Answer, progress};
use ocivisor_rpc::Client;
use ocivisor_schema::spec::{NicV1, ResourcesV1};
use ocivisor_schema::{ChangeV1, Text, VmSpecV1};

use super::config::Config;
use super::remarks::remark;
use super::{exec, nics};
use crate::connect::{Context, Wait, Wish, block_on, fresh_request_id, millis};
use crate::failure::{Exit, Failure};
use crate::nic::with;
use crate::output::{Format, Output};

/// Carries a call out and answers it.
pub fn answer(action: &str, argv: &[OsString], stdin: &[u8], socket: Option<PathBuf>) -> Answer {
    let call = match vmm::plan(action, argv, stdin) {
        Ok(call) => call,
        Err(refusal) => return refusal.answer(),
    };
    for note in call.notes() {
        remark(&note.line(call.vm()));
    }
    let began = Instant::now();
    let done = Config::load().and_then(|config| match &call {
        VmmCall::Exec { vm, command, stdin } => exec::begin(*vm, command, stdin, &config, socket),
        VmmCall::ExecCancel { vm } => exec::cancel(*vm, &config),
        _ => block_on(carry_out(&call, &config, &context(config.socket(socket))))
            .map_err(Error::from),
    });
    match done {
        Ok(()) => {
            let text = format!("{} took {} ms", call.action().name(), began.elapsed().as_millis());
            remark(&progress(call.vm(), &text));
            call.success()
        }
        Err(error) => call.failure(&error),
    }
}

impl From<Failure> for Error {
    /// For the sentence; its kind is not told to oned.
    fn from(failure: Failure) -> Self {
        let error = Self::new(ErrorKind::Host, &failure.message);
        match &failure.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// How a script asks the daemon.
pub(super) fn context(socket: PathBuf) -> Context {
    Context {
        socket,
        output: Output { format: Format::Table, quiet: true },
        request_id: fresh_request_id(),
        timeout: None,
        wait: Wait::ForResult,
        wish: Wish::Presence,
        // A failure told to oned while the operation goes on would be worse than any wait: oned
        // believes it, and the guest runs unknown to it. oned has a timeout of its own if one is wanted.
        patience: Duration::MAX,
    }
}

async fn carry_out(call: &VmmCall, config: &Config, context: &Context) -> Result<(), Failure> {
    if matches!(call, VmmCall::Prereconfigure { .. }) {
        // Nothing is held: the disk is read when the guest is told.
        return Ok(());
    }
    let away = Duration::from_secs(config.daemon_timeout);
    let client = reach(call, context, away).await?;
    let done = act(call, config, context, &client).await;
    if let Err(failure) = &done {
        tell_of_more(call, &client, failure).await;
    }
    done
}

/// Says where more is to be learnt of a failure, if the daemon keeps that very one.
async fn tell_of_more(call: &VmmCall, client: &Client, failure: &Failure) {
    let vm = call.vm_id();
    let Ok(why) = client.vm_why(Text(vm.clone())).await else { return };
    // The answer may go on: what could not be released is told behind the cause.
    if why.failure.is_some_and(|kept| failure.message.starts_with(&kept.error.message)) {
        remark(&progress(call.vm(), &format!("on this host, `ocivisor why {vm}` tells more")));
    }
}

async fn act(
    call: &VmmCall,
    config: &Config,
    context: &Context,
    client: &Client,
) -> Result<(), Failure> {
    let vm = || Text(call.vm_id());
    let grace = config.shutdown_timeout.map(|seconds| millis(Duration::from_secs(seconds)));
    match call {
        VmmCall::Deploy { spec, .. } => {
            // What an earlier try left is cleared within the operation, unless it is this very guest.
            let spec = VmSpecV1::from(spec.as_ref());
            let send = async |c: &Client, id| c.vm_deploy(id, spec.clone()).await;
            context.run_operation(client, &send).await?;
        }
        VmmCall::Shutdown { .. } => {
            let force = config.force_shutdown;
            let send = async |c: &Client, id| c.vm_shutdown(id, vm(), grace, force, true).await;
            context.wishing_absence().run_operation(client, &send).await?;
        }
        VmmCall::Cancel { .. } => {
            let send = async |c: &Client, id| c.vm_destroy(id, vm(), true).await;
            context.wishing_absence().run_operation(client, &send).await?;
        }
        VmmCall::Reboot { .. } => {
            let send = async |c: &Client, id| c.vm_reboot(id, vm(), grace).await;
            context.run_operation(client, &send).await?;
        }
        VmmCall::Reset { .. } => {
            let send = async |c: &Client, id| c.vm_reset(id, vm()).await;
            context.run_operation(client, &send).await?;
        }
        VmmCall::Resize { resources, .. } => {
            let resources = Some(ResourcesV1::from(resources.as_ref()));
            let change = ChangeV1 { resources, ..ChangeV1::default() };
            let send = async |c: &Client, id| c.vm_change(id, vm(), change.clone()).await;
            context.run_operation(client, &send).await?;
        }
        VmmCall::Prereconfigure { .. } | VmmCall::Exec { .. } | VmmCall::ExecCancel { .. } => {}
        VmmCall::AttachNic { nic, .. } => {
            let nic = NicV1::from(nic.as_ref());
            let change = |now| nics_alone(with(now, nic));
            nics::change(call, context, client, change).await?;
        }
        VmmCall::DetachNic { mac, .. } => {
            let is_other = |nic: &NicV1| nic.mac != mac.to_string();
            let change = |now: Vec<_>| nics_alone(now.into_iter().filter(is_other).collect());
            nics::change(call, context, client, change).await?;
        }
        VmmCall::Reconfigure { context: told, nics: all, moving, .. } => {
            let all = all.as_ref().map(|all| all.iter().map(NicV1::from).collect());
            let change = |now: Vec<_>| ChangeV1 {
                context: Some(told.as_ref().into()),
                // If they are as wished, a failure is the telling's alone.
                nics: all.map(|all| nics::wished(&now, all, *moving)).filter(|all| *all != now),
                ..ChangeV1::default()
            };
            nics::change(call, context, client, change).await?;
        }
    }
    Ok(())
}

fn nics_alone(nics: Vec<NicV1>) -> ChangeV1 {
    ChangeV1 { nics: Some(nics), ..ChangeV1::default() }
}

/// A client of a daemon that may be away for a moment.
async fn reach(call: &VmmCall, context: &Context, away: Duration) -> Result<Client, Failure> {
    let began = Instant::now();
    let mut told = false;
    loop {
        match context.daemon().await {
            Err(failure) if failure.exit == Exit::Unreachable && began.elapsed() < away => {
                if !told {
                    remark(&progress(call.vm(), "waiting for ocivisord"));
                    told = true;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            result => return result,
        }
    }
}
