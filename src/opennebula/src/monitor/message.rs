//! A message to OpenNebula's monitor: `<TYPE> <SUCCESS|FAILURE> <host> <time> <payload>`, in a datagram or alone on a TCP
//! connection.
//!
//! The payload is base64 of zlib of the text; if the monitor has a key, of the encrypted text.

use std::io::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use ocivisor_core::error::{Error, ErrorKind, Result};

use super::PublicKey;

/// Most bytes of a message by UDP: what a datagram can hold, less what tunnels may need. The monitor reads 64 KiB.
pub const MAX_DATAGRAM: usize = 60_000;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageKind {
    /// The host is there.
    BeaconHost,
    /// What the host is.
    SystemHost,
    /// What the host uses.
    MonitorHost,
    /// States of VMs.
    StateVm,
    /// What VMs use.
    MonitorVm,
    /// Commands in VMs.
    ExecVm,
}

impl MessageKind {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::BeaconHost => "BEACON_HOST",
            Self::SystemHost => "SYSTEM_HOST",
            Self::MonitorHost => "MONITOR_HOST",
            Self::StateVm => "STATE_VM",
            Self::MonitorVm => "MONITOR_VM",
            Self::ExecVm => "EXEC_VM",
        }
    }

    /// Whether its loss would matter: then it goes by TCP, whatever its size.
    #[must_use]
    pub fn matters(self) -> bool {
        matches!(self, Self::StateVm | Self::ExecVm)
    }
}

/// A message before it is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// What about.
    pub kind: MessageKind,
    /// Whether the text is what was to be found out; else it says why that failed.
    pub success: bool,
    /// The host's number.
    pub host: u32,
    /// Seconds since 1970. The monitor drops what is older than the last of its kind.
    pub time: u64,
    /// The text.
    pub text: &'a str,
}

impl Message<'_> {
    /// The bytes to send. `random` fills a buffer with bytes that nobody can guess; it is asked only if there is a key.
    ///
    /// # Errors
    /// What `random` says.
    pub fn pack(
        &self,
        key: Option<&PublicKey>,
        random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<String> {
        let encrypted;
        let bytes = match key {
            Some(key) => {
                encrypted = key.encrypt(self.text.as_bytes(), random)?;
                encrypted.as_slice()
            }
            None => self.text.as_bytes(),
        };
        // Numbers in base64 hardly become smaller by more effort: a sixth, for more than twice the time.
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        let packed = zlib.write_all(bytes).and_then(|()| zlib.finish());
        let packed = packed.map_err(|e| Error::new(ErrorKind::Host, format!("compress: {e}")))?;
        let status = if self.success { "SUCCESS" } else { "FAILURE" };
        let Self { kind, host, time, .. } = self;
        Ok(format!("{} {status} {host} {time} {}", kind.name(), STANDARD.encode(packed)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn unpack(message: &str) -> (Vec<&str>, String) {
        let mut words: Vec<&str> = message.split(' ').collect();
        let bytes = STANDARD.decode(words.pop().unwrap()).unwrap();
        let mut text = String::new();
        flate2::read::ZlibDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
        (words, text)
    }

    #[test]
    fn a_message_is_five_words_and_its_text_comes_back() {
        let mut none = |_: &mut [u8]| panic!("without a key nothing is random");
        for text in ["", "VM=[ID=\"29\",DEPLOY_ID=\"one-29\",STATE=\"RUNNING\"]\n", "ü"] {
            let message = Message {
                kind: MessageKind::StateVm,
                success: true,
                host: 0,
                time: 1_795_205_340,
                text,
            };
            let packed = message.pack(None, &mut none).unwrap();
            let words = vec!["STATE_VM", "SUCCESS", "0", "1795205340"];
            assert_eq!(unpack(&packed), (words, text.to_owned()));
        }
    }

    #[test]
    fn recorded_messages_have_the_form_that_we_write() {
        let recorded = include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/fixtures/opennebula/monitor-messages.log"
        ));
        let mut kinds = std::collections::BTreeSet::new();
        for line in recorded.lines() {
            let (by, message) = (line.split(' ').nth(1), line.splitn(4, ' ').nth(3).unwrap());
            let (words, text) = unpack(message);
            let kind = [
                MessageKind::BeaconHost,
                MessageKind::SystemHost,
                MessageKind::MonitorHost,
                MessageKind::StateVm,
                MessageKind::MonitorVm,
                MessageKind::ExecVm,
            ];
            let kind = kind.into_iter().find(|kind| kind.name() == words[0]).unwrap();
            kinds.insert(kind);
            assert_eq!(kind == MessageKind::StateVm, by == Some("tcp"));
            let again = Message {
                kind,
                success: words[1] == "SUCCESS",
                host: words[2].parse().unwrap(),
                time: words[3].parse().unwrap(),
                text: &text,
            };
            let again = again.pack(None, &mut |_| Ok(())).unwrap();
            assert_eq!(unpack(&again), (words, text));
        }
        assert_eq!(kinds.len(), 6);
    }
}
