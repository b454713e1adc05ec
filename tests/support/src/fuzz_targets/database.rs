//! redb over hostile pages: whatever the pages contain behind both layers, using the database ends
//! in errors. redb panics on many of them; those panics are caught where redb is called.
//!
//! One kind cannot be caught: if a page that a commit frees was not in use, redb 4.5 panics while
//! it searches a table of such pages, and again in a destructor while unwinding, which ends the
//! process like a kill. An input that causes this is nevertheless a finding here.

use std::sync::{Arc, Once};

use arbitrary::{Arbitrary, Result, Unstructured};
use bilayer::ids::{Ino, ViewId};
use bilayer::meta::commit::BatchNumber;
use bilayer::meta::keys::Table;
use bilayer::meta::raw::{RawTables, Visited};
use bilayer::meta::{Batch, Meta, MetaError, View};
use bilayer::sealed::{META_PAYLOAD_BYTES, MetaFile, SealedError};
use bilayer::store::memory::MemoryStore;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::{META_NAME, Volume};

use super::hostile;

const PAGE: u64 = META_PAYLOAD_BYTES as u64;

/// A change of the plaintext below the database. Pages are numbered among those in use.
#[derive(Arbitrary, Debug)]
enum Change<'a> {
    Flip {
        page: u16,
        at: u16,
        by: u8,
    },
    Write {
        page: u16,
        at: u16,
        bytes: &'a [u8],
    },
    Copy {
        from: u16,
        to: u16,
    },
    Fill {
        page: u16,
        with: u8,
    },
    /// In the database's own header.
    Header {
        at: u8,
        value: u8,
    },
    SetLen {
        pages: u8,
    },
}

/// The first byte says whether the last use ended by a power cut, the others describe changes of
/// the pages.
pub fn target(data: &[u8]) {
    let Some((_, rest)) = data.split_first() else {
        return;
    };
    spare_caught_panics();
    let sample = hostile::sample();
    let store = sample.store.snapshot();
    let volume = sample.open(&store).unwrap();
    let sound = open(&store, &volume).unwrap();
    // A short or odd end means fewer changes.
    let _ = mutate(&sound, rest);
    drop(sound);
    let Ok(changed) = open(&store, &volume) else {
        return;
    };
    look_at_pages(changed);
    let Ok(changed) = open(&store, &volume) else {
        return;
    };
    if let Ok(meta) = Meta::open(changed, 1 << 18) {
        let _ = use_it(&meta);
        let _ = meta.close();
    }
}

fn open(store: &MemoryStore, volume: &Volume) -> std::result::Result<MetaFile, SealedError> {
    let file = store.open(&StorePath::new(META_NAME), OpenMode::ReadWrite);
    MetaFile::open(
        file.unwrap(),
        volume.keys.active(),
        volume.header().meta_crypto(),
    )
}

fn mutate(file: &MetaFile, data: &[u8]) -> Result<()> {
    let mut input = Unstructured::new(data);
    let pages = in_use(file);
    let choose = |page: u16| pages[usize::from(page) % pages.len()];
    let mut page_bytes = vec![0; META_PAYLOAD_BYTES];
    while !input.is_empty() {
        let (page, at, bytes) = match Change::arbitrary(&mut input)? {
            Change::Flip { page, at, by } => {
                let mut byte = [0];
                let at = u64::from(at) % PAGE;
                let _ = file.read(choose(page) * PAGE + at, &mut byte);
                (choose(page), at, vec![byte[0] ^ by])
            }
            Change::Write { page, at, bytes } => {
                let at = u64::from(at) % PAGE;
                let len = bytes.len().min((PAGE - at) as usize);
                (choose(page), at, bytes[..len].to_vec())
            }
            Change::Copy { from, to } => {
                let _ = file.read(choose(from) * PAGE, &mut page_bytes);
                (choose(to), 0, page_bytes.clone())
            }
            Change::Fill { page, with } => (choose(page), 0, vec![with; META_PAYLOAD_BYTES]),
            Change::Header { at, value } => (0, u64::from(at), vec![value]),
            Change::SetLen { pages } => {
                let _ = file.set_len(u64::from(pages) * PAGE);
                continue;
            }
        };
        let _ = file.write(page * PAGE + at, &bytes);
    }
    let _ = file.sync();
    Ok(())
}

/// Pages that were ever written; the others do not open.
fn in_use(file: &MetaFile) -> Vec<u64> {
    let count = file.len().unwrap() / PAGE;
    let mut bytes = vec![0; META_PAYLOAD_BYTES];
    let written = (0..count).filter(|page| file.read(page * PAGE, &mut bytes).is_ok());
    written.collect()
}

/// Reads the pages without redb: each key is visited once, in order.
fn look_at_pages(file: MetaFile) {
    for tables in RawTables::all(&Arc::new(file)) {
        for table in Table::ALL {
            let mut last: Option<Vec<u8>> = None;
            tables.visit(table, &(Vec::new()..vec![0xFF; 300]), &mut |visited| {
                if let Visited::Row(key, _) = visited {
                    assert!(last.as_deref().is_none_or(|last| last < key));
                    last = Some(key.to_vec());
                }
                true
            });
        }
    }
}

fn use_it(meta: &Meta) -> std::result::Result<(), MetaError> {
    for table in Table::ALL {
        let _ = meta.rows(table);
        let _ = meta.scan(table, &[], &[0xFF; 20], View::LIVE, 1000);
    }
    let _ = meta.visit_extents(&mut |_, _| {});
    let _ = meta.view(ViewId(1));
    let mut batch = Batch::new();
    for ino in 1..20 {
        if let Ok(Some(record)) = meta.inode(Ino(ino), View::LIVE) {
            let _ = meta.put_inode(&mut batch, Ino(ino), &record);
            let _ = meta.put_xattr(&mut batch, Ino(ino), b"user.new", Some(&[ino as u8; 900]));
        }
    }
    meta.apply(batch)?;
    meta.commit(BatchNumber(u64::MAX), &|| true)?;
    Ok(())
}

/// libFuzzer's hook ends the process at every panic. Those of redb are expected here.
fn spare_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map_or("", |at| at.file());
            let inside = || {
                let trace = std::backtrace::Backtrace::force_capture().to_string();
                trace.contains("redb::") && trace.contains("database::guarded")
            };
            if !place.contains("/redb-")
                && (place.contains("src/") && !place.contains("/library/") || !inside())
            {
                before(panic);
            }
        }));
    });
}
