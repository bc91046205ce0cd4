//! A daemon in miniature: admission, engine and reconcile on the fake host, with crashes.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use ocivisor_core::admission::{Admission, admit};
use ocivisor_core::engine::{Engine, Hooks, Outcome, Point};
use ocivisor_core::error::{Error, Result};
use ocivisor_core::failure::KeptFailure;
use ocivisor_core::ids::{MacAddr, OpId, RequestId, VmId};
use ocivisor_core::plan::Step;
use ocivisor_core::ports::Loaded;
use ocivisor_core::spec::{
    Boot, Bridge, Change, Context, DataDisk, DiskFormat, Graphics, IoLimits, Isolation, NicSpec,
    Placement, Platform, Resources, RootDisk, Upkeep, View, VmSpec,
};
use ocivisor_core::state::{Record, Request, VmState};
use ocivisor_core::testing::{Crash, FakeHost, Thing};
use ocivisor_core::units::{Bytes, CentiCores};

pub fn id(text: &str) -> VmId {
    text.parse().unwrap()
}

pub fn spec(name: &str, nics: u32) -> VmSpec {
    let nic = |index: u32| NicSpec {
        index,
        host_name: format!("{name}-{index}").parse().unwrap(),
        bridge: Bridge::Linux("br0".parse().unwrap()),
        mac: MacAddr([2, 0, 0, 0, 0, index as u8]),
        mtu: None,
        addresses: Vec::new(),
        routes: Vec::new(),
        dns: Vec::new(),
        search: Vec::new(),
        inbound: None,
        outbound: None,
    };
    VmSpec {
        id: id(name),
        name: name.parse().unwrap(),
        hostname: name.parse().unwrap(),
        platform: Platform::OpenNebula,
        resources: Resources {
            cpu_share: CentiCores(100),
            vcpus: 1,
            cpu_quota: None,
            memory: Bytes::mib(128),
            swap: Bytes(0),
            pids: 100,
            io_weight: None,
            placement: Placement::default(),
            hugepages: Vec::new(),
        },
        boot: Boot::default(),
        root: RootDisk { path: format!("/disks/{name}").into(), io: IoLimits::default() },
        disks: (1..=nics).map(|n| data_disk(name, n)).collect(),
        nics: (0..nics).map(nic).collect(),
        isolation: Isolation::Default,
        context: Context::default(),
        graphics: Some(Graphics {
            listen: IpAddr::from([127, 0, 0, 1]),
            port: 5900,
            password: None,
        }),
        upkeep: Upkeep::default(),
    }
}

/// One that is written, and one that is only read.
fn data_disk(vm: &str, number: u32) -> DataDisk {
    DataDisk {
        number,
        path: format!("/disks/{vm}-{number}").into(),
        format: DiskFormat::Raw,
        backing: Vec::new(),
        read_only: number == 2,
        io: IoLimits { read_ops: Some(10), ..IoLimits::default() },
        view: View::Mount(format!("/data/{number}").into()),
        make: None,
    }
}

pub fn deploy(name: &str) -> Request {
    Request::Deploy(Box::new(spec(name, 2)))
}

pub fn define(name: &str) -> Request {
    Request::Define(Box::new(spec(name, 2)))
}

/// Other limits and another context.
pub fn change() -> Request {
    let resources = Resources { memory: Bytes::mib(256), ..spec("one-1", 0).resources };
    let context = Context { user: Some("admin".into()), ..Context::default() };
    Request::Change(Box::new(Change {
        resources: Some(resources),
        context: Some(context),
        nics: None,
    }))
}

/// Of the two NICs one gets an MTU, the other one's place is taken by another, and a third comes.
pub fn rewire(name: &str) -> Request {
    let mut nics = spec(name, 3).nics;
    nics[0].mtu = Some(1400);
    nics[1].mac = MacAddr([2, 0, 0, 0, 1, 1]);
    Request::Change(Box::new(Change { nics: Some(nics), ..Change::default() }))
}

/// The NICs of [`deploy`] again.
pub fn unwire(name: &str) -> Request {
    let nics = Some(spec(name, 2).nics);
    Request::Change(Box::new(Change { nics, ..Change::default() }))
}

/// What the network knows of them.
fn bare(nics: &[NicSpec]) -> Vec<NicSpec> {
    let bare = |nic: &NicSpec| NicSpec { dns: Vec::new(), search: Vec::new(), ..nic.clone() };
    nics.iter().map(bare).collect()
}

pub const SHUTDOWN: Request = Request::Shutdown { timeout_ms: 10, force: true, forget: false };
pub const DESTROY: Request = Request::Destroy { forget: false };
pub const CANCEL: Request = Request::Destroy { forget: true };
pub const REBOOT: Request = Request::Reboot { timeout_ms: 10 };

/// Hooks that only count and collect.
#[derive(Default)]
pub struct Quiet {
    pub give_up: Cell<bool>,
    pub steps: Cell<usize>,
    pub give_up_after: Cell<Option<usize>>,
    /// Given up while this is under way.
    pub give_up_in: Cell<Option<Step>>,
    pub failures: RefCell<Vec<KeptFailure>>,
}

impl Hooks for Quiet {
    fn at(&self, _: &VmId, point: Point) {
        if let Point::After(_) = point {
            self.steps.set(self.steps.get() + 1);
        }
        if matches!((point, self.give_up_in.get()), (Point::Before(now), Some(step)) if now == step)
        {
            self.give_up.set(true);
        }
    }

    fn given_up(&self) -> bool {
        self.give_up.get() || self.give_up_after.get().is_some_and(|n| self.steps.get() >= n)
    }

    fn failed(&self, failure: KeptFailure) {
        self.failures.borrow_mut().push(failure);
    }
}

pub struct Daemon {
    pub host: FakeHost,
    pub hooks: Quiet,
    ops: Cell<u64>,
}

/// What a caller saw.
#[derive(Debug, PartialEq)]
pub enum Seen {
    Answer(Result<()>),
    Already,
    Joined,
    GivenUp,
    Crashed,
}

impl Daemon {
    pub fn new() -> Self {
        quiet_crashes();
        Self { host: FakeHost::new(), hooks: Quiet::default(), ops: Cell::new(0) }
    }

    pub fn engine(&self) -> Engine<'_> {
        Engine { ports: self.host.ports(), settle: Duration::ZERO }
    }

    pub fn next_op(&self) -> OpId {
        self.ops.set(self.ops.get() + 1);
        OpId(self.ops.get())
    }

    pub fn ask(&self, vm: &str, request: Request) -> Seen {
        let op = self.next_op();
        let request_id = format!("request-{}", op.0).parse().unwrap();
        self.ask_as(vm, request, request_id, op)
    }

    pub fn ask_as(&self, vm: &str, request: Request, request_id: RequestId, op: OpId) -> Seen {
        let work = || {
            let id = id(vm);
            let record = self.host.record(&id);
            match admit(&id, record.as_ref(), &request, &request_id) {
                Admission::AlreadyTrue => Seen::Already,
                Admission::Deny(error) => Seen::Answer(Err(error)),
                Admission::Join(_) => Seen::Joined,
                Admission::Repeat(done) => Seen::Answer(done.result),
                Admission::Run(_) | Admission::Preempt(..) => {
                    match self.engine().begin(record, &id, request.clone(), request_id.clone(), op)
                    {
                        Ok(record) => seen(self.engine().carry_out(record, &self.hooks)),
                        Err(error) => Seen::Answer(Err(error)),
                    }
                }
            }
        };
        survive(work).unwrap_or(Seen::Crashed)
    }

    /// What a daemon does at start. Errors are those of VMs that could not be brought to rest.
    pub fn restart(&self) -> Vec<Error> {
        let work = || {
            let mut errors = Vec::new();
            let ports = self.host.ports();
            let remains = self.host.anything_of();
            let mut known = BTreeSet::new();
            for loaded in ports.records.load_all().unwrap() {
                let Loaded::Record(record) = loaded else {
                    continue;
                };
                known.insert(record.id().clone());
                let observed = self.engine().observe(&record, remains.contains(record.id()));
                let observed = observed.unwrap();
                let op = self.next_op();
                match self.engine().reconcile(*record, observed, op, &self.hooks) {
                    Outcome::Settled(_, Err(error)) | Outcome::Forgotten(Err(error)) => {
                        errors.push(error);
                    }
                    _ => {}
                }
            }
            for orphan in remains.difference(&known) {
                if let Err(error) = self.engine().clear_orphan(orphan) {
                    errors.push(error);
                }
            }
            errors
        };
        survive(work).expect("crash in a healthy restart")
    }

    /// A restart that may be cut off by an injected crash.
    pub fn try_restart(&self) -> bool {
        let work = || {
            let remains = self.host.anything_of();
            for loaded in self.host.ports().records.load_all().unwrap() {
                let Loaded::Record(record) = loaded else {
                    continue;
                };
                let observed =
                    self.engine().observe(&record, remains.contains(record.id())).unwrap();
                self.engine().reconcile(*record, observed, self.next_op(), &self.hooks);
            }
        };
        survive(work).is_some()
    }

    /// The host holds exactly what the records say.
    pub fn check(&self) {
        let mut ids: BTreeSet<VmId> = self.host.anything_of();
        for loaded in self.host.ports().records.load_all().unwrap() {
            let Loaded::Record(record) = loaded else {
                continue;
            };
            ids.insert(record.id().clone());
        }
        for id in ids {
            let things = self.host.things(&id);
            match self.host.record(&id) {
                None => assert_eq!(things, [], "{id} is unknown"),
                Some(record) => {
                    check_record(&record, &things);
                    if record.state == VmState::Running {
                        let (limits, told) = self.host.obeys(&id);
                        assert_eq!(limits.as_ref(), Some(&record.spec.resources), "{id}");
                        assert_eq!(told.as_ref(), Some(&record.spec.context), "{id}");
                        assert_eq!(self.host.nics(&id), bare(&record.spec.nics), "{id}");
                        let (device, io) = self.host.disk_limits(&id, "root").unwrap();
                        assert_eq!((device.is_some(), io), (true, record.spec.root.io), "{id}");
                        for disk in &record.spec.disks {
                            let name = format!("disks.{}", disk.number);
                            let (device, io) = self.host.disk_limits(&id, &name).unwrap();
                            assert_eq!((device.is_some(), io), (true, disk.io), "{id} {name}");
                        }
                    }
                }
            }
        }
    }

    pub fn state(&self, vm: &str) -> Option<VmState> {
        self.host.record(&id(vm)).map(|record| record.state)
    }
}

fn check_record(record: &Record, things: &[Thing]) {
    assert_eq!(record.op, None, "{}", record.id());
    if record.state == VmState::Running {
        assert!(record.guest.is_some(), "{} runs without a guest", record.id());
    }
    match record.state {
        VmState::Running => {
            let nics = record.spec.nics.iter().map(|nic| Thing::Nic(nic.host_name.to_string()));
            let fixed = [Thing::Namespaces, Thing::Root, Thing::Cgroup, Thing::Guest];
            let disks = record.spec.disks.iter().map(|disk| Thing::Disk(disk.number));
            let display = record.spec.graphics.as_ref().map(|_| Thing::Display);
            let mut want: Vec<Thing> = nics.chain(fixed).chain(disks).chain(display).collect();
            want.sort();
            assert_eq!(things, want, "{}", record.id());
            assert!(record.guest.is_some());
            assert!(record.ids.is_some());
        }
        VmState::Stopped => {
            assert_eq!(things, [], "{}", record.id());
            assert_eq!(record.guest, None);
        }
        VmState::Failed(_) => {}
        VmState::Paused | VmState::Suspended => panic!("no operation leads to {:?}", record.state),
    }
}

fn seen(outcome: Outcome) -> Seen {
    match outcome {
        Outcome::Settled(_, result) | Outcome::Forgotten(result) => Seen::Answer(result),
        Outcome::GivenUp(_) => Seen::GivenUp,
    }
}

fn survive<T>(work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(value) => Some(value),
        Err(payload) if payload.is::<Crash>() => None,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

/// Injected crashes are expected; their panic messages would only hide real ones.
fn quiet_crashes() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let normal = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Crash>() {
                normal(info);
            }
        }));
    });
}
