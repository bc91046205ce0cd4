//! `--vnc 127.0.0.1:5901,password-file=/root/vnc.pw`: a VNC console on the command line.
//!
//! The password is read from a file, because command lines are public. Where others than this host can connect, no
//! password is a decision that has to be written down.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ocivisor_schema::spec::GraphicsV1;

use crate::failure::{Exit, Failure};

/// Characters of a password that VNC uses (RFC 6143, 7.2.2).
const MAX_PASSWORD: usize = 8;

/// What was said of the VNC console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VncOption {
    listen: IpAddr,
    port: u16,
    password: Option<PathBuf>,
}

impl FromStr for VncOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let place = parts.next().unwrap_or_default();
        let at = match place.parse::<u16>() {
            Ok(port) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
            Err(_) => place.parse().map_err(|_| {
                format!("{place:?} is neither a port nor an address with one, as in 127.0.0.1:5901")
            })?,
        };
        let (mut password, mut open) = (None, false);
        for part in parts {
            match part.split_once('=') {
                Some(("password-file", file)) if !file.is_empty() => password = Some(file.into()),
                None if part == "open" => open = true,
                _ => return Err(format!("{part:?} is neither password-file=FILE nor open")),
            }
        }
        if open && password.is_some() {
            return Err("password-file and open exclude each other".to_owned());
        }
        if password.is_none() && !open && !at.ip().is_loopback() {
            return Err(format!(
                "whoever reaches {at} would be let in: add password-file=FILE, or open if that is meant"
            ));
        }
        Ok(Self { listen: at.ip(), port: at.port(), password })
    }
}

impl VncOption {
    /// As the daemon is told.
    ///
    /// # Errors
    /// The password cannot be read, or is none.
    pub fn to_spec(&self) -> Result<GraphicsV1, Failure> {
        let password = self.password.as_deref().map(password).transpose()?;
        Ok(GraphicsV1 { listen: self.listen.to_string(), port: self.port, password })
    }
}

/// The first line of the file; `-` is standard input.
fn password(path: &Path) -> Result<String, Failure> {
    // More than any password and its line's end.
    const MAX_FILE: u64 = 1024;
    let shown = path.display();
    let source: std::io::Result<Box<dyn Read>> = if path == Path::new("-") {
        Ok(Box::new(std::io::stdin()))
    } else {
        std::fs::File::open(path).map(|file| Box::new(file) as _)
    };
    let mut text = String::new();
    source
        .and_then(|source| source.take(MAX_FILE).read_to_string(&mut text))
        .map_err(|e| Failure::new(Exit::of_io(&e), format!("read the password in {shown}: {e}")))?;
    let line = text.lines().next().unwrap_or_default();
    let wrong = |what: &str| Failure::new(Exit::Usage, format!("the password in {shown} {what}"));
    match line.len() {
        0 => Err(wrong("is empty")),
        1..=MAX_PASSWORD => Ok(line.to_owned()),
        _ => Err(wrong("has more than 8 characters, and VNC uses no more").hint("make it shorter")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VncOption, String> {
        text.parse()
    }

    #[test]
    fn places_and_passwords_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pw");
        write(&file, "secret\nnot this\n");
        let spec = |text: &str| parse(text).unwrap().to_spec();
        let with = |listen: &str, password: Option<&str>| GraphicsV1 {
            listen: listen.to_owned(),
            port: 5901,
            password: password.map(str::to_owned),
        };
        assert_eq!(spec("5901").unwrap(), with("127.0.0.1", None));
        assert_eq!(spec("[::1]:5901").unwrap(), with("::1", None));
        assert_eq!(spec("0.0.0.0:5901,open").unwrap(), with("0.0.0.0", None));
        let secret = spec(&format!("0.0.0.0:5901,password-file={}", file.display()));
        assert_eq!(secret.unwrap(), with("0.0.0.0", Some("secret")));
        for (content, what) in
            [("\n", "is empty"), ("ninechars", "has more than 8 characters, and VNC uses no more")]
        {
            write(&file, content);
            let error = spec(&format!("5901,password-file={}", file.display())).unwrap_err();
            assert_eq!(error.message, format!("the password in {} {what}", file.display()));
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a file of the test")]
    fn write(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn mistakes_are_named_and_an_open_door_is_not_one_by_accident() {
        for (text, error) in [
            ("", "\"\" is neither a port nor an address with one, as in 127.0.0.1:5901"),
            ("70000", "\"70000\" is neither a port nor an address with one, as in 127.0.0.1:5901"),
            ("5901,password=x", "\"password=x\" is neither password-file=FILE nor open"),
            ("5901,password-file=a,open", "password-file and open exclude each other"),
            (
                "0.0.0.0:5901",
                "whoever reaches 0.0.0.0:5901 would be let in: add password-file=FILE, or open if \
                 that is meant",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err(), error);
        }
    }
}
