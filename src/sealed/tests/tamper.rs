//! A page that was changed in any way is refused with its number, and no byte of it is read.

use std::sync::Arc;

use super::*;

/// One object of three pages, and its plaintext.
fn sealed_object() -> (Arc<DamageableFile>, Vec<u8>) {
    let file = DamageableFile::new();
    let data = pattern(3 * PAYLOAD_BYTES, 1);
    write(&contents(&file), 0, &data).expect("write");
    (file, data)
}

fn read_page(file: &Arc<DamageableFile>, page: u64) -> Result<Vec<u8>, SealedError> {
    read(&contents(file), page * PAYLOAD_BYTES as u64, PAYLOAD_BYTES)
}

#[test]
fn a_change_of_any_header_bit_or_payload_byte_is_refused() {
    let (file, data) = sealed_object();
    let header_bits = (0..64 * 8).map(|bit| (bit / 8, 1u8 << (bit % 8)));
    let payload_bytes = (64..PAGE_BYTES).map(|byte| (byte, 0x80u8 >> (byte % 8)));
    for (byte, flip) in header_bits.chain(payload_bytes) {
        file.change(|bytes| bytes[PAGE_BYTES + byte] ^= flip);
        let expected = match byte {
            44..48 | 56..64 => Refusal::Header,
            _ => Refusal::Outer,
        };
        assert_eq!(refused(read_page(&file, 1)), (1, expected), "byte {byte}");
        file.change(|bytes| bytes[PAGE_BYTES + byte] ^= flip);
    }
    assert_eq!(
        read_page(&file, 1).expect("restored"),
        data[PAYLOAD_BYTES..2 * PAYLOAD_BYTES]
    );
}

#[test]
fn a_refused_page_leaves_nothing_in_the_readers_buffer() {
    let (file, _) = sealed_object();
    file.change(|bytes| bytes[64] ^= 1);
    let object = contents(&file);
    let guard = object.lock_shared(ContentsFile::pages(0, PAYLOAD_BYTES).expect("in range"));
    for len in [PAYLOAD_BYTES, 100] {
        let mut out = vec![0xAA; len];
        assert!(object.read_at(&guard, 0, &mut out).is_err());
        assert!(out.iter().all(|byte| *byte == 0xAA));
    }
}

#[test]
fn swapped_zeroed_and_truncated_pages_are_refused() {
    let (file, _) = sealed_object();
    let whole = file.bytes();
    file.change(|bytes| {
        let (first, rest) = bytes.split_at_mut(PAGE_BYTES);
        first.swap_with_slice(&mut rest[..PAGE_BYTES]);
    });
    assert_eq!(refused(read_page(&file, 0)), (0, Refusal::Outer));
    assert_eq!(refused(read_page(&file, 1)), (1, Refusal::Outer));
    assert!(read_page(&file, 2).is_ok());
    file.change(|bytes| bytes.clone_from(&whole));
    file.change(|bytes| bytes[PAGE_BYTES..2 * PAGE_BYTES].fill(0));
    assert_eq!(refused(read_page(&file, 1)), (1, Refusal::Header));
    file.change(|bytes| bytes.truncate(3 * PAGE_BYTES - 1));
    assert!(matches!(read_page(&file, 2), Err(SealedError::ShortRead { page }) if page.0 == 2));
}

#[test]
fn a_page_of_another_segment_is_refused() {
    let file = DamageableFile::new();
    let object = contents(&file);
    let data = pattern(PAYLOAD_BYTES, 2);
    write(&object, 0, &data).expect("write");
    write(&object, 2048 * PAYLOAD_BYTES as u64, &data).expect("write");
    file.change(|bytes| bytes.copy_within(..PAGE_BYTES, 2048 * PAGE_BYTES));
    assert_eq!(refused(read_page(&file, 2048)), (2048, Refusal::Outer));
}

#[test]
fn a_page_of_another_object_key_set_or_key_is_refused() {
    let (file, _) = sealed_object();
    let open = |set: KeySet, crypto| {
        let file = Arc::clone(&file) as Arc<dyn StoreFile>;
        read(
            &ContentsFile::new(file, &Arc::new(set), crypto),
            0,
            PAYLOAD_BYTES,
        )
    };
    assert!(open(key_set(1, 2, 3, 1), CRYPTO).is_ok());
    let other = CryptoId([0xC1; 16]);
    assert_eq!(refused(open(key_set(1, 2, 3, 1), other)).1, Refusal::Outer);
    assert_eq!(refused(open(key_set(1, 2, 4, 1), CRYPTO)).1, Refusal::Outer);
    assert_eq!(
        refused(open(key_set(1, 2, 3, 2), CRYPTO)).1,
        Refusal::Header
    );
    assert_eq!(refused(open(key_set(1, 9, 3, 1), CRYPTO)).1, Refusal::Outer);
    assert_eq!(refused(open(key_set(9, 2, 3, 1), CRYPTO)).1, Refusal::Inner);
}

const STRIDE: usize = META_STRIDE_BYTES;

#[test]
fn moved_zeroed_and_changed_meta_pages_are_refused() {
    let file = DamageableFile::new();
    let meta =
        MetaFile::create(Arc::clone(&file) as Arc<dyn StoreFile>, &keys(), CRYPTO).expect("create");
    let data = pattern(4 * META_PAYLOAD_BYTES, 3);
    meta.write(0, &data).expect("write");
    let whole = file.bytes();
    let damages: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes.copy_within(3 * STRIDE..4 * STRIDE, 2 * STRIDE),
        |bytes| bytes[2 * STRIDE..3 * STRIDE].fill(0),
        |bytes| bytes[2 * STRIDE + 64 + 4095] ^= 1,
        |bytes| bytes.copy_within(..STRIDE, 2 * STRIDE),
    ];
    for damage in damages {
        file.change(damage);
        let mut out = vec![0; data.len()];
        let error = meta.read(0, &mut out).expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        file.change(|bytes| bytes.clone_from(&whole));
    }
}
