//! Copies a view of one volume's metadata into the metadata of another volume.
//!
//! All records get the first generation, and the second one is live. If the copy uses the objects
//! of the source, the first generation is `frozen`: those objects are never written in place. Not
//! copied is everything that belongs to the source alone: kept views, garbage, and unlinked files
//! and directories that are still in use, with everything below them. Space reservations
//! (`fallocate`) are not copied either: their blocks are in objects that the copy never writes to.
//!
//! No counter of the source is copied: the numbers of inodes and pages and the next numbers to
//! allocate are computed from the copied records (`super::tally`), and so is the number of pages
//! of each file.
//!
//! Rows are read in batches and inserted in the order of their keys, in one transaction. Memory is
//! bounded by the cache of the database, plus a few bytes for each inode that has no name or is
//! below a directory without one.

use std::collections::{HashMap, HashSet};

use super::database::{Loader, Tables};
use super::keys::{self, Row, Table, VersionedKey};
use super::page_set::{CHUNK_BYTES, PageSet};
use super::records::{
    Counters, DirentRecord, ExtentRecord, FileKind, InodeRecord, Part, PartId, TOMBSTONE,
};
use super::stored::Stored;
use super::tally::Tally;
use super::{FIRST_GENERATION, Meta, MetaError, View};
use crate::ids::{ChunkIndex, FolderNumber, Generation, Ino, ViewId};
use crate::planted::{Bug, planted};
use crate::sealed::MetaFile;

/// Cache size of the database being filled, in bytes.
const CACHE_BYTES: usize = 32 << 20;
/// Bytes of rows read from a stored database at a time, excluding the last row.
const STORED_BYTES: usize = 1 << 20;

/// Options for copying metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyOptions {
    /// Size limit of the new volume; 0 for none.
    pub limit_bytes: u64,
    /// Existing objects are never written in place: they are those of the source, or nothing is
    /// sealed under their key set any more.
    pub frozen: bool,
}

/// A chunk whose record is being copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CopiedChunk {
    /// The file.
    pub ino: Ino,
    /// The chunk within the file.
    pub chunk: ChunkIndex,
    /// Bytes of the file in this chunk.
    pub len_bytes: u64,
}

impl CopiedChunk {
    /// Describes a chunk of a file of that size.
    pub fn of(ino: Ino, chunk: ChunkIndex, size_bytes: u64) -> Self {
        let before = u64::from(chunk.0) * CHUNK_BYTES;
        Self {
            ino,
            chunk,
            len_bytes: size_bytes.saturating_sub(before).min(CHUNK_BYTES),
        }
    }
}

/// Receives the parts of a chunk, at least one, and returns the parts that the copy uses instead:
/// they hold the same pages.
pub type CopyParts<'a, E> = dyn FnMut(CopiedChunk, Vec<Part>) -> Result<Vec<Part>, E> + 'a;

/// Replaces the parts of a chunk; `None` ends the copy.
type Replace<'a> = dyn FnMut(CopiedChunk, Vec<Part>) -> Option<Vec<Part>> + 'a;

/// Totals of a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Copied {
    /// Inodes.
    pub inodes: u64,
    /// Pages of contents.
    pub used_pages: u64,
    /// Bytes of records.
    pub record_bytes: u64,
    /// The newest folder of objects.
    pub folder: FolderNumber,
}

/// A source of records to copy.
pub trait Records {
    /// Returns records of a versioned table with `low <= key < high`, in order, without their
    /// generations: at most `limit`. An empty result means the end.
    ///
    /// # Errors
    /// When they cannot be read or decoded.
    fn read_rows(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, MetaError>;

    /// The counters of the source.
    fn source_counters(&self) -> Counters;

    /// An inode.
    ///
    /// # Errors
    /// When the record cannot be read or decoded.
    fn inode(&self, ino: Ino) -> Result<Option<InodeRecord>, MetaError> {
        let (low, high) = (keys::inode(ino), keys::after_ino(ino));
        let rows = self.read_rows(Table::Inode, &low, &high, 1)?;
        let record = rows
            .first()
            .map(|(_, value)| InodeRecord::decode(value).ok_or(MetaError::Corrupt("inode")));
        record.transpose()
    }
}

/// The records that a view of a volume sees.
struct ViewRecords<'a> {
    meta: &'a Meta,
    view: View,
}

impl Records for ViewRecords<'_> {
    fn read_rows(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, MetaError> {
        self.meta.scan(table, low, high, self.view, limit)
    }

    fn source_counters(&self) -> Counters {
        self.meta.counters()
    }
}

impl Records for Meta {
    fn read_rows(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, MetaError> {
        self.scan(table, low, high, View::LIVE, limit)
    }

    fn source_counters(&self) -> Counters {
        self.counters()
    }
}

/// A database that [`Meta::copy_view`] filled, read past redb, because an untrusted party may have
/// made its pages. It may only contain records of the first generation.
impl Records for Stored {
    fn read_rows(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, MetaError> {
        let rows = Self::read_rows(self, table, low, limit, STORED_BYTES);
        if !self.gaps().is_empty() {
            return Err(MetaError::Corrupt("a page of the database"));
        }
        let rows = rows.into_iter().take_while(|(key, _)| &**key < high);
        rows.map(|(key, value)| {
            let VersionedKey {
                logical,
                generation,
            } = VersionedKey::decode(&key).ok_or(MetaError::Corrupt("key"))?;
            if generation != FIRST_GENERATION || value == TOMBSTONE {
                return Err(MetaError::Corrupt("key"));
            }
            Ok((logical.to_vec(), value))
        })
        .collect()
    }

    fn source_counters(&self) -> Counters {
        self.counters().clone()
    }
}

/// Iterates over the records of a table.
struct Cursor<'a> {
    records: &'a dyn Records,
    table: Table,
    /// Number of rows read at a time.
    at_a_time: usize,
    low: Vec<u8>,
    high: Vec<u8>,
    ready: std::vec::IntoIter<Row>,
    done: bool,
}

impl<'a> Cursor<'a> {
    fn new(records: &'a dyn Records, table: Table, at_a_time: usize) -> Self {
        Self {
            records,
            table,
            at_a_time,
            low: Vec::new(),
            high: vec![0xFF; 9],
            ready: Vec::new().into_iter(),
            done: false,
        }
    }

    /// Iterates over the names in one directory.
    fn names_in(records: &'a dyn Records, directory: Ino) -> Self {
        Self {
            low: keys::number(directory.0),
            high: keys::after_ino(directory),
            ..Self::new(records, Table::Dirent, 256)
        }
    }

    fn peek(&mut self) -> Result<Option<&Row>, MetaError> {
        if self.ready.len() == 0 && !self.done {
            let (low, high) = (&self.low, &self.high);
            let rows = self
                .records
                .read_rows(self.table, low, high, self.at_a_time)?;
            if let Some((last, _)) = rows.last() {
                // No logical key is a prefix of another. All versions of the last key begin with
                // it, and the next key is greater than it with any generation.
                self.low = keys::versioned(last, Generation(u64::MAX));
                self.low.push(0);
            }
            self.done = rows.is_empty();
            self.ready = rows.into_iter();
        }
        Ok(self.ready.as_slice().first())
    }

    fn next(&mut self) -> Result<Option<Row>, MetaError> {
        self.peek()?;
        Ok(self.ready.next())
    }

    /// The inode of the next record.
    fn peek_ino(&mut self) -> Result<Option<Ino>, MetaError> {
        self.peek()?.map(|(key, _)| ino_of(key)).transpose()
    }
}

/// Inodes and names that are not copied.
#[derive(Default)]
struct Excluded {
    /// Inodes without a name, and inodes whose only names are below directories without a name.
    inodes: HashSet<Ino>,
    /// Number of names that inodes lose with the excluded directories.
    names: HashMap<Ino, u32>,
}

impl Excluded {
    fn find(records: &dyn Records) -> Result<Self, MetaError> {
        let mut this = Self::default();
        let mut directories = Vec::new();
        let mut inodes = Cursor::new(records, Table::Inode, 256);
        while let Some((key, value)) = inodes.next()? {
            let record = InodeRecord::decode(&value).ok_or(MetaError::Corrupt("inode"))?;
            if record.nlink == 0 {
                let ino = ino_of(&key)?;
                this.inodes.insert(ino);
                if record.kind == FileKind::Directory {
                    directories.push(ino);
                }
            }
        }
        while let Some(directory) = directories.pop() {
            let mut names = Cursor::names_in(records, directory);
            while let Some((_, value)) = names.next()? {
                let entry = DirentRecord::decode(&value).ok_or(MetaError::Corrupt("dirent"))?;
                this.exclude_name(records, entry.ino, &mut directories)?;
            }
        }
        if this.inodes.contains(&Ino::ROOT) {
            return Err(MetaError::Corrupt("root"));
        }
        Ok(this)
    }

    /// Counts a name that an inode loses.
    fn exclude_name(
        &mut self,
        records: &dyn Records,
        ino: Ino,
        directories: &mut Vec<Ino>,
    ) -> Result<(), MetaError> {
        let record = records.inode(ino)?.ok_or(MetaError::Corrupt("dirent"))?;
        let lost = self.names.entry(ino).or_default();
        *lost = lost.saturating_add(1);
        let is_directory = record.kind == FileKind::Directory;
        let is_excluded = is_directory || *lost >= record.nlink;
        let is_new = is_excluded && self.inodes.insert(ino);
        if is_new && is_directory {
            directories.push(ino);
        }
        Ok(())
    }

    fn has(&self, ino: Ino) -> bool {
        self.inodes.contains(&ino)
    }
}

/// A copy under way.
struct Copy<'a> {
    records: &'a dyn Records,
    excluded: Excluded,
    tally: Tally,
}

impl Meta {
    /// Writes the records that `view` sees into an empty sealed file as the metadata of another
    /// volume. `parts` is called once for every chunk with objects, ordered by inode and chunk; an
    /// error that it returns ends the copy. Durable on return.
    ///
    /// # Errors
    /// Errors of `parts`, of reading the source and of writing the file, which is worthless then.
    pub fn copy_view<E: From<MetaError>>(
        &self,
        view: View,
        file: MetaFile,
        options: CopyOptions,
        parts: &mut CopyParts<'_, E>,
    ) -> Result<Copied, E> {
        copy(&ViewRecords { meta: self, view }, file, options, parts)
    }

    /// Writes all rows of the newest commit into an empty sealed file as the metadata of the same
    /// volume, without the clean mark. The counters are computed from the rows. Durable on return.
    ///
    /// # Errors
    /// Errors of reading the source and of writing the file, which is worthless then.
    pub fn copy_committed(&self, file: MetaFile) -> Result<(), MetaError> {
        let committed = std::sync::Arc::clone(&self.state.read().committed);
        let tables = Tables::open(std::sync::Arc::new(file), CACHE_BYTES)?;
        tables.load(&mut |loader| {
            let mut tally = Tally::default();
            for table in Table::ALL {
                let mut inserted = Ok(());
                committed.visit(table, &[], &[0xFF; 9], &mut |key, value| {
                    inserted = tally
                        .add(table, key, value)
                        .and_then(|()| loader.insert(table, key, value));
                    inserted.is_ok()
                })?;
                inserted?;
            }
            let counters = committed.get(Table::Counters, &[])?;
            let counters = counters.and_then(|bytes| Counters::decode(&bytes));
            let counters = Counters {
                clean: false,
                ..counters.ok_or(MetaError::Corrupt("counters"))?
            };
            Ok(tally.counters(counters)?.encode())
        })?;
        tables.close()
    }
}

/// Copies records from any source, as [`Meta::copy_view`] does from a volume in use.
///
/// # Errors
/// Errors of `parts`, of reading and of writing, and an error if the records do not form one tree
/// of files.
pub fn copy<E: From<MetaError>>(
    records: &dyn Records,
    file: MetaFile,
    options: CopyOptions,
    parts: &mut CopyParts<'_, E>,
) -> Result<Copied, E> {
    let tables = Tables::open(std::sync::Arc::new(file), CACHE_BYTES)?;
    let mut replace_error = None;
    let mut copied = Copied::default();
    let loaded = tables.load(&mut |loader| {
        let mut copy = Copy {
            records,
            excluded: Excluded::find(records)?,
            tally: Tally::default(),
        };
        copy.all(loader, &mut |chunk, old| match parts(chunk, old) {
            Ok(parts) => Some(parts),
            Err(error) => {
                replace_error = Some(error);
                None
            }
        })?;
        let counters = copy.counters(options)?;
        copied = Copied {
            inodes: counters.inodes,
            used_pages: counters.used_pages,
            record_bytes: counters.record_bytes,
            folder: counters.folder,
        };
        Ok(counters.encode())
    });
    match replace_error {
        Some(error) => Err(error),
        None => {
            loaded?;
            tables.close()?;
            Ok(copied)
        }
    }
}

impl Copy<'_> {
    fn counters(self, options: CopyOptions) -> Result<Counters, MetaError> {
        let source = self.records.source_counters();
        let counters = self.tally.counters(Counters {
            clean: true,
            generation: Generation(FIRST_GENERATION.0 + 1),
            frozen: if options.frozen {
                FIRST_GENERATION
            } else {
                Generation(0)
            },
            next_ino: Ino(Ino::ROOT.0 + 1),
            folder: FolderNumber(0),
            next_garbage: 0,
            used_pages: 0,
            inodes: 0,
            record_bytes: 0,
            limit_bytes: options.limit_bytes,
            // The positions of names depend on this key.
            hash_key: source.hash_key,
            restoring: Generation(0),
            newest_view: ViewId::LIVE,
        })?;
        if planted(Bug::CountersFromStream) {
            return Ok(Counters {
                next_ino: source.next_ino,
                folder: source.folder,
                used_pages: source.used_pages,
                inodes: source.inodes,
                record_bytes: source.record_bytes,
                ..counters
            });
        }
        Ok(counters)
    }

    fn all(&mut self, to: &mut Loader<'_>, replace: &mut Replace<'_>) -> Result<(), MetaError> {
        let records = self.records;
        self.inodes_and_contents(to, replace)?;
        let mut names = Cursor::new(records, Table::Dirent, 1024);
        while let Some((key, value)) = names.next()? {
            if !self.excluded.has(ino_of(&key)?) {
                self.insert(to, Table::Dirent, &key, &value)?;
            }
        }
        // Values are long, so only a few are held in memory at a time.
        let mut xattrs = Cursor::new(records, Table::Xattr, 32);
        while let Some((key, value)) = xattrs.next()? {
            if !self.excluded.has(ino_of(&key)?) {
                self.insert(to, Table::Xattr, &key, &value)?;
            }
        }
        Ok(())
    }

    /// Copies inodes with their extents. The number of pages of each inode is computed from the
    /// copied extents.
    fn inodes_and_contents(
        &mut self,
        to: &mut Loader<'_>,
        replace: &mut Replace<'_>,
    ) -> Result<(), MetaError> {
        let mut inodes = Cursor::new(self.records, Table::Inode, 256);
        let mut extents = Cursor::new(self.records, Table::Extent, 256);
        if inodes.peek_ino()? != Some(Ino::ROOT) {
            return Err(MetaError::Corrupt("root"));
        }
        while let Some((key, value)) = inodes.next()? {
            let mut record = InodeRecord::decode(&value).ok_or(MetaError::Corrupt("inode"))?;
            let ino = ino_of(&key)?;
            let is_copied = !self.excluded.has(ino);
            record.pages = 0;
            while extents.peek_ino()?.is_some_and(|of| of <= ino) {
                let Some((key, value)) = extents.next()? else {
                    break;
                };
                if ino_of(&key)? != ino {
                    return Err(MetaError::Corrupt("extent"));
                }
                if is_copied {
                    let size = record.size;
                    record.pages += self.extent(to, &(key, value), size, replace)?;
                }
            }
            if is_copied {
                let lost = self.excluded.names.get(&ino).copied().unwrap_or(0);
                record.nlink = record.nlink.saturating_sub(lost);
                self.insert(to, Table::Inode, &key, &record.encode())?;
            }
        }
        match extents.peek()? {
            Some(_) => Err(MetaError::Corrupt("extent")),
            None => Ok(()),
        }
    }

    /// Copies an extent of a file of that size. Returns its number of pages.
    fn extent(
        &mut self,
        to: &mut Loader<'_>,
        row: &Row,
        size_bytes: u64,
        replace: &mut Replace<'_>,
    ) -> Result<u64, MetaError> {
        let (key, value) = row;
        let (ino, chunk) = keys::extent_parts(key).ok_or(MetaError::Corrupt("key"))?;
        let record = ExtentRecord::decode(value).ok_or(MetaError::Corrupt("extent"))?;
        let (shared, mut parts) = match record {
            ExtentRecord::Inline(_) => {
                self.insert(to, Table::Extent, key, value)?;
                return Ok(0);
            }
            ExtentRecord::Parts { shared, parts, .. } => (shared, parts),
        };
        // A part without pages was made for a reservation.
        parts.retain(|part| !part.pages.is_empty());
        if parts.is_empty() {
            return Ok(0);
        }
        let old: Vec<PartId> = parts.iter().map(|part| part.id).collect();
        let chunk = CopiedChunk::of(ino, chunk, size_bytes);
        let parts = replace(chunk, parts).ok_or(MetaError::Corrupt("an object"))?;
        let same = parts.iter().map(|part| &part.id).eq(&old);
        let record = ExtentRecord::Parts {
            // A fresh object is not shared.
            shared: shared && same,
            parts,
            reserved: PageSet::new(),
        };
        self.insert(to, Table::Extent, key, &record.encode())?;
        Ok(record.pages())
    }

    /// Inserts a record of the first generation.
    fn insert(
        &mut self,
        to: &mut Loader<'_>,
        table: Table,
        logical: &[u8],
        value: &[u8],
    ) -> Result<(), MetaError> {
        let key = keys::versioned(logical, FIRST_GENERATION);
        self.tally.add(table, &key, value)?;
        to.insert(table, &key, value)
    }
}

/// The inode that a logical key begins with.
fn ino_of(logical: &[u8]) -> Result<Ino, MetaError> {
    let ino = keys::ino_of(logical).ok_or(MetaError::Corrupt("key"))?;
    ino.is_valid()
        .then_some(ino)
        .ok_or(MetaError::Corrupt("key"))
}
