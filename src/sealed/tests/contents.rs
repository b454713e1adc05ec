//! Reading and writing objects: any offset, any length, runs, locks.

use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::ids::PageIndex;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn behaves_like_a_plain_file(
        writes in proptest::collection::vec((0usize..30_000, 1usize..20_000), 1..12),
    ) {
        let file = DamageableFile::new();
        let object = contents(&file);
        let mut model = vec![0u8; 0];
        for (seed, (offset, len)) in writes.into_iter().enumerate() {
            // Objects do not track holes; the caller does. So the model has none.
            let offset = offset.min(model.len());
            let data = pattern(len, seed as u64);
            model.resize(model.len().max(offset + len), 0);
            model[offset..offset + len].copy_from_slice(&data);
            write(&object, offset as u64, &data).expect("write");
        }
        prop_assert_eq!(&read(&object, 0, model.len()).expect("read"), &model);
        let middle = model.len() / 3;
        prop_assert_eq!(
            &read(&object, middle as u64, model.len() / 2).expect("read"),
            &model[middle..middle + model.len() / 2]
        );
        let reopened = contents(&file);
        prop_assert_eq!(&read(&reopened, 0, model.len()).expect("read"), &model);
        prop_assert_eq!(file.bytes().len(), model.len().div_ceil(PAYLOAD_BYTES) * PAGE_BYTES);
    }
}

#[test]
fn a_run_is_written_with_one_call_and_has_at_most_256_pages() {
    let file = DamageableFile::new();
    let object = contents(&file);
    write(&object, 0, &pattern(256 * PAYLOAD_BYTES, 1)).expect("write");
    assert_eq!(file.write_calls(), 1);
    write(&object, 0, &pattern(257 * PAYLOAD_BYTES, 2)).expect("write");
    assert_eq!(file.write_calls(), 3);
}

#[test]
fn runs_cross_segments() {
    let file = DamageableFile::new();
    let object = contents(&file);
    let offset = 2040 * PAYLOAD_BYTES as u64;
    let data = pattern(16 * PAYLOAD_BYTES, 3);
    write(&object, offset, &data).expect("write");
    assert_eq!(file.write_calls(), 2);
    assert_eq!(read(&object, offset, data.len()).expect("read"), data);
}

#[test]
fn old_plaintext_is_requested_only_for_partly_covered_pages() {
    let file = DamageableFile::new();
    let object = contents(&file);
    let data = pattern(2 * PAYLOAD_BYTES, 4);
    let guard = object.lock_exclusive(PageIndex(0)..PageIndex(3));
    let mut asked = Vec::new();
    object
        .write_at(&guard, 100, &data, Sequence(1), &mut |page, old| {
            asked.push(page.0);
            old.fill(0xEE);
            Ok(())
        })
        .expect("write");
    assert_eq!(asked, [0, 2]);
    drop(guard);
    let all = read(&object, 0, 3 * PAYLOAD_BYTES).expect("read");
    assert!(all[..100].iter().all(|byte| *byte == 0xEE));
    assert_eq!(&all[100..100 + data.len()], &data[..]);
    assert!(all[100 + data.len()..].iter().all(|byte| *byte == 0xEE));
}

#[test]
fn the_same_page_is_never_the_same_bytes_twice() {
    let file = DamageableFile::new();
    let object = contents(&file);
    let data = pattern(PAYLOAD_BYTES, 5);
    write(&object, 0, &data).expect("write");
    let first = file.bytes();
    write(&object, 0, &data).expect("write");
    let second = file.bytes();
    let equal = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    // Epoch, sequence, reserved are equal; of random bytes, one in 256.
    assert!(equal < 20 + 100, "{equal} equal bytes");
}

#[test]
fn calls_without_the_needed_lock_are_refused() {
    let file = DamageableFile::new();
    let (object, other) = (contents(&file), contents(&DamageableFile::new()));
    write(&object, 0, &pattern(2 * PAYLOAD_BYTES, 6)).expect("write");
    let mut out = [0; PAYLOAD_BYTES];
    let not_locked = |result: Result<(), SealedError>| {
        assert!(matches!(result, Err(SealedError::NotLocked)), "{result:?}");
    };
    let base = &mut |_: PageIndex, _: &mut [u8; PAYLOAD_BYTES]| Ok(());
    {
        let shared = object.lock_shared(PageIndex(0)..PageIndex(1));
        not_locked(object.write_at(&shared, 0, &out, Sequence(1), base));
        not_locked(object.read_at(&shared, 1, &mut out));
        not_locked(object.set_len_pages(&shared, 0));
        not_locked(object.punch(&shared, PageIndex(0)..PageIndex(1)));
        not_locked(other.read_at(&shared, 0, &mut out));
    }
    let exclusive = object.lock_exclusive(PageIndex(0)..PageIndex(1));
    not_locked(object.write_at(&exclusive, 4000, &out, Sequence(1), base));
    not_locked(object.set_len_pages(&exclusive, 1));
    object
        .read_at(&exclusive, 0, &mut out)
        .expect("read under an exclusive lock");
}

#[test]
fn truncated_and_punched_pages_do_not_open() {
    let file = DamageableFile::new();
    let object = contents(&file);
    let data = pattern(4 * PAYLOAD_BYTES, 7);
    write(&object, 0, &data).expect("write");
    let guard = object.lock_exclusive(PageIndex(0)..PageIndex(9));
    object.set_len_pages(&guard, 9).expect("does not grow");
    assert_eq!(file.bytes().len(), 4 * PAGE_BYTES);
    object.set_len_pages(&guard, 3).expect("truncate");
    object
        .punch(&guard, PageIndex(1)..PageIndex(2))
        .expect("punch");
    drop(guard);
    assert_eq!(
        read(&object, 0, PAYLOAD_BYTES).expect("read"),
        data[..PAYLOAD_BYTES]
    );
    assert_eq!(
        refused(read(&object, PAYLOAD_BYTES as u64, 10)),
        (1, Refusal::Header),
        "a page of zeros does not open"
    );
    assert!(matches!(
        read(&object, 2 * PAYLOAD_BYTES as u64, 2 * PAYLOAD_BYTES),
        Err(SealedError::ShortRead { page: PageIndex(3) })
    ));
}

#[test]
fn offsets_beyond_the_largest_file_are_errors() {
    let object = contents(&DamageableFile::new());
    let guard = object.lock_exclusive(PageIndex(0)..PageIndex(u64::MAX));
    for offset in [u64::MAX, u64::MAX - 5, u64::MAX - 4032, u64::MAX / 2] {
        let result = object.read_at(&guard, offset, &mut [0; 4]);
        assert!(matches!(result, Err(SealedError::OutOfRange)), "{result:?}");
    }
    object.read_at(&guard, 0, &mut []).expect("nothing to read");
}

#[test]
fn threads_that_write_parts_of_one_page_do_not_lose_writes() {
    let file = DamageableFile::new();
    let object = contents(&file);
    write(&object, 0, &[0; 8 * PAYLOAD_BYTES]).expect("write");
    let object = Arc::new(object);
    std::thread::scope(|scope| {
        for worker in 0..8usize {
            let object = Arc::clone(&object);
            // Neighbouring threads write to the same page.
            scope.spawn(move || {
                let offset = (worker * 3000) as u64;
                for round in 0..20 {
                    let data = [(worker * 20 + round) as u8; 3000];
                    write(&object, offset, &data).expect("write");
                    assert_eq!(read(&object, offset, 3000).expect("read"), data);
                }
            });
        }
    });
}

/// Pages that were sealed into memory can be written to their object later. Other pages are
/// refused.
#[test]
fn pages_are_sealed_into_memory_and_written_to_their_object_later() {
    let data = pattern(300 * PAYLOAD_BYTES, 9);
    let pages = |range: Range<u64>| PageIndex(range.start)..PageIndex(range.end);
    let sealer = PageSealer::new(&keys(), CRYPTO);
    let seal = |range: Range<u64>| {
        let plain = &data[range.start as usize * PAYLOAD_BYTES..range.end as usize * PAYLOAD_BYTES];
        let mut out = vec![0; (range.end - range.start) as usize * PAGE_BYTES];
        sealer
            .seal(pages(range), plain, Sequence(5), &mut out)
            .map(|()| out)
    };
    let sealed = seal(0..300).expect("seal");
    let other = seal(0..300).expect("seal");
    assert_ne!(sealed[..12], other[..12], "a nonce of its own");

    let target = DamageableFile::new();
    let copy = contents(&target);
    let write_sealed = |range: Range<u64>, bytes: &[u8]| {
        let guard = copy.lock_exclusive(pages(range.clone()));
        copy.write_sealed(&guard, pages(range), bytes)
    };
    write_sealed(0..300, &sealed).expect("write");
    assert_eq!(target.bytes(), sealed);
    assert_eq!(read(&copy, 0, data.len()).expect("read"), data);
    // In pieces too.
    let piece = seal(7..9).expect("seal");
    write_sealed(7..9, &piece).expect("write");
    assert_eq!(read(&copy, 0, data.len()).expect("read"), data);
    target.change(|bytes| bytes.copy_from_slice(&sealed));

    assert!(write_sealed(0..2, &sealed[..PAGE_BYTES]).is_err());
    assert!(write_sealed(0..1, &sealed[PAGE_BYTES..2 * PAGE_BYTES]).is_err());
    for byte in [0, 12, 28, 44, 48, 56, 64, PAGE_BYTES - 1] {
        let mut forged = sealed[..2 * PAGE_BYTES].to_vec();
        forged[PAGE_BYTES + byte] ^= 1;
        let refused = write_sealed(0..2, &forged);
        assert!(
            matches!(
                refused,
                Err(SealedError::Authentication {
                    page: PageIndex(1),
                    ..
                })
            ),
            "{byte}: {refused:?}"
        );
    }
    assert_eq!(target.bytes(), sealed, "nothing was written");
    // Buffers of another length.
    let mut out = vec![0; 2 * PAGE_BYTES];
    let plain = &data[..PAYLOAD_BYTES];
    assert!(
        sealer
            .seal(pages(0..1), plain, Sequence(5), &mut out)
            .is_err()
    );
    assert!(
        sealer
            .seal(pages(0..2), plain, Sequence(5), &mut out)
            .is_err()
    );
}

/// The inner layer is verified too, though it is not decrypted.
#[test]
fn sealed_pages_are_verified_under_both_layers() {
    let sealer = PageSealer::new(&keys(), CRYPTO);
    let page = PageIndex(0)..PageIndex(1);
    let mut sealed = [0; PAGE_BYTES];
    let plain = pattern(PAYLOAD_BYTES, 9);
    sealer
        .seal(page.clone(), &plain, Sequence(1), &mut sealed)
        .expect("seal");
    let file = DamageableFile::new();
    let other = ContentsFile::new(file.clone(), &Arc::new(key_set(9, 2, 3, 1)), CRYPTO);
    let guard = other.lock_exclusive(page.clone());
    let refused = other.write_sealed(&guard, page, &sealed);
    assert!(matches!(
        refused,
        Err(SealedError::Authentication {
            layer: Refusal::Inner,
            ..
        })
    ));
    assert!(file.bytes().is_empty());
}
