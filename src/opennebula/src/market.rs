//! Scripts of the marketplace driver: a registry whose images are apps.
//!
//! `monitor`, `import` and `delete` get base64 of a `<MARKET_DRIVER_ACTION_DATA>` as first argument and a number as
//! second. Apps are lines `APP="<base64 of a template>"`. oned matches them by `NAME`, among all of the cloud, takes a
//! new `VERSION` for a new version, and forgets what several listings in a row do not have; so the version is the
//! image's digest, and a listing that is not whole must be a failure.

use std::ffi::OsStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::{Error, one_line};
use sha2::{Digest as _, Sha256};

use crate::answer::{Answer, visible};
use crate::ds::decode;
use crate::{clip, decimal, invalid, xml};

/// Most apps of a marketplace: each is asked for at its registry, every few minutes.
pub const MAX_APPS: usize = 200;

/// A marketplace, as its template says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Market {
    /// Its number.
    pub id: u32,
    /// `REGISTRY`: `host[:port]`.
    pub registry: String,
    /// `APPS`: repositories, with or without a tag; none if the registry's catalog is to say.
    pub apps: Vec<String>,
    /// `HYPERVISOR` of the templates.
    pub hypervisor: String,
    /// `CPU` of the templates.
    pub cpu: String,
    /// `MEMORY` of the templates, in MiB.
    pub memory_mb: u32,
}

/// An image that is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// Repository and tag, as in `team/app:1`.
    pub name: String,
    /// `docker://…`
    pub source: String,
    /// Of its manifest, `sha256:…`.
    pub digest: String,
    /// In MiB.
    pub size_mb: u64,
    /// `amd64`, `arm64`.
    pub architecture: String,
}

/// Understands a call.
///
/// # Errors
/// The answer to give: the call is none of ours, or cannot be served.
pub fn plan<A: AsRef<OsStr>>(action: &str, argv: &[A]) -> Result<Market, Answer> {
    match action {
        "monitor" => read(argv).map_err(|e| failure(&e)),
        "import" | "delete" => Err(Answer::sentence(
            "Images of a registry are changed in the registry, not by OpenNebula: push and delete them there",
        )),
        _ => {
            let text = format!("Script {:?} is none of the marketplace driver", clip(action));
            Err(Answer::sentence(&text))
        }
    }
}

/// The sentence for a listing that failed.
#[must_use]
pub fn failure(error: &Error) -> Answer {
    let hint = error.hint.as_deref().map_or_else(String::new, |hint| format!("; {hint}"));
    let message = error.message.trim_end_matches('.');
    Answer::sentence(&one_line(&format!("Cannot list the marketplace: {message}{hint}")))
}

/// A line for oned's log.
#[must_use]
pub fn note(market: &Market, text: &str) -> String {
    format!("INFO: {} {}\n", market.id, visible(&one_line(text)))
}

/// The answer: a line for each.
#[must_use]
pub fn listing(market: &Market, apps: &[App]) -> Answer {
    // Two of one name would be one app that changes with each line.
    let mut named = std::collections::HashSet::new();
    let once = apps.iter().filter(|app| named.insert(app.title(market)));
    let lines = once.map(|app| format!("APP=\"{}\"\n", STANDARD.encode(app.template(market))));
    Answer::success(lines.collect())
}

fn read<A: AsRef<OsStr>>(argv: &[A]) -> Result<Market, Error> {
    let [data, ..] = argv else {
        return Err(invalid("the script was called without arguments"));
    };
    let root = xml::read(&decode(data.as_ref().as_encoded_bytes())?)?;
    let none = xml::Element::default();
    let market = root.only("MARKETPLACE")?.ok_or_else(|| invalid("MARKETPLACE is missing"))?;
    let template = market.only("TEMPLATE")?.unwrap_or(&none);
    let text = |name| Ok::<_, Error>(template.value(name)?.unwrap_or_default().trim());
    let registry = text("REGISTRY")?.trim_start_matches("docker://").trim_end_matches('/');
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    if registry.is_empty() || !registry.chars().all(plain) {
        return Err(invalid(format!("REGISTRY {:?} is no host", clip(registry)))
            .hint("give the marketplace REGISTRY=\"host[:port]\""));
    }
    let apps: Vec<String> = text("APPS")?.split_whitespace().map(Into::into).collect();
    if apps.len() > MAX_APPS {
        return Err(invalid(format!("APPS has more than {MAX_APPS} entries")));
    }
    let word = |name, default: &str| {
        let text = text(name)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        match text {
            "" => Ok(default.to_owned()),
            text if text.len() <= 64 && text.chars().all(plain) => Ok(text.to_owned()),
            text => Err(invalid(format!("{name} {:?} is not understood", clip(text)))),
        }
    };
    let memory = word("MEMORY", "512")?;
    let bad = || invalid(format!("MEMORY {memory:?} is no number"));
    Ok(Market {
        id: market
            .value("ID")?
            .and_then(decimal)
            .ok_or_else(|| invalid("MARKETPLACE/ID is missing"))?,
        registry: registry.to_owned(),
        apps,
        hypervisor: word("HYPERVISOR", "ocivisor")?,
        cpu: word("CPU", "1")?,
        memory_mb: decimal(&memory).filter(|mb| *mb > 0).ok_or_else(bad)?,
    })
}

/// Letters of an app's name before what makes it its own.
const TITLE_MAX: usize = 110;

impl App {
    /// Its name in OpenNebula, which knows an app by that, among those of all marketplaces.
    ///
    /// Names may not have the characters between the parts of a reference, and `a/b` must not become `a-b`; so what is
    /// said is for people, and the digits behind it tell it from the same of another registry or marketplace.
    fn title(&self, market: &Market) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let title: String = format!("{}-{}", market.registry, self.name)
            .chars()
            .map(|c| if plain(c) { c } else { '-' })
            .take(TITLE_MAX)
            .collect();
        let own = Sha256::digest(format!("{} {}", market.id, self.source));
        let own: String = own.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("{}-{own}", title.trim_start_matches('-'))
    }

    /// Nothing in it can end a value: text is of letters that were looked at, templates are base64.
    fn template(&self, market: &Market) -> String {
        let Market { hypervisor, cpu, memory_mb, registry, .. } = market;
        let machine = format!(
            "CPU = \"{cpu}\"\nMEMORY = \"{memory_mb}\"\n\
             HYPERVISOR = \"{hypervisor}\"\n\
             SCHED_REQUIREMENTS = \"HYPERVISOR = \\\"{hypervisor}\\\"\"\n\
             GRAPHICS = [ TYPE = \"VNC\", LISTEN = \"127.0.0.1\" ]\n\
             CONTEXT = [ NETWORK = \"YES\", SSH_PUBLIC_KEY = \"$USER[SSH_PUBLIC_KEY]\", \
             SET_HOSTNAME = \"$NAME\" ]\n"
        );
        let text = |value: &str| -> String {
            let plain = |c: &char| c.is_ascii_alphanumeric() || "._-/:@[]".contains(*c);
            value.chars().filter(plain).collect()
        };
        let name = self.title(market);
        format!(
            "NAME = \"{name}\"\nSOURCE = \"{}\"\nVERSION = \"{}\"\nSIZE = \"{}\"\nFORMAT = \"oci\"\n\
             TYPE = \"IMAGE\"\nPUBLISHER = \"{}\"\nORIGIN_ID = \"-1\"\nARCHITECTURE = \"{}\"\n\
             HYPERVISOR = \"{hypervisor}\"\nDESCRIPTION = \"{}\"\n\
             APPTEMPLATE64 = \"{}\"\nVMTEMPLATE64 = \"{}\"\n",
            text(&self.source),
            text(&self.digest),
            self.size_mb,
            text(registry),
            text(&self.architecture),
            text(&self.source),
            STANDARD.encode("TYPE = \"OS\"\n"),
            STANDARD.encode(machine),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(template: &str) -> String {
        STANDARD.encode(format!(
            "<MARKET_DRIVER_ACTION_DATA><MARKETPLACE><ID>3</ID><TEMPLATE>{template}</TEMPLATE>\
             </MARKETPLACE></MARKET_DRIVER_ACTION_DATA>"
        ))
    }

    fn market(template: &str) -> Result<Market, String> {
        plan("monitor", &[message(template), "3".into()]).map_err(|answer| answer.stderr)
    }

    #[test]
    fn apps_are_one_line_each_and_say_what_a_vm_needs() {
        let market = market("<REGISTRY>docker://r.example:5000/</REGISTRY><APPS>a/b:1 c</APPS>");
        let market = market.unwrap();
        assert_eq!((market.registry.as_str(), market.memory_mb), ("r.example:5000", 512));
        assert_eq!(market.apps, ["a/b:1", "c"]);
        let app = App {
            name: "a/b:1".into(),
            source: "docker://r.example:5000/a/b:1".into(),
            digest: "sha256:00".into(),
            size_mb: 7,
            architecture: "amd64\"\nEVIL=\"1".into(),
        };
        // The same twice is once.
        let answer = listing(&market, &[app.clone(), app]);
        assert_eq!(answer.stdout.lines().count(), 1);
        let line = answer.stdout.lines().next().unwrap();
        let packed = line.strip_prefix("APP=\"").unwrap().strip_suffix('"').unwrap();
        let text = String::from_utf8(STANDARD.decode(packed).unwrap()).unwrap();
        let start = "NAME = \"r.example-5000-a-b-1-fb16cb11\"\nSOURCE = \"docker://r.example:5000/a/b:1\"\n";
        assert!(text.starts_with(start), "{text}");
        assert!(text.contains("ARCHITECTURE = \"amd64EVIL1\"\n"), "{text}");
        let machine = text.split("VMTEMPLATE64 = \"").nth(1).unwrap().trim_end_matches("\"\n");
        let machine = String::from_utf8(STANDARD.decode(machine).unwrap()).unwrap();
        assert!(
            machine.contains("SCHED_REQUIREMENTS = \"HYPERVISOR = \\\"ocivisor\\\"\"\n"),
            "{machine}"
        );
    }

    #[test]
    fn names_differ_where_images_do() {
        let at = |id: u32, registry: &str| {
            let market = market(&format!("<REGISTRY>{registry}</REGISTRY>")).unwrap();
            Market { id, ..market }
        };
        let title = |market: &Market, name: &str| {
            let name = name.to_owned();
            let source = format!("docker://{}/{name}", market.registry);
            let (digest, architecture) = (String::new(), String::new());
            App { name, source, digest, size_mb: 1, architecture }.title(market)
        };
        let (hub, mirror) = (at(3, "hub.example"), at(3, "mirror.example:5000"));
        let long = |end: &str| format!("{}/{end}", "x".repeat(300));
        let titles = [
            title(&hub, "library/nginx:1.27"),
            title(&mirror, "library/nginx:1.27"),
            title(&at(4, "hub.example"), "library/nginx:1.27"),
            title(&hub, "library-nginx:1.27"),
            title(&hub, "library/nginx-1.27"),
            title(&hub, &long("a")),
            title(&hub, &long("b")),
            title(&at(3, "[::1]:5000"), "a"),
        ];
        let different: std::collections::HashSet<_> = titles.iter().collect();
        assert_eq!(different.len(), titles.len(), "{titles:?}");
        for title in &titles {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            assert!(title.len() <= 128 && title.chars().all(plain), "{title}");
            assert!(!title.starts_with('-'), "{title}");
        }
        assert!(titles[0].starts_with("hub.example-library-nginx-1.27-"), "{titles:?}");
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        for action in ["import", "delete"] {
            let said = plan(action, &[message("")]).unwrap_err();
            assert_eq!((said.exit, said.stderr.lines().count()), (1, 1));
        }
        for template in [
            "",
            "<REGISTRY>a b</REGISTRY>",
            "<REGISTRY>a/b</REGISTRY>",
            "<REGISTRY>a</REGISTRY><MEMORY>0</MEMORY>",
            "<REGISTRY>a</REGISTRY><HYPERVISOR>\"x</HYPERVISOR>",
        ] {
            let said = market(template).unwrap_err();
            assert!(said.starts_with("Cannot list the marketplace: "), "{said}");
        }
        let none: [&str; 0] = [];
        assert_eq!(plan("monitor", &none).unwrap_err().exit, 1);
    }
}
