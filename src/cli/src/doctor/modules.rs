//! Is a feature in the kernel, or can it be loaded?
//!
//! Asked in this order: a list of the running kernel (/proc/filesystems, /sys/module), the list of
//! built-in modules, the list of loadable ones, the kernel's configuration. Kernels without any of
//! these leave it unknown.

use std::io::Read;
use std::path::Path;

use super::facts::text;

/// A feature that may be a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Name in the report.
    pub name: &'static str,
    /// Name of the module.
    pub module: &'static str,
    /// Name in /proc/filesystems, if it is a filesystem.
    pub filesystem: Option<&'static str>,
    /// Option of the kernel's configuration.
    pub config: &'static str,
}

/// Features that guests need.
pub const WANTED: [Wanted; 5] = [
    Wanted {
        name: "overlay",
        module: "overlay",
        filesystem: Some("overlay"),
        config: "CONFIG_OVERLAY_FS",
    },
    Wanted { name: "ext4", module: "ext4", filesystem: Some("ext4"), config: "CONFIG_EXT4_FS" },
    Wanted { name: "loop", module: "loop", filesystem: None, config: "CONFIG_BLK_DEV_LOOP" },
    Wanted { name: "veth", module: "veth", filesystem: None, config: "CONFIG_VETH" },
    Wanted { name: "bridge", module: "bridge", filesystem: None, config: "CONFIG_BRIDGE" },
];

/// Whether a feature is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// In the running kernel.
    Present,
    /// A module that the kernel loads when it is asked for.
    Loadable,
    /// Neither built in nor among the modules.
    Absent,
    /// The kernel does not tell.
    Unknown,
}

/// Lists of what a kernel has.
#[derive(Debug, Clone, Default)]
pub struct Kernel {
    filesystems: String,
    loaded: Vec<String>,
    builtin: Option<String>,
    loadable: Option<String>,
    config: Option<String>,
}

impl Kernel {
    /// Reads the lists of the running kernel.
    #[must_use]
    pub fn read(release: &str) -> Self {
        let dir = Path::new("/lib/modules").join(release);
        let entries = std::fs::read_dir("/sys/module").into_iter().flatten();
        Self {
            filesystems: text("/proc/filesystems").unwrap_or_default(),
            loaded: entries
                .flatten()
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect(),
            builtin: text(dir.join("modules.builtin")),
            loadable: text(dir.join("modules.dep")),
            config: running_config().or_else(|| text(format!("/boot/config-{release}"))),
        }
    }

    /// Whether `want` is there.
    #[must_use]
    pub fn support(&self, want: &Wanted) -> Support {
        let listed = want.filesystem.is_some_and(|name| {
            let names = self.filesystems.lines();
            names.map(|l| l.rsplit('\t').next().unwrap_or(l)).any(|n| n == name)
        });
        if listed || self.loaded.iter().any(|name| name == want.module) {
            return Support::Present;
        }
        let config = self.config.as_ref().map(|text| {
            let prefix = format!("{}=", want.config);
            text.lines().find_map(|l| l.strip_prefix(&prefix).map(str::to_owned))
        });
        let has = |list: &Option<String>| {
            list.as_ref().is_some_and(|text| {
                let files = text.lines().filter_map(|l| l.split(':').next());
                files.filter_map(module_of).any(|name| name == want.module)
            })
        };
        if has(&self.builtin) || config.as_ref().is_some_and(|v| v.as_deref() == Some("y")) {
            Support::Present
        } else if has(&self.loadable) {
            Support::Loadable
        } else if self.loadable.is_some() || config.is_some() {
            Support::Absent
        } else {
            Support::Unknown
        }
    }
}

/// `kernel/fs/ext4/ext4.ko.xz` is the module `ext4`.
fn module_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn running_config() -> Option<String> {
    let file = std::fs::File::open("/proc/config.gz").ok()?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).take(4 << 20).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(name: &str) -> Wanted {
        WANTED.into_iter().find(|w| w.name == name).unwrap()
    }

    #[test]
    fn each_list_is_asked() {
        let kernel = Kernel {
            filesystems: "nodev\tsysfs\n\text4\n".into(),
            loaded: vec!["veth".into()],
            builtin: Some("kernel/drivers/block/loop.ko\n".into()),
            loadable: Some("kernel/net/bridge/bridge.ko.xz: kernel/net/llc/llc.ko.xz\n".into()),
            config: None,
        };
        assert_eq!(kernel.support(&want("ext4")), Support::Present);
        assert_eq!(kernel.support(&want("veth")), Support::Present);
        assert_eq!(kernel.support(&want("loop")), Support::Present);
        assert_eq!(kernel.support(&want("bridge")), Support::Loadable);
        assert_eq!(kernel.support(&want("overlay")), Support::Absent);
    }

    #[test]
    fn a_configuration_decides_where_there_are_no_modules() {
        let kernel = Kernel {
            config: Some("CONFIG_VETH=y\n# CONFIG_BRIDGE is not set\n".into()),
            ..Kernel::default()
        };
        assert_eq!(kernel.support(&want("veth")), Support::Present);
        assert_eq!(kernel.support(&want("bridge")), Support::Absent);
        assert_eq!(Kernel::default().support(&want("veth")), Support::Unknown);
    }
}
