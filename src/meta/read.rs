//! Reading records: the newest of uncommitted batches, batches being committed, and the database.

use std::ops::Bound;
use std::sync::Arc;

use super::keys::{self, Row, Table, VersionedKey};
use super::overlay::{Overlay, TableOverlay};
use super::records::{DirentRecord, ExtentRecord, InodeRecord, TOMBSTONE};
use super::{FIRST_GENERATION, Meta, MetaError, View};
use crate::ids::{Generation, Ino};

/// A physical key and its value, `None` if the record was removed.
type PhysicalRecord = (Vec<u8>, Option<Vec<u8>>);

/// Some physical records of a table.
struct PhysicalPage {
    /// `None` for removed ones.
    records: TableOverlay,
    /// The key to continue from; `None` at the end.
    next: Option<Vec<u8>>,
}

impl Meta {
    /// The value of a record as seen by `view`.
    ///
    /// # Errors
    /// When the database cannot be read, which latches.
    pub fn get(
        &self,
        table: Table,
        logical: &[u8],
        view: View,
    ) -> Result<Option<Vec<u8>>, MetaError> {
        Ok(self
            .newest(table, logical, view)?
            .map(|(_, value)| value)
            .filter(|v| v != TOMBSTONE))
    }

    /// The inode as seen by `view`.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or the record cannot be decoded.
    pub fn inode(&self, ino: Ino, view: View) -> Result<Option<InodeRecord>, MetaError> {
        let Some(bytes) = self.get(Table::Inode, &keys::inode(ino), view)? else {
            return Ok(None);
        };
        InodeRecord::decode(&bytes)
            .map(Some)
            .ok_or(MetaError::Corrupt("inode"))
    }

    /// The directory entry as seen by `view`.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or the record cannot be decoded.
    pub fn dirent(
        &self,
        parent: Ino,
        name: &[u8],
        view: View,
    ) -> Result<Option<DirentRecord>, MetaError> {
        for (key, value) in self.dirents_near(parent, self.name_hash(name), view)? {
            if keys::dirent_parts(&key).is_some_and(|(_, stored)| stored == name) {
                let record = DirentRecord::decode(&value);
                return record.map(Some).ok_or(MetaError::Corrupt("dirent"));
            }
        }
        Ok(None)
    }

    /// The entries at all positions that a name with this hash may have.
    pub(super) fn dirents_near(
        &self,
        parent: Ino,
        hash: u32,
        view: View,
    ) -> Result<Vec<Row>, MetaError> {
        let low = keys::dirent_from(parent, hash);
        let high = keys::dirent_from(parent, hash.saturating_add(keys::PROBE_LIMIT));
        self.scan(Table::Dirent, &low, &high, view, usize::MAX)
    }

    /// The extent as seen by `view`, with the generation that wrote it.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or the record cannot be decoded.
    pub fn extent(
        &self,
        ino: Ino,
        chunk: crate::ids::ChunkIndex,
        view: View,
    ) -> Result<Option<(Generation, ExtentRecord)>, MetaError> {
        match self.newest(Table::Extent, &keys::extent(ino, chunk), view)? {
            Some((generation, bytes)) if bytes != TOMBSTONE => {
                let extent = ExtentRecord::decode(&bytes).ok_or(MetaError::Corrupt("extent"))?;
                Ok(Some((generation, extent)))
            }
            _ => Ok(None),
        }
    }

    /// Returns up to `limit` logical records with `low <= logical key < high` as seen by `view`, in
    /// order. Fewer than `limit` means that there are no more.
    ///
    /// # Errors
    /// When the database cannot be read, which latches.
    pub fn scan(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
        view: View,
        limit: usize,
    ) -> Result<Vec<Row>, MetaError> {
        let mut rows: Vec<Row> = Vec::new();
        let mut live = self.generation();
        self.visit_physical(table, low, high, &mut |key, value| {
            let Some(VersionedKey {
                logical,
                generation,
            }) = VersionedKey::decode(key)
            else {
                return true;
            };
            // A snapshot may have raised the live generation since; no record is newer than that.
            if generation > live {
                live = self.generation();
            }
            if generation > view.0.min(live) {
                return true;
            }
            match rows.last_mut() {
                Some((last, newest)) if last == logical => {
                    newest.clear();
                    newest.extend_from_slice(value);
                }
                last => {
                    if last.is_some_and(|(_, value)| value == TOMBSTONE) {
                        rows.pop();
                    }
                    if rows.len() == limit {
                        return false;
                    }
                    rows.push((logical.to_vec(), value.to_vec()));
                }
            }
            true
        })?;
        if rows.last().is_some_and(|(_, value)| value == TOMBSTONE) {
            rows.pop();
        }
        Ok(rows)
    }

    /// Calls `visit` with every extent of every generation, whichever view sees it.
    ///
    /// # Errors
    /// When the database cannot be read, which latches, or a record cannot be decoded.
    pub fn visit_extents(&self, visit: &mut dyn FnMut(Ino, ExtentRecord)) -> Result<(), MetaError> {
        let mut corrupt = false;
        self.visit_physical(Table::Extent, &[], &[0xFF; 9], &mut |key, value| {
            if value == TOMBSTONE {
                return true;
            }
            let version = VersionedKey::decode(key);
            let ino = version.and_then(|version| keys::extent_parts(version.logical));
            match (ino, ExtentRecord::decode(value)) {
                (Some((ino, _)), Some(extent)) => visit(ino, extent),
                _ => corrupt = true,
            }
            !corrupt
        })?;
        if corrupt {
            Err(MetaError::Corrupt("extent"))
        } else {
            Ok(())
        }
    }

    /// The newest version of a logical key with at most the view's generation.
    pub(super) fn newest(
        &self,
        table: Table,
        logical: &[u8],
        view: View,
    ) -> Result<Option<(Generation, Vec<u8>)>, MetaError> {
        let (generation, first_fresh) = {
            let state = self.state.read();
            (state.counters.generation, state.first_fresh)
        };
        let mut key = keys::versioned(logical, generation);
        let is_fresh = keys::ino_of(logical).is_some_and(|ino| ino >= first_fresh);
        if generation == FIRST_GENERATION || (is_fresh && view.0 >= generation) {
            return Ok(self.physical(table, &key)?.map(|value| (generation, value)));
        }
        if is_fresh {
            return Ok(None);
        }
        if view.0 >= generation
            && let Some(value) = self.uncommitted(table, &key)
        {
            return Ok(Some((generation, value)));
        }
        // No record is newer than the live generation.
        set_version(&mut key, view.0.min(generation));
        let low = keys::versioned(logical, Generation(0));
        loop {
            let Some((physical, value)) = self.last_physical(table, &low, &key)? else {
                return Ok(None);
            };
            let version = VersionedKey::decode(&physical).ok_or(MetaError::Corrupt("key"))?;
            let at = version.generation;
            match value {
                Some(value) => return Ok(Some((at, value))),
                None if at.0 == 0 => return Ok(None),
                None => set_version(&mut key, Generation(at.0 - 1)),
            }
        }
    }

    /// The value of a physical record as set by an uncommitted change.
    fn uncommitted(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        let state = self.state.read();
        let pending = state.pending.table(table).get(key);
        pending
            .or_else(|| state.committing.table(table).get(key))
            .cloned()
            .flatten()
    }

    pub(super) fn physical(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        let (committing, committed) = {
            let state = self.state.read();
            if let Some(value) = state.pending.table(table).get(key) {
                return Ok(value.clone());
            }
            (Arc::clone(&state.committing), Arc::clone(&state.committed))
        };
        match committing.table(table).get(key) {
            Some(value) => Ok(value.clone()),
            None => self.latch_on_error(committed.get(table, key)),
        }
    }

    /// The last physical record of the range; its value is `None` if it was removed.
    fn last_physical(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
    ) -> Result<Option<PhysicalRecord>, MetaError> {
        let bounds = (Bound::Included(low), Bound::Included(high));
        let last_of = |overlay: &Overlay| {
            let last = overlay.table(table).range::<[u8], _>(bounds).next_back();
            last.map(|(key, value)| (key.clone(), value.clone()))
        };
        let (pending, committing, committed) = {
            let state = self.state.read();
            (
                last_of(&state.pending),
                Arc::clone(&state.committing),
                Arc::clone(&state.committed),
            )
        };
        let base = self
            .latch_on_error(committed.last_between(table, low, high))?
            .map(|(key, value)| (key, Some(value)));
        // For equal keys the newer source wins: `max_by` returns the last of equal elements.
        Ok([base, last_of(&committing), pending]
            .into_iter()
            .flatten()
            .max_by(|a, b| a.0.cmp(&b.0)))
    }

    /// Calls `visit` with each physical record with `low <= key < high`, in order, until it returns
    /// false. No lock is held while the database is read or `visit` runs.
    pub(super) fn visit_physical(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), MetaError> {
        let mut low = low.to_vec();
        loop {
            let page = self.physical_page(table, &low, high)?;
            for (key, value) in &page.records {
                if let Some(value) = value
                    && !visit(key, value)
                {
                    return Ok(());
                }
            }
            match page.next {
                Some(next) => low = next,
                None => return Ok(()),
            }
        }
    }

    /// Some physical records from `low` on.
    fn physical_page(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
    ) -> Result<PhysicalPage, MetaError> {
        const PAGE_RECORDS: usize = 256;
        let bounds = (Bound::Included(low), Bound::Excluded(high));
        let first_of = |overlay: &Overlay| -> TableOverlay {
            let range = overlay
                .table(table)
                .range::<[u8], _>(bounds)
                .take(PAGE_RECORDS);
            range
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect()
        };
        let (pending, committing, committed) = {
            let state = self.state.read();
            (
                first_of(&state.pending),
                Arc::clone(&state.committing),
                Arc::clone(&state.committed),
            )
        };
        let mut base = TableOverlay::new();
        self.latch_on_error(committed.visit(table, low, high, &mut |key, value| {
            base.insert(key.to_vec(), Some(value.to_vec()));
            base.len() < PAGE_RECORDS
        }))?;
        // A source that returned a full page may have more records after its last key. Records of
        // the other sources beyond that key have to wait.
        let mut horizon: Option<Vec<u8>> = None;
        let mut merged = TableOverlay::new();
        for source in [base, first_of(&committing), pending] {
            if source.len() == PAGE_RECORDS
                && let Some((last, _)) = source.last_key_value()
                && horizon.as_ref().is_none_or(|h| last < h)
            {
                horizon = Some(last.clone());
            }
            merged.extend(source);
        }
        let next = horizon.map(|mut key| {
            key.push(0);
            merged.split_off(&key);
            key
        });
        Ok(PhysicalPage {
            records: merged,
            next,
        })
    }
}

/// Replaces the generation in a physical key.
fn set_version(key: &mut [u8], generation: Generation) {
    if let Some(version) = key.last_chunk_mut::<{ keys::GENERATION_BYTES }>() {
        *version = generation.0.to_be_bytes();
    }
}
