//! `USER_TEMPLATE/OCI` to [`Boot`]: what the guest runs instead of what its image says.
//!
//! ```text
//! OCI = [ ENTRYPOINT = "/bin/sh -c", CMD = "[\"sleep\", \"1000\"]", ENV = "A=1,B=2",
//!         USER = "app:app", WORKDIR = "/srv", STOP_SIGNAL = "SIGQUIT",
//!         STOP_TIMEOUT = "60", INIT = "application" ]
//! ```
//!
//! * `ENTRYPOINT`, `CMD`: a JSON array of strings if the first character is `[`, else words split
//!   by the quoting rules of sh, with no expansion whatever ([`crate::words`]). After an
//!   `ENTRYPOINT` that ends in `-c` (`/bin/sh -c`), a `CMD` that is no array is the script: one
//!   argument, as in Docker's shell form.
//! * `ENV`: a JSON object of strings if the first character is `{`, else `NAME=value` joined by
//!   commas; values with commas need the object.
//! * `STOP_SIGNAL`: name with or without `SIG`, or number.
//! * `STOP_TIMEOUT`: seconds that the guest may take to end, 1 to 600.
//! * `INIT`: `auto`, `system` or `application`.
//! * `ISOLATION`: a profile that the host must grant; see `spec`.
//!
//! The tenant can edit all of it at any time. It is data for the inside of the guest: nothing here
//! may widen what the guest is allowed to do, and an unknown key has no effect but a note.

use std::time::Duration;

use ocivisor_core::error::Error;
use ocivisor_core::ids::IdRange;
use ocivisor_core::spec::{Boot, InitKind};
use serde_json::Value;

use crate::answer::Notes;
use crate::vm::Vector;
use crate::{clip, decimal, invalid, signal, words};

pub(crate) fn boot(oci: Option<&Vector>, notes: &mut Notes) -> Result<Boot, Error> {
    let (mut boot, mut cmd) = (Boot::default(), None);
    for (key, value) in oci.into_iter().flatten() {
        match key.as_str() {
            "ENTRYPOINT" => {
                // An empty one cannot be run; OpenNebula users write "" to leave a field out.
                boot.entrypoint = Some(argv(key, value)?).filter(|argv| !argv.is_empty());
            }
            "CMD" => cmd = Some(value.as_str()),
            "ENV" => boot.env = env(value)?,
            "USER" => boot.user = Some(user(value)?),
            "WORKDIR" => boot.workdir = Some(workdir(value)?),
            "STOP_SIGNAL" => boot.stop_signal = Some(stop_signal(value)?),
            "STOP_TIMEOUT" => boot.stop_timeout = Some(stop_timeout(value)?),
            "INIT" => boot.init = init(value)?,
            // Of the whole spec.
            "ISOLATION" => {}
            // Of resources.rs.
            "IO_WEIGHT" => {}
            other => notes.add(format_args!("OCI/{} is unknown and has no effect", clip(other))),
        }
    }
    if let Some(cmd) = cmd {
        let last = boot.entrypoint.as_ref().and_then(|argv| argv.last());
        let script = last.is_some_and(|word| word == "-c") && !cmd.trim_start().starts_with('[');
        boot.cmd = Some(if script { vec![cmd.to_owned()] } else { argv("CMD", cmd)? });
    }
    Ok(boot)
}

fn bad(key: &str, value: &str, rule: &str) -> Error {
    invalid(format!("the template's OCI/{key} is {:?}: {rule}", clip(value)))
}

fn argv(key: &str, value: &str) -> Result<Vec<String>, Error> {
    if !value.trim_start().starts_with('[') {
        return words::split(value).map_err(|what| bad(key, value, &format!("it has {what}")));
    }
    serde_json::from_str::<Vec<String>>(value)
        .map_err(|_| bad(key, value, "it begins with [ but is no JSON array of strings"))
}

fn env(value: &str) -> Result<Vec<(String, String)>, Error> {
    let pairs: Vec<(String, String)> = if value.trim_start().starts_with('{') {
        let wrong = || bad("ENV", value, "it begins with { but is no JSON object of strings");
        let object: Value = serde_json::from_str(value).map_err(|_| wrong())?;
        let object = object.as_object().ok_or_else(wrong)?;
        let pair = |(k, v): (&String, &Value)| Some((k.clone(), v.as_str()?.to_owned()));
        object.iter().map(|kv| pair(kv).ok_or_else(wrong)).collect::<Result<_, _>>()?
    } else {
        let parts = value.split(',').filter(|part| !part.trim().is_empty());
        let pair = |part: &str| {
            let (name, text) = part.split_once('=').ok_or_else(|| {
                bad("ENV", part, "it is not NAME=value")
                    .hint("values with commas need the form {\"NAME\": \"value\"}")
            })?;
            Ok((name.trim().to_owned(), text.to_owned()))
        };
        parts.map(pair).collect::<Result<_, Error>>()?
    };
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == '=';
    match pairs.iter().find(|(name, _)| name.is_empty() || name.contains(odd)) {
        Some((name, _)) => Err(bad("ENV", name, "it is no name of a variable")),
        None => Ok(pairs),
    }
}

fn user(value: &str) -> Result<String, Error> {
    let part = |part: &str| {
        let digits = part.bytes().all(|c| c.is_ascii_digit());
        let known = decimal(part).is_some_and(|id| id < IdRange::LEN);
        let odd = |c: char| c.is_control() || c.is_whitespace() || c == ':' || c == '/';
        !part.is_empty() && !part.starts_with('-') && !part.contains(odd) && (!digits || known)
    };
    let (name, group) = value.split_once(':').map_or((value, None), |(n, g)| (n, Some(g)));
    if value.len() <= 256 && part(name) && group.is_none_or(part) {
        Ok(value.to_owned())
    } else {
        Err(bad("USER", value, "it is not user or user:group, names or 0 to 65535"))
    }
}

fn workdir(value: &str) -> Result<String, Error> {
    if value.starts_with('/') && value.len() < 4096 && !value.contains(char::is_control) {
        Ok(value.to_owned())
    } else {
        Err(bad("WORKDIR", value, "it is no absolute path"))
    }
}

fn stop_signal(value: &str) -> Result<u8, Error> {
    signal::number(value).ok_or_else(|| bad("STOP_SIGNAL", value, "there is no such signal"))
}

/// A shutdown holds one of the driver's threads, of which oned has few for all hosts: a tenant's wish
/// is bounded.
const MAX_STOP_SECONDS: u32 = 600;

fn stop_timeout(value: &str) -> Result<Duration, Error> {
    match decimal(value) {
        Some(seconds @ 1..=MAX_STOP_SECONDS) => Ok(Duration::from_secs(seconds.into())),
        _ => Err(bad("STOP_TIMEOUT", value, "it is no number of seconds, 1 to 600")),
    }
}

fn init(value: &str) -> Result<InitKind, Error> {
    match value.to_ascii_lowercase().as_str() {
        "auto" => Ok(InitKind::Auto),
        "system" => Ok(InitKind::System),
        "application" => Ok(InitKind::Application),
        _ => Err(bad("INIT", value, "it is not auto, system or application")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<(Boot, Vec<String>), Error> {
        let oci = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let mut notes = Notes::default();
        let boot = boot(Some(&oci), &mut notes)?;
        Ok((boot, notes.into_vec().iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn nothing_leaves_everything_to_the_image() {
        assert_eq!(boot(None, &mut Notes::default()).unwrap(), Boot::default());
        assert_eq!(of(&[]).unwrap().0, Boot::default());
        let blank = of(&[("ENTRYPOINT", " "), ("ENV", " , ")]).unwrap().0;
        assert_eq!(blank, Boot::default());
    }

    #[test]
    fn all_keys_are_translated() {
        let (made, notes) = of(&[
            ("ENTRYPOINT", "/bin/sh -c"),
            ("CMD", r#"["echo $HOME; id", "b\nc"]"#),
            ("ENV", "A=1,B=2=3, C=,"),
            ("USER", "app:100"),
            ("WORKDIR", "/srv"),
            ("STOP_SIGNAL", "SIGRTMIN+3"),
            ("STOP_TIMEOUT", "60"),
            ("INIT", "System"),
        ])
        .unwrap();
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let want = Boot {
            init: InitKind::System,
            entrypoint: Some(vec!["/bin/sh".into(), "-c".into()]),
            cmd: Some(vec!["echo $HOME; id".into(), "b\nc".into()]),
            env: vec![pair("A", "1"), pair("B", "2=3"), pair("C", "")],
            user: Some("app:100".into()),
            workdir: Some("/srv".into()),
            stop_signal: Some(37),
            stop_timeout: Some(Duration::from_secs(60)),
        };
        assert_eq!((made, notes), (want, vec![]));
    }

    #[test]
    fn a_command_after_a_shell_is_one_script() {
        let (made, _) = of(&[("CMD", "sleep 1000"), ("ENTRYPOINT", "/bin/sh -c")]).unwrap();
        assert_eq!(made.cmd, Some(vec!["sleep 1000".to_owned()]));
        let (made, _) = of(&[("CMD", "sleep 1000"), ("ENTRYPOINT", "/sbin/tini --")]).unwrap();
        assert_eq!(made.cmd, Some(vec!["sleep".to_owned(), "1000".to_owned()]));
    }

    #[test]
    fn environment_as_an_object_keeps_commas() {
        let (made, _) = of(&[("ENV", r#"{"L": "a,b", "M": ""}"#)]).unwrap();
        assert_eq!(made.env, [("L".into(), "a,b".into()), ("M".into(), String::new())]);
    }

    #[test]
    fn unknown_keys_have_no_effect_but_a_note() {
        let (made, notes) = of(&[("PRIVILEGED", "YES")]).unwrap();
        assert_eq!(made, Boot::default());
        assert_eq!(notes, ["OCI/PRIVILEGED is unknown and has no effect"]);
    }

    #[test]
    fn hostile_values_are_refused() {
        for (key, value) in [
            ("ENTRYPOINT", "[1]"),
            ("ENTRYPOINT", "[\"a\""),
            ("CMD", "'open"),
            ("ENV", "A"),
            ("ENV", "A=1,2"),
            ("ENV", "=1"),
            ("ENV", "A B=1"),
            ("ENV", "{\"A\": 1}"),
            ("ENV", "{\"A\\n\": \"1\"}"),
            ("USER", "root\nroot"),
            ("USER", "-1"),
            ("USER", "65536"),
            ("USER", "4294967296"),
            ("USER", "0:0:0"),
            ("USER", "a:"),
            ("USER", "00"),
            ("WORKDIR", "srv"),
            ("WORKDIR", "/a\0b"),
            ("STOP_SIGNAL", "SIGNOPE"),
            ("STOP_TIMEOUT", "0"),
            ("STOP_TIMEOUT", "601"),
            ("STOP_TIMEOUT", "1m"),
            ("INIT", "/bin/sh"),
        ] {
            assert!(of(&[(key, value)]).is_err(), "{key}={value:?}");
        }
    }
}
