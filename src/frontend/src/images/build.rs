//! Dockerfiles: built by buildah, without root.
//!
//! What a Dockerfile says is its user's, and buildah reads for it whatever our user may read. So it gets nothing of the
//! user's by a path: the Dockerfile and its context are copies ([`super::tree`]), and its policy is ours: images come from
//! registries alone, for every other transport of containers-transports(5) opens a path or another store of this machine.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::{Image, Source};
use serde_json::{Map, Value, json};

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
        let policy = policy(&self.config.images.policy)?;
        let work = self.depot()?.work(held)?;
        let at = |name: &str| work.path().join(name);
        let text_of = |name: &str| at(name).display().to_string();
        write(&at("Dockerfile"), &text)?;
        write(&at("policy.json"), &policy)?;
        let left_out = tree::copy(&context.dir, &at("context"), self.free()?)?;
        if left_out > 0 {
            self.log(&format!("{left_out} sockets, pipes and devices are not given to the build"));
        }
        let global = [
            &*context.buildah.display().to_string(),
            "--root",
            &text_of("root"),
            "--runroot",
            &text_of("run"),
            "--storage-driver",
            "vfs",
        ]
        .map(str::to_owned);
        let most = Duration::from_secs(self.config.images.build_timeout);
        let failed = |e: Error| match e.kind {
            ErrorKind::Timeout => {
                e.hint("images.build_timeout of the front-end says how long it may take")
            }
            _ => e,
        };
        let failed = |e: Error| failed(e.context(format!("build {}", context.dir.display())));
        let policy = format!("--signature-policy={}", text_of("policy.json"));
        let build = [
            "build",
            &policy,
            "--isolation",
            "rootless",
            "--file",
            &text_of("Dockerfile"),
            "--tag",
            "built",
            &text_of("context"),
        ]
        .map(str::to_owned);
        tool::run_with_strays(&[&global[..], &build].concat(), most).map_err(failed)?;
        let to = format!("oci:{}:built", text_of("image"));
        let push = ["push", &policy, "built", &to].map(str::to_owned);
        tool::run_with_strays(&[&global[..], &push].concat(), most).map_err(failed)?;
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

/// The policy of a build: of images from registries what the admin's says, and no others.
fn policy(path: &Path) -> Result<Vec<u8>> {
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
    Ok(registries_alone(&theirs).to_string().into_bytes())
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
        let absent = policy(Path::new("/does/not/exist")).unwrap();
        let absent: Value = serde_json::from_slice(&absent).unwrap();
        assert_eq!(absent, ours(json!({ "": any })));
    }
}
