//! Block devices of the host, and who else has them.

use super::*;

/// A device as a platform has them, open nowhere.
struct Volume(PathBuf);

impl Volume {
    fn of(path: &Path) -> Self {
        let shown = run(&["losetup", "--find", "--show", text(path)], LONG).unwrap();
        Self(String::from_utf8(shown).unwrap().trim().into())
    }

    fn number(&self) -> u32 {
        rustix::fs::minor(fs::metadata(&self.0).unwrap().rdev())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = run(&["losetup", "--detach", text(&self.0)], LONG);
    }
}

#[test]
fn a_block_device_is_used_as_it_is_and_stays_the_platforms() {
    let ground = ground();
    let path = ground.formatted("pv", 16, &[&MKFS[..], &["-b", "4096"]].concat());
    let lv = Volume::of(&path);
    let (link, number) = (lv.0.clone(), lv.number());
    for view in [at("/data"), device("vdb")] {
        let vm = vm("vm-1", &[disk(1, &link, view)]);
        let got = ground.attach(&vm).unwrap();
        assert_eq!((got[0].device.major, got[0].device.minor), (7, number));
        assert_eq!(ground.attach(&vm).unwrap(), got);
        let other = super::vm("vm-2", &[only_read(disk(1, &link, device("vdb")))]);
        assert_eq!(ground.attach(&other).unwrap_err().kind, ErrorKind::Conflict);
        ground.detach(&vm);
        assert!(loopdev::look(number).unwrap().is_some(), "it is the platform's");
    }
    // The host itself uses it: as it likes, as long as nobody writes what another one reads.
    let dir = ground.dir.path().join("mnt");
    fs::create_dir(&dir).unwrap();
    let writes = vm("vm-1", &[disk(1, &link, at("/data"))]);
    let reads = vm("vm-1", &[only_read(disk(1, &link, device("vdb")))]);
    for (options, may_read) in [("rw", false), ("ro,noload", true)] {
        run(&["mount", "-o", options, text(&link), text(&dir)], LONG).unwrap();
        let error = ground.attach(&writes).unwrap_err();
        assert!(error.message.contains("in use by the host"), "{error}");
        assert_eq!(ground.attach(&reads).is_ok(), may_read, "{options}");
        ground.detach(&reads);
        unmount(&dir, UnmountFlags::empty()).unwrap();
    }
    drop(lv);
    let far = Instant::now() + Duration::from_secs(10);
    assert!(mounts::until(far, || Ok(ground.leftovers().is_empty())).unwrap());
}

#[test]
fn a_device_of_our_own_is_nobodys_disk() {
    let ground = ground();
    let path = ground.file("raw", 4);
    let one = vm("vm-1", &[disk(1, &path, device("vdb"))]);
    let number = ground.attach(&one).unwrap()[0].device.minor;
    assert!(loopdev::OURS.contains(&number));
    let ours = PathBuf::from(format!("/dev/loop{number}"));
    let other = vm("vm-2", &[only_read(disk(1, &ours, device("vdb")))]);
    let error = ground.attach(&other).unwrap_err();
    let want = format!("data disk 1 ({}) is a loop device of ocivisor's own", ours.display());
    assert_eq!((error.kind, error.message), (ErrorKind::Permission, want));
    // Nor is a part of it.
    run(&["addpart", text(&ours), "1", "0", "8"], LONG).unwrap();
    let part = PathBuf::from(format!("{}p1", ours.display()));
    let other = vm("vm-2", &[only_read(disk(1, &part, device("vdb")))]);
    let error = ground.attach(&other).unwrap_err();
    run(&["delpart", text(&ours), "1"], LONG).unwrap();
    assert_eq!(error.kind, ErrorKind::Permission, "{error}");
    ground.detach(&one);
    ground.assert_clean();
}

#[test]
fn a_holder_that_is_in_use_keeps_no_other_and_is_not_forgotten() {
    let ground = ground();
    let volumes = ["a", "b"].map(|name| Volume::of(&ground.file(name, 4)));
    let wishes =
        [("vdb", 0), ("vdc", 1)].map(|(name, n)| disk(n + 1, &volumes[n as usize].0, device(name)));
    let vm = vm("vm-1", &wishes);
    ground.attach(&vm).unwrap();
    let holder = |volume: &Volume| {
        let over = fs::metadata(&volume.0).unwrap().rdev();
        loopdev::all().unwrap().into_iter().find(|(_, b)| b.over == over).map(|(number, _)| number)
    };
    let first = holder(&volumes[0]).unwrap();
    // As a tool of the host that looks at it.
    let looks = File::open(format!("/dev/loop{first}")).unwrap();
    let error = ground.storage.drop_disks(&vm.id).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout, "{error}");
    assert_eq!(holder(&volumes[0]), Some(first));
    assert_eq!(holder(&volumes[1]), None, "the other one is let go of");
    assert!(ground.storage.observe_roots().unwrap().contains(&vm.id), "not forgotten");
    drop(looks);
    ground.detach(&vm);
    assert_eq!(holder(&volumes[0]), None);
    drop(volumes);
    let far = Instant::now() + Duration::from_secs(10);
    assert!(mounts::until(far, || Ok(ground.leftovers().is_empty())).unwrap());
}

/// What is in a VM's record of its disks.
fn change_record(ground: &Ground, vm: &VmSpec, change: impl FnOnce(&mut serde_json::Value)) {
    let path = ground.storage.places(&vm.id).dir.join("disks.json");
    let mut record = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    crate::fs::replace(&path, record.to_string().as_bytes()).unwrap();
}

#[test]
fn a_device_of_our_own_is_nobodys_disk_whatever_its_number() {
    let ground = ground();
    let (path, behind) = (ground.file("raw", 4), ground.file("behind", 4));
    let one = vm("vm-1", &[disk(1, &path, device("vdb"))]);
    ground.attach(&one).unwrap();
    let volume = Volume::of(&behind);
    let other = vm("vm-2", &[only_read(disk(1, &volume.0, device("vdb")))]);
    ground.attach(&other).unwrap();
    ground.detach(&other);
    // As if the host had no high numbers.
    let meta = fs::metadata(&behind).unwrap();
    let mut was = serde_json::Value::Null;
    change_record(&ground, &one, |record| {
        was = record.clone();
        record["disks"][0]["loop_number"] = volume.number().into();
        record["disks"][0]["file"] = serde_json::json!({ "dev": meta.dev(), "ino": meta.ino() });
    });
    let error = ground.attach(&other).unwrap_err();
    change_record(&ground, &one, |record| *record = was);
    assert_eq!(error.kind, ErrorKind::Permission, "{error}");
    ground.detach(&one);
    drop(volume);
    let far = Instant::now() + Duration::from_secs(10);
    assert!(mounts::until(far, || Ok(ground.leftovers().is_empty())).unwrap());
}

#[test]
fn who_has_a_partition_has_it_against_who_has_the_disk() {
    let ground = ground();
    let volume = Volume::of(&ground.file("raw", 8));
    run(&["addpart", text(&volume.0), "1", "2048", "4096"], LONG).unwrap();
    let part = PathBuf::from(format!("{}p1", volume.0.display()));
    let [one, other] = [("vm-1", &volume.0), ("vm-2", &part)].map(|(name, path)| {
        move |change: fn(DataDisk) -> DataDisk| vm(name, &[change(disk(1, path, device("vdb")))])
    });
    let (writes, reads): (fn(DataDisk) -> DataDisk, _) = (|disk| disk, only_read);
    let conflict = |vm: &VmSpec| {
        let error = ground.attach(vm).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
        assert!(error.message.contains("which holds a lock on /dev/loop"), "{error}");
    };
    ground.attach(&one(writes)).unwrap();
    conflict(&other(writes));
    conflict(&other(reads));
    ground.detach(&one(writes));
    ground.attach(&other(writes)).unwrap();
    conflict(&one(writes));
    conflict(&one(reads));
    ground.detach(&other(writes));
    ground.attach(&one(reads)).unwrap();
    ground.attach(&other(reads)).unwrap();
    ground.detach(&one(reads));
    ground.detach(&other(reads));
    run(&["delpart", text(&volume.0), "1"], LONG).unwrap();
    drop(volume);
    let far = Instant::now() + Duration::from_secs(10);
    assert!(mounts::until(far, || Ok(ground.leftovers().is_empty())).unwrap());
}

#[test]
fn a_block_device_that_the_guest_writes_raw_is_its_own_to_format() {
    let mut ground = ground();
    let volume = Volume::of(&ground.file("raw", 16));
    let vm = |view: View| {
        let wish = DataDisk { make: Some(Filesystem::Ext4), ..disk(1, &volume.0, view) };
        super::vm("vm-1", &[wish])
    };
    let is_made = || fs::read(&volume.0).unwrap().iter().any(|byte| *byte != 0);
    let raw = vm(device("vdb"));
    let got = ground.attach(&raw).unwrap();
    let want = format!(
        "data disk 1 ({}) is not formatted here, for the guest writes it as a block device",
        volume.0.display()
    );
    assert_eq!(got[0].note.as_deref(), Some(&*want));
    ground.detach(&raw);
    assert!(!is_made());
    let either = vm(either("/data", "vdb"));
    ground.storage.tenants = TenantFilesystems::Never;
    assert_eq!(ground.attach(&either).unwrap()[0].note.as_deref(), Some(&*want));
    ground.detach(&either);
    assert!(!is_made());
    ground.storage.tenants = TenantFilesystems::Checked;
    assert_eq!(ground.attach(&either).unwrap()[0].note, None);
    ground.detach(&either);
    assert!(is_made());
    drop(volume);
    let far = Instant::now() + Duration::from_secs(10);
    assert!(mounts::until(far, || Ok(ground.leftovers().is_empty())).unwrap());
}
