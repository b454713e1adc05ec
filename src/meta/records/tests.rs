//! Records are decoded as they were encoded, and other bytes are refused.

use proptest::prelude::*;

use super::*;

fn record(shared: bool, present: u32, reserve: std::ops::Range<u32>) -> ExtentRecord {
    let mut part = Part {
        id: PartId {
            name: ObjectName {
                folder: FolderNumber(7),
                object: ObjectId([1; 16]),
            },
            crypto: CryptoId([2; 16]),
            epoch: Epoch(1),
        },
        pages: PageSet::new(),
    };
    part.pages.insert(0..present);
    let mut reserved = PageSet::new();
    reserved.insert(reserve);
    ExtentRecord::Parts {
        shared,
        parts: vec![part],
        reserved,
    }
}

#[test]
fn extents_record_reservations() {
    for (shared, present, reserve, flags, pages) in [
        (false, 5, 0..0, 0, 5),
        (true, 5, 0..0, 1, 5),
        (false, 0, 0..1041, 2, 1041),
        (true, 5, 7..9, 3, 7),
    ] {
        let record = record(shared, present, reserve);
        let bytes = record.encode();
        assert_eq!((bytes[0], bytes[1], bytes[2]), (VALUE, flags, 1));
        assert_eq!(ExtentRecord::decode(&bytes).as_ref(), Some(&record));
        assert_eq!(record.pages(), pages);
        // Nothing may be missing, and nothing may follow.
        assert_eq!(ExtentRecord::decode(&bytes[..bytes.len() - 1]), None);
        assert_eq!(ExtentRecord::decode(&[&bytes[..], &[0]].concat()), None);
    }
}

#[test]
fn refuses_numbers_that_would_overflow() {
    let inode = InodeRecord {
        kind: FileKind::Regular,
        perm: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: SIZE_MAX,
        pages: PAGES_MAX,
        atime: Timespec::default(),
        mtime: Timespec::default(),
        ctime: Timespec::default(),
        crtime: Timespec::default(),
        parent: Ino(Ino::END.0 - 1),
        target: Vec::new(),
    };
    let bytes = inode.encode();
    assert_eq!(InodeRecord::decode(&bytes), Some(inode));
    // size, pages, parent: one more than the limit.
    for at in [18, 26, 34] {
        let mut larger = bytes.clone();
        let (number, _) = larger[at..].split_first_chunk_mut::<8>().unwrap();
        *number = (u64::from_le_bytes(*number) + 1).to_le_bytes();
        assert_eq!(InodeRecord::decode(&larger), None, "{at}");
    }
    for (ino, is_valid) in [
        (0, false),
        (1, true),
        (Ino::END.0 - 1, true),
        (Ino::END.0, false),
    ] {
        let entry = DirentRecord {
            ino: Ino(ino),
            kind: FileKind::Regular,
        };
        let decoded = DirentRecord::decode(&entry.encode());
        assert_eq!(decoded, is_valid.then_some(entry), "{ino}");
    }
    for (folder, is_valid) in [
        (FolderNumber::END.0 - 1, true),
        (FolderNumber::END.0, false),
    ] {
        let name = ObjectName {
            folder: FolderNumber(folder),
            object: ObjectId([1; 16]),
        };
        assert_eq!(ObjectName::decode(&name.encode()), is_valid.then_some(name));
    }
}

#[test]
fn counters_are_refused_beyond_their_bounds() {
    let largest = Counters {
        clean: true,
        generation: Generation::MAX,
        frozen: Generation::MAX,
        next_ino: Ino::END,
        folder: FolderNumber(FolderNumber::END.0 - 1),
        next_garbage: COUNT_MAX,
        used_pages: PAGES_MAX,
        inodes: INODES_MAX,
        record_bytes: COUNT_MAX,
        limit_bytes: u64::MAX,
        hash_key: [0; 16],
        restoring: Generation::MAX,
        newest_view: ViewId::MAX,
    };
    let bytes = largest.encode();
    assert_eq!(Counters::decode(&bytes), Some(largest));
    // generation, frozen, next inode, folder, garbage, pages, inodes, bytes of records, restoring:
    // one more than the limit of each.
    for at in [2, 10, 18, 26, 34, 42, 50, 58, 90] {
        let mut larger = bytes.clone();
        let (number, _) = larger[at..].split_first_chunk_mut::<8>().unwrap();
        *number = (u64::from_le_bytes(*number) + 1).to_le_bytes();
        assert_eq!(Counters::decode(&larger), None, "{at}");
    }
}

#[test]
fn refuses_empty_reservations_and_unknown_flags() {
    let plain = record(false, 5, 0..0).encode();
    let flagged = |flags: u8, tail: &[u8]| {
        let mut bytes = [&plain[..], tail].concat();
        bytes[1] = flags;
        ExtentRecord::decode(&bytes)
    };
    assert!(flagged(2, &[0, 3, 0]).is_some());
    assert_eq!(flagged(2, &[0, 0, 0]), None);
    assert_eq!(flagged(2, &[]), None);
    assert_eq!(flagged(4, &[]), None);
    assert_eq!(ExtentRecord::decode(&[VALUE, 2, 0, 0, 3, 0]), None);
}

fn time() -> impl Strategy<Value = Timespec> {
    // Often the same, often of the same second.
    (prop_oneof![Just(5i64), Just(-5), any::<i64>()], 0u32..3).prop_map(|(secs, nanos)| Timespec {
        secs,
        nanos: nanos * 499_999_999,
    })
}

fn usual_or_any(usual: u32) -> impl Strategy<Value = u32> {
    prop_oneof![Just(usual), any::<u32>()]
}

fn small_or_large(most: u64) -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..=most, 0..=u64::from(u32::MAX) + 1]
}

fn inodes() -> impl Strategy<Value = InodeRecord> {
    let numbers = (
        0u16..=0o7777,
        usual_or_any(1),
        usual_or_any(0),
        usual_or_any(0),
        usual_or_any(0),
    );
    let sizes = (
        small_or_large(SIZE_MAX),
        small_or_large(PAGES_MAX),
        small_or_large(Ino::END.0 - 1),
    );
    let times = (time(), time(), time(), time());
    let target = prop_oneof![Just(Vec::new()), prop::collection::vec(any::<u8>(), 0..9)];
    (numbers, sizes, times, target).prop_map(|(numbers, sizes, times, target)| {
        let (perm, nlink, uid, gid, rdev) = numbers;
        let (size, pages, parent) = sizes;
        let (atime, mtime, ctime, crtime) = times;
        let kind = match target.is_empty() {
            true => FileKind::Directory,
            false => FileKind::Symlink,
        };
        InodeRecord {
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            size,
            pages,
            atime,
            mtime,
            ctime,
            crtime,
            parent: Ino(parent),
            target,
        }
    })
}

proptest! {
    #[test]
    fn an_inode_is_read_back(inode in inodes()) {
        let bytes = inode.encode();
        prop_assert!(bytes.len() <= charged_bytes(&bytes) + 2);
        prop_assert_eq!(charged_bytes(&bytes), 92 + inode.target.len());
        prop_assert_eq!(InodeRecord::decode(&bytes), Some(inode));
    }

    #[test]
    fn an_inode_has_one_encoding(
        inode in inodes(),
        at in 0usize..8,
        byte: u8,
        missing in 0usize..3,
    ) {
        let mut bytes = inode.encode();
        bytes[at] = byte;
        bytes.truncate(bytes.len() - missing);
        if let Some(decoded) = InodeRecord::decode(&bytes) {
            prop_assert_eq!(decoded.encode(), bytes);
        }
    }
}

#[test]
fn the_inode_of_a_small_file_is_short() {
    let birth = Timespec {
        secs: 1_700_000_000,
        nanos: 5,
    };
    let written = Timespec { nanos: 9, ..birth };
    let mut inode = InodeRecord {
        size: 100,
        mtime: written,
        ctime: written,
        ..InodeRecord::new(FileKind::Regular, 0o644, birth)
    };
    assert_eq!(inode.encode().len(), 26);
    (inode.uid, inode.gid) = (1000, 1000);
    assert_eq!(inode.encode().len(), 30);
}
