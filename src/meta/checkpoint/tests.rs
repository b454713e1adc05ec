//! Checkpoints are taken up again where they were left, and whatever becomes of an unfinished one
//! in between, a finished one has every row of its commit.

use std::collections::HashMap;
use std::sync::Arc;

use super::{
    CHECKPOINTS_NAME, Checkpoint, CheckpointError, Written, open, resume_unfinished,
    unfinished_names,
};
use crate::ids::{CryptoId, Epoch, Ino};
use crate::layers::{KeyRing, KeySet};
use crate::meta::keys::{Row, Table};
use crate::meta::raw::{RawTables, Visited};
use crate::meta::records::{FileKind, InodeRecord, Timespec};
use crate::meta::{Batch, Meta};
use crate::sealed::{META_STRIDE_BYTES, MetaFile};
use crate::store::memory::MemoryStore;
use crate::store::{OpenMode, Store, StoreFile, StorePath};

const FILES: u64 = 20_000;

struct World {
    store: MemoryStore,
    keys: KeyRing,
    crypto: CryptoId,
    meta: Option<Meta>,
    /// How often a whole one asks whether to go on.
    questions: u32,
}

impl World {
    fn new() -> Self {
        let mut this = Self {
            store: MemoryStore::new(),
            keys: KeyRing::new(KeySet::random(Epoch(1)).unwrap(), Vec::new()),
            crypto: CryptoId::random().unwrap(),
            meta: None,
            questions: 0,
        };
        let file = this
            .store
            .open(&StorePath::new("meta"), OpenMode::CreateNew);
        let file = MetaFile::create(file.unwrap(), this.keys.active(), this.crypto).unwrap();
        Meta::format(file, 0, &inode(0)).unwrap();
        this.meta = Some(this.opened());
        for _ in 2..FILES {
            this.meta().allocate_ino().unwrap();
        }
        this.set(2..FILES, 1);
        let mut questions = 0;
        let written = this.write_while(|| {
            questions += 1;
            true
        });
        this.is_whole(&written.unwrap().checkpoint);
        this.questions = questions;
        this
    }

    fn opened(&self) -> Meta {
        let file = self
            .store
            .open(&StorePath::new("meta"), OpenMode::ReadWrite);
        let file = MetaFile::open(file.unwrap(), self.keys.active(), self.crypto).unwrap();
        Meta::open(file, 4 << 20).unwrap()
    }

    fn meta(&self) -> &Meta {
        self.meta.as_ref().unwrap()
    }

    /// Without a word to the database, as after a kill.
    fn kill(&mut self) {
        self.meta = None;
        self.meta = Some(self.opened());
    }

    fn set(&self, inodes: impl Iterator<Item = u64>, size: u64) {
        set(self.meta(), inodes, size);
    }

    fn write_while(&self, mut go_on: impl FnMut() -> bool) -> Result<Written, CheckpointError> {
        let active = self.keys.active();
        self.meta()
            .write_checkpoint(&self.store, active, &mut go_on)
    }

    fn write(&self) -> Written {
        self.write_while(|| true).unwrap()
    }

    /// Begins one and stops after so many parts of a hundred.
    fn write_some(&self, percent: u32) {
        let mut asked = 0;
        let written = self.write_while(|| {
            asked += 1;
            asked * 100 < self.questions * percent
        });
        assert!(matches!(written, Err(CheckpointError::Stopped)));
        assert_eq!(unfinished_names(&self.store).unwrap().len(), 1);
    }

    fn unfinished(&self) -> Arc<dyn StoreFile> {
        let name = unfinished_names(&self.store).unwrap().remove(0);
        let path = StorePath::new(&format!("{CHECKPOINTS_NAME}/{name}"));
        self.store.open(&path, OpenMode::ReadWrite).unwrap()
    }

    /// The checkpoint has exactly the rows that are committed.
    fn is_whole(&self, checkpoint: &Checkpoint) {
        let (found, rows) = open(&self.store, self.keys.active(), checkpoint.name).unwrap();
        assert_eq!(found, *checkpoint);
        let (_, committed) = self.meta().pin_rows().unwrap();
        assert!(self.meta().has_rows_of(&rows).unwrap());
        for table in Table::ALL {
            assert!(
                rows_of(&rows, table) == rows_of(&committed, table),
                "{table:?}"
            );
        }
        assert!(unfinished_names(&self.store).unwrap().is_empty());
    }
}

fn inode(size: u64) -> InodeRecord {
    InodeRecord {
        size,
        ..InodeRecord::new(FileKind::Regular, 0o644, Timespec::default())
    }
}

fn set(meta: &Meta, inodes: impl Iterator<Item = u64>, size: u64) {
    let mut batch = Batch::new();
    for ino in inodes {
        meta.put_inode(&mut batch, Ino(ino), &inode(size)).unwrap();
        if ino % 500 == 0 {
            let long = vec![size as u8; 9000];
            meta.put_xattr(&mut batch, Ino(ino), b"user.long", Some(&long))
                .unwrap();
        }
    }
    let number = meta.apply(batch).unwrap();
    assert!(meta.commit(number, &|| true).unwrap());
}

fn rows_of(tables: &RawTables, table: Table) -> Vec<Row> {
    let mut rows = Vec::new();
    tables.visit(table, &(Vec::new()..vec![0xFF; 9]), &mut |found| {
        match found {
            Visited::Row(key, value) => rows.push((key.to_vec(), value.to_vec())),
            Visited::Gap(gap) => panic!("{gap:?}"),
        }
        true
    });
    rows
}

fn bytes_of(file: &dyn StoreFile) -> Vec<u8> {
    let mut bytes = vec![0; file.len().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

#[test]
fn what_was_copied_before_a_kill_is_not_written_again() {
    let mut world = World::new();
    let all = world.write().copied_pages;
    for percent in [40, 60, 80] {
        world.set([7, 8].into_iter(), u64::from(percent));
        world.write_some(percent);
        world.kill();
        // Neither by one who goes on ...
        world.write_some(percent + 10);
        world.kill();
        // ... nor by one who finishes it.
        let written = world.write();
        assert!(written.kept_pages > 0, "{written:?}");
        assert_eq!(
            written.copied_pages + written.kept_pages,
            all,
            "{written:?}"
        );
        world.is_whole(&written.checkpoint);
    }
}

#[test]
fn the_same_process_does_not_even_look_at_it_again() {
    let world = World::new();
    let all = world.write().copied_pages;
    world.set([7].into_iter(), 7);
    world.write_some(60);
    let written = world.write();
    assert!(written.copied_pages < all);
    // But for those below the branch at which it was stopped.
    assert!(written.kept_pages < all / 3, "{written:?}");
    world.is_whole(&written.checkpoint);
}

#[test]
fn only_what_was_changed_in_between_is_copied() {
    let mut world = World::new();
    let all = world.write().copied_pages;
    world.set([9].into_iter(), 4);
    world.write_some(98);
    world.set([100, 3000].into_iter(), 5);
    world.kill();
    let written = world.write();
    assert!(written.copied_pages * 5 < all, "{written:?} of {all}");
    world.is_whole(&written.checkpoint);
}

#[test]
fn no_damage_to_an_unfinished_one_reaches_the_finished_one() {
    let mut world = World::new();
    world.write_some(70);
    let older = bytes_of(&*world.unfinished());
    for round in 0..12u64 {
        world.set((2..FILES).filter(|ino| ino % 13 == round), 100 + round);
        world.write_some(70);
        world.kill();
        let file = world.unfinished();
        let strides = file.len().unwrap() / META_STRIDE_BYTES as u64;
        for stride in 0..strides {
            let at = stride * META_STRIDE_BYTES as u64;
            let range = at as usize..at as usize + META_STRIDE_BYTES;
            match (stride + round) % 5 {
                // Zeros, one bit, an older page, another page.
                0 if stride != 1 => file.punch(at, META_STRIDE_BYTES as u64).unwrap(),
                1 if stride != 1 => {
                    let mut byte = [0];
                    file.read_at(&mut byte, at + 99).unwrap();
                    file.write_at(&[byte[0] ^ 4], at + 99).unwrap();
                }
                2 if range.end <= older.len() => file.write_at(&older[range], at).unwrap(),
                3 if stride > 4 => {
                    let mut other = vec![0; META_STRIDE_BYTES];
                    file.read_at(&mut other, at - META_STRIDE_BYTES as u64)
                        .unwrap();
                    file.write_at(&other, at).unwrap();
                }
                _ => {}
            }
        }
        if round % 3 == 0 {
            let written = world.write();
            world.is_whole(&written.checkpoint);
            world.set([7].into_iter(), 7);
            world.write_some(60);
        }
    }
}

#[test]
fn a_page_that_is_put_back_into_a_finished_one_does_not_count() {
    let world = World::new();
    world.write_some(90);
    let older = bytes_of(&*world.unfinished());
    world.set(2..FILES, 2);
    let written = world.write();
    let path = super::checkpoint_path(written.checkpoint.name);
    let file = world.store.open(&path, OpenMode::ReadWrite).unwrap();
    file.write_at(
        &older[2 * META_STRIDE_BYTES..],
        2 * META_STRIDE_BYTES as u64,
    )
    .unwrap();
    let (_, rows) = open(&world.store, world.keys.active(), written.checkpoint.name).unwrap();
    let mut gaps = 0;
    rows.visit(Table::Inode, &(Vec::new()..vec![0xFF; 9]), &mut |found| {
        match found {
            Visited::Gap(_) => gaps += 1,
            Visited::Row(_, value) => {
                let size = InodeRecord::decode(value).unwrap().size;
                assert!(size == 2 || size == 0, "nothing older is taken for it");
            }
        }
        true
    });
    assert!(gaps > 0);
}

#[test]
fn an_unfinished_one_that_a_copy_of_the_volume_shares_is_not_written_to() {
    let mut world = World::new();
    world.write_some(50);
    let name = unfinished_names(&world.store).unwrap().remove(0);
    let path = StorePath::new(&format!("{CHECKPOINTS_NAME}/{name}"));
    world.store.link(&path, &StorePath::new("shared")).unwrap();
    let shared = world.store.open(&StorePath::new("shared"), OpenMode::Read);
    let shared = shared.unwrap();
    let before = bytes_of(&*shared);
    world.kill();
    let written = world.write();
    assert_eq!(written.kept_pages, 0);
    assert_eq!(bytes_of(&*shared), before);
    world.is_whole(&written.checkpoint);
}

#[test]
fn an_unfinished_one_of_another_key_set_is_replaced() {
    let mut world = World::new();
    world.write_some(50);
    let name = unfinished_names(&world.store).unwrap();
    let other = Arc::new(KeySet::random(Epoch(2)).unwrap());
    let stop = &mut || false;
    // In the same process, ...
    let stopped = world.meta().write_checkpoint(&world.store, &other, stop);
    assert!(matches!(stopped, Err(CheckpointError::Stopped)));
    let written = world
        .meta()
        .write_checkpoint(&world.store, &other, &mut || true)
        .unwrap();
    assert_eq!(written.kept_pages, 0);
    assert!(open(&world.store, &other, written.checkpoint.name).is_ok());
    assert_ne!(name, [format!("{}.new", written.checkpoint.name)]);
    // ... and in the next one.
    world.write_some(50);
    world.kill();
    assert!(resume_unfinished(&world.store, &other).unwrap().is_none());
    assert!(unfinished_names(&world.store).unwrap().is_empty());
}

/// The length is whatever somebody has made it.
#[test]
fn a_file_that_is_too_long_is_truncated() {
    let mut world = World::new();
    let before = world.write().checkpoint.bytes;
    world.set(2..9, 2);
    world.write_some(50);
    world.kill();
    let file = world.unfinished();
    let long = 40 * before / META_STRIDE_BYTES as u64 * META_STRIDE_BYTES as u64;
    file.set_len(long).unwrap();
    let written = world.write();
    world.is_whole(&written.checkpoint);
    assert!(
        written.checkpoint.bytes < long / 4,
        "{} of {long}",
        written.checkpoint.bytes
    );
}

/// Its page 0 opens under the same keys and crypto id, and two files must not be sealed under one.
#[test]
fn a_copy_of_the_metadata_is_none() {
    let world = World::new();
    world.set(2..9, 2);
    let meta = world
        .store
        .open(&StorePath::new("meta"), OpenMode::Read)
        .unwrap();
    let path = format!("{CHECKPOINTS_NAME}/{}.new", world.crypto);
    let copy = world
        .store
        .open(&StorePath::new(&path), OpenMode::CreateNew)
        .unwrap();
    copy.write_at(&bytes_of(&*meta), 0).unwrap();
    let written = world.write();
    world.is_whole(&written.checkpoint);
    assert_ne!(written.checkpoint.name, world.crypto);
    assert!(unfinished_names(&world.store).unwrap().is_empty());
}

#[test]
fn of_several_unfinished_ones_the_largest_is_kept() {
    let mut world = World::new();
    world.write_some(40);
    let small = unfinished_names(&world.store).unwrap().remove(0);
    let aside = StorePath::new("aside");
    let path = |name: &str| StorePath::new(&format!("{CHECKPOINTS_NAME}/{name}"));
    world.store.rename(&path(&small), &aside).unwrap();
    world.kill();
    world.write_some(80);
    let large = unfinished_names(&world.store).unwrap();
    world.store.rename(&aside, &path(&small)).unwrap();
    let kept = resume_unfinished(&world.store, world.keys.active()).unwrap();
    assert!(kept.is_some_and(|kept| !kept.is_new()));
    assert_eq!(unfinished_names(&world.store).unwrap(), large);
}

#[test]
fn beside_a_writer_the_pinned_commit_is_replaced_by_a_newer_one() {
    let world = World::new();
    let meta = world.meta();
    // What the inodes have after each batch.
    let mut sizes = HashMap::new();
    let written = world
        .write_while(|| {
            let size = 2 + sizes.len() as u64;
            set(meta, (2 + size % 7..FILES).step_by(900), size);
            sizes.insert(meta.newest_batch().0, size);
            true
        })
        .unwrap();
    assert!(written.renewals > 0, "{written:?}");
    let name = written.checkpoint.name;
    let (_, rows) = open(&world.store, world.keys.active(), name).unwrap();
    let newest = rows_of(&rows, Table::Inode)
        .iter()
        .map(|(_, value)| InodeRecord::decode(value).unwrap().size)
        .max();
    assert_eq!(newest, sizes.get(&written.through.0).copied());
}

#[test]
fn a_full_disk_takes_the_unfinished_one_first() {
    let world = World::new();
    let finished = world.write().checkpoint;
    world.set([7].into_iter(), 7);
    world.write_some(50);
    assert!(
        world
            .meta()
            .discard_unfinished_checkpoint(&world.store)
            .unwrap()
    );
    assert!(
        !world
            .meta()
            .discard_unfinished_checkpoint(&world.store)
            .unwrap()
    );
    assert!(unfinished_names(&world.store).unwrap().is_empty());
    assert!(open(&world.store, world.keys.active(), finished.name).is_ok());
    // Also while somebody works on it.
    let mut gave_up = false;
    let stopped = world.write_while(|| {
        if !unfinished_names(&world.store).unwrap().is_empty() && !gave_up {
            gave_up = world
                .meta()
                .discard_unfinished_checkpoint(&world.store)
                .unwrap();
        }
        true
    });
    assert!(matches!(stopped, Err(CheckpointError::NoSpace)));
    assert!(unfinished_names(&world.store).unwrap().is_empty());
    let written = world.write();
    world.is_whole(&written.checkpoint);
}

#[test]
fn a_fresh_checkpoint_is_no_newer_than_the_metadata() {
    let world = World::new();
    let sequence = world.write().checkpoint.sequence;
    let file = world.store.open(&StorePath::new("meta"), OpenMode::Read);
    let file = MetaFile::open(file.unwrap(), world.keys.active(), world.crypto).unwrap();
    let newest = file.slots().iter().map(|slot| slot.sequence).max();
    assert_eq!(newest, Some(sequence));
}
