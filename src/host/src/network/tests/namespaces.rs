use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use ocivisor_core::error::ErrorKind;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::*;
use crate::command;

fn inodes(host: &Host, id: &VmId) -> [u64; 2] {
    let run = host.layout.run_vm(id);
    [run.user_ns(), run.net_ns()].map(|path| fs::metadata(path).unwrap().ino())
}

fn nsenter(host: &Host, id: &VmId, argv: &[&str]) -> String {
    let run = host.layout.run_vm(id);
    let user = format!("--user={}", run.user_ns().display());
    let net = format!("--net={}", run.net_ns().display());
    let all: Vec<&str> = ["nsenter", &user, &net, "--"].iter().chain(argv).copied().collect();
    String::from_utf8(command::run(&all, Duration::from_secs(20)).unwrap()).unwrap()
}

#[test]
fn a_process_that_joins_the_pins_has_the_id_range_and_owns_the_network() {
    on_a_host(|host| {
        let id = host.vm("one-1");
        for map in ["uid_map", "gid_map"] {
            let map = nsenter(host, &id, &["cat", &format!("/proc/self/{map}")]);
            assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "1000000", "65536"]);
        }
        // Only an owner may change the network from within its own user namespace.
        nsenter(host, &id, &["sysctl", "-w", "net.ipv4.ip_forward=1"]);
        assert_eq!(nsenter(host, &id, &["sysctl", "-n", "net.ipv4.ip_forward"]), "1\n");
        assert_eq!(host.addresses_inside(&id, "lo"), ["127.0.0.1/8", "::1/128"]);
        assert_eq!(host.inside(&id, interfaces), ["lo"]);
    });
}

#[test]
fn ensuring_twice_keeps_the_namespaces_and_another_range_makes_new_ones() {
    on_a_host(|host| {
        let id = host.vm("one-1");
        let first = inodes(host, &id);
        host.network.ensure_namespaces(&id, IDS).unwrap();
        assert_eq!(inodes(host, &id), first);
        host.network.ensure_namespaces(&id, IdRange { base: 2_000_000 }).unwrap();
        let map = nsenter(host, &id, &["cat", "/proc/self/uid_map"]);
        assert_eq!(map.split_whitespace().nth(1), Some("2000000"));
    });
}

#[test]
fn no_process_stays_behind_and_only_root_gets_at_the_pins() {
    on_a_host(|host| {
        let id = host.vm("one-1");
        let dir = fs::metadata(super::super::namespaces::dir(&host.layout.run_vm(&id))).unwrap();
        assert_eq!(dir.mode() & 0o7777, 0o700);
        let me = fs::read_to_string("/proc/thread-self/children").unwrap();
        assert_eq!(me, "");
    });
}

#[test]
fn dropping_frees_the_namespaces_and_all_files_and_may_be_repeated() {
    on_a_host(|host| {
        let before = host.everything();
        let id = host.vm("one-1");
        // The kernel forgets the number of a namespace when the namespace ends.
        let net = fs::File::open(host.layout.run_vm(&id).net_ns()).unwrap();
        number_namespace(&net, 7);
        drop(net);
        assert_eq!(numbered(), [7]);
        host.network.drop_namespaces(&id).unwrap();
        assert_eq!(host.everything(), before);
        wait_for("the namespace to end", || match numbered() {
            ids if ids.is_empty() => Ok(()),
            ids => Err(ids),
        });
        host.network.drop_namespaces(&id).unwrap();
        assert_eq!(host.everything(), before);
    });
}

#[test]
fn leftovers_of_any_shape_are_reused_or_cleared() {
    type Shape = fn(&Host, &VmId);
    let file_without_mount: Shape = |host, id| {
        fs::create_dir_all(host.layout.run_vm(id).dir().join("ns")).unwrap();
        fs::File::create(host.layout.run_vm(id).user_ns()).unwrap();
    };
    let only_user: Shape = |host, id| {
        host.network.ensure_namespaces(id, IDS).unwrap();
        let net = host.layout.run_vm(id).net_ns();
        unmount(&net, UnmountFlags::DETACH).unwrap();
        fs::remove_file(net).unwrap();
    };
    let stacked: Shape = |host, id| {
        host.network.ensure_namespaces(id, IDS).unwrap();
        let run = host.layout.run_vm(id);
        for path in [run.user_ns(), run.net_ns(), run.net_ns()] {
            mount_bind(&path, &path).unwrap();
        }
    };
    let mixed_up: Shape = |host, id| {
        let other: VmId = "one-2".parse().unwrap();
        host.network.ensure_namespaces(&other, IDS).unwrap();
        host.network.ensure_namespaces(id, IDS).unwrap();
        mount_bind(host.layout.run_vm(&other).user_ns(), host.layout.run_vm(id).user_ns()).unwrap();
        host.network.drop_namespaces(&other).unwrap();
    };
    let something_else: Shape = |host, id| {
        let run = host.layout.run_vm(id);
        fs::create_dir_all(run.dir().join("ns")).unwrap();
        for path in [run.user_ns(), run.net_ns()] {
            fs::File::create(&path).unwrap();
            mount_bind("/proc/self/status", &path).unwrap();
        }
    };
    let empty_dir: Shape =
        |host, id| fs::create_dir_all(host.layout.run_vm(id).dir().join("ns")).unwrap();
    let shapes = [file_without_mount, only_user, stacked, mixed_up, something_else, empty_dir];
    for (at, shape) in shapes.into_iter().enumerate() {
        on_a_host(|host| {
            let before = host.everything();
            let id: VmId = "one-1".parse().unwrap();
            shape(host, &id);
            assert!(host.network.observe_network().unwrap().contains(&id), "shape {at}");
            host.network.ensure_namespaces(&id, IDS).unwrap();
            nsenter(host, &id, &["true"]);
            host.network.drop_namespaces(&id).unwrap();
            shape(host, &id);
            host.network.drop_namespaces(&id).unwrap();
            assert_eq!(host.everything(), before, "shape {at}");
        });
    }
}

#[test]
fn files_of_others_in_the_run_directory_stay() {
    on_a_host(|host| {
        let id = host.vm("one-1");
        let other = host.layout.run_vm(&id).bundle();
        fs::create_dir(&other).unwrap();
        host.network.drop_namespaces(&id).unwrap();
        assert!(other.exists());
        assert!(!host.network.observe_network().unwrap().contains(&id));
    });
}

#[test]
fn copies_in_other_mount_namespaces_do_not_keep_a_namespace_alive() {
    on_a_host(|host| {
        // As on a host where systemd made / shared and a service has a mount namespace of its own.
        use rustix::mount::{MountPropagationFlags as P, mount_change};
        let run = &host.layout.run;
        fs::create_dir(run).unwrap();
        mount_bind(run, run).unwrap();
        mount_change(run, P::SHARED).unwrap();
        let (tell, told) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let (ready, wait) = std::sync::mpsc::channel();
            let service = scope.spawn(move || {
                unshare(CloneFlags::CLONE_NEWNS).unwrap();
                ready.send(()).unwrap();
                told.recv().unwrap();
            });
            wait.recv().unwrap();
            let id = host.vm("one-1");
            let net = fs::File::open(host.layout.run_vm(&id).net_ns()).unwrap();
            number_namespace(&net, 7);
            drop(net);
            host.network.drop_namespaces(&id).unwrap();
            wait_for("the namespace to end", || match numbered() {
                ids if ids.is_empty() => Ok(()),
                ids => Err(ids),
            });
            tell.send(()).unwrap();
            service.join().unwrap();
        });
        unmount(run, UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn an_unusable_run_directory_is_named_and_nothing_is_left() {
    on_a_host(|host| {
        fs::File::create(&host.layout.run).unwrap();
        let id: VmId = "one-1".parse().unwrap();
        let error = host.network.ensure_namespaces(&id, IDS).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Host);
        let run = host.layout.run.display();
        assert!(error.message.starts_with("namespaces of one-1: "), "{error}");
        assert!(error.message.contains(&format!("{run}/vms/one-1/ns")), "{error}");
    });
}
