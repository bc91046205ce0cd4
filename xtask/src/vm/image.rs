//! The VM's own disk: Debian 12, the oldest that is supported, as an admin installs it for a host.
//! Made once; a change of this file's constants makes it anew. QEMU keeps what is written apart.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cmd::{program, run, step, write};

/// The release.
const SUITE: &str = "bookworm";
/// What hosts have, and what tests use besides.
const PACKAGES: &str = "systemd-sysv,dbus,udev,kmod,linux-image-cloud-amd64,procps,iproute2,\
    iputils-ping,e2fsprogs,libseccomp2,runc,busybox-static,python3,curl,xorriso,\
    openssh-client,lxcfs,apparmor,qemu-utils,qemu-system-common,ruby,genisoimage,lvm2,\
    btrfs-progs,openvswitch-switch,iptables,ipset";
/// Services of packages that do not start at boot: tests that need a switch start one in their network namespace.
const MASKED: [&str; 4] = [
    "openvswitch-switch.service",
    "ovsdb-server.service",
    "ovs-vswitchd.service",
    "ovs-record-hostname.service",
];
/// What hosts with SELinux have besides.
const SELINUX: &str = ",selinux-basics,selinux-policy-default,policycoreutils";
/// A policy module.
const CONTAINER: &str = include_str!("container.cil");
/// Its size; a file with holes.
const SIZE: &str = "6G";
/// Runs what the second disk brings.
const UNIT: &str = "\
[Unit]
Description=tests
RequiresMountsFor=/task
Requires=dev-virtio\\x2dports-output.device
After=dev-virtio\\x2dports-output.device dbus.service

[Service]
Type=simple
ExecStart=/task/inside.sh
StandardOutput=file:/dev/virtio-ports/output
StandardError=inherit
TasksMax=infinity
LimitNOFILE=1048576
";
const FSTAB: &str = "LABEL=task /task ext4 ro 0 0\n";

/// The security module of the VM's kernel; there is one of them at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// What Debian boots with.
    AppArmor,
    /// In its place; told of what it would refuse, it lets it pass.
    Selinux,
}

impl Module {
    /// Where its image is kept.
    pub fn cache(self) -> &'static str {
        match self {
            Self::AppArmor => ".cache/vm",
            Self::Selinux => ".cache/vm-selinux",
        }
    }

    /// Words for the kernel.
    pub fn boot(self) -> &'static str {
        match self {
            Self::AppArmor => "",
            Self::Selinux => " security=selinux selinux=1 enforcing=0",
        }
    }
}

/// What QEMU boots.
#[derive(Debug)]
pub struct Image {
    /// Raw, ext4, no partitions.
    pub disk: PathBuf,
    /// Linux.
    pub kernel: PathBuf,
    /// Its initial file system.
    pub initrd: PathBuf,
}

/// The image, made if need be.
///
/// # Errors
/// mmdebstrap or mke2fs fails.
pub fn debian(cache: &Path, module: Module) -> Result<Image> {
    let more = if module == Module::Selinux { SELINUX } else { "" };
    let packages = format!("{PACKAGES}{more}");
    let at = |name: &str| cache.join(name);
    let image = Image { disk: at("disk.img"), kernel: at("vmlinuz"), initrd: at("initrd") };
    let masked = MASKED.join(" ");
    let recipe = [SUITE, &packages, SIZE, UNIT, FSTAB, CONTAINER, &masked].join("\n");
    if fs::read_to_string(at("recipe")).is_ok_and(|text| text == recipe) {
        return Ok(image);
    }
    step("making the VM's disk (once; it is kept)");
    // Its recipe comes last, so that half an image is none.
    for path in [at("recipe"), image.disk.clone()] {
        let _absent_is_fine = fs::remove_file(path);
    }
    let tree = at("tree");
    let _absent_is_fine = fs::remove_dir_all(&tree);
    let mut command = program("mmdebstrap");
    command.args(["--variant=minbase", &format!("--include={packages}")]);
    command
        .args(["--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/doc/*"]);
    command.args(["--dpkgopt=path-exclude=/usr/share/man/*", SUITE]).arg(&tree);
    run(&mut command).context("make a Debian system (the net is needed for this)")?;
    let units = tree.join("etc/systemd/system");
    fs::create_dir_all(units.join("multi-user.target.wants"))?;
    write(&units.join("task.service"), UNIT)?;
    symlink("../task.service", units.join("multi-user.target.wants/task.service"))?;
    for service in MASKED {
        symlink("/dev/null", units.join(service)).with_context(|| format!("mask {service}"))?;
    }
    fs::create_dir(tree.join("task"))?;
    write(&tree.join("etc/fstab"), FSTAB)?;
    write(&tree.join("etc/hostname"), "host\n")?;
    if module == Module::Selinux {
        write(&tree.join("root/container.cil"), CONTAINER)?;
        let mut command = program("chroot");
        command.arg(&tree).args(["semodule", "--noreload", "--install", "/root/container.cil"]);
        run(&mut command)?;
    }
    copy_from(&tree.join("boot"), "vmlinuz-", &image.kernel)?;
    copy_from(&tree.join("boot"), "initrd.img-", &image.initrd)?;
    let mut command = program("mke2fs");
    command.args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&image.disk).arg(SIZE);
    run(&mut command)?;
    fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    write(&at("recipe"), &recipe)?;
    Ok(image)
}

fn copy_from(dir: &Path, prefix: &str, to: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut entries = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let found = entries.find(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    });
    let Some(found) = found else { bail!("no {prefix}* in {}", dir.display()) };
    fs::copy(&found, to).with_context(|| format!("copy {}", found.display()))?;
    Ok(())
}
