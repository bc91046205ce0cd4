//! Guests and images that would lead us astray.

use super::*;

#[test]
fn a_directory_of_ours_that_others_may_write_is_neither_believed_nor_written() {
    let guest = Guest::debian();
    guest.tell(&full());
    let dir = guest.path("var/lib/ocivisor");
    for (mode, uid) in [(0o777, 0), (0o700, 1000)] {
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(mode)).unwrap();
        chown(&dir, Some(uid), None).unwrap();
        let error = guest.tell_at(Moment::Boot, &full(), None).unwrap_err();
        let want = "the guest's /var/lib/ocivisor is not root's alone to write";
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Image, want));
        let notes = guest.tell(&spec());
        assert_eq!(notes, [want], "and what nobody asked for is left out");
        assert!(guest.path("srv/app/config").exists(), "its claims are not believed");
    }
}

#[test]
fn a_directory_of_ours_that_became_something_else_is_left_alone() {
    let guest = Guest::debian();
    guest.tell(&full());
    std::fs::remove_dir_all(guest.path("srv/app")).unwrap();
    guest.put("srv/app", "the guest's");
    guest.put("keep/file", "");
    std::fs::remove_dir_all(guest.path("run/systemd/system")).unwrap();
    symlink("/keep", guest.path("run/systemd/system")).unwrap();
    guest.tell(&spec());
    assert_eq!(guest.text("srv/app"), "the guest's");
    assert!(guest.path("run/systemd/system").is_symlink());
}

#[test]
fn a_link_in_the_place_of_a_block_comes_back() {
    let guest = Guest::debian();
    guest.put("root/keys", "ssh-rsa BBBB own\n");
    std::fs::create_dir(guest.path("root/.ssh")).unwrap();
    let keys = guest.path("root/.ssh/authorized_keys");
    symlink("../keys", &keys).unwrap();
    for _ in 0..2 {
        guest.tell(&full());
        assert!(guest.text("root/.ssh/authorized_keys").contains(KEY) && !keys.is_symlink());
    }
    guest.tell(&spec());
    assert_eq!(std::fs::read_link(&keys).unwrap(), Path::new("../keys"));
    assert_eq!(guest.text("root/keys"), "ssh-rsa BBBB own\n");
}

#[test]
fn root_follows_no_link_that_a_user_may_have_made() {
    let guest = Guest::debian();
    guest.put("secret/config", "root's\n");
    guest.put("home/dev/real/file", "");
    let home = guest.path("home/dev");
    chown(&home, Some(1000), Some(1000)).unwrap();
    symlink("/secret", home.join("app")).unwrap();
    let mut wish = spec();
    let mut file = full().context.files.remove(0);
    file.path = "/home/dev/app/config".into();
    wish.context.files = vec![file];
    let error = guest.tell_at(Moment::Change, &wish, None).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Image);
    assert_eq!(guest.text("secret/config"), "root's\n");
    // Root's own links are followed, and a user's plain directories are entered.
    chown(&home, Some(0), Some(0)).unwrap();
    guest.tell(&wish);
    assert_eq!(guest.text("secret/config"), "x=1\n");
    guest.tell(&spec());
    assert_eq!(guest.text("secret/config"), "root's\n");
    chown(&home, Some(1000), Some(1000)).unwrap();
    wish.context.files[0].path = "/home/dev/real/new/file".into();
    guest.tell(&wish);
    assert_eq!(guest.text("home/dev/real/new/file"), "x=1\n");
}

#[test]
fn roots_rights_make_no_directory_in_a_home_that_is_its_users() {
    let guest = Guest::debian();
    let mut wish = full();
    wish.context.user = Some("dev".into());
    guest.put("etc/passwd", "dev:x:1000:1000::/home/dev:/bin/sh\n");
    let home = guest.path("home/dev");
    std::fs::create_dir_all(&home).unwrap();
    let become_his = |mode, uid| {
        chown(&home, Some(uid), Some(2000)).unwrap();
        std::fs::set_permissions(&home, PermissionsExt::from_mode(mode)).unwrap();
    };
    become_his(0o500, 1000);
    let error = guest.tell_at(Moment::Boot, &wish, None).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Image);
    assert!(!home.join(".ssh").exists());
    // Who may not even exchange it needs root's help; and a home that hands its group down is no obstacle.
    for (mode, uid) in [(0o755, 0), (0o2770, 1000)] {
        become_his(mode, uid);
        guest.tell(&wish);
        let meta = home.join(".ssh").metadata().unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o700, 1000, 1000));
        guest.tell(&spec());
        assert!(!home.join(".ssh").exists());
    }
}

#[test]
fn a_user_cannot_lead_root_out_of_his_home_nor_keep_the_guest_from_booting() {
    let guest = Guest::debian();
    let mut spec = full();
    spec.context.user = Some("dev".into());
    guest.tell(&spec);
    std::fs::set_permissions(guest.path("root"), PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::remove_dir_all(guest.path("home/dev/.ssh")).unwrap();
    symlink("/root", guest.path("home/dev/.ssh")).unwrap();
    let notes = guest.tell(&spec);
    assert!(notes.iter().any(|note| note.contains("/home/dev/.ssh/authorized_keys")), "{notes:?}");
    assert!(!guest.path("root/authorized_keys").exists());
    // A link in place of the file itself is replaced, and what it led to is not read.
    std::fs::remove_file(guest.path("home/dev/.ssh")).unwrap();
    std::fs::create_dir(guest.path("home/dev/.ssh")).unwrap();
    chown(guest.path("home/dev/.ssh"), Some(1000), Some(1000)).unwrap();
    symlink("/etc/shadow", guest.path("home/dev/.ssh/authorized_keys")).unwrap();
    assert_eq!(guest.tell(&spec), Vec::<String>::new());
    let keys = guest.text("home/dev/.ssh/authorized_keys");
    assert!(keys.contains(KEY) && !keys.contains("root:"), "{keys}");
}

#[test]
fn hostile_images_are_told_or_refused_and_never_followed() {
    // No /etc at all: a static program's image.
    let guest = Guest { kind: GuestKind::Application, ..Guest::empty() };
    let mut wish = full();
    wish.context.timezone = None;
    assert_eq!(guest.tell(&wish), Vec::<String>::new());
    assert_eq!(guest.text("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n");
    assert!(guest.text("root/.ssh/authorized_keys").contains(KEY));
    assert!(guest.text("etc/hosts").contains("127.0.0.1 localhost"));

    // What nobody asked for does not refuse an image.
    for make in [
        |g: &Guest| symlink("/proc", g.path("etc")).unwrap(),
        |g: &Guest| g.put("etc", "a file"),
        |g: &Guest| symlink("etc", g.path("etc")).unwrap(),
    ] {
        let guest = Guest::empty();
        make(&guest);
        let notes = guest.tell(&spec());
        assert!(notes.iter().any(|note| note.contains("the guest's /etc")), "{notes:?}");
        assert_eq!(guest.tell_at(Moment::Boot, &full(), None).unwrap_err().kind, ErrorKind::Image);
    }

    // Accounts that are no files.
    let guest = Guest::debian();
    std::fs::remove_file(guest.path("etc/passwd")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, guest.path("etc/passwd"), fifo, mode, 0).unwrap();
    let error = guest.tell_at(Moment::Boot, &full(), None).unwrap_err();
    assert_eq!(error.to_string(), "the guest's /etc/passwd is no regular file");
    assert_eq!(guest.text("etc/shadow"), SHADOW, "nothing was begun");
    assert_eq!(guest.tell(&spec()), Vec::<String>::new());
}

#[test]
fn damaged_or_foreign_state_is_as_none() {
    let guest = Guest::debian();
    guest.tell(&full());
    for text in ["", "{}", "null", "{\"version\":2}", "[[[[[[[["] {
        guest.put("var/lib/ocivisor/context.json", text);
        assert_eq!(guest.tell(&full()), Vec::<String>::new());
    }
    // A state that names files which we never wrote: prints that do not match change nothing.
    let lie = r#"{"version":1,"vm":"one-7","whole":true,"claims":[
        {"what":"file","path":"/etc/shadow","before":{"was":"absent"},"wrote":["file:1:00","x","link:"]},
        {"what":"file","path":"../../x","before":{"was":"absent"},"wrote":["link:"]},
        {"what":"dir","path":"/etc"}]}"#;
    guest.put("var/lib/ocivisor/context.json", lie);
    let notes = guest.tell(&full());
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(guest.path("etc/shadow").exists());
}

#[test]
fn a_key_cannot_end_our_block() {
    let mut wish = spec();
    for (key, sound) in [(KEY, true), ("# end ocivisor", false), (" # x", false)] {
        wish.context.ssh_keys = vec![key.into()];
        assert_eq!(wish.check().is_ok(), sound, "{key}");
    }
}
