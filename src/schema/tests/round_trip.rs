//! Random records survive the way core → schema → JSON → schema → core.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "the macro of proptest makes items")]

use std::net::IpAddr;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind};
use ocivisor_core::ids::{Generation, IdRange, IfName, MacAddr, OpId, RequestId, VmId};
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
use ocivisor_schema::{RecordV1, decode, encode};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn text() -> impl Strategy<Value = String> {
    any::<String>().prop_map(|text| text.replace('\0', ""))
}

fn network() -> impl Strategy<Value = (IpAddr, u8)> {
    (any::<IpAddr>(), any::<u8>())
        .prop_map(|(addr, len)| (addr, len % if addr.is_ipv4() { 33 } else { 129 }))
}

fn route() -> impl Strategy<Value = Route> {
    (network(), any::<bool>(), any::<[u8; 16]>(), option::of(any::<u32>())).prop_map(
        |(network, is_default, bytes, metric)| {
            let [a, b, c, d, ..] = bytes;
            Route {
                gateway: if network.0.is_ipv4() { [a, b, c, d].into() } else { bytes.into() },
                destination: (!is_default).then_some(network),
                metric,
            }
        },
    )
}

fn nic(at: u32) -> impl Strategy<Value = NicSpec> {
    (0..3, any::<[u8; 3]>(), option::of(576..=65_535_u32), vec(network(), 0..4), vec(route(), 0..4))
        .prop_map(move |(bridge, [a, b, c], mtu, addresses, routes)| {
            let name: IfName = format!("br{a}").parse().unwrap();
            NicSpec {
                index: at,
                host_name: format!("ocv-{at}").parse().unwrap(),
                bridge: match bridge {
                    0 => Bridge::None,
                    1 => Bridge::Linux(name),
                    _ => Bridge::OpenVswitch(name),
                },
                mac: MacAddr([2, at.to_le_bytes()[0], 0, a, b, c]),
                mtu,
                addresses,
                routes,
                dns: Vec::new(),
                search: Vec::new(),
                inbound: mtu.map(|mtu| Rate {
                    average: 1000 + u64::from(mtu),
                    peak: Some(1 << 40),
                    burst: None,
                }),
                outbound: mtu.map(|_| Rate { average: 1000, peak: None, burst: Some(a.into()) }),
            }
        })
}

fn boot() -> impl Strategy<Value = Boot> {
    let init = select(vec![InitKind::Auto, InitKind::System, InitKind::Application]);
    let env = vec(("[A-Za-z_. -]{1,8}", text()), 0..4);
    (
        init,
        option::of(vec(text(), 1..4)),
        option::of(vec(text(), 0..4)),
        env,
        option::of(text()),
        option::of(text()),
        option::of(1..=64_u8),
    )
        .prop_map(|(init, entrypoint, cmd, env, user, workdir, stop_signal)| Boot {
            init,
            entrypoint,
            cmd,
            env,
            user,
            workdir: workdir.map(|dir| format!("/{dir}")),
            stop_signal,
            stop_timeout: None,
        })
}

fn resources() -> impl Strategy<Value = Resources> {
    (
        1..=409_600_u32,
        1..=4096_u32,
        option::of(1..=u32::MAX),
        (4 << 20)..=(1_u64 << 50),
        0..=(1_u64 << 50),
        16..=u32::MAX,
        option::of(1..=10_000_u16),
        option::of(vec(0..=8191_u16, 1..5)),
    )
        .prop_map(|(share, vcpus, quota, memory, swap, pids, io_weight, cpus)| Resources {
            cpu_share: CentiCores(share),
            vcpus,
            cpu_quota: quota.map(CentiCores),
            memory: Bytes(memory),
            swap: Bytes(swap),
            pids,
            io_weight,
            placement: Placement {
                cpus: cpus.map(|all| {
                    let words: Vec<String> = all.iter().map(ToString::to_string).collect();
                    words.join(",").parse().unwrap()
                }),
                nodes: None,
            },
            hugepages: vec![Hugepages { page: Bytes::mib(2), limit: Bytes(memory) }],
        })
}

/// Contexts: texts that the checks let through.
fn context() -> impl Strategy<Value = Context> {
    let word = || "[!-~]{1,20}";
    let password = prop_oneof![
        word().prop_map(|text| Password::Plain(Secret(text))),
        "[!-9;-~]{1,20}".prop_map(|text| Password::Crypted(Secret(text))),
    ];
    let file =
        ("(/[a-z0-9]{1,9}){1,3}", vec(any::<u8>(), 0..50), 0..=0o1777_u16, any::<[u16; 2]>())
            .prop_map(|(path, content, mode, [uid, gid])| GuestFile {
                path: path.into(),
                content,
                mode,
                owner: (uid.into(), gid.into()),
            });
    (
        vec(any::<IpAddr>(), 0..3),
        option::of("[a-z_][a-z0-9_-]{0,9}"),
        // None is a comment.
        vec("[a-z][!-~]{0,19}", 0..3),
        option::of(password),
        option::of(vec(any::<u8>(), 0..50)),
        vec(file, 0..3),
        vec(("[A-Z_][A-Z0-9_]{0,9}", text()), 0..3),
        option::of("(/[a-z0-9]{1,9}){1,3}"),
    )
        .prop_map(|(dns, user, ssh_keys, password, start_script, files, variables, disk)| {
            Context {
                dns,
                search: vec!["example.com".parse().unwrap()],
                user,
                ssh_keys,
                password,
                timezone: Some("Etc/GMT+1".into()),
                start_script,
                files,
                variables: variables.into_iter().map(|(k, v)| (k, Secret(v))).collect(),
                disk: disk.map(Into::into),
            }
        })
}

fn upkeep() -> impl Strategy<Value = Upkeep> {
    let times = (100..=86_400_000_u64, 100..=86_400_000_u64, 0..=86_400_000_u64);
    let health = (vec("[!-~]{1,9}", 1..3), times, (1..=1000_u32, any::<bool>())).prop_map(
        |(command, (interval, timeout, start), (retries, end))| HealthCheck {
            command,
            interval: Duration::from_millis(interval),
            timeout: Duration::from_millis(timeout),
            retries,
            start_period: Duration::from_millis(start),
            end,
        },
    );
    let restart = prop_oneof![
        Just(Restart::No),
        Just(Restart::Always),
        Just(Restart::UnlessStopped),
        option::of(any::<u32>()).prop_map(|most| Restart::OnFailure { most }),
    ];
    (restart, option::of(health), option::of(any::<u16>()))
        .prop_map(|(restart, health, autostart)| Upkeep { restart, health, autostart })
}

fn isolation() -> impl Strategy<Value = Isolation> {
    use Isolation::{Default, Nested, Privileged, Strict};
    select(vec![Strict, Default, Nested, Privileged])
}

fn disks() -> impl Strategy<Value = Vec<DataDisk>> {
    let view = (any::<u8>(), 0..3).prop_map(|(n, which)| {
        let (at, name) = (format!("/m/{n}"), format!("sd{n}").parse().unwrap());
        match which {
            0 => View::Mount(at.into()),
            1 => View::Device(name),
            _ => View::Either(at.into(), name),
        }
    });
    let format = select(vec![DiskFormat::Raw, DiskFormat::Qcow2]);
    let make = option::of(select(vec![Filesystem::Ext4, Filesystem::Xfs]));
    let limit = option::of(1..=1_u64 << 50);
    let disk = (any::<u32>(), view, format, any::<bool>(), make, limit);
    let disk = disk.prop_map(|(number, view, format, read_only, make, write_ops)| DataDisk {
        number,
        path: format!("/d/{number}").into(),
        format,
        backing: match format {
            DiskFormat::Raw => Vec::new(),
            DiskFormat::Qcow2 => vec![format!("/d/{number}.snap").into()],
        },
        read_only,
        io: IoLimits { write_ops, ..IoLimits::default() },
        view,
        make: make.filter(|_| !read_only),
    });
    option::of(disk).prop_map(|disk| disk.into_iter().collect())
}

fn spec_of(id: VmId) -> BoxedStrategy<VmSpec> {
    let platform = select(vec![Platform::Local, Platform::OpenNebula, Platform::OpenStack]);
    (
        "[ -~ä]{1,40}",
        "[a-z0-9]{1,10}(\\.[a-z0-9]{1,10})?",
        platform,
        resources().boxed(),
        boot().boxed(),
        "(/[a-z0-9 _-]{1,10}){1,4}",
        (nic(0).boxed(), nic(1).boxed(), nic(99).boxed()),
        0..4_usize,
        (
            isolation(),
            context().boxed(),
            option::of((any::<IpAddr>(), 1024..=u16::MAX)),
            upkeep().boxed(),
            disks(),
        ),
    )
        .prop_map(move |(name, hostname, platform, resources, boot, path, nics, count, more)| {
            let (isolation, context, graphics, upkeep, disks) = more;
            VmSpec {
                id: id.clone(),
                name: name.parse().unwrap(),
                hostname: hostname.parse().unwrap(),
                platform,
                resources,
                boot,
                root: RootDisk { path: path.into(), io: IoLimits::default() },
                disks,
                nics: [nics.0, nics.1, nics.2].into_iter().take(count).collect(),
                isolation,
                context,
                graphics: graphics.map(|(listen, port)| Graphics { listen, port, password: None }),
                upkeep: if platform == Platform::Local { upkeep } else { Upkeep::default() },
            }
        })
        .boxed()
}

fn error() -> impl Strategy<Value = Error> {
    (select(ErrorKind::ALL.to_vec()), text(), option::of(text())).prop_map(
        |(kind, message, hint)| {
            let error = Error::new(kind, message);
            match hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        },
    )
}

fn request_id() -> impl Strategy<Value = RequestId> {
    "[!-~]{1,128}".prop_map(|text| text.parse().unwrap())
}

/// What the wire can say: milliseconds until the end of the year 9999.
fn time() -> impl Strategy<Value = Timestamp> {
    (0..253_402_200_000_000_u64).prop_map(Timestamp)
}

fn request_of(id: VmId) -> impl Strategy<Value = Request> {
    prop_oneof![
        spec_of(id.clone()).prop_map(|spec| Request::Define(Box::new(spec))),
        spec_of(id).prop_map(|spec| Request::Deploy(Box::new(spec))),
        (any::<u64>(), any::<bool>(), any::<bool>()).prop_map(|(timeout_ms, force, forget)| {
            Request::Shutdown { timeout_ms, force, forget }
        }),
        any::<bool>().prop_map(|forget| Request::Destroy { forget }),
        any::<u64>().prop_map(|timeout_ms| Request::Reboot { timeout_ms }),
        Just(Request::Start),
        Just(Request::Reset),
        (option::of(resources()), option::of(context()), option::of((nic(0), nic(3)))).prop_map(
            |(resources, context, nics)| {
                let nics = nics.map(|(first, second)| vec![first, second]);
                Request::Change(Box::new(Change { resources, context, nics }))
            }
        ),
        Just(Request::Undefine),
        Just(Request::Collect),
        any::<u64>().prop_map(|of| Request::Restart { of: Generation(of) }),
    ]
}

fn operation_of(id: VmId) -> impl Strategy<Value = Operation> {
    (any::<u64>(), request_id(), request_of(id), option::of(error()), time()).prop_map(
        |(id, request_id, request, undoing, started)| Operation {
            id: OpId(id),
            request_id,
            request,
            phase: undoing.map_or(Phase::Doing, Phase::Undoing),
            started,
        },
    )
}

fn process() -> impl Strategy<Value = ProcessRef> {
    (1..=2_147_483_647_u32, any::<u64>())
        .prop_map(|(pid, start_ticks)| ProcessRef { pid, start_ticks })
}

fn guest() -> impl Strategy<Value = GuestFacts> {
    let kind = select(vec![GuestKind::System, GuestKind::Application]);
    (process(), process(), kind, 1..=64_u8, any::<String>()).prop_map(
        |(init, shim, kind, stop_signal, host_boot)| GuestFacts {
            init,
            shim,
            kind,
            stop_signal,
            host_boot,
        },
    )
}

fn exit() -> impl Strategy<Value = GuestExit> {
    prop_oneof![
        any::<u8>().prop_map(GuestExit::Code),
        any::<u8>().prop_map(GuestExit::Signal),
        Just(GuestExit::Unknown),
    ]
}

fn finished() -> impl Strategy<Value = Finished> {
    let result = option::of(error()).prop_map(|error| error.map_or(Ok(()), Err));
    (any::<u64>(), request_id(), select(OpKind::ALL.to_vec()), time(), result).prop_map(
        |(id, request_id, kind, at, result)| Finished {
            id: OpId(id),
            request_id,
            kind,
            at,
            result,
        },
    )
}

fn state() -> impl Strategy<Value = VmState> {
    prop_oneof![
        Just(VmState::Stopped),
        Just(VmState::Running),
        Just(VmState::Paused),
        Just(VmState::Suspended),
        any::<String>().prop_map(VmState::Failed),
    ]
}

fn tally() -> impl Strategy<Value = Tally> {
    (any::<bool>(), any::<u32>(), any::<bool>(), time(), any::<String>()).prop_map(
        |(wanted, restarts, failed, since, host_boot)| Tally {
            wanted,
            restarts,
            failed,
            since,
            host_boot,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    "[a-z0-9][a-z0-9._-]{0,62}".prop_flat_map(|id| {
        let id: VmId = id.parse().unwrap();
        let about_guest = (
            option::of(1..4_294_901_760_u32),
            option::of(guest()),
            option::of(exit()),
            tally(),
            vec(any::<String>(), 0..4),
        );
        (
            any::<u64>(),
            spec_of(id.clone()),
            state(),
            option::of(operation_of(id)),
            about_guest,
            vec(finished(), 0..4),
            (time(), time()),
        )
            .prop_map(
                |(
                    generation,
                    spec,
                    state,
                    op,
                    (ids, guest, last_exit, tally, losses),
                    finished,
                    times,
                )| {
                    Record {
                        generation: Generation(generation),
                        spec,
                        state,
                        op,
                        ids: ids.map(|base| IdRange { base }),
                        guest,
                        last_exit,
                        tally,
                        losses,
                        finished,
                        created: times.0,
                        changed: times.1,
                    }
                },
            )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn records_round_trip(record in record()) {
        prop_assert_eq!(record.spec.check(), Ok(()));
        let schema = RecordV1::from(&record);
        let json = serde_json::to_string(&schema).unwrap();
        let read: RecordV1 = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&read, &schema);
        prop_assert_eq!(&Record::try_from(read).unwrap(), &record);
        prop_assert_eq!(&decode(&encode(&record).unwrap()).unwrap(), &record);
    }

    #[test]
    fn no_bytes_are_a_panic(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(decode(&bytes).is_err());
        let _either_way = serde_json::from_slice::<RecordV1>(&bytes).map(Record::try_from);
    }
}
