//! Transfer scripts: which driver moves what, in which words (contract §4).

use crate::model::{Model, Vm};
use crate::place::FRONTEND;
use crate::template::Vector;

/// `host:path`.
fn at(host: &str, path: &str) -> String {
    format!("{host}:{path}")
}

fn field<'a>(disk: &'a Vector, key: &str) -> &'a str {
    disk.get(key).map_or("", String::as_str)
}

fn is_image(disk: &Vector) -> bool {
    disk.contains_key("IMAGE_ID") || disk.contains_key("IMAGE")
}

/// A disk's driver, the suffix of its commands and the datastore that its lines name.
struct Way {
    tm: String,
    suffix: String,
    store: String,
}

fn way(disk: &Vector, system: &str, system_store: u32) -> Way {
    // Plugged ones name the system's driver, even where it is their own.
    let suffix = disk.get("TM_MAD_SYSTEM").map(|system| format!(".{system}")).unwrap_or_default();
    if !is_image(disk) {
        return Way { tm: system.into(), suffix, store: system_store.to_string() };
    }
    let tm = field(disk, "TM_MAD").to_owned();
    Way { tm, suffix, store: field(disk, "DATASTORE_ID").to_owned() }
}

/// The image of a disk as a word: what has a colon is no path.
fn source_word(source: &str) -> String {
    if source.contains(':') { source.to_owned() } else { at(FRONTEND, source) }
}

/// Lines that make the disks of a VM that boots for the first time.
pub(super) fn prolog(model: &Model, vm: &Vm) -> Vec<String> {
    vm.template.vectors("DISK").map(|disk| made(model, vm, disk)).collect()
}

/// The line that makes a disk.
pub(super) fn made(model: &Model, vm: &Vm, disk: &Vector) -> String {
    let place = vm.place();
    let Way { tm, suffix, store } = way(disk, &place.tm_mad, place.store);
    let path = at(&place.host, &disk_path(model, vm, disk));
    let (id, size) = (vm.id, field(disk, "SIZE"));
    if !is_image(disk) {
        let tail = format!("{path} {id} {store}");
        return match field(disk, "TYPE").to_lowercase().as_str() {
            "swap" => format!("MKSWAP {tm} {size} {tail}"),
            _ => format!("MKIMAGE {tm} {size} {} {tail}", field(disk, "FORMAT")),
        };
    }
    let word = if field(disk, "CLONE") == "YES" { "CLONE" } else { "LN" };
    let source = source_word(field(disk, "SOURCE"));
    format!("{word}{suffix} {tm} {source} {path} {id} {store}")
}

/// Where a disk of a VM is on its machine.
pub(super) fn disk_path(model: &Model, vm: &Vm, disk: &Vector) -> String {
    format!("{}/disk.{}", model.vm_dir(vm.place().store, vm.id), disk["DISK_ID"])
}

/// Lines that move all of a VM from one machine and datastore to another.
pub(super) fn moving(model: &Model, vm: &Vm, from: (&str, u32), to: (&str, u32)) -> Vec<String> {
    let tm = &vm.place().tm_mad;
    let (old, new) = (model.vm_dir(from.1, vm.id), model.vm_dir(to.1, vm.id));
    let mut lines = Vec::new();
    // A suffix stays set for the disks after it that have none of their own (§4.2).
    let mut last = String::new();
    for disk in vm.template.vectors("DISK") {
        let name = format!("disk.{}", disk["DISK_ID"]);
        let Way { tm, suffix, store } = way(disk, tm, to.1);
        if is_image(disk) {
            last = suffix;
        }
        let (a, b) = (at(from.0, &format!("{old}/{name}")), at(to.0, &format!("{new}/{name}")));
        lines.push(format!("MV{last} {tm} {a} {b} {} {store}", vm.id));
    }
    lines.push(format!("MV {tm} {} {} {} {}", at(from.0, &old), at(to.0, &new), vm.id, to.1));
    lines
}

/// Lines that end a VM's disks: saved ones go back, the others are deleted; then the directory.
pub(super) fn epilog(model: &Model, vm: &Vm, machine: &str, save: bool) -> Vec<String> {
    let place = vm.place();
    let dir = model.vm_dir(place.store, vm.id);
    let mut lines = Vec::new();
    for disk in vm.template.vectors("DISK") {
        lines.push(ended(model, vm, disk, machine, save));
    }
    lines.push(format!("DELETE {} {} {} {}", place.tm_mad, at(machine, &dir), vm.id, place.store));
    lines
}

/// The line that ends a disk: a saved one goes back, another is deleted.
pub(super) fn ended(model: &Model, vm: &Vm, disk: &Vector, machine: &str, save: bool) -> String {
    let Way { tm, suffix, store } = way(disk, &vm.place().tm_mad, vm.place().store);
    let path = at(machine, &disk_path(model, vm, disk));
    let tail = format!("{} {store}", vm.id);
    if save && field(disk, "SAVE") == "YES" {
        return format!("MVDS{suffix} {tm} {path} {} {tail}", field(disk, "SOURCE"));
    }
    format!("DELETE{suffix} {tm} {path} {tail}")
}

/// The line of something that is done with a disk where it was last, in `words`.
pub(super) fn done(model: &Model, vm: &Vm, disk: &Vector, command: &str, words: &str) -> String {
    let Way { tm, suffix, store } = way(disk, &vm.place().tm_mad, vm.place().store);
    let path = at(&vm.place().host, &disk_path(model, vm, disk));
    format!("{command}{suffix} {tm} {path} {words} {} {store}", vm.id)
}

/// The line that makes the context disk.
pub(super) fn context_line(model: &Model, vm: &Vm) -> String {
    let place = vm.place();
    let context = vm.template.vectors("CONTEXT").next();
    let disk = context.map_or("", |context| field(context, "DISK_ID"));
    let path = at(&place.host, &format!("{}/disk.{disk}", model.vm_dir(place.store, vm.id)));
    let mut files = vec![format!("{}/{}/context.sh", model.vms_dir, vm.id)];
    let more = context.map_or("", |context| field(context, "FILES_DS"));
    if !more.is_empty() {
        // Its blanks are oned's.
        files.push(format!(" {more}"));
    }
    if context.is_some_and(|context| field(context, "TOKEN") == "YES") {
        files.push(format!("{}/{}/token.txt", model.vms_dir, vm.id));
    }
    let files = files.join(" ");
    format!("CONTEXT {} {files} {path} {} {}", place.tm_mad, vm.id, place.store)
}

/// The line of a live migration; the driver process makes those before, after and of a failure of it.
pub(super) fn live(model: &Model, vm: &Vm, from: &str) -> String {
    let place = vm.place();
    let dir = model.vm_dir(place.store, vm.id);
    format!("MIGRATE {} {from} {} {dir} {} {}", place.tm_mad, place.host, vm.id, place.store)
}

/// The line that copies a disk of a VM into an image.
pub(super) fn copy_out(
    model: &Model,
    vm: &Vm,
    disk: &Vector,
    machine: &str,
    (source, snapshot): (&str, &str),
) -> String {
    let Way { tm, suffix, store } = way(disk, &vm.place().tm_mad, vm.place().store);
    let path = at(machine, &disk_path(model, vm, disk));
    format!("CPDS{suffix} {tm} {path} {source} {snapshot} {} {store}", vm.id)
}

/// The line that makes a snapshot of a disk of a running VM.
pub(super) fn snapshot_live(model: &Model, vm: &Vm, disk: &Vector, snapshot: u32) -> String {
    let place = vm.place();
    let Way { tm, store, .. } = way(disk, &place.tm_mad, place.store);
    let path = at(&place.host, &disk_path(model, vm, disk));
    // Lines of live operations always have the system's suffix.
    let system = &place.tm_mad;
    format!("SNAP_CREATE_LIVE.{system} {tm} {path} {snapshot} {} {store}", vm.id)
}
