//! The config of an image that was a machine's disk: its first program is the one the machine would start.

use serde::Serialize;

use super::fault::{Res, View};
use super::find::lookup;
use super::fs::{FileSystem, Kind};
use crate::digest::DiffId;
use crate::document;
use crate::error::{DocumentFault, Error};

/// First programs, in the kernel's own order (init/main.c), after what systemd calls itself.
const INITS: [&str; 4] =
    ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/etc/init"];

/// `e_machine` of an ELF header, by the names that image configs use. Not 3: a host for 64 bits runs programs for
/// 32 too.
const MACHINES: [(u16, &str); 8] = [
    (20, "ppc64le"),
    (21, "ppc64le"),
    (22, "s390x"),
    (40, "arm"),
    (62, "amd64"),
    (183, "arm64"),
    (243, "riscv64"),
    (258, "loong64"),
];

/// What a root file system says about starting it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct System {
    /// First program, absolute; none where there is no known one.
    pub init: Option<&'static str>,
    /// Whether that is systemd, which is asked to halt by a signal of its own (systemd(1), SIGRTMIN+3).
    pub systemd: bool,
    /// `GOARCH` of the first program or shell; none where neither is an ELF file.
    pub architecture: Option<&'static str>,
}

impl System {
    pub(super) fn look(fs: &dyn FileSystem) -> Res<Self> {
        let file = |path: &str| -> Res<Option<super::fs::Id>> {
            let Some(id) = lookup(fs, path.as_bytes())? else {
                return Ok(None);
            };
            Ok((fs.node(id)?.kind == Kind::File).then_some(id))
        };
        let mut init = None;
        for path in INITS {
            if let Some(id) = file(path)? {
                init = Some((path, id));
                break;
            }
        }
        let systemd = match init {
            Some((_, id)) => {
                let own = [file("/usr/lib/systemd/systemd")?, file("/lib/systemd/systemd")?];
                own.contains(&Some(id))
            }
            None => false,
        };
        let program = match init {
            Some((_, id)) => Some(id),
            None => file("/bin/sh")?,
        };
        let architecture = match program {
            Some(id) if fs.node(id)?.size >= 20 => {
                let mut start = [0; 20];
                fs.open(id)?.fill(&mut start)?;
                architecture(&start)?
            }
            _ => None,
        };
        Ok(Self { init: init.map(|(path, _)| path), systemd, architecture })
    }

    /// Of words that came from elsewhere; none if one of them could not be ours.
    pub fn known(init: Option<&str>, systemd: bool, architecture: Option<&str>) -> Option<Self> {
        let init = match init {
            Some(path) => Some(*INITS.iter().find(|known| **known == path)?),
            None => None,
        };
        let architecture = match architecture {
            Some(name) => Some(MACHINES.iter().find(|(_, known)| *known == name)?.1),
            None => None,
        };
        (init.is_some() || !systemd).then_some(Self { init, systemd, architecture })
    }

    /// Whether this host runs the programs inside, as far as they tell.
    pub fn fits(&self) -> bool {
        let host = document::host_platform();
        self.architecture.is_none_or(|architecture| architecture == host.architecture)
    }

    /// An error if the programs inside are for another kind of machine.
    pub fn check(&self, shown: &str) -> Result<(), Error> {
        let host = document::host_platform();
        match self.architecture {
            Some(architecture) if !self.fits() => Err(Error::Platform {
                image: shown.to_owned(),
                image_platform: format!("{}/{architecture}", host.os),
                host: host.to_string(),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// The config document. Without times, so that the same disk always becomes the same image.
    pub fn config(&self, diff_id: DiffId) -> Result<Vec<u8>, DocumentFault> {
        #[derive(Serialize)]
        struct Image {
            architecture: String,
            os: String,
            config: Config,
            rootfs: Rootfs,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Config {
            #[serde(skip_serializing_if = "Option::is_none")]
            entrypoint: Option<[&'static str; 1]>,
            #[serde(skip_serializing_if = "Option::is_none")]
            stop_signal: Option<&'static str>,
        }
        #[derive(Serialize)]
        struct Rootfs {
            r#type: &'static str,
            diff_ids: [DiffId; 1],
        }
        let host = document::host_platform();
        let config = Config {
            entrypoint: self.init.map(|path| [path]),
            stop_signal: self.systemd.then_some("SIGRTMIN+3"),
        };
        let rootfs = Rootfs { r#type: "layers", diff_ids: [diff_id] };
        let architecture = self.architecture.map_or(host.architecture, str::to_owned);
        let image = Image { architecture, os: host.os, config, rootfs };
        serde_json::to_vec(&image).map_err(|e| DocumentFault::Json(e.to_string()))
    }
}

/// For which machine an ELF file is.
fn architecture(start: &[u8]) -> Res<Option<&'static str>> {
    let view = View::new(start, "ELF header");
    if !start.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    let machine = match view.u8(5)? {
        1 => view.le16(18)?,
        2 => view.be16(18)?,
        _ => return Ok(None),
    };
    Ok(MACHINES.iter().find(|(number, _)| *number == machine).map(|(_, name)| *name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_become_our_own_or_nothing() {
        let system =
            System { init: Some("/etc/init"), systemd: false, architecture: Some("riscv64") };
        assert_eq!(System::known(Some("/etc/init"), false, Some("riscv64")), Some(system));
        assert!(System::known(None, false, None).is_some_and(|system| system.fits()));
        for (init, systemd, architecture) in [
            (Some("/bin/sh"), false, None),
            (None, true, None),
            (Some("/sbin/init"), true, Some("amd64\n")),
        ] {
            assert_eq!(System::known(init, systemd, architecture), None, "{init:?}");
        }
    }

    #[test]
    fn a_config_names_first_program_and_signal_and_nothing_that_changes() {
        let system =
            System { init: Some("/sbin/init"), systemd: true, architecture: Some("amd64") };
        let hex = "a".repeat(64);
        let diff_id: DiffId = serde_json::from_str(&format!("\"sha256:{hex}\"")).unwrap();
        let text = String::from_utf8(system.config(diff_id).unwrap()).unwrap();
        assert_eq!(
            text,
            format!(
                "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"Entrypoint\":[\"/sbin/init\"],\
                 \"StopSignal\":\"SIGRTMIN+3\"}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{hex}\"]}}}}"
            )
        );
    }
}
