//! Changes that are not yet in the database.
//!
//! A [`Batch`] holds the changes of one operation and is applied atomically. The [`Overlay`] is the
//! sum of the batches since the last commit: physical key → new value, or `None` to remove the
//! physical record.

use std::collections::{BTreeMap, HashMap};

use super::charge;
use super::keys::{self, Table, VersionedKey};
use crate::ids::Ino;

/// One table's changes.
pub(super) type TableOverlay = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A change of one physical record.
#[derive(Debug)]
pub struct Change {
    pub(super) table: Table,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Vec<u8>>,
}

/// The changes of one operation.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) changes: Vec<Change>,
    /// Change in the number of durably sealed pages.
    pub used_pages: i64,
    /// Change in the number of inodes.
    pub inodes: i64,
    /// Change in the bytes of records.
    pub(super) record_bytes: i64,
    /// Charges of the records that this batch has changed, by logical key.
    pub(super) charges: HashMap<(Table, Vec<u8>), u64>,
    /// The batch frees space on the disk once it is durable.
    pub(super) frees: bool,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// True if nothing would change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.used_pages == 0 && self.inodes == 0
    }

    /// Change in the bytes of records ([`super::charge`]).
    pub fn record_bytes(&self) -> i64 {
        self.record_bytes
    }

    /// Sets or removes one physical record.
    pub(super) fn change(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.changes.push(Change { table, key, value });
    }

    /// Charges for a record's new value instead of its old one. `before` is the value without this
    /// batch; an earlier change in the same batch takes precedence over it.
    pub(super) fn charge_record(
        &mut self,
        table: Table,
        logical: &[u8],
        before: Option<&[u8]>,
        after: Option<&[u8]>,
    ) {
        let charge_of = |value: Option<&[u8]>| {
            value.map_or(0, |value| charge::record_bytes(table, logical, value))
        };
        let charged = self.charges.entry((table, logical.to_vec()));
        let charged = charged.or_insert_with(|| charge_of(before));
        let charge = charge_of(after);
        self.record_bytes += charge.cast_signed() - charged.cast_signed();
        *charged = charge;
    }

    /// Logical keys of the directory's names that this batch has changed.
    pub(super) fn names_in(&self, parent: Ino) -> impl Iterator<Item = &[u8]> {
        let names = self.changes.iter().filter(|c| c.table == Table::Dirent);
        let versions = names.filter_map(|change| VersionedKey::decode(&change.key));
        versions
            .map(|version| version.logical)
            .filter(move |logical| keys::ino_of(logical) == Some(parent))
    }

    /// The value that this batch gives a physical record, `None` inside if it removes the record;
    /// `None` if it does not change the record.
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

/// Approximate memory of a map entry in addition to its bytes.
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
    pub(super) fn table(&self, table: Table) -> &TableOverlay {
        &self.tables[table.index()]
    }

    /// Upper estimate of the memory in use.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True if there is no change.
    pub fn is_empty(&self) -> bool {
        self.tables.iter().all(BTreeMap::is_empty)
    }
}
