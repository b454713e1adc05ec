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
fn a_torn_header_leaves_the_one_before() {
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
        // Torn before its first byte, the older slot is still the older slot.
        assert_eq!((version, sequence), (3, Sequence(4)), "torn at {torn_at}");
        write_page_0(&reopened, 5);
        reopened.sync().expect("sync");
        assert_eq!(page_0(&open(&file).expect("open")), 5);
    }
}

#[test]
fn a_header_written_and_not_synced_may_be_lost() {
    let file = DamageableFile::new();
    let meta = create(&file);
    write_page_0(&meta, 1);
    meta.sync().expect("sync");
    write_page_0(&meta, 2);
    file.lose_unsynced();
    assert_eq!(page_0(&open(&file).expect("open")), 1);
}

#[test]
fn a_failed_sync_switches_nothing() {
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
fn a_slot_is_not_the_other_slot() {
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
        "no empty database"
    );
    file.change(Vec::clear);
    assert!(
        matches!(open(&file), Err(SealedError::ShortRead { .. })),
        "no empty database"
    );
}

#[test]
fn lengths_fresh_pages_and_partial_writes() {
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
        "never written, no longer known"
    );
    reopened.set_len(3 * 4096).expect("cut");
    reopened.set_len(4 * 4096).expect("grow");
    reopened
        .read(3 * 4096, &mut out[..10])
        .expect("fresh again");
    file.change(|bytes| bytes.extend_from_slice(&[1; META_STRIDE_BYTES - 1]));
    assert_eq!(
        reopened.len().expect("len"),
        4 * 4096,
        "a part of a stride is none"
    );
    assert!(reopened.read(4 * 4096, &mut [0; 1]).is_err());
}

#[test]
fn a_read_error_that_passes_is_not_seen() {
    let file = DamageableFile::new();
    let meta = create(&file);
    write_page_0(&meta, 1);
    file.fail_reads(2);
    assert_eq!(page_0(&meta), 1);
    file.fail_reads(3);
    assert!(meta.read(0, &mut [0; 1]).is_err());
}

#[test]
fn large_writes_cross_runs_and_segments() {
    let file = DamageableFile::new();
    let meta = create(&file);
    let offset = 1780 * 4096u64;
    meta.set_len(2200 * 4096).expect("grow");
    let data = pattern(300 * 4096, 9);
    meta.write(offset, &data).expect("write");
    assert_eq!(file.write_calls(), 3, "cut at 256 pages and at page 2048");
    let mut out = vec![0; data.len()];
    meta.read(offset, &mut out).expect("read");
    assert_eq!(out, data);
}

/// Whoever holds a set that the volume only reads with can seal pages for the same file; its opener
/// names the active set, and nothing else is authentic.
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
fn writers_beyond_the_end_do_not_cut_each_other_off() {
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
fn every_byte_of_a_slot_counts_but_the_padding() {
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
