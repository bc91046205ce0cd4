//! How a script was called: its name and its arguments.
//!
//! oned's driver process ends every call with the pair `<VM id> <host>`, except `exec`, which
//! begins with it. That pair is what we trust: the deploy id in front can be empty (a failed boot
//! that an admin declared a success), `-` (a `deploy` that printed nothing) or anything that a
//! probe once reported.
//!
//! | scripts | arguments before the pair |
//! |---|---|
//! | `deploy` | path of the deployment file (ours to write, nobody does), host |
//! | `shutdown` `cancel` `reboot` `reset` | deploy id, host |
//! | `exec` | none; behind the pair the command and base64 of its input |
//! | `prereconfigure` | deploy id, name of the context's device |
//! | `reconfigure` | the same, path of the context disk |
//! | `attach_nic` | deploy id, MAC; what follows is in the XML as well |
//! | `detach_nic` | deploy id, MAC |
//! | others | not read yet |

use std::ffi::{OsStr, OsString};

use ocivisor_core::error::Error;

use crate::{OneId, clip, invalid};

macro_rules! actions {
    ($($variant:ident $name:literal),+ $(,)?) => {
        /// The scripts that oned's driver process may call.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Action {
            $(#[doc = concat!("`", $name, "`")] $variant),+
        }

        impl Action {
            /// All of them; each must exist as an executable, else oned copies the whole tree of
            /// scripts to the host and tries again.
            pub const ALL: [Self; 23] = [$(Self::$variant),+];

            /// File name of the script.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }
    };
}

actions! {
    Deploy "deploy",
    Shutdown "shutdown",
    Cancel "cancel",
    Reboot "reboot",
    Reset "reset",
    Save "save",
    Restore "restore",
    Migrate "migrate",
    MigrateLocal "migrate_local",
    AttachDisk "attach_disk",
    DetachDisk "detach_disk",
    AttachNic "attach_nic",
    DetachNic "detach_nic",
    SnapshotCreate "snapshot_create",
    SnapshotRevert "snapshot_revert",
    SnapshotDelete "snapshot_delete",
    Resize "resize",
    ResizeDisk "resize_disk",
    Prereconfigure "prereconfigure",
    Reconfigure "reconfigure",
    Exec "exec",
    ExecCancel "exec_cancel",
    Poll "poll",
}

impl Action {
    /// The action of that script.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    /// As in `Cannot <verb> VM 7`.
    pub(crate) fn verb(self) -> &'static str {
        match self {
            Self::Shutdown => "shut down",
            Self::AttachNic => "attach a NIC to",
            Self::DetachNic => "detach a NIC from",
            Self::Exec => "run a command in",
            Self::ExecCancel => "cancel the command in",
            other => other.name(),
        }
    }
}

/// One call of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Which script.
    pub action: Action,
    /// The VM, from the pair.
    pub vm: OneId,
    /// The host's name in OpenNebula, from the pair; for logs only.
    pub host: String,
    /// The other arguments, in order.
    pub args: Vec<OsString>,
}

impl Invocation {
    /// Reads the arguments after the script's name.
    ///
    /// # Errors
    /// The pair is missing or the VM's id in it is not a number; for `deploy` also a wrong number
    /// of arguments. The other actions need nothing but the pair, and a cleaning must not fail for
    /// an argument that it does not use.
    pub fn parse<A: AsRef<OsStr>>(action: Action, argv: &[A]) -> Result<Self, Error> {
        let count = argv.len();
        let wanted = match action {
            Action::Deploy if count != 4 => "<deployment file> <host> <vm id> <host>",
            _ if count < 2 => "at least <vm id> <host>",
            _ => "",
        };
        if !wanted.is_empty() {
            return Err(invalid(format!(
                "script {} was called with {count} arguments",
                action.name()
            ))
            .hint(format!("it takes {wanted}")));
        }
        let first = if action == Action::Exec { 0 } else { count - 2 };
        let vm = argv[first].as_ref().to_string_lossy().parse()?;
        let mut args: Vec<OsString> = argv.iter().map(|arg| arg.as_ref().to_owned()).collect();
        args.drain(first..first + 2);
        Ok(Self { action, vm, host: clip(&argv[first + 1].as_ref().to_string_lossy()), args })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_unknown() {
        for action in Action::ALL {
            assert_eq!(Action::from_name(action.name()), Some(action));
        }
        for bad in ["", "Deploy", "deploy.sh", "lib", "../deploy"] {
            assert_eq!(Action::from_name(bad), None);
        }
    }

    #[test]
    fn the_vm_is_that_of_the_pair_whatever_the_deploy_id() {
        for dep in ["one-7", "", "-", "some", "one-8", "one-renamed-7", "7"] {
            for action in [Action::Cancel, Action::Shutdown, Action::Reboot] {
                let call = Invocation::parse(action, &[dep, "node1", "7", "node1"]).unwrap();
                assert_eq!(call.vm.number(), 7);
                assert_eq!(call.host, "node1");
                assert_eq!(call.args, [dep, "node1"]);
            }
        }
    }

    #[test]
    fn every_shape_of_the_contract_parses() {
        use Action as A;
        let cases: [(A, &[&str], &[&str]); 15] = [
            (A::Deploy, &["/d/0/7/deployment.0", "n"], &[]),
            (A::Save, &["one-7", "/d/0/7/checkpoint", "n"], &[]),
            (A::Restore, &["/d/0/7/checkpoint", "n", "one-7"], &[]),
            (A::Migrate, &["one-7", "n2", "n1"], &[]),
            (A::AttachDisk, &["one-7", "/d/0/7/disk.3", "sdd", "3", "PFZN"], &[]),
            (A::DetachDisk, &["one-7", "/d/0/7/disk.3", "sdd", "3"], &[]),
            (A::AttachNic, &["one-7", "02:00:00:00:00:01", "br0", "-", "bridge", "one-7-1"], &[]),
            (A::DetachNic, &["one-7", "02:00:00:00:00:01"], &[]),
            (A::SnapshotCreate, &["one-7", "0"], &[]),
            (A::Resize, &["one-7"], &[]),
            (A::ResizeDisk, &["one-7", "0", "1024", "PFZN", "n"], &[]),
            (A::Prereconfigure, &["one-7", ""], &[]),
            (A::Exec, &[], &["ls -l /"]),
            (A::Exec, &[], &["cat -", "aGVsbG8="]),
            (A::ExecCancel, &[], &[]),
        ];
        for (action, before, after) in cases {
            let argv: Vec<&str> = [before, &["7", "node1"], after].concat();
            let call = Invocation::parse(action, &argv).unwrap();
            assert_eq!((call.vm.number(), call.host.as_str()), (7, "node1"));
            assert_eq!(call.args, [before, after].concat());
        }
    }

    #[test]
    fn wrong_arguments_are_refused() {
        let none: [&str; 0] = [];
        assert!(Invocation::parse(Action::Cancel, &none).is_err());
        assert!(Invocation::parse(Action::Exec, &["7"]).is_err());
        for vm in ["", "one-7", "-1", "+7", "07", "7 ", "2147483648", "٧"] {
            assert!(Invocation::parse(Action::Cancel, &["one-7", "n", vm, "n"]).is_err(), "{vm:?}");
        }
        for argv in
            [&["/d/0/7/deployment.0", "7", "n"][..], &["/d/0/7/deployment.0", "n", "7", "n", "x"]]
        {
            assert!(Invocation::parse(Action::Deploy, argv).is_err());
        }
    }
}
