//! Whether a guest works, by the checks that its spec asks for. Pure.

use std::time::Duration;

use crate::spec::HealthCheck;

/// What is known of a guest's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Health {
    /// No check has succeeded yet, nor have enough failed.
    #[default]
    Starting,
    /// The last check succeeded, or too few have failed since.
    Healthy,
    /// As many checks in a row failed as its spec says.
    Unhealthy,
}

impl Health {
    /// Its name, as shown and sent.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// The checks of one guest so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checks {
    health: Health,
    failures: u32,
}

impl Checks {
    /// What they say.
    #[must_use]
    pub fn health(self) -> Health {
        self.health
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(self) -> u32 {
        self.failures
    }

    /// Takes in one more. `age`: how long the guest had run when the check began.
    #[must_use]
    pub fn after(self, spec: &HealthCheck, passed: bool, age: Duration) -> Self {
        if passed {
            return Self { health: Health::Healthy, failures: 0 };
        }
        // A guest that has worked once is not starting any more.
        if self.health == Health::Starting && age < spec.start_period {
            return self;
        }
        let failures = self.failures.saturating_add(1);
        let health = if failures >= spec.retries { Health::Unhealthy } else { self.health };
        Self { health, failures }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(retries: u32, start_period: u64) -> HealthCheck {
        HealthCheck {
            command: vec!["x".into()],
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            retries,
            start_period: Duration::from_secs(start_period),
            end: false,
        }
    }

    #[test]
    fn failures_while_it_starts_do_not_count_until_it_worked_once() {
        let (spec, early, late) = (spec(1, 10), Duration::from_secs(9), Duration::from_secs(10));
        let starting = Checks::default().after(&spec, false, early);
        assert_eq!(starting, Checks::default());
        assert_eq!(starting.after(&spec, false, late).health(), Health::Unhealthy);
        let worked = starting.after(&spec, true, early);
        assert_eq!(worked.health(), Health::Healthy);
        assert_eq!(worked.after(&spec, false, early).health(), Health::Unhealthy);
    }

    proptest! {
        #[test]
        fn unhealthy_is_who_failed_that_often_in_a_row(
            results in proptest::collection::vec(any::<bool>(), 0..40),
            retries in 1..5_u32,
        ) {
            let (spec, mut checks) = (spec(retries, 0), Checks::default());
            for (n, passed) in results.iter().enumerate() {
                let before = checks.health();
                checks = checks.after(&spec, *passed, Duration::ZERO);
                let row = results[..=n].iter().rev().take_while(|passed| !**passed).count();
                let expected = match (passed, row >= retries as usize) {
                    (true, _) => Health::Healthy,
                    (false, true) => Health::Unhealthy,
                    (false, false) => before,
                };
                prop_assert_eq!(checks.health(), expected);
                prop_assert_eq!(checks.failures() as usize, row);
            }
        }
    }
}
