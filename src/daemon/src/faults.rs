//! Fault points: places where tests kill the daemon. Compiled in by the feature `faults` alone.
//!
//! `OCIVISOR_FAULT=<operation>.<point>` names one: operation `deploy`, `start`, …; point
//! `intended`, `committed`, `undoing`, `before-<step>` or `after-<step>` with the names of
//! [`Step::name`](ocivisor_core::plan::Step::name).

use ocivisor_core::engine::Point;

/// Name of a point.
#[cfg_attr(not(feature = "faults"), allow(dead_code, reason = "used by the feature and by tests"))]
pub fn name(point: Point) -> String {
    match point {
        Point::Intended => "intended".into(),
        Point::Before(step) => format!("before-{}", step.name()),
        Point::After(step) => format!("after-{}", step.name()),
        Point::Undoing => "undoing".into(),
        Point::Committed => "committed".into(),
    }
}

/// Dies here by SIGKILL if this is the point that the environment names.
#[cfg(feature = "faults")]
pub fn hit(operation: &str, point: Point) {
    let Ok(wanted) = std::env::var("OCIVISOR_FAULT") else { return };
    if wanted == format!("{operation}.{}", name(point)) {
        let me = nix::unistd::Pid::this();
        // Nothing after this line runs, as after a kill from outside.
        let _ = nix::sys::signal::kill(me, nix::sys::signal::Signal::SIGKILL);
    }
}

/// The boot of the host that `OCIVISOR_FAULT_BOOT` pretends: a test cannot boot its host.
#[cfg(feature = "faults")]
pub fn boot(boot: String) -> String {
    std::env::var("OCIVISOR_FAULT_BOOT").unwrap_or(boot)
}

/// As it is: the feature is off.
#[cfg(not(feature = "faults"))]
pub fn boot(boot: String) -> String {
    boot
}

/// Nothing: the feature is off.
#[cfg(not(feature = "faults"))]
pub fn hit(_operation: &str, _point: Point) {}
