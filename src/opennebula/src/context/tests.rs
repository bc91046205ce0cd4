use super::*;

/// The addressing of group 0, and the notes.
fn of(pairs: &[(&str, &str)]) -> Result<(Addressing, Vec<String>), Error> {
    let full = pairs.iter().map(|(k, v)| (format!("ETH0_{k}"), (*v).to_owned()));
    let context: Vector = full.collect();
    let groups = groups(&context);
    let mut notes = Notes::default();
    let made = groups[&0].addressing(None, &mut notes)?;
    Ok((made, notes.into_vec().iter().map(ToString::to_string).collect()))
}

fn addresses(pairs: &[(&str, &str)]) -> Vec<String> {
    let made = of(pairs).unwrap().0.addresses;
    made.iter().map(|(ip, len)| format!("{ip}/{len}")).collect()
}

fn routes(pairs: &[(&str, &str)]) -> Vec<String> {
    let text = |route: &Route| {
        let to = route.destination.map_or("default".into(), |(ip, len)| format!("{ip}/{len}"));
        let metric = route.metric.map_or(String::new(), |m| format!(" metric {m}"));
        format!("{to} via {}{metric}", route.gateway)
    };
    of(pairs).unwrap().0.routes.iter().map(text).collect()
}

#[test]
fn keys_are_grouped_by_number_and_alias() {
    let context: Vector = [
        ("ETH0_IP", "a"),
        ("ETH0_ALIAS0_IP", "b"),
        ("ETH10_IP", "c"),
        ("ETH01_IP", "odd"),
        ("ETH_IP", "odd"),
        ("ETHX_IP", "odd"),
        ("ETH0", "odd"),
        ("PCI0_IP", "odd"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    let groups = groups(&context);
    assert_eq!(groups.keys().copied().collect::<Vec<_>>(), [0, 10]);
    assert_eq!(groups[&0].get("IP"), Some("a"));
    assert_eq!(groups[&0].aliases[&0].get("IP"), Some("b"));
    assert_eq!(groups[&10].get("IP"), Some("c"));
}

#[test]
fn addresses_of_both_families_and_of_aliases() {
    let made = addresses(&[
        ("IP", "10.0.0.5"),
        ("MASK", "255.255.255.0"),
        ("IP6", "2001:db8::5"),
        ("IP6_PREFIX_LENGTH", "48"),
        ("IP6_ULA", "fd00::5"),
        ("ALIAS0_IP", "10.0.1.5"),
        ("ALIAS0_MASK", "16"),
        ("ALIAS1_IP6", "2001:db8:1::5"),
        ("ALIAS2_IP", "10.9.9.9"),
        ("ALIAS2_MASK", "255.0.0.0"),
        ("ALIAS2_EXTERNAL", "YES"),
        ("ALIAS3_IP", "10.0.0.5"),
        ("ALIAS3_MASK", "255.255.255.0"),
    ]);
    assert_eq!(
        made,
        ["10.0.0.5/24", "2001:db8::5/48", "fd00::5/64", "10.0.1.5/16", "2001:db8:1::5/64",]
    );
}

#[test]
fn an_address_without_a_mask_is_left_out_with_a_note() {
    let (made, notes) = of(&[("IP", "10.0.0.5"), ("GATEWAY", "10.0.0.1")]).unwrap();
    assert_eq!(made, Addressing::default());
    assert_eq!(notes, ["ETH0_IP is not set in the guest because the network has no NETWORK_MASK"]);
}

#[test]
fn methods_of_the_guest_get_no_addresses() {
    let v4 = [("IP", "10.0.0.5"), ("MASK", "255.255.255.0"), ("GATEWAY", "10.0.0.1")];
    let v6 = [("IP6", "2001:db8::5"), ("IP6_GATEWAY", "2001:db8::1")];
    let both = [&v4[..], &v6].concat();
    let with = |extra: &[(&'static str, &'static str)]| addresses(&[&both, extra].concat());
    assert_eq!(with(&[]), ["10.0.0.5/24", "2001:db8::5/64"]);
    assert_eq!(with(&[("METHOD", "static")]), ["10.0.0.5/24", "2001:db8::5/64"]);
    assert_eq!(with(&[("METHOD", "dhcp")]), ["2001:db8::5/64"]);
    assert_eq!(with(&[("METHOD", "skip")]), ["2001:db8::5/64"]);
    assert_eq!(with(&[("IP6_METHOD", "auto")]), ["10.0.0.5/24"]);
    assert_eq!(routes(&[&both[..], &[("METHOD", "dhcp")]].concat()), ["default via 2001:db8::1"]);
    let (_, notes) = of(&[("METHOD", "dhcp")]).unwrap();
    assert_eq!(notes, ["ETH0_METHOD is \"dhcp\": the guest has to configure itself"]);
}

#[test]
fn gateways_and_routes() {
    let base = [("IP", "10.0.0.5"), ("MASK", "24"), ("IP6", "fd00::5")];
    let with = |extra: &[(&'static str, &'static str)]| routes(&[&base[..], extra].concat());
    assert_eq!(
        with(&[("GATEWAY", "10.0.0.1"), ("METRIC", "7")]),
        ["default via 10.0.0.1 metric 7"]
    );
    assert_eq!(
        with(&[("IP6_GATEWAY", "fe80::1"), ("IP6_METRIC", "9")]),
        ["default via fe80::1 metric 9"]
    );
    assert_eq!(with(&[("GATEWAY6", "fe80::2")]), ["default via fe80::2"]);
    assert_eq!(
        with(&[(
            "ROUTES",
            "10.1.2.3/16 via 10.0.0.2, 10.9.9.9 via 10.0.0.3 metric 5,default via 10.0.0.4,,\
             fd01::1/32 via fd00::9, 0.0.0.0/0 via 10.0.0.6"
        )]),
        [
            "10.1.0.0/16 via 10.0.0.2",
            "10.9.9.9/32 via 10.0.0.3 metric 5",
            "default via 10.0.0.4",
            "fd01::/32 via fd00::9",
            "default via 10.0.0.6",
        ]
    );
}

#[test]
fn masks_become_prefix_lengths() {
    for (mask, want) in [
        ("255.255.255.0", Some(24)),
        ("255.255.255.255", Some(32)),
        ("0.0.0.0", Some(0)),
        ("255.254.0.0", Some(15)),
        ("24", Some(24)),
        ("0", Some(0)),
        ("33", None),
        ("255.0.255.0", None),
        ("0.0.0.255", None),
        ("255.255.255", None),
        ("", None),
        ("/24", None),
    ] {
        assert_eq!(prefix_of(mask), want, "{mask}");
    }
}

#[test]
fn malformed_values_are_refused_by_name() {
    let base = [("IP", "10.0.0.5"), ("MASK", "24"), ("IP6", "fd00::5")];
    for (key, value) in [
        ("IP", "10.0.0.5/24"),
        ("IP", "10.0.0.5\n"),
        ("IP", "0.0.0.0"),
        ("IP", "224.0.0.1"),
        ("IP", "$(id)"),
        ("MASK", "255.0.255.0"),
        ("IP6", "fe80::1%eth0"),
        ("IP6", "::"),
        ("IP6_PREFIX_LENGTH", "129"),
        ("IP6_PREFIX_LENGTH", "-1"),
        ("GATEWAY", "gw"),
        ("IP6_GATEWAY", "10.0.0.1"),
        ("ROUTES", "10.0.0.0/33 via 10.0.0.1"),
        ("ROUTES", "10.0.0.0/8 via fe80::1"),
        ("ROUTES", "10.0.0.0/8 dev eth0"),
        ("ROUTES", "10.0.0.0/8 via 10.0.0.1 dev eth0"),
        ("ROUTES", "10.0.0.0/8"),
    ] {
        let mut pairs = base.to_vec();
        pairs.retain(|(k, _)| *k != key);
        pairs.push((key, value));
        let error = of(&pairs).unwrap_err();
        assert!(error.message.starts_with(&format!("CONTEXT/ETH0_{key} is ")), "{error}");
    }
    let error = of(&[&base[..], &[("GATEWAY", "10.0.0.1"), ("METRIC", "x")]].concat());
    assert_eq!(error.unwrap_err().message, "CONTEXT/ETH0_METRIC is \"x\", not a number");
}

#[test]
fn endless_lists_are_refused() {
    let many = "10.0.0.0/8 via 10.0.0.1,".repeat(100_000);
    assert!(of(&[("IP", "10.0.0.5"), ("MASK", "24"), ("ROUTES", &many)]).is_err());
}
