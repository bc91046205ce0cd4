//! What a guest is told becomes wishes for its files. Looks at the guest, changes nothing.
//!
//! | told | becomes | where an agent of the image is told instead |
//! |---|---|---|
//! | host name | `/etc/hostname`, a block in `/etc/hosts` | ours all the same: it is right before the agent runs |
//! | name servers, search domains | `/etc/resolv.conf` | ours; one-context: the agent's |
//! | time zone | `/etc/localtime`, `/etc/timezone` | the agent's |
//! | files, start script | themselves, and what runs the script | the agent's |
//! | keys, user, password | [`crate::users`] | the agent's |

use ocivisor_core::error::Result;
use ocivisor_core::spec::GuestFile;
use ocivisor_core::state::GuestKind;
use rustix::fs::FileType;

use crate::content::Content;
use crate::root::{Access, Node, Root};
use crate::telling::{Runner, Telling};
use crate::texts;
use crate::wish::{MAX_LINE_FILE, Thing, Weight, Wish};

/// The start script.
pub const SCRIPT: &str = "/var/lib/ocivisor/start-script";
/// The unit that runs it, for this boot only.
const UNIT: &str = "/run/systemd/system/ocivisor-start-script.service";
const UNIT_WANTED: &str =
    "/run/systemd/system/multi-user.target.wants/ocivisor-start-script.service";
const INITTAB: &str = "/etc/inittab";
/// What is in front of the command in our line of it: the fields of busybox's init and of sysvinit's.
const FIELDS: [&str; 2] = ["::once:", "ocvs:2345:once:"];

/// The wishes of every guest.
///
/// # Errors
/// The guest's files cannot be read.
pub fn always<'a>(telling: &Telling, root: &Root) -> Result<Vec<Wish<'a>>> {
    let spec = &telling.spec;
    let hosts = match root.read("/etc/hosts", 1 << 20)? {
        Node::File(_, Some(bytes)) => crate::block::without(&bytes),
        _ => Vec::new(),
    };
    let hostname = format!("{}\n", spec.hostname);
    let block = Thing::Block(texts::hosts(spec, &hosts), Access::root(0o644));
    Ok(vec![
        Wish::file("/etc/hostname", hostname, 0o644, Weight::Useful),
        Wish { path: "/etc/hosts".into(), thing: block, weight: Weight::Useful },
    ])
}

/// Name servers.
#[must_use]
pub fn resolver<'a>(telling: &Telling) -> Option<Wish<'a>> {
    let text = texts::resolv(&telling.spec)?;
    Some(Wish::file("/etc/resolv.conf", text, 0o644, Weight::Asked))
}

/// Time zone; a note if the image does not have it.
#[must_use]
pub fn timezone<'a>(telling: &Telling, root: &Root, notes: &mut Vec<String>) -> Vec<Wish<'a>> {
    let Some(zone) = &telling.spec.context.timezone else { return Vec::new() };
    let file = format!("/usr/share/zoneinfo/{zone}");
    if !root.leads_to(&file, FileType::RegularFile) {
        notes.push(format!("the image does not know the time zone {zone}"));
        return Vec::new();
    }
    vec![
        Wish::link("/etc/localtime", &file, Weight::Asked),
        Wish::file("/etc/timezone", format!("{zone}\n"), 0o644, Weight::Asked),
    ]
}

/// Files.
#[must_use]
pub fn files<'a>(telling: &Telling) -> Vec<Wish<'a>> {
    let wish = |file: &GuestFile| {
        let access = Access { mode: file.mode.into(), uid: file.owner.0, gid: file.owner.1 };
        let thing = Thing::File(Content::Bytes(file.content.clone()), access);
        Wish { path: file.path.to_string_lossy().into_owned(), thing, weight: Weight::Asked }
    };
    telling.spec.context.files.iter().map(wish).collect()
}

/// The start script, and what runs it.
///
/// # Errors
/// The guest's files cannot be read.
pub fn script<'a>(telling: &Telling, root: &Root) -> Result<Vec<Wish<'a>>> {
    let Some(script) = &telling.spec.context.start_script else { return Ok(Vec::new()) };
    let mut wishes = vec![Wish::file(SCRIPT, script.clone(), 0o700, Weight::Asked)];
    wishes.extend(runner(telling, root, script)?);
    Ok(wishes)
}

/// What makes the guest's init run the script.
fn runner<'a>(telling: &Telling, root: &Root, script: &[u8]) -> Result<Vec<Wish<'a>>> {
    if telling.kind == GuestKind::Application {
        return Ok(Vec::new());
    }
    let command = if script.starts_with(b"#!") || script.starts_with(b"\x7fELF") {
        SCRIPT.to_owned()
    } else {
        format!("/bin/sh {SCRIPT}")
    };
    Ok(match telling.runner {
        Runner::Ours => Vec::new(),
        Runner::Systemd => vec![
            Wish::file(UNIT, unit(&command), 0o644, Weight::Asked),
            Wish::link(UNIT_WANTED, "../ocivisor-start-script.service", Weight::Asked),
        ],
        Runner::Sysvinit | Runner::Busybox => {
            // busybox(1) init has the terminal in the first field, sysvinit an identifier and runlevels.
            let field = if telling.runner == Runner::Busybox { FIELDS[0] } else { FIELDS[1] };
            let line = format!("{field}{command}\n");
            let Node::File(_, Some(_)) = root.read(INITTAB, MAX_LINE_FILE)? else {
                return Ok(Vec::new());
            };
            let thing = Thing::Line(line);
            vec![Wish { path: INITTAB.into(), thing, weight: Weight::Asked }]
        }
    })
}

/// Not part of the boot: whether the system counts as running must not depend on how long a tenant's script takes.
/// What the script leaves running in the background is left alone when it ends. The addresses are there before it:
/// `network-online.target` is waited for if the image wants it, but not wished for, because what it would start waits
/// for links that the image's own daemons set up, and here they set up none.
fn unit(command: &str) -> String {
    format!(
        "# Written by ocivisor for this boot.\n\
         [Unit]\n\
         Description=Start script of the virtual machine's context\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         Type=simple\n\
         ExecStart={command}\n\
         RemainAfterExit=yes\n\
         KillMode=process\n\
         WorkingDirectory=/\n\
         StandardOutput=journal+console\n\
         StandardError=journal+console\n"
    )
}

/// The file with our line as its last one, which sysvinit comes to when the boot scripts have ended; or with none of
/// ours, if there is no line.
#[must_use]
pub fn with_line(now: &[u8], line: &str) -> Vec<u8> {
    let ours = |old: &[u8]| {
        let old = String::from_utf8_lossy(old);
        let command = FIELDS.iter().find_map(|field| old.trim_end().strip_prefix(field));
        command.is_some_and(|command| command.trim_start_matches("/bin/sh ") == SCRIPT)
    };
    let lines = now.split_inclusive(|c| *c == b'\n').filter(|old| !ours(old));
    let mut file = lines.collect::<Vec<_>>().concat();
    if !line.is_empty() && file.last().is_some_and(|c| *c != b'\n') {
        file.push(b'\n');
    }
    file.extend_from_slice(line.as_bytes());
    file
}
