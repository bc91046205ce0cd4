//! Real registries for tests: Debian's docker-registry with TLS from a CA of the test, and how we reach it. All on
//! loopback, all gone when dropped. What breaks and lies is in `wire`.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ocivisor_datastore::{
    Patience, Registries, RegistriesConfig, RegistryConfig, RegistrySource, Source,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use super::put;

/// What a deadline of a test is: long enough for a loaded machine, for nothing is timed.
pub const LONG: Duration = Duration::from_secs(60);

/// Polls a condition.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < until, "{what} did not happen");
        pause(Duration::from_millis(10));
    }
}

/// Lets time pass, where that is what is tested or polled.
pub fn pause(time: Duration) {
    let (_hold, clock) = mpsc::channel::<()>();
    clock.recv_timeout(time).unwrap_err();
}

/// A certificate authority and what it signed, as PEM files.
pub struct Ca {
    pub dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate's files.
#[derive(Clone, Debug)]
pub struct Signed {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Ca {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap();
        // Alone, as skopeo takes it.
        fs::create_dir(dir.path().join("certs")).unwrap();
        put(&dir.path().join("certs/ca.crt"), cert.pem().as_bytes());
        Self { issuer: Issuer::new(params, key), dir }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("certs/ca.crt")
    }

    /// Signs for names and addresses.
    pub fn sign(&self, file: &str, names: &[&str]) -> Signed {
        self.sign_as(file, names, |_| {})
    }

    pub fn sign_as(
        &self,
        file: &str,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Signed {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let signed = Signed {
            cert: self.dir.path().join(format!("{file}.crt")),
            key: self.dir.path().join(format!("{file}.key")),
        };
        put(&signed.cert, cert.pem().as_bytes());
        put(&signed.key, key.serialize_pem().as_bytes());
        signed
    }
}

/// A port of loopback that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub const USER: &str = "tester";
pub const PASSWORD: &str = "correct:horse battery";

/// How a [`Distribution`] lets people in.
pub enum Auth {
    Anonymous,
    Basic,
    /// Realm, and the certificate that tokens are checked against.
    Token(String, PathBuf),
}

/// Debian's docker-registry.
pub struct Distribution {
    pub dir: TempDir,
    pub port: u16,
    child: Option<Child>,
}

impl Distribution {
    pub fn start(tls: Option<&Signed>, auth: &Auth) -> Self {
        Self::start_for(tls, auth, None)
    }

    /// Takes connections only from clients with a certificate of that CA.
    pub fn start_for(tls: Option<&Signed>, auth: &Auth, clients: Option<&Path>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let mut text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage:\n  filesystem: {{rootdirectory: \"{}\"}}\n  delete: {{enabled: true}}\n\
             http:\n  addr: 127.0.0.1:{port}\n  secret: test\n",
            at("data")
        );
        if let Some(Signed { cert, key }) = tls {
            let (cert, key) = (cert.display(), key.display());
            let clients = clients
                .map_or_else(String::new, |ca| format!(", clientcas: [\"{}\"]", ca.display()));
            text += &format!("  tls: {{certificate: \"{cert}\", key: \"{key}\"{clients}}}\n");
        }
        match auth {
            Auth::Anonymous => {}
            Auth::Basic => {
                htpasswd(&dir.path().join("htpasswd"));
                text +=
                    &format!("auth: {{htpasswd: {{realm: test, path: \"{}\"}}}}\n", at("htpasswd"));
            }
            Auth::Token(realm, cert) => {
                text += &format!(
                    "auth: {{token: {{realm: \"{realm}\", service: registry, issuer: tests, \
                     rootcertbundle: \"{}\"}}}}\n",
                    cert.display()
                );
            }
        }
        put(&dir.path().join("config.yml"), text.as_bytes());
        let mut made = Self { dir, port, child: None };
        made.up();
        made
    }

    #[expect(clippy::disallowed_methods, reason = "tests run foreign tools")]
    pub fn up(&mut self) {
        let log = File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(self.dir.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("this test needs docker-registry, install it: {e}"));
        self.child = Some(child);
        wait_for("docker-registry's start", || {
            let child = self.child.as_mut().unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                let log = fs::read_to_string(self.dir.path().join("log")).unwrap();
                panic!("docker-registry ended with {status}: {log}");
            }
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
    }

    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        self.down();
    }
}

#[expect(clippy::disallowed_methods, reason = "tests run foreign tools")]
fn htpasswd(path: &Path) {
    let output = Command::new("htpasswd")
        .args(["-Bbc", "-C", "4"])
        .arg(path)
        .args([USER, PASSWORD])
        .output()
        .unwrap_or_else(|e| panic!("this test needs htpasswd, install apache2-utils: {e}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Copies with skopeo, with the login and CA of the tests on both sides.
pub fn skopeo(ca: &Ca, from: &str, to: &str) {
    let certs = ca.dir.path().join("certs").display().to_string();
    let login = format!("{USER}:{PASSWORD}");
    let mut args = vec!["copy", "--insecure-policy", "-q", "--all", "--preserve-digests"];
    for (place, cert, creds) in
        [(from, "--src-cert-dir", "--src-creds"), (to, "--dest-cert-dir", "--dest-creds")]
    {
        if place.starts_with("docker:") {
            args.extend([cert, certs.as_str(), creds, login.as_str()]);
        }
    }
    args.extend([from, to]);
    super::run("skopeo", &args);
}

/// Registries with short waits and nothing from the environment.
pub struct Setup {
    pub dir: TempDir,
    pub config: RegistriesConfig,
    pub patience: Patience,
    pub names: Vec<(String, std::net::IpAddr)>,
}

impl Setup {
    pub fn new() -> Self {
        let config = RegistriesConfig {
            proxy_from_environment: false,
            attempts: 3,
            deadline_seconds: 120,
            ..RegistriesConfig::default()
        };
        let patience = Patience {
            backoff: Duration::from_millis(1),
            max_backoff: Duration::from_millis(20),
            helper: Duration::from_secs(5),
            ..Patience::default()
        };
        Self { dir: tempfile::tempdir().unwrap(), config, patience, names: Vec::new() }
    }

    /// What configuration says of a host.
    pub fn host(&mut self, host: &str) -> &mut RegistryConfig {
        self.config.hosts.entry(host.parse().unwrap()).or_default()
    }

    /// A host with the login of the tests.
    pub fn login(&mut self, host: &str) -> &mut RegistryConfig {
        let file = self.dir.path().join("password");
        put(&file, format!("{PASSWORD}\n").as_bytes());
        let own = self.host(host);
        own.username = Some(USER.into());
        own.password_file = Some(file);
        own
    }

    pub fn registries(&self) -> Registries {
        Registries::new(self.config.clone())
            .with_patience(self.patience.clone())
            .with_fixed_addresses(self.names.clone())
    }

    pub fn source(&self, reference: &str) -> Source {
        let reference = reference.parse().unwrap();
        Source::Registry(RegistrySource { reference, registries: self.registries() })
    }
}

/// A layer of random bytes, which no compression makes small.
pub fn big(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(size)
    .collect();
    super::RawTar::new().dir("data").file(&format!("data/{seed}"), &bytes).end()
}
