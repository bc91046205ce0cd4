//! OpenNebula's own way of containers, by the tools that its drivers run, in their order.
//!
//! *Register*: a root file system becomes a file with an ext4 of a size that the URL gives. Up to 6.8 it was pulled and
//! exported by docker (`docker`); since then it is a tarball that somebody made (`tarball`). The file is copied through a
//! pipe into the datastore, where its holes are made again.
//!
//! *Deploy*, with the transfer driver `ssh`: the file goes to the host by tar, grows to the size of the VM's disk, and the
//! LXC driver checks, resizes and mounts it. The context disk follows. That is the same in all releases, and the same
//! whether the host had the image before or not.
//!
//! Left out, all in its favour: the package for contextualisation that is installed into each image over the network;
//! connections of ssh, its cipher; questions to oned; the interpreter of each script; bindfs; the start of the container,
//! which polls for it and sleeps for a second.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;

use anyhow::{Context, Result};

use super::site::{Site, pipe, release};
use super::{CONTEXT_DISK, DISK_MB, Way};
use crate::bench::image::Docker;
use crate::cmd::{output, program};
use crate::quickstart::undo::Undo;

/// What the marketplaces put into the URL, in MB.
const SIZE_MB: u32 = 2048;

/// From where the root file system comes.
enum Source {
    Docker(Docker),
    Tarball,
}

/// OpenNebula's own way.
pub struct Stock {
    site: Rc<Site>,
    source: Source,
    /// The datastore on the front-end, and where images are made.
    datastore: PathBuf,
    temporary: PathBuf,
    /// VMs' directories on the host.
    vms: PathBuf,
}

impl Stock {
    /// Up to 6.8.
    ///
    /// # Errors
    /// Docker's daemon does not start.
    pub fn with_docker(site: &Rc<Site>, undo: &mut Undo) -> Result<Self> {
        let docker = Docker::start(&site.front.dir.join("place"), undo)?;
        Self::new(site, "docker-way", Source::Docker(docker))
    }

    /// Since 6.10.
    ///
    /// # Errors
    /// Its places cannot be made.
    pub fn with_tarball(site: &Rc<Site>) -> Result<Self> {
        Self::new(site, "tarball-way", Source::Tarball)
    }

    fn new(site: &Rc<Site>, name: &str, source: Source) -> Result<Self> {
        let front = site.front.dir.join(name);
        let made = Self {
            site: Rc::clone(site),
            source,
            datastore: front.join("datastores/1"),
            temporary: front.join("tmp"),
            vms: site.host.dir.join(name).join("datastores/0"),
        };
        for dir in [&made.datastore, &made.vms] {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        Ok(made)
    }

    fn image(&self) -> PathBuf {
        self.datastore.join("ba0149ef02198050de590d8d57626f1a")
    }

    /// A file with an ext4 that holds the root file system.
    fn convert(&self) -> Result<PathBuf> {
        let at = |name: &str| self.temporary.join(name);
        let (raw, mount, tar) = (at("image.raw"), at("mnt"), at("root.tar"));
        std::fs::create_dir_all(&mount)?;
        match &self.source {
            Source::Docker(docker) => {
                let image = self.site.image();
                output(&mut docker.command(&["pull", "--quiet", &image]))?;
                let id = output(&mut docker.command(&["create", &image, "/bin/true"]))?;
                output(docker.command(&["export", "--output"]).arg(&tar).arg(id.trim()))?;
                output(&mut docker.command(&["rm", "--force", id.trim()]))?;
            }
            Source::Tarball => {
                let mut fetch = program("curl");
                fetch.args(["--location", "--silent", "--fail", "--output"]).arg(&tar);
                output(fetch.arg(self.site.layer_url()))?;
            }
        }
        let size = format!("{SIZE_MB}M");
        output(program("qemu-img").args(["create", "-q", "-f", "raw"]).arg(&raw).arg(size))?;
        output(program("mkfs.ext4").args(["-q", "-F"]).arg(&raw))?;
        output(program("mount").args(["-o", "loop,nosuid"]).arg(&raw).arg(&mount))?;
        output(program("tar").arg("-C").arg(&mount).arg("-xpf").arg(&tar))?;
        // Of everything, there.
        output(program("sync").arg("-f").arg(&mount))?;
        output(program("umount").arg(&mount))?;
        Ok(raw)
    }

    fn vm(&self, vm: u32) -> PathBuf {
        self.vms.join(vm.to_string())
    }
}

impl Way for Stock {
    fn register(&mut self) -> Result<()> {
        let raw = self.convert()?;
        let image = self.image();
        let place = File::create(&image).context("make the image's file")?;
        pipe(program("cat").arg(raw), program("cat").stdout(place))?;
        std::fs::remove_dir_all(&self.temporary).context("remove what was temporary")?;
        output(program("fallocate").arg("--dig-holes").arg(&image))?;
        output(program("qemu-img").arg("info").arg(&image)).map(drop)
    }

    fn deploy(&mut self, vm: u32) -> Result<()> {
        let (image, dir) = (self.image(), self.vm(vm));
        let disk = dir.join("disk.0");
        let (dir_, disk_) = (dir.to_string_lossy(), disk.to_string_lossy());
        // The driver of transfers.
        output(&mut self.site.remote(&["mkdir", "-p", &dir_]))?;
        let mut pack = program("tar");
        pack.arg("-C").arg(&self.datastore).arg("--transform=flags=r;s|.*|disk.0|");
        pack.arg("-cSf").arg("-").arg(image.file_name().unwrap_or_default());
        pipe(&mut pack, &mut self.site.remote(&["tar", "-xSf", "-", "-C", &dir_]))?;
        let size = format!("{DISK_MB}M");
        let resize = ["qemu-img", "resize", "-q", "-f", "raw", &disk_, &size];
        output(&mut self.site.remote(&resize))?;
        // The context disk.
        let front = self.datastore.with_file_name(format!("vm-{vm}"));
        super::context(&front)?;
        let iso = front.join(CONTEXT_DISK);
        let mut make = program("genisoimage");
        make.args(["-quiet", "-V", "CONTEXT", "-J", "-R", "-o"]).arg(&iso);
        output(make.arg(front.join("context.sh")))?;
        let mut pack = program("tar");
        pack.arg("-C").arg(&front).args(["-cSf", "-", CONTEXT_DISK]);
        pipe(&mut pack, &mut self.site.remote(&["tar", "-xSf", "-", "-C", &dir_]))?;
        // The driver of LXC, on the host.
        let mount = dir.join("mapper/disk.0");
        std::fs::create_dir_all(&mount)?;
        let device = output(program("losetup").args(["--find", "--show"]).arg(&disk))?;
        output(program("e2fsck").args(["-y", "-f"]).arg(device.trim()))?;
        output(program("resize2fs").arg(device.trim()).stderr(Stdio::null()))?;
        output(program("mount").arg(device.trim()).arg(mount)).map(drop)
    }

    fn undeploy(&mut self, vm: u32) -> Result<()> {
        let dir = self.vm(vm);
        release(&dir)?;
        std::fs::remove_dir_all(&dir)?;
        Ok(std::fs::remove_dir_all(self.datastore.with_file_name(format!("vm-{vm}")))?)
    }

    fn forget(&mut self) -> Result<()> {
        if let Source::Docker(docker) = &self.source {
            output(&mut docker.command(&["image", "rm", "--force", &self.site.image()]))?;
        }
        Ok(std::fs::remove_file(self.image())?)
    }
}
