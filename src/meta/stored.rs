//! The metadata as the newest commit left it on the disk, read past every cache.
//!
//! Rows are read by [`RawTables`], verifying both layers and the checksum of each page, whether or
//! not the file is in use. The record of free pages, which only the database understands, is
//! verified by opening the file with the database. What the database would write then (it marks its
//! file as in use, and may have to recover) stays in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redb::StorageBackend;

use super::database::{Committed, Tables};
use super::keys::{Row, Table};
use super::raw::{Gap, RawTables, Visited};
use super::records::Counters;
use super::{Meta, MetaError};
use crate::sealed::{META_PAYLOAD_BYTES, MetaFile};

const PAGE: u64 = META_PAYLOAD_BYTES as u64;

/// In-memory overwrites of the file.
#[derive(Debug)]
struct Overwrites {
    pages: BTreeMap<u64, Box<[u8]>>,
    len: u64,
    /// End of the bytes that are still read from the file.
    own: u64,
}

/// redb's view of a sealed file that is never written to.
struct ScratchBackend {
    file: Arc<MetaFile>,
    overwrites: Mutex<Overwrites>,
    cancelled: Arc<AtomicBool>,
}

impl fmt::Debug for ScratchBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScratchBackend")
    }
}

impl ScratchBackend {
    fn new(file: Arc<MetaFile>, cancelled: Arc<AtomicBool>) -> io::Result<Self> {
        let len = file.len()?;
        let overwrites = Overwrites {
            pages: BTreeMap::new(),
            len,
            own: len,
        };
        Ok(Self {
            file,
            overwrites: Mutex::new(overwrites),
            cancelled,
        })
    }

    fn read_page(
        &self,
        overwrites: &Overwrites,
        page: u64,
        out: &mut [u8],
        within: usize,
    ) -> io::Result<()> {
        if let Some(bytes) = overwrites.pages.get(&page) {
            out.copy_from_slice(&bytes[within..within + out.len()]);
            return Ok(());
        }
        if page * PAGE >= overwrites.own {
            out.fill(0);
            return Ok(());
        }
        self.file.read(page * PAGE + within as u64, out)
    }
}

/// Splits a range at page boundaries. Each item is: page, start within the page, start within the
/// range, number of bytes.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % PAGE) as usize;
        let count = (len - done).min(META_PAYLOAD_BYTES - within);
        let piece = (at / PAGE, within, done, count);
        done += count;
        Some(piece)
    })
}

impl StorageBackend for ScratchBackend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.overwrites.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled"));
        }
        let overwrites = self.overwrites.lock();
        let end = offset + out.len() as u64;
        if end > overwrites.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let written = offset / PAGE..end.div_ceil(PAGE);
        if end <= overwrites.own && overwrites.pages.range(written).next().is_none() {
            drop(overwrites);
            return self.file.read(offset, out);
        }
        for (page, within, at, count) in pieces(offset, out.len()) {
            self.read_page(&overwrites, page, &mut out[at..at + count], within)?;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let overwrites = &mut *self.overwrites.lock();
        overwrites.pages.split_off(&len.div_ceil(PAGE));
        overwrites.own = overwrites.own.min(len);
        overwrites.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut overwrites = self.overwrites.lock();
        for (page, within, at, count) in pieces(offset, data.len()) {
            let mut bytes = vec![0; META_PAYLOAD_BYTES];
            if count < META_PAYLOAD_BYTES {
                self.read_page(&overwrites, page, &mut bytes, 0)?;
            }
            bytes[within..within + count].copy_from_slice(&data[at..at + count]);
            overwrites.pages.insert(page, bytes.into());
        }
        overwrites.len = overwrites.len.max(offset + data.len() as u64);
        Ok(())
    }
}

/// Lets the database open the file and verify its own bookkeeping and the checksums of everything
/// that its newest commit references, without writing to the file. False if the record of free
/// pages had to be rebuilt. Reading fails once `cancelled` is set.
///
/// # Errors
/// When a page does not open, or the database does not match its checksums.
pub fn verify_database(
    file: Arc<MetaFile>,
    cache_bytes: usize,
    cancelled: Arc<AtomicBool>,
) -> Result<bool, MetaError> {
    let backend = ScratchBackend::new(file, cancelled)?;
    let mut tables = Tables::open_scratch(backend, cache_bytes)?;
    tables.verify()
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
        rows.visit(Table::Counters, &(Vec::new()..vec![0xFF]), &mut |found| {
            if let Visited::Row(_, value) = found {
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

    /// Pages that were read and rejected, with the reasons; `None` stands for a page whose number
    /// is not known.
    pub fn gaps(&self) -> BTreeMap<Option<u64>, String> {
        self.gaps.lock().clone()
    }

    fn note(&self, gap: &Gap) {
        self.gaps.lock().insert(gap.page, gap.reason.clone());
    }

    /// The value of a physical key.
    pub fn get(&self, table: Table, key: &[u8]) -> Option<Vec<u8>> {
        let mut end = key.to_vec();
        end.push(0);
        let mut found = None;
        self.rows.visit(table, &(key.to_vec()..end), &mut |row| {
            match row {
                Visited::Row(_, value) => found = Some(value.to_vec()),
                Visited::Gap(gap) => self.note(gap),
            }
            true
        });
        found
    }

    /// Returns physical records from `low` on, in order: at most `rows` of them, and at most
    /// `bytes` bytes excluding the last record. A result below both limits means that there are no
    /// more.
    pub fn read_rows(&self, table: Table, low: &[u8], rows: usize, bytes: usize) -> Vec<Row> {
        // Higher than any key: the numbers of inodes, chunks and generations begin with zeros.
        let range = low.to_vec()..vec![0xFF; 9];
        let (mut found, mut taken) = (Vec::new(), 0);
        self.rows.visit(table, &range, &mut |row| {
            match row {
                Visited::Row(key, value) => {
                    taken += key.len() + value.len();
                    found.push((key.to_vec(), value.to_vec()));
                }
                Visited::Gap(gap) => self.note(gap),
            }
            found.len() < rows && taken < bytes
        });
        found
    }
}

impl Meta {
    /// The rows of the newest commit. Its pages are not reused as long as the returned `Committed`
    /// is held.
    pub(super) fn as_committed(&self) -> Result<(Arc<Committed>, RawTables), MetaError> {
        let _no_commit = self.tables.lock();
        let committed = Arc::clone(&self.state.read().committed);
        let rows = RawTables::newest(&self.file).ok_or(MetaError::Corrupt("page 0"))?;
        Ok((committed, rows))
    }

    /// The newest commit. Its pages are not reused as long as the result is held.
    ///
    /// # Errors
    /// When page 0 or the counters cannot be read.
    pub fn stored(&self) -> Result<Stored, MetaError> {
        let (commit, rows) = self.as_committed()?;
        Stored::of(rows, Some(commit))
    }
}
