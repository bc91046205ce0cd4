//! OpenNebula's XML to VM specs, and its answers. Pure: no I/O, no daemon, no clock.
//!
//! ```text
//! argv ──► Invocation ─┐
//! stdin ─► Element ─► DriverVm ─► to_spec ─► VmSpec + notes ──► VmmCall ─► (the CLI calls the daemon)
//!         xml.rs      vm.rs       spec.rs    nics.rs boot.rs    vmm.rs  ◄─ Answer: stdout, stderr, exit
//! ```
//!
//! The command line needs [`vmm::plan`] alone: it takes a script's name, arguments and standard
//! input, and says what to do or why not.
//!
//! What can go wrong: every byte of the XML may be a tenant's (`USER_TEMPLATE` is editable at any
//! time, `CONTEXT` and `NAME` are free text), and the XML can arrive cut. So parsing is bounded
//! ([`xml`]), a document that does not close is an error, values become types before they are
//! used, and no value is ever interpreted as a path, a shell word or a format string.
//!
//! Deliberately absent: the name under which the driver is registered (it may be `ocivisor` or
//! `lxc`), and everything that the network drivers of OpenNebula do themselves (security groups,
//! VLANs).

mod answer;
mod boot;
mod context;
mod disks;
pub mod ds;
mod graphics;
mod invocation;
pub mod market;
pub mod monitor;
mod nics;
mod resources;
mod signal;
mod source;
mod spec;
pub mod tm;
mod told;
mod vm;
pub mod vmm;
mod words;
pub mod xml;

use std::fmt;
use std::str::FromStr;

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::VmId;

pub use answer::{Answer, Note, Notes, failure, progress};
pub use invocation::{Action, Invocation};
pub use source::ImageSource;
pub use spec::to_spec;
pub use vm::{Disk, DiskKind, DriverVm, Nic, Vector, parse};

/// A VM's number in OpenNebula: 0 to 2³¹-1, decimal, without sign or leading zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OneId(u32);

impl OneId {
    /// The number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// The VM's identity with us and, at the same time, the deploy id that `deploy` prints.
    ///
    /// The form is not free: the network drivers compute a NIC's host interface as
    /// `<deploy id>-<NIC_ID>`.
    #[must_use]
    pub fn vm_id(self) -> VmId {
        vm_id_of(self.0)
    }

    /// The number in an id that [`OneId::vm_id`] made; `None` for VMs of other callers.
    #[must_use]
    pub fn of_vm(id: &VmId) -> Option<Self> {
        id.as_str().strip_prefix("one-")?.parse().ok()
    }
}

/// The deploy id of a VM: `one-<number>`.
#[must_use]
pub fn deploy_id(vm: OneId) -> String {
    vm.vm_id().to_string()
}

#[expect(clippy::expect_used, reason = "letters, a hyphen and digits are a vm id")]
fn vm_id_of(number: u32) -> VmId {
    format!("one-{number}").parse().expect("a valid vm id")
}

impl FromStr for OneId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        decimal(text).filter(|number| i32::try_from(*number).is_ok()).map(Self).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, format!("{:?} is not the number of a VM", clip(text)))
        })
    }
}

impl fmt::Display for OneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A plain decimal: digits only, no leading zeros, so that a number has one spelling.
fn decimal(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|c| c.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// Foreign text for a message, cut to 80 characters. Print it with `{:?}`.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

fn invalid(what: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

/// Entry for fuzzers: any bytes as standard input of every action. Must neither panic nor hang.
///
/// # Panics
/// When an accepted deployment breaks an invariant: the spec does not pass its own check, the root
/// disk is outside the VM's directory, or a host interface does not carry the VM's name.
pub fn fuzz(data: &[u8]) {
    let dir = "/var/lib/one//datastores/0/7";
    let file = format!("{dir}/deployment.0");
    for action in Action::ALL {
        let first = if action == Action::Deploy { &file } else { "" };
        let argv = [first, "node1", "7", "node1"];
        let Ok(call) = vmm::plan(action.name(), &argv, data) else {
            continue;
        };
        assert_eq!(call.vm_id().as_str(), "one-7");
        if let vmm::VmmCall::Deploy { spec, .. } = &call {
            assert_eq!(spec.check(), Ok(()));
            assert!(spec.root.path.starts_with("/var/lib/one/datastores/0/7"));
            let ours =
                |nic: &ocivisor_core::spec::NicSpec| nic.host_name.as_str().starts_with("one-7-");
            assert!(spec.nics.iter().all(ours));
        }
        if let vmm::VmmCall::Resize { resources, .. } = &call {
            assert!(resources.swap <= resources.memory);
        }
        for note in call.notes() {
            assert_eq!(note.line(call.vm()).lines().count(), 1);
        }
    }
}
