//! A view of one volume's metadata as the metadata of another.
//!
//! All records get the first generation, the counters the second as the live one. Where the copy
//! has the objects of the source, the first is `frozen`: they are never written in place. Left out
//! is what belongs to the source alone: unlinked files that are still in use, with all that is
//! below them, kept views, garbage. A promise of space (`fallocate`) is left out too: it has its
//! blocks in an object that is not written to any more, so nothing would stand behind it.
//!
//! Nothing that the source counts is taken over: inodes, pages and the numbers to be drawn next
//! come from the records that are copied ([`super::tally`]), and so does the number of pages of
//! each file.
//!
//! Rows are read in pages and inserted in the order of their keys, in one transaction: memory is
//! bounded by the cache of the database, apart from a few bytes for each inode that has no name or
//! is below a directory that has none.

use std::collections::{HashMap, HashSet};

use super::database::{Loader, Tables};
use super::keys::{self, Row, Table};
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

/// Cache of the database that is filled, in bytes.
const CACHE_BYTES: usize = 32 << 20;
/// Bytes of rows that are read from a stored database at a time, but for the last row.
const STORED_BYTES: usize = 1 << 20;

/// How metadata are copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyOptions {
    /// The limit of the new volume's contents; 0 for none.
    pub limit_bytes: u64,
    /// Its objects are those of the source, or nobody writes under their key set any more.
    pub frozen: bool,
}

/// A chunk whose record is copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CopiedChunk {
    /// The file.
    pub ino: Ino,
    /// Which chunk of it.
    pub chunk: ChunkIndex,
    /// Bytes of the file that are in it.
    pub len_bytes: u64,
}

impl CopiedChunk {
    /// A chunk of a file of that size.
    pub fn of(ino: Ino, chunk: ChunkIndex, size_bytes: u64) -> Self {
        let before = u64::from(chunk.0) * CHUNK_BYTES;
        Self {
            ino,
            chunk,
            len_bytes: size_bytes.saturating_sub(before).min(CHUNK_BYTES),
        }
    }
}

/// Is given the parts of a chunk, of which there is one at least, and says which ones the copy has
/// in their place: they hold the same pages.
pub type CopyParts<'a, E> = dyn FnMut(CopiedChunk, Vec<Part>) -> Result<Vec<Part>, E> + 'a;

/// What a copy does with the parts of a chunk: `None` ends it.
type Replace<'a> = dyn FnMut(CopiedChunk, Vec<Part>) -> Option<Vec<Part>> + 'a;

/// What was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Copied {
    /// Inodes.
    pub inodes: u64,
    /// Pages of contents.
    pub used_pages: u64,
    /// Bytes that records take.
    pub record_bytes: u64,
    /// The newest folder of objects.
    pub folder: FolderNumber,
}

/// Where records can be copied from.
pub trait Records {
    /// Some records of a versioned table with `low <= key < high`, in order, without their
    /// generations: at most `limit`. None only at the end.
    ///
    /// # Errors
    /// They cannot be read, or are not what they should be.
    fn some(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, MetaError>;

    /// What the source counts.
    fn counted(&self) -> Counters;

    /// An inode.
    ///
    /// # Errors
    /// As of [`Self::some`].
    fn inode(&self, ino: Ino) -> Result<Option<InodeRecord>, MetaError> {
        let (low, high) = (keys::inode(ino), keys::after_ino(ino));
        let rows = self.some(Table::Inode, &low, &high, 1)?;
        let record = rows
            .first()
            .map(|(_, value)| InodeRecord::decode(value).ok_or(MetaError::Corrupt("inode")));
        record.transpose()
    }
}

/// What a view of a volume sees.
struct ViewRecords<'a> {
    meta: &'a Meta,
    view: View,
}

impl Records for ViewRecords<'_> {
    fn some(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, MetaError> {
        self.meta.scan(table, low, high, self.view, limit)
    }

    fn counted(&self) -> Counters {
        self.meta.counters()
    }
}

impl Records for Meta {
    fn some(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, MetaError> {
        self.scan(table, low, high, View::LIVE, limit)
    }

    fn counted(&self) -> Counters {
        self.counters()
    }
}

/// A database that [`Meta::copy_view`] filled, read past redb: whoever made it may have made its
/// pages of anything. All that it may hold is records of the first generation.
impl Records for Stored {
    fn some(
        &self,
        table: Table,
        low: &[u8],
        high: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, MetaError> {
        let rows = Self::some(self, table, low, limit, STORED_BYTES);
        if !self.gaps().is_empty() {
            return Err(MetaError::Corrupt("a page of the database"));
        }
        let rows = rows.into_iter().take_while(|(key, _)| &**key < high);
        rows.map(|(key, value)| {
            let (logical, generation) =
                keys::split_version(&key).ok_or(MetaError::Corrupt("key"))?;
            if generation != FIRST_GENERATION || value == TOMBSTONE {
                return Err(MetaError::Corrupt("key"));
            }
            Ok((logical.to_vec(), value))
        })
        .collect()
    }

    fn counted(&self) -> Counters {
        self.counters().clone()
    }
}

/// Records of a table one after the other.
struct Cursor<'a> {
    records: &'a dyn Records,
    table: Table,
    /// Rows in memory.
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

    /// The names in one directory.
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
            let rows = self.records.some(self.table, low, high, self.at_a_time)?;
            if let Some((last, _)) = rows.last() {
                // No logical key is the beginning of another one: all versions of the last one
                // begin with it, and the next one is greater than it with any generation.
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

    /// The inode that the next record belongs to.
    fn peek_ino(&mut self) -> Result<Option<Ino>, MetaError> {
        self.peek()?.map(|(key, _)| ino_of(key)).transpose()
    }
}

/// What is not copied.
#[derive(Default)]
struct Excluded {
    /// Inodes without a name, and those that are below such a directory alone.
    inodes: HashSet<Ino>,
    /// Names that inodes lose with the directories that hold them.
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

    /// An inode loses a name.
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
        let is_left_out = is_directory || *lost >= record.nlink;
        let is_new = is_left_out && self.inodes.insert(ino);
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
    /// Writes what `view` sees into an empty sealed file, as the metadata of another volume.
    /// `parts` sees every chunk with objects once, by inode and chunk; what it returns as an error
    /// ends the copy. Durable when it returns.
    ///
    /// # Errors
    /// Those of `parts`, of reading here and of writing there. The file is worth nothing then.
    pub fn copy_view<E: From<MetaError>>(
        &self,
        view: View,
        file: MetaFile,
        options: CopyOptions,
        parts: &mut CopyParts<'_, E>,
    ) -> Result<Copied, E> {
        copy(&ViewRecords { meta: self, view }, file, options, parts)
    }

    /// Writes all rows as of the newest commit into an empty sealed file, as the metadata of the
    /// same volume, which is not marked clean there. What it counts is what the rows add up to.
    /// Durable when it returns.
    ///
    /// # Errors
    /// Those of reading here and of writing there. The file is worth nothing then.
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

/// [`Meta::copy_view`] of records that need not be those of a volume in use.
///
/// # Errors
/// As there, and where the records are not those of one tree of files.
pub fn copy<E: From<MetaError>>(
    records: &dyn Records,
    file: MetaFile,
    options: CopyOptions,
    parts: &mut CopyParts<'_, E>,
) -> Result<Copied, E> {
    let tables = Tables::open(std::sync::Arc::new(file), CACHE_BYTES)?;
    let mut refused = None;
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
                refused = Some(error);
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
    match refused {
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
        let source = self.records.counted();
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
            // Names lie where this key says.
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
        // Values are long: only a few are in memory at a time.
        let mut xattrs = Cursor::new(records, Table::Xattr, 32);
        while let Some((key, value)) = xattrs.next()? {
            if !self.excluded.has(ino_of(&key)?) {
                self.insert(to, Table::Xattr, &key, &value)?;
            }
        }
        Ok(())
    }

    /// Inodes, each with what it has: the number of its pages is that of what is copied.
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
                    record.pages += self.extent(to, (&key, &value), size, replace)?;
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

    /// Copies an extent of a file of that size; the answer is how many pages it has.
    fn extent(
        &mut self,
        to: &mut Loader<'_>,
        (key, value): (&[u8], &[u8]),
        size_bytes: u64,
        replace: &mut Replace<'_>,
    ) -> Result<u64, MetaError> {
        let (ino, chunk) = keys::extent_parts(key).ok_or(MetaError::Corrupt("key"))?;
        let record = ExtentRecord::decode(value).ok_or(MetaError::Corrupt("extent"))?;
        let (shared, mut parts) = match record {
            ExtentRecord::Inline(_) => {
                self.insert(to, Table::Extent, key, value)?;
                return Ok(0);
            }
            ExtentRecord::Parts { shared, parts, .. } => (shared, parts),
        };
        // One without pages was made for a promise.
        parts.retain(|part| !part.pages.is_empty());
        if parts.is_empty() {
            return Ok(0);
        }
        let old: Vec<PartId> = parts.iter().map(|part| part.id).collect();
        let chunk = CopiedChunk::of(ino, chunk, size_bytes);
        let parts = replace(chunk, parts).ok_or(MetaError::Corrupt("an object"))?;
        let same = parts.iter().map(|part| &part.id).eq(&old);
        let record = ExtentRecord::Parts {
            // A fresh object is nobody else's.
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
