//! What is known of each method besides its types: who may call it, how long it may take.
//!
//! The table stands beside the trait because the gate must refuse before any parameter is parsed.
//! A test holds it against the methods that the trait registers; `docs/api.md` is made of it.

use std::time::Duration;

use crate::api::MAX_WAIT_MS;
use crate::peer::Role;

/// How long a client waits for the answer of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// The method only looks, or records an intent.
    Quick,
    /// The method waits for something, at most [`MAX_WAIT_MS`].
    Poll,
    /// The method moves much data.
    Long,
}

impl Patience {
    /// The time.
    #[must_use]
    pub fn limit(self) -> Duration {
        match self {
            Self::Quick => Duration::from_secs(30),
            Self::Poll => Duration::from_millis(MAX_WAIT_MS) + Duration::from_secs(30),
            Self::Long => Duration::from_secs(3600),
        }
    }
}

/// A parameter of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// Its JSON type; a `?` means that it may be `null` or left out.
    pub json: &'static str,
    /// What it is, with unit and range.
    pub about: &'static str,
}

/// A method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// Its name.
    pub name: &'static str,
    /// Least role of a caller.
    pub role: Role,
    /// How long it may take.
    pub patience: Patience,
    /// What it does.
    pub about: &'static str,
    /// Its parameters.
    pub params: &'static [Param],
    /// The type of its result.
    pub reply: &'static str,
}

const fn param(name: &'static str, json: &'static str, about: &'static str) -> Param {
    Param { name, json, about }
}

const fn method(
    name: &'static str,
    role: Role,
    patience: Patience,
    about: &'static str,
    params: &'static [Param],
    reply: &'static str,
) -> Method {
    Method { name, role, patience, about, params, reply }
}

const REQUEST: Param = param(
    "request_id",
    "string",
    "chosen by the client, 1 to 128 printable ASCII characters without blanks; the same id is one \
     effect, also after a restart of the daemon, and for another kind of request a `conflict`",
);
const IMAGE_REQUEST: Param = param(
    "request_id",
    "string",
    "chosen by the client as for VMs; the same id of the same user is one effect while the daemon runs, and with \
     other parameters a `conflict`",
);
const VM: Param = param("vm", "string", "the VM's id");
const SPEC: Param = param(
    "spec",
    "VmSpec",
    "the whole wish; `id`, `resources.memory` and `root.path` must be given",
);
const OP: Param = param("op", "string", "the operation's id, `op-7`");
const IMAGE: Param = param("image", "string", "name or digest of an image here");
const PATH: Param = param("path", "string", "absolute path on the host, of a file to be made");
const FORGET: Param = param("forget", "boolean", "forget the VM afterwards");

const GRACE: Param = param(
    "timeout_ms",
    "integer?",
    "milliseconds that the guest may take to end; else as its spec says (`boot.stop_timeout_ms`), else 120000",
);

/// All methods, in the order of the documentation.
pub const METHODS: &[Method] = &[
    method(
        "vm.define",
        Role::Operate,
        Patience::Quick,
        "Writes a VM down; nothing runs.",
        &[REQUEST, SPEC],
        "OperationReply",
    ),
    method(
        "vm.start",
        Role::Operate,
        Patience::Quick,
        "Boots a defined VM.",
        &[REQUEST, VM],
        "OperationReply",
    ),
    method(
        "vm.deploy",
        Role::Operate,
        Patience::Quick,
        "Defines and boots in one; if it fails, the VM is forgotten again.",
        &[REQUEST, SPEC],
        "OperationReply",
    ),
    method(
        "vm.shutdown",
        Role::Operate,
        Patience::Quick,
        "Asks the guest to end.",
        &[
            REQUEST,
            VM,
            GRACE,
            param(
                "force",
                "boolean",
                "end it by force after that; else the operation fails and the guest runs on",
            ),
            FORGET,
        ],
        "OperationReply",
    ),
    method(
        "vm.destroy",
        Role::Operate,
        Patience::Quick,
        "Ends the guest at once; leads out of every state.",
        &[REQUEST, VM, FORGET],
        "OperationReply",
    ),
    method(
        "vm.reboot",
        Role::Operate,
        Patience::Quick,
        "Asks the guest to end, ends it by force after that, then boots it anew; its network interfaces stay.",
        &[REQUEST, VM, GRACE],
        "OperationReply",
    ),
    method(
        "vm.reset",
        Role::Operate,
        Patience::Quick,
        "Ends the guest at once, then boots it anew; its network interfaces stay.",
        &[REQUEST, VM],
        "OperationReply",
    ),
    method(
        "vm.change",
        Role::Operate,
        Patience::Quick,
        "Replaces parts of the wish; a guest that runs obeys at once, or nothing is changed.",
        &[REQUEST, VM, param("change", "ChangeV1", "the parts that are replaced, each as a whole")],
        "OperationReply",
    ),
    method(
        "vm.undefine",
        Role::Operate,
        Patience::Quick,
        "Forgets a VM that does not run; its disk stays.",
        &[REQUEST, VM],
        "OperationReply",
    ),
    method(
        "vm.list",
        Role::Read,
        Patience::Quick,
        "All VMs, by id, but those of `vm.damaged`.",
        &[],
        "[VmSummary]",
    ),
    method(
        "vm.damaged",
        Role::Read,
        Patience::Quick,
        "VMs that `vm.list` does not have because their records cannot be read, by id. Their guests may run.",
        &[],
        "[DamagedVm]",
    ),
    method(
        "vm.states",
        Role::Read,
        Patience::Quick,
        "Where all VMs are now, by id, and no more: for who asks every few seconds.",
        &[],
        "StatesReply",
    ),
    method(
        "vm.get",
        Role::Operate,
        Patience::Quick,
        "Everything that is kept of a VM, its environment included.",
        &[VM],
        "VmInfo",
    ),
    method(
        "vm.stats",
        Role::Read,
        Patience::Quick,
        "What guests use of the host, as counters; all guests in one pass.",
        &[param("vm", "string?", "this one alone; it must run. Else all that run")],
        "StatsReply",
    ),
    method(
        "vm.console",
        Role::Operate,
        Patience::Quick,
        "Where the console of a running VM can be attached.",
        &[VM],
        "ConsoleReply",
    ),
    method(
        "vm.exec",
        Role::Operate,
        Patience::Quick,
        "Begins a process in a running guest.",
        &[
            VM,
            param("argv", "[string]", "program and arguments; never a shell's"),
            param("env", "[string]", "`NAME=value`, added to the guest's"),
            param("user", "string?", "`user[:group]`; else root"),
            param("workdir", "string?", "absolute path inside; else `/`"),
            param("tty", "boolean", "with a terminal"),
            param(
                "timeout_ms",
                "integer?",
                "how long it may run; then it is killed, exit code 124",
            ),
            param("detach", "boolean", "answer once it runs, and leave it to itself"),
        ],
        "ExecReply",
    ),
    method(
        "vm.copy",
        Role::Operate,
        Patience::Quick,
        "Begins to copy files from or to a running guest, as a tar stream.",
        &[
            VM,
            param("direction", "string", "`in` or `out`"),
            param("path", "string", "absolute path inside"),
            param("follow", "boolean", "out: a link at the end of the path is followed"),
            param("owners", "boolean", "in: owners and set-id bits are kept; else all is root's"),
            param(
                "archive",
                "boolean",
                "in: names as they are, below a directory that is there; else all below the first one, which may be renamed",
            ),
        ],
        "ExecReply",
    ),
    method(
        "vm.log",
        Role::Operate,
        Patience::Quick,
        "The last bytes of a VM's console log.",
        &[VM, param("max_bytes", "integer", "most bytes wanted; the daemon may give fewer")],
        "LogReply",
    ),
    method(
        "vm.why",
        Role::Operate,
        Patience::Quick,
        "Why a VM is as it is: its last operation that failed, with the failing step, cause, remedy and the guest's last \
         lines; also of a VM that was forgotten because its deploy failed. `not_found` if nothing is known of it.",
        &[VM],
        "WhyReply",
    ),
    method(
        "op.wait",
        Role::Read,
        Patience::Poll,
        "Waits until an operation ends; `done` tells whether it did.",
        &[
            OP,
            param(
                "timeout_ms",
                "integer",
                "longest wait in milliseconds; more than 60000 counts as 60000",
            ),
        ],
        "OpStatusReply",
    ),
    method("op.get", Role::Read, Patience::Quick, "Where an operation is.", &[OP], "OpStatusReply"),
    method(
        "op.cancel",
        Role::Operate,
        Patience::Quick,
        "Ends an import, push, save, export, commit or build before its time: it fails with `cancelled`, soon but \
         not at once, and leaves nothing but what it fetched; one that is done stays done. Who is no admin may only \
         end what he began. Other operations are not ended so: a VM's is by `vm.destroy`.",
        &[OP],
        "OpStatusReply",
    ),
    method(
        "events.since",
        Role::Read,
        Patience::Poll,
        "Events from a number on; begins anew with `vm.list` if `lost`.",
        &[
            param(
                "seq",
                "integer",
                "first number wanted: `next_seq` of the last answer, 0 for all that are kept",
            ),
            param("limit", "integer", "most events wanted, at most 1000"),
            param(
                "wait_ms",
                "integer",
                "longest wait for the first event in milliseconds; more than 60000 counts as 60000",
            ),
        ],
        "EventsReply",
    ),
    method(
        "image.import",
        Role::Operate,
        Patience::Quick,
        "Brings an image into the datastore of this host and unpacks it.",
        &[
            IMAGE_REQUEST,
            param("source", "string", "where it is, as the datastore names it"),
            param("name", "string?", "its name here; else the source's own"),
            param("options", "ImportOptionsV1?", "what cannot be found out from the source"),
        ],
        "ImageOperationReply",
    ),
    method(
        "image.stat",
        Role::Operate,
        Patience::Poll,
        "What a source at a registry holds, without bringing it in; fails after 30 s.",
        &[param("source", "string", "where it is, as the datastore names it")],
        "SourceStatV1",
    ),
    method(
        "image.lacking",
        Role::Operate,
        Patience::Long,
        "Which layers of an image an import would read: the others need not be in the directory.",
        &[param("source", "string", "`oci:` and a directory with the image's documents")],
        "LackingV1",
    ),
    method(
        "image.push",
        Role::Admin,
        Patience::Quick,
        "Sends an image to a registry; blobs that are there are not sent.",
        &[IMAGE_REQUEST, IMAGE, param("target", "string", "`docker://host/repository:tag`")],
        "ImageOperationReply",
    ),
    method(
        "image.save",
        Role::Admin,
        Patience::Quick,
        "Writes images into an archive, a new file.",
        &[
            IMAGE_REQUEST,
            param("images", "[string]", "names or digests of images here"),
            param("format", "string", "`oci-archive` or `docker-archive`"),
            PATH,
        ],
        "ImageOperationReply",
    ),
    method(
        "image.export",
        Role::Admin,
        Patience::Quick,
        "Writes the root filesystem of an image, or of a VM, into a tarball or disk image, a new file.",
        &[
            IMAGE_REQUEST,
            param("image", "string?", "name or digest of an image here"),
            param("vm", "string?", "instead of an image"),
            param("format", "string", "`tar`, `raw` (ext4) or `qcow2` (ext4)"),
            param("size_bytes", "integer?", "size of the disk image; else what the files need"),
            PATH,
        ],
        "ImageOperationReply",
    ),
    method(
        "image.commit",
        Role::Operate,
        Patience::Quick,
        "Makes an image of what a VM changed on its root disk, on top of the VM's own.",
        &[
            IMAGE_REQUEST,
            VM,
            param("name", "string", "name of the new image"),
            param("options", "CommitOptionsV1?", "what the image says besides its files"),
        ],
        "ImageOperationReply",
    ),
    method(
        "image.build",
        Role::Admin,
        Patience::Quick,
        "Builds an image from a directory with a Dockerfile, by buildah.",
        &[
            IMAGE_REQUEST,
            param("dir", "string", "absolute path on the host"),
            param("name", "string", "name of the new image"),
        ],
        "ImageOperationReply",
    ),
    method(
        "image.fsck",
        Role::Admin,
        Patience::Quick,
        "Compares the datastore with its digests, and mends it if told to.",
        &[IMAGE_REQUEST, param("repair", "boolean", "mend what can be mended")],
        "ImageOperationReply",
    ),
    method(
        "image.prune",
        Role::Admin,
        Patience::Quick,
        "Gives back what no name, no disk and no VM needs.",
        &[
            IMAGE_REQUEST,
            param("dry_run", "boolean", "only count it"),
            param(
                "quarantine_age_s",
                "integer?",
                "also what repairs set aside so many seconds ago or longer, unless a VM has layers of that name; else \
                 none of it",
            ),
        ],
        "ImageOperationReply",
    ),
    method(
        "image.tag",
        Role::Admin,
        Patience::Quick,
        "Gives an image another name.",
        &[IMAGE, param("name", "string", "the other name; taken from the image that has it")],
        "ImageInfo",
    ),
    method(
        "image.inspect",
        Role::Read,
        Patience::Quick,
        "An image in full.",
        &[IMAGE],
        "ImageInspect",
    ),
    method(
        "image.history",
        Role::Read,
        Patience::Quick,
        "How an image came to be, newest first.",
        &[IMAGE],
        "[HistoryV1]",
    ),
    method(
        "image.df",
        Role::Read,
        Patience::Long,
        "What the datastore takes of the disk.",
        &[],
        "DfReply",
    ),
    method(
        "image.list",
        Role::Read,
        Patience::Quick,
        "Images of this host, by name.",
        &[],
        "[ImageInfo]",
    ),
    method(
        "image.remove",
        Role::Admin,
        Patience::Long,
        "Forgets an image; layers that disks still need stay.",
        &[param("name", "string", "its name here")],
        "RemovedReply",
    ),
    method(
        "disk.create",
        Role::Operate,
        Patience::Long,
        "Makes a writable disk on top of an image; answers when it is done.",
        &[
            param("image", "string", "name or digest of an image"),
            param("size_bytes", "integer", "size of the disk in bytes"),
            param("path", "string", "absolute path on the host"),
            param("backend", "string", "`ext4` or `directory`"),
        ],
        "DiskInfo",
    ),
    method(
        "disk.adopt",
        Role::Operate,
        Patience::Long,
        "Takes a disk that was brought here for one of this host's: its layers stay as long as it does.",
        &[param("path", "string", "absolute path on the host; its manifest is beside it")],
        "DiskInfo",
    ),
    method("host.info", Role::Read, Patience::Quick, "The host and its daemon.", &[], "HostInfo"),
    method("daemon.version", Role::Read, Patience::Quick, "Who answers.", &[], "VersionReply"),
];

/// The method of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}
