//! Documents of an attacker.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use std::fs;
use std::time::Duration;

use ocivisor_opennebula::vmm::{self, VmmCall};
use ocivisor_opennebula::{fuzz, xml};
use proptest::prelude::*;

const FILE: &str = "/var/lib/one//datastores/0/7/deployment.0";

fn template(rest: &str, user: &str) -> String {
    format!(
        "<VM><ID>7</ID><NAME>n</NAME><TEMPLATE><CPU>1</CPU><MEMORY>64</MEMORY>{rest}</TEMPLATE>\
         <USER_TEMPLATE>{user}</USER_TEMPLATE></VM>"
    )
}

const DISK: &str = "<DISK><DISK_ID>0</DISK_ID><TYPE>FILE</TYPE></DISK>";

/// What this thread has had of a processor: unlike a clock it does not run while others are served.
/// `proc_pid_stat(5)`: fields 14 and 15 of `stat`, in hundredths of a second.
fn processor() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap());
    Duration::from_millis(10 * ticks.sum::<u64>())
}

/// Refused with one line, and fast: `deploy` runs under a lock of the host.
fn refuse(document: &[u8]) {
    let start = processor();
    let refusal = vmm::plan("deploy", &[FILE, "h", "7", "h"], document).unwrap_err();
    let took = processor().saturating_sub(start);
    let shown = String::from_utf8_lossy(&document[..document.len().min(100)]);
    assert!(took < Duration::from_secs(2), "{took:?}: {shown}");
    let said = refusal.answer().stderr;
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("Cannot deploy VM 7: ") && said.ends_with(".\n"), "{said}");
    assert!(said.len() < 1200, "{said}");
}

#[test]
fn bombs_and_floods_are_refused() {
    let mut laughs = String::from("<?xml version=\"1.0\"?><!DOCTYPE l [<!ENTITY a0 \"ha\">");
    for n in 1..40 {
        let refs = format!("&a{};", n - 1).repeat(10);
        laughs += &format!("<!ENTITY a{n} \"{refs}\">");
    }
    laughs += "]><VM><ID>7</ID><NAME>&a39;</NAME></VM>";
    refuse(laughs.as_bytes());
    refuse(b"<!DOCTYPE VM SYSTEM \"file:///etc/shadow\"><VM><ID>7</ID></VM>");
    refuse("<a>".repeat(1_000_000).as_bytes());
    refuse(&vec![b'<'; xml::MAX_INPUT]);
    refuse(&vec![b'&'; xml::MAX_INPUT]);
    refuse(&vec![b'a'; xml::MAX_INPUT + 1]);
    refuse(b"<VM><ID>7</ID><NAME>\xff\xfe</NAME></VM>");
    refuse(b"PFZNPjxJRD43PC9JRD48L1ZNPg==");
    refuse(b"\0");
    refuse(b"");
}

#[test]
fn floods_of_devices_and_keys_cost_no_time() {
    let many = |one: &dyn Fn(usize) -> String, count| (0..count).map(one).collect::<String>();
    let disk = |n| format!("<DISK><DISK_ID>{n}</DISK_ID></DISK>");
    let nic = |n| format!("<NIC><NIC_ID>{n}</NIC_ID><MAC>02:00:00:00:00:01</MAC></NIC>");
    let eth = |n| format!("<ETH{n}_MAC>02:00:00:00:00:02</ETH{n}_MAC>");
    let alias = |n| format!("<ETH0_ALIAS{n}_IP6>fd00::{:x}</ETH0_ALIAS{n}_IP6>", n % 65_536);
    let context = |keys: &str| format!("<CONTEXT><NETWORK>YES</NETWORK>{keys}</CONTEXT>");
    refuse(template(&many(&nic, 30_000), "").as_bytes());
    refuse(template(&(nic(0) + &nic(1) + &context(&many(&eth, 60_000)) + DISK), "").as_bytes());
    refuse(template(&(nic(0) + &context(&many(&alias, 60_000)) + DISK), "").as_bytes());
    refuse(template(&many(&disk, 60_000), "").replace("DISK_ID>5<", "DISK_ID>4<").as_bytes());
    let boot = format!("<OS><BOOT>{}disk9</BOOT></OS>{DISK}", "disk0,".repeat(500_000));
    refuse(template(&boot, "").as_bytes());
    let env = |n| format!("A{n}=1,");
    let oci = format!("<OCI><ENV>{}</ENV></OCI>", many(&env, 300_000));
    refuse(template(DISK, &oci).as_bytes());
    let json = format!("<OCI><CMD>{}</CMD></OCI>", "[".repeat(1_000_000));
    refuse(template(DISK, &json).as_bytes());
}

#[test]
fn doubtful_devices_are_refused() {
    for rest in [
        "<DISK><DISK_ID>-1</DISK_ID></DISK>",
        "<DISK><DISK_ID>0/../../x</DISK_ID></DISK>",
        "<DISK><DISK_ID>0</DISK_ID><DISK_ID>1</DISK_ID></DISK>",
        "<NIC><NIC_ID>0</NIC_ID><MAC>02:00:00:00:00:01\n</MAC></NIC>",
        "<NIC><NIC_ID>0</NIC_ID><MAC>02:00:00:00:00:01</MAC><TARGET>a b,ro /etc</TARGET></NIC>",
        "<NIC><NIC_ID>0</NIC_ID><MAC>02:00:00:00:00:01</MAC><TARGET>../x</TARGET></NIC>",
        "<NIC><NIC_ID>0</NIC_ID><MAC>02:00:00:00:00:01</MAC><BRIDGE>br\n0</BRIDGE></NIC>",
        "<NIC><NIC_ID>99999</NIC_ID><MAC>02:00:00:00:00:01</MAC></NIC>",
        "<CPU>1</CPU>",
        "<CONTEXT/><CONTEXT/>",
    ] {
        refuse(template(&format!("{DISK}{rest}"), "").as_bytes());
    }
    let twice = template(DISK, "").replace("<ID>7</ID>", "<ID>7</ID><ID>7</ID>");
    refuse(twice.as_bytes());
    let name = template(DISK, "").replace("<NAME>n<", "<NAME>n\n<4>kernel: fake<");
    refuse(name.as_bytes());
}

#[test]
fn shell_metacharacters_stay_data() {
    for evil in ["$(id)", "`id`", "a;id", "a|id", "%n%s", "-oProxyCommand=id", "a'b", "&amp;&amp;"]
    {
        let text = evil.replace("&amp;", "&");
        let rest = format!(
            "{DISK}<CONTEXT><SET_HOSTNAME>{evil}</SET_HOSTNAME><START_SCRIPT>{evil}</START_SCRIPT>\
             <{{evil}}/></CONTEXT><RAW><DATA>{evil}</DATA></RAW>"
        )
        .replace("<{evil}/>", "");
        let user = format!("<OCI><ENV>A={evil}</ENV><WORKDIR>/{evil}</WORKDIR></OCI><X>{evil}</X>");
        let document = template(&rest, &user).replace("<NAME>n<", &format!("<NAME>{evil}<"));
        let call = vmm::plan("deploy", &[FILE, "h", "7", "h"], document.as_bytes()).unwrap();
        let VmmCall::Deploy { spec, .. } = &call else { panic!("{call:?}") };
        assert_eq!(spec.name.as_str(), text);
        assert_eq!(spec.boot.env, [("A".to_owned(), text.clone())]);
        assert_eq!(spec.boot.workdir, Some(format!("/{text}")));
        assert!(spec.hostname.as_str().bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-'));
        assert!(!call.success().stdout.contains(&text));
    }
}

#[test]
fn a_bridge_with_odd_characters_is_refused() {
    let nic = "<NIC><NIC_ID>0</NIC_ID><MAC>02:00:00:00:00:01</MAC><BRIDGE>br;id</BRIDGE>\
               <BRIDGE_TYPE>linux</BRIDGE_TYPE></NIC>";
    let document = template(&format!("{DISK}{nic}"), "");
    let refusal = vmm::plan("deploy", &[FILE, "h", "7", "h"], document.as_bytes()).unwrap_err();
    assert!(refusal.answer().stderr.contains("NIC 0: BRIDGE: \"br;id\""), "{refusal:?}");
}

fn seeds() -> Vec<Vec<u8>> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/opennebula");
    let recorded = ["1382-vmm-deploy", "0623-vmm-cancel", "1490-vmm-deploy"].map(|name| {
        let text = std::fs::read_to_string(format!("{dir}/{name}/stdin")).unwrap();
        // As VM 7, so that mutants get beyond the check of the id.
        let id = text.split_once("<ID>").unwrap().1.split_once('<').unwrap().0.to_owned();
        text.replace(&format!("<ID>{id}</ID>"), "<ID>7</ID>").into_bytes()
    });
    recorded.into()
}

/// Else the mutants would all be refused at the door.
#[test]
fn seeds_are_accepted_before_they_are_mutated() {
    let accepted = |seed: &Vec<u8>| vmm::plan("deploy", &[FILE, "h", "7", "h"], seed).is_ok();
    let accepted: Vec<bool> = seeds().iter().map(accepted).collect();
    assert_eq!(accepted, [true, true, false]);
}

#[derive(Debug, Clone)]
enum Edit {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index, usize),
    Copy(prop::sample::Index, prop::sample::Index, usize),
    Insert(prop::sample::Index, &'static str),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<prop::sample::Index>;
    let scraps = prop::sample::select(vec![
        "<",
        ">",
        "&",
        "]]>",
        "<![CDATA[",
        "<!--",
        "<!DOCTYPE x>",
        "&#0;",
        "\n",
        "\u{0}",
        "-1",
        "<DISK>",
        "</DISK>",
        "<ID>7</ID>",
        "0",
        "999999999999",
        "\u{202e}",
        "/../",
    ]);
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(i, b)| Edit::Set(i, b)),
        (at(), 1..400_usize).prop_map(|(i, n)| Edit::Cut(i, n)),
        (at(), at(), 1..400_usize).prop_map(|(i, j, n)| Edit::Copy(i, j, n)),
        (at(), scraps).prop_map(|(i, s)| Edit::Insert(i, s)),
    ]
}

fn apply(bytes: &mut Vec<u8>, edit: &Edit) {
    if bytes.is_empty() {
        return;
    }
    let len = bytes.len();
    match edit {
        Edit::Set(at, byte) => bytes[at.index(len)] = *byte,
        Edit::Cut(at, count) => {
            let at = at.index(len);
            bytes.drain(at..len.min(at + count));
        }
        Edit::Copy(from, to, count) => {
            let from = from.index(len);
            let piece = bytes[from..len.min(from + count)].to_vec();
            let to = to.index(len);
            bytes.splice(to..to, piece);
        }
        Edit::Insert(at, scrap) => {
            let at = at.index(len);
            bytes.splice(at..at, scrap.bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn mutated_documents_never_break_an_invariant(
        seed in prop::sample::select(seeds()),
        edits in prop::collection::vec(edit(), 1..8),
    ) {
        let mut bytes = seed;
        for edit in &edits {
            apply(&mut bytes, edit);
        }
        fuzz(&bytes);
    }

    #[test]
    fn values_of_any_text_never_break_an_invariant(
        key in prop::sample::select(vec![
            "NAME", "CPU", "VCPU", "MEMORY", "BOOT", "DISK_ID", "NIC_ID", "TARGET", "BRIDGE", "MAC",
            "MTU", "ETH0_IP", "ETH0_MASK", "ETH0_GATEWAY", "ETH0_ALIAS0_IP", "ETH0_ROUTES", "HOSTNAME",
            "ETH1_IP6", "ETH0_METRIC", "CMD", "ENTRYPOINT", "ENV", "USER", "TYPE", "BRIDGE_TYPE",
        ]),
        value in prop_oneof![any::<String>(), "[-0-9./:a-f, via]{0,40}", "[\\[\"a\\\\',\\]{}=]{0,20}"],
    ) {
        let value = value.replace("]]>", "");
        let text = String::from_utf8(seeds().remove(0)).unwrap();
        let text = text.replace("</USER_TEMPLATE>", "<OCI><CMD/><ENV/><USER/><ENTRYPOINT/></OCI></USER_TEMPLATE>");
        let empty = format!("<{key}/>");
        let open = format!("<{key}>");
        let filled = format!("<{key}><![CDATA[{value}]]></{key}>");
        let text = match text.split_once(&open) {
            None => text.replace(&empty, &filled),
            Some((before, rest)) => {
                let (_, after) = rest.split_once(&format!("</{key}>")).unwrap();
                format!("{before}{filled}{after}")
            }
        };
        fuzz(text.as_bytes());
    }
}
