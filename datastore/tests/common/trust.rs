//! Policies, keys and signatures for tests; keys and signatures are made by openssl.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::path::PathBuf;

use ocivisor_datastore::Digest;
use ocivisor_datastore::trust::{Policy, PolicyError, Signature};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::common::*;

pub fn policy(value: &Value) -> Result<Policy, PolicyError> {
    Policy::parse(value.to_string().as_bytes())
}

pub struct Keys {
    pub top: TempDir,
}

impl Keys {
    pub fn new() -> Self {
        let keys = Self { top: tempfile::tempdir().unwrap() };
        let elliptic = |curve: &str| {
            vec![
                "-algorithm".to_owned(),
                "EC".into(),
                "-pkeyopt".into(),
                format!("ec_paramgen_curve:{curve}"),
            ]
        };
        let rsa = |bits: &str| {
            vec![
                "-algorithm".to_owned(),
                "RSA".into(),
                "-pkeyopt".into(),
                format!("rsa_keygen_bits:{bits}"),
            ]
        };
        for (name, options) in [
            ("p256", elliptic("P-256")),
            ("other", elliptic("P-256")),
            ("p384", elliptic("P-384")),
            ("p521", elliptic("P-521")),
            ("ed25519", vec!["-algorithm".into(), "ED25519".into()]),
            ("rsa", rsa("2048")),
            ("short", rsa("1024")),
        ] {
            let mut args = vec!["genpkey", "-quiet"];
            args.extend(options.iter().map(String::as_str));
            let key = keys.private(name);
            args.extend(["-out", text(&key)]);
            run("openssl", &args);
            run(
                "openssl",
                &["pkey", "-in", text(&key), "-pubout", "-out", text(&keys.public(name))],
            );
        }
        keys
    }

    pub fn private(&self, name: &str) -> PathBuf {
        self.top.path().join(format!("{name}.key"))
    }

    pub fn public(&self, name: &str) -> PathBuf {
        self.top.path().join(format!("{name}.pub"))
    }

    pub fn sign(&self, name: &str, payload: &[u8]) -> Signature {
        let (document, signature) = (self.top.path().join("doc"), self.top.path().join("sig"));
        put(&document, payload);
        let key = self.private(name);
        if name == "ed25519" {
            run(
                "openssl",
                &[
                    "pkeyutl",
                    "-sign",
                    "-rawin",
                    "-inkey",
                    text(&key),
                    "-in",
                    text(&document),
                    "-out",
                    text(&signature),
                ],
            );
        } else {
            run(
                "openssl",
                &[
                    "dgst",
                    "-sha256",
                    "-sign",
                    text(&key),
                    "-out",
                    text(&signature),
                    text(&document),
                ],
            );
        }
        Signature { payload: payload.to_vec(), signature: fs::read(signature).unwrap() }
    }

    /// A policy that wants a signature by a key.
    pub fn policy(&self, name: &str, identity: &Value) -> Policy {
        policy(&json!({"default": [self.requirement(name, identity)]})).unwrap()
    }

    pub fn requirement(&self, name: &str, identity: &Value) -> Value {
        json!({"type": "sigstoreSigned", "keyPath": self.public(name), "signedIdentity": identity})
    }
}

pub fn payload(reference: &str, digest: &Digest) -> Value {
    json!({"critical": {"identity": {"docker-reference": reference},
        "image": {"docker-manifest-digest": digest.to_string()},
        "type": "cosign container image signature"},
        "optional": {"creator": "tests"}})
}

pub fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.encode(bytes)
}
