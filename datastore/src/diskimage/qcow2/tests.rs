use proptest::prelude::*;

use super::*;

/// A small image with every kind of entry: data, hole, zeros, compressed.
fn image() -> Vec<u8> {
    let cluster = 512usize;
    let mut all = vec![0; cluster * 8];
    let put = |all: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        all[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(&mut all, 0, b"QFI\xfb\0\0\0\x03");
    put(&mut all, 20, &9u32.to_be_bytes());
    put(&mut all, 24, &(64u64 * 512).to_be_bytes());
    put(&mut all, 36, &1u32.to_be_bytes());
    put(&mut all, 40, &512u64.to_be_bytes());
    put(&mut all, 48, &1024u64.to_be_bytes());
    put(&mut all, 56, &1u32.to_be_bytes());
    put(&mut all, 96, &4u32.to_be_bytes());
    put(&mut all, 100, &104u32.to_be_bytes());
    // L1, then L2: data in the fourth cluster, a hole, zeros over data, something compressed.
    put(&mut all, 512, &(1 << 63 | 1536u64).to_be_bytes());
    put(&mut all, 1536, &(1 << 63 | 2048u64).to_be_bytes());
    put(&mut all, 1536 + 16, &(1 << 63 | 2048u64 | 1).to_be_bytes());
    put(&mut all, 1536 + 24, &(1 << 62 | 2560u64).to_be_bytes());
    put(&mut all, 2048, &[0xaa; 512]);
    let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut packed, &[0xbb; 512]).unwrap();
    put(&mut all, 2560, &packed.finish().unwrap());
    all
}

fn open(bytes: Vec<u8>) -> Res<Qcow2> {
    Qcow2::open(Rc::new(bytes), Beneath { backing: None, data: None })
}

#[test]
fn every_kind_of_cluster_is_read() {
    let disk = open(image()).unwrap();
    assert_eq!(disk.size(), 64 * 512);
    let all = device::bytes(&disk, 0, 5 * 512, "disk").unwrap();
    let want = [[0xaa; 512], [0; 512], [0; 512], [0xbb; 512], [0; 512]].concat();
    assert_eq!(all, want);
    assert_eq!(device::bytes(&disk, 500, 30, "disk").unwrap(), &want[500..530]);
    assert!(device::bytes(&disk, 64 * 512 - 1, 2, "disk").is_err());
}

#[test]
fn below_a_hole_lies_the_backing_file_as_far_as_it_goes() {
    let mut bytes = image();
    bytes[8..16].copy_from_slice(&200u64.to_be_bytes());
    bytes[16..20].copy_from_slice(&4u32.to_be_bytes());
    bytes[200..204].copy_from_slice(b"base");
    let file: Disk = Rc::new(bytes);
    let none = Beneath { backing: None, data: None };
    let Err(DiskFault::Backing { name }) = Qcow2::open(Rc::clone(&file), none) else {
        panic!("a backing file was not asked for");
    };
    assert_eq!(name, "base");
    let backing: Disk = Rc::new(vec![0xcc; 512 + 100]);
    let disk = Qcow2::open(file, Beneath { backing: Some(backing), data: None }).unwrap();
    let hole = device::bytes(&disk, 512, 512, "disk").unwrap();
    assert_eq!(hole, [[0xcc; 100].to_vec(), vec![0; 412]].concat());
}

#[test]
fn what_an_image_names_is_told_and_not_used() {
    let told = |bytes: Vec<u8>| Qcow2File::of(&bytes);
    let mut bytes = image();
    assert_eq!(told(bytes.clone()).unwrap(), Qcow2File { size: 64 * 512, backing: None });
    bytes[8..16].copy_from_slice(&200u64.to_be_bytes());
    bytes[16..20].copy_from_slice(&4u32.to_be_bytes());
    bytes[200..204].copy_from_slice(b"ba\xffe");
    let backing = |format: Option<&str>| {
        Some(BackingName { name: b"ba\xffe".to_vec(), format: format.map(Into::into) })
    };
    assert_eq!(told(bytes.clone()).unwrap().backing, backing(None));
    // Behind another extension, which is padded.
    bytes[104..113].copy_from_slice(b"\x68\x03\xf8\x57\0\0\0\x01x");
    bytes[120..133].copy_from_slice(b"\xe2\x79\x2a\xca\0\0\0\x05qcow2");
    assert_eq!(told(bytes.clone()).unwrap().backing, backing(Some("qcow2")));
    let changed = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        told(bytes).unwrap_err().to_string()
    };
    assert_eq!(changed(127, 16), "bytes of the qcow2 backing format 16 is above 15");
    assert!(changed(79, 4).starts_with("it keeps its data in another file"), "a data file");
    assert_eq!(changed(35, 1), "it is encrypted (qcow2 AES); decrypt it first");
    assert_eq!(changed(0, 0), "it is no qcow2 image; say raw: if it is a raw disk");
    // Extensions that lead nowhere end.
    let mut endless = image();
    endless[8..16].copy_from_slice(&200u64.to_be_bytes());
    for at in (104..512).step_by(8) {
        endless[at..at + 8].copy_from_slice(b"\0\0\0\x01\0\0\0\0");
    }
    assert_eq!(told(endless).unwrap().backing.unwrap().format, None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn headers_and_tables_with_damage_are_read_or_refused(
        damage in prop::collection::vec((0usize..3000, any::<u8>()), 1..8),
        length in 0usize..4096,
    ) {
        let mut bytes = image();
        for (at, value) in damage {
            bytes[at] = value;
        }
        fuzz(bytes.clone());
        bytes.truncate(length);
        fuzz(bytes);
    }
}
