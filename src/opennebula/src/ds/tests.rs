//! Messages as oned writes them, and as nobody should.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn message(image: &str, template: &str) -> String {
    format!(
        "<DS_DRIVER_ACTION_DATA><IMAGE><ID>7</ID><NAME>app</NAME><TYPE>0</TYPE>\
         <PERSISTENT>1</PERSISTENT><CLONING_ID>-1</CLONING_ID>{image}</IMAGE>\
         <DATASTORE><ID>100</ID><BASE_PATH><![CDATA[/var/lib/one//datastores/100]]></BASE_PATH>\
         <FREE_MB>5</FREE_MB><TEMPLATE>{template}</TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>"
    )
}

fn called(action: &str, image: &str, template: &str) -> Result<DsCall, String> {
    let stdin = STANDARD.encode(message(image, template));
    plan(action, &["7"], stdin.as_bytes()).map_err(|answer| answer.stderr)
}

#[test]
fn cdata_and_escaped_text_are_the_same() {
    let path = "https://a.example/x?a=1&b=<2>";
    let plain = called("cp", "<PATH>https://a.example/x?a=1&amp;b=&lt;2&gt;</PATH>", "").unwrap();
    let cdata = called("cp", &format!("<PATH><![CDATA[{path}]]></PATH>"), "").unwrap();
    assert_eq!(plain, cdata);
    assert_eq!(plain.image.path, path);
    assert!(plain.image.persistent);
    assert_eq!(plain.image.cloning, None);
    assert_eq!(plain.datastore.base_path, std::path::Path::new("/var/lib/one/datastores/100"));
    assert_eq!(plain.datastore.free_mb, Some(5));
}

#[test]
fn what_the_datastore_says_is_read() {
    let call = called(
        "cp",
        "<PATH>/a</PATH><TEMPLATE><MD5>00112233445566778899AABBCCDDEEFF</MD5>\
         <SAVED_VM_ID>3</SAVED_VM_ID><SAVED_DISK_ID>0</SAVED_DISK_ID></TEMPLATE>",
        "<SAFE_DIRS>/a  /b</SAFE_DIRS><RESTRICTED_DIRS>/</RESTRICTED_DIRS>\
         <NO_DECOMPRESS>yes</NO_DECOMPRESS><LIMIT_TRANSFER_BW>2M</LIMIT_TRANSFER_BW>\
         <DRIVER>QCOW2</DRIVER>",
    )
    .unwrap();
    let datastore = &call.datastore;
    assert_eq!(datastore.safe_dirs, ["/a", "/b"]);
    assert_eq!(datastore.restricted_dirs, ["/"]);
    assert!(datastore.no_decompress);
    assert_eq!(datastore.bandwidth, Some(2 << 20));
    assert_eq!(datastore.driver.as_deref(), Some("qcow2"));
    assert_eq!(call.image.checksums.md5.as_deref(), Some("00112233445566778899aabbccddeeff"));
    assert_eq!(call.image.saved, Some(Saved { vm: 3, disk: 0, image: None }));
}

#[test]
fn only_datastores_of_files_hold_files() {
    for (kind, files) in [("", false), ("<TYPE>0</TYPE>", false), ("<TYPE>2</TYPE>", true)] {
        let message = message("<PATH>/a</PATH>", "<TYPE>FILE_DS</TYPE>");
        let stdin = STANDARD.encode(message.replace("<DATASTORE>", &format!("<DATASTORE>{kind}")));
        assert_eq!(
            plan("stat", &["7"], stdin.as_bytes()).unwrap().datastore.files,
            files,
            "{kind}"
        );
    }
}

#[test]
fn refusals_are_one_sentence() {
    let cases = [
        (
            "cp",
            "<PATH>a</PATH><PATH>b</PATH>",
            "",
            "Cannot bring in image 7: the XML has more than one IMAGE/PATH.\n",
        ),
        (
            "cp",
            "<TEMPLATE><SHA1>x</SHA1></TEMPLATE>",
            "",
            "Cannot bring in image 7: SHA1 \"x\" is not 40 hexadecimal digits.\n",
        ),
        ("cp", "<SIZE>-1</SIZE>", "", "Cannot bring in image 7: SIZE \"-1\" is no number.\n"),
        (
            "rm",
            "",
            "<LIMIT_TRANSFER_BW>0</LIMIT_TRANSFER_BW>",
            "Cannot remove image 7: LIMIT_TRANSFER_BW \"0\" is no number.\n",
        ),
    ];
    for (action, image, template, want) in cases {
        assert_eq!(called(action, image, template).unwrap_err(), want);
    }
    let said = |action: &str, argv: &[&str], stdin: &str| {
        plan(action, argv, stdin.as_bytes()).unwrap_err().stderr
    };
    assert_eq!(said("cp", &["7"], "*"), "Cannot bring in image 7: the message is not base64.\n");
    assert_eq!(
        said("cp", &["-7"], ""),
        "Cannot bring in the image: \"-7\" is no number of an image.\n"
    );
    assert_eq!(
        said("cp", &[], ""),
        "Cannot bring in the image: the script was called with 0 arguments, it takes one.\n"
    );
    assert_eq!(said("x\ny", &[], ""), "Script \"x\\ny\" is none of the datastore driver.\n");
    let other = STANDARD.encode(message("", ""));
    assert_eq!(
        said("cp", &["8"], &other),
        "Cannot bring in image 8: the message is about image \"7\".\n"
    );
    let backup = said("backup", &["host:/x", "0", "one-1", "-", "1", "100"], "<x/>");
    assert!(backup.starts_with("Cannot take a backup into the datastore: ocivisor's"), "{backup}");
    for bad in ["relative", "/", "/a/../b"] {
        let text = message("", "").replace("/var/lib/one//datastores/100", bad);
        let said = said("rm", &["7"], &STANDARD.encode(text));
        assert!(said.contains("BASE_PATH"), "{said}");
    }
}

#[test]
fn paths_are_what_they_say() {
    let parse = |text: &str| Place::parse(text).unwrap();
    assert_eq!(
        parse("docker://r.example:5000/a/b:1?size=512&filesystem=ext4&format=raw"),
        Place::Registry {
            reference: "docker://r.example:5000/a/b:1".into(),
            size_mb: Some(512),
            ignored: vec!["filesystem".into(), "format".into()],
        }
    );
    assert_eq!(
        parse("dockerfile:///srv/app?size=1"),
        Place::Dockerfile { path: "/srv/app".into(), size_mb: Some(1), ignored: vec![] }
    );
    assert_eq!(
        parse("oci-archive:/srv/a.tar:v1"),
        Place::Local { scheme: Some("oci-archive"), path: "/srv/a.tar:v1".into() }
    );
    assert_eq!(parse("/srv/a b"), Place::Local { scheme: None, path: "/srv/a b".into() });
    // As the command line makes it of what it does not know.
    for typed in [
        "docker://r.example/a/b:1",
        "dockerfile:///srv/app",
        "oci-archive:/srv/raw:/a.tar",
        "oci:/srv/docker:/x:1",
    ] {
        for before in ["/", "/var/lib/one/", "/home/me/a b/"] {
            assert_eq!(parse(&format!("{before}{typed}")), parse(typed), "{before}");
        }
    }
    for file in ["/srv/docker:x", "/srv/oci:", "/srv/http://x", "/docker"] {
        assert_eq!(parse(file), Place::Local { scheme: None, path: file.into() });
    }
    for bad in [
        "",
        "x",
        "../x",
        "oci://registry.example/a@sha256:00",
        "file:///etc/passwd",
        "ssh://host/x",
        "oci:relative",
        "dockerfile://relative",
        "dir:/x",
        "/a\nb",
        "docker://a/b?size=0",
        "docker://a/b?size=-1",
    ] {
        Place::parse(bad).unwrap_err();
    }
}
