//! Huge pages: none but those that are wished for.

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::Resources;
use ocivisor_core::units::Bytes;

use super::{At, List};

/// Of a size that is not listed a guest gets none, where the kernel can say so. Reservations are
/// limited as well as use: else mmap(2) succeeds and the guest's first touch is a SIGBUS.
pub(super) fn limit(list: &mut List<'_>, resources: &Resources) -> Result<()> {
    let there = &list.ground.machine.pages;
    for wish in &resources.hugepages {
        if !there.contains(&wish.page) {
            let what = format!("this host has no huge pages of {}", wish.page);
            let sizes: Vec<String> = there.iter().map(ToString::to_string).collect();
            let hint = match sizes.is_empty() {
                true => "its kernel has none at all: leave out resources.hugepages".to_owned(),
                false => format!("it has: {}", sizes.join(", ")),
            };
            return Err(Error::new(ErrorKind::NotFound, what).hint(hint));
        }
    }
    let (root, most) = match list.at("hugetlb", "hugetlb") {
        Some(At::V2(root)) => (root, "max"),
        Some(At::V1(root)) => (root, "limit_in_bytes"),
        None if resources.hugepages.is_empty() => return Ok(()),
        None => return Err(list.ground.hierarchies.missing("hugetlb", "resources.hugepages")),
    };
    for page in there.clone() {
        let wish = resources.hugepages.iter().find(|wish| wish.page == page);
        let name = name(page);
        let used = format!("hugetlb.{name}.{most}");
        if wish.is_some() && !list.has(root, &used) {
            // Of a hybrid host whose groups have processes above them.
            return Err(list.ground.hierarchies.missing("hugetlb", "resources.hugepages"));
        }
        let limit = wish.map_or(0, |wish| wish.limit.0);
        list.add_if_there(root, &format!("hugetlb.{name}.rsvd.{most}"), &limit);
        list.add_if_there(root, &used, &limit);
    }
    Ok(())
}

/// A size as in the names of the kernel's files (mm/hugetlb_cgroup.c).
fn name(page: Bytes) -> String {
    for (shift, unit) in [(30, "GB"), (20, "MB")] {
        if page.0 >= 1 << shift {
            return format!("{}{unit}", page.0 >> shift);
        }
    }
    format!("{}KB", page.0 >> 10)
}
