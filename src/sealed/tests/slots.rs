//! `meta`: its two slots of page 0, fresh pages, lengths, retries.

use std::sync::Arc;

use super::*;

fn create(file: &Arc<DamageableFile>) -> MetaFile {
    MetaFile::create(Arc::clone(file) as Arc<dyn StoreFile>, &keys(), CRYPTO).expect("create")
}

fn open(file: &Arc<DamageableFile>) -> Result<MetaFile, SealedError> {
    MetaFile::open(Arc::clone(file) as Arc<dyn StoreFile>, &keys(), CRYPTO)
}

fn page_0(meta: &MetaFile) -> u8 {
    let mut out = vec![0; META_PAYLOAD_BYTES];
    meta.read(0, &mut out).expect("page 0");
    assert!(
        out.iter().all(|byte| *byte == out[0]),
        "one version of page 0, whole"
    );
    out[0]
}

fn write_page_0(meta: &MetaFile, version: u8) {
    meta.write(0, &[version; META_PAYLOAD_BYTES])
        .expect("write");
}

#[test]
fn slots_alternate_and_sequences_grow_with_synced_headers() {
    let file = DamageableFile::new();
    let meta = create(&file);
    assert_eq!(meta.sequence(), Sequence(1));
    write_page_0(&meta, 1);
    write_page_0(&meta, 2);
    assert_eq!(meta.slots().map(|slot| slot.authentic), [true, false]);
    meta.sync().expect("sync");
    assert_eq!(meta.sequence(), Sequence(2));
    meta.sync().expect("a sync without a new header");
    assert_eq!(meta.sequence(), Sequence(2));
    write_page_0(&meta, 3);
    assert_eq!(page_0(&meta), 3);
    meta.sync().expect("sync");
    assert_eq!(meta.slots().map(|slot| slot.sequence.0), [1, 2]);
    let reopened = open(&file).expect("open");
    assert_eq!(reopened.slots(), meta.slots());
    assert_eq!((reopened.sequence(), page_0(&reopened)), (Sequence(3), 3));
    write_page_0(&reopened, 4);
    assert_eq!(reopened.slots().map(|slot| slot.sequence.0), [3, 2]);
}

#[test]
fn after_a_torn_write_of_page_0_the_older_slot_is_used() {
    for torn_at in [0, 1, 12, 44, 64, 500, 4000, 4159] {
        let file = DamageableFile::new();
        let meta = create(&file);
        for version in 1..=3 {
            write_page_0(&meta, version);
            meta.sync().expect("sync");
        }
        file.tear_next_write(torn_at);
        assert!(meta.write(0, &[4; META_PAYLOAD_BYTES]).is_err());
        let reopened = open(&file).expect("open");
        let (version, sequence) = (page_0(&reopened), reopened.sequence());
        // If nothing of the write arrived, the slot still holds its older page 0.
        assert_eq!((version, sequence), (3, Sequence(4)), "torn at {torn_at}");
        write_page_0(&reopened, 5);
        reopened.sync().expect("sync");
        assert_eq!(page_0(&open(&file).expect("open")), 5);
    }
}

#[test]
fn a_page_0_that_was_not_synced_may_be_lost() {
    let file = DamageableFile::new();
    let meta = create(&file);
    write_page_0(&meta, 1);
    meta.sync().expect("sync");
    write_page_0(&meta, 2);
    file.lose_unsynced();
    assert_eq!(page_0(&open(&file).expect("open")), 1);
}

#[test]
fn a_failed_sync_does_not_switch_the_slots() {
    let file = DamageableFile::new();
    let meta = create(&file);
    write_page_0(&meta, 1);
    meta.sync().expect("sync");
    write_page_0(&meta, 2);
    file.fail_syncs(1);
    assert!(meta.sync().is_err());
    assert_eq!(meta.sequence(), Sequence(2));
    write_page_0(&meta, 3);
    file.lose_unsynced();
    assert_eq!(
        page_0(&open(&file).expect("open")),
        1,
        "the synced slot was not written"
    );
}

#[test]
fn a_slot_copied_to_the_other_slot_is_refused() {
    let file = DamageableFile::new();
    let meta = create(&file);
    for version in 1..=2 {
        write_page_0(&meta, version);
        meta.sync().expect("sync");
    }
    file.change(|bytes| bytes.copy_within(META_STRIDE_BYTES..2 * META_STRIDE_BYTES, 0));
    let reopened = open(&file).expect("slot B is as it was");
    assert_eq!(reopened.slots().map(|slot| slot.authentic), [false, true]);
    file.change(|bytes| bytes[META_STRIDE_BYTES..2 * META_STRIDE_BYTES].fill(0));
    assert_eq!(refused(open(&file)), (0, Refusal::Outer));
    file.change(|bytes| bytes.truncate(META_STRIDE_BYTES));
    assert!(
        matches!(open(&file), Err(SealedError::ShortRead { .. })),
        "not opened as an empty database"
    );
    file.change(Vec::clear);
    assert!(
        matches!(open(&file), Err(SealedError::ShortRead { .. })),
        "not opened as an empty database"
    );
}

#[test]
fn fresh_pages_read_as_zeros_until_the_file_is_closed() {
    let file = DamageableFile::new();
    let meta = create(&file);
    assert_eq!(meta.len().expect("len"), 0);
    meta.set_len(5 * 4096).expect("grow");
    assert_eq!(meta.len().expect("len"), 5 * 4096);
    assert_eq!(file.bytes().len(), 6 * META_STRIDE_BYTES);
    let mut out = vec![9; 5 * 4096];
    meta.read(0, &mut out).expect("fresh pages");
    assert!(out.iter().all(|byte| *byte == 0));

    meta.write(4090, &[7; 4200])
        .expect("three pages, two of them in part");
    meta.read(0, &mut out).expect("read");
    assert!(out[4090..4090 + 4200].iter().all(|byte| *byte == 7));
    assert!(
        out[..4090]
            .iter()
            .chain(&out[4090 + 4200..])
            .all(|byte| *byte == 0)
    );
    let padding = 2 * META_STRIDE_BYTES + 4160..3 * META_STRIDE_BYTES;
    assert!(file.bytes()[padding].iter().all(|byte| *byte == 0));

    meta.sync().expect("sync");
    let reopened = open(&file).expect("open");
    assert!(
        reopened.read(3 * 4096, &mut [0; 10]).is_err(),
        "never written, and no longer known to be fresh"
    );
    reopened.set_len(3 * 4096).expect("shrink");
    reopened.set_len(4 * 4096).expect("grow");
    reopened
        .read(3 * 4096, &mut out[..10])
        .expect("fresh again");
    file.change(|bytes| bytes.extend_from_slice(&[1; META_STRIDE_BYTES - 1]));
    assert_eq!(
        reopened.len().expect("len"),
        4 * 4096,
        "a partial stride does not count"
    );
    assert!(reopened.read(4 * 4096, &mut [0; 1]).is_err());
}

#[test]
fn a_transient_read_error_is_retried() {
    let file = DamageableFile::new();
    let meta = create(&file);
    write_page_0(&meta, 1);
    file.fail_reads(2);
    assert_eq!(page_0(&meta), 1);
    file.fail_reads(3);
    assert!(meta.read(0, &mut [0; 1]).is_err());
}

#[test]
fn large_writes_are_split_into_runs_and_segments() {
    let file = DamageableFile::new();
    let meta = create(&file);
    let offset = 1780 * 4096u64;
    meta.set_len(2200 * 4096).expect("grow");
    let data = pattern(300 * 4096, 9);
    meta.write(offset, &data).expect("write");
    assert_eq!(
        file.write_calls(),
        3,
        "split after 256 pages and at page 2048"
    );
    let mut out = vec![0; data.len()];
    meta.read(offset, &mut out).expect("read");
    assert_eq!(out, data);
}

/// Somebody who holds a read-only key set of the volume can seal pages for the same file under that
/// set. The opener names the active set, and only pages under it are authentic.
#[test]
fn pages_sealed_under_another_key_set_are_refused() {
    let file = DamageableFile::new();
    let meta = create(&file);
    meta.write(0, &pattern(3 * 4096, 1)).expect("write");
    meta.sync().expect("sync");
    let active = Arc::new(key_set(7, 8, 9, 2));
    let opened = MetaFile::open(Arc::clone(&file) as Arc<dyn StoreFile>, &active, CRYPTO);
    assert_eq!(refused(opened), (0, Refusal::Header));

    // One page under the other set beside page 0 under the active one.
    let own = DamageableFile::new();
    let meta = MetaFile::create(Arc::clone(&own) as Arc<dyn StoreFile>, &active, CRYPTO);
    let meta = meta.expect("create");
    meta.write(0, &pattern(3 * 4096, 2)).expect("write");
    meta.sync().expect("sync");
    let (stride, foreign) = (META_STRIDE_BYTES, file.bytes());
    let page_1 = 2 * stride..3 * stride;
    own.change(|bytes| bytes[page_1.clone()].copy_from_slice(&foreign[page_1.clone()]));
    let meta = MetaFile::open(Arc::clone(&own) as Arc<dyn StoreFile>, &active, CRYPTO);
    let meta = meta.expect("open");
    assert!(meta.read(4096, &mut [0; 1]).is_err());
    assert!(meta.read(8192, &mut [0; 1]).is_ok());
}

#[test]
fn debug_shows_no_secret() {
    let shown = format!(
        "{:?} {:?}",
        create(&DamageableFile::new()),
        contents(&DamageableFile::new())
    );
    assert!(shown.contains("MetaFile") && !shown.contains("keys"));
}

#[test]
fn concurrent_writers_beyond_the_end_do_not_truncate_each_others_pages() {
    for _ in 0..20 {
        let file = DamageableFile::new();
        let meta = create(&file);
        std::thread::scope(|scope| {
            for page in 0..8u8 {
                let meta = &meta;
                scope.spawn(move || {
                    let offset = u64::from(page) * 4096;
                    meta.write(offset, &[page + 1; 4096]).expect("write");
                });
            }
        });
        assert_eq!(meta.len().expect("len"), 8 * 4096);
        let mut out = vec![0; 8 * 4096];
        meta.read(0, &mut out).expect("read");
        for (page, bytes) in out.chunks(4096).enumerate() {
            assert!(bytes.iter().all(|byte| usize::from(*byte) == page + 1));
        }
    }
}

#[test]
fn a_slot_with_any_changed_byte_outside_the_padding_is_not_authentic() {
    let file = DamageableFile::new();
    let meta = create(&file);
    for version in 1..=2 {
        write_page_0(&meta, version);
        meta.sync().expect("sync");
    }
    for byte in 0..META_STRIDE_BYTES {
        let at = META_STRIDE_BYTES + byte;
        file.change(|bytes| bytes[at] ^= 0x10);
        let reopened = open(&file).expect("slot A is as it was");
        let authentic = byte >= 4160;
        assert_eq!(
            reopened.slots().map(|slot| slot.authentic),
            [true, authentic],
            "byte {byte}"
        );
        assert_eq!(page_0(&reopened), if authentic { 2 } else { 1 });
        file.change(|bytes| bytes[at] ^= 0x10);
    }
}
