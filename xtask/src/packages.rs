//! Installs what is missing, by apt, and nothing when nothing is.

use std::path::Path;

use anyhow::{Result, bail};

use crate::cmd::{installed, program, run, say, step};

/// How to see that a package is there.
#[derive(Debug, Clone, Copy)]
enum Sign {
    /// A program.
    Program(&'static str),
    /// A file.
    File(&'static str),
}

/// A package and its sign.
#[derive(Debug, Clone, Copy)]
pub struct Package {
    name: &'static str,
    sign: Sign,
}

const fn tool(program: &'static str, name: &'static str) -> Package {
    Package { name, sign: Sign::Program(program) }
}

/// What it takes to build and to run a guest.
pub const TO_BUILD: [Package; 5] = [
    tool("cc", "gcc"),
    Package { name: "libc6-dev", sign: Sign::File("/usr/include/stdio.h") },
    Package { name: "libseccomp-dev", sign: Sign::File("/usr/include/seccomp.h") },
    tool("pkg-config", "pkg-config"),
    tool("mkfs.ext4", "e2fsprogs"),
];

/// What the quickstart needs besides.
pub const FOR_QUICKSTART: [Package; 4] = [
    tool("mmdebstrap", "mmdebstrap"),
    tool("ip", "iproute2"),
    tool("ping", "iputils-ping"),
    tool("xorriso", "xorriso"),
];

/// What the tests need besides.
pub const FOR_TESTS: [Package; 29] = [
    tool("mmdebstrap", "mmdebstrap"),
    tool("ip", "iproute2"),
    tool("ping", "iputils-ping"),
    tool("busybox", "busybox-static"),
    tool("runc", "runc"),
    tool("skopeo", "skopeo"),
    tool("umoci", "umoci"),
    tool("podman", "podman"),
    tool("buildah", "buildah"),
    tool("slirp4netns", "slirp4netns"),
    tool("curl", "curl"),
    tool("fincore", "util-linux-extra"),
    tool("python3", "python3"),
    tool("ruby", "ruby"),
    tool("docker-registry", "docker-registry"),
    tool("htpasswd", "apache2-utils"),
    tool("strace", "strace"),
    tool("openssl", "openssl"),
    tool("losetup", "mount"),
    tool("qemu-img", "qemu-utils"),
    tool("qemu-storage-daemon", "qemu-system-common"),
    tool("mkfs.xfs", "xfsprogs"),
    tool("mkfs.btrfs", "btrfs-progs"),
    tool("sfdisk", "fdisk"),
    tool("lxcfs", "lxcfs"),
    tool("xorriso", "xorriso"),
    tool("genisoimage", "genisoimage"),
    tool("ssh", "openssh-client"),
    Package { name: "libvncserver-dev", sign: Sign::File("/usr/include/rfb/rfbclient.h") },
];

/// What a VM for tests needs besides.
pub const FOR_VM: [Package; 3] = [
    tool("mmdebstrap", "mmdebstrap"),
    tool("mke2fs", "e2fsprogs"),
    tool("qemu-system-x86_64", "qemu-system-x86"),
];

/// With whom the bench compares.
pub const FOR_BENCH: [Package; 3] =
    [tool("runc", "runc"), tool("crun", "crun"), tool("dockerd", "docker.io")];

/// What many guests need besides.
pub const FOR_CROWD: [Package; 1] = [tool("busybox", "busybox-static")];

/// With whom the bench of images compares; the last two make what is imported.
pub const FOR_IMAGE_BENCH: [Package; 5] = [
    tool("podman", "podman"),
    tool("buildah", "buildah"),
    tool("dockerd", "docker.io"),
    tool("skopeo", "skopeo"),
    tool("umoci", "umoci"),
];

/// What the bench of OpenNebula's drivers needs besides: the registry, and the tools of OpenNebula's own way.
pub const FOR_OPENNEBULA_BENCH: [Package; 8] = [
    tool("docker-registry", "docker-registry"),
    tool("dockerd", "docker.io"),
    tool("skopeo", "skopeo"),
    tool("umoci", "umoci"),
    tool("curl", "curl"),
    tool("qemu-img", "qemu-utils"),
    tool("genisoimage", "genisoimage"),
    tool("losetup", "mount"),
];

/// What the checks need besides.
pub const FOR_CHECKS: [Package; 1] = [tool("shellcheck", "shellcheck")];

/// Installs those that are missing.
///
/// # Errors
/// There is no apt, we are not root, or a package is still missing afterwards.
pub fn ensure(wanted: &[&[Package]]) -> Result<()> {
    let missing: Vec<&str> = {
        let all = wanted.iter().copied().flatten();
        let mut names: Vec<&str> = all.filter(|p| !present(p)).map(|p| p.name).collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    step(&format!("installing {list}"));
    if !installed("apt-get") {
        bail!("this host has no apt-get: install {list} by its own means");
    }
    if !rustix::process::geteuid().is_root() {
        bail!("not root: run `apt-get install {list}` as root first");
    }
    let apt = |args: &[&str]| {
        let mut command = program("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run(&mut apt(&["update", "-q"]))?;
    let fixed = ["install", "-q", "-y", "--no-install-recommends"];
    run(apt(&fixed).args(&missing))?;
    for package in wanted.iter().copied().flatten() {
        if !present(package) {
            bail!("{} is installed, but {:?} is not there", package.name, package.sign);
        }
    }
    say(&format!("installed {list}"));
    Ok(())
}

fn present(package: &Package) -> bool {
    match package.sign {
        Sign::Program(name) => installed(name),
        Sign::File(path) => Path::new(path).exists(),
    }
}
