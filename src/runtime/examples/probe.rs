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
    // Family, type, protocol. AF_SMC is 43, SOCK_PACKET 10; libc does not know all of them.
    for (name, family, kind, protocol) in [
        ("unix", libc::AF_UNIX, libc::SOCK_STREAM, 0),
        ("unix-seqpacket", libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0),
        ("inet", libc::AF_INET, libc::SOCK_STREAM, 0),
        ("tcp", libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, libc::IPPROTO_TCP),
        ("tcp6", libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP),
        ("inet6", libc::AF_INET6, libc::SOCK_DGRAM, 0),
        ("udp", libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::IPPROTO_UDP),
        ("udp6", libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        ("raw-icmp", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        ("raw-icmp6", libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6),
        ("raw-vrrp", libc::AF_INET, libc::SOCK_RAW, 112),
        ("raw-mptcp", libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_MPTCP),
        ("mptcp", libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        ("mptcp6", libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_MPTCP),
        ("smc-of-inet", libc::AF_INET, libc::SOCK_STREAM, 256),
        ("sctp", libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP),
        ("sctp-seqpacket", libc::AF_INET6, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP),
        ("dccp", libc::AF_INET, libc::SOCK_DCCP, libc::IPPROTO_DCCP),
        ("l2tp", libc::AF_INET, libc::SOCK_DGRAM, 115),
        ("udplite", libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE),
        ("packet-of-inet", libc::AF_INET, 10, 0x0300),
        ("netlink", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE),
        ("uevent", libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_KOBJECT_UEVENT),
        ("diag", libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_SOCK_DIAG),
        ("netfilter", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER),
        ("generic", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC),
        ("audit", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT),
        ("xfrm", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_XFRM),
        ("crypto", libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_CRYPTO),
        ("netlink-31", libc::AF_NETLINK, libc::SOCK_RAW, 31),
        ("packet", libc::AF_PACKET, libc::SOCK_RAW, 0),
        ("alg", libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        ("vsock", libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ("smc", 43, libc::SOCK_STREAM, 0),
        ("xdp", libc::AF_XDP, libc::SOCK_RAW, 0),
        ("x25", libc::AF_X25, libc::SOCK_SEQPACKET, 0),
        ("rds", libc::AF_RDS, libc::SOCK_SEQPACKET, 0),
    ] {
        let args = [family.into(), kind.into(), protocol.into(), 0, 0];
        ask(&format!("socket-{name}"), libc::SYS_socket, args);
    }
    // The kernel takes the lower 32 bits of each, the filter sees all 64.
    let rubbish = 1 << 32;
    let [inet, stream, sctp] = [libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP];
    let [inet, stream, sctp] = [inet, stream, sctp].map(libc::c_long::from);
    ask("rubbish-family", libc::SYS_socket, [inet | rubbish, stream, sctp, 0, 0]);
    ask("rubbish-type", libc::SYS_socket, [inet, stream | rubbish, sctp, 0, 0]);
    ask("rubbish-protocol", libc::SYS_socket, [inet, stream, sctp | rubbish, 0, 0]);
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
