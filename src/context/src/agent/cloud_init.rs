//! cloud-init: a seed in `/var/lib/cloud/seed`, of a config drive or of what we know.
//!
//! A config drive is put where cloud-init looks for its files in a directory (`config_drive`). Otherwise we make a
//! NoCloud seed: JSON, which is YAML, so that nothing needs quoting. Keys, password and time zone go into
//! `vendor-data`, which `user-data` of the tenant (OpenNebula's `USER_DATA`) overrides.
//!
//! The network is not cloud-init's affair: the interfaces have their addresses before the guest begins, and the
//! daemons that it would start for them wait for devices that udev knows, of which a guest has none. Only if an
//! interface has no address from us it is told to ask the network for one.
//!
//! cloud-init does most things once per `instance-id`: ours changes with what is told, and only then; the SSH host
//! keys are made anew for the first one alone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ocivisor_core::error::{Error, ErrorKind, Result};
use ocivisor_core::spec::{NicSpec, Password, Route, VmSpec};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::Disk;
use crate::password;
use crate::root::Access;
use crate::state::Seed;
use crate::wish::{Thing, Weight, Wish};

const NOCLOUD: &str = "/var/lib/cloud/seed/nocloud";
const CONFIG_DRIVE: &str = "/var/lib/cloud/seed/config_drive";
/// Read before what a seed or drive says of the network.
const LEAVE_NETWORK: &str = "/etc/cloud/cloud.cfg.d/99-ocivisor.cfg";

/// The files of a config drive.
///
/// # Errors
/// `Invalid`: it holds too much. `Host`: it cannot be read.
pub fn config_drive<'a>(disk: &Disk<'a>, nics: &[NicSpec]) -> Result<Vec<Wish<'a>>> {
    let wish = |(path, content)| {
        let thing = Thing::File(content, Access::root(0o600));
        Wish { path: format!("{CONFIG_DRIVE}/{path}"), thing, weight: Weight::Asked }
    };
    let files = disk.all_files()?.into_iter().map(wish);
    Ok(files.chain(leave_network(nics)).collect())
}

fn leave_network<'a>(nics: &[NicSpec]) -> Option<Wish<'a>> {
    const TEXT: &str = "# Written by ocivisor: the network is set from outside.\n\
        network: {config: disabled}\n";
    let ready = nics.iter().all(|nic| !nic.addresses.is_empty());
    ready.then(|| Wish::file(LEAVE_NETWORK, TEXT, 0o644, Weight::Asked))
}

/// A NoCloud seed, and what to remember of it; `seed` is what is remembered of the last one, of this VM.
///
/// # Errors
/// `Host`: the password cannot be hashed.
pub fn nocloud<'a>(
    spec: &VmSpec,
    password: Option<&Password>,
    variables: &[(String, String)],
    seed: Option<&Seed>,
) -> Result<(Vec<Wish<'a>>, Seed)> {
    let (crypted, made) = match password {
        None => (None, None),
        Some(Password::Crypted(secret)) => (Some(secret.0.clone()), None),
        // In clear it is not for the guest's disk; and another salt would be another seed.
        Some(Password::Plain(secret)) => {
            let known = seed.and_then(|seed| seed.password.clone());
            let known = known.filter(|known| password::is_hash_of(known, &secret.0));
            let crypted = known.map_or_else(|| password::hash(&secret.0), Ok)?;
            (Some(crypted.clone()), Some(crypted))
        }
    };
    let config = config(spec, crypted.as_deref());
    let user_data = user_data(variables).unwrap_or_else(|| b"#cloud-config\n{}\n".to_vec());
    let mut digest = Sha256::new();
    for part in [spec.hostname.as_str().as_bytes(), config.to_string().as_bytes(), &user_data] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let print = hex::encode(digest.finalize());
    let number = match seed {
        Some(seed) if seed.print == print => seed.number,
        Some(seed) => seed.number.saturating_add(1),
        None => 1,
    };
    let mut config = config;
    config["ssh_deletekeys"] = json!(number == 1);
    let meta = json!({
        "instance-id": format!("{}-{number}", spec.id),
        "local-hostname": spec.hostname.as_str(),
    });
    let text = |value: &Value| {
        let text = serde_json::to_string_pretty(value);
        text.map(|text| format!("{text}\n"))
            .map_err(|e| Error::new(ErrorKind::Host, format!("seed for cloud-init: {e}")))
    };
    let file = |name: &str, content: Vec<u8>| {
        Wish::file(&format!("{NOCLOUD}/{name}"), content, 0o600, Weight::Asked)
    };
    let mut wishes = vec![
        file("meta-data", text(&meta)?.into()),
        file("vendor-data", format!("#cloud-config\n{}", text(&config)?).into()),
        file("user-data", user_data),
    ];
    wishes.push(match leave_network(&spec.nics) {
        Some(wish) => wish,
        None => file("network-config", text(&network(&spec.nics))?.into()),
    });
    Ok((wishes, Seed { number, print, password: made }))
}

/// Keys, user, password and time zone as a cloud-config.
fn config(spec: &VmSpec, password: Option<&str>) -> Value {
    let context = &spec.context;
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    let name = context.user.as_deref().unwrap_or("root");
    match &context.user {
        Some(user) => set(
            "users",
            json!([{
                "name": user,
                "ssh_authorized_keys": context.ssh_keys,
                "lock_passwd": password.is_none(),
                "shell": "/bin/bash",
            }]),
        ),
        // The image's own user gets them as well.
        None if !context.ssh_keys.is_empty() => {
            set("ssh_authorized_keys", json!(context.ssh_keys));
            set("disable_root", json!(false));
        }
        None => {}
    }
    if let Some(password) = password {
        // "list" is what all releases know; it tells hashes from passwords by their form. Whether sshd takes passwords
        // is the image's affair, as where we write the password ourselves.
        set("chpasswd", json!({"expire": false, "list": [format!("{name}:{password}")]}));
    }
    if let Some(zone) = &context.timezone {
        set("timezone", json!(zone));
    }
    Value::Object(config)
}

/// OpenNebula's `USER_DATA`, in base64 unless its encoding says otherwise.
fn user_data(variables: &[(String, String)]) -> Option<Vec<u8>> {
    let get = |names: [&str; 2]| {
        variables.iter().find(|(name, value)| names.contains(&name.as_str()) && !value.is_empty())
    };
    let (_, text) = get(["USER_DATA", "USERDATA"])?;
    let encoding = get(["USER_DATA_ENCODING", "USERDATA_ENCODING"]);
    let plain = text.starts_with('#') || encoding.is_some_and(|(_, e)| e != "base64");
    let decoded = || STANDARD.decode(text.split_whitespace().collect::<String>()).ok();
    if plain { Some(text.clone().into()) } else { decoded().or_else(|| Some(text.clone().into())) }
}

/// Version 2 of cloud-init's network configuration. The addresses are there already; this keeps them.
fn network(nics: &[NicSpec]) -> Value {
    let mut ethernets = Map::new();
    for nic in nics {
        let addresses: Vec<String> =
            nic.addresses.iter().map(|(address, length)| format!("{address}/{length}")).collect();
        let mut ethernet = json!({
            "match": {"macaddress": nic.mac.to_string()},
            "set-name": nic.guest_name(),
            // Who gives no address leaves it to the network.
            "dhcp4": addresses.is_empty(),
            "addresses": addresses,
            "routes": nic.routes.iter().map(route).collect::<Vec<_>>(),
        });
        if let Some(mtu) = nic.mtu {
            ethernet["mtu"] = json!(mtu);
        }
        if !nic.dns.is_empty() || !nic.search.is_empty() {
            let servers: Vec<String> = nic.dns.iter().map(ToString::to_string).collect();
            let domains: Vec<&str> = nic.search.iter().map(|domain| domain.as_str()).collect();
            ethernet["nameservers"] = json!({"addresses": servers, "search": domains});
        }
        ethernets.insert(nic.guest_name(), ethernet);
    }
    json!({"version": 2, "ethernets": ethernets})
}

fn route(route: &Route) -> Value {
    let to = match route.destination {
        Some((address, length)) => format!("{address}/{length}"),
        None if route.gateway.is_ipv4() => "0.0.0.0/0".to_owned(),
        None => "::/0".to_owned(),
    };
    let mut value = json!({"to": to, "via": route.gateway.to_string(), "on-link": true});
    if let Some(metric) = route.metric {
        value["metric"] = json!(metric);
    }
    value
}

#[cfg(test)]
mod tests {
    use ocivisor_core::spec::Secret;

    use super::*;
    use crate::content::Content;
    use crate::testing::spec;

    fn seed(
        spec: &VmSpec,
        password: Option<&str>,
        last: Option<&Seed>,
    ) -> (Vec<(String, String)>, Seed) {
        let password = password.map(|text| Password::Plain(Secret(text.into())));
        let vars = [("USER_DATA".to_owned(), "I2Nsb3VkLWNvbmZpZwphOiBiCg==".to_owned())];
        let (wishes, seed) = nocloud(spec, password.as_ref(), &vars, last).unwrap();
        let text = |wish: &Wish<'_>| match &wish.thing {
            Thing::File(Content::Bytes(bytes), access) => {
                // Passwords are in it, or may be.
                let mode = if wish.path.starts_with(NOCLOUD) { 0o600 } else { 0o644 };
                assert_eq!(*access, Access::root(mode), "{}", wish.path);
                String::from_utf8(bytes.clone()).unwrap()
            }
            other => panic!("{other:?}"),
        };
        (wishes.iter().map(|w| (w.path.clone(), text(w))).collect(), seed)
    }

    #[test]
    fn a_seed_holds_all_that_is_told() {
        let mut one = spec();
        one.context.ssh_keys = vec!["ssh-ed25519 AAAA: x\"y".into()];
        one.context.timezone = Some("Europe/Madrid".into());
        let (files, _) = seed(&one, Some("pw"), None);
        let names: Vec<&str> =
            files.iter().map(|(path, _)| path.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["meta-data", "vendor-data", "user-data", "99-ocivisor.cfg"]);
        let vendor = files[1].1.strip_prefix("#cloud-config\n").unwrap();
        let vendor: Value = serde_json::from_str(vendor).unwrap();
        let told = vendor["chpasswd"]["list"][0].as_str().unwrap().to_owned();
        assert!(password::is_hash_of(told.strip_prefix("root:").unwrap(), "pw"), "{told}");
        assert_eq!(
            vendor,
            json!({
                "ssh_authorized_keys": ["ssh-ed25519 AAAA: x\"y"],
                "disable_root": false,
                "chpasswd": {"expire": false, "list": [told]},
                "timezone": "Europe/Madrid",
                "ssh_deletekeys": true,
            })
        );
        assert_eq!(files[2].1, "#cloud-config\na: b\n");
        assert!(files[3].1.ends_with("\nnetwork: {config: disabled}\n"), "{}", files[3].1);
    }

    #[test]
    fn an_interface_without_an_address_asks_the_network_for_one() {
        let mut one = spec();
        one.nics[0].dns = vec!["10.0.0.1".parse().unwrap()];
        one.nics[0].routes = vec![Route {
            destination: None,
            gateway: "10.0.0.1".parse().unwrap(),
            metric: Some(5),
        }];
        let mut second = one.nics[0].clone();
        (second.index, second.addresses, second.routes) = (1, Vec::new(), Vec::new());
        one.nics.push(second);
        let (files, _) = seed(&one, None, None);
        assert!(files[3].0.ends_with("/nocloud/network-config"));
        let network: Value = serde_json::from_str(&files[3].1).unwrap();
        assert_eq!(network["ethernets"]["eth1"]["dhcp4"], json!(true));
        assert_eq!(
            network["ethernets"]["eth0"],
            json!({
                "match": {"macaddress": "02:00:0a:00:00:05"},
                "set-name": "eth0",
                "dhcp4": false,
                "addresses": ["10.0.0.5/24", "10.0.0.6/24", "fd00::5/64"],
                "routes": [{"to": "0.0.0.0/0", "via": "10.0.0.1", "on-link": true, "metric": 5}],
                "nameservers": {"addresses": ["10.0.0.1"], "search": []},
            })
        );
    }

    #[test]
    fn the_instance_changes_with_what_is_told_and_keeps_its_host_keys() {
        let mut one = spec();
        let (first, remembered) = seed(&one, None, None);
        assert!(first[0].1.contains("\"one-7-1\""), "{}", first[0].1);
        let (again, same) = seed(&one, None, Some(&remembered));
        assert_eq!((again, &same), (first, &remembered));
        one.context.user = Some("dev".into());
        let (changed, third) = seed(&one, Some("pw"), Some(&remembered));
        assert!(
            changed[0].1.contains("\"one-7-2\"")
                && changed[1].1.contains("\"ssh_deletekeys\": false")
        );
        assert!(changed[1].1.contains("\"dev:$6$") && third.number == 2);
        assert!(!changed[1].1.contains("pw\""), "not in clear");
        // The same password is the same seed.
        let (again, fourth) = seed(&one, Some("pw"), Some(&third));
        assert_eq!((again, fourth), (changed, third));
    }
}
