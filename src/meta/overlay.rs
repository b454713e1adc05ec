//! Changes that are not in the database yet.
//!
//! A [`Batch`] is what one operation changes, applied all or nothing. The [`Overlay`] is the
//! sum of the batches since the last commit: physical key → new value, or `None` where the
//! physical record goes.

use std::collections::{BTreeMap, HashMap};

use super::charge;
use super::keys::{self, Table};
use crate::ids::Ino;

/// One table's changes.
pub type TableOverlay = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A change of one physical record.
#[derive(Debug)]
pub struct Change {
    pub(super) table: Table,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

/// What one operation changes.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) changes: Vec<Change>,
    /// By how much the number of durable sealed pages changes.
    pub used_pages: i64,
    /// By how much the number of inodes changes.
    pub inodes: i64,
    /// By how much the bytes that records take change.
    pub(super) record_bytes: i64,
    /// Bytes that records count which this batch has changed.
    pub(super) counted: HashMap<(Table, Vec<u8>), u64>,
    /// It makes room on the disk once it is durable.
    pub(super) frees: bool,
}

impl Batch {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// True when nothing would change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.used_pages == 0 && self.inodes == 0
    }

    /// By how much the bytes that records take change ([`super::charge`]).
    pub fn record_bytes(&self) -> i64 {
        self.record_bytes
    }

    /// Sets or removes one physical record.
    pub(super) fn change(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.changes.push(Change { table, key, value });
    }

    /// Counts what a record takes now. `before` is the one that was applied last.
    pub(super) fn count_record(
        &mut self,
        table: Table,
        logical: &[u8],
        before: Option<&[u8]>,
        now: Option<&[u8]>,
    ) {
        let count = |value: Option<&[u8]>| {
            value.map_or(0, |value| charge::record_bytes(table, logical, value))
        };
        let counted = self.counted.entry((table, logical.to_vec()));
        let counted = counted.or_insert_with(|| count(before));
        let now = count(now);
        self.record_bytes += now.cast_signed() - counted.cast_signed();
        *counted = now;
    }

    /// Logical keys of the names in a directory that were changed by this batch.
    pub(super) fn names_in(&self, parent: Ino) -> impl Iterator<Item = &[u8]> {
        let names = self.changes.iter().filter(|c| c.table == Table::Dirent);
        let logical = names.filter_map(|change| keys::split_version(&change.key));
        logical
            .map(|(logical, _)| logical)
            .filter(move |logical| keys::ino_of(logical) == Some(parent))
    }

    /// What an earlier change of this batch does to the physical record.
    pub(super) fn pending(&self, table: Table, key: &[u8]) -> Option<Option<&[u8]>> {
        let last = self
            .changes
            .iter()
            .rev()
            .find(|c| c.table == table && c.key == key)?;
        Some(last.value.as_deref())
    }
}

/// The sum of batches.
#[derive(Debug, Default)]
pub struct Overlay {
    tables: [TableOverlay; Table::ALL.len()],
    bytes: usize,
}

/// What a map entry costs beside its bytes, roughly.
const ENTRY_BYTES: usize = 96;

impl Overlay {
    /// Adds a batch.
    pub fn apply(&mut self, batch: Batch) {
        for Change { table, key, value } in batch.changes {
            self.bytes += key.len() + value.as_ref().map_or(0, Vec::len) + ENTRY_BYTES;
            if let Some(entry) = self.tables.get_mut(table.index()) {
                entry.insert(key, value);
            }
        }
    }

    /// One table's changes.
    pub fn table(&self, table: Table) -> &TableOverlay {
        &self.tables[table.index()]
    }

    /// Memory it takes, roughly and never too little.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True when there is no change.
    pub fn is_empty(&self) -> bool {
        self.tables.iter().all(BTreeMap::is_empty)
    }
}
