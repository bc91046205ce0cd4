//! The forms on disk and on the wire, byte for byte. A golden may gain fields; a field that is
//! taken away or changes its meaning is a new version.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use common::{
    NOON, assert_golden, error, full_record, full_spec, local_spec, requests, small_spec,
};
use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::failure::KeptFailure;
use ocivisor_core::ids::{OpId, VmId};
use ocivisor_core::spec::VmSpec;
use ocivisor_core::state::{GuestExit, OpKind, Record, Request, Timestamp};
use ocivisor_schema::image::{
    DfReply, FileV1, FindingV1, FindingsV1, HistoryV1, ImageInspect, ImageUseV1, LackingV1,
    LayerV1, MadeV1, PrunedV1, PushedV1, SourceStatV1,
};
use ocivisor_schema::record::{GuestExitV1, RequestV1};
use ocivisor_schema::reply::{
    CgroupLayoutV1, ConsoleReply, DamagedVm, DiskInfo, EventsReply, ExecReply, HealthNameV1,
    HealthV1, HostInfo, ImageInfo, ImageOperationReply, LogReply, OpStatusReply, OperationReply,
    ProgressV1, RemovedReply, StateNameV1, StatesReply, VersionReply, VmCounts, VmInfo, VmNow,
    VmSummary,
};
use ocivisor_schema::stats::{
    CpuStats, DiskStats, MemoryStats, NicStats, PidStats, PressureStats, StallStats, StallTime,
    StatsReply, VmStats,
};
use ocivisor_schema::{
    ErrorV1, EventDataV1, EventV1, OutcomeV1, RecordV1, Text, VmSpecV1, WhyReply, decode, encode,
    failure,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The value's JSON is the golden, and reading that gives the value again.
fn pin<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, value: &T) {
    let text = serde_json::to_string_pretty(value).unwrap() + "\n";
    assert_golden(name, &text);
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), *value, "{name}");
}

fn vm() -> Text<VmId> {
    Text("one-42".parse().unwrap())
}

fn kept_failure() -> KeptFailure {
    let what = "deploy vm one-42: the guest ended at once with exit code 3: no luck";
    KeptFailure {
        vm: vm().0,
        op: OpId(7),
        kind: OpKind::Deploy,
        step: Some("settle".into()),
        error: Error::new(ErrorKind::GuestExited, what).hint("see the image's entrypoint"),
        at: NOON,
        exit: Some(GuestExit::Code(3)),
        console: vec!["looking for /etc/app.conf".into(), "no luck".into()],
    }
}

fn stats() -> StatsReply {
    let time = |avg10, avg60, avg300, total_us| StallTime { avg10, avg60, avg300, total_us };
    let stall = StallStats { some: time(123, 45, 6, 789_000), full: time(12, 4, 0, 78_900) };
    let full = VmStats {
        id: vm(),
        cpu: CpuStats {
            usage_us: 12_500_000,
            vcpus: 2,
            periods: 900,
            throttled_periods: 30,
            throttled_us: 450_000,
        },
        memory: MemoryStats {
            used: 100 << 20,
            peak: Some(200 << 20),
            limit: 256 << 20,
            swap: Some(0),
            swap_limit: 64 << 20,
            oom_kills: 1,
        },
        pids: PidStats { current: 12, limit: 4096 },
        disk: Some(DiskStats {
            read_bytes: 4096,
            read_ops: 1,
            write_bytes: 1 << 20,
            write_ops: 16,
        }),
        nics: vec![NicStats {
            index: 0,
            rx_bytes: 1500,
            rx_packets: 3,
            tx_bytes: 900,
            tx_packets: 2,
        }],
        pressure: Some(PressureStats { cpu: stall, memory: stall, io: stall }),
    };
    let bare = VmStats {
        id: Text("web".parse().unwrap()),
        memory: MemoryStats { peak: None, swap: None, ..full.memory },
        disk: None,
        nics: Vec::new(),
        pressure: None,
        ..full.clone()
    };
    StatsReply { at: NOON.into(), vms: vec![full, bare] }
}

#[test]
fn specs() {
    pin("spec_small.json", &VmSpecV1::from(&small_spec()));
    pin("spec_full.json", &VmSpecV1::from(&full_spec()));
    pin("spec_local.json", &VmSpecV1::from(&local_spec()));
}

#[test]
fn records_as_values_and_as_files() {
    let record = full_record();
    pin("record_full.json", &RecordV1::from(&record));
    let fresh = Record::new(small_spec(), NOON);
    let bytes = encode(&fresh).unwrap();
    assert_golden("vm.json", std::str::from_utf8(&bytes).unwrap());
    assert_eq!(decode(&bytes).unwrap(), fresh);
}

#[test]
fn failures_as_files_and_as_answers() {
    let failure = kept_failure();
    let bytes = failure::encode(&failure).unwrap();
    assert_golden("failure.json", std::str::from_utf8(&bytes).unwrap());
    assert_eq!(failure::decode(&bytes).unwrap(), failure);
    pin("why.json", &WhyReply::new(&failure.vm, None, Some(&failure), Vec::new()));
    let lines = vec!["login:".to_owned()];
    pin("why_known.json", &WhyReply::new(&vm().0, Some(&full_record()), None, lines));
}

#[test]
fn a_failure_of_hostile_bytes_is_small_enough_to_be_read_again() {
    let most = KeptFailure {
        error: Error::new(ErrorKind::Host, "\"".repeat(2000)).hint("\"".repeat(2000)),
        console: vec!["\\".repeat(KeptFailure::BYTES / KeptFailure::LINES); KeptFailure::LINES],
        ..kept_failure()
    };
    let bytes = failure::encode(&most).unwrap();
    assert!(bytes.len() < failure::MAX_FAILURE, "{}", bytes.len());
    assert_eq!(failure::decode(&bytes).unwrap(), most);
    assert!(failure::decode(&bytes[..bytes.len() - 1]).is_err());
    let other = String::from_utf8(bytes).unwrap().replace("settle", "create");
    assert!(failure::decode(other.as_bytes()).is_err(), "its checksum is another one");
}

#[test]
fn all_kinds_of_request() {
    let requests: Vec<RequestV1> = requests().iter().map(RequestV1::from).collect();
    pin("requests.json", &requests);
}

#[test]
fn errors() {
    pin("error.json", &ErrorV1::from(&error()));
}

#[test]
fn all_kinds_of_event() {
    let op = Text(OpId(7));
    let operation = || "start".to_owned();
    let kinds = [
        EventDataV1::OperationStarted { op, operation: operation() },
        EventDataV1::OperationProgress { op, step: "mount the root disk".into(), progress: None },
        EventDataV1::OperationFinished { op, operation: operation(), result: OutcomeV1::Ok },
        EventDataV1::OperationFinished {
            op,
            operation: operation(),
            result: OutcomeV1::Error((&error()).into()),
        },
        EventDataV1::StateChanged { from: Some(StateNameV1::Stopped), to: StateNameV1::Running },
        EventDataV1::GuestExited { exit: GuestExitV1::Code { code: 3 } },
        EventDataV1::ShimAdopted { losses: vec!["console output from 12:00 to 12:01".into()] },
        EventDataV1::VmOom { count: 2, total: 5 },
        EventDataV1::VmForgotten,
        EventDataV1::HealthChanged { from: HealthNameV1::Healthy, to: HealthNameV1::Unhealthy },
        EventDataV1::RestartsExhausted { restarts: 5 },
    ];
    let mut events: Vec<EventV1> = (41..)
        .zip(kinds)
        .map(|(seq, data)| EventV1 { seq, at: NOON.into(), vm: Some(vm()), image: None, data })
        .collect();
    let commit = EventDataV1::OperationStarted { op, operation: "commit".into() };
    let image = Some("web:2".into());
    events.push(EventV1 { seq: 50, at: NOON.into(), vm: Some(vm()), image, data: commit });
    pin("events.json", &EventsReply { events, next_seq: 51, lost: false });
}

#[test]
fn replies() {
    let record = full_record();
    let op = Text(OpId(7));
    pin(
        "operation.json",
        &OperationReply {
            op: Some(op),
            vm: vm(),
            state: Some(StateNameV1::Stopped),
            joined: false,
        },
    );
    pin(
        "op_status.json",
        &OpStatusReply {
            op,
            vm: Some(vm()),
            image: None,
            kind: "start".into(),
            done: true,
            step: None,
            progress: None,
            made: None,
            result: Some(OutcomeV1::Error((&error()).into())),
        },
    );
    let (status, output) = (HealthNameV1::Unhealthy, Some("no answer".to_owned()));
    let summary = VmSummary { health: Some(status), ..VmSummary::from(&record) };
    pin("vm_summary.json", &summary);
    let why = "damaged: sha256 is 00ff, the record says ff00".to_owned();
    pin("vm_damaged.json", &DamagedVm { id: vm(), why });
    let damaged = vec![Text("one-43".parse().unwrap())];
    pin("states.json", &StatesReply { vms: vec![VmNow::from(&record)], damaged });
    let health = Some(HealthV1 { status, failures: 3, output });
    pin("vm_info.json", &VmInfo { health, ..VmInfo::from(&record) });
    pin("stats.json", &stats());
    pin("console.json", &ConsoleReply { socket: "/run/ocivisor/sock/one-42/shim.sock".into() });
    pin(
        "exec.json",
        &ExecReply {
            socket: "/run/ocivisor/sock/one-42/5f3b9c0d1e2a".into(),
            token: "6f1c2f6e".into(),
        },
    );
    pin("log.json", &LogReply { text_base64: "bG9naW46IA==".into(), truncated: true });
    pin(
        "image.json",
        &ImageInfo {
            name: "debian:12".into(),
            digest: format!("sha256:{}", "0".repeat(64)),
            platform: "linux/amd64".into(),
            layers: 1,
            size_bytes: 123_456_789,
            imported: NOON.into(),
            owner_uid: Some(9869),
        },
    );
    images(op);
    pin("removed.json", &RemovedReply { removed: true });
    pin(
        "disk.json",
        &DiskInfo {
            path: "/srv/web-1.img".into(),
            manifest: "/srv/web-1.img.manifest.json".into(),
            image_digest: format!("sha256:{}", "0".repeat(64)),
        },
    );
    let mut vms = VmCounts::default();
    vms.add(StateNameV1::Running);
    pin(
        "host.json",
        &HostInfo {
            version: "0.1.0".into(),
            hostname: "node1".into(),
            kernel: "6.12.1".into(),
            boot_id: "5b2d6e0c-6a7a-4f5e-9f53-0f6f4f8f2a11".into(),
            cgroup_layout: CgroupLayoutV1::V2,
            cpus: 8,
            memory: 16 << 30,
            memory_available: 12 << 30,
            vms,
            state_dir: "/var/lib/ocivisor".into(),
            run_dir: "/run/ocivisor".into(),
        },
    );
    pin("version.json", &VersionReply { version: "0.1.0".into(), api: 1 });
}

#[test]
fn the_least_spec_gets_defaults() {
    let least = r#"{"id": "web-1", "resources": {"memory": 67108864},
        "root": {"path": "/srv/web-1.img"}, "of_a_later_version": [1]}"#;
    let spec: VmSpecV1 = serde_json::from_str(least).unwrap();
    assert_eq!(VmSpec::try_from(spec).unwrap(), small_spec());
}

#[test]
fn an_event_of_a_later_version_is_read_as_unknown() {
    let text = r#"{"seq": 1, "at": "2026-01-31T12:00:00.000Z", "vm": "one-42",
        "kind": "teleported", "to": {"host": "node2"}}"#;
    let event: EventV1 = serde_json::from_str(text).unwrap();
    assert_eq!(event.data, EventDataV1::Unknown);
    assert_eq!(event.at.0, Timestamp(NOON.0));
}

#[test]
fn values_that_cannot_be_are_refused_by_field() {
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = serde_json::to_value(VmSpecV1::from(&full_spec())).unwrap();
        change(&mut value);
        let spec: VmSpecV1 = serde_json::from_value(value).unwrap();
        VmSpec::try_from(spec).unwrap_err().to_string()
    };
    for (pointer, value, want) in [
        ("/id", "One", "vm One: id: \"One\" is not a valid vm id: must begin with a-z or 0-9"),
        (
            "/hostname",
            "-a",
            "vm one-42: hostname: \"-a\" is not a valid host name: \
             labels hold only letters, digits and inner hyphens (RFC 1123)",
        ),
        (
            "/nics/0/mac",
            "x",
            "vm one-42: nics[0].mac: \"x\" is not a valid MAC address: \
             must be six pairs of hex digits joined by colons",
        ),
        (
            "/nics/0/addresses/0",
            "10.0.0.1",
            "vm one-42: nics[0].addresses: \"10.0.0.1\" is not an address/prefix",
        ),
        (
            "/nics/0/addresses/0",
            "10.0.0.1/+8",
            "vm one-42: nics[0].addresses: \"10.0.0.1/+8\" is not an address/prefix",
        ),
        (
            "/nics/0/routes/0/gateway",
            "gw",
            "vm one-42: nics[0].routes.gateway: \"gw\" is not an IP address",
        ),
        ("/boot/env/0", "LANG", "vm one-42: boot.env: \"LANG\" is not NAME=value"),
        (
            "/root/path",
            "/srv/../etc/shadow",
            "vm one-42: root disk path \"/srv/../etc/shadow\" is not absolute and normal",
        ),
    ] {
        let got = refused(&|spec| *spec.pointer_mut(pointer).unwrap() = value.into());
        assert_eq!(got, want);
    }
}

#[test]
fn records_that_cannot_be_are_refused() {
    let refused = |pointer: &str, value: serde_json::Value| {
        let mut json = serde_json::to_value(RecordV1::from(&full_record())).unwrap();
        *json.pointer_mut(pointer).unwrap() = value;
        let record: RecordV1 = serde_json::from_value(json).unwrap();
        Record::try_from(record).unwrap_err().to_string()
    };
    assert_eq!(refused("/guest/init/pid", 0.into()), "process id 0 is not 1 to 2147483647");
    assert_eq!(
        refused("/guest/shim/pid", u32::MAX.into()),
        "process id 4294967295 is not 1 to 2147483647"
    );
    assert_eq!(refused("/guest/stop_signal", 65.into()), "stop signal 65 is not 1 to 64");
    for base in [0, u32::MAX - 65_535] {
        assert_eq!(
            refused("/ids/base", base.into()),
            format!("id range of 65536 at {base} is not within 1 to 4294967294")
        );
    }
    assert_eq!(
        refused("/op/request/spec/id", "one-43".into()),
        "record of vm one-42 holds an operation for vm one-43"
    );
    assert_eq!(refused("/version", 2.into()), "record version 2 is unknown, this build reads 1");
}

#[test]
fn requests_round_trip() {
    for request in requests() {
        let json = serde_json::to_string(&RequestV1::from(&request)).unwrap();
        let read: RequestV1 = serde_json::from_str(&json).unwrap();
        assert_eq!(Request::try_from(read).unwrap(), request);
    }
}

fn images(op: Text<OpId>) {
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let info = ImageInfo {
        name: "debian:12".into(),
        digest: digest("0"),
        platform: "linux/amd64".into(),
        layers: 1,
        size_bytes: 123_456_789,
        imported: NOON.into(),
        owner_uid: None,
    };
    pin(
        "image_operation.json",
        &ImageOperationReply { op, vm: None, image: Some("debian:12".into()), joined: false },
    );
    let vm = Some(vm());
    pin(
        "image_operation_of_vm.json",
        &ImageOperationReply { op, vm, image: Some("web:2".into()), joined: false },
    );
    let of_store = ImageOperationReply { op, vm: None, image: None, joined: false };
    pin("image_operation_of_store.json", &of_store);
    pin(
        "source_stat.json",
        &SourceStatV1 {
            reference: format!("docker://registry.example.com/debian@{}", digest("0")),
            digest: digest("0"),
            platform: "linux/amd64".into(),
            layers: 1,
            size_bytes: 50_000_000,
        },
    );
    pin("lacking.json", &LackingV1 { digest: digest("0"), blobs: vec![digest("2")] });
    pin(
        "image_inspect.json",
        &ImageInspect {
            info: info.clone(),
            names: vec!["debian:12".into(), "debian:stable".into()],
            layer_details: vec![LayerV1 {
                diff_id: digest("1"),
                digest: digest("2"),
                media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
                size_bytes: 50_000_000,
            }],
            manifest: serde_json::json!({"schemaVersion": 2}),
            config: serde_json::json!({"os": "linux", "architecture": "amd64"}),
        },
    );
    pin(
        "history.json",
        &HistoryV1 {
            created: Some("2026-11-20T12:00:00Z".into()),
            created_by: "COPY . /srv".into(),
            size_bytes: Some(50_000_000),
            comment: String::new(),
        },
    );
    pin(
        "df.json",
        &DfReply {
            images: vec![ImageUseV1 {
                names: vec!["debian:12".into()],
                digest: digest("0"),
                unique_bytes: 1_000_000,
                shared_bytes: 150_000_000,
                imported: NOON.into(),
            }],
            blob_bytes: 51_000_000,
            layer_bytes: 100_000_000,
            partial_bytes: 4096,
            staging_bytes: 0,
            quarantine_bytes: 1_200_000,
            total_bytes: 152_300_000,
            reclaimable_bytes: 0,
        },
    );
    let finding = FindingV1 {
        code: "blob-digest".into(),
        severity: "error".into(),
        object: format!("blob {}", digest("2")),
        message: format!("has digest {}", digest("3")),
        repair: Some("moved to quarantine".into()),
    };
    let made = [
        MadeV1::Image(info),
        MadeV1::File(FileV1 {
            path: "/srv/debian.oci".into(),
            size_bytes: 50_001_920,
            notes: vec!["1 device node was left out".into()],
        }),
        MadeV1::Pushed(PushedV1 {
            reference: "registry.example.com/debian:12".into(),
            digest: digest("0"),
            sent_bytes: 50_000_000,
        }),
        MadeV1::Findings(FindingsV1 { findings: vec![finding], checked_bytes: 151_000_000 }),
        MadeV1::Pruned(PrunedV1 {
            images: 1,
            layers: 2,
            blobs: 4,
            quarantined: 1,
            freed_bytes: 151_000_000,
            dry_run: true,
        }),
    ];
    for (name, made) in ["image", "file", "pushed", "findings", "pruned"].into_iter().zip(made) {
        let status = OpStatusReply {
            op,
            vm: None,
            image: Some("debian:12".into()),
            kind: "import".into(),
            done: true,
            step: Some("layer 1 of 1".into()),
            progress: Some(ProgressV1 { done: 50_000_000, total: Some(50_000_000) }),
            result: Some(OutcomeV1::Ok),
            made: Some(made),
        };
        pin(&format!("op_status_{name}.json"), &status);
    }
}
