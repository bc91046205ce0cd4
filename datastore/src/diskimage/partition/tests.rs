use proptest::prelude::*;

use super::*;

const SECTORS: u64 = 2048;

/// A GPT with one partition, as the specification has it, with both headers.
fn gpt_disk(kind: Guid) -> Vec<u8> {
    let mut disk = vec![0; (SECTORS * 512) as usize];
    disk[446 + 4] = 0xee;
    disk[446 + 8] = 1;
    disk[446 + 12..446 + 16].copy_from_slice(&(SECTORS as u32 - 1).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut array = vec![0; 128 * 128];
    array[2 * 128..2 * 128 + 16].copy_from_slice(&guid(kind));
    array[2 * 128 + 32..2 * 128 + 40].copy_from_slice(&64u64.to_le_bytes());
    array[2 * 128 + 40..2 * 128 + 48].copy_from_slice(&127u64.to_le_bytes());
    for (lba, entries) in [(1, 2), (SECTORS - 1, SECTORS - 33)] {
        let mut header = vec![0; 92];
        header[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
        header[12..16].copy_from_slice(&92u32.to_le_bytes());
        header[24..32].copy_from_slice(&lba.to_le_bytes());
        header[72..80].copy_from_slice(&entries.to_le_bytes());
        header[80..84].copy_from_slice(&128u32.to_le_bytes());
        header[84..88].copy_from_slice(&128u32.to_le_bytes());
        header[88..92].copy_from_slice(&crc32(&array).to_le_bytes());
        let sum = crc32(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        let at = (lba * 512) as usize;
        disk[at..at + 92].copy_from_slice(&header);
        let at = (entries * 512) as usize;
        disk[at..at + array.len()].copy_from_slice(&array);
    }
    disk
}

fn table(disk: &[u8]) -> Res<Option<Table>> {
    read(&disk.to_vec())
}

#[test]
fn types_say_what_a_partition_is_for() {
    let arch = std::env::consts::ARCH;
    for (name, kind) in ROOTS {
        let want = if name == arch { Role::Root } else { Role::Other };
        let found = table(&gpt_disk(kind)).unwrap().unwrap();
        let one = Partition { number: 3, at: 64 * 512, size: 64 * 512, role: want };
        assert_eq!(found, Table { name: "GPT", partitions: vec![one] });
    }
    assert_eq!(table(&gpt_disk(OTHERS[2])).unwrap().unwrap().partitions[0].role, Role::Other);
    assert_eq!(table(&gpt_disk([7; 16])).unwrap().unwrap().partitions[0].role, Role::Any);
}

#[test]
fn a_gpt_that_no_mbr_protects_is_nobodys() {
    let mut disk = gpt_disk(OTHERS[0]);
    disk[446 + 4] = 0x83;
    assert_eq!(table(&disk).unwrap().unwrap().name, "MBR");
    disk[510] = 0;
    assert_eq!(table(&disk).unwrap(), None);
}

#[test]
fn a_damaged_header_makes_way_for_the_backup_and_two_end_it() {
    let good = table(&gpt_disk(OTHERS[0])).unwrap();
    for damage in [513, 512 + 16, 512 + 24, 512 + 72, 512 + 88, 1024 + 5] {
        let mut disk = gpt_disk(OTHERS[0]);
        disk[damage] ^= 1;
        assert_eq!(table(&disk).unwrap(), good, "{damage}");
        let backup = disk.len() - 512 + 17;
        disk[backup] ^= 1;
        assert!(matches!(table(&disk), Err(DiskFault::Damaged { .. })), "{damage}");
    }
}

proptest! {
    #[test]
    fn tables_with_damage_are_read_or_refused(
        kind in any::<bool>(),
        damage in prop::collection::vec((0usize..2048, any::<u8>()), 1..12),
    ) {
        let mut disk = gpt_disk(OTHERS[0]);
        if kind {
            // An MBR with an extended partition, its first link in sector 1.
            disk[446 + 4] = 5;
        }
        for (at, value) in damage {
            disk[at] = value;
        }
        let _ = table(&disk);
    }
}
