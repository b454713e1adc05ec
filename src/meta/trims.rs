//! Extents of which a version was dropped. Their objects may hold pages that no version names any
//! more.
//!
//! A row of `trim` is written with the batch that drops a version and removed when the pages have
//! been freed, so a power cut only delays the work. Its key is the extent's.

use super::keys::{self, Table, VersionedKey};
use super::records::{ExtentRecord, TOMBSTONE};
use super::{Batch, Meta, MetaError};
use crate::ids::{ChunkIndex, Generation, Ino};

/// Versions of an extent, oldest first; `None` for a tombstone.
pub type ExtentVersions = Vec<(Generation, Option<ExtentRecord>)>;

impl Meta {
    /// Records that a version of an extent was dropped.
    pub(super) fn put_trim(batch: &mut Batch, logical: &[u8]) {
        batch.change(Table::Trim, logical.to_vec(), Some(vec![1]));
    }

    /// Removes the record, once the pages that no version names have been freed.
    pub fn remove_trim(&self, batch: &mut Batch, ino: Ino, chunk: ChunkIndex) {
        batch.change(Table::Trim, keys::extent(ino, chunk), None);
    }

    /// Up to `limit` recorded extents after the given one.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or a key cannot be decoded.
    pub fn trims(
        &self,
        after: Option<(Ino, ChunkIndex)>,
        limit: usize,
    ) -> Result<Vec<(Ino, ChunkIndex)>, MetaError> {
        let low = after.map_or_else(Vec::new, |(ino, chunk)| {
            let mut key = keys::extent(ino, chunk);
            key.push(0);
            key
        });
        let mut extents = Vec::new();
        let mut corrupt = false;
        self.visit_physical(Table::Trim, &low, &[0xFF; 9], &mut |key, _| {
            match keys::extent_parts(key) {
                Some(extent) => extents.push(extent),
                None => corrupt = true,
            }
            !corrupt && extents.len() < limit
        })?;
        if corrupt {
            return Err(MetaError::Corrupt("trim"));
        }
        Ok(extents)
    }

    /// The current versions of an extent.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or a record cannot be decoded.
    pub fn extent_versions(
        &self,
        ino: Ino,
        chunk: ChunkIndex,
    ) -> Result<ExtentVersions, MetaError> {
        decode_versions(self.versions(Table::Extent, &keys::extent(ino, chunk))?)
    }

    /// The versions of an extent that would survive a power cut now.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or a record cannot be decoded.
    pub fn committed_versions(
        &self,
        ino: Ino,
        chunk: ChunkIndex,
    ) -> Result<ExtentVersions, MetaError> {
        let committed = std::sync::Arc::clone(&self.state.read().committed);
        let logical = keys::extent(ino, chunk);
        let low = keys::versioned(&logical, Generation(0));
        let high = keys::versioned(&logical, Generation(u64::MAX));
        let mut versions = Vec::new();
        self.latch_on_error(
            committed.visit(Table::Extent, &low, &high, &mut |key, value| {
                let generation = VersionedKey::decode(key).map(|key| key.generation);
                versions.extend(generation.map(|at| (at, value.to_vec())));
                true
            }),
        )?;
        decode_versions(versions)
    }

    /// Replaces one version of an extent by an equivalent record. The caller holds the lock of its
    /// inode and a permit.
    pub fn replace_extent_version(
        &self,
        batch: &mut Batch,
        ino: Ino,
        chunk: ChunkIndex,
        version: Generation,
        record: &ExtentRecord,
    ) {
        let key = keys::versioned(&keys::extent(ino, chunk), version);
        batch.change(Table::Extent, key, Some(record.encode()));
    }
}

fn decode_versions(versions: Vec<(Generation, Vec<u8>)>) -> Result<ExtentVersions, MetaError> {
    let records = versions.into_iter().map(|(at, value)| {
        if value == TOMBSTONE {
            return Ok((at, None));
        }
        let record = ExtentRecord::decode(&value).ok_or(MetaError::Corrupt("extent"))?;
        Ok((at, Some(record)))
    });
    records.collect()
}
