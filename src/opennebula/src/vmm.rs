//! The scripts of OpenNebula's virtual machine manager: what a call asks for, and the answers.
//!
//! ```no_run
//! # use ocivisor_opennebula::{Answer, vmm, vmm::VmmCall, xml};
//! # fn ask_daemon(call: &VmmCall) -> ocivisor_core::error::Result<()> { unimplemented!() }
//! # fn print(answer: &Answer) {}
//! # let (action, argv, stdin) = ("deploy", ["", "", "", ""], vec![]);
//! // action: the script's own name; argv: what follows it, verbatim ("" and "-" occur);
//! // stdin: at most xml::MAX_INPUT + 1 bytes of standard input.
//! let call = match vmm::plan(action, &argv, &stdin) {
//!     Ok(call) => call,
//!     Err(refusal) => return print(&refusal.answer()), // nothing was touched
//! };
//! for note in call.notes() {
//!     eprint!("{}", note.line(call.vm())); // INFO lines, at once
//! }
//! match ask_daemon(&call) {
//!     Ok(()) => print(&call.success()),
//!     Err(error) => print(&call.failure(&error)),
//! }
//! ```
//!
//! What each call means to oned, and so what the caller of [`plan`] owes:
//!
//! | call | owed | when the VM does not exist |
//! |---|---|---|
//! | [`VmmCall::Deploy`] | a running guest made from its disks, also if one of this id is there from an earlier try (remove it first); after a failure nothing is left, for no `cancel` follows | the usual case |
//! | [`VmmCall::Shutdown`] | ask the guest to end, wait, then remove it; return only when processes, mounts, devices and interfaces are gone, for the disks are moved next | success |
//! | [`VmmCall::Cancel`] | remove it at once, also half-made, also while another call works on it | success |
//! | [`VmmCall::Reboot`] | ask the guest to restart; interfaces keep their names | failure |
//! | [`VmmCall::Reset`] | restart it by force; interfaces keep their names | failure |
//! | [`VmmCall::Resize`] | give the guest these limits, or leave it as it is | failure |
//! | [`VmmCall::AttachNic`] | the VM has this NIC, whole, in place of any that has its number, name or MAC | success: its next deploy brings it |
//! | [`VmmCall::DetachNic`] | the VM has no NIC with this MAC; it is the way back of a failed attachment, too | success |
//! | [`VmmCall::Prereconfigure`] | let go of the context disk, which is replaced next; we hold none | success |
//! | [`VmmCall::Exec`] | begin it and return; how it ends is told by monitoring | failure |
//! | [`VmmCall::ExecCancel`] | end what [`VmmCall::Exec`] began | success |
//! | [`VmmCall::Reconfigure`] | tell the guest the new context, and give it these NICs: addresses of aliases come this way alone | success: a stopped one gets it at its next start |
//!
//! The XML must be whole. A cut one is refused at once, with one exception: `cancel` is the
//! cleaning after failures, so it works from the arguments alone when the XML is unreadable (a
//! note says so). XML that *is* readable and names another VM than the arguments is refused, for
//! `cancel` too.

use std::ffi::OsStr;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::{Hostname, MacAddr, VmId};
use ocivisor_core::spec::{Context, NicSpec, Resources, VmSpec, normal_path};

use crate::answer::{self, Answer, Note, Notes};
use crate::invocation::{Action, Invocation};
use crate::{OneId, clip, deploy_id, invalid, nics, resources, spec, told, vm};

/// What a call asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmmCall {
    /// Make and start the guest.
    Deploy {
        /// Which VM.
        vm: OneId,
        /// What it shall be; has passed its own check.
        spec: Box<VmSpec>,
        /// What of the template is not honoured.
        notes: Vec<Note>,
    },
    /// End the guest in its own way and remove it.
    Shutdown {
        /// Which VM.
        vm: OneId,
    },
    /// Remove the guest at once.
    Cancel {
        /// Which VM.
        vm: OneId,
        /// That the XML was unreadable, if it was.
        notes: Vec<Note>,
    },
    /// Restart the guest in its own way.
    Reboot {
        /// Which VM.
        vm: OneId,
    },
    /// Restart the guest by force.
    Reset {
        /// Which VM.
        vm: OneId,
    },
    /// Give the guest other limits while it runs.
    Resize {
        /// Which VM.
        vm: OneId,
        /// All that it may use from now on.
        resources: Box<Resources>,
        /// What of the template is not honoured.
        notes: Vec<Note>,
    },
    /// Plug a NIC in.
    AttachNic {
        /// Which VM.
        vm: OneId,
        /// The NIC.
        nic: Box<NicSpec>,
        /// What of the template is not honoured.
        notes: Vec<Note>,
    },
    /// Unplug a NIC.
    DetachNic {
        /// Which VM.
        vm: OneId,
        /// Which NIC.
        mac: MacAddr,
    },
    /// The context disk is about to be replaced.
    Prereconfigure {
        /// Which VM.
        vm: OneId,
    },
    /// The guest's context changed.
    Reconfigure {
        /// Which VM.
        vm: OneId,
        /// What it is told now, all of it.
        context: Box<Context>,
        /// Its NICs, all of them; `None` if the template's cannot be read, which a note says.
        nics: Option<Vec<NicSpec>>,
        /// Number of the NIC that is coming or going: listed in both cases. If the VM has it, it stays.
        moving: Option<u32>,
        /// The host name that it has from the next deployment on; `None` where nothing but a NIC has changed.
        hostname: Option<Hostname>,
        /// What of it is not honoured.
        notes: Vec<Note>,
    },
    /// Have a command run in the guest; the call does not wait for its end.
    Exec {
        /// Which VM.
        vm: OneId,
        /// For the guest's `/bin/sh -c`.
        command: String,
        /// Its standard input.
        stdin: Vec<u8>,
    },
    /// End that command.
    ExecCancel {
        /// Which VM.
        vm: OneId,
    },
}

impl VmmCall {
    /// Its number in OpenNebula.
    #[must_use]
    pub fn vm(&self) -> OneId {
        match self {
            Self::Deploy { vm, .. }
            | Self::Shutdown { vm }
            | Self::Cancel { vm, .. }
            | Self::Reboot { vm }
            | Self::Reset { vm }
            | Self::Resize { vm, .. }
            | Self::AttachNic { vm, .. }
            | Self::DetachNic { vm, .. }
            | Self::Prereconfigure { vm }
            | Self::Reconfigure { vm, .. }
            | Self::Exec { vm, .. }
            | Self::ExecCancel { vm } => *vm,
        }
    }

    /// Its identity with us.
    #[must_use]
    pub fn vm_id(&self) -> VmId {
        self.vm().vm_id()
    }

    /// Which script it was.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Self::Deploy { .. } => Action::Deploy,
            Self::Shutdown { .. } => Action::Shutdown,
            Self::Cancel { .. } => Action::Cancel,
            Self::Reboot { .. } => Action::Reboot,
            Self::Reset { .. } => Action::Reset,
            Self::Resize { .. } => Action::Resize,
            Self::AttachNic { .. } => Action::AttachNic,
            Self::DetachNic { .. } => Action::DetachNic,
            Self::Prereconfigure { .. } => Action::Prereconfigure,
            Self::Reconfigure { .. } => Action::Reconfigure,
            Self::Exec { .. } => Action::Exec,
            Self::ExecCancel { .. } => Action::ExecCancel,
        }
    }

    /// A remark on the host name, if the VM has another one now: it is no part of the context but of the VM, and a deployment
    /// brings it. one-context in a guest does not wait for that.
    #[must_use]
    pub fn hostname_note(&self, now: &str) -> Option<String> {
        let Self::Reconfigure { hostname: Some(wished), .. } = self else { return None };
        let says = || {
            format!(
                "the guest keeps the host name {now} until its next deployment, and is {wished} from then on (an image with \
                 one-context takes it at once)"
            )
        };
        (wished.as_str() != now).then(says)
    }

    /// Remarks for the VM's log.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        match self {
            Self::Deploy { notes, .. }
            | Self::Cancel { notes, .. }
            | Self::Resize { notes, .. }
            | Self::AttachNic { notes, .. }
            | Self::Reconfigure { notes, .. } => notes,
            Self::Shutdown { .. }
            | Self::Reboot { .. }
            | Self::Reset { .. }
            | Self::DetachNic { .. }
            | Self::Prereconfigure { .. }
            | Self::Exec { .. }
            | Self::ExecCancel { .. } => &[],
        }
    }

    /// The answer when it is done: `deploy` prints the deploy id, the others nothing.
    #[must_use]
    pub fn success(&self) -> Answer {
        Answer::success(match self {
            Self::Deploy { vm, .. } => format!("{}\n", deploy_id(*vm)),
            Self::Shutdown { .. }
            | Self::Cancel { .. }
            | Self::Reboot { .. }
            | Self::Reset { .. }
            | Self::Resize { .. }
            | Self::AttachNic { .. }
            | Self::DetachNic { .. }
            | Self::Prereconfigure { .. }
            | Self::Reconfigure { .. }
            | Self::Exec { .. }
            | Self::ExecCancel { .. } => String::new(),
        })
    }

    /// The answer when it failed.
    #[must_use]
    pub fn failure(&self, error: &Error) -> Answer {
        answer::failure(self.action(), Some(self.vm()), error)
    }
}

/// A call that is answered without touching anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why; [`ErrorKind::Unsupported`] for actions that this version does not have.
    pub error: Error,
    cause: Cause,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Cause {
    /// The sentence is the error's message.
    Script,
    /// The sentence is about a VM.
    Call(Action, Option<OneId>),
}

impl Refusal {
    /// The answer: one sentence, exit code 1.
    #[must_use]
    pub fn answer(&self) -> Answer {
        match self.cause {
            Cause::Script => Answer::sentence(&self.error.message),
            Cause::Call(action, vm) => answer::failure(action, vm, &self.error),
        }
    }
}

/// Reads a call: `action` is the script's own name, `argv` its arguments, `stdin` its input.
///
/// # Errors
/// [`Refusal`]: an unknown or unsupported action, wrong arguments, unreadable or foreign XML, or a
/// template that cannot become a guest.
pub fn plan<A: AsRef<OsStr>>(action: &str, argv: &[A], stdin: &[u8]) -> Result<VmmCall, Refusal> {
    let script = |what: String| Refusal {
        error: Error::new(ErrorKind::Unsupported, what),
        cause: Cause::Script,
    };
    let Some(action) = Action::from_name(action) else {
        return Err(script(format!("Action {:?} is unknown to ocivisor", clip(action))));
    };
    let make: fn(OneId) -> VmmCall = match action {
        Action::Deploy => return deploy(argv, stdin),
        Action::Cancel => return cancel(argv, stdin),
        Action::Resize => return resize(argv, stdin),
        Action::Shutdown => |vm| VmmCall::Shutdown { vm },
        Action::Reboot => |vm| VmmCall::Reboot { vm },
        Action::Reset => |vm| VmmCall::Reset { vm },
        Action::Prereconfigure => |vm| VmmCall::Prereconfigure { vm },
        Action::Reconfigure => return reconfigure(argv, stdin),
        Action::AttachNic => return attach_nic(argv, stdin),
        Action::DetachNic => return detach_nic(argv, stdin),
        Action::Exec => return exec(argv, stdin),
        Action::ExecCancel => |vm| VmmCall::ExecCancel { vm },
        Action::Save
        | Action::Restore
        | Action::Migrate
        | Action::MigrateLocal
        | Action::AttachDisk
        | Action::DetachDisk
        | Action::SnapshotCreate
        | Action::SnapshotRevert
        | Action::SnapshotDelete
        | Action::ResizeDisk
        | Action::Poll => {
            return Err(script(format!(
                "Action {} is not supported by ocivisor yet",
                action.name()
            )));
        }
    };
    let call = invocation(action, argv)?;
    let refuse = |error| refuse(&call, error);
    if !is_blank(stdin) {
        let named = vm::parse_id(stdin).map_err(refuse)?;
        same_vm(&call, named).map_err(refuse)?;
    }
    Ok(make(call.vm))
}

fn refuse(call: &Invocation, error: Error) -> Refusal {
    Refusal { error, cause: Cause::Call(call.action, Some(call.vm)) }
}

fn invocation<A: AsRef<OsStr>>(action: Action, argv: &[A]) -> Result<Invocation, Refusal> {
    Invocation::parse(action, argv)
        .map_err(|error| Refusal { error, cause: Cause::Call(action, None) })
}

/// An admin who calls a script by hand has no XML.
fn is_blank(stdin: &[u8]) -> bool {
    stdin.iter().all(u8::is_ascii_whitespace)
}

fn same_vm(call: &Invocation, named: Option<OneId>) -> Result<(), Error> {
    match named {
        Some(named) if named != call.vm => {
            Err(invalid(format!("the XML is about VM {named}, the arguments about VM {}", call.vm)))
        }
        _ => Ok(()),
    }
}

fn deploy<A: AsRef<OsStr>>(argv: &[A], stdin: &[u8]) -> Result<VmmCall, Refusal> {
    let call = invocation(Action::Deploy, argv)?;
    let made = || {
        let vm = vm::parse(stdin)?;
        same_vm(&call, Some(vm.id))?;
        let file = call.args.first().map_or(Path::new(""), Path::new);
        spec::to_spec(&vm, vm_dir(file, call.vm)?.as_path())
    };
    let (spec, notes) = made().map_err(|error| refuse(&call, error))?;
    Ok(VmmCall::Deploy { vm: call.vm, spec: Box::new(spec), notes })
}

/// The disk's path is the third argument, the VM's directory its own; both are empty for a VM without context.
fn reconfigure<A: AsRef<OsStr>>(argv: &[A], stdin: &[u8]) -> Result<VmmCall, Refusal> {
    let call = invocation(Action::Reconfigure, argv)?;
    let mut notes = Notes::default();
    let mut made = || {
        let vm = vm::parse(stdin)?;
        same_vm(&call, Some(vm.id))?;
        // A failure would leave a NIC plugged that oned then forgets: what can be done is done.
        let nics = nics::nics(&vm, &mut notes).map_err(|error| {
            notes.add(format_args!("the network interfaces stay as they are: {error}"));
        });
        let moving = vm.nics.iter().find(|nic| nic.moving).map(|nic| nic.id);
        let disk = call.args.get(2).map(Path::new).filter(|path| !path.as_os_str().is_empty());
        // Where a NIC comes or goes, nothing else has changed.
        let hostname = moving.is_none().then(|| spec::hostname(&vm, &vm.id.vm_id(), &mut notes));
        let Some(disk) = disk else { return Ok((Context::default(), nics.ok(), moving, hostname)) };
        let dir = vm_dir(disk, call.vm)?;
        let context = told::context(vm.context.as_ref(), &dir, &mut notes);
        Ok((context, nics.ok(), moving, hostname))
    };
    let (context, nics, moving, hostname) = made().map_err(|error| refuse(&call, error))?;
    let (context, notes) = (Box::new(context), notes.into_vec());
    Ok(VmmCall::Reconfigure { vm: call.vm, context, nics, moving, hostname, notes })
}

/// The MAC is the second argument of both; the rest of an attachment is in the XML.
fn attach_nic<A: AsRef<OsStr>>(argv: &[A], stdin: &[u8]) -> Result<VmmCall, Refusal> {
    let call = invocation(Action::AttachNic, argv)?;
    let mut notes = Notes::default();
    let mut read = || {
        let vm = vm::parse(stdin)?;
        same_vm(&call, Some(vm.id))?;
        nics::attached(&vm, mac(&call)?, &mut notes)
    };
    let nic = read().map_err(|error| refuse(&call, error))?;
    Ok(VmmCall::AttachNic { vm: call.vm, nic: Box::new(nic), notes: notes.into_vec() })
}

/// The XML is not needed. Aliases may have the MAC of another interface in it, but have none of their own.
fn detach_nic<A: AsRef<OsStr>>(argv: &[A], stdin: &[u8]) -> Result<VmmCall, Refusal> {
    let call = invocation(Action::DetachNic, argv)?;
    let read = || {
        if !is_blank(stdin) {
            same_vm(&call, vm::parse_id(stdin)?)?;
        }
        mac(&call)
    };
    let mac = read().map_err(|error| refuse(&call, error))?;
    Ok(VmmCall::DetachNic { vm: call.vm, mac })
}

fn mac(call: &Invocation) -> Result<MacAddr, Error> {
    let text = call.args.get(1).map(|arg| arg.to_string_lossy()).unwrap_or_default();
    text.parse().map_err(|error| invalid(error).context("the MAC among the script's arguments"))
}

/// The directory of the deployment file, `<datastores>/<system datastore>/<vm>`. That it ends with
/// the VM's number keeps a mix-up from starting a guest on another VM's disks.
fn vm_dir(file: &Path, vm: OneId) -> Result<std::path::PathBuf, Error> {
    let dir = normal_path(file).and_then(|file| file.parent().map(Path::to_owned));
    dir.filter(|dir| dir.file_name() == Some(OsStr::new(&vm.to_string()))).ok_or_else(|| {
        invalid(format!("{:?} is not in a directory of VM {vm}", clip(&file.to_string_lossy())))
    })
}

/// The template holds the new values; the old ones are in `TEMPLATE/RESIZE`, which nobody needs: what
/// a refused change leaves in force is what was.
fn resize<A: AsRef<OsStr>>(argv: &[A], stdin: &[u8]) -> Result<VmmCall, Refusal> {
    let call = invocation(Action::Resize, argv)?;
    let mut notes = Notes::default();
    let mut read = || {
        let vm = vm::parse(stdin)?;
        same_vm(&call, Some(vm.id))?;
        resources::resources(&vm, &mut notes)
    };
    let wished = read().map_err(|error| refuse(&call, error))?;
    Ok(VmmCall::Resize { vm: call.vm, resources: Box::new(wished), notes: notes.into_vec() })
}

/// The command is one word, its input base64 in another; without input that is empty or missing.
fn exec<A: AsRef<OsStr>>(argv: &[A], stdin: &[u8]) -> Result<VmmCall, Refusal> {
    let call = invocation(Action::Exec, argv)?;
    let read = || {
        if !is_blank(stdin) {
            same_vm(&call, vm::parse_id(stdin)?)?;
        }
        let mut words = call.args.iter().map(|word| word.to_str());
        let bad = || invalid("the command is no text");
        let command = words.next().map_or(Some(""), |word| word).ok_or_else(bad)?;
        if command.trim().is_empty() || command.contains('\0') {
            return Err(invalid("there is no command"));
        }
        let input = words.next().flatten().unwrap_or_default();
        let input = STANDARD.decode(input).map_err(|_| invalid("the input is not base64"))?;
        Ok((command.to_owned(), input))
    };
    let (command, stdin) = read().map_err(|error| refuse(&call, error))?;
    Ok(VmmCall::Exec { vm: call.vm, command, stdin })
}

fn cancel<A: AsRef<OsStr>>(argv: &[A], stdin: &[u8]) -> Result<VmmCall, Refusal> {
    let call = invocation(Action::Cancel, argv)?;
    let mut notes = Notes::default();
    if !is_blank(stdin) {
        match vm::parse_id(stdin) {
            Ok(named) => same_vm(&call, named).map_err(|error| refuse(&call, error))?,
            Err(error) => {
                notes.add(format_args!("{error}: cancelling by the arguments of the script alone"));
            }
        }
    }
    Ok(VmmCall::Cancel { vm: call.vm, notes: notes.into_vec() })
}

#[cfg(test)]
mod tests;
