//! A registry for images: Debian's docker-registry, on the loopback.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ocivisor_tests::{PATIENCE, tool, wait_for_option};

/// A registry without a login, by plain HTTP.
#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Registry {
    /// One with its files in that directory.
    ///
    /// # Panics
    /// It does not begin: docker-registry is not installed.
    #[must_use]
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: \"{}\"}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\", secret: test}}\n",
            dir.join("data").display()
        );
        std::fs::write(dir.join("config.yml"), text).unwrap();
        let mut made = Self { dir: dir.to_owned(), port, child: None };
        made.up();
        made
    }

    /// `host:port`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Takes an OCI layout in, as `NAME:TAG`.
    ///
    /// # Panics
    /// It does not.
    pub fn push(&self, layout: &Path, name: &str) {
        let from = format!("oci:{}", layout.display());
        let to = format!("docker://{}/{name}", self.host());
        let options = ["--insecure-policy", "-q", "--preserve-digests", "--dest-tls-verify=false"];
        tool(&[&["skopeo", "copy"], &options[..], &[&from, &to]].concat());
    }

    /// It begins, and answers.
    ///
    /// # Panics
    /// It does not.
    pub fn up(&mut self) {
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(self.dir.join("config.yml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().expect("docker-registry is installed"));
        let there = || TcpStream::connect(("127.0.0.1", self.port)).ok();
        wait_for_option(PATIENCE, there).expect("docker-registry answers");
    }

    /// It ends at once.
    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.down();
    }
}
