//! Samples that goldens are made of.
#![allow(missing_docs, dead_code, reason = "each test uses its part")]

use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::{Generation, IdRange, OpId};
use ocivisor_core::spec::{
    Boot, Bridge, Change, Context, DataDisk, DiskFormat, Filesystem, Graphics, GuestFile,
    HealthCheck, Hugepages, InitKind, IoLimits, Isolation, NicSpec, Password, Placement, Platform,
    Rate, Resources, Restart, RootDisk, Route, Secret, Upkeep, View, VmSpec,
};
use ocivisor_core::state::{
    Finished, GuestExit, GuestFacts, GuestKind, OpKind, Operation, Phase, ProcessRef, Record,
    Request, Tally, Timestamp, VmState,
};
use ocivisor_core::units::{Bytes, CentiCores};

pub const NOON: Timestamp = Timestamp(1_769_860_800_000);

pub fn small_spec() -> VmSpec {
    VmSpec {
        id: "web-1".parse().unwrap(),
        name: "web-1".parse().unwrap(),
        hostname: "web-1".parse().unwrap(),
        platform: Platform::Local,
        resources: Resources {
            cpu_share: CentiCores(100),
            vcpus: 1,
            cpu_quota: None,
            memory: Bytes::mib(64),
            swap: Bytes(0),
            pids: 4096,
            io_weight: None,
            placement: Placement::default(),
            hugepages: Vec::new(),
        },
        boot: Boot::default(),
        root: RootDisk { path: "/srv/web-1.img".into(), io: IoLimits::default() },
        disks: Vec::new(),
        nics: Vec::new(),
        isolation: Isolation::Default,
        context: Context::default(),
        graphics: None,
        upkeep: Upkeep::default(),
    }
}

/// A guest of this host alone, with all that is done for it.
pub fn local_spec() -> VmSpec {
    VmSpec {
        upkeep: Upkeep {
            restart: Restart::OnFailure { most: Some(5) },
            health: Some(HealthCheck {
                command: vec!["/bin/true".into()],
                interval: Duration::from_secs(10),
                timeout: Duration::from_millis(1500),
                retries: 2,
                start_period: Duration::ZERO,
                end: true,
            }),
            autostart: Some(10),
        },
        isolation: Isolation::Strict,
        ..small_spec()
    }
}

fn data_disks() -> Vec<DataDisk> {
    let disk = |number, view| DataDisk {
        number,
        path: format!("/var/lib/one/datastores/0/42/disk.{number}").into(),
        format: DiskFormat::Raw,
        backing: Vec::new(),
        read_only: false,
        io: IoLimits::default(),
        view,
        make: None,
    };
    let (vdb, hda) = ("vdb".parse().unwrap(), "hda".parse().unwrap());
    vec![
        DataDisk {
            io: IoLimits { write_bytes: Some(1 << 20), ..IoLimits::default() },
            make: Some(Filesystem::Ext4),
            ..disk(1, View::Mount("/srv/data".into()))
        },
        DataDisk {
            format: DiskFormat::Qcow2,
            backing: vec![
                "/var/lib/one/datastores/0/42/disk.2.snap".into(),
                "/var/lib/one/datastores/1/f00".into(),
            ],
            ..disk(2, View::Device(vdb))
        },
        DataDisk { read_only: true, ..disk(4, View::Either("/media/cd".into(), hda)) },
    ]
}

pub fn full_spec() -> VmSpec {
    VmSpec {
        id: "one-42".parse().unwrap(),
        name: "Wöb server".parse().unwrap(),
        hostname: "web1.example".parse().unwrap(),
        platform: Platform::OpenNebula,
        resources: Resources {
            cpu_share: CentiCores(50),
            vcpus: 2,
            cpu_quota: Some(CentiCores(150)),
            memory: Bytes::mib(512),
            swap: Bytes::mib(128),
            pids: 1000,
            io_weight: Some(50),
            placement: Placement {
                cpus: Some("0-3,8".parse().unwrap()),
                nodes: Some("1".parse().unwrap()),
            },
            hugepages: vec![Hugepages { page: Bytes::mib(2), limit: Bytes::mib(64) }],
        },
        boot: Boot {
            init: InitKind::Application,
            entrypoint: Some(vec!["/bin/sh".into(), "-c".into()]),
            cmd: Some(vec!["exec httpd -f\n".into()]),
            env: vec![
                ("LANG".into(), "C.UTF-8".into()),
                ("EQUAL".into(), "a=b=c".into()),
                ("EMPTY".into(), String::new()),
            ],
            user: Some("www:www".into()),
            workdir: Some("/srv".into()),
            stop_signal: Some(10),
            stop_timeout: Some(Duration::from_millis(2500)),
        },
        root: RootDisk {
            path: "/var/lib/one/datastores/0/42/disk.0".into(),
            io: IoLimits {
                read_bytes: Some(10_000_000),
                write_bytes: None,
                read_ops: None,
                write_ops: Some(500),
            },
        },
        disks: data_disks(),
        nics: vec![
            NicSpec {
                index: 0,
                host_name: "one-42-0".parse().unwrap(),
                bridge: Bridge::Linux("br0".parse().unwrap()),
                mac: "02:00:c0:a8:64:0a".parse().unwrap(),
                mtu: Some(9000),
                addresses: vec![
                    ("192.168.100.10".parse().unwrap(), 24),
                    ("fd00::10".parse().unwrap(), 64),
                ],
                routes: vec![
                    Route {
                        destination: None,
                        gateway: "192.168.100.1".parse().unwrap(),
                        metric: None,
                    },
                    Route {
                        destination: Some(("fd01::".parse().unwrap(), 48)),
                        gateway: "fd00::1".parse().unwrap(),
                        metric: Some(10),
                    },
                ],
                dns: vec!["192.168.100.1".parse().unwrap(), "fd00::1".parse().unwrap()],
                search: vec!["example.com".parse().unwrap()],
                inbound: Some(Rate {
                    average: 1_000_000,
                    peak: Some(2_000_000),
                    burst: Some(65536),
                }),
                outbound: Some(Rate { average: 500_000, peak: None, burst: None }),
            },
            NicSpec {
                index: 1,
                host_name: "one-42-1".parse().unwrap(),
                bridge: Bridge::OpenVswitch("br-int".parse().unwrap()),
                mac: "02:00:c0:a8:64:0b".parse().unwrap(),
                mtu: None,
                addresses: Vec::new(),
                routes: Vec::new(),
                dns: Vec::new(),
                search: Vec::new(),
                inbound: None,
                outbound: None,
            },
            NicSpec {
                index: 7,
                host_name: "tap42".parse().unwrap(),
                bridge: Bridge::None,
                mac: "02:00:c0:a8:64:0c".parse().unwrap(),
                mtu: None,
                addresses: Vec::new(),
                routes: Vec::new(),
                dns: Vec::new(),
                search: Vec::new(),
                inbound: None,
                outbound: None,
            },
        ],
        isolation: Isolation::Default,
        context: Context {
            dns: vec!["9.9.9.9".parse().unwrap()],
            search: vec!["corp.example.".parse().unwrap()],
            user: Some("admin".into()),
            ssh_keys: vec!["ssh-ed25519 AAAA admin@example".into()],
            password: Some(Password::Crypted(Secret("$6$salt$hash".into()))),
            timezone: Some("Europe/Madrid".into()),
            start_script: Some(b"#!/bin/sh\ntouch /started\n".to_vec()),
            files: vec![GuestFile {
                path: "/etc/motd".into(),
                content: b"hello\n".to_vec(),
                mode: 0o640,
                owner: (0, 4),
            }],
            variables: vec![("TOKEN".into(), Secret("it's".into()))],
            disk: Some("/var/lib/one/datastores/0/42/disk.1".into()),
        },
        graphics: Some(Graphics {
            listen: "0.0.0.0".parse().unwrap(),
            port: 5942,
            password: Some(Secret("12345678".into())),
        }),
        upkeep: Upkeep::default(),
    }
}

pub fn error() -> Error {
    Error::new(ErrorKind::NotFound, "start one-42: no bridge br0").hint("create it, or fix BRIDGE")
}

/// A record with everything at once, though no engine would write such a one.
pub fn full_record() -> Record {
    let finished = |id, kind, result| Finished {
        id: OpId(id),
        request_id: format!("request-{id}").parse().unwrap(),
        kind,
        at: NOON,
        result,
    };
    Record {
        generation: Generation(17),
        spec: full_spec(),
        state: VmState::Failed("cannot unmount its root".into()),
        op: Some(Operation {
            id: OpId(9),
            request_id: "9b8e".parse().unwrap(),
            request: Request::Deploy(Box::new(full_spec())),
            phase: Phase::Undoing(error()),
            started: Timestamp(NOON.0 + 1),
        }),
        ids: Some(IdRange { base: 1_000_000 }),
        guest: Some(GuestFacts {
            init: ProcessRef { pid: 4711, start_ticks: 123_456_789_012 },
            shim: ProcessRef { pid: 4710, start_ticks: 123_456_789_000 },
            kind: GuestKind::System,
            stop_signal: 37,
            host_boot: "5b2d6e0c-6a7a-4f5e-9f53-0f6f4f8f2a11".into(),
        }),
        last_exit: Some(GuestExit::Signal(9)),
        tally: Tally {
            wanted: true,
            restarts: 2,
            failed: true,
            since: Timestamp(1_500),
            host_boot: "5b2d6e0c-6a7a-4f5e-9f53-0f6f4f8f2a11".into(),
        },
        losses: vec!["console output from 12:00 to 12:01".into()],
        finished: vec![
            finished(7, OpKind::Define, Ok(())),
            finished(8, OpKind::Start, Err(error())),
        ],
        created: Timestamp(1),
        changed: NOON,
    }
}

/// Every kind of request.
pub fn requests() -> Vec<Request> {
    vec![
        Request::Define(Box::new(small_spec())),
        Request::Start,
        Request::Deploy(Box::new(small_spec())),
        Request::Shutdown { timeout_ms: 120_000, force: true, forget: false },
        Request::Destroy { forget: true },
        Request::Reboot { timeout_ms: 30_000 },
        Request::Reset,
        Request::Undefine,
        Request::Change(Box::new(Change {
            resources: Some(small_spec().resources),
            context: Some(full_spec().context),
            nics: Some(full_spec().nics),
        })),
        Request::Collect,
        Request::Restart { of: Generation(41) },
    ]
}

/// Compares with the golden of that name, or rewrites it when told by `UPDATE_GOLDENS=1`.
pub fn assert_golden(name: &str, got: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        use std::io::Write;
        std::fs::File::create(&path).unwrap().write_all(got.as_bytes()).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(got, want, "{path}; UPDATE_GOLDENS=1 rewrites it");
}
