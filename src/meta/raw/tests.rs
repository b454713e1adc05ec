//! Reads return the rows of the database, and report damage as gaps.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Gap, RawTables, Visited};
use crate::ids::{CryptoId, Epoch};
use crate::layers::{KeyRing, KeySet};
use crate::meta::database::Tables;
use crate::meta::keys::{Row, Table};
use crate::meta::overlay::{Batch, Overlay};
use crate::sealed::{META_STRIDE_BYTES, MetaFile};
use crate::store::memory::MemoryStore;
use crate::store::{OpenMode, Store, StoreFile, StorePath};

type Model = [BTreeMap<Vec<u8>, Vec<u8>>; Table::ALL.len()];

struct World {
    keys: KeyRing,
    crypto: CryptoId,
    bytes: Arc<dyn StoreFile>,
    tables: Option<Tables>,
    model: Model,
    seed: u64,
}

impl World {
    fn new() -> Self {
        let keys = KeyRing::new(KeySet::random(Epoch(1)).unwrap(), Vec::new());
        let crypto = CryptoId::random().unwrap();
        let store = MemoryStore::new();
        let bytes = store.open(&StorePath::new("meta"), OpenMode::CreateNew);
        let bytes = bytes.unwrap();
        let file = MetaFile::create(Arc::clone(&bytes), keys.active(), crypto).unwrap();
        Self {
            tables: Some(Tables::open(Arc::new(file), 1 << 20).unwrap()),
            keys,
            crypto,
            bytes,
            model: Model::default(),
            seed: 7,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.seed >> 33) % below
    }

    /// Commits random changes of three tables, values of up to 70 000 bytes among them.
    fn commit(&mut self, changes: u32) {
        let mut overlay = Overlay::default();
        let mut batch = Batch::new();
        for _ in 0..changes {
            let table = [Table::Inode, Table::Xattr, Table::Extent][self.random(3) as usize];
            let number = self.random(4000);
            let key = [&number.to_be_bytes()[..], &vec![7; number as usize % 40]].concat();
            let long = if self.random(300) == 0 { 70_000 } else { 300 };
            let value = vec![number as u8; self.random(long) as usize];
            let value = (self.random(4) > 0).then_some(value);
            match &value {
                Some(value) => self.model[table.index()].insert(key.clone(), value.clone()),
                None => self.model[table.index()].remove(&key),
            };
            batch.change(table, key, value);
        }
        overlay.apply(batch);
        self.model[Table::Counters.index()].insert(Vec::new(), b"counters".to_vec());
        let tables = self.tables.as_ref().unwrap();
        tables.commit(&overlay, b"counters").unwrap();
    }

    fn close(&mut self) {
        self.tables.take().unwrap().close().unwrap();
    }

    fn opened(&self) -> Vec<RawTables> {
        match MetaFile::open(Arc::clone(&self.bytes), self.keys.active(), self.crypto) {
            Ok(file) => RawTables::all(&Arc::new(file)),
            Err(_) => Vec::new(),
        }
    }
}

fn read(tables: &RawTables, table: Table) -> (Vec<Row>, Vec<Gap>) {
    let (mut rows, mut gaps) = (Vec::new(), Vec::new());
    tables.visit(table, &(Vec::new()..vec![0xFF; 9]), &mut |visited| {
        match visited {
            Visited::Row(key, value) => rows.push((key.to_vec(), value.to_vec())),
            Visited::Gap(gap) => gaps.push(gap.clone()),
        }
        true
    });
    (rows, gaps)
}

fn assert_same(tables: &RawTables, model: &Model) {
    for table in Table::ALL {
        let (rows, gaps) = read(tables, table);
        assert_eq!(gaps, []);
        let expected = model[table.index()].clone();
        assert!(
            rows == expected.into_iter().collect::<Vec<_>>(),
            "{table:?}"
        );
    }
}

#[test]
fn every_row_is_read_after_every_commit() {
    let mut world = World::new();
    let mut before = Model::default();
    for round in 0..40 {
        world.commit(1 + round * 17 % 600);
        // As it is while the database is open, and as a power cut would leave it.
        let commits = world.opened();
        assert_same(&commits[0], &world.model);
        if round > 0 {
            let known = |tables: &RawTables| {
                Table::ALL.iter().all(|table| {
                    let (rows, gaps) = read(tables, *table);
                    let older = before[table.index()].clone();
                    gaps.is_empty() && rows == older.into_iter().collect::<Vec<_>>()
                })
            };
            assert!(
                commits[1..].iter().any(known),
                "the previous commit is readable too"
            );
        }
        before = world.model.clone();
    }
    world.close();
    assert_same(&world.opened()[0], &world.model);
}

#[test]
fn only_rows_in_the_range_are_visited() {
    let mut world = World::new();
    world.commit(3000);
    let tables = &world.opened()[0];
    let model = &world.model[Table::Inode.index()];
    for (low, high) in [
        (0u64, 5u64),
        (100, 101),
        (1000, 2000),
        (3990, 5000),
        (5000, 6000),
    ] {
        let range = low.to_be_bytes().to_vec()..high.to_be_bytes().to_vec();
        let mut rows = Vec::new();
        let all = tables.visit(Table::Inode, &range, &mut |visited| {
            if let Visited::Row(key, _) = visited {
                rows.push(key.to_vec());
            }
            rows.len() < 500
        });
        let expected: Vec<Vec<u8>> = model.range(range).map(|(key, _)| key.clone()).collect();
        assert_eq!(all, rows.len() < 500);
        assert_eq!(rows, expected[..rows.len()]);
        assert!(!all || rows.len() == expected.len());
    }
}

/// Damages each page in turn, and asserts that every row is either read as it was written or in a
/// gap.
fn each_page_damaged(damage: impl Fn(&dyn StoreFile, u64)) {
    let mut world = World::new();
    for _ in 0..5 {
        world.commit(800);
    }
    world.close();
    let strides = world.bytes.len().unwrap() / META_STRIDE_BYTES as u64;
    let (mut gaps_seen, mut whole) = (0, 0);
    for stride in 0..strides {
        let mut kept = vec![0; META_STRIDE_BYTES];
        let at = stride * META_STRIDE_BYTES as u64;
        world.bytes.read_at(&mut kept, at).unwrap();
        damage(&*world.bytes, at);
        let commits = world.opened();
        let mut any = false;
        for table in Table::ALL {
            let model = &world.model[table.index()];
            let (rows, gaps) = read(&commits[0], table);
            any |= !gaps.is_empty();
            // The newest slot of page 0 may be lost. Then the previous commit is read, possibly
            // with gaps.
            if stride < 2 {
                continue;
            }
            let lost = |key: &Vec<u8>| {
                gaps.iter().any(|gap| {
                    gap.after.as_ref().is_none_or(|after| after < key)
                        && gap.through.as_ref().is_none_or(|through| key <= through)
                })
            };
            let expected = model.iter().filter(|(key, _)| !lost(key));
            let rows_outside = rows.iter().filter(|(key, _)| !lost(key));
            assert!(
                expected.eq(rows_outside.map(|(key, value)| (key, value))),
                "{table:?}, stride {stride}"
            );
            assert!(
                rows.iter()
                    .all(|(key, value)| model.get(key) == Some(value))
            );
        }
        if any {
            gaps_seen += 1;
        } else {
            whole += 1;
        }
        world.bytes.write_at(&kept, at).unwrap();
    }
    assert!(
        gaps_seen > 50 && whole > 0,
        "{gaps_seen} and {whole} of {strides}"
    );
}

#[test]
fn a_page_with_a_flipped_bit_loses_only_its_own_rows() {
    each_page_damaged(|file, at| {
        let mut byte = [0];
        file.read_at(&mut byte, at + 1000).unwrap();
        file.write_at(&[byte[0] ^ 0x10], at + 1000).unwrap();
    });
}

#[test]
fn an_older_page_at_the_same_position_is_rejected() {
    let mut world = World::new();
    let mut older: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut put_back = 0;
    for _ in 0..6 {
        world.commit(300);
        let commits = world.opened();
        assert_same(&commits[0], &world.model);
        let strides = world.bytes.len().unwrap() / META_STRIDE_BYTES as u64;
        for stride in 2..strides {
            let at = stride * META_STRIDE_BYTES as u64;
            let mut now = vec![0; META_STRIDE_BYTES];
            world.bytes.read_at(&mut now, at).unwrap();
            if let Some(before) = older.get(&stride).filter(|before| **before != now) {
                world.bytes.write_at(before, at).unwrap();
                let tables = &world.opened()[0];
                for table in Table::ALL {
                    let model = &world.model[table.index()];
                    let (rows, gaps) = read(tables, table);
                    put_back += gaps.len();
                    assert!(
                        rows.iter()
                            .all(|(key, value)| model.get(key) == Some(value))
                    );
                }
                world.bytes.write_at(&now, at).unwrap();
            }
            older.insert(stride, now);
        }
    }
    assert!(put_back > 0, "some of these pages were in use");
}
