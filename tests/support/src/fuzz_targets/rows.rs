//! Hostile records in a valid database: a filesystem that is opened over them returns errors.

use arbitrary::{Arbitrary, Result, Unstructured};
use bilayer::fs::Filesystem;
use bilayer::meta::keys::Table;
use bilayer::sealed::MetaFile;
use bilayer::store::{OpenMode, Store, StorePath};
use bilayer::volume::META_NAME;

use super::exercise::exercise;
use super::hostile::{self, TableRow};
use super::sample;

/// A change of the rows. `row` chooses one.
#[derive(Arbitrary, Debug)]
enum Change<'a> {
    Remove {
        row: u8,
    },
    Flip {
        row: u8,
        at: u8,
        by: u8,
    },
    FlipKey {
        row: u8,
        at: u8,
        by: u8,
    },
    Number {
        row: u8,
        at: u8,
        value: u64,
    },
    Value {
        row: u8,
        value: &'a [u8],
    },
    Key {
        row: u8,
        key: &'a [u8],
    },
    Truncate {
        row: u8,
        len: u8,
    },
    CopyValue {
        from: u8,
        to: u8,
    },
    Insert {
        table: u8,
        key: &'a [u8],
        value: &'a [u8],
    },
    Again {
        row: u8,
        at: u8,
        by: u8,
    },
}

/// The bytes describe changes of the sample's rows.
pub fn target(data: &[u8]) {
    let mut rows = hostile::rows();
    // A short or odd end means fewer changes.
    let _ = mutate(&mut rows, data);
    let sample = hostile::sample();
    let store = sample.store.snapshot();
    let volume = sample.open(&store).unwrap();
    let file = store.open(&StorePath::new(META_NAME), OpenMode::ReadWrite);
    let meta = MetaFile::create(
        file.unwrap(),
        volume.keys.active(),
        volume.header().meta_crypto(),
    );
    if hostile::load(meta.unwrap(), &rows).is_err() {
        return;
    }
    if let Ok(fs) = Filesystem::open(volume, sample::options()) {
        exercise(&fs);
    }
}

fn mutate(rows: &mut Vec<TableRow>, data: &[u8]) -> Result<()> {
    let mut input = Unstructured::new(data);
    while !input.is_empty() && !rows.is_empty() {
        let change = Change::arbitrary(&mut input)?;
        let count = rows.len();
        let choose = |row: u8| usize::from(row) % count;
        match change {
            Change::Remove { row } => {
                rows.remove(choose(row));
            }
            Change::Flip { row, at, by } => flip(&mut rows[choose(row)].1.1, at, by),
            Change::FlipKey { row, at, by } => flip(&mut rows[choose(row)].1.0, at, by),
            Change::Number { row, at, value } => {
                let bytes = &mut rows[choose(row)].1.1;
                if let Some(there) = bytes.get_mut(usize::from(at)..usize::from(at) + 8) {
                    there.copy_from_slice(&value.to_le_bytes());
                }
            }
            Change::Value { row, value } => rows[choose(row)].1.1 = value.to_vec(),
            Change::Key { row, key } => rows[choose(row)].1.0 = key.to_vec(),
            Change::Truncate { row, len } => rows[choose(row)].1.1.truncate(usize::from(len)),
            Change::CopyValue { from, to } => {
                rows[choose(to)].1.1 = rows[choose(from)].1.1.clone();
            }
            Change::Insert { table, key, value } => {
                let table = Table::ALL[usize::from(table) % Table::ALL.len()];
                rows.push((table, (key.to_vec(), value.to_vec())));
            }
            Change::Again { row, at, by } => {
                let mut again = rows[choose(row)].clone();
                flip(&mut again.1.0, at, by);
                rows.push(again);
            }
        }
    }
    Ok(())
}

fn flip(bytes: &mut [u8], at: u8, by: u8) {
    let len = bytes.len().max(1);
    if let Some(byte) = bytes.get_mut(usize::from(at) % len) {
        *byte ^= by;
    }
}
