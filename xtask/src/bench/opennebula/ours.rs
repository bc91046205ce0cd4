//! Our way: the driver scripts, with the words and the input that oned gives them.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::site::{HOST, Site, fed};
use super::{CONTEXT_DISK, DISK_MB, Way};
use crate::bench::ours::forget_all;
use crate::cmd::{program, root, run as run_command, write};
use crate::quickstart::Places;
use crate::quickstart::daemon::Daemon;
use crate::quickstart::undo::Undo;

/// Numbers in OpenNebula.
const IMAGE: u32 = 7;
const IMAGES: u32 = 100;
const SYSTEM: u32 = 0;

/// Our way.
#[derive(Debug)]
pub struct Ours {
    site: Rc<Site>,
    daemon: Daemon,
    /// What `stat` answered, in MB: `cp` takes no more.
    size: u64,
    /// What `cp` answered.
    source: String,
    /// Directories of VMs on the front-end, and what oned answers when it is asked.
    vms: PathBuf,
    shown: PathBuf,
}

impl Ours {
    /// Starts the host's daemon.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(places: &Places, site: &Rc<Site>, undo: &mut Undo) -> Result<Self> {
        // As on two machines, both have their datastores at one path; each on its own file system.
        for (disk, number) in [(&site.front, IMAGES), (&site.host, SYSTEM)] {
            let (from, to) = (disk.dir.join("ours"), places.datastores.join(number.to_string()));
            for dir in [&from, &to] {
                std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
            }
            run_command(program("mount").arg("--bind").arg(from).arg(&to))?;
            undo.add("unmount a datastore", move || run_command(program("umount").arg(to)));
        }
        // Whether a guest lives on for a while is no part of its start, here or elsewhere.
        let daemon = Daemon::start(places, "[guests]\nsettle_ms = 0\n", undo)?;
        let same = Daemon { places: places.clone() };
        undo.add("destroy the guests", move || forget_all(&same));
        write(
            &daemon.opennebula_config(),
            // oned is not here to be told what an image is.
            &format!(
                "[images]\noneimage = \"\"\n[registries.hosts.\"{}\"]\nplain_http = true\n",
                site.registry
            ),
        )?;
        let vms = site.front.dir.join("vms");
        let shown = site.front.dir.join("shown");
        std::fs::create_dir_all(&shown).context("make a place for what oned knows")?;
        let datastore = format!("<DATASTORE><ID>{IMAGES}</ID><TEMPLATE></TEMPLATE></DATASTORE>");
        write(&shown.join("onedatastore"), &datastore)?;
        Ok(Self { site: Rc::clone(site), daemon, size: 0, source: String::new(), vms, shown })
    }

    /// Runs a script as oned's driver process does; gives its answer.
    fn script(&self, script: &str, words: &[&str], input: &str) -> Result<String> {
        let path = root().join("driver-scripts/opennebula/remotes").join(script);
        let mut command = self.site.program(&path);
        command.args(words).current_dir("/");
        command.env("OCIVISOR_BIN", self.daemon.places.programs.join("ocivisor"));
        command.env("OCIVISOR_SOCKET", self.daemon.socket());
        command.env("OCIVISOR_OPENNEBULA_CONFIG", self.daemon.opennebula_config());
        command.env("OCIVISOR_BENCH_SHOWN", &self.shown);
        fed(&mut command, input)
    }

    /// A call of the datastore's driver.
    fn datastore(&self, action: &str, number: u32, image: &str) -> Result<String> {
        let base = self.daemon.places.datastores.join(IMAGES.to_string());
        let message = format!(
            "<DS_DRIVER_ACTION_DATA>{image}<DATASTORE><ID>{IMAGES}</ID><NAME>images</NAME>\
             <DS_MAD><![CDATA[ocivisor]]></DS_MAD><TM_MAD><![CDATA[ocivisor]]></TM_MAD>\
             <BASE_PATH><![CDATA[{}]]></BASE_PATH><TYPE>0</TYPE><DISK_TYPE>0</DISK_TYPE>\
             <TEMPLATE></TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>",
            base.display()
        );
        let words = [number.to_string()];
        let script = format!("datastore/ocivisor/{action}");
        self.script(&script, &[&words[0]], &STANDARD.encode(message))
    }

    fn image_xml(&self) -> String {
        format!(
            "<IMAGE><ID>{IMAGE}</ID><NAME>bench</NAME><TYPE>0</TYPE><DISK_TYPE>0</DISK_TYPE>\
             <PERSISTENT>0</PERSISTENT><SOURCE><![CDATA[{}]]></SOURCE>\
             <PATH><![CDATA[docker://{}]]></PATH><FORMAT><![CDATA[]]></FORMAT><FS><![CDATA[]]></FS>\
             <SIZE>{}</SIZE><CLONING_ID>-1</CLONING_ID><TARGET_SNAPSHOT>-1</TARGET_SNAPSHOT>\
             <TEMPLATE><DEV_PREFIX><![CDATA[sd]]></DEV_PREFIX></TEMPLATE></IMAGE>",
            self.source,
            self.site.image(),
            self.size
        )
    }

    /// A VM, as `deploy` and `onevm show -x` have it.
    fn vm_xml(&self, vm: u32) -> String {
        format!(
            "<VM><ID>{vm}</ID><UID>0</UID><GID>0</GID><NAME>web{vm}</NAME><STATE>3</STATE>\
             <LCM_STATE>2</LCM_STATE><DEPLOY_ID></DEPLOY_ID><TEMPLATE><CONTEXT>\
             <DISK_ID><![CDATA[1]]></DISK_ID><HOSTNAME><![CDATA[web1]]></HOSTNAME>\
             <TARGET><![CDATA[sdb]]></TARGET></CONTEXT><CPU><![CDATA[0.5]]></CPU><DISK>\
             <CLONE><![CDATA[YES]]></CLONE><DATASTORE_ID><![CDATA[{IMAGES}]]></DATASTORE_ID>\
             <DISK_ID><![CDATA[0]]></DISK_ID><DISK_TYPE><![CDATA[FILE]]></DISK_TYPE>\
             <DRIVER><![CDATA[raw]]></DRIVER><FORMAT><![CDATA[raw]]></FORMAT>\
             <IMAGE_ID><![CDATA[{IMAGE}]]></IMAGE_ID><ORIGINAL_SIZE><![CDATA[1]]></ORIGINAL_SIZE>\
             <READONLY><![CDATA[NO]]></READONLY><SAVE><![CDATA[NO]]></SAVE>\
             <SIZE><![CDATA[{DISK_MB}]]></SIZE><SOURCE><![CDATA[{}]]></SOURCE>\
             <TARGET><![CDATA[sda]]></TARGET><TM_MAD><![CDATA[ocivisor]]></TM_MAD>\
             <TYPE><![CDATA[FILE]]></TYPE></DISK><MEMORY><![CDATA[256]]></MEMORY>\
             <TM_MAD_SYSTEM><![CDATA[ocivisor]]></TM_MAD_SYSTEM><VCPU><![CDATA[1]]></VCPU>\
             <VMID><![CDATA[{vm}]]></VMID></TEMPLATE><USER_TEMPLATE><OCI>\
             <CMD><![CDATA[100000]]></CMD><ENTRYPOINT><![CDATA[/bin/sleep]]></ENTRYPOINT></OCI>\
             </USER_TEMPLATE><HISTORY_RECORDS><HISTORY><OID>{vm}</OID><SEQ>0</SEQ>\
             <HOSTNAME>{HOST}</HOSTNAME><HID>0</HID><CID>0</CID><VM_MAD><![CDATA[ocivisor]]></VM_MAD>\
             <TM_MAD><![CDATA[ocivisor]]></TM_MAD><DS_ID>{SYSTEM}</DS_ID></HISTORY></HISTORY_RECORDS>\
             </VM>",
            self.source
        )
    }

    /// A VM's directory on the host.
    fn directory(&self, vm: u32) -> PathBuf {
        self.daemon.places.datastores.join(SYSTEM.to_string()).join(vm.to_string())
    }
}

/// A path on the host, as transfer scripts name it.
fn on_host(path: &Path) -> String {
    format!("{HOST}:{}", path.display())
}

impl Way for Ours {
    fn stat(&mut self) -> Option<Result<()>> {
        let image =
            format!("<IMAGE><PATH>docker://{}</PATH><SIZE></SIZE></IMAGE>", self.site.image());
        let asked = self.datastore("stat", 0, &image).and_then(|size| {
            self.size = size.parse().with_context(|| format!("stat answered {size:?}"))?;
            if self.size == 0 { bail!("stat answered 0") } else { Ok(()) }
        });
        Some(asked)
    }

    fn register(&mut self) -> Result<()> {
        self.source.clear();
        let answer = self.datastore("cp", IMAGE, &self.image_xml())?;
        let (source, _format) = answer.split_once(' ').context("cp answered one word")?;
        source.clone_into(&mut self.source);
        Ok(())
    }

    fn deploy(&mut self, vm: u32) -> Result<()> {
        let (dir, own, xml) = (self.directory(vm), self.vms.join(vm.to_string()), self.vm_xml(vm));
        super::context(&own)?;
        write(&self.shown.join("onevm"), &xml)?;
        let number = vm.to_string();
        let (disk, context) = (on_host(&dir.join("disk.0")), on_host(&dir.join(CONTEXT_DISK)));
        let (images, system) = (IMAGES.to_string(), SYSTEM.to_string());
        self.script("tm/ocivisor/clone", &[&self.source, &disk, &number, &images], "")?;
        let told = own.join("context.sh");
        let told = told.to_string_lossy();
        self.script("tm/ocivisor/context", &[&told, &context, &number, &system], "")?;
        let file = dir.join("deployment.0");
        let words = [&*file.to_string_lossy(), HOST, &number, HOST];
        self.script("vmm/ocivisor/deploy", &words, &xml).map(drop)
    }

    fn undeploy(&mut self, vm: u32) -> Result<()> {
        let number = vm.to_string();
        let name = format!("one-{vm}");
        let words = [&name, HOST, &number, HOST];
        self.script("vmm/ocivisor/cancel", &words, &self.vm_xml(vm))?;
        let dir = on_host(&self.directory(vm));
        self.script("tm/ocivisor/delete", &[&dir, &number, &SYSTEM.to_string()], "").map(drop)
    }

    fn forget(&mut self) -> Result<()> {
        for image in self.daemon.cli_output(&["image", "list", "--quiet"])?.lines() {
            self.daemon.cli_output(&["image", "remove", image])?;
        }
        self.daemon.cli_output(&["image", "prune"])?;
        self.datastore("rm", IMAGE, &self.image_xml())?;
        // Whatever `rm` keeps for a while must not help the next round.
        for entry in std::fs::read_dir(self.daemon.places.datastores.join(IMAGES.to_string()))? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        Ok(())
    }
}
