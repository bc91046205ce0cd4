//! A small real root filesystem: Debian's static busybox.

use std::path::Path;

use crate::tool;

/// Writes a root filesystem tar with busybox, its applets as links, users and an init.
pub fn busybox(tar: &Path) {
    busybox_with(tar, &[]);
}

/// The same with more files, or others: path and content.
pub fn busybox_with(tar: &Path, files: &[(&str, &str)]) {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    for dir in
        ["bin", "sbin", "etc", "proc", "sys", "dev", "tmp", "root", "run", "var", "etc/init.d"]
    {
        std::fs::create_dir(path(dir)).unwrap();
    }
    std::fs::copy("/bin/busybox", path("bin/busybox")).expect("busybox-static is installed");
    let applets = tool(&["/bin/busybox", "--list"]);
    for applet in applets.lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("/bin/busybox", path("bin").join(applet)).unwrap();
    }
    std::os::unix::fs::symlink("/bin/busybox", path("sbin/init")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();
    write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n");
    write("etc/group", "root:x:0:\napp:x:1000:\n");
    write("etc/inittab", "::sysinit:/bin/true\nconsole::respawn:-/bin/sh\n::shutdown:/bin/true\n");
    // What makes a system of it: without boot scripts a busybox is but a toolbox.
    write("etc/init.d/rcS", "#!/bin/sh\nmount -t proc proc /proc 2>/dev/null\n");
    tool(&["chmod", "755", &path("etc/init.d/rcS").display().to_string()]);
    tool(&["chmod", "1777", &path("tmp").display().to_string()]);
    files.iter().for_each(|(name, text)| write(name, text));
    let (root, tar) = (root.path().display().to_string(), tar.display().to_string());
    tool(&["tar", "--numeric-owner", "--owner=0", "--group=0", "-C", &root, "-cf", &tar, "."]);
}
