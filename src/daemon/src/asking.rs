//! Questions to registries that a client waits for.
//!
//! A registry may take as long as it likes to say nothing, and each question holds a thread meanwhile.
//! So few are asked at once, those of admins apart from those of operators; each has a deadline, its
//! wait for a turn included; and one whose client hung up is given up. A turn is over when its thread
//! is, which may be a little later than the answer: there are never more threads than turns.

use std::sync::Arc;
use std::time::Duration;

use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_datastore::Cancel;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::caller::Caller;
use crate::vms::blocking;

/// Most questions at once of admins, and of operators.
const AT_ONCE: usize = 4;
/// How long one may take: a manifest and a config are a few requests. Well below
/// [`ocivisor_rpc::methods::Patience::Poll`], so that clients get our answer.
const WITHIN: Duration = Duration::from_secs(30);

/// Turns to ask.
#[derive(Debug)]
pub struct Asking {
    operators: Arc<Semaphore>,
    admins: Arc<Semaphore>,
    within: Duration,
}

impl Default for Asking {
    fn default() -> Self {
        Self::new(AT_ONCE, WITHIN)
    }
}

/// Gives a question up when nobody waits for it any more.
struct GiveUp(Cancel);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Asking {
    fn new(at_once: usize, within: Duration) -> Self {
        let turns = || Arc::new(Semaphore::new(at_once));
        Self { operators: turns(), admins: turns(), within }
    }

    fn turns(&self, caller: Caller) -> &Arc<Semaphore> {
        match caller {
            Caller::Admin(_) => &self.admins,
            Caller::Operator(_) => &self.operators,
        }
    }

    /// Asks, on a thread that may wait; `question` heeds its [`Cancel`]. `what` is for messages.
    ///
    /// # Errors
    /// `Exhausted`: no turn in time. `Timeout`: no answer in time. What the question says.
    pub async fn ask<T: Send + 'static>(
        &self,
        caller: Caller,
        what: &str,
        question: impl FnOnce(&Cancel) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (until, seconds) = (Instant::now() + self.within, self.within.as_secs());
        let turn = timeout_at(until, Arc::clone(self.turns(caller)).acquire_owned()).await;
        // Closed never: an error of the inner kind would only mean no limit.
        let Ok(turn) = turn else {
            let what = format!("{what}: as many questions as may be are waiting for registries");
            return Err(Error::new(ErrorKind::Exhausted, what).hint("try again in a moment"));
        };
        let cancel = Cancel::new();
        let _give_up = GiveUp(cancel.clone());
        let answer = blocking(move || {
            let _turn = turn;
            question(&cancel)
        });
        timeout_at(until, answer).await.unwrap_or_else(|_| {
            let what = format!("{what}: no answer within {seconds} s");
            let hint =
                "can this host reach the registry? see its mirrors and proxy in ocivisor.toml";
            Err(Error::new(ErrorKind::Timeout, what).hint(hint))
        })?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocivisor_datastore::{
        Limits, Registries, RegistriesConfig, RegistryConfig, RegistryReference,
    };

    const ROOT: Caller = Caller::Admin(0);
    const ONE: Caller = Caller::Operator(1001);
    const LONG: Duration = Duration::from_secs(60);

    async fn all_turns_are_free(asking: &Asking) {
        for turns in [&asking.admins, &asking.operators] {
            drop(tokio::time::timeout(LONG, turns.acquire()).await.unwrap().unwrap());
        }
    }

    #[tokio::test]
    async fn a_registry_that_never_answers_is_given_up_with_its_thread() {
        // Connections are made by the kernel, and nobody ever takes one.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = silent.local_addr().unwrap().to_string();
        let mut config = RegistriesConfig::default();
        let plain = RegistryConfig { plain_http: true, ..RegistryConfig::default() };
        config.hosts.insert(host.parse().unwrap(), plain);
        let registries = Registries::new(config);
        let reference: RegistryReference = format!("{host}/team/app:1").parse().unwrap();
        let asking = Asking::new(1, Duration::from_millis(300));
        for caller in [ONE, ROOT] {
            let (registries, reference) = (registries.clone(), reference.clone());
            let question = move |cancel: &Cancel| {
                let asked = registries.inspect(&reference, &Limits::default(), cancel);
                asked.map_err(|e| Error::new(ErrorKind::Image, e))
            };
            let error = asking.ask(caller, "stat app", question).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Timeout);
            assert_eq!(error.message, "stat app: no answer within 0 s");
        }
        all_turns_are_free(&asking).await;
    }

    #[tokio::test]
    async fn operators_wait_for_a_turn_no_longer_than_for_an_answer_and_keep_none_from_admins() {
        let asking = Arc::new(Asking::new(1, Duration::from_millis(300)));
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let stubborn = move |_: &Cancel| {
            // Ends when the other side is dropped.
            let _ = gate.recv();
            Ok(())
        };
        let error = asking.ask(ONE, "a", stubborn).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
        // Its thread has not ended yet.
        let error = asking.ask(ONE, "b", |_| Ok(())).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Exhausted);
        asking.ask(ROOT, "c", |_| Ok(())).await.unwrap();
        drop(open);
        all_turns_are_free(&asking).await;
        asking.ask(ONE, "d", |_| Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_asked_on() {
        let asking = Asking::new(1, LONG);
        let (told, begun) = tokio::sync::oneshot::channel();
        let question = move |cancel: &Cancel| {
            told.send(()).unwrap();
            while !cancel.is_cancelled() {
                std::thread::yield_now();
            }
            Ok(())
        };
        // The client hangs up once it is being asked.
        tokio::select! {
            _ = asking.ask(ONE, "a", question) => panic!("nobody answers"),
            begun = begun => begun.unwrap(),
        }
        all_turns_are_free(&asking).await;
    }
}
