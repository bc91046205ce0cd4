//! Writes a VM down, from a file or from options.
//!
//! A file is what the API takes (JSON), or the same as TOML. The API ignores fields that it does
//! not know, so that old daemons serve new clients; a file is written by a person, so here an
//! unknown field is an error: `memroy` must not mean the default.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use ocivisor_core::ids::{DisplayName, Hostname, VmId};
use ocivisor_core::spec::VmSpec;
use ocivisor_core::units::{Bytes, CentiCores, NumberSet};
use ocivisor_rpc::Client;
use ocivisor_schema::VmSpecV1;
use ocivisor_schema::spec::{BootV1, InitKindV1, IoLimitsV1, IsolationV1, ResourcesV1, RootDiskV1};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::absolute;
use crate::connect::{Context, millis};
use crate::disk::DiskOption;
use crate::failure::{Exit, Failure};
use crate::nic::NicOption;
use crate::telling::TellingOptions;
use crate::units;
use crate::upkeep::UpkeepOptions;
use crate::vnc::VncOption;

/// Most bytes of a file.
const MAX_FILE: u64 = 1 << 20;

/// Options of `define`.
#[derive(Debug, Args)]
pub struct Options {
    /// Id of the new virtual machine
    #[arg(value_name = "VM", required_unless_present = "file")]
    vm: Option<VmId>,
    /// Read everything from a JSON or TOML file; - is standard input
    #[arg(short, long, value_name = "FILE", exclusive = false)]
    file: Option<PathBuf>,
    /// Its root disk, made by `ocivisor disk create`
    #[arg(
        long,
        visible_alias = "image-disk",
        value_name = "PATH",
        required_unless_present = "file",
        conflicts_with = "file"
    )]
    disk: Option<PathBuf>,
    /// A disk beside it: KEY=VALUE,… with the keys path, target (a path of the guest, a device's name such as vdb, or both),
    /// format (raw, qcow2), make (ext4, xfs: if it is empty), and ro
    #[arg(long, value_name = "DISK", conflicts_with = "file")]
    data_disk: Vec<DiskOption>,
    /// Its memory
    #[arg(short, long, value_name = "SIZE", value_parser = units::size, required_unless_present = "file", conflicts_with = "file")]
    memory: Option<Bytes>,
    /// Swap beyond its memory
    #[arg(long, value_name = "SIZE", value_parser = units::size, conflicts_with = "file")]
    swap: Option<Bytes>,
    /// Processors
    #[arg(long, value_name = "N", conflicts_with = "file")]
    vcpus: Option<u32>,
    /// Share of the processors under contention, in cores
    #[arg(long, value_name = "CORES", value_parser = units::cores, conflicts_with = "file")]
    cpu_share: Option<CentiCores>,
    /// Hard limit of processor time below its processors, in cores
    #[arg(long, value_name = "CORES", value_parser = units::cores, conflicts_with = "file")]
    cpu_quota: Option<CentiCores>,
    /// Most processes and threads
    #[arg(long, value_name = "N", conflicts_with = "file")]
    pids: Option<u32>,
    /// Share of the disks' time under contention, 1 to 10000; 100 is what everybody has
    #[arg(long, value_name = "N", conflicts_with = "file")]
    io_weight: Option<u16>,
    /// Processors of the host that it runs on, as in 0-3,8; else all
    #[arg(long, value_name = "LIST", value_parser = units::numbers, conflicts_with = "file")]
    cpus: Option<NumberSet>,
    /// NUMA nodes of the host that its memory comes from; else all
    #[arg(long, value_name = "LIST", value_parser = units::numbers, conflicts_with = "file")]
    nodes: Option<NumberSet>,
    /// Name for people
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    name: Option<DisplayName>,
    /// Host name inside
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    hostname: Option<Hostname>,
    /// A network interface: KEY=VALUE,… with the keys bridge, ovs, mac, ip, gw, mtu, host
    #[arg(long, value_name = "NIC", conflicts_with = "file")]
    nic: Vec<NicOption>,
    /// Show its console by VNC: PORT of 127.0.0.1, or ADDRESS:PORT, with ,password-file=FILE or ,open
    #[arg(long, value_name = "VNC", conflicts_with = "file")]
    vnc: Option<VncOption>,
    /// What its first process is: the image's init, or its entrypoint
    #[arg(long, value_enum, value_name = "KIND", conflicts_with = "file")]
    init: Option<InitOption>,
    /// How strictly it is confined; the host says which profiles it grants
    #[arg(long, value_enum, value_name = "PROFILE", conflicts_with = "file")]
    isolation: Option<IsolationOption>,
    /// A variable of its environment
    #[arg(short, long, value_name = "NAME=VALUE", conflicts_with = "file")]
    env: Vec<String>,
    #[command(flatten)]
    telling: TellingOptions,
    /// User of the first process, instead of the image's
    #[arg(short, long, value_name = "USER[:GROUP]", conflicts_with = "file")]
    user: Option<String>,
    /// Working directory of the first process, instead of the image's
    #[arg(short, long, value_name = "DIR", conflicts_with = "file")]
    workdir: Option<String>,
    /// How long it may take to end when it is shut down and nobody says how long; 120 s without it
    #[arg(long, value_name = "TIME", value_parser = units::duration, conflicts_with = "file")]
    stop_timeout: Option<Duration>,
    #[command(flatten)]
    upkeep: UpkeepOptions,
    /// Replace the image's entrypoint; its arguments go after --
    #[arg(long, value_name = "PROGRAM", conflicts_with = "file")]
    entrypoint: Option<String>,
    /// Replace the image's command
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "file")]
    cmd: Vec<String>,
}

/// Kind of the first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum InitOption {
    /// Look at the image
    Auto,
    /// The image's own init
    System,
    /// The image's entrypoint and command
    Application,
}

/// Profile of confinement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum IsolationOption {
    /// Applications without any privileges
    Strict,
    /// The guest's own ids, few system calls, nothing of the host
    Default,
    /// Container engines work inside
    Nested,
    /// Nothing but its own ids, namespaces and limits
    Privileged,
}

impl From<IsolationOption> for IsolationV1 {
    fn from(option: IsolationOption) -> Self {
        match option {
            IsolationOption::Strict => Self::Strict,
            IsolationOption::Default => Self::Default,
            IsolationOption::Nested => Self::Nested,
            IsolationOption::Privileged => Self::Privileged,
        }
    }
}

/// Runs it.
///
/// # Errors
/// The file or an option is wrong; else see [`Context::operate`].
pub async fn run(options: &Options, context: &Context) -> Result<(), Failure> {
    let spec = spec(options)?;
    // The daemon checks again; here the user learns of it without one.
    VmSpec::try_from(spec.clone()).map_err(Failure::from)?;
    let send = async |client: &Client, id| client.vm_define(id, spec.clone()).await;
    context.operate("defined", send).await
}

fn spec(options: &Options) -> Result<VmSpecV1, Failure> {
    let Some(path) = &options.file else {
        return from_options(options);
    };
    let mut spec: VmSpecV1 = read_as(path)?;
    if let Some(id) = &options.vm {
        spec.id = id.to_string();
    }
    Ok(spec)
}

/// What a JSON or TOML file says; an unknown field is an error.
///
/// # Errors
/// It cannot be read, or is not what it must be.
pub fn read_as<T: Serialize + DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let shown = path.display();
    let text =
        read(path).map_err(|e| Failure::new(Exit::of_io(&e), format!("read {shown}: {e}")))?;
    parse(&text).map_err(|why| Failure::new(Exit::Usage, format!("{shown}: {why}")))
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path)?)
    };
    let size = source.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if size as u64 > MAX_FILE {
        return Err(std::io::Error::other("larger than 1 MiB"));
    }
    Ok(text)
}

/// JSON begins with a brace, TOML cannot.
fn parse<T: Serialize + DeserializeOwned>(text: &str) -> Result<T, String> {
    let value: Value = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|e| e.to_string())?
    } else {
        toml::from_str(text).map_err(|e: toml::de::Error| {
            let line = e.span().map(|s| text[..s.start].lines().count().max(1));
            let at = line.map_or_else(String::new, |n| format!("line {n}: "));
            format!("{at}{}", e.message())
        })?
    };
    let read: T = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
    let known = serde_json::to_value(&read).map_err(|e| e.to_string())?;
    match unknown_field(&value, &known, "") {
        Some(field) => Err(format!("unknown field {field:?}")),
        None => Ok(read),
    }
}

/// The first field of `given` that is not in `known`, as a path.
fn unknown_field(given: &Value, known: &Value, path: &str) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match known.get(name) {
                Some(known) => unknown_field(value, known, &path),
                // Of a part that is left out when nothing is in it.
                None if is_empty(value) => None,
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(known)) => {
            given.iter().zip(known).enumerate().find_map(|(at, (given, known))| {
                unknown_field(given, known, &format!("{path}[{at}]"))
            })
        }
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn from_options(options: &Options) -> Result<VmSpecV1, Failure> {
    let missing = |what| Failure::new(Exit::Usage, format!("no {what} given"));
    let id = options.vm.as_ref().ok_or_else(|| missing("virtual machine"))?;
    let disk = options.disk.as_ref().ok_or_else(|| missing("--disk"))?;
    let memory = options.memory.ok_or_else(|| missing("--memory"))?;
    let nics = options.nic.iter().zip(0..).map(|(nic, index)| nic.to_spec(id, index));
    let disks =
        options.data_disk.iter().zip(1..).map(|(disk, number)| disk.to_spec(number, absolute));
    Ok(VmSpecV1 {
        id: id.to_string(),
        name: options.name.as_ref().map(ToString::to_string),
        hostname: options.hostname.as_ref().map(ToString::to_string),
        platform: ocivisor_schema::spec::PlatformV1::Local,
        resources: ResourcesV1 {
            cpu_share: options.cpu_share.map_or(100, |share| share.0),
            vcpus: options.vcpus.unwrap_or(1),
            cpu_quota: options.cpu_quota.map(|quota| quota.0),
            memory: memory.0,
            swap: options.swap.map_or(0, |swap| swap.0),
            pids: options.pids.unwrap_or(ocivisor_core::spec::Resources::DEFAULT_PIDS),
            io_weight: options.io_weight,
            cpus: options.cpus.as_ref().map(ToString::to_string),
            nodes: options.nodes.as_ref().map(ToString::to_string),
            hugepages: Vec::new(),
        },
        boot: boot(options),
        root: RootDiskV1 {
            path: absolute(disk)?.to_string_lossy().into_owned(),
            io: IoLimitsV1::default(),
        },
        disks: disks.collect::<Result<_, _>>()?,
        nics: nics.collect(),
        isolation: options.isolation.map_or(IsolationV1::Default, Into::into),
        context: options.telling.context()?,
        graphics: options.vnc.as_ref().map(VncOption::to_spec).transpose()?,
        upkeep: options.upkeep.to_spec().map_err(|why| Failure::new(Exit::Usage, why))?,
    })
}

fn boot(options: &Options) -> BootV1 {
    BootV1 {
        init: match options.init {
            Some(InitOption::System) => InitKindV1::System,
            Some(InitOption::Application) => InitKindV1::Application,
            Some(InitOption::Auto) | None => InitKindV1::Auto,
        },
        entrypoint: options.entrypoint.clone().map(|program| vec![program]),
        cmd: Some(options.cmd.clone()).filter(|cmd| !cmd.is_empty()),
        env: options.env.clone(),
        user: options.user.clone(),
        workdir: options.workdir.clone(),
        stop_signal: None,
        stop_timeout_ms: options.stop_timeout.map(millis),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn from(args: &[&str]) -> VmSpecV1 {
        let line = [&["define"], args].concat();
        spec(&Line::try_parse_from(line).unwrap().options).unwrap()
    }

    #[test]
    fn json_and_toml_say_the_same() {
        let json = r#"{"id": "a", "resources": {"memory": 67108864}, "root": {"path": "/d"},
            "nics": [{"index": 0, "host_name": "a-0", "mac": "02:00:00:00:00:01"}]}"#;
        let toml = "id = 'a'\n[resources]\nmemory = 67108864\n[root]\npath = '/d'\n\
            [[nics]]\nindex = 0\nhost_name = 'a-0'\nmac = '02:00:00:00:00:01'\n";
        assert_eq!(parse::<VmSpecV1>(json).unwrap(), parse(toml).unwrap());
    }

    #[test]
    fn the_documented_file_is_valid() {
        let document = include_str!("../../../../docs/cli.md");
        let (_, rest) = document.split_once("--file web.toml`:\n").unwrap();
        let (block, _) = rest.split_once("\nAll fields").unwrap();
        let spec: VmSpecV1 = parse(&block.replace("\n    ", "\n")).unwrap();
        assert_eq!(VmSpec::try_from(spec).unwrap().id.as_str(), "web");
    }

    #[test]
    fn a_misspelt_field_is_an_error() {
        let text = r#"{"id": "a", "resources": {"memory": 1, "vcpu": 2}, "root": {"path": "/d"}}"#;
        assert_eq!(parse::<VmSpecV1>(text).unwrap_err(), "unknown field \"resources.vcpu\"");
        let nic = r#"{"id": "a", "resources": {"memory": 1}, "root": {"path": "/d"},
            "nics": [{"index": 0, "host_name": "a-0", "mac": "02:00:00:00:00:01", "ip": "x"}]}"#;
        assert_eq!(parse::<VmSpecV1>(nic).unwrap_err(), "unknown field \"nics[0].ip\"");
        let broken = parse::<VmSpecV1>("id = 'a'\nresources = \n").unwrap_err();
        assert!(broken.starts_with("line 2: "), "{broken}");
    }

    #[test]
    fn options_make_a_valid_spec() {
        let spec = from(&[
            "web",
            "--disk",
            "/srv//web.disk",
            "--memory",
            "512M",
            "--vcpus",
            "2",
            "--nic",
            "bridge=br0,ip=10.0.0.5/24,gw=10.0.0.1",
            "--vnc",
            "5901",
            "-e",
            "A=b",
            "--",
            "sleep",
            "9",
        ]);
        assert_eq!(spec.root.path, "/srv/web.disk");
        assert_eq!(spec.resources.memory, 512 << 20);
        assert_eq!(spec.boot.cmd, Some(vec!["sleep".to_owned(), "9".to_owned()]));
        assert_eq!(spec.nics[0].host_name, "web-0");
        assert_eq!(spec.graphics.as_ref().map(|vnc| vnc.port), Some(5901));
        VmSpec::try_from(spec).unwrap();
    }

    #[test]
    fn a_file_and_options_exclude_each_other() {
        let parse = |args: &[&str]| Line::try_parse_from([&["define"], args].concat());
        assert!(parse(&["--file", "x"]).is_ok());
        assert!(parse(&["web", "--file", "x"]).is_ok());
        assert!(parse(&["--file", "x", "--memory", "1G"]).is_err());
        assert!(parse(&["web", "--memory", "1G"]).is_err());
    }
}
