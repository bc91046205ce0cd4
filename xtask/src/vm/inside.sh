#!/bin/sh
# Runs the chosen tests inside of the VM, says how it went, and ends the VM. See load.rs.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C INSTA_UPDATE=no RUST_BACKTRACE=0
export OCIVISOR_BIN_DIR=/task/programs
# shellcheck source=/dev/null
. /task/systems
# Processors are emulated.
export OCIVISOR_TEST_SETTLE_MS=1500

repository=$(cat /task/repository.path)
mkdir -p "${repository%/*}"
ln -s /task/repository "$repository"
cd "$repository" || exit 1

bad=0
# As packages have it loaded at boot: so all guests of all tests run under it.
if [ -e /sys/kernel/security/apparmor/profiles ]; then
    apparmor_parser -r src/daemon/apparmor/ocivisor-guest || bad=1
fi
cp src/daemon/udev/60-ocivisor.rules /etc/udev/rules.d/ || bad=1
udevadm control --reload || bad=1
echo "kernel $(uname -r), $(systemctl --version | head -n 1), $(stat -f -c %T /sys/fs/cgroup)"
/task/programs/ocivisor doctor || bad=1
seconds() { cut -d . -f 1 /proc/uptime; }
while read -r suite parts; do
    echo "== $suite $parts ($(seconds) s after the boot)"
    # shellcheck disable=SC2086 # words on purpose
    "/task/tests/$suite" --test-threads=1 --include-ignored $parts </dev/null || bad=1
done </task/selection
echo "== end ($(seconds) s after the boot)"
echo "vm-result $bad"
systemctl poweroff --force --force
