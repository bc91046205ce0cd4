//! Who may do what, with processes that really are other users. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use common::{Running, golden_dir, run};
use ocivisor_rpc::RolePolicy;
use ocivisor_rpc::methods::METHODS;
use ocivisor_rpc::peer::Role;

/// Ids that nobody has.
const OWNERS: u32 = 54_321;
const OPERATORS: u32 = 54_322;
const READERS: u32 = 54_323;
const USER: u32 = 54_324;
const ADMIN: u32 = 54_325;

/// What each method answers a user in these groups.
async fn answers(server: &Running, uid: u32, gid: u32, groups: &[u32]) -> BTreeMap<String, String> {
    // The goldens and the script may be where other users cannot read.
    let dir = server.path.parent().unwrap();
    let script = dir.join("roles.py");
    std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/roles.py"), &script).unwrap();
    let mut args = vec![
        script.to_str().unwrap().to_owned(),
        server.path.to_str().unwrap().to_owned(),
        uid.to_string(),
        gid.to_string(),
        groups.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
    ];
    for method in METHODS {
        let name = format!("{}.request.json", method.name);
        let copy = dir.join(&name);
        std::fs::copy(golden_dir().join(&name), &copy).unwrap();
        args.push(copy.to_str().unwrap().to_owned());
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    run("python3", &args)
        .await
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, answer)| (name.to_owned(), answer.to_owned()))
        .collect()
}

fn server() -> Running {
    server_with(|_| ())
}

fn server_with(change: impl FnOnce(&mut ocivisor_rpc::ServerConfig)) -> Running {
    let server = Running::start(|config| {
        change(config);
        config.group = Some(OWNERS);
        config.policy = RolePolicy {
            admin_uids: vec![0, ADMIN],
            operate_gids: vec![OPERATORS],
            read_gids: vec![READERS],
        };
    });
    let dir = server.path.parent().unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    server
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_user_may_what_its_groups_allow() {
    let server = server();
    for (uid, gid, groups, role) in [
        (USER, USER, vec![OWNERS], None),
        (USER, USER, vec![OWNERS, READERS], Some(Role::Read)),
        (USER, OWNERS, vec![READERS, OPERATORS], Some(Role::Operate)),
        (USER, OPERATORS, vec![OWNERS], Some(Role::Operate)),
        (ADMIN, OWNERS, vec![], Some(Role::Admin)),
        // Group 0 is not user 0.
        (USER, 0, vec![OWNERS], None),
    ] {
        let got = answers(&server, uid, gid, &groups).await;
        let want: BTreeMap<String, String> = METHODS
            .iter()
            .map(|method| {
                let allowed = role >= Some(method.role);
                let answer = if allowed { "ok" } else { "1004" };
                (method.name.to_owned(), answer.to_owned())
            })
            .collect();
        assert_eq!(got, want, "{uid} {gid} {groups:?}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mode_of_the_socket_keeps_others_out() {
    let server = server();
    let got = answers(&server, USER, USER, &[READERS]).await;
    assert_eq!(got.len(), METHODS.len());
    assert!(got.values().all(|answer| answer == "cannot connect"), "{got:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_who_take_all_places_do_not_shut_out_root() {
    let server = server_with(|config| config.max_connections = 8);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fill.py");
    let groups = format!("{OWNERS},{OPERATORS}");
    // Half of the eight for one user, what is left of seven for the other.
    let (one, other) = (format!("{USER}:6"), format!("{}:6", USER + 100));
    let socket = server.path.to_str().unwrap();
    let said = run("python3", &[script, socket, &groups, "5", &one, &other]).await;
    assert_eq!(said, "5 HTTP/1.1 503 Service Unavailable\n200 True\n");
    server.stop().await;
}
