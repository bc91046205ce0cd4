//! Asks the kernel for what a guest must not get, and prints the answers: `name errno`, 0 if it
//! was given. Runs inside guests of this crate's tests.
#![allow(unsafe_code, reason = "raw system calls are its purpose")]

fn main() {
    const NEWUSER: libc::c_long = 0x1000_0000;
    let ask = |name: &str, number: libc::c_long, args: [libc::c_long; 5]| {
        let [a, b, c, d, e] = args;
        // SAFETY: pointers are null, so the kernel refuses before it would use any; nothing that is
        // given by mistake harms more than this process.
        let result = unsafe { libc::syscall(number, a, b, c, d, e) };
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        println!("{name} {}", if result < 0 { errno } else { 0 });
    };
    ask("bpf", libc::SYS_bpf, [0; 5]);
    ask("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0]);
    ask("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0, 0, 0]);
    ask("perf_event_open", libc::SYS_perf_event_open, [0; 5]);
    ask("keyctl", libc::SYS_keyctl, [0, -3, 0, 0, 0]);
    ask("add_key", libc::SYS_add_key, [0; 5]);
    ask("request_key", libc::SYS_request_key, [0; 5]);
    ask("kexec_load", libc::SYS_kexec_load, [0; 5]);
    ask("init_module", libc::SYS_init_module, [0; 5]);
    ask("finit_module", libc::SYS_finit_module, [0; 5]);
    ask("open_by_handle_at", libc::SYS_open_by_handle_at, [-100, 0, 0, 0, 0]);
    ask("settimeofday", libc::SYS_settimeofday, [0; 5]);
    ask("swapon", libc::SYS_swapon, [0; 5]);
    ask("syslog", libc::SYS_syslog, [3, 0, 0, 0, 0]);
    ask("clone3", libc::SYS_clone3, [0; 5]);
    ask("unknown", 5000, [0; 5]);
    for (name, family, kind) in [
        ("unix", libc::AF_UNIX, libc::SOCK_STREAM),
        ("inet", libc::AF_INET, libc::SOCK_STREAM),
        ("inet6", libc::AF_INET6, libc::SOCK_DGRAM),
        ("netlink", libc::AF_NETLINK, libc::SOCK_RAW),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW),
        ("alg", libc::AF_ALG, libc::SOCK_SEQPACKET),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM),
        ("xdp", libc::AF_XDP, libc::SOCK_RAW),
        ("x25", libc::AF_X25, libc::SOCK_SEQPACKET),
        ("rds", libc::AF_RDS, libc::SOCK_SEQPACKET),
    ] {
        let (family, kind) = (libc::c_long::from(family), libc::c_long::from(kind));
        ask(&format!("socket-{name}"), libc::SYS_socket, [family, kind, 0, 0, 0]);
    }
    ask("mount", libc::SYS_mount, [0; 5]);
    ask("fsopen", libc::SYS_fsopen, [0; 5]);
    ask("setns", libc::SYS_setns, [-1, 0, 0, 0, 0]);
    ask("pivot_root", libc::SYS_pivot_root, [0; 5]);
    ask("sethostname", libc::SYS_sethostname, [0; 5]);
    // The magic numbers are wrong on purpose.
    ask("reboot", libc::SYS_reboot, [0; 5]);
    ask("unshare-user", libc::SYS_unshare, [NEWUSER, 0, 0, 0, 0]);
    ask("unshare-user-and-more", libc::SYS_unshare, [NEWUSER | 0x0002_0000, 0, 0, 0, 0]);
    ask("unshare-files", libc::SYS_unshare, [0x0000_0400, 0, 0, 0, 0]);
    ask("clone-user", libc::SYS_clone, [NEWUSER | 17, 0, 0, 0, 0]);
}
