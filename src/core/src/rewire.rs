//! From one list of NICs to another, without touching those that stay as they are. Pure.

use crate::spec::NicSpec;

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move<'a> {
    /// It goes.
    Drop(&'a NicSpec),
    /// It stays the same interface, with other properties.
    Alter {
        /// As it was made.
        from: &'a NicSpec,
        /// As it shall be.
        to: &'a NicSpec,
    },
    /// It comes.
    Make(&'a NicSpec),
}

/// What leads from `from` to `to`, in this order: names and MACs are free before others take them.
pub(crate) fn moves<'a>(from: &'a [NicSpec], to: &'a [NicSpec]) -> Vec<Move<'a>> {
    let stays = |nic: &&NicSpec| to.iter().any(|other| is_same_link(nic, other));
    let gone = from.iter().filter(|nic| !stays(nic)).map(Move::Drop);
    let come = to.iter().filter_map(|to| match from.iter().find(|nic| is_same_link(nic, to)) {
        Some(from) if is_alike(from, to) => None,
        Some(from) => Some(Move::Alter { from, to }),
        None => Some(Move::Make(to)),
    });
    let (alters, makes): (Vec<_>, Vec<_>) = come.partition(|m| matches!(m, Move::Alter { .. }));
    gone.chain(alters).chain(makes).collect()
}

/// What is set when a link is made and cannot be changed under a guest that uses it.
fn is_same_link(a: &NicSpec, b: &NicSpec) -> bool {
    (a.index, &a.host_name, &a.bridge, a.mac) == (b.index, &b.host_name, &b.bridge, b.mac)
}

/// Whether the network sees no difference; name servers and domains are told.
fn is_alike(a: &NicSpec, b: &NicSpec) -> bool {
    let told = |nic: &NicSpec| NicSpec { dns: Vec::new(), search: Vec::new(), ..nic.clone() };
    told(a) == told(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Bridge;

    fn nic(index: u32, mac: u8) -> NicSpec {
        NicSpec {
            index,
            host_name: format!("one-1-{index}").parse().unwrap(),
            bridge: Bridge::None,
            mac: crate::ids::MacAddr([2, 0, 0, 0, 0, mac]),
            mtu: None,
            addresses: Vec::new(),
            routes: Vec::new(),
            dns: Vec::new(),
            search: Vec::new(),
            inbound: None,
            outbound: None,
        }
    }

    #[test]
    fn what_stays_is_not_touched_and_what_goes_goes_first() {
        let (old, new) = ([nic(0, 0), nic(1, 1), nic(2, 2)], [nic(0, 0), nic(3, 1), nic(2, 9)]);
        let want =
            [Move::Drop(&old[1]), Move::Drop(&old[2]), Move::Make(&new[1]), Move::Make(&new[2])];
        assert_eq!(moves(&old, &new), want);
        assert_eq!(moves(&old, &old), []);
    }

    #[test]
    fn properties_are_changed_in_place_and_name_servers_are_no_matter_of_the_network() {
        let old = [nic(0, 0), nic(1, 1)];
        let mut new = old.clone();
        new[0].mtu = Some(1400);
        new[1].dns = vec!["10.0.0.1".parse().unwrap()];
        assert_eq!(moves(&old, &new), [Move::Alter { from: &old[0], to: &new[0] }]);
    }
}
