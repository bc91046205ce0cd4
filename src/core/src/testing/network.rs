//! The fake network: names, indices and MACs are taken as in a kernel, and each NIC is what it was made as.

use std::collections::BTreeSet;

use super::{FakeHost, State, Thing, put};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{IdRange, VmId};
use crate::ports::Network;
use crate::spec::NicSpec;

impl FakeHost {
    /// The NICs of a VM that are whole, by index, without what only its files say.
    #[must_use]
    pub fn nics(&self, id: &VmId) -> Vec<NicSpec> {
        let state = self.state();
        let mut nics: Vec<NicSpec> = whole(&state, id).cloned().collect();
        nics.sort_by_key(|nic| nic.index);
        nics
    }
}

fn thing(nic: &NicSpec) -> Thing {
    Thing::Nic(nic.host_name.to_string())
}

fn whole<'a>(state: &'a State, id: &VmId) -> impl Iterator<Item = &'a NicSpec> {
    let things = state.things.get(id);
    let is_whole = move |nic: &&NicSpec| things.and_then(|t| t.get(&thing(nic))) == Some(&true);
    state.nics.get(id).into_iter().flat_map(|nics| nics.values()).filter(is_whole)
}

/// A network knows nothing of names.
fn bare(nic: &NicSpec) -> NicSpec {
    NicSpec { dns: Vec::new(), search: Vec::new(), ..nic.clone() }
}

fn keep(state: &mut State, id: &VmId, nic: &NicSpec) {
    put(state, id, &thing(nic), true);
    state.nics.entry(id.clone()).or_default().insert(nic.host_name.to_string(), bare(nic));
}

impl Network for FakeHost {
    fn ensure_namespaces(&self, id: &VmId, _: IdRange) -> Result<()> {
        self.ensure("ensure_namespaces", id, &Thing::Namespaces, &[])
    }

    fn drop_namespaces(&self, id: &VmId) -> Result<()> {
        self.drop_thing("drop_namespaces", id, &Thing::Namespaces, &[Thing::Guest])
    }

    fn ensure_nic(&self, id: &VmId, nic: &NicSpec) -> Result<()> {
        self.call(
            "ensure_nic",
            |state| put(state, id, &thing(nic), false),
            |state| {
                let namespaces = state.things.get(id).and_then(|t| t.get(&Thing::Namespaces));
                let taken = |other: &NicSpec| {
                    other.host_name != nic.host_name
                        && (other.index == nic.index || other.mac == nic.mac)
                };
                if namespaces != Some(&true) || whole(state, id).any(taken) {
                    let what = format!("ensure_nic {nic:?}: no namespace, or taken");
                    return Err(Error::new(ErrorKind::Conflict, what));
                }
                keep(state, id, nic);
                Ok(())
            },
        )
    }

    fn alter_nic(&self, id: &VmId, from: &NicSpec, to: &NicSpec) -> Result<()> {
        self.call(
            "alter_nic",
            |state| put(state, id, &thing(to), false),
            |state| {
                let things = state.things.get(id);
                let Some(is_whole) = things.and_then(|things| things.get(&thing(to))) else {
                    return Err(Error::new(ErrorKind::Host, "alter_nic without a NIC"));
                };
                if *is_whole && !whole(state, id).any(|nic| *nic == bare(from) || *nic == bare(to))
                {
                    return Err(Error::new(ErrorKind::Host, "alter_nic of another NIC"));
                }
                keep(state, id, to);
                Ok(())
            },
        )
    }

    fn drop_nic(&self, id: &VmId, nic: &NicSpec) -> Result<()> {
        self.drop_thing("drop_nic", id, &thing(nic), &[])
    }

    fn observe_network(&self) -> Result<BTreeSet<VmId>> {
        Ok(self.anything_of())
    }
}
