//! The metadata as the newest commit left it on the disk, read past every cache.
//!
//! Rows are read by [`RawTables`], which verifies both layers and the checksum of each page,
//! whether or not the file is in use. Only the database understands the record of free pages, so
//! that record is verified by opening the file with the database ([`verify_database`]). The
//! database writes to its file then (it marks the file as in use, and may have to recover); these
//! writes stay in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use super::database::{Committed, Tables};
use super::keys::{Row, Table};
use super::raw::{Gap, RawTables, Visited};
use super::records::Counters;
use super::{Meta, MetaError};
use crate::sealed::MetaFile;

/// Lets the database verify its record of free pages, and the checksums of everything that its
/// newest commit references, without writing to the file. The file must not be in use. False if the
/// record of free pages had to be rebuilt. Reading fails once `cancelled` is set.
///
/// # Errors
/// When a page does not open, or the database does not match its checksums.
pub fn verify_database(
    file: &MetaFile,
    cache_bytes: usize,
    cancelled: Arc<AtomicBool>,
) -> Result<bool, MetaError> {
    let scratch = Arc::new(file.scratch()?);
    Tables::open_cancellable(scratch, cache_bytes, cancelled)?.verify()
}

/// The rows of one commit.
pub struct Stored {
    rows: RawTables,
    counters: Counters,
    gaps: Mutex<BTreeMap<Option<u64>, String>>,
    /// Pins the pages of the commit if the file is in use.
    _commit: Option<Arc<Committed>>,
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stored")
    }
}

impl Stored {
    /// Opens the newest commit of a file that is not in use.
    ///
    /// # Errors
    /// When page 0 belongs to no database, or the counters cannot be read.
    pub fn open(file: &Arc<MetaFile>) -> Result<Self, MetaError> {
        let rows = RawTables::newest(file).ok_or(MetaError::Corrupt("page 0"))?;
        Self::of(rows, None)
    }

    pub(super) fn of(rows: RawTables, commit: Option<Arc<Committed>>) -> Result<Self, MetaError> {
        let mut counters = None;
        rows.visit(Table::Counters, &(Vec::new()..vec![0xFF]), &mut |visited| {
            if let Visited::Row([], value) = visited {
                counters = Counters::decode(value);
            }
            true
        });
        Ok(Self {
            rows,
            counters: counters.ok_or(MetaError::Corrupt("counters"))?,
            gaps: Mutex::default(),
            _commit: commit,
        })
    }

    /// The counters of the commit.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Pages that were rejected so far, with the reasons; `None` stands for a page whose number is
    /// not known.
    pub fn gaps(&self) -> BTreeMap<Option<u64>, String> {
        self.gaps.lock().clone()
    }

    fn add_gap(&self, gap: &Gap) {
        self.gaps.lock().insert(gap.page, gap.reason.clone());
    }

    /// The value of a physical key.
    pub fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        let mut end = key.to_vec();
        end.push(0);
        let mut value = None;
        self.rows.visit(table, &(key.to_vec()..end), &mut |row| {
            match row {
                Visited::Row(_, bytes) => value = Some(bytes.to_vec()),
                Visited::Gap(gap) => self.add_gap(gap),
            }
            true
        });
        value
    }

    /// Returns physical records from `low` on, in order: at most `limit` of them, and at most
    /// `limit_bytes` bytes excluding the last record. A result below both limits means that there
    /// are no more.
    pub fn read_rows(
        &self,
        table: Table,
        low: &[u8],
        limit: usize,
        limit_bytes: usize,
    ) -> Vec<Row> {
        // Higher than any key: the numbers of inodes, chunks and generations begin with zeros.
        let range = low.to_vec()..vec![0xFF; 9];
        let (mut rows, mut bytes) = (Vec::new(), 0);
        self.rows.visit(table, &range, &mut |row| {
            match row {
                Visited::Row(key, value) => {
                    bytes += key.len() + value.len();
                    rows.push((key.to_vec(), value.to_vec()));
                }
                Visited::Gap(gap) => self.add_gap(gap),
            }
            rows.len() < limit && bytes < limit_bytes
        });
        rows
    }
}

impl Meta {
    /// The newest commit, and its rows as they are on the disk. Its pages are not reused as long as
    /// the returned `Committed` is held.
    pub(super) fn pin_rows(&self) -> Result<(Arc<Committed>, RawTables), MetaError> {
        let _no_commit = self.tables.lock();
        let commit = Arc::clone(&self.state.read().committed);
        let rows = RawTables::newest(&self.file).ok_or(MetaError::Corrupt("page 0"))?;
        Ok((commit, rows))
    }

    /// The newest commit. Its pages are not reused as long as the result is held.
    ///
    /// # Errors
    /// When page 0 or the counters cannot be read.
    pub fn stored(&self) -> Result<Stored, MetaError> {
        let (commit, rows) = self.pin_rows()?;
        Stored::of(rows, Some(commit))
    }
}
