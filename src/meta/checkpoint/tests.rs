//! An unfinished checkpoint is continued, and a finished one has every row of its commit, whatever
//! happened to the unfinished file.

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
    /// How often a complete checkpoint calls `go_on`.
    go_on_calls: u32,
}

impl World {
    fn new() -> Self {
        let mut this = Self {
            store: MemoryStore::new(),
            keys: KeyRing::new(KeySet::random(Epoch(1)).unwrap(), Vec::new()),
            crypto: CryptoId::random().unwrap(),
            meta: None,
            go_on_calls: 0,
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
        let mut go_on_calls = 0;
        let written = this.write_while(|| {
            go_on_calls += 1;
            true
        });
        this.assert_complete(&written.unwrap().checkpoint);
        this.go_on_calls = go_on_calls;
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

    /// Opens the metadata again without closing it first, as after a kill.
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

    /// Begins or continues a checkpoint, and stops it after about this percentage of the calls.
    fn write_some(&self, percent: u32) {
        let mut asked = 0;
        let written = self.write_while(|| {
            asked += 1;
            asked * 100 < self.go_on_calls * percent
        });
        assert!(matches!(written, Err(CheckpointError::Stopped)));
        assert_eq!(unfinished_names(&self.store).unwrap().len(), 1);
    }

    fn unfinished(&self) -> Arc<dyn StoreFile> {
        let name = unfinished_names(&self.store).unwrap().remove(0);
        let path = StorePath::new(&format!("{CHECKPOINTS_NAME}/{name}"));
        self.store.open(&path, OpenMode::ReadWrite).unwrap()
    }

    /// Asserts that the checkpoint has exactly the rows that are committed.
    fn assert_complete(&self, checkpoint: &Checkpoint) {
        let (opened, rows) = open(&self.store, self.keys.active(), checkpoint.name).unwrap();
        assert_eq!(opened, *checkpoint);
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
    tables.visit(table, &(Vec::new()..vec![0xFF; 9]), &mut |visited| {
        match visited {
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
fn pages_copied_before_a_kill_are_not_written_again() {
    let mut world = World::new();
    let all = world.write().copied_pages;
    for percent in [40, 60, 80] {
        world.set([7, 8].into_iter(), u64::from(percent));
        world.write_some(percent);
        world.kill();
        // Neither when the checkpoint is continued ...
        world.write_some(percent + 10);
        world.kill();
        // ... nor when it is finished.
        let written = world.write();
        assert!(written.kept_pages > 0, "{written:?}");
        assert_eq!(
            written.copied_pages + written.kept_pages,
            all,
            "{written:?}"
        );
        world.assert_complete(&written.checkpoint);
    }
}

#[test]
fn the_same_process_does_not_read_complete_branches_again() {
    let world = World::new();
    let all = world.write().copied_pages;
    world.set([7].into_iter(), 7);
    world.write_some(60);
    let written = world.write();
    assert!(written.copied_pages < all);
    // Except the pages below the branch at which it was stopped.
    assert!(written.kept_pages < all / 3, "{written:?}");
    world.assert_complete(&written.checkpoint);
}

#[test]
fn only_pages_changed_meanwhile_are_copied() {
    let mut world = World::new();
    let all = world.write().copied_pages;
    world.set([9].into_iter(), 4);
    world.write_some(98);
    world.set([100, 3000].into_iter(), 5);
    world.kill();
    let written = world.write();
    assert!(written.copied_pages * 5 < all, "{written:?} of {all}");
    world.assert_complete(&written.checkpoint);
}

#[test]
fn damage_to_an_unfinished_file_does_not_reach_the_finished_checkpoint() {
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
            world.assert_complete(&written.checkpoint);
            world.set([7].into_iter(), 7);
            world.write_some(60);
        }
    }
}

#[test]
fn an_older_page_in_a_finished_checkpoint_is_rejected() {
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
    rows.visit(Table::Inode, &(Vec::new()..vec![0xFF; 9]), &mut |visited| {
        match visited {
            Visited::Gap(_) => gaps += 1,
            Visited::Row(_, value) => {
                let size = InodeRecord::decode(value).unwrap().size;
                assert!(size == 2 || size == 0, "no older record is returned");
            }
        }
        true
    });
    assert!(gaps > 0);
}

#[test]
fn an_unfinished_file_that_a_copy_of_the_volume_shares_is_not_written_to() {
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
    world.assert_complete(&written.checkpoint);
}

#[test]
fn an_unfinished_file_of_another_key_set_is_replaced() {
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

/// Anybody who can write to the directory can change the length.
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
    world.assert_complete(&written.checkpoint);
    assert!(
        written.checkpoint.bytes < long / 4,
        "{} of {long}",
        written.checkpoint.bytes
    );
}

/// Page 0 of the copy opens under its keys and crypto id, but two files must not be sealed under
/// one crypto id.
#[test]
fn a_copy_of_the_metadata_is_not_continued_as_a_checkpoint() {
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
    world.assert_complete(&written.checkpoint);
    assert_ne!(written.checkpoint.name, world.crypto);
    assert!(unfinished_names(&world.store).unwrap().is_empty());
}

#[test]
fn of_several_unfinished_files_the_largest_is_kept() {
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
fn the_pinned_commit_is_replaced_by_a_newer_one_while_others_write() {
    let world = World::new();
    let meta = world.meta();
    // The size that inodes have after each batch.
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
fn on_a_full_disk_the_unfinished_file_is_discarded_first() {
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
    // Also while it is being written.
    let mut discarded = false;
    let stopped = world.write_while(|| {
        if !unfinished_names(&world.store).unwrap().is_empty() && !discarded {
            discarded = world
                .meta()
                .discard_unfinished_checkpoint(&world.store)
                .unwrap();
        }
        true
    });
    assert!(matches!(stopped, Err(CheckpointError::NoSpace)));
    assert!(unfinished_names(&world.store).unwrap().is_empty());
    let written = world.write();
    world.assert_complete(&written.checkpoint);
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
