//! Snapshots of a disk, or of an image.

use crate::xml::Element;

/// `SNAPSHOTS`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshots {
    /// The number that the next one gets.
    pub next: u32,
    /// Those that are there.
    pub all: Vec<Snapshot>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Size of the disk in MB, as text.
    pub size: String,
    /// When it was made.
    pub time: u64,
    /// Whether the disk goes on from it.
    pub active: bool,
}

impl Snapshots {
    /// A new one, from which the disk goes on; its number.
    pub fn add(&mut self, name: &str, size: &str, time: u64) -> u32 {
        let id = self.next;
        self.next += 1;
        let (name, size) = (name.to_owned(), size.to_owned());
        self.all.push(Snapshot { id, name, size, time, active: false });
        self.activate(id);
        id
    }

    /// The disk goes on from that one.
    pub fn activate(&mut self, id: u32) {
        self.all.iter_mut().for_each(|snapshot| snapshot.active = snapshot.id == id);
    }

    /// That one is gone.
    pub fn remove(&mut self, id: u32) {
        self.all.retain(|snapshot| snapshot.id != id);
    }

    /// Size of all of them in MB.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.all.iter().filter_map(|snapshot| snapshot.size.parse::<u64>().ok()).sum()
    }

    /// The document; of a disk of a VM it says which.
    #[must_use]
    pub fn document(&self, disk: Option<&str>) -> Element {
        let orphans = if disk.is_some() || self.next > 0 { "YES" } else { "NO" };
        let mut parts =
            vec![Element::quoted("ALLOW_ORPHANS", orphans), Element::quoted("CURRENT_BASE", "-1")];
        parts.extend(disk.map(|disk| Element::quoted("DISK_ID", disk)));
        parts.push(Element::quoted("NEXT_SNAPSHOT", self.next));
        parts.extend(self.all.iter().map(Snapshot::document));
        Element::of("SNAPSHOTS", parts)
    }
}

impl Snapshot {
    fn document(&self) -> Element {
        let active = self.active.then(|| Element::quoted("ACTIVE", "YES"));
        let mut parts: Vec<Element> = active.into_iter().collect();
        parts.extend([
            Element::quoted("DATE", self.time),
            Element::quoted("ID", self.id),
            Element::quoted("NAME", &self.name),
            Element::quoted("PARENT", "-1"),
            Element::quoted("SIZE", &self.size),
        ]);
        Element::of("SNAPSHOT", parts)
    }
}
