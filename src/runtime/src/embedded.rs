//! libcontainer as the OCI runtime.
//!
//! Known of version 0.7, each with what is done about it here:
//! * it takes the cgroup manager from the host's setup; `with_systemd(false)` is a must on v2;
//! * it changes directory, dumpability and more of its caller: so it runs in a process of its own;
//! * it never looks where the working directory leads once the root has changed: [`Payload`] does;
//! * its check of the executable wants the bit for others: [`Payload`] asks the kernel instead;
//! * it makes the console the controlling terminal of any first process: [`Payload`] undoes that for systems;
//! * on failure it kills and removes the guest's groups in the controllers' hierarchies;
//! * of a masked comparison in a seccomp rule it takes mask and value the other way round, and what
//!   should match some arguments then matches all: [`with_swapped_masks`] swaps them beforehand, in
//!   a copy of the configuration;
//! * it knows SELinux labels of mounts only, and gives them to file systems that take none in a user
//!   namespace, which then cannot be mounted: [`with_own_labels`], [`Label`].

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{Mount, Spec};
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use ocivisor_core::error::{Error, ErrorKind, Result};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde_json::Value;

use crate::label::Label;
use crate::runtime::{Created, Creation, Runtime, Start, runtime_error};
use crate::sys;

/// Annotation with the kind of guest.
const KIND: &str = "org.ocivisor.kind";
/// Where bundles have the small init of applications, followed by `--` and the image's command.
const INIT: &str = "/dev/.ocivisor-init";

/// See the module.
#[derive(Debug)]
pub struct Embedded;

impl Runtime for Embedded {
    fn create(&self, creation: &Creation<'_>) -> Result<Created> {
        let bundle = Rewritten::write(creation.bundle)?;
        let built = ContainerBuilder::new(creation.id.to_owned(), SyscallType::default())
            .with_executor(Payload)
            .with_console_socket(Some(creation.console_socket))
            .with_root_path(creation.root)
            .and_then(|builder| {
                let init = builder.as_init(&bundle.0);
                init.with_systemd(false).with_detach(true).as_sibling(false).build()
            });
        let container = built.map_err(|e| runtime_error(&chain(&e)))?;
        let pid = container.pid().and_then(|pid| u32::try_from(pid.as_raw()).ok());
        let pid = pid.ok_or_else(|| Error::new(ErrorKind::Host, "create guest: no process id"))?;
        let notify = creation.root.join(creation.id).join("notify.sock");
        Ok(Created { pid, start: Start::Connect(notify) })
    }
}

/// A copy of a bundle's configuration for libcontainer; removed when dropped.
struct Rewritten(PathBuf);

impl Rewritten {
    fn write(bundle: &Path) -> Result<Self> {
        let dir = bundle.join("embedded");
        let spec = with_own_labels(with_swapped_masks(&crate::create::load_config(bundle)?)?);
        let failed = |e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Host, format!("configuration {}: {e}", dir.display()))
        };
        let json = serde_json::to_vec(&spec).map_err(|e| failed(&e))?;
        fs::create_dir_all(&dir).map_err(|e| failed(&e))?;
        let copy = Self(dir.clone());
        // Read once, at once, by this very process: it need not survive a crash.
        File::create(dir.join("config.json"))
            .and_then(|mut file| file.write_all(&json))
            .map_err(|e| failed(&e))?;
        Ok(copy)
    }
}

impl Drop for Rewritten {
    fn drop(&mut self) {
        // Best effort: the bundle is made anew for each boot.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The configuration with mask and value of masked comparisons in libcontainer's order.
///
/// # Errors
/// Never for a configuration that was read from JSON.
pub fn with_swapped_masks(spec: &Spec) -> Result<Spec> {
    let failed = |e: serde_json::Error| Error::new(ErrorKind::Host, format!("configuration: {e}"));
    // By way of JSON, because these types have no setters.
    let mut json = serde_json::to_value(spec).map_err(failed)?;
    let rules = json.pointer_mut("/linux/seccomp/syscalls").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        let args = rule.get_mut("args").and_then(Value::as_array_mut);
        for arg in args.into_iter().flatten().filter_map(Value::as_object_mut) {
            if arg.get("op").and_then(Value::as_str) == Some("SCMP_CMP_MASKED_EQ") {
                let mask = arg.remove("value").unwrap_or_else(|| 0.into());
                let value = arg.remove("valueTwo").unwrap_or_else(|| 0.into());
                arg.insert("value".into(), value);
                arg.insert("valueTwo".into(), mask);
            }
        }
    }
    serde_json::from_value(json).map_err(failed)
}

/// The configuration with the label of mounts as an option of those that take it: in a user namespace the kernel
/// takes labels for some file systems only (`selinux_set_mnt_opts` of Linux). The label of processes stays.
fn with_own_labels(mut spec: Spec) -> Spec {
    const LABELLED: [&str; 2] = ["tmpfs", "devpts"];
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().clone());
    let Some(label) = label else {
        return spec;
    };
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let takes = |mount: &Mount| mount.typ().as_deref().is_some_and(|typ| LABELLED.contains(&typ));
    for mount in mounts.iter_mut().filter(|mount| takes(mount)) {
        let mut options = mount.options().clone().unwrap_or_default();
        options.push(format!("context={label}"));
        mount.set_options(Some(options));
    }
    spec.set_mounts(Some(mounts));
    let linux = spec.linux().clone().map(|mut linux| {
        linux.set_mount_label(None);
        linux
    });
    spec.set_linux(linux);
    spec
}

/// The messages of an error and its causes; libcontainer's outer ones say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = next.source();
    }
    text
}

/// Runs the guest's program, after checks that only work inside.
#[derive(Clone)]
struct Payload;

impl Executor for Payload {
    fn validate(&self, spec: &Spec) -> std::result::Result<(), ExecutorValidationError> {
        let bad = ExecutorValidationError::ArgValidationError;
        // A directory outside the root has no path in here: getcwd(2), CVE-2024-21626.
        let here = std::env::current_dir().ok();
        if !here.is_some_and(|here| here.is_absolute()) {
            return Err(bad("working directory is outside of the guest".into()));
        }
        program(spec).map_err(bad)?;
        // A small init of ours in front would be found, and what it shall run might not.
        match argv(spec) {
            [init, dashes, name, ..] if init == INIT && dashes == "--" => {
                find_program(name, search_path(spec)).map(|_| ()).map_err(bad)
            }
            _ => Ok(()),
        }
    }

    fn exec(&self, spec: &Spec) -> std::result::Result<(), ExecutorError> {
        let failed = |e: String| ExecutorError::Execution(e.into());
        let program = program(spec).map_err(failed)?;
        let path = CString::new(program.as_os_str().as_encoded_bytes());
        let argv: std::result::Result<Vec<CString>, _> =
            argv(spec).iter().map(|word| CString::new(word.as_bytes())).collect();
        let label = Label::of(spec).map_err(|e| failed(format!("labels: {e}")))?;
        if let Some(label) = label {
            // libcontainer has seen to AppArmor, and knows no SELinux. No guest runs yet, so what is at
            // /proc was mounted there.
            let applied = label.without_profile().apply();
            applied.map_err(|e| failed(format!("set the SELinux label: {e}")))?;
        }
        match (path, argv) {
            // The environment is this process's own by now: libcontainer has set it.
            (Ok(path), Ok(argv)) => match is_system(spec).then(sys::leave_terminal) {
                Some(Err(e)) => Err(failed(format!("leave the console to logins: {e}"))),
                _ => match nix::unistd::execv(&path, &argv) {
                    Ok(never) => match never {},
                    Err(e) => Err(failed(format!("{}: {e}", program.display()))),
                },
            },
            _ => Err(ExecutorError::InvalidArg),
        }
    }
}

/// Whether an init of the image's runs. As on a machine, it has no controlling terminal: libcontainer made the console
/// one, and getty(8) could not have it for whoever logs in, nor could job control.
fn is_system(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    annotations.and_then(|all| all.get(KIND)).is_some_and(|kind| kind == "system")
}

fn argv(spec: &Spec) -> &[String] {
    spec.process().as_ref().and_then(|process| process.args().as_deref()).unwrap_or_default()
}

/// The file to run, looked for as execvp(3) does, with the ids the guest's process has.
fn program(spec: &Spec) -> std::result::Result<PathBuf, String> {
    let name = argv(spec).first().ok_or("nothing to run")?;
    find_program(name, search_path(spec))
}

fn search_path(spec: &Spec) -> &str {
    let env = spec.process().as_ref().and_then(|process| process.env().as_deref());
    let path = env.unwrap_or_default().iter().find_map(|entry| entry.strip_prefix("PATH="));
    path.unwrap_or_default()
}

/// The file that a command names: itself if it holds a slash, else the first in `path`.
///
/// # Errors
/// None is there, or none may be run; the text says so in the words that [`crate::runtime::classify`]
/// knows.
pub fn find_program(name: &str, path: &str) -> std::result::Result<PathBuf, String> {
    let usable = |path: &Path| {
        path.is_file() && accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
    };
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match () {
            () if usable(&path) => Ok(path),
            () if path.exists() => Err(format!("{name:?} is not executable")),
            () => Err(format!("no such executable {name:?}")),
        };
    }
    let places = path.split(':').map(|dir| if dir.is_empty() { "." } else { dir });
    let found: Vec<PathBuf> = places.map(|dir| Path::new(dir).join(name)).collect();
    match found.iter().find(|path| usable(path)) {
        Some(path) => Ok(path.clone()),
        None if found.iter().any(|path| path.exists()) => {
            Err(format!("{name:?} is not executable"))
        }
        None => Err(format!("{name:?} not found in $PATH")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_masked_comparisons_change() {
        let spec = |args: &str| -> Spec {
            let json = format!(
                r#"{{"ociVersion":"1.0.2","linux":{{"seccomp":{{"defaultAction":"SCMP_ACT_ALLOW",
                "syscalls":[{{"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{args}]}}]}}}}}}"#
            );
            serde_json::from_str(&json).unwrap()
        };
        let given = r#"{"index":0,"value":8,"valueTwo":1,"op":"SCMP_CMP_MASKED_EQ"},
            {"index":1,"value":8,"valueTwo":1,"op":"SCMP_CMP_EQ"}"#;
        let want = r#"{"index":0,"value":1,"valueTwo":8,"op":"SCMP_CMP_MASKED_EQ"},
            {"index":1,"value":8,"valueTwo":1,"op":"SCMP_CMP_EQ"}"#;
        assert_eq!(with_swapped_masks(&spec(given)).unwrap(), spec(want));
    }

    #[test]
    fn the_label_of_mounts_goes_to_those_that_take_one() {
        let spec = |mounts: &str, linux: &str| -> Spec {
            let json =
                format!(r#"{{"ociVersion":"1.0.2","mounts":[{mounts}],"linux":{{{linux}}}}}"#);
            serde_json::from_str(&json).unwrap()
        };
        let given = r#"{"destination":"/dev","type":"tmpfs","options":["nosuid"]},
            {"destination":"/dev/mqueue","type":"mqueue"}"#;
        let want = r#"{"destination":"/dev","type":"tmpfs","options":["nosuid","context=u:r:t:s0:c1,c2"]},
            {"destination":"/dev/mqueue","type":"mqueue"}"#;
        let labelled = spec(given, r#""mountLabel":"u:r:t:s0:c1,c2""#);
        assert_eq!(with_own_labels(labelled), spec(want, ""));
        assert_eq!(with_own_labels(spec(given, "")), spec(given, ""));
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let sh = PathBuf::from("/bin/sh");
        assert_eq!(find_program("sh", "/nowhere:/bin").unwrap(), sh);
        assert_eq!(find_program("/bin/sh", "").unwrap(), sh);
        assert_eq!(find_program("nope", "/bin").unwrap_err(), "\"nope\" not found in $PATH");
        assert_eq!(find_program("/nope", "/bin").unwrap_err(), "no such executable \"/nope\"");
        assert_eq!(
            find_program("/etc/passwd", "").unwrap_err(),
            "\"/etc/passwd\" is not executable"
        );
        assert_eq!(find_program("/bin", "").unwrap_err(), "\"/bin\" is not executable");
    }
}
