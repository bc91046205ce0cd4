//! Memory and swap.

use std::path::Path;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::units::Bytes;

use super::{Allow, At, LimitWrite, List};
use crate::cgroup::file;

/// v1 has memory plus swap as one limit that may never be below memory alone: to lower both,
/// memory goes first; to raise both, memory+swap does. So memory is written twice, and the first
/// one may fail.
pub(super) fn limit(list: &mut List<'_>, Bytes(memory): Bytes, Bytes(swap): Bytes) -> Result<()> {
    let swap_file = match list.at("memory", "memory") {
        Some(At::V2(root)) => {
            list.add(root, "memory.max", &memory);
            list.add_if_there(root, "memory.swap.max", &swap);
            // Of a change that was cut off, see squeezed().
            list.add_if_there(root, "memory.high", &"max");
            list.has(root, "memory.swap.max")
        }
        Some(At::V1(root)) => {
            const MEMORY: &str = "memory.limit_in_bytes";
            const TOTAL: &str = "memory.memsw.limit_in_bytes";
            list.writes.push(LimitWrite::new(root, MEMORY, &memory, Allow::Refusal));
            list.add_if_there(root, TOTAL, &memory.saturating_add(swap));
            list.add(root, MEMORY, &memory);
            list.has(root, TOTAL)
        }
        // Hierarchies::of_this_host() made sure of it.
        None => return Ok(()),
    };
    if swap > 0 && !swap_file {
        let what = "this kernel does not count the swap of control groups";
        let hint =
            "leave out resources.swap, or boot with swapaccount=1 on the kernel's command line";
        return Err(Error::new(ErrorKind::Unsupported, what).hint(hint));
    }
    Ok(())
}

/// v2: lowers a guest's memory limit by `change`. The kernel takes a limit below what is in use, and
/// then kills until it fits; v1 refuses it (EBUSY) by itself. So the guest is squeezed first:
/// `memory.high` reclaims in the writer's own time and slows the guest's further growth, and nobody
/// is killed for it. What is in use after that is what the guest needs.
///
/// # Errors
/// `Exhausted`: it uses more than `memory`. What `change` says. It is squeezed no longer.
pub(in crate::cgroup) fn squeezed(
    group: &Path,
    memory: Bytes,
    change: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let [current, high] = ["memory.current", "memory.high"].map(|name| group.join(name));
    if number(&current)? <= memory {
        return change();
    }
    let squeeze = || {
        file::write(&high, &memory.0.to_string())?;
        match number(&current)? {
            used if used > memory => Err(too_little(used, memory)),
            // Still squeezed; the list of limits lifts it when the limit itself is there.
            _ => change(),
        }
    };
    squeeze().inspect_err(|_| {
        // The first error is the one to report; every list of limits lifts it as well.
        let _ = file::write(&high, "max");
    })
}

/// v1: why the kernel refused to lower the limit, if it was memory.
pub(in crate::cgroup) fn too_little_v1(group: &Path, memory: Bytes) -> Option<Error> {
    let used = number(&group.join("memory.usage_in_bytes")).ok()?;
    (used > memory).then(|| too_little(used, memory))
}

fn too_little(used: Bytes, memory: Bytes) -> Error {
    let mib = used.0.div_ceil(1 << 20);
    let what = format!(
        "the guest uses {mib} MiB of memory that cannot be taken from it, more than {memory}"
    );
    Error::new(ErrorKind::Exhausted, what).hint("end something in it, or leave it more memory")
}

fn number(path: &Path) -> Result<Bytes> {
    let text = file::read(path)?;
    text.parse().map(Bytes).map_err(|_| {
        Error::new(ErrorKind::Host, format!("{} says {text:?}, no number", path.display()))
    })
}
