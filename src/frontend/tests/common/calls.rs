//! Calls of the driver as oned makes them, on a datastore in a directory of the test.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_frontend::depot::{Container, Content};
use ocivisor_frontend::{Config, Depot, ImagesConfig, images};
use ocivisor_opennebula::ds;

/// A datastore, and how its driver is configured.
#[derive(Clone, Debug)]
pub struct Cloud {
    pub base: PathBuf,
    pub config: Config,
    /// Elements of the datastore's template.
    pub template: String,
    /// What oned takes for free; 0: it does not know yet.
    pub free_mb: u64,
    /// 0: of images, 2: of files.
    pub kind: u32,
}

/// An image as oned tells it.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub id: u32,
    pub kind: u32,
    pub path: String,
    pub source: String,
    pub format: String,
    pub fs: String,
    pub size: String,
    /// Elements of its template.
    pub template: String,
}

impl Cloud {
    pub fn new(top: &Path) -> Self {
        let images = ImagesConfig {
            policy: top.join("no-policy"),
            oneimage: PathBuf::new(),
            ..ImagesConfig::default()
        };
        let config = Config { images, ..Config::default() };
        Self {
            base: top.join("datastores/101"),
            config,
            template: format!("<SAFE_DIRS>{}</SAFE_DIRS>", top.display()),
            free_mb: 0,
            kind: 0,
        }
    }

    /// Another datastore of the same cloud.
    pub fn beside(&self, id: u32) -> Self {
        Self { base: self.base.with_file_name(id.to_string()), ..self.clone() }
    }

    pub fn message(&self, wish: &Wish) -> String {
        let Wish { id, kind, path, source, format, fs, size, template } = wish;
        let (base, own, free) = (self.base.display(), &self.template, self.free_mb);
        let of = self.kind;
        STANDARD.encode(format!(
            "<DS_DRIVER_ACTION_DATA><IMAGE><ID>{id}</ID><NAME>x</NAME><TYPE>{kind}</TYPE>\
             <PERSISTENT>0</PERSISTENT><SOURCE><![CDATA[{source}]]></SOURCE><PATH><![CDATA[{path}]]></PATH>\
             <FORMAT><![CDATA[{format}]]></FORMAT><FS><![CDATA[{fs}]]></FS><SIZE>{size}</SIZE>\
             <CLONING_ID>-1</CLONING_ID><TEMPLATE>{template}</TEMPLATE></IMAGE><DATASTORE><ID>101</ID>\
             <BASE_PATH><![CDATA[{base}]]></BASE_PATH><TYPE>{of}</TYPE><FREE_MB>{free}</FREE_MB><TEMPLATE>{own}</TEMPLATE>\
             </DATASTORE></DS_DRIVER_ACTION_DATA>"
        ))
    }

    /// Standard output, or the sentence on standard error.
    pub fn call(&self, action: &str, wish: &Wish) -> Result<String, String> {
        self.call_with(action, wish, &mut |_| {})
    }

    pub fn call_with(
        &self,
        action: &str,
        wish: &Wish,
        log: &mut dyn FnMut(&str),
    ) -> Result<String, String> {
        let id = wish.id.to_string();
        answer(&self.config, action, &id, self.message(wish).as_bytes(), log)
    }

    pub fn cp(&self, id: u32, path: &str) -> Result<String, String> {
        self.call("cp", &Wish { id, path: path.into(), ..Wish::default() })
    }

    pub fn rm(&self, id: u32, source: &str) -> Result<String, String> {
        self.call("rm", &Wish { id, source: source.into(), ..Wish::default() })
    }

    pub fn depot(&self) -> Depot {
        Depot::open(&self.base).unwrap()
    }

    /// The container of an image, on record.
    pub fn container(&self, id: u32) -> Container {
        match self.depot().record(id).unwrap().expect("a record").content {
            Content::Container(container) => container,
            other => panic!("{other:?}"),
        }
    }

    pub fn blobs(&self) -> usize {
        std::fs::read_dir(self.base.join("store/blobs/sha256")).unwrap().count()
    }

    /// Nothing half made, nothing damaged.
    pub fn assert_clean(&self) {
        let depot = self.depot();
        assert_eq!(depot.store().fsck().unwrap(), vec![]);
        for dir in ["", "images", "disks", "store/staging", "store/partial"] {
            for entry in std::fs::read_dir(self.base.join(dir)).into_iter().flatten() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let done = !name.starts_with('.') && !name.starts_with("export-");
                assert!(done && dir != "store/staging", "{dir}/{name}");
            }
        }
    }
}

/// What the script would answer.
pub fn answer(
    config: &Config,
    action: &str,
    id: &str,
    stdin: &[u8],
    log: &mut dyn FnMut(&str),
) -> Result<String, String> {
    let call = ds::plan(action, &[id], stdin).map_err(|answer| answer.stderr)?;
    let answer = match images::carry_out(&call, config, log) {
        Ok(stdout) => call.success(&stdout),
        Err(error) => call.failure(&error),
    };
    if answer.exit == 0 {
        Ok(answer.stdout)
    } else {
        assert_eq!(answer.stderr.lines().count(), 1, "{}", answer.stderr);
        assert!(answer.stderr.ends_with(".\n"), "{}", answer.stderr);
        Err(answer.stderr)
    }
}
