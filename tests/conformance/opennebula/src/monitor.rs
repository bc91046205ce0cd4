//! monitord: it begins the agent of a host by ssh, listens, and has oned hear what the agent says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ocivisor_tests::{PATIENCE, repository, wait_for_option};

use crate::cloud::Cloud;
use crate::drivers::{lock, unbase64};
use crate::endpoint::{Endpoint, Message};
use crate::xml::Element;

/// What monitors a host. Its agent stays when this is gone, as that of a real one does.
#[derive(Debug)]
pub struct Monitor {
    heard: Arc<Mutex<Vec<Result<Message, String>>>>,
    done: Arc<AtomicBool>,
    hearing: Option<JoinHandle<()>>,
}

impl Cloud {
    /// Begins to monitor a host (`START_MONITOR`): drivers are copied, the agent begun, its first answer heard.
    ///
    /// # Panics
    /// The agent does not begin.
    #[must_use]
    pub fn monitor(&self, host: &str) -> Monitor {
        let begun = self.oned.begin_monitoring(host, || self.try_to_monitor(host));
        begun.unwrap_or_else(|why| panic!("{why}\n{}", self.node(host).log()))
    }

    /// The same once, as `one_im_ssh` does before it tries again.
    ///
    /// # Errors
    /// What the script said that was to begin it.
    ///
    /// # Panics
    /// It says what is no answer.
    pub fn try_to_monitor(&self, host: &str) -> Result<Monitor, String> {
        let node = self.node(host);
        let number = self.oned.model().host(host).expect("a host").id;
        // Who sends to the front-end sends to the address that its ssh came from, here the host's loopback.
        let endpoint = Endpoint::open_in(node.process());
        let place = &self.oned.drivers.place;
        place.sync(host);
        let location = place.location();
        let configuration = configuration(number, endpoint.address().port(), &location);
        let said = self.client("run_monitord_client", host, number, &configuration)?;
        let first = Element::read(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
        let told = |key: &str| {
            let packed = first.at(key).map(Element::text).unwrap_or_default();
            String::from_utf8(unbase64(packed).expect("base64")).expect("UTF-8")
        };
        assert!(told("SYSTEM_HOST").contains("HYPERVISOR=ocivisor\n"), "{said}");
        self.oned.hear_states(host, &told("STATE_VM"));
        let (heard, done) = (Arc::<Mutex<Vec<_>>>::default(), Arc::new(AtomicBool::new(false)));
        let (list, end, oned) = (Arc::clone(&heard), Arc::clone(&done), Arc::clone(&self.oned));
        let hearing = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let Some(message) = endpoint.next(Duration::from_millis(50)) else { continue };
                if let Ok(message) = &message {
                    oned.hear(message);
                }
                lock(&list).push(message);
            }
        });
        Ok(Monitor { heard, done, hearing: Some(hearing) })
    }

    /// Ends the agent of a host (`STOP_MONITOR`).
    ///
    /// # Panics
    /// It does not end.
    pub fn stop_monitoring(&self, host: &str) {
        let number = self.oned.model().host(host).expect("a host").id;
        // A script that says nothing is told to oned as this.
        assert_eq!(self.client("stop_monitord_client", host, number, "").as_deref(), Ok("-"));
        assert_eq!(self.node(host).agent(), None);
    }

    fn client(&self, script: &str, host: &str, number: u32, stdin: &str) -> Result<String, String> {
        let args = [self.monitoring.as_str(), &number.to_string(), host];
        self.oned.drivers.monitor_client(script, &args, host, stdin.as_bytes())
    }

    /// Waits until a VM is in a state, by whatever is heard meanwhile.
    #[track_caller]
    pub fn becomes(&self, vm: u32, state: &str) {
        let done = wait_for_option(PATIENCE, || (self.state(vm).0 == state).then_some(()));
        assert!(done.is_some(), "VM {vm} is {:?}, not {state}", self.state(vm));
    }
}

impl Monitor {
    /// What was heard since this was last asked.
    ///
    /// # Panics
    /// Something else than messages came.
    #[must_use]
    pub fn take(&self) -> Vec<Message> {
        let heard = std::mem::take(&mut *lock(&self.heard));
        heard.into_iter().map(|message| message.expect("a message")).collect()
    }

    /// Waits for a message of that kind with that text in it.
    ///
    /// # Panics
    /// None comes.
    #[track_caller]
    pub fn hears(&self, kind: &str, text: &str) -> Message {
        self.hears_that(kind, text, |payload| payload.contains(text))
    }

    /// Waits for a message of that kind whose payload is so; `what` says how.
    ///
    /// # Panics
    /// None comes.
    #[track_caller]
    pub fn hears_that(&self, kind: &str, what: &str, fits: impl Fn(&str) -> bool) -> Message {
        let fits = |message: &Message| message.kind == kind && fits(&message.payload);
        let found = wait_for_option(PATIENCE, || {
            let heard = lock(&self.heard);
            heard.iter().flatten().find(|message| fits(message)).cloned()
        });
        found.unwrap_or_else(|| panic!("no {kind} with {what}: {:#?}", lock(&self.heard)))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(hearing) = self.hearing.take() {
            let _failed = hearing.join();
        }
    }
}

/// The recorded configuration with this host's number, that port and place, and periods of a second.
fn configuration(number: u32, port: u16, location: &str) -> String {
    let recorded = repository().join("tests/fixtures/opennebula/monitor-configuration.xml");
    let mut text = std::fs::read_to_string(recorded).unwrap();
    let mut replace = |from: &str, to: String| {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, &to);
    };
    replace("<PORT><![CDATA[4124]]>", format!("<PORT><![CDATA[{port}]]>"));
    replace("<HOST_ID>0<", format!("<HOST_ID>{number}<"));
    replace("/var/lib/one//datastores", location.to_owned());
    for (kind, seconds, own) in [
        ("BEACON_HOST", 30, 1),
        ("EXEC_VM", 5, 1),
        ("MONITOR_HOST", 120, 1),
        ("MONITOR_VM", 30, 1),
        ("STATE_VM", 5, 1),
        ("SYNC_STATE_VM", 180, 1),
        ("SYSTEM_HOST", 600, 2),
    ] {
        let to = format!("<{kind}><![CDATA[{own}]]>");
        replace(&format!("<{kind}><![CDATA[{seconds}]]>"), to);
    }
    text
}
