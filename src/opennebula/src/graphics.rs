//! `GRAPHICS` to the VNC console of a spec.
//!
//! `KEYMAP` is obeyed by having no effect: it tells QEMU which scan codes the client's characters come from, and a
//! terminal takes the characters themselves, whatever the layout.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ocivisor_core::error::Error;
use ocivisor_core::spec::{Graphics, Secret};

use crate::answer::Notes;
use crate::vm::Vector;
use crate::{clip, invalid};

/// The console that the template wishes for. `LISTEN` is the host's loopback if it is not given, as with libvirt.
///
/// # Errors
/// `LISTEN` or `PORT` is not what its name says.
pub(crate) fn graphics(
    template: Option<&Vector>,
    notes: &mut Notes,
) -> Result<Option<Graphics>, Error> {
    let Some(template) = template else { return Ok(None) };
    let get = |key: &str| template.get(key).map(|text| text.trim()).filter(|text| !text.is_empty());
    let kind = get("TYPE").unwrap_or_default();
    if !kind.eq_ignore_ascii_case("VNC") {
        let shown = clip(kind);
        notes.add(format_args!(
            "GRAPHICS/TYPE is {shown:?}: the guest's console is served by VNC alone"
        ));
        return Ok(None);
    }
    // oned gives one to every VM that it deploys.
    let Some(port) = get("PORT") else {
        notes.add("GRAPHICS has no PORT, so there is no VNC console");
        return Ok(None);
    };
    let number = port
        .parse()
        .map_err(|_| invalid(format!("GRAPHICS/PORT is {:?}: it is not a TCP port", clip(port))))?;
    let listen = get("LISTEN").map_or(Ok(IpAddr::from(Ipv4Addr::LOCALHOST)), |listen| {
        let what = || format!("GRAPHICS/LISTEN is {:?}: it is not an IP address", clip(listen));
        listen.parse().map_err(|_| invalid(what()))
    })?;
    if get("COMMAND").is_some() {
        notes.add("GRAPHICS/COMMAND has no effect: VNC shows the guest's console");
    }
    // Not trimmed: blanks may be part of it.
    let password = template.get("PASSWD").filter(|text| !text.is_empty());
    if password.is_none() && !listen.is_loopback() {
        let address = SocketAddr::new(listen, number);
        notes.add(format_args!(
            "GRAPHICS has no PASSWD: whoever reaches {address} types at the guest's console"
        ));
    }
    Ok(Some(Graphics { listen, port: number, password: password.cloned().map(Secret) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Result<Option<Graphics>, String>, Vec<String>) {
        let vector: Vector =
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut notes = Notes::default();
        let read = graphics(Some(&vector), &mut notes).map_err(|e| e.message);
        (read, notes.into_vec().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn vnc_is_served_where_and_as_it_is_wished() {
        let all = [
            ("TYPE", "VNC"),
            ("LISTEN", "0.0.0.0"),
            ("PORT", "5942"),
            ("PASSWD", "pw 1 "),
            ("KEYMAP", "de"),
        ];
        let wish = Graphics {
            listen: IpAddr::from([0, 0, 0, 0]),
            port: 5942,
            password: Some(Secret("pw 1 ".to_owned())),
        };
        assert_eq!(read(&all), (Ok(Some(wish)), vec![]));
        let least = Graphics { listen: Ipv4Addr::LOCALHOST.into(), port: 5900, password: None };
        let given = [("TYPE", "vnc"), ("PORT", "5900"), ("PASSWD", ""), ("LISTEN", "")];
        assert_eq!(read(&given), (Ok(Some(least)), vec![]));
        assert_eq!(graphics(None, &mut Notes::default()), Ok(None));
    }

    #[test]
    fn a_console_that_is_open_to_others_is_told() {
        let noted = |listen: &str, password: &str| {
            let given = [("LISTEN", listen), ("PASSWD", password)];
            read(&[&[("TYPE", "VNC"), ("PORT", "5900")], &given[..]].concat()).1
        };
        for (listen, address) in
            [("0.0.0.0", "0.0.0.0:5900"), ("2001:db8::1", "[2001:db8::1]:5900")]
        {
            let note = format!(
                "GRAPHICS has no PASSWD: whoever reaches {address} types at the guest's console"
            );
            assert_eq!(noted(listen, ""), [note]);
            assert_eq!(noted(listen, "secret"), [""; 0]);
        }
        for loopback in ["127.0.0.1", "::1", ""] {
            assert_eq!(noted(loopback, ""), [""; 0]);
        }
    }

    #[test]
    fn what_is_not_served_is_said_and_what_is_wrong_is_refused() {
        for (kind, note) in [
            ("SPICE", "GRAPHICS/TYPE is \"SPICE\": the guest's console is served by VNC alone"),
            ("", "GRAPHICS/TYPE is \"\": the guest's console is served by VNC alone"),
            ("VNC", "GRAPHICS has no PORT, so there is no VNC console"),
        ] {
            assert_eq!(read(&[("TYPE", kind)]), (Ok(None), vec![note.to_owned()]));
        }
        let (_, notes) = read(&[("TYPE", "VNC"), ("PORT", "5900"), ("COMMAND", "/bin/login")]);
        assert_eq!(notes, ["GRAPHICS/COMMAND has no effect: VNC shows the guest's console"]);
        for (key, value, error) in [
            ("PORT", "x", "GRAPHICS/PORT is \"x\": it is not a TCP port"),
            ("PORT", "65536", "GRAPHICS/PORT is \"65536\": it is not a TCP port"),
            ("LISTEN", "host", "GRAPHICS/LISTEN is \"host\": it is not an IP address"),
        ] {
            let given = [("TYPE", "VNC"), ("PORT", "5900"), (key, value)];
            // The last of a name counts.
            assert_eq!(read(&given).0.unwrap_err(), error);
        }
    }
}
