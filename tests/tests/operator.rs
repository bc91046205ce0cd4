//! A platform's user, who is in the operators' group and nothing else on the host.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use ocivisor_tests::{Call, Host, tool};

/// Number of the user and of his group.
const OPERATOR: u32 = 54_321;
const ACCESS: &str = "[access]\noperate_gid = 54321\noperate_dirs = [\"@DIR@/ds\"]\n";

#[test]
fn operators_drive_vms_on_their_disks_and_nothing_else() {
    let host = Host::start_with(ACCESS);
    let disk = host.add_disk(0);
    tool(&["chown", "-R", "54321:54321", &host.vm_dir(0).display().to_string()]);
    let before = host.counts();
    let ask = |arguments: &[&str]| host.as_user(OPERATOR, &host.cli_command(arguments), b"");

    // The first command of a fresh daemon may be his.
    assert_eq!(ask(&["list"]).code, 0);
    let deploy = Call::recorded(&host, "0079-vmm-deploy");
    let answer = host.as_user(OPERATOR, &host.driver_command(&deploy), &deploy.stdin);
    assert_eq!((answer.code, answer.out.as_str()), (0, "one-0\n"), "{answer:?}");
    // The guest's own, as seen by its own sessions and console.
    let inside = ask(&["exec", "one-0", "--", "id", "-u"]);
    assert_eq!((inside.code, inside.out.as_str()), (0, "0\n"), "{inside:?}");
    let shown = ask(&["console", "--read-only", "one-0"]);
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.err.contains("one-0: console attached"), "{shown:?}");
    let cancel = Call::recorded(&host, "0119-vmm-cancel").for_vm(2, 0);
    assert_eq!(host.as_user(OPERATOR, &host.driver_command(&cancel), &cancel.stdin).code, 0);
    assert_eq!(host.counts(), before);

    // Exit code 5: he may not.
    let elsewhere = host.dir().join("elsewhere").display().to_string();
    let size = ["--image", "busybox", "--size", "64MiB"];
    assert_eq!(ask(&[&["disk", "create"], &size[..], &[&elsewhere]].concat()).code, 5);
    assert_eq!(ask(&["image", "import", "rootfs:/etc/shadow", "x"]).code, 5);
    assert_eq!(ask(&["image", "import", "/etc/shadow", "x"]).code, 5);
    assert_eq!(ask(&["image", "rm", "busybox"]).code, 5);

    // A directory of his that became a link leads nowhere.
    let dir = host.vm_dir(0);
    tool(&["mv", &dir.display().to_string(), &host.dir().join("moved").display().to_string()]);
    std::os::unix::fs::symlink(host.dir().join("moved"), &dir).unwrap();
    let answer = host.as_user(OPERATOR, &host.driver_command(&deploy), &deploy.stdin);
    assert_eq!(answer.code, 1);
    assert!(answer.err.contains("not below a directory open to operators"), "{answer:?}");
    assert!(disk.exists());

    // Who is in no group is nobody.
    let stranger = host.as_user(OPERATOR + 1, &host.cli_command(&["list"]), b"");
    assert_eq!(stranger.code, 5, "{stranger:?}");
}
