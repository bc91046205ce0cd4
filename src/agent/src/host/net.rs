//! Traffic of the host: of its devices. What bridges, veth pairs and the like carry is among it already.

use std::path::Path;

/// Bytes since the host's boot.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub received: u64,
    pub sent: u64,
}

/// Reads /proc/net/dev, for the interfaces that `counts`; for all but the loopback, if none does (as in a container).
pub(super) fn read(text: &str, counts: impl Fn(&str) -> bool) -> Traffic {
    let interfaces: Vec<(&str, Traffic)> = text
        .lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let numbers: Vec<u64> =
                numbers.split_ascii_whitespace().map_while(|n| n.parse().ok()).collect();
            Some((name.trim(), Traffic { received: *numbers.first()?, sent: *numbers.get(8)? }))
        })
        .filter(|(name, _)| *name != "lo")
        .collect();
    let any = interfaces.iter().any(|(name, _)| counts(name));
    interfaces.into_iter().filter(|(name, _)| !any || counts(name)).fold(
        Traffic::default(),
        |sum, (_, one)| Traffic {
            received: sum.received.saturating_add(one.received),
            sent: sum.sent.saturating_add(one.sent),
        },
    )
}

/// Whether an interface is a piece of hardware, or looks like one.
pub(super) fn is_device(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).join("device").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes\n\
        \x20   lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n\
        \x20 eth0: 1000 5 0 0 0 0 0 0 2000 6 0 0 0 0 0 0\n\
        \x20  br0:900 5 0 0 0 0 0 0 1900 6 0 0 0 0 0 0\n bad: 1 2\n";

    #[test]
    fn what_a_bridge_carries_is_not_counted_twice() {
        let sum = |received, sent| Traffic { received, sent };
        assert_eq!(read(TEXT, |name| name == "eth0"), sum(1000, 2000));
        assert_eq!(read(TEXT, |_| false), sum(1900, 3900));
        assert_eq!(read("", |_| true), sum(0, 0));
    }
}
