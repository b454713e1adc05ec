//! A view of one volume's metadata as the metadata of another.
//!
//! All records get the first generation, the counters the second as the live one. Where the copy
//! has the objects of the source, the first is `frozen`: they are never written in place. Left out
//! is what belongs to the source alone: unlinked files that are still in use, kept views, garbage.
//! A promise of space (`fallocate`) is left out too: it has its blocks in an object that is not
//! written to any more, so nothing would stand behind it.
//!
//! Rows are read in pages and inserted in the order of their keys, in one transaction: memory is
//! bounded by the cache of the database, apart from eight bytes for each unlinked file that is
//! still in use, and a few for each file with a promise.

use std::collections::{BTreeMap, HashSet};

use super::database::{Loader, Tables};
use super::keys::{self, Row, Table};
use super::page_set::{CHUNK_BYTES, PageSet};
use super::records::{Counters, ExtentRecord, InodeRecord, Part, PartId, taken};
use super::{FIRST_GENERATION, Meta, MetaError, View};
use crate::ids::{ChunkIndex, FolderNumber, Generation, Ino, ViewId};
use crate::sealed::MetaFile;

/// Cache of the database that is filled, in bytes.
const CACHE_BYTES: usize = 32 << 20;

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

/// What was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Copied {
    /// Inodes.
    pub inodes: u64,
    /// Pages of contents.
    pub used_pages: u64,
    /// The newest folder of objects.
    pub folder: FolderNumber,
}

/// What is done with a logical key and its value.
type Visit<'v, 'a> = dyn FnMut(&mut Copy<'a>, &[u8], &[u8]) -> Result<(), MetaError> + 'v;

/// What a copy does with the parts of a chunk: `None` ends it.
type Replace<'a> = dyn FnMut(CopiedChunk, Vec<Part>) -> Option<Vec<Part>> + 'a;

/// A copy under way.
struct Copy<'a> {
    source: &'a Meta,
    view: View,
    /// Inodes without a name.
    orphans: HashSet<Ino>,
    /// Pages that a file was promised and does not have.
    promised: BTreeMap<Ino, u64>,
    copied: Copied,
    /// The file that chunks were last copied of, and its size.
    sized: Option<(Ino, u64)>,
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
        let tables = Tables::open(std::sync::Arc::new(file), CACHE_BYTES)?;
        let mut refused = None;
        let mut copied = Copied::default();
        let loaded = tables.load(None, &mut |loader| {
            let mut copy = Copy::new(self, view);
            copy.all(loader, &mut |chunk, old| match parts(chunk, old) {
                Ok(parts) => Some(parts),
                Err(error) => {
                    refused = Some(error);
                    None
                }
            })?;
            copied = copy.copied;
            Ok(copy.counters(options).encode())
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
}

impl Meta {
    /// Writes all rows as of the newest commit into an empty sealed file, as the metadata of the same
    /// volume, which is not marked clean there. Durable when it returns.
    ///
    /// # Errors
    /// Those of reading here and of writing there. The file is worth nothing then.
    pub fn copy_committed(&self, file: MetaFile) -> Result<(), MetaError> {
        let committed = std::sync::Arc::clone(&self.state.read().committed);
        let tables = Tables::open(std::sync::Arc::new(file), CACHE_BYTES)?;
        tables.load(None, &mut |loader| {
            for table in Table::ALL {
                let mut inserted = Ok(());
                committed.visit(table, &[], &[0xFF; 9], &mut |key, value| {
                    inserted = loader.insert(table, key, value);
                    inserted.is_ok()
                })?;
                inserted?;
            }
            let counters = committed.get(Table::Counters, &[])?;
            let counters = counters.and_then(|bytes| Counters::decode(&bytes));
            Ok(Counters {
                clean: false,
                ..counters.ok_or(MetaError::Corrupt("counters"))?
            }
            .encode())
        })?;
        tables.close()
    }
}

impl<'a> Copy<'a> {
    fn new(source: &'a Meta, view: View) -> Self {
        Self {
            source,
            view,
            orphans: HashSet::new(),
            promised: BTreeMap::new(),
            copied: Copied::default(),
            sized: None,
        }
    }

    fn counters(&self, options: CopyOptions) -> Counters {
        let source = self.source.counters();
        let frozen = if options.frozen {
            FIRST_GENERATION
        } else {
            Generation(0)
        };
        Counters {
            clean: true,
            generation: Generation(FIRST_GENERATION.0 + 1),
            frozen,
            next_ino: source.next_ino,
            folder: self.copied.folder,
            next_garbage: 0,
            used_pages: self.copied.used_pages,
            inodes: self.copied.inodes,
            limit_bytes: options.limit_bytes,
            hash_key: source.hash_key,
            restoring: Generation(0),
            newest_view: ViewId::LIVE,
        }
    }

    fn all(&mut self, to: &mut Loader<'_>, replace: &mut Replace<'_>) -> Result<(), MetaError> {
        let (source, view) = (self.source, self.view);
        if source.inode(Ino::ROOT, view)?.is_none() {
            return Err(MetaError::Corrupt("root"));
        }
        self.each(Table::Inode, 256, &mut |this, key, value| {
            this.inode(to, key, value)
        })?;
        self.each(Table::Dirent, 1024, &mut |_, key, value| {
            insert(to, Table::Dirent, key, value)
        })?;
        // Values are long: only a few are in memory at a time.
        self.each(Table::Xattr, 32, &mut |this, key, value| match this
            .orphans
            .contains(&ino_of(key)?)
        {
            true => Ok(()),
            false => insert(to, Table::Xattr, key, value),
        })?;
        self.each(Table::Extent, 256, &mut |this, key, value| {
            this.extent(to, key, value, replace)
        })?;
        self.correct_promises(to)
    }

    /// Calls `visit` with each logical record of a table.
    fn each(
        &mut self,
        table: Table,
        at_a_time: usize,
        visit: &mut Visit<'_, 'a>,
    ) -> Result<(), MetaError> {
        let mut low = Vec::new();
        loop {
            let rows: Vec<Row> = self
                .source
                .scan(table, &low, &[0xFF; 9], self.view, at_a_time)?;
            for (key, value) in &rows {
                visit(self, key, value)?;
            }
            match rows.into_iter().next_back() {
                // No logical key is the beginning of another one: all versions of the last one
                // begin with it, and the next one is greater than it with any generation.
                Some((last, _)) => low = keys::versioned(&last, Generation(u64::MAX)),
                None => return Ok(()),
            }
            low.push(0);
        }
    }

    fn inode(&mut self, to: &mut Loader<'_>, key: &[u8], value: &[u8]) -> Result<(), MetaError> {
        let record = InodeRecord::decode(value).ok_or(MetaError::Corrupt("inode"))?;
        if record.nlink == 0 {
            self.orphans.insert(ino_of(key)?);
            return Ok(());
        }
        self.copied.inodes += 1;
        insert(to, Table::Inode, key, value)
    }

    fn extent(
        &mut self,
        to: &mut Loader<'_>,
        key: &[u8],
        value: &[u8],
        replace: &mut Replace<'_>,
    ) -> Result<(), MetaError> {
        let (ino, chunk) = keys::extent_parts(key).ok_or(MetaError::Corrupt("key"))?;
        if self.orphans.contains(&ino) {
            return Ok(());
        }
        let record = ExtentRecord::decode(value).ok_or(MetaError::Corrupt("extent"))?;
        let before = record.pages();
        let ExtentRecord::Parts {
            shared, mut parts, ..
        } = record
        else {
            return insert(to, Table::Extent, key, value);
        };
        // One without pages was made for a promise.
        parts.retain(|part| !part.pages.is_empty());
        let pages = u64::from(taken(&parts, &PageSet::new()).len());
        if pages < before {
            *self.promised.entry(ino).or_default() += before - pages;
        }
        self.copied.used_pages += pages;
        if parts.is_empty() {
            return Ok(());
        }
        let chunk = self.sized(ino, chunk)?;
        let old: Vec<PartId> = parts.iter().map(|part| part.id).collect();
        let parts = replace(chunk, parts).ok_or(MetaError::Corrupt("an object"))?;
        for part in &parts {
            self.copied.folder = self.copied.folder.max(part.id.name.folder);
        }
        let same = parts.iter().map(|part| &part.id).eq(&old);
        let record = ExtentRecord::Parts {
            // A fresh object is nobody else's.
            shared: shared && same,
            parts,
            reserved: PageSet::new(),
        };
        insert(to, Table::Extent, key, &record.encode())
    }

    /// A chunk, with its file's size.
    fn sized(&mut self, ino: Ino, chunk: ChunkIndex) -> Result<CopiedChunk, MetaError> {
        let size = match self.sized {
            Some((of, size)) if of == ino => size,
            _ => {
                let inode = self.source.inode(ino, self.view)?;
                inode.ok_or(MetaError::Corrupt("extent"))?.size
            }
        };
        self.sized = Some((ino, size));
        Ok(CopiedChunk::of(ino, chunk, size))
    }

    /// Takes promises off the pages that inodes count.
    fn correct_promises(&self, to: &mut Loader<'_>) -> Result<(), MetaError> {
        for (&ino, pages) in &self.promised {
            let mut inode = self
                .source
                .inode(ino, self.view)?
                .ok_or(MetaError::Corrupt("extent"))?;
            inode.pages = inode.pages.saturating_sub(*pages);
            insert(to, Table::Inode, &keys::inode(ino), &inode.encode())?;
        }
        Ok(())
    }
}

/// Inserts a record of the first generation.
fn insert(
    to: &mut Loader<'_>,
    table: Table,
    logical: &[u8],
    value: &[u8],
) -> Result<(), MetaError> {
    to.insert(table, &keys::versioned(logical, FIRST_GENERATION), value)
}

/// The inode that a logical key begins with.
fn ino_of(logical: &[u8]) -> Result<Ino, MetaError> {
    keys::ino_of(logical).ok_or(MetaError::Corrupt("key"))
}
