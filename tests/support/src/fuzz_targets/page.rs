//! Sealed pages, of contents and of `meta`: whatever is on the disk, a page returns the plaintext
//! that was sealed at its position, or an error.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use bilayer::ids::{CryptoId, Epoch, PageIndex, Sequence};
use bilayer::layers::{CustomerDek, InfrastructureDek, KeyRing, KeySet};
use bilayer::sealed::{
    ContentsFile, META_PAYLOAD_BYTES, META_STRIDE_BYTES, MetaFile, PAGE_BYTES, PAYLOAD_BYTES,
};
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StoreFile, StorePath};

const PAGES: usize = 4;
const CRYPTO: CryptoId = CryptoId([5; 16]);

/// A change of sealed bytes.
#[derive(Arbitrary, Debug)]
enum Change<'a> {
    Flip { at: u16, by: u8 },
    Write { at: u16, bytes: &'a [u8] },
    Copy { from: u8, to: u8 },
    Zero(u8),
    Truncate(u16),
}

/// Sealed bytes and their plaintext.
struct Sealed {
    bytes: Vec<u8>,
    unit: usize,
}

struct Samples {
    ring: KeyRing,
    contents: Sealed,
    meta: Sealed,
}

thread_local! {
    static SAMPLES: OnceCell<Rc<Samples>> = const { OnceCell::new() };
}

fn key_set() -> KeySet {
    KeySet {
        id: bilayer::ids::KeySetId([1; 16]),
        epoch: Epoch(1),
        customer: CustomerDek::from_bytes(&std::array::from_fn(|at| at as u8)).unwrap(),
        infrastructure: InfrastructureDek::from_bytes(&[3; 32]).unwrap(),
    }
}

fn file_of(bytes: &[u8]) -> Arc<dyn StoreFile> {
    let file = MemoryStore::new().open(&StorePath::new("file"), OpenMode::CreateNew);
    let file = file.unwrap();
    file.write_at(bytes, 0).unwrap();
    file
}

fn all_of(file: &dyn StoreFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn plain(page: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + page * 31) as u8).collect()
}

impl Samples {
    fn new() -> Self {
        let ring = KeyRing::new(key_set(), Vec::new());
        let file = file_of(&[]);
        let contents = ContentsFile::new(Arc::clone(&file), ring.active(), CRYPTO);
        let guard = contents.lock_exclusive(PageIndex(0)..PageIndex(PAGES as u64));
        for page in 0..PAGES {
            let data = plain(page, PAYLOAD_BYTES);
            let at = (page * PAYLOAD_BYTES) as u64;
            let written = contents.write_at(&guard, at, &data, Sequence(1), &mut |_, _| Ok(()));
            written.unwrap();
        }
        let contents = Sealed {
            bytes: all_of(&*file),
            unit: PAGE_BYTES,
        };
        let file = file_of(&[]);
        let meta = MetaFile::create(Arc::clone(&file), ring.active(), CRYPTO).unwrap();
        for page in 0..PAGES {
            let data = plain(page, META_PAYLOAD_BYTES);
            meta.write((page * META_PAYLOAD_BYTES) as u64, &data)
                .unwrap();
        }
        meta.sync().unwrap();
        // Both slots of page 0 are in use.
        meta.write(0, &plain(0, META_PAYLOAD_BYTES)).unwrap();
        meta.sync().unwrap();
        let meta = Sealed {
            bytes: all_of(&*file),
            unit: META_STRIDE_BYTES,
        };
        Self {
            ring,
            contents,
            meta,
        }
    }
}

/// The first byte chooses the geometry, and whether the others are the file itself or describe
/// changes of a sealed one.
pub fn target(data: &[u8]) {
    let samples = SAMPLES.with(|kept| Rc::clone(kept.get_or_init(|| Rc::new(Samples::new()))));
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let sealed = if kind & 1 == 0 {
        &samples.contents
    } else {
        &samples.meta
    };
    let mut bytes = sealed.bytes.clone();
    if kind & 2 == 0 {
        // A short or odd end means fewer changes.
        let _ = mutate(&mut bytes, sealed.unit, rest);
    } else {
        rest.clone_into(&mut bytes);
    }
    if kind & 1 == 0 {
        read_contents(&samples, &bytes);
    } else {
        read_meta(&samples, &bytes);
    }
}

fn mutate(bytes: &mut Vec<u8>, unit: usize, data: &[u8]) -> Result<()> {
    let mut input = Unstructured::new(data);
    while !input.is_empty() {
        let len = bytes.len();
        let units = (len / unit).max(1);
        let range = |number: u8| {
            let start = usize::from(number) % units * unit;
            start..(start + unit).min(len)
        };
        match Change::arbitrary(&mut input)? {
            Change::Flip { at, by } if len > 0 => bytes[usize::from(at) % len] ^= by,
            Change::Write { at, bytes: new } if len > 0 => {
                let at = usize::from(at) % len;
                let end = (at + new.len()).min(len);
                bytes[at..end].copy_from_slice(&new[..end - at]);
            }
            Change::Copy { from, to } if range(from).len() == range(to).len() => {
                bytes.copy_within(range(from), range(to).start);
            }
            Change::Zero(number) => bytes[range(number)].fill(0),
            Change::Truncate(at) => bytes.truncate(usize::from(at)),
            _ => {}
        }
    }
    Ok(())
}

/// True if the unit is as it was sealed.
fn unchanged(sealed: &Sealed, bytes: &[u8], number: usize, len: usize) -> bool {
    let start = number * sealed.unit;
    bytes.get(start..start + len) == Some(&sealed.bytes[start..start + len])
}

fn read_contents(samples: &Samples, bytes: &[u8]) {
    let contents = ContentsFile::new(file_of(bytes), samples.ring.active(), CRYPTO);
    let guard = contents.lock_shared(PageIndex(0)..PageIndex(PAGES as u64 + 1));
    for page in 0..=PAGES {
        let mut out = vec![0; PAYLOAD_BYTES];
        let at = (page * PAYLOAD_BYTES) as u64;
        let read = contents.read_at(&guard, at, &mut out);
        let right = page < PAGES && unchanged(&samples.contents, bytes, page, PAGE_BYTES);
        assert_eq!(read.is_ok(), right, "page {page}: {read:?}");
        assert!(!right || out == plain(page, PAYLOAD_BYTES), "page {page}");
        let pages = PageIndex(page as u64)..PageIndex(page as u64 + 1);
        let mut refused = 0;
        let verified = contents.verify(&guard, pages, &mut |_, _| refused += 1);
        verified.expect("the page is locked");
        assert_eq!(refused == 0, right, "page {page}");
    }
}

fn read_meta(samples: &Samples, bytes: &[u8]) {
    // Padding after a page in its stride is no part of it.
    let sealed_bytes = META_PAYLOAD_BYTES + 64;
    let slots = [0, 1].map(|slot| unchanged(&samples.meta, bytes, slot, sealed_bytes));
    let opened = MetaFile::open(file_of(bytes), samples.ring.active(), CRYPTO);
    let Ok(meta) = opened else {
        let whole = bytes.len() >= 2 * META_STRIDE_BYTES;
        assert!(!whole || slots == [false, false], "{:?}", opened.err());
        return;
    };
    assert_eq!(meta.slots().map(|slot| slot.authentic), slots);
    for page in 0..=PAGES {
        let mut out = vec![0; META_PAYLOAD_BYTES];
        let read = meta.read((page * META_PAYLOAD_BYTES) as u64, &mut out);
        let right = match page {
            0 => true,
            _ => {
                let there = bytes.len() >= (page + 2) * META_STRIDE_BYTES;
                page < PAGES && there && unchanged(&samples.meta, bytes, page + 1, sealed_bytes)
            }
        };
        assert_eq!(read.is_ok(), right, "page {page}: {read:?}");
        assert!(
            !right || out == plain(page, META_PAYLOAD_BYTES),
            "page {page}"
        );
    }
}
