use ocivisor_core::error::Result;

use super::*;

/// Prints what the verbs cost; asserts only that nothing takes absurdly long.
#[test]
fn figures() {
    const VMS: usize = 40;
    type Verb = fn(&HostNetwork, &VmId, &NicSpec) -> Result<()>;
    let verbs: [(&str, Verb); 7] = [
        ("ensure_namespaces", |n, id, _| n.ensure_namespaces(id, IDS)),
        ("ensure_nic", |n, id, nic| n.ensure_nic(id, nic)),
        ("ensure_nic again", |n, id, nic| n.ensure_nic(id, nic)),
        ("ensure_namespaces again", |n, id, _| n.ensure_namespaces(id, IDS)),
        ("observe_network", |n, _, _| n.observe_network().map(drop)),
        ("drop_nic", |n, id, nic| n.drop_nic(id, nic)),
        ("drop_namespaces", |n, id, _| n.drop_namespaces(id)),
    ];
    on_a_host(|host| {
        host.bridge("ocvbr0", 1500);
        let vms: Vec<(VmId, NicSpec)> = (1..=VMS as u8)
            .map(|n| (format!("one-{n}").parse().unwrap(), nic(&format!("ocv-{n}-0"), "ocvbr0", n)))
            .collect();
        for (name, verb) in verbs {
            let mut times: Vec<Duration> = Vec::new();
            for (id, nic) in &vms {
                let start = Instant::now();
                verb(&host.network, id, nic).unwrap();
                times.push(start.elapsed());
            }
            times.sort();
            println!("{name}: median {:?}, worst {:?}", times[VMS / 2], times[VMS - 1]);
            assert!(times[VMS / 2] < Duration::from_secs(1));
        }
    });
}
