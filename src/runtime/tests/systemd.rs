//! systemd as the first process. Needs a root filesystem in a tar archive (Debian 12 with
//! systemd-sysv and dbus will do), named by `OCIVISOR_TEST_SYSTEMD_TAR`.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::path::Path;

use common::Guest;
use common::session::{run, shell};
use ocivisor_core::spec::Resources;
use ocivisor_core::state::GuestKind;
use ocivisor_core::units::Bytes;

#[test]
fn systemd_boots_to_its_target_and_halts_on_request() {
    let archive = std::env::var_os("OCIVISOR_TEST_SYSTEMD_TAR");
    let archive = archive.expect("OCIVISOR_TEST_SYSTEMD_TAR is not set: use `cargo xtask test`");
    let mut guest = Guest::new(&["bash"]);
    guest.spec.resources = Resources { memory: Bytes::mib(512), ..guest.spec.resources.clone() };
    guest.unpack(Path::new(&archive));
    guest.boot_until("embedded", "login:");
    let facts = guest.facts.unwrap();
    assert_eq!((facts.kind, facts.stop_signal), (GuestKind::System, 37));
    let report = run(
        &guest,
        "1",
        shell(
            "systemctl is-system-running --wait; systemctl --failed --no-legend --plain; \
             systemd-detect-virt; systemctl show -p Virtualization,DefaultTasksMax; \
             systemctl --no-pager status | head -40; systemctl list-jobs; hostname; \
             systemd-cgls --no-pager | head -30; systemd-run --wait --pipe id",
        ),
    );
    eprintln!("{}{}", report.out, report.err);
    eprintln!("{}", guest.console());
    assert!(report.out.starts_with("running\n"), "{}{}", report.out, report.err);
    let init = rustix::process::Pid::from_raw(guest.init.unwrap().cast_signed()).unwrap();
    let status = std::process::Command::new("kill")
        .args(["-37", &init.as_raw_nonzero().to_string()])
        .status();
    assert!(status.unwrap().success());
    let end = guest.wait_exit();
    eprintln!("{end}\n{}", guest.console());
}
