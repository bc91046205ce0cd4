//! The document that an agent's start prints: everything at once, so that the host is known before the first message.
//!
//! Each text is base64, not compressed and not encrypted: it goes back through ssh.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::{Error, one_line};

use super::MessageKind;

/// What a start says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Firsts(String);

impl Firsts {
    /// Adds what was found out.
    pub fn add(&mut self, kind: MessageKind, text: &str) -> &mut Self {
        self.element(kind.name(), &STANDARD.encode(text));
        self
    }

    /// The document, when all was found out at that time, in seconds since 1970.
    #[must_use]
    pub fn document(mut self, time: u64) -> String {
        self.element("TIMESTAMP", &time.to_string());
        self.closed()
    }

    /// The document, when one thing could not be found out. In clear: it is read by people, in the monitor's log.
    #[must_use]
    pub fn failed(mut self, kind: MessageKind, error: &Error) -> String {
        let text = one_line(&error.to_string());
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        self.element(kind.name(), &text);
        self.closed()
    }

    fn element(&mut self, name: &str, content: &str) {
        self.0.push_str(&format!("<{name}>{content}</{name}>\n"));
    }

    fn closed(self) -> String {
        format!("<MONITOR_MESSAGES>{}</MONITOR_MESSAGES>\n", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_says_everything_or_what_failed() {
        let mut firsts = Firsts::default();
        firsts.add(MessageKind::SystemHost, "A=1\n").add(MessageKind::ExecVm, "");
        assert_eq!(
            firsts.clone().document(1_795_202_262),
            "<MONITOR_MESSAGES><SYSTEM_HOST>QT0xCg==</SYSTEM_HOST>\n<EXEC_VM></EXEC_VM>\n\
             <TIMESTAMP>1795202262</TIMESTAMP>\n</MONITOR_MESSAGES>\n"
        );
        let failed = firsts.failed(MessageKind::StateVm, &crate::invalid("no <daemon>"));
        assert!(failed.ends_with("<STATE_VM>no &lt;daemon&gt;</STATE_VM>\n</MONITOR_MESSAGES>\n"));
    }
}
