//! Corrections that a repair makes to single physical records and to the counters. Nothing else may
//! change the metadata meanwhile.

use super::keys::{self, Table, VersionedKey};
use super::records::COUNT_MAX;
use super::{Batch, Meta, MetaError};
use crate::ids::{Generation, Ino};

/// Corrected values of the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Corrections {
    /// Pages of contents.
    pub used_pages: Option<u64>,
    /// Bytes of records.
    pub record_bytes: Option<u64>,
    /// Inodes.
    pub inodes: Option<u64>,
    /// Lower bound of the next inode number.
    pub next_ino: Option<Ino>,
    /// Lower bound of the live generation.
    pub generation: Option<Generation>,
    /// Lower bound of the next number in `garbage`.
    pub next_garbage: Option<u64>,
}

impl Meta {
    /// Sets or removes one version of a record.
    pub fn set_version(
        &self,
        batch: &mut Batch,
        table: Table,
        version: VersionedKey<'_>,
        value: Option<Vec<u8>>,
    ) {
        batch.change(table, version.encode(), value);
    }

    /// True if no version of any name has this position in the directory.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn is_position_free(&self, parent: Ino, position: u32) -> Result<bool, MetaError> {
        let (low, high) = (
            keys::dirent_from(parent, position),
            keys::dirent_from(parent, position + 1),
        );
        let mut is_free = true;
        self.visit_physical(Table::Dirent, &low, &high, &mut |_, _| {
            is_free = false;
            false
        })?;
        Ok(is_free)
    }

    /// Sets or removes a row of a table without versions.
    pub fn set_row(&self, batch: &mut Batch, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        batch.change(table, key, value);
    }

    /// Corrects the counters as part of the next commit.
    pub fn correct(&self, to: &Corrections) {
        let state = &mut *self.state.write();
        let counters = &mut state.counters;
        counters.used_pages = to.used_pages.unwrap_or(counters.used_pages);
        counters.inodes = to.inodes.unwrap_or(counters.inodes);
        counters.record_bytes = to.record_bytes.unwrap_or(counters.record_bytes);
        // Larger values could not be decoded any more.
        let next = to.next_ino.unwrap_or_default().min(Ino::END);
        counters.next_ino = counters.next_ino.max(next);
        let generation = to.generation.unwrap_or_default().min(Generation::MAX);
        counters.generation = counters.generation.max(generation);
        let next = to.next_garbage.unwrap_or(0).min(COUNT_MAX);
        counters.next_garbage = counters.next_garbage.max(next);
        state.first_fresh = counters.next_ino;
        state.applied += 1;
    }
}
