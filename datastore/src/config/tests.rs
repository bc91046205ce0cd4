use super::*;

const DIFF: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn parse(config: &str) -> Result<ImageConfig, Fault> {
    let text = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{config},"rootfs":{{"type":"layers","diff_ids":["{DIFF}"]}}}}"#
    );
    ImageConfig::parse(text.as_bytes(), &Limits::default()).map(|(config, _)| config)
}

fn fault(config: &str) -> (&'static str, &'static str) {
    match parse(config) {
        Err(Fault::Config { field, why }) => (field, why),
        other => panic!("{config}: {other:?}"),
    }
}

#[test]
fn a_full_config_is_read() {
    let config = parse(
        r#"{"Entrypoint":["/init"],"Cmd":["-v"],"Env":["PATH=/bin","A=b=c","PATH=/usr/bin"],"User":"1000:users",
            "WorkingDir":"/srv","StopSignal":"SIGRTMIN+3","Labels":{"k":"v"},"ExposedPorts":{"80/tcp":{}},
            "Volumes":{"/data":{}},"Healthcheck":{"Test":["NONE"]}}"#,
    )
    .unwrap();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(
        config,
        ImageConfig {
            architecture: "amd64".into(),
            os: "linux".into(),
            entrypoint: vec!["/init".into()],
            cmd: vec!["-v".into()],
            env: vec![pair("PATH", "/usr/bin"), pair("A", "b=c")],
            user: ImageUser {
                user: Principal::Id(1000),
                group: Some(Principal::Name("users".into()))
            },
            working_dir: "/srv".into(),
            stop_signal: Some("SIGRTMIN+3".into()),
            labels: BTreeMap::from([pair("k", "v")]),
            exposed_ports: vec!["80/tcp".into()],
            volumes: vec!["/data".into()],
        }
    );
}

#[test]
fn nulls_and_absence_are_the_defaults() {
    let nothing = parse("null").unwrap();
    let nulls = parse(
        r#"{"Entrypoint":null,"Env":null,"User":"","WorkingDir":"","Labels":null,"Volumes":null}"#,
    );
    assert_eq!(nulls.unwrap(), nothing);
    assert_eq!((nothing.working_dir.as_str(), nothing.user), ("/", ImageUser::default()));
}

#[test]
fn a_user_is_never_cut_down_to_root() {
    for user in ["4294967296", "2147483648", "65536", "0:4294967296", "99999999999999999999999"] {
        assert_eq!(
            fault(&format!(r#"{{"User":"{user}"}}"#)),
            ("User", "has an id above 65535"),
            "{user}"
        );
    }
    for user in ["-1", "0:0:0", r"root\nroot", "root:", ":0", " 0", "+1", r"\u0000", "a/b"] {
        let want = ("User", "is neither a number nor a name");
        assert_eq!(fault(&format!(r#"{{"User":"{user}"}}"#)), want, "{user}");
    }
    assert_eq!(parse(r#"{"User":"65535"}"#).unwrap().user.user, Principal::Id(65535));
}

#[test]
fn nul_bytes_are_refused_everywhere() {
    assert_eq!(fault(r#"{"Env":["A=\u0000"]}"#), ("Env", "has a NUL byte"));
    assert_eq!(fault(r#"{"Cmd":["\u0000"]}"#), ("Cmd", "has a NUL byte"));
    assert_eq!(fault(r#"{"Entrypoint":["a","b\u0000"]}"#), ("Entrypoint", "has a NUL byte"));
    assert_eq!(fault(r#"{"Labels":{"a":"\u0000"}}"#), ("Labels", "has a NUL byte"));
    assert_eq!(fault(r#"{"Volumes":{"/\u0000":{}}}"#), ("Volumes", "has a NUL byte"));
    assert_eq!(fault(r#"{"WorkingDir":"/a\u0000"}"#), ("WorkingDir", "has control characters"));
}

#[test]
fn env_is_bounded_and_its_names_are_names() {
    let huge = format!(r#"{{"Env":["PATH={}"]}}"#, "x".repeat(1 << 20));
    assert_eq!(fault(&huge), ("Env", "has an item above 131071 bytes"));
    let many = vec![r#""A=1""#; 5000].join(",");
    assert_eq!(fault(&format!(r#"{{"Env":[{many}]}}"#)), ("Env", "has more than 4096 items"));
    assert_eq!(fault(r#"{"Env":["NOVALUE"]}"#), ("Env", "has an item without '='"));
    assert_eq!(fault(r#"{"Env":["=x"]}"#), ("Env", "has a variable with a bad name"));
    assert_eq!(fault(r#"{"Env":["A\nB=x"]}"#), ("Env", "has a variable with a bad name"));
    // A value may hold lines (certificates do): it is data.
    assert_eq!(parse(r#"{"Env":["A=x\ny","LD_PRELOAD=/x.so"]}"#).unwrap().env[0].1, "x\ny");
}

#[test]
fn a_million_ports_are_refused_and_odd_volumes_are_inert() {
    let ports: Vec<String> = (0..5000).map(|n| format!(r#""{n}/tcp":{{}}"#)).collect();
    let text = format!(r#"{{"ExposedPorts":{{{}}}}}"#, ports.join(","));
    assert_eq!(fault(&text), ("ExposedPorts", "has more than 4096 items"));
    let config = parse(r#"{"Volumes":{"/proc":{},"/../..":{},"/dev/sda":{}}}"#).unwrap();
    assert_eq!(config.volumes, ["/../..", "/dev/sda", "/proc"]);
}

#[test]
fn signals_are_names_or_numbers() {
    for good in ["SIGTERM", "TERM", "15", "SIGRTMIN+3", "SIGRTMAX-1", "SIGUSR1", "SIGPWR"] {
        assert!(parse(&format!(r#"{{"StopSignal":"{good}"}}"#)).is_ok(), "{good}");
    }
    for bad in [
        "0",
        "65",
        "SIG",
        "SIGTERM+1",
        "SIGRTMIN+31",
        "term",
        "-9",
        "SIGTERM\\n",
        "9999",
        "SIG$(id)",
    ] {
        assert_eq!(
            fault(&format!(r#"{{"StopSignal":"{bad}"}}"#)),
            ("StopSignal", "is no signal"),
            "{bad}"
        );
    }
}

#[test]
fn a_working_dir_is_absolute() {
    assert_eq!(fault(r#"{"WorkingDir":"srv"}"#), ("WorkingDir", "is not absolute"));
    assert_eq!(fault(r#"{"WorkingDir":"/a\nb"}"#), ("WorkingDir", "has control characters"));
}

#[test]
fn an_image_without_layers_is_refused() {
    let text = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    assert_eq!(ImageConfig::parse(text, &Limits::default()), Err(Fault::NoLayers));
}

#[test]
fn a_synthesized_config_is_read_back() {
    let diff: DiffId = DIFF.parse().unwrap();
    let bytes = ImageConfig::synthesize(diff).unwrap();
    let (config, layers) = ImageConfig::parse(&bytes, &Limits::default()).unwrap();
    assert_eq!((layers, config.platform()), (vec![diff], document::host_platform()));
}
