//! Dockerfiles: built by buildah, without root.
//!
//! What a Dockerfile says is its user's, and buildah reads for it whatever our user may read. So it gets nothing of the
//! user's by a path: the Dockerfile and its context are copies ([`super::tree`]), and its policy is ours: images come from
//! registries alone, for every other transport of containers-transports(5) opens a path or another store of this machine.
//! And it runs where there is nothing else to be read ([`super::enclosed`]).

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{Image, Source};
use serde_json::{Map, Value, json};

use super::enclosed::{HOME, Order, TEMPORARY, WORK};
use super::{Driver, bring, tree};
use crate::depot::ImageLock;
use crate::fault::failed;
use crate::tool;

/// Longest Dockerfile, and longest policy.
const TEXT_MAX: u64 = 1 << 20;

/// What is to be built.
pub(super) struct Context {
    /// What builds it.
    buildah: PathBuf,
    /// No part of the path was a link.
    dir: PathBuf,
    dockerfile: PathBuf,
}

impl Driver<'_> {
    /// The program that builds, if the admin wants that.
    fn builder(&self) -> Result<PathBuf> {
        if !self.config.images.build {
            let text = "Dockerfiles are not built on this front-end";
            return Err(Error::new(ErrorKind::Unsupported, text)
                .hint("build the image elsewhere and name it by docker://, or have an admin set images.build"));
        }
        tool::find("buildah").map_err(|e| {
            e.hint("install it, or build the image elsewhere and name it by docker://")
        })
    }

    /// What is built by the path of a Dockerfile or of its directory.
    pub(super) fn context(&self, path: &Path) -> Result<Context> {
        let (path, _) = self.resolve(path, false)?;
        let dockerfile = if path.is_dir() { dockerfile(&path) } else { Some(path.clone()) };
        let dir = if path.is_dir() { &path } else { path.parent().unwrap_or(&path) };
        let dir = self.resolve_whole(dir)?;
        let buildah = self.builder()?;
        let Some(dockerfile) = dockerfile else {
            let text = format!("{} has no Dockerfile or Containerfile", dir.display());
            return Err(Error::new(ErrorKind::NotFound, text)
                .hint("put one there, or name the file itself"));
        };
        Ok(Context { buildah, dir, dockerfile })
    }

    /// Builds a Dockerfile.
    ///
    /// Its commands are the user's. They run in containers that a runtime makes (`--isolation rootless`), not in a mere
    /// chroot: there they could signal every process of oneadmin's, whose user they are.
    pub(super) fn build(&mut self, held: &ImageLock, context: &Context) -> Result<Image> {
        let text = instructions(&context.dockerfile)?;
        let (policy, keys) = policy(&self.config.images.policy)?;
        let work = self.depot()?.work(held)?;
        let at = |name: &str| work.path().join(name);
        // As the build has it.
        let inside = |name: &str| format!("{WORK}/{name}");
        write(&at("Dockerfile"), &text)?;
        write(&at("policy.json"), &policy)?;
        for (name, key) in keys {
            write(&at(&name), &key)?;
        }
        for dir in [HOME, TEMPORARY].map(Path::new) {
            let dir = at(&dir.file_name().unwrap_or_default().to_string_lossy());
            let made = DirBuilder::new().mode(0o700).create(&dir);
            made.map_err(|e| failed("make", &dir, &e))?;
        }
        let left_out = tree::copy(&context.dir, &at("context"), self.free()?)?;
        if left_out > 0 {
            self.log(&format!("{left_out} sockets, pipes and devices are not given to the build"));
        }
        let buildah = context.buildah.display().to_string();
        let global = [&*buildah, "--root", &inside("root"), "--runroot", &inside("run")]
            .map(str::to_owned)
            .into_iter()
            .chain(["--storage-driver", "vfs"].map(str::to_owned));
        let global: Vec<String> = global.collect();
        let most = Duration::from_secs(self.config.images.build_timeout);
        let run = |arguments: &[String]| {
            let order =
                Order { work: work.path().to_owned(), argv: [&*global, arguments].concat() };
            let ran = order.run(&self.config.builder, &context.buildah, most);
            ran.map_err(|e| match e.kind {
                ErrorKind::Timeout => {
                    e.hint("images.build_timeout of the front-end says how long it may take")
                }
                _ => e,
            })
            .map_err(|e| e.context(format!("build {}", context.dir.display())))
        };
        let policy = format!("--signature-policy={}", inside("policy.json"));
        let build = [
            "build",
            &policy,
            "--isolation",
            "rootless",
            "--file",
            &inside("Dockerfile"),
            "--tag",
            "built",
            &inside("context"),
        ];
        run(&build.map(str::to_owned))?;
        let to = format!("oci:{}:built", inside("image"));
        run(&["push", &policy, "built", &to].map(str::to_owned))?;
        self.import(&Source::OciLayout { dir: at("image"), tag: None })
    }
}

/// Named by who controls the directory; whether it is a file is seen where it is opened.
fn dockerfile(dir: &Path) -> Option<PathBuf> {
    let named = ["Containerfile", "Dockerfile"].map(|name| dir.join(name));
    named.into_iter().find(|file| file.symlink_metadata().is_ok())
}

pub(super) fn has_dockerfile(dir: &Path) -> bool {
    !dir.join("oci-layout").exists() && dockerfile(dir).is_some()
}

/// What a Dockerfile says. buildah gets a copy: in its own place it may be a link to what only our user may read, and
/// errors tell lines of it.
fn instructions(path: &Path) -> Result<Vec<u8>> {
    if path.symlink_metadata().is_ok_and(|meta| meta.is_symlink()) {
        return Err(tree::is_a_link(path));
    }
    read(bring::open(path)?, path)
}

fn read(file: File, path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = file.take(TEXT_MAX + 1).read_to_end(&mut text);
    read.map_err(|e| failed("read", path, &e))?;
    if text.len() as u64 > TEXT_MAX {
        let text = format!("{} has more than {} KiB", path.display(), TEXT_MAX >> 10);
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(text)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = File::create_new(path).and_then(|mut file| file.write_all(bytes));
    written.map_err(|e| failed("write", path, &e))
}

/// The policy of a build: of images from registries what the admin's says, and no others. With it the keys that it names.
fn policy(path: &Path) -> Result<(Vec<u8>, Keys)> {
    let theirs = match File::open(path) {
        Ok(file) => serde_json::from_slice(&read(file, path)?).map_err(|e| {
            Error::new(ErrorKind::Invalid, format!("images.policy {}: {e}", path.display()))
        })?,
        // As for everything else: no file, no rule.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            json!({ "default": [{ "type": "insecureAcceptAnything" }] })
        }
        Err(e) => return Err(failed("read", path, &e)),
    };
    let mut policy = registries_alone(&theirs);
    let mut keys = Keys::new();
    take_keys(&mut policy, None, &mut keys)?;
    Ok((policy.to_string().into_bytes(), keys))
}

/// Names in the directory of the build, and content.
type Keys = Vec<(String, Vec<u8>)>;

/// Takes the files that a policy names, and names their copies: `keyPath`, `keyPaths`, `caPath`, `rekorPublicKeyPath` and so on.
fn take_keys(value: &mut Value, name: Option<&str>, keys: &mut Keys) -> Result<()> {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                take_keys(value, Some(name), keys)?;
            }
        }
        Value::Array(values) => {
            for value in values {
                take_keys(value, name, keys)?;
            }
        }
        Value::String(path)
            if name.is_some_and(|name| name.ends_with("Path") || name.ends_with("Paths")) =>
        {
            let named = Path::new(&*path);
            let file = File::open(named).map_err(|e| failed("read", named, &e))?;
            let key = format!("key-{}", keys.len());
            let content = read(file, named)?;
            *path = format!("{WORK}/{key}");
            keys.push((key, content));
        }
        _ => {}
    }
    Ok(())
}

/// containers-policy.json(5): the scope "" of a transport is its default; without one it is the default of all.
fn registries_alone(theirs: &Value) -> Value {
    let docker = theirs.pointer("/transports/docker").and_then(Value::as_object);
    let mut docker: Map<String, Value> = docker.cloned().unwrap_or_default();
    docker.entry("").or_insert_with(|| theirs["default"].clone());
    json!({ "default": [{ "type": "reject" }], "transports": { "docker": docker } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_of_a_build_knows_registries_alone() {
        let any = json!([{ "type": "insecureAcceptAnything" }]);
        let no = json!([{ "type": "reject" }]);
        let ours = |docker: Value| json!({ "default": no, "transports": { "docker": docker } });
        let said = |theirs: Value| registries_alone(&theirs);
        assert_eq!(said(json!({ "default": any })), ours(json!({ "": any })));
        assert_eq!(said(json!({ "default": no })), ours(json!({ "": no })));
        let theirs = json!({
            "default": no,
            "transports": {
                "docker": { "registry.example": any },
                "oci-archive": { "": any },
                "containers-storage": { "": any },
            },
        });
        assert_eq!(said(theirs), ours(json!({ "registry.example": any, "": no })));
        let theirs = json!({ "default": no, "transports": { "docker": { "": any, "a.b": no } } });
        assert_eq!(said(theirs), ours(json!({ "": any, "a.b": no })));
        let (absent, keys) = policy(Path::new("/does/not/exist")).unwrap();
        let absent: Value = serde_json::from_slice(&absent).unwrap();
        assert_eq!((absent, keys), (ours(json!({ "": any })), Keys::new()));
    }

    #[test]
    fn keys_of_the_policy_go_along() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name).display().to_string();
        for name in ["one", "two", "three"] {
            write(Path::new(&at(name)), name.as_bytes()).unwrap();
        }
        let signed = |one: &str, two: &str, three: &str| {
            json!([
                { "type": "signedBy", "keyType": "GPGKeys", "keyPath": one },
                { "type": "signedBy", "keyType": "GPGKeys", "keyPaths": [two, three] },
            ])
        };
        let theirs = json!({
            "default": [{ "type": "reject" }],
            "transports": { "docker": { "a.b": signed(&at("one"), &at("two"), &at("three")) } },
        });
        let file = top.path().join("policy.json");
        write(&file, theirs.to_string().as_bytes()).unwrap();
        let (ours, keys) = policy(&file).unwrap();
        let ours: Value = serde_json::from_slice(&ours).unwrap();
        let want = signed("/build/key-0", "/build/key-1", "/build/key-2");
        assert_eq!(ours["transports"]["docker"]["a.b"], want);
        let want = ["one", "two", "three"].map(|name| name.as_bytes().to_vec());
        assert_eq!(keys.into_iter().map(|(_, key)| key).collect::<Vec<_>>(), want);
        std::fs::remove_file(at("two")).unwrap();
        assert_eq!(policy(&file).unwrap_err().kind, ErrorKind::NotFound);
    }
}
