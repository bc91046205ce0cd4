use super::*;
use crate::vm;

fn translate(nics_xml: &str, context: &str) -> Result<(Vec<NicSpec>, Vec<String>), Error> {
    let xml = format!("<VM><ID>42</ID><TEMPLATE>{nics_xml}{context}</TEMPLATE></VM>");
    let vm = vm::parse(xml.as_bytes())?;
    let mut notes = Notes::default();
    let specs = nics(&vm, &mut notes)?;
    Ok((specs, notes.into_vec().iter().map(ToString::to_string).collect()))
}

fn nic(id: u32, keys: &str) -> String {
    format!("<NIC><NIC_ID>{id}</NIC_ID><MAC>02:00:0a:00:00:{id:02x}</MAC>{keys}</NIC>")
}

fn one(keys: &str) -> Result<(NicSpec, Vec<String>), Error> {
    let (mut specs, notes) = translate(&nic(3, keys), "<CONTEXT><NETWORK>NO</NETWORK></CONTEXT>")?;
    Ok((specs.remove(0), notes))
}

const NO_NETWORK: &str = "CONTEXT has no NETWORK=YES, so the guest's interfaces get no addresses";

#[test]
fn the_hosts_end_carries_the_vms_name() {
    for (keys, name) in [("", "one-42-3"), ("<TARGET>one-42-3</TARGET>", "one-42-3")] {
        let (spec, notes) = one(keys).unwrap();
        assert_eq!((spec.host_name.as_str(), spec.index), (name, 3));
        assert_eq!(notes, [NO_NETWORK]);
    }
}

#[test]
fn a_target_of_others_is_not_used() {
    for target in ["eth0", "one-41-0", "one-4", "br0", "one-420-0", "one-42-9"] {
        let (spec, notes) = one(&format!("<TARGET>{target}</TARGET>")).unwrap();
        assert_eq!(spec.host_name.as_str(), "one-42-3");
        let want = format!("NIC 3: TARGET {target} is not used, the host's end is one-42-3");
        assert_eq!(notes, [NO_NETWORK.to_owned(), want]);
    }
}

#[test]
fn a_target_that_is_no_name_of_an_interface_is_refused() {
    for target in ["one-42-0;id", "one-42-$(id)", "one-42-0 x", "one-42-sixteen-x"] {
        let error = one(&format!("<TARGET>{target}</TARGET>")).unwrap_err();
        assert!(error.message.starts_with("NIC 3: TARGET:"), "{error}");
    }
}

#[test]
fn bridges_by_type() {
    let name = || "br0".parse().unwrap();
    for (keys, want) in [
        ("", Bridge::None),
        ("<BRIDGE/><BRIDGE_TYPE>linux</BRIDGE_TYPE>", Bridge::None),
        ("<BRIDGE>br0</BRIDGE><BRIDGE_TYPE>linux</BRIDGE_TYPE>", Bridge::Linux(name())),
        ("<BRIDGE>br0</BRIDGE><BRIDGE_TYPE>openvswitch</BRIDGE_TYPE>", Bridge::OpenVswitch(name())),
        ("<BRIDGE>br0</BRIDGE><BRIDGE_TYPE>none</BRIDGE_TYPE>", Bridge::None),
        ("<BRIDGE>br0</BRIDGE>", Bridge::None),
    ] {
        assert_eq!(one(keys).unwrap().0.bridge, want, "{keys}");
    }
    let dpdk = one("<BRIDGE>b</BRIDGE><BRIDGE_TYPE>openvswitch_dpdk</BRIDGE_TYPE>").unwrap_err();
    assert_eq!(dpdk.kind, ErrorKind::Unsupported);
    assert_eq!(dpdk.message, "NIC 3: BRIDGE_TYPE \"openvswitch_dpdk\" is not supported");
}

#[test]
fn hostile_values_are_refused() {
    for keys in [
        "<BRIDGE>br0\n</BRIDGE><BRIDGE_TYPE>linux</BRIDGE_TYPE>",
        "<BRIDGE>a b,ro /etc</BRIDGE><BRIDGE_TYPE>linux</BRIDGE_TYPE>",
        "<BRIDGE>$(id)</BRIDGE><BRIDGE_TYPE>$(id)</BRIDGE_TYPE>",
        "<BRIDGE>-oProxyCommand=x</BRIDGE><BRIDGE_TYPE>linux</BRIDGE_TYPE>",
        "<TARGET>../x</TARGET>",
        "<TARGET>one-42-0</TARGET><TARGET/>",
        "<TARGET>one-42-%n</TARGET>",
        "<TARGET>one-42-0123456789</TARGET>",
        "<MTU>1500;id</MTU>",
        "<MTU>-1</MTU>",
    ] {
        assert!(one(keys).is_err(), "{keys}");
    }
    for mac in ["", "02:00:00:00:00:01\n", "01:00:5e:00:00:01", "junk"] {
        let xml = format!("<NIC><NIC_ID>0</NIC_ID><MAC>{mac}</MAC></NIC>");
        assert!(translate(&xml, "").is_err(), "{mac:?}");
    }
    let many: String = (0..65).map(|id| nic(id, "")).collect();
    let error = translate(&many, "").unwrap_err();
    assert_eq!(error.message, "the VM has 65 NICs, at most 64 are possible");
}

#[test]
fn groups_belong_to_the_nic_with_their_mac() {
    let context = "<CONTEXT><NETWORK>YES</NETWORK>\
        <ETH0_MAC>02:00:0A:00:00:02</ETH0_MAC><ETH0_IP>10.0.0.2</ETH0_IP><ETH0_MASK>24</ETH0_MASK>\
        <ETH1_MAC>02:00:0a:00:00:01</ETH1_MAC><ETH1_IP>10.0.0.1</ETH1_IP><ETH1_MASK>24</ETH1_MASK>\
        <ETH1_MTU>1400</ETH1_MTU></CONTEXT>";
    let nics = nic(1, "") + &nic(2, "<MTU>9000</MTU>") + &nic(5, "");
    let (specs, notes) = translate(&nics, context).unwrap();
    let address = |at: usize| specs[at].addresses.first().map(|(ip, _)| ip.to_string());
    assert_eq!(address(0).as_deref(), Some("10.0.0.1"));
    assert_eq!(address(1).as_deref(), Some("10.0.0.2"));
    assert_eq!(address(2), None);
    let mtus: Vec<_> = specs.iter().map(|spec| spec.mtu).collect();
    assert_eq!(mtus, [Some(1400), Some(9000), None]);
    assert_eq!(notes, ["NIC 5: CONTEXT has no addresses for it"]);
}

#[test]
fn a_group_without_a_mac_counts_by_position() {
    let context = "<CONTEXT><NETWORK>yes</NETWORK><ETH0_IP>10.0.0.9</ETH0_IP></CONTEXT>";
    let (specs, _) =
        translate(&nic(7, "<NETWORK_MASK>255.255.0.0</NETWORK_MASK>"), context).unwrap();
    assert_eq!(specs[0].addresses, [("10.0.0.9".parse().unwrap(), 16)]);
}

#[test]
fn default_routes_of_several_nics_do_not_collide() {
    let group = |n: u32, metric: &str| {
        format!(
            "<ETH{n}_MAC>02:00:0a:00:00:{n:02x}</ETH{n}_MAC><ETH{n}_IP>10.0.{n}.2</ETH{n}_IP>\
             <ETH{n}_MASK>24</ETH{n}_MASK><ETH{n}_GATEWAY>10.0.{n}.1</ETH{n}_GATEWAY>\
             <ETH{n}_METRIC>{metric}</ETH{n}_METRIC><ETH{n}_IP6>fd00:{n}::2</ETH{n}_IP6>\
             <ETH{n}_IP6_GATEWAY>fd00:{n}::1</ETH{n}_IP6_GATEWAY>"
        )
    };
    let context = format!(
        "<CONTEXT><NETWORK>YES</NETWORK>{}{}{}</CONTEXT>",
        group(0, ""),
        group(1, ""),
        group(2, "1")
    );
    let (specs, _) = translate(&(nic(0, "") + &nic(1, "") + &nic(2, "")), &context).unwrap();
    let metrics: Vec<Vec<_>> =
        specs.iter().map(|spec| spec.routes.iter().map(|route| route.metric).collect()).collect();
    assert_eq!(metrics, [vec![None, None], vec![Some(1), Some(1025)], vec![Some(2), Some(1026)]]);
}

#[test]
fn pci_devices_are_not_supported() {
    let pci = "<PCI><TYPE>NIC</TYPE><ADDRESS>0000:81:10:1</ADDRESS></PCI>";
    let error = translate(pci, "").unwrap_err();
    assert_eq!(
        (error.kind, error.message.as_str()),
        (ErrorKind::Unsupported, "PCI network interfaces are not supported yet (\"0000:81:10:1\")")
    );
    let error = translate("<PCI><VENDOR>10de</VENDOR></PCI>", "").unwrap_err();
    assert_eq!(error.message, "PCI devices are not supported yet");
}

#[test]
fn bandwidth_is_in_kilobytes_and_what_makes_no_sense_is_a_note() {
    let bounds = |keys: &str| {
        let (spec, mut notes) = one(keys).unwrap();
        notes.retain(|note| note != NO_NETWORK);
        (spec.inbound, spec.outbound, notes)
    };
    let rate = |average, peak, burst| Some(Rate { average, peak, burst });
    let all = "<INBOUND_AVG_BW>1000</INBOUND_AVG_BW><INBOUND_PEAK_BW>2000</INBOUND_PEAK_BW>\
               <INBOUND_PEAK_KB>64</INBOUND_PEAK_KB><OUTBOUND_AVG_BW>7</OUTBOUND_AVG_BW>";
    let inbound = rate(1_000_000, Some(2_000_000), Some(65_536));
    assert_eq!(bounds(all), (inbound, rate(7000, None, None), vec![]));
    assert_eq!(bounds("<INBOUND_AVG_BW>0</INBOUND_AVG_BW>"), (None, None, vec![]));
    let (_, outbound, notes) = bounds("<OUTBOUND_PEAK_KB>64</OUTBOUND_PEAK_KB>");
    assert_eq!(outbound, None);
    assert_eq!(notes, ["NIC 3: OUTBOUND_PEAK_… has no effect without an average"]);
    let low = "<INBOUND_AVG_BW>9</INBOUND_AVG_BW><INBOUND_PEAK_BW>8</INBOUND_PEAK_BW>";
    let (inbound, _, notes) = bounds(low);
    assert_eq!(inbound, rate(9000, None, None));
    assert_eq!(notes, ["NIC 3: INBOUND_PEAK_BW is below the average and has no effect"]);
    let error = one("<INBOUND_AVG_BW>fast</INBOUND_AVG_BW>").unwrap_err();
    assert_eq!(error.message, "NIC 3: INBOUND_AVG_BW is \"fast\", not a number");
}
